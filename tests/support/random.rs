//! Chance that comes again: a failure can be had once more by its seed.

/// Xorshift64.
pub struct Random(u64);

impl Random {
    /// Seeds that are near each other begin far apart.
    pub fn of(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}
