use super::assert_one_line;
use crate::{
    error::Error,
    protocol::{
        backend::{Authentication, Message, name_of},
        frame::{HEADER, Header, MAX_CONTROL_FRAME},
    },
};

/// Any bytes as a message, by its tag and its body, and as messages one after the other.
///
/// Each is read or refused; what is read was there, and takes no more memory than its text may.
pub fn messages(data: &[u8]) {
    if let Some((tag, body)) = data.split_first() {
        message(*tag, body);
    }
    let mut rest = data;
    while let Ok(Some(header)) = Header::parse(rest, MAX_CONTROL_FRAME) {
        let Some((frame, next)) = rest.split_at_checked(header.size) else { break };
        message(header.tag, &frame[HEADER..]);
        rest = next;
    }
}

fn message(tag: u8, body: &[u8]) {
    let message = match Message::parse(tag, body) {
        Ok(message) => message,
        Err(e) => {
            assert!(matches!(e, Error::Protocol { .. }), "{e:?}");
            return assert_one_line(e);
        }
    };
    assert_eq!(message.name(), name_of(tag));
    assert_one_line(message.unexpected("nothing"));
    let texts: usize = match &message {
        Message::Authentication(request) => authentication(request, body),
        Message::BackendKeyData { secret, .. } => {
            assert!((4..=256).contains(&secret.len()) && body.ends_with(secret));
            0
        }
        Message::CommandComplete => {
            assert_eq!(body.iter().position(|b| *b == 0), Some(body.len() - 1));
            0
        }
        Message::ReadyForQuery => {
            assert_eq!(body, b"I");
            0
        }
        Message::ReadyInTransaction => {
            assert!(body == b"T" || body == b"E");
            0
        }
        Message::ParseComplete
        | Message::BindComplete
        | Message::CloseComplete
        | Message::EmptyQueryResponse
        | Message::NoData => {
            assert!(body.is_empty());
            0
        }
        Message::ErrorResponse(e) | Message::NoticeResponse(e) => {
            assert_one_line(e);
            let texts = [
                Some(e.severity()),
                Some(e.message()),
                e.detail(),
                e.hint(),
                e.internal_query(),
                e.where_(),
                e.schema(),
                e.table(),
                e.column(),
                e.data_type(),
                e.constraint(),
                e.file(),
                e.routine(),
            ];
            let [a, b, ..] = *e.code().class().as_bytes() else { panic!("{:?}", e.code()) };
            // An error without a code is XX000, a notice 00000; severity and message have words in
            // their place.
            let is_default = matches!(e.code().code(), "XX000" | "00000");
            assert!(is_default || super::contains(body, &[b'C', a, b]));
            let texts = texts.into_iter().flatten();
            let texts = texts.filter(|t| !["ERROR", "NOTICE", "(without a message)"].contains(t));
            texts.map(str::len).sum()
        }
        Message::NegotiateProtocolVersion { options, .. } => {
            assert!(options.len() <= body.len());
            options.iter().map(String::len).sum()
        }
        Message::NotificationResponse { channel } => channel.len(),
        Message::ParameterStatus { name, value } => name.len() + value.len(),
        Message::RowDescription(columns) => {
            // A name's NUL, oids of table and type, numbers, sizes, the format.
            assert!(columns.len() * 19 <= body.len());
            columns.iter().map(|c| c.name.len()).sum()
        }
        Message::DataRow | Message::Unexpected { .. } => 0,
    };
    // A byte that is not UTF-8 becomes one character of three.
    assert!(texts <= 3 * body.len(), "{texts} bytes of text in {}", body.len());
}

fn authentication(request: &Authentication, body: &[u8]) -> usize {
    let (code, rest) = body.split_first_chunk().unwrap();
    let code = i32::from_be_bytes(*code);
    match request {
        Authentication::Ok => assert!(code == 0 && rest.is_empty()),
        Authentication::CleartextPassword => assert!(code == 3 && rest.is_empty()),
        Authentication::Md5Password { salt } => assert!(code == 5 && rest == salt),
        Authentication::SaslContinue(data) => assert!(code == 11 && rest == data),
        Authentication::SaslFinal(data) => assert!(code == 12 && rest == data),
        Authentication::Sasl { mechanisms } => {
            assert!(code == 10 && mechanisms.len() < rest.len());
            return mechanisms.iter().map(String::len).sum();
        }
        Authentication::Unsupported { .. } => assert!(![0, 3, 5, 10, 11, 12].contains(&code)),
    }
    0
}
