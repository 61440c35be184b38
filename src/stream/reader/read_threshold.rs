/// For how many bytes the reader waits when the socket is empty: for one, so that no row is kept waiting;
/// and where rows flow, for a good read, because every wake-up costs both ends.
///
/// Bytes that are fewer and stay so are read after a short time, which is the price: so it begins behind
/// many bytes, and again behind many after it has been in vain.
#[derive(Debug)]
pub(super) struct LowWater {
    mark: usize,
    /// Bytes that are to come before it pays.
    missing: usize,
}

/// 8 MiB, which take a server 10 to 60 ms: against these, 1 or 2 ms at the end of the result are small.
const FIRST: usize = 8 << 20;

const AGAIN: usize = 1 << 20;

impl LowWater {
    /// `mark`: how many bytes are a good read.
    pub(super) fn new(mark: usize) -> Self {
        Self { mark, missing: FIRST }
    }

    /// So many bytes were read.
    pub(super) fn record(&mut self, bytes: usize) {
        self.missing = self.missing.saturating_sub(bytes);
    }

    /// They did not come in time.
    pub(super) fn in_vain(&mut self) {
        self.missing = AGAIN;
    }

    /// How many bytes to wait for.
    pub(super) fn next(&self) -> usize {
        if self.missing == 0 { self.mark } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_enough_until_rows_flow() {
        let mut low_water = LowWater::new(64);
        for _ in 0..8 {
            assert_eq!(low_water.next(), 1);
            low_water.record(1 << 20);
        }
        assert_eq!(low_water.next(), 64);
        low_water.record(usize::MAX);
        assert_eq!(low_water.next(), 64);
        low_water.in_vain();
        low_water.record((1 << 20) - 1);
        assert_eq!(low_water.next(), 1);
        low_water.record(1);
        assert_eq!(low_water.next(), 64);
    }
}
