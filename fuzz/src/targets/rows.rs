use std::ops::Range;

use super::{Random, contains};
use crate::protocol::{
    frame::{HEADER, Header, MAX_FRAME, PreV3Error},
    rows::{ROW_OVERHEAD, Run, Stop, value_at},
};

/// Fuzzes runs of rows. The input starts with the maximum number of rows, the maximum size of a
/// row, and where the bytes are divided.
///
/// However the bytes are divided, the rows must be those that a simple parser finds. Nothing may be
/// read beyond the received bytes and the limits.
pub fn rows(data: &[u8]) {
    let Some((&[rows, size, cuts], bytes)) = data.split_first_chunk() else { return };
    let max_rows = match usize::from(rows % 4) {
        0 => usize::MAX,
        some => some,
    };
    let max_frame = [MAX_FRAME, ROW_OVERHEAD, 64, 8 << 10][usize::from(size % 4)];
    header(bytes, max_frame);

    let random = &mut Random::of(cuts.into());
    let mut run = Run::default();
    let mut arrived = 0;
    loop {
        let buf = &bytes[..arrived];
        let stop = run.extend(buf, max_rows, max_frame);
        check(&run, &stop, buf, max_rows, max_frame);
        let before = run;
        let again = run.extend(buf, max_rows, max_frame);
        assert_eq!((run, End::of(&again)), (before, End::of(&stop)), "asked twice");
        if arrived == bytes.len() {
            break;
        }
        arrived = (arrived + 1 + random.below(1 + u64::from(cuts % 16)) as usize).min(bytes.len());
    }
}

/// How a run ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Full,
    Incomplete,
    Other,
    Malformed,
}

impl End {
    fn of(stop: &Stop) -> Self {
        match stop {
            Stop::Full => Self::Full,
            Stop::Incomplete(_) => Self::Incomplete,
            Stop::Other => Self::Other,
            Stop::Malformed(_) => Self::Malformed,
        }
    }
}

fn check(run: &Run, stop: &Stop, buf: &[u8], max_rows: usize, max_frame: usize) {
    let (expected, end) = parse_simply(buf, max_rows, max_frame);
    assert_eq!(End::of(stop), end, "{stop:?} of {buf:?}");
    assert_eq!(run.rows, expected.len());

    // Iterates like the stream.
    let frames = &buf[..run.frame_bytes];
    let (mut at, mut walked, mut value_bytes) = (0, Vec::new(), 0);
    while let Some((value, next)) = value_at(frames, at) {
        assert!(next > at && next <= frames.len(), "a row of {at}..{next} in {}", frames.len());
        value_bytes += value.as_ref().map_or(0, Range::len);
        walked.push(value);
        at = next;
    }
    assert_eq!((at, value_bytes), (run.frame_bytes, run.value_bytes));
    assert_eq!(walked, expected);

    if let Stop::Incomplete(row) = stop {
        let there = buf.len() - run.frame_bytes;
        assert!(there < row.frame_bytes && row.frame_bytes <= max_frame, "{row:?}, {there} there");
        assert!(row.value_bytes <= row.frame_bytes - ROW_OVERHEAD, "{row:?}");
    }
}

/// Parses the rows byte by byte, as described for [DataRow].
///
/// [DataRow]: https://www.postgresql.org/docs/current/protocol-message-formats.html
fn parse_simply(buf: &[u8], max_rows: usize, max_frame: usize) -> (Vec<Option<Range<usize>>>, End) {
    let number = |at: usize| {
        let bytes = buf.get(at..at + 4)?;
        Some(i64::from(i32::from_be_bytes(bytes.try_into().unwrap())))
    };
    let (mut rows, mut at) = (Vec::new(), 0);
    let end = loop {
        if rows.len() >= max_rows {
            break End::Full;
        }
        match buf.get(at) {
            None => break End::Incomplete,
            Some(b'D') => {}
            Some(_) => break End::Other,
        }
        let Some(len) = number(at + 1) else { break End::Incomplete };
        // The length counts itself but not the tag. A row has at least the number of columns and
        // one length.
        if len < 4 + 2 + 4 || len + 1 > max_frame as i64 {
            break End::Malformed;
        }
        let Some(value_len) = number(at + 7) else { break End::Incomplete };
        if buf[at + 5..at + 7] != [0, 1] || value_len < -1 || len != 4 + 2 + 4 + value_len.max(0) {
            break End::Malformed;
        }
        let (start, end) = (at + ROW_OVERHEAD, at + 1 + len as usize);
        if end > buf.len() {
            break End::Incomplete;
        }
        rows.push((value_len >= 0).then_some(start..end));
        at = end;
    };
    (rows, end)
}

fn header(bytes: &[u8], max: usize) {
    match (Header::parse(bytes, max), bytes.first_chunk::<HEADER>()) {
        (Ok(None), None) => {}
        (read, Some(&[tag, ref len @ ..])) => {
            let size = u64::from(u32::from_be_bytes(*len)) + 1;
            let allowed = (5..=max as u64).contains(&size);
            match read {
                Ok(Some(header)) => {
                    assert!(allowed && header.tag == tag && header.size as u64 == size);
                }
                Ok(None) => panic!("a header of {bytes:?} is not seen"),
                Err(e) => {
                    assert!(!allowed, "{e}");
                    super::assert_one_line(e);
                }
            }
        }
        (read, None) => panic!("{read:?} of {bytes:?}"),
    }
    match Header::pre_v3_error(bytes) {
        Some(PreV3Error::Whole(text)) => {
            assert!(bytes[0] == b'E' && !text.is_empty() && contains(bytes, text.as_bytes()));
            super::assert_one_line(text);
        }
        Some(PreV3Error::Beginning(text)) => {
            assert!(bytes[0] == b'E' && !bytes.contains(&0));
            assert!(text.is_empty() || contains(bytes, text.as_bytes()));
        }
        None => {}
    }
}
