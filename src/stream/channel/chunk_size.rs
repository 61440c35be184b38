/// How many rows make a chunk.
///
/// A chunk costs a hand-over: a lock, and a wake-up where the consumer waits. When the consumer is
/// the slow one, chunks double, so that it pays less for them. When it waits for rows, they halve,
/// so that it can begin with the first while the rest of a read is still being looked through.
#[derive(Debug)]
pub(in crate::stream) struct ChunkSize {
    rows: usize,
    min: usize,
    max: usize,
    /// How often in a row the same was seen: above 0 a full queue, below it an empty one.
    trend: i8,
    adjustments: u64,
}

/// What the reader finds when it hands over a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stream) enum Demand {
    /// The queue is full: the consumer is the bottleneck.
    Full,
    /// The consumer waits for the chunk.
    Empty,
    Between,
}

/// One observation may be chance.
const TREND: i8 = 4;

impl ChunkSize {
    /// Always `rows`.
    pub(in crate::stream) fn fixed(rows: usize) -> Self {
        Self::adaptive(rows, rows, rows)
    }

    /// Begins with `rows` and stays within `min` and `max`.
    pub(in crate::stream) fn adaptive(rows: usize, min: usize, max: usize) -> Self {
        Self { rows: rows.clamp(min, max), min, max, trend: 0, adjustments: 0 }
    }

    pub(in crate::stream) fn record(&mut self, demand: Demand) {
        self.trend = match demand {
            Demand::Full => self.trend.max(0) + 1,
            Demand::Empty => self.trend.min(0) - 1,
            Demand::Between => 0,
        };
        if self.trend.abs() < TREND {
            return;
        }
        let rows = match self.trend > 0 {
            true => self.rows.saturating_mul(2).min(self.max),
            false => (self.rows / 2).max(self.min),
        };
        self.trend = 0;
        self.adjustments += u64::from(rows != self.rows);
        self.rows = rows;
    }

    /// The most rows in the next chunk.
    pub(in crate::stream) fn next(&self) -> usize {
        self.rows
    }

    /// How often the size has changed.
    pub(in crate::stream) fn adjustments(&self) -> u64 {
        self.adjustments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(size: &mut ChunkSize, demand: Demand, times: usize) {
        for _ in 0..times {
            size.record(demand);
        }
    }

    #[test]
    fn it_grows_behind_a_slow_consumer_and_shrinks_before_a_fast_one() {
        let mut size = ChunkSize::adaptive(64, 16, 200);
        record(&mut size, Demand::Full, 3);
        assert_eq!(size.next(), 64);
        record(&mut size, Demand::Full, 1);
        assert_eq!(size.next(), 128);
        record(&mut size, Demand::Full, 8);
        assert_eq!((size.next(), size.adjustments()), (200, 2));
        record(&mut size, Demand::Empty, 40);
        assert_eq!((size.next(), size.adjustments()), (16, 6));
    }

    #[test]
    fn a_change_of_mind_begins_anew() {
        let mut size = ChunkSize::adaptive(64, 16, 256);
        for demand in [Demand::Empty, Demand::Between] {
            record(&mut size, Demand::Full, 3);
            size.record(demand);
        }
        record(&mut size, Demand::Full, 3);
        assert_eq!((size.next(), size.adjustments()), (64, 0));
    }

    #[test]
    fn a_fixed_size_stays() {
        let mut size = ChunkSize::fixed(7);
        record(&mut size, Demand::Full, 100);
        record(&mut size, Demand::Empty, 100);
        assert_eq!((size.next(), size.adjustments()), (7, 0));
    }
}
