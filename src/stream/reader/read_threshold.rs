/// For how many bytes the reader waits when the socket is empty: for one, so that no row is kept waiting;
/// and where rows flow, for a good read, because every wake-up costs both ends.
///
/// Bytes that are fewer and stay so are read after a short time, which is the price: so it begins behind
/// many bytes, and again behind many after it has been in vain.
#[derive(Debug)]
pub(super) struct ReadThreshold {
    mark: usize,
    /// Bytes that are to come before it pays.
    missing: usize,
}

/// 8 MiB, which take a server 10 to 60 ms: against these, 1 or 2 ms at the end of the result are small.
const START_AFTER: usize = 8 << 20;

const RESTART_AFTER: usize = 1 << 20;

impl ReadThreshold {
    /// `mark`: how many bytes are a good read.
    pub(super) fn new(mark: usize) -> Self {
        Self { mark, missing: START_AFTER }
    }

    /// So many bytes were read.
    pub(super) fn record(&mut self, bytes: usize) {
        self.missing = self.missing.saturating_sub(bytes);
    }

    /// They did not come in time.
    pub(super) fn timed_out(&mut self) {
        self.missing = RESTART_AFTER;
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
        let mut threshold = ReadThreshold::new(64);
        for _ in 0..8 {
            assert_eq!(threshold.next(), 1);
            threshold.record(1 << 20);
        }
        assert_eq!(threshold.next(), 64);
        threshold.record(usize::MAX);
        assert_eq!(threshold.next(), 64);
        threshold.timed_out();
        threshold.record((1 << 20) - 1);
        assert_eq!(threshold.next(), 1);
        threshold.record(1);
        assert_eq!(threshold.next(), 64);
    }
}
