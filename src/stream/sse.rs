//! Rows as server-sent events, the format `text/event-stream`.
//!
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>

use bytes::BytesMut;

use crate::error::Error;

/// Appends the event of a row.
pub(super) fn push_row(id: Option<&str>, document: &[u8], out: &mut BytesMut) {
    if let Some(id) = id.filter(|id| survives_as_header(id)) {
        push_field(b"id: ", id.as_bytes(), out);
    }
    push_data(document, out);
    out.extend_from_slice(b"\n");
}

/// Returns the event that ends a complete body.
pub(super) fn end(rows: u64) -> String {
    format!("event: end\ndata: {{\"rows\":{rows}}}\n\n")
}

/// Returns the event of an error. It reveals nothing of the server or the query.
pub(super) fn error(error: &Error) -> String {
    let (category, retriable) = (error.category(), error.is_retriable());
    format!("event: error\ndata: {{\"category\":\"{category}\",\"retriable\":{retriable}}}\n\n")
}

/// Whether a client can return the id in the header `Last-Event-ID`. A line break would end the
/// field, and a NUL would make the client ignore it. Values of headers lose outer blanks, cannot
/// contain other control characters, and are not sent if they are empty.
fn survives_as_header(id: &str) -> bool {
    !id.is_empty() && id.trim_matches(' ') == id && !id.bytes().any(|b| b.is_ascii_control())
}

/// Appends the lines of a text, each as a field. The client joins them with LF.
fn push_data(text: &[u8], out: &mut BytesMut) {
    let mut rest = text;
    loop {
        let at = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let (line, end) = rest.split_at_checked(at.unwrap_or(rest.len())).unwrap_or((rest, b""));
        push_field(b"data: ", line, out);
        rest = match end {
            [b'\r', b'\n', next @ ..] | [_, next @ ..] => next,
            [] => return,
        };
    }
}

fn push_field(name: &[u8], value: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: Option<&str>, document: &str) -> String {
        let mut out = BytesMut::new();
        push_row(id, document.as_bytes(), &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn every_line_of_a_document_is_a_field() {
        assert_eq!(row(None, "{}"), "data: {}\n\n");
        assert_eq!(row(None, " 1"), "data:  1\n\n");
        assert_eq!(row(None, "[\n1,\r2,\r\n3]"), "data: [\ndata: 1,\ndata: 2,\ndata: 3]\n\n");
        assert_eq!(row(None, "1\n\r\n\r"), "data: 1\ndata: \ndata: \ndata: \n\n");
        assert_eq!(row(None, "\n\n1"), "data: \ndata: \ndata: 1\n\n");
    }

    #[test]
    fn id_that_a_header_cannot_carry_is_left_out() {
        for id in ["1", "-1.50", "a b", "Krak\u{f3}w", "\u{85}", "{", "null"] {
            assert_eq!(row(Some(id), "1"), format!("id: {id}\ndata: 1\n\n"));
        }
        for id in ["", " ", " a", "a ", "a\nb", "a\rb", "a\r\n", "\0", "a\tb", "\u{7f}"] {
            assert_eq!(row(Some(id), "1"), "data: 1\n\n", "{id:?}");
        }
    }

    #[test]
    fn error_event_shows_the_category_only() {
        for (failed, data) in [
            (Error::config("planted"), r#"{"category":"config","retriable":false}"#),
            (Error::ConnectionBusy, r#"{"category":"connection_busy","retriable":true}"#),
        ] {
            assert_eq!(error(&failed), format!("event: error\ndata: {data}\n\n"));
        }
    }
}
