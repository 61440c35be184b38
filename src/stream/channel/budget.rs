use std::collections::VecDeque;

/// The memory of a stream: what it holds, and its limit. Readers that wait for memory are served in
/// order.
#[derive(Debug)]
pub(in crate::stream_impl) struct Budget {
    limit: usize,
    /// The threshold for a warning.
    warn: usize,
    /// Whether a warning was logged since the memory exceeded the threshold.
    warned: bool,
    held: usize,
    peak: usize,
    /// The readers that wait, in order, and the bytes that each waits for.
    waiting: VecDeque<(usize, usize)>,
}

impl Budget {
    pub(in crate::stream_impl) fn new(limit: usize, warn: usize) -> Self {
        Self { limit, warn, warned: false, held: 0, peak: 0, waiting: VecDeque::new() }
    }

    /// Returns whether a reader may hold `size` more bytes now. Otherwise it is queued after the
    /// readers that wait already. A small request must not overtake a large one, which could
    /// otherwise wait forever.
    ///
    /// A stream that holds nothing may hold one allocation of any size. Otherwise a row larger than
    /// the limit could never be read.
    pub(in crate::stream_impl) fn admit(&mut self, reader: usize, size: usize) -> bool {
        let is_next = self.waiting.front().is_none_or(|(next, _)| *next == reader);
        let is_admitted = is_next && self.fits(size);
        if is_admitted {
            self.leave(reader);
        } else if self.waiting.iter().all(|(waiting, _)| *waiting != reader) {
            self.waiting.push_back((reader, size));
        }
        is_admitted
    }

    fn fits(&self, size: usize) -> bool {
        self.held == 0 || self.held.saturating_add(size) <= self.limit
    }

    /// Returns whether the reader waits and is the next to be served.
    pub(in crate::stream_impl) fn is_next(&self, reader: usize) -> bool {
        self.waiting.front().is_some_and(|(next, _)| *next == reader)
    }

    /// Returns whether the next reader waits until others hold less.
    pub(in crate::stream_impl) fn is_short(&self) -> bool {
        self.waiting.front().is_some_and(|(_, size)| !self.fits(*size))
    }

    /// Removes the reader from the queue.
    pub(in crate::stream_impl) fn leave(&mut self, reader: usize) {
        self.waiting.retain(|(waiting, _)| *waiting != reader);
    }

    /// Reserves `size` bytes. Returns whether this crosses the threshold for a warning.
    pub(in crate::stream_impl) fn reserve(&mut self, size: usize) -> bool {
        self.held += size;
        self.peak = self.peak.max(self.held);
        self.held > self.warn && !std::mem::replace(&mut self.warned, true)
    }

    pub(in crate::stream_impl) fn release(&mut self, size: usize) {
        self.held = self.held.saturating_sub(size);
        self.warned &= self.held > self.warn;
    }

    pub(in crate::stream_impl) fn held(&self) -> usize {
        self.held
    }

    /// Returns the maximum that was held.
    pub(in crate::stream_impl) fn peak(&self) -> usize {
        self.peak
    }

    pub(in crate::stream_impl) fn limit(&self) -> usize {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admit_exceeds_the_limit_only_for_a_single_allocation() {
        let mut budget = Budget::new(100, 100);
        assert!(budget.admit(0, 1000), "the first, whatever its size");
        budget.reserve(60);
        assert!(budget.admit(0, 40));
        assert!(!budget.admit(0, 41));
        budget.leave(0);
        budget.reserve(40);
        budget.release(60);
        assert_eq!((budget.held(), budget.peak()), (40, 100));
    }

    #[test]
    fn waiting_readers_are_served_in_order() {
        let mut budget = Budget::new(100, 100);
        assert!(budget.admit(0, 60));
        budget.reserve(60);
        assert!(!budget.admit(1, 70));
        // There is room for it, but the large one is first.
        assert!(!budget.admit(2, 10) && !budget.admit(0, 1));
        assert!(budget.is_short());
        budget.release(60);
        assert!(!budget.admit(2, 10));
        assert!(!budget.is_short(), "the next one has not run yet");
        assert!(budget.admit(1, 70));
        budget.reserve(70);
        assert!(!budget.admit(0, 1), "reader 2 came first");
        assert!(budget.admit(2, 10));
        budget.reserve(10);
        assert!(budget.admit(0, 20));
        // A reader that stops waiting loses its place.
        budget.reserve(20);
        assert!(!budget.admit(1, 50) && !budget.admit(2, 1));
        budget.leave(1);
        budget.release(20);
        assert!(budget.admit(2, 1));
    }

    #[test]
    fn warning_is_logged_once_per_crossing() {
        let mut budget = Budget::new(100, 50);
        assert!(!budget.reserve(50));
        assert!(budget.reserve(1));
        assert!(!budget.reserve(20));
        budget.release(20);
        assert!(!budget.reserve(20), "it stayed above the threshold");
        budget.release(21);
        assert!(budget.reserve(21));
        assert!(!Budget::new(100, 100).reserve(100));
    }
}
