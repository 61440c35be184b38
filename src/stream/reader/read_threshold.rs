/// The number of bytes that the reader waits for when the socket is empty.
///
/// This is usually one byte, so that no row is delayed. In a continuous flow of rows it is a large
/// read, because each wake-up has a cost for the reader and for the server.
///
/// Less data than the threshold is read only after a short timeout. To limit that latency,
/// coalescing starts after 8 MiB, and restarts 1 MiB after each timeout.
#[derive(Debug)]
pub(super) struct ReadThreshold {
    mark: usize,
    /// The number of bytes to receive before coalescing starts.
    missing: usize,
}

/// 8 MiB, which a server sends in 10 to 60 ms. Compared with that, 1 or 2 ms at the end of the
/// result are small.
const START_AFTER: usize = 8 << 20;

const RESTART_AFTER: usize = 1 << 20;

impl ReadThreshold {
    /// `mark` is the size of a large read in bytes.
    pub(super) fn new(mark: usize) -> Self {
        Self { mark, missing: START_AFTER }
    }

    /// Records that `bytes` were read.
    pub(super) fn record(&mut self, bytes: usize) {
        self.missing = self.missing.saturating_sub(bytes);
    }

    /// Records that the timeout expired before the threshold was reached.
    pub(super) fn timed_out(&mut self) {
        self.missing = RESTART_AFTER;
    }

    /// Returns the number of bytes to wait for.
    pub(super) fn next(&self) -> usize {
        if self.missing == 0 { self.mark } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threshold_is_one_byte_until_rows_flow() {
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
