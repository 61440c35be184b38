/// A set of readers, by their indexes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seats(u64);

impl Seats {
    pub(super) fn add(&mut self, seat: usize) {
        self.0 |= bit(seat);
    }

    pub(super) fn add_all(&mut self, seats: Self) {
        self.0 |= seats.0;
    }

    pub(super) fn remove(&mut self, seat: usize) {
        self.0 &= !bit(seat);
    }

    pub(super) fn has(self, seat: usize) -> bool {
        self.0 & bit(seat) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn len(self) -> usize {
        self.0.count_ones() as usize
    }
}

/// There are at most 64 readers: see [`MAX_PARALLEL`](crate::stream_impl::MAX_PARALLEL).
fn bit(seat: usize) -> u64 {
    1 << (seat % 64)
}
