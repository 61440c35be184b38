use std::collections::VecDeque;

/// How many bytes a stream holds, and may hold. Readers that wait for more are served in order.
#[derive(Debug)]
pub(in crate::stream) struct Budget {
    limit: usize,
    /// Above it there is a warning.
    warn: usize,
    /// Whether the warning for being above has been given.
    warned: bool,
    held: usize,
    peak: usize,
    /// Readers that wait, in order, and for how many bytes.
    waiting: VecDeque<(usize, usize)>,
}

impl Budget {
    pub(in crate::stream) fn new(limit: usize, warn: usize) -> Self {
        Self { limit, warn, warned: false, held: 0, peak: 0, waiting: VecDeque::new() }
    }

    /// Whether a reader may hold `size` more bytes now. Otherwise it waits, and has its turn after
    /// those that waited before: a small request must not overtake a large one, which would wait
    /// until no small ones come.
    ///
    /// A stream that holds nothing may hold any one thing: else a row larger than the limit would
    /// never pass.
    pub(in crate::stream) fn admit(&mut self, reader: usize, size: usize) -> bool {
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

    /// Whether the reader waits and is the next to be served.
    pub(in crate::stream) fn is_next(&self, reader: usize) -> bool {
        self.waiting.front().is_some_and(|(next, _)| *next == reader)
    }

    /// Whether the reader that is next waits until others hold less.
    pub(in crate::stream) fn is_short(&self) -> bool {
        self.waiting.front().is_some_and(|(_, size)| !self.fits(*size))
    }

    /// The reader does not wait any more.
    pub(in crate::stream) fn leave(&mut self, reader: usize) {
        self.waiting.retain(|(waiting, _)| *waiting != reader);
    }

    /// Takes so much; returns whether that is above the share to warn of, and was not before.
    pub(in crate::stream) fn take(&mut self, size: usize) -> bool {
        self.held += size;
        self.peak = self.peak.max(self.held);
        self.held > self.warn && !std::mem::replace(&mut self.warned, true)
    }

    pub(in crate::stream) fn give(&mut self, size: usize) {
        self.held = self.held.saturating_sub(size);
        self.warned &= self.held > self.warn;
    }

    pub(in crate::stream) fn held(&self) -> usize {
        self.held
    }

    /// The most that was ever held.
    pub(in crate::stream) fn peak(&self) -> usize {
        self.peak
    }

    pub(in crate::stream) fn limit(&self) -> usize {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_beyond_the_limit_but_a_single_thing() {
        let mut budget = Budget::new(100, 100);
        assert!(budget.admit(0, 1000), "the first, whatever its size");
        budget.take(60);
        assert!(budget.admit(0, 40));
        assert!(!budget.admit(0, 41));
        budget.leave(0);
        budget.take(40);
        budget.give(60);
        assert_eq!((budget.held(), budget.peak()), (40, 100));
    }

    #[test]
    fn readers_that_wait_are_served_in_order() {
        let mut budget = Budget::new(100, 100);
        assert!(budget.admit(0, 60));
        budget.take(60);
        assert!(!budget.admit(1, 70));
        // There is room for it, but not before the large one.
        assert!(!budget.admit(2, 10) && !budget.admit(0, 1));
        assert!(budget.is_short());
        budget.give(60);
        assert!(!budget.admit(2, 10));
        assert!(!budget.is_short(), "the next one has not run yet");
        assert!(budget.admit(1, 70));
        budget.take(70);
        assert!(!budget.admit(0, 1), "reader 2 came first");
        assert!(budget.admit(2, 10));
        budget.take(10);
        assert!(budget.admit(0, 20));
        // A reader that stops waiting loses its turn.
        budget.take(20);
        assert!(!budget.admit(1, 50) && !budget.admit(2, 1));
        budget.leave(1);
        budget.give(20);
        assert!(budget.admit(2, 1));
    }

    #[test]
    fn a_warning_comes_once_a_crossing() {
        let mut budget = Budget::new(100, 50);
        assert!(!budget.take(50));
        assert!(budget.take(1));
        assert!(!budget.take(20));
        budget.give(20);
        assert!(!budget.take(20), "it was above all the while");
        budget.give(21);
        assert!(budget.take(21));
        assert!(!Budget::new(100, 100).take(100));
    }
}
