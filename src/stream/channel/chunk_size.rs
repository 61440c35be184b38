/// The maximum number of rows per chunk.
///
/// Delivering a chunk costs a lock, and a wake-up if the consumer waits. If the consumer is the
/// bottleneck, the size doubles, so that fewer chunks are delivered. If the consumer waits for
/// rows, the size halves, so that it can start on the first rows while the rest of a read is still
/// being validated.
#[derive(Debug)]
pub(in crate::stream_impl) struct ChunkSize {
    rows: usize,
    min: usize,
    max: usize,
    /// The number of equal observations in succession: positive for a full queue, negative for a
    /// waiting consumer.
    trend: i8,
    adjustments: u64,
}

/// The state of the consumer when the reader delivers a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stream_impl) enum Demand {
    /// The queue is full: the consumer is the bottleneck.
    Full,
    /// The consumer is waiting for the chunk.
    Empty,
    Between,
}

/// A single observation may be chance.
const TREND: i8 = 4;

impl ChunkSize {
    /// Creates a fixed size.
    pub(in crate::stream_impl) fn fixed(rows: usize) -> Self {
        Self::adaptive(rows, rows, rows)
    }

    /// Creates an adaptive size that starts at `rows` and stays between `min` and `max`.
    pub(in crate::stream_impl) fn adaptive(rows: usize, min: usize, max: usize) -> Self {
        Self { rows: rows.clamp(min, max), min, max, trend: 0, adjustments: 0 }
    }

    pub(in crate::stream_impl) fn record(&mut self, demand: Demand) {
        self.trend = match demand {
            Demand::Full => self.trend.max(0) + 1,
            Demand::Empty => self.trend.min(0) - 1,
            Demand::Between => 0,
        };
        if self.trend.abs() < TREND {
            return;
        }
        let rows = if self.trend > 0 {
            self.rows.saturating_mul(2).min(self.max)
        } else {
            (self.rows / 2).max(self.min)
        };
        self.trend = 0;
        self.adjustments += u64::from(rows != self.rows);
        self.rows = rows;
    }

    /// Returns the maximum number of rows in the next chunk.
    pub(in crate::stream_impl) fn next(&self) -> usize {
        self.rows
    }

    /// Returns the number of changes.
    pub(in crate::stream_impl) fn adjustments(&self) -> u64 {
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
    fn chunk_size_doubles_when_queue_full_and_halves_when_consumer_waits() {
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
    fn chunk_size_restarts_counting_when_the_observation_changes() {
        let mut size = ChunkSize::adaptive(64, 16, 256);
        for demand in [Demand::Empty, Demand::Between] {
            record(&mut size, Demand::Full, 3);
            size.record(demand);
        }
        record(&mut size, Demand::Full, 3);
        assert_eq!((size.next(), size.adjustments()), (64, 0));
    }

    #[test]
    fn fixed_chunk_size_never_changes() {
        let mut size = ChunkSize::fixed(7);
        record(&mut size, Demand::Full, 100);
        record(&mut size, Demand::Empty, 100);
        assert_eq!((size.next(), size.adjustments()), (7, 0));
    }
}
