/// How many bytes a stream holds, and may hold.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// Above it there is a warning.
    warn: usize,
    /// Whether the warning for being above has been given.
    warned: bool,
    held: usize,
    peak: usize,
}

impl Budget {
    /// `warn` is a share of `limit`; from 1.0 on nothing is ever above it.
    pub(super) fn new(limit: usize, warn: f32) -> Self {
        Self { limit, warn: share(limit, warn), warned: false, held: 0, peak: 0 }
    }

    /// Whether `size` more bytes may be held.
    ///
    /// A stream that holds nothing may hold any one thing: else a row larger than the limit would
    /// never pass.
    pub(super) fn allows(&self, size: usize) -> bool {
        self.held == 0 || self.held.saturating_add(size) <= self.limit
    }

    /// Takes so much; returns whether that is above the share to warn of, and was not before.
    pub(super) fn take(&mut self, size: usize) -> bool {
        self.held += size;
        self.peak = self.peak.max(self.held);
        self.held > self.warn && !std::mem::replace(&mut self.warned, true)
    }

    pub(super) fn give(&mut self, size: usize) {
        self.held = self.held.saturating_sub(size);
        self.warned &= self.held > self.warn;
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// The most that was ever held.
    pub(super) fn peak(&self) -> usize {
        self.peak
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }
}

/// So much of `limit`, and all of it from 1.0 on.
pub(super) fn share(limit: usize, of: f32) -> usize {
    if of < 1.0 { (limit as f64 * f64::from(of)) as usize } else { limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_beyond_the_limit_but_a_single_thing() {
        let mut budget = Budget::new(100, 1.0);
        assert!(budget.allows(1000), "the first, whatever its size");
        budget.take(60);
        assert!(budget.allows(40));
        assert!(!budget.allows(41));
        budget.take(40);
        budget.give(60);
        assert_eq!((budget.held(), budget.peak()), (40, 100));
    }

    #[test]
    fn a_warning_comes_once_a_crossing() {
        let mut budget = Budget::new(100, 0.5);
        assert!(!budget.take(50));
        assert!(budget.take(1));
        assert!(!budget.take(20));
        budget.give(20);
        assert!(!budget.take(20), "it was above all the while");
        budget.give(21);
        assert!(budget.take(21));
        assert!(!Budget::new(100, 1.0).take(100));
    }
}
