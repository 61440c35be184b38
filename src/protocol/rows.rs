//! Runs of DataRow messages with one column.
//!
//! They are validated once when they arrive, and read in place when they are consumed: never
//! copied.

use std::ops::Range;

use crate::error::Error;

use super::{
    frame::{HEADER, Header, frame_size},
    tag::DATA_ROW,
};

/// The overhead of a DataRow in bytes: tag, length, column count, length of the value.
pub(crate) const ROW_OVERHEAD: usize = HEADER + 2 + 4;

/// Consecutive complete rows at the start of a buffer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) rows: usize,
    /// The size of their frames, and so the offset in the buffer at which the run ends.
    pub(crate) frame_bytes: usize,
    /// The size of their values, which the caller sees.
    pub(crate) value_bytes: usize,
}

/// Why a run ends.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It has the maximum number of rows.
    Full,
    /// The next row has not arrived completely.
    Incomplete(Incomplete),
    /// A message of another kind follows.
    Other,
    /// The next message is not a valid row of one column.
    Malformed(Error),
}

/// A row that has arrived only in part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Incomplete {
    /// The size of its frame in bytes, as far as it is known.
    pub(crate) frame_bytes: usize,
    /// The size of its value in bytes, as far as it is known.
    pub(crate) value_bytes: usize,
}

impl Run {
    /// Adds the rows that follow in `buf`, up to a total of `max_rows`, each of at most `max_frame`
    /// bytes.
    ///
    /// `buf` starts at the first row of the run. It may have grown since the last call; no row is
    /// validated twice.
    pub(crate) fn extend(&mut self, buf: &[u8], max_rows: usize, max_frame: usize) -> Stop {
        while self.rows < max_rows {
            let rest = buf.get(self.frame_bytes..).unwrap_or_default();
            let Some(head) = rest.first_chunk::<ROW_OVERHEAD>() else {
                return incomplete_head(rest, max_frame);
            };
            let [DATA_ROW, l0, l1, l2, l3, c0, c1, v0, v1, v2, v3] = *head else {
                return Stop::Other;
            };
            let frame = frame_size([l0, l1, l2, l3]);
            let columns = u16::from_be_bytes([c0, c1]);
            let value = match i32::from_be_bytes([v0, v1, v2, v3]) {
                -1 => Some(0),
                len => usize::try_from(len).ok(),
            };
            let value = match value {
                Some(value) if columns == 1 && value + ROW_OVERHEAD == frame => value,
                _ => return Stop::Malformed(malformed(frame, columns)),
            };
            if frame > max_frame {
                return Stop::Malformed(too_large(frame, max_frame));
            }
            if frame > rest.len() {
                return Stop::Incomplete(Incomplete { frame_bytes: frame, value_bytes: value });
            }
            self.rows += 1;
            self.frame_bytes += frame;
            self.value_bytes += value;
        }
        Stop::Full
    }
}

/// The range of a row's value in the run, or `None` if it is NULL.
pub(crate) type Value = Option<Range<usize>>;

/// Returns the value of the row at the offset `at`, and the offset of the next row. Returns `None`
/// at the end of the run.
///
/// [`Run::extend`] must have validated the run.
#[inline]
pub(crate) fn value_at(run: &[u8], at: usize) -> Option<(Value, usize)> {
    let head = run.get(at..)?.first_chunk::<ROW_OVERHEAD>()?;
    let [.., v0, v1, v2, v3] = *head;
    let start = at + ROW_OVERHEAD;
    match usize::try_from(i32::from_be_bytes([v0, v1, v2, v3])) {
        Ok(len) => Some((Some(start..start + len), start + len)),
        Err(_) => Some((None, start)),
    }
}

/// Returns why a run ends if the buffer has too few bytes for the head of a row.
fn incomplete_head(rest: &[u8], max_frame: usize) -> Stop {
    match rest.first() {
        Some(&tag) if tag != DATA_ROW => return Stop::Other,
        _ => {}
    }
    match Header::parse(rest, max_frame) {
        Err(e) => Stop::Malformed(e),
        Ok(Some(header)) if header.size < ROW_OVERHEAD => {
            Stop::Malformed(malformed(header.size, 0))
        }
        Ok(_) => Stop::Incomplete(Incomplete { frame_bytes: ROW_OVERHEAD, value_bytes: 0 }),
    }
}

#[cold]
fn malformed(frame: usize, columns: u16) -> Error {
    Error::protocol(format!(
        "invalid DataRow of {frame} bytes with {columns} columns: expected one column"
    ))
}

#[cold]
fn too_large(frame: usize, max_frame: usize) -> Error {
    Error::protocol(format!(
        "a row of {frame} bytes exceeds max_message_size ({max_frame}): raise it, or select less \
         of the document"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::MAX_FRAME;

    /// Recorded from a server: `select data from (values ('{"a":1}'::json), (null)) t(data)`.
    const TWO_ROWS: &[u8] =
        b"D\0\0\0\x11\0\x01\0\0\0\x07{\"a\":1}D\0\0\0\x0a\0\x01\xff\xff\xff\xff";

    fn values(run: &[u8]) -> Vec<Option<&[u8]>> {
        let mut at = 0;
        std::iter::from_fn(|| {
            let (value, next) = value_at(run, at)?;
            at = next;
            Some(value.map(|range| &run[range]))
        })
        .collect()
    }

    #[test]
    fn extend_stops_at_another_message() {
        let mut run = Run::default();
        let buf = [TWO_ROWS, b"C\0\0\0\x0dSELECT 2\0"].concat();
        assert!(matches!(run.extend(&buf, 100, MAX_FRAME), Stop::Other));
        assert_eq!(run, Run { rows: 2, frame_bytes: TWO_ROWS.len(), value_bytes: 7 });
        assert_eq!(values(&buf[..run.frame_bytes]), [Some(&b"{\"a\":1}"[..]), None]);
        // Also if it is shorter than the head of a row.
        let buf = [TWO_ROWS, b"Z\0\0\0\x05I"].concat();
        assert!(matches!(Run::default().extend(&buf, 100, MAX_FRAME), Stop::Other));
    }

    #[test]
    fn extend_stops_at_max_rows() {
        let mut run = Run::default();
        assert!(matches!(run.extend(TWO_ROWS, 1, MAX_FRAME), Stop::Full));
        assert_eq!(run.rows, 1);
    }

    /// The first of the two rows is 18 bytes long.
    #[test]
    fn extend_rejects_rows_larger_than_max_frame() {
        let mut run = Run::default();
        assert!(matches!(run.extend(TWO_ROWS, 2, 18), Stop::Full));
        let mut run = Run::default();
        let Stop::Malformed(error) = run.extend(TWO_ROWS, 2, 17) else { panic!("{run:?}") };
        assert!(error.to_string().contains("a row of 18 bytes"), "{error}");
    }

    #[test]
    fn extend_continues_after_a_cut_at_any_byte() {
        for cut in 0..TWO_ROWS.len() {
            let mut run = Run::default();
            let Stop::Incomplete(next) = run.extend(&TWO_ROWS[..cut], 100, MAX_FRAME) else {
                panic!("cut at {cut}");
            };
            let known = if !(11..18).contains(&cut) { (11, 0) } else { (18, 7) };
            assert_eq!((next.frame_bytes, next.value_bytes), known, "cut at {cut}");
            assert_eq!(run.rows, usize::from(cut >= 18));
            assert!(matches!(run.extend(TWO_ROWS, 100, MAX_FRAME), Stop::Incomplete(_)));
            assert_eq!(run.rows, 2, "cut at {cut}");
        }
    }

    #[test]
    fn extend_stops_at_a_malformed_row_and_keeps_the_rows_before_it() {
        let bad: [&[u8]; 7] = [
            b"D\0\0\0\x0a\0\x02\xff\xff\xff\xff",
            b"D\0\0\0\x0a\0\0\xff\xff\xff\xff",
            b"D\0\0\0\x0b\0\x01\0\0\0\x02x",
            b"D\0\0\0\x0c\0\x01\0\0\0\x01xx",
            b"D\0\0\0\x0a\0\x01\xff\xff\xff\xfe",
            b"D\0\0\0\x06\0\0",
            b"D\x7f\xff\xff\xff\0\x01\x7f\xff\xff\xf5",
        ];
        for bad in bad {
            let mut run = Run::default();
            let stop = run.extend(&[TWO_ROWS, bad].concat(), 100, MAX_FRAME);
            assert!(matches!(stop, Stop::Malformed(_)), "{bad:?}: {stop:?}");
            assert_eq!(run.rows, 2);
        }
    }
}
