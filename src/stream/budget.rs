/// How many bytes a stream holds, and may hold.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    held: usize,
    peak: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, held: 0, peak: 0 }
    }

    /// Whether `size` more bytes may be held.
    ///
    /// A stream that holds nothing may hold any one thing: else a row larger than the limit would
    /// never pass.
    pub(super) fn allows(&self, size: usize) -> bool {
        self.held == 0 || self.held.saturating_add(size) <= self.limit
    }

    pub(super) fn take(&mut self, size: usize) {
        self.held += size;
        self.peak = self.peak.max(self.held);
    }

    pub(super) fn give(&mut self, size: usize) {
        self.held = self.held.saturating_sub(size);
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// The most that was ever held.
    pub(super) fn peak(&self) -> usize {
        self.peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_beyond_the_limit_but_a_single_thing() {
        let mut budget = Budget::new(100);
        assert!(budget.allows(1000), "the first, whatever its size");
        budget.take(60);
        assert!(budget.allows(40));
        assert!(!budget.allows(41));
        budget.take(40);
        budget.give(60);
        assert_eq!((budget.held(), budget.peak()), (40, 100));
    }
}
