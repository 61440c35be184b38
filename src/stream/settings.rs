use std::time::Duration;

use crate::error::{Error, Result};

/// The default maximum of rows per chunk: about one read of small documents.
const DEFAULT_CHUNK_SIZE: usize = 256;

/// The default minimum and maximum of an adaptive chunk size.
const DEFAULT_ADAPTIVE: (usize, usize) = (16, 4096);

/// The default memory of a stream: 1 MiB, or one row if that is larger.
const DEFAULT_MAX_MEMORY: usize = 1 << 20;

/// The maximum size of a read, 64 KiB. The server flushes 8 KiB at a time, and larger reads are not
/// faster.
pub(super) const MAX_READ: usize = 64 << 10;
pub(super) const MIN_READ: usize = 1 << 10;
/// A page of 20 documents of 500 bytes fits. A connection keeps a buffer of this size between
/// queries.
const MAX_FIRST_READ: usize = 16 << 10;

/// The settings of a stream, as set by the caller.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct StreamSettings {
    pub(crate) chunk_size: Option<usize>,
    pub(crate) adaptive: bool,
    pub(crate) adaptive_min: Option<usize>,
    pub(crate) adaptive_max: Option<usize>,
    pub(crate) max_memory: Option<usize>,
    /// The fractions of the memory at which to warn and to fail.
    pub(crate) soft_limits: Option<(f32, f32)>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) first_row_timeout: Option<Duration>,
    pub(crate) pause_timeout: Option<Duration>,
    /// Whether a column of type text that contains JSON is accepted.
    pub(crate) json_text: bool,
    /// The maximum number of rows by the LIMIT of the statement.
    pub(crate) row_limit: Option<u64>,
}

impl StreamSettings {
    /// # Errors
    ///
    /// [`Error::Config`]: a setting is invalid, or two contradict each other.
    pub(crate) fn validate(&self) -> Result<()> {
        let (min, max) = self.adaptive_bounds();
        let refuse = |message: String| Err(Error::config(message));
        if self.chunk_size == Some(0) {
            return refuse("chunk_size is 0, so no row could be delivered: set at least 1".into());
        }
        if min == 0 || min > max {
            return refuse(format!(
                "adaptive_min_size is {min} and adaptive_max_size is {max}: the minimum must be at \
                 least 1 and at most the maximum"
            ));
        }
        if self.max_memory == Some(0) {
            return refuse(
                "max_memory is 0, so no row could be read: set at least the size of the \
                 largest row in bytes"
                    .into(),
            );
        }
        if let Some((warn, fail)) = self.soft_limits {
            // NaN is in no range.
            if !((0.0..=fail).contains(&warn) && (0.0..=1.0).contains(&fail) && fail > 0.0) {
                return refuse(format!(
                    "invalid memory_soft_limits({warn}, {fail}): expected fractions of max_memory \
                     from 0.0 to 1.0, the first at most the second, and the second above 0.0"
                ));
            }
        }
        let zero = |timeout: Option<Duration>| timeout == Some(Duration::ZERO);
        for (name, timeout) in [
            ("timeout", self.timeout),
            ("first_row_timeout", self.first_row_timeout),
            ("pause_timeout", self.pause_timeout),
        ] {
            if zero(timeout) {
                return refuse(format!("{name} is 0: omit it to disable the timeout"));
            }
        }
        Ok(())
    }

    fn adaptive_bounds(&self) -> (usize, usize) {
        let (min, max) = DEFAULT_ADAPTIVE;
        // A limit beyond the default of the other limit replaces that default.
        match (self.adaptive_min, self.adaptive_max) {
            (None, None) => (min, max),
            (Some(set), None) => (set, set.max(max)),
            (None, Some(set)) => (set.min(min), set),
            (Some(min), Some(max)) => (min, max),
        }
    }

    /// Returns the rows per chunk; for an adaptive size also the minimum and the maximum.
    pub(super) fn chunk_rows(&self) -> (usize, Option<(usize, usize)>) {
        let rows = self.chunk_size.unwrap_or(DEFAULT_CHUNK_SIZE);
        if !self.adaptive {
            return (rows, None);
        }
        let (min, max) = self.adaptive_bounds();
        (rows.clamp(min, max), Some((min, max)))
    }

    /// Returns the maximum memory in bytes.
    pub(super) fn memory(&self) -> usize {
        self.max_memory.unwrap_or(DEFAULT_MAX_MEMORY)
    }

    /// Returns whether a row larger than the maximum memory is an error. Otherwise it passes alone.
    pub(super) fn is_strict(&self) -> bool {
        self.max_memory.is_some()
    }

    /// Returns whether a row that fits into the read buffer can exceed the maximum memory. Any
    /// other row is detected before it is read.
    pub(super) fn is_tiny(&self) -> bool {
        self.is_strict() && self.memory() < 4 * MIN_READ
    }

    /// Returns whether a row that fits into the largest read can exceed the maximum memory.
    pub(super) fn is_below_read(&self) -> bool {
        self.is_strict() && self.memory() < MAX_READ
    }

    /// Checks the size of a message that is not a row.
    ///
    /// # Errors
    ///
    /// [`Error::MemoryLimitExceeded`], if it exceeds the memory by more than a read.
    pub(super) fn admit_message(&self, bytes: usize) -> Result<()> {
        let limit = self.memory();
        if self.is_strict() && bytes > limit.max(MAX_READ) {
            return Err(Error::MemoryLimitExceeded { limit, required: bytes });
        }
        Ok(())
    }

    /// Returns the memory above which the stream warns.
    pub(super) fn warn_at(&self) -> usize {
        self.soft_limits.map_or(self.memory(), |(warn, _)| share(self.memory(), warn))
    }

    /// Returns the memory at which the stream fails instead of waiting for its consumer.
    pub(super) fn fail_at(&self) -> Option<usize> {
        let (_, fail) = self.soft_limits.filter(|(_, fail)| *fail < 1.0)?;
        Some(share(self.memory(), fail))
    }

    /// Returns the maximum number of chunks in the queue: one for every 4 KiB of memory. It limits
    /// the overhead of chunks, which is not counted as memory, if a server sends its rows one by
    /// one. Usually a server sends 8 KiB at a time.
    pub(super) fn max_chunks(&self) -> usize {
        (self.memory() / (4 << 10)).max(64)
    }

    /// Returns the size of a read by each of `readers` that share the memory. It is a quarter of
    /// the memory, so that the next read can start while earlier ones wait for the consumer. If the
    /// stream fails at less than its memory, it is a quarter of that.
    pub(super) fn read_size(&self, readers: usize) -> usize {
        let memory = self.fail_at().map_or(self.memory(), |fail_at| fail_at.min(self.memory()));
        (memory / 4 / readers.max(1)).clamp(MIN_READ, MAX_READ)
    }

    /// Returns the size of the buffer into which `execute()` reads the beginning of the response.
    pub(super) fn first_read_size(&self, readers: usize) -> usize {
        self.read_size(readers).min(MAX_FIRST_READ)
    }
}

/// Returns the fraction `of` a limit, or the limit itself from 1.0.
fn share(limit: usize, of: f32) -> usize {
    if of < 1.0 { (limit as f64 * f64::from(of)) as usize } else { limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validate_rejects_contradictory_settings() {
        type S = StreamSettings;
        let refused: [(S, &str); 12] = [
            (S { chunk_size: Some(0), ..S::default() }, "chunk_size"),
            (S { adaptive_min: Some(0), ..S::default() }, "adaptive_min_size"),
            (S { adaptive_min: Some(9), adaptive_max: Some(8), ..S::default() }, "is 9 and"),
            (S { max_memory: Some(0), ..S::default() }, "max_memory"),
            (S { soft_limits: Some((f32::NAN, 1.0)), ..S::default() }, "memory_soft_limits"),
            (S { soft_limits: Some((0.5, f32::NAN)), ..S::default() }, "memory_soft_limits"),
            (S { soft_limits: Some((0.9, 0.8)), ..S::default() }, "memory_soft_limits"),
            (S { soft_limits: Some((0.5, 1.5)), ..S::default() }, "memory_soft_limits"),
            (S { soft_limits: Some((0.0, 0.0)), ..S::default() }, "memory_soft_limits"),
            (S { timeout: Some(Duration::ZERO), ..S::default() }, "timeout is 0"),
            (S { first_row_timeout: Some(Duration::ZERO), ..S::default() }, "first_row_timeout is"),
            (S { pause_timeout: Some(Duration::ZERO), ..S::default() }, "pause_timeout is 0"),
        ];
        for (settings, part) in refused {
            let error = settings.validate().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let only_one = S { adaptive_min: Some(9000), ..S::default() };
        only_one.validate().unwrap();
        for soft_limits in [(0.8, 1.0), (0.0, 0.1), (0.5, 0.5)] {
            S { soft_limits: Some(soft_limits), ..S::default() }.validate().unwrap();
        }
        S { adaptive_min: Some(8), adaptive_max: Some(8), ..S::default() }.validate().unwrap();
    }

    /// These are the defaults in the documentation of the query builder and in
    /// docs/ARCHITECTURE.md.
    #[test]
    fn defaults_are_as_documented() {
        let settings = StreamSettings::default();
        settings.validate().unwrap();
        assert_eq!((settings.memory(), settings.is_strict()), (1_048_576, false));
        assert_eq!((settings.read_size(1), settings.max_chunks()), (65_536, 256));
        assert_eq!((settings.warn_at(), settings.fail_at()), (1_048_576, None));
        let rows =
            |chunk_size, adaptive| StreamSettings { chunk_size, adaptive, ..settings }.chunk_rows();
        assert_eq!(rows(None, false), (256, None));
        assert_eq!(rows(None, true), (256, Some((16, 4096))));
        assert_eq!((rows(Some(1), false), rows(Some(10_000), false)), ((1, None), (10_000, None)));
    }

    #[test]
    fn adaptive_limit_beyond_the_others_default_replaces_it() {
        let bounds = |adaptive_min, adaptive_max| {
            let settings = StreamSettings { adaptive_min, adaptive_max, ..Default::default() };
            StreamSettings { adaptive: true, ..settings }.chunk_rows().1.unwrap()
        };
        assert_eq!((bounds(Some(9000), None), bounds(None, Some(8))), ((9000, 9000), (8, 8)));
        assert_eq!((bounds(Some(300), None), bounds(None, Some(200))), ((300, 4096), (16, 200)));
        assert_eq!(bounds(Some(300), Some(400)), (300, 400));
    }

    #[test]
    fn reads_and_queues_are_sized_by_the_memory() {
        for (memory, read, chunks) in
            [(1, 1024, 64), (8192, 2048, 64), (1 << 20, 65_536, 256), (1 << 24, 65_536, 4096)]
        {
            let settings = StreamSettings { max_memory: Some(memory), ..Default::default() };
            assert!(settings.is_strict());
            assert_eq!(settings.memory(), memory);
            assert_eq!((settings.read_size(1), settings.max_chunks()), (read, chunks), "{memory}");
        }
        let shares = |soft_limits| {
            let settings = StreamSettings { max_memory: Some(1000), ..Default::default() };
            let settings = StreamSettings { soft_limits: Some(soft_limits), ..settings };
            (settings.warn_at(), settings.fail_at())
        };
        assert_eq!(shares((0.5, 0.75)), (500, Some(750)));
        assert_eq!(shares((0.5, 1.0)), (500, None));
    }
}
