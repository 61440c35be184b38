//! Messages from the server: [Message Formats] marked (B).
//!
//! [Message Formats]: https://www.postgresql.org/docs/current/protocol-message-formats.html

pub(crate) use super::tag::{DATA_ROW, ERROR_RESPONSE, name_of};
use super::{fields::FieldReader, tag};
use crate::error::{
    DbError, Error, Result,
    sqlstate::{self, SqlState},
};

/// A message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Authentication(Authentication),
    BackendKeyData {
        process_id: u32,
        /// 4 bytes in protocol 3.0, up to 256 in 3.2.
        secret: Vec<u8>,
    },
    BindComplete,
    CloseComplete,
    CommandComplete,
    DataRow,
    EmptyQueryResponse,
    ErrorResponse(Box<DbError>),
    /// The server does not support the requested version or options.
    NegotiateProtocolVersion {
        newest: u32,
        /// Protocol options that it does not support.
        options: Vec<String>,
    },
    NoData,
    NoticeResponse(Box<DbError>),
    NotificationResponse {
        channel: String,
    },
    ParameterStatus {
        name: String,
        value: String,
    },
    ParseComplete,
    /// Outside of a transaction block.
    ReadyForQuery,
    /// ReadyForQuery, in a transaction block, which may have failed.
    ReadyInTransaction,
    RowDescription(Vec<Column>),
    /// No request of this client has it as a response.
    Unexpected {
        tag: u8,
    },
}

/// The authentication that the server requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Authentication {
    Ok,
    CleartextPassword,
    Md5Password {
        salt: [u8; 4],
    },
    Sasl {
        mechanisms: Vec<String>,
    },
    SaslContinue(Vec<u8>),
    SaslFinal(Vec<u8>),
    /// A method that this client does not support.
    Unsupported {
        name: &'static str,
    },
}

impl Authentication {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ok => "nothing more",
            Self::CleartextPassword => "a cleartext password",
            Self::Md5Password { .. } => "an MD5 password",
            Self::Sasl { .. } => "SASL",
            Self::SaslContinue(_) => "SASL, continued",
            Self::SaslFinal(_) => "SASL, final",
            Self::Unsupported { name } => name,
        }
    }
}

/// One column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) type_oid: u32,
    pub(crate) format: Format,
}

/// How the values of a column are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Other,
}

impl Message {
    /// Parses the message with this tag and body.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`]: the body is malformed.
    pub(crate) fn parse(tag: u8, body: &[u8]) -> Result<Self> {
        let empty = |message| FieldReader::new(tag, body).finish().map(|()| message);
        match tag {
            tag::AUTHENTICATION => parse_authentication(body).map(Self::Authentication),
            tag::BACKEND_KEY_DATA => parse_backend_key_data(body),
            tag::BIND_COMPLETE => empty(Self::BindComplete),
            tag::CLOSE_COMPLETE => empty(Self::CloseComplete),
            tag::COMMAND_COMPLETE => parse_command_complete(body),
            tag::DATA_ROW => Ok(Self::DataRow),
            tag::EMPTY_QUERY_RESPONSE => empty(Self::EmptyQueryResponse),
            tag::ERROR_RESPONSE | tag::NOTICE_RESPONSE => {
                let mut fields = ErrorFields::new(tag);
                fields.parse(body)?;
                fields.finish()
            }
            tag::NEGOTIATE_PROTOCOL_VERSION => parse_negotiate_protocol_version(body),
            tag::NO_DATA => empty(Self::NoData),
            tag::NOTIFICATION_RESPONSE => parse_notification(body),
            tag::PARAMETER_STATUS => parse_parameter_status(body),
            tag::PARSE_COMPLETE => empty(Self::ParseComplete),
            tag::READY_FOR_QUERY => parse_ready_for_query(body),
            tag::ROW_DESCRIPTION => parse_row_description(body).map(Self::RowDescription),
            tag => Ok(Self::Unexpected { tag }),
        }
    }

    /// Parses the beginning of a ParameterStatus or NotificationResponse whose rest was discarded.
    pub(super) fn parse_head(tag: u8, head: &[u8]) -> Result<Self> {
        let mut r = FieldReader::new(tag, head);
        match tag {
            tag::PARAMETER_STATUS => {
                Ok(Self::ParameterStatus { name: r.text()?, value: r.text()? })
            }
            tag::NOTIFICATION_RESPONSE => {
                r.u32()?;
                Ok(Self::NotificationResponse { channel: r.text()? })
            }
            tag => Ok(Self::Unexpected { tag }),
        }
    }

    /// Returns the error for a message that is not allowed at this point.
    pub(crate) fn unexpected(&self, expected: &str) -> Error {
        Error::protocol(match self {
            Self::Unexpected { tag } => {
                format!("unexpected message {:?}: expected {expected}", char::from(*tag))
            }
            known => format!("unexpected {}: expected {expected}", known.name()),
        })
    }

    /// Returns its name in the protocol.
    pub(crate) fn name(&self) -> &'static str {
        name_of(self.tag())
    }

    fn tag(&self) -> u8 {
        match self {
            Self::Authentication(_) => tag::AUTHENTICATION,
            Self::BackendKeyData { .. } => tag::BACKEND_KEY_DATA,
            Self::BindComplete => tag::BIND_COMPLETE,
            Self::CloseComplete => tag::CLOSE_COMPLETE,
            Self::CommandComplete => tag::COMMAND_COMPLETE,
            Self::DataRow => tag::DATA_ROW,
            Self::EmptyQueryResponse => tag::EMPTY_QUERY_RESPONSE,
            Self::ErrorResponse(_) => tag::ERROR_RESPONSE,
            Self::NegotiateProtocolVersion { .. } => tag::NEGOTIATE_PROTOCOL_VERSION,
            Self::NoData => tag::NO_DATA,
            Self::NoticeResponse(_) => tag::NOTICE_RESPONSE,
            Self::NotificationResponse { .. } => tag::NOTIFICATION_RESPONSE,
            Self::ParameterStatus { .. } => tag::PARAMETER_STATUS,
            Self::ParseComplete => tag::PARSE_COMPLETE,
            Self::ReadyForQuery | Self::ReadyInTransaction => tag::READY_FOR_QUERY,
            Self::RowDescription(_) => tag::ROW_DESCRIPTION,
            Self::Unexpected { tag } => *tag,
        }
    }
}

fn parse_authentication(body: &[u8]) -> Result<Authentication> {
    let mut r = FieldReader::new(tag::AUTHENTICATION, body);
    let request = match r.i32()? {
        0 => Authentication::Ok,
        2 => Authentication::Unsupported { name: "Kerberos V5" },
        3 => Authentication::CleartextPassword,
        5 => {
            let salt = r.bytes(4)?;
            Authentication::Md5Password { salt: salt.try_into().unwrap_or_default() }
        }
        7 | 8 => return Ok(Authentication::Unsupported { name: "GSSAPI" }),
        9 => return Ok(Authentication::Unsupported { name: "SSPI" }),
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                match r.text()? {
                    end if end.is_empty() => break,
                    mechanism => mechanisms.push(mechanism),
                }
            }
            Authentication::Sasl { mechanisms }
        }
        11 => Authentication::SaslContinue(r.rest().to_vec()),
        12 => Authentication::SaslFinal(r.rest().to_vec()),
        _ => return Ok(Authentication::Unsupported { name: "an unknown method" }),
    };
    r.finish()?;
    Ok(request)
}

fn parse_backend_key_data(body: &[u8]) -> Result<Message> {
    let mut r = FieldReader::new(tag::BACKEND_KEY_DATA, body);
    let (process_id, secret) = (r.u32()?, r.rest());
    // Keys of more than 4 bytes require protocol 3.2; the session checks that.
    if !(4..=256).contains(&secret.len()) {
        return Err(Error::protocol(format!(
            "invalid cancel key of {} bytes: expected 4 to 256",
            secret.len()
        )));
    }
    Ok(Message::BackendKeyData { process_id, secret: secret.to_vec() })
}

fn parse_negotiate_protocol_version(body: &[u8]) -> Result<Message> {
    let mut r = FieldReader::new(tag::NEGOTIATE_PROTOCOL_VERSION, body);
    let (newest, count) = (r.u32()?, r.i32()?);
    if count < 0 {
        return Err(Error::protocol(format!(
            "invalid number of options in NegotiateProtocolVersion: {count}"
        )));
    }
    let mut options = Vec::new();
    for _ in 0..count {
        options.push(r.text()?);
    }
    r.finish()?;
    Ok(Message::NegotiateProtocolVersion { newest, options })
}

fn parse_command_complete(body: &[u8]) -> Result<Message> {
    let mut r = FieldReader::new(tag::COMMAND_COMPLETE, body);
    r.text()?;
    r.finish()?;
    Ok(Message::CommandComplete)
}

fn parse_notification(body: &[u8]) -> Result<Message> {
    let mut r = FieldReader::new(tag::NOTIFICATION_RESPONSE, body);
    r.u32()?;
    let channel = r.text()?;
    r.text()?;
    r.finish()?;
    Ok(Message::NotificationResponse { channel })
}

fn parse_parameter_status(body: &[u8]) -> Result<Message> {
    let mut r = FieldReader::new(tag::PARAMETER_STATUS, body);
    let (name, value) = (r.text()?, r.text()?);
    r.finish()?;
    Ok(Message::ParameterStatus { name, value })
}

fn parse_ready_for_query(body: &[u8]) -> Result<Message> {
    let mut r = FieldReader::new(tag::READY_FOR_QUERY, body);
    let status = r.u8()?;
    r.finish()?;
    match status {
        b'I' => Ok(Message::ReadyForQuery),
        b'T' | b'E' => Ok(Message::ReadyInTransaction),
        _ => Err(Error::protocol(format!(
            "invalid transaction status {:?} in ReadyForQuery",
            char::from(status)
        ))),
    }
}

fn parse_row_description(body: &[u8]) -> Result<Vec<Column>> {
    let mut r = FieldReader::new(tag::ROW_DESCRIPTION, body);
    let count = r.i16()?;
    if count < 0 {
        return Err(Error::protocol(format!(
            "invalid number of columns in RowDescription: {count}"
        )));
    }
    let mut columns = Vec::new();
    for _ in 0..count {
        let name = r.text()?;
        r.bytes(4 + 2)?; // OID of the table, number of the attribute
        let type_oid = r.u32()?;
        r.bytes(2 + 4)?; // size and modifier of the type
        let format = if r.i16()? == 0 { Format::Text } else { Format::Other };
        columns.push(Column { name, type_oid, format });
    }
    r.finish()?;
    Ok(columns)
}

/// The maximum length of each text of an error or notice that is kept, 8 KiB.
///
/// An operator reads it, and a program that retries logs it for each attempt. Postgres shortens the
/// values that it quotes; only functions of users write more.
const MAX_ERROR_TEXT: usize = 8 << 10;

/// Truncates a text to [`MAX_ERROR_TEXT`], at a character boundary.
fn truncate(mut text: String) -> String {
    if text.len() > MAX_ERROR_TEXT {
        let is_boundary = |end: &usize| text.is_char_boundary(*end);
        text.truncate((0..=MAX_ERROR_TEXT).rev().find(is_boundary).unwrap_or_default());
        text.shrink_to_fit();
    }
    text
}

/// Parses the fields of an error or notice, in pieces as they arrive.
///
/// Long texts are truncated. Unknown fields are skipped, as [Error and Notice Message Fields]
/// requires.
///
/// [Error and Notice Message Fields]: https://www.postgresql.org/docs/current/protocol-error-fields.html
#[derive(Debug)]
pub(super) struct ErrorFields {
    tag: u8,
    position: Position,
    texts: [Option<Vec<u8>>; KNOWN_FIELDS.len()],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// The next byte is the tag of a field, or ends the message.
    Tag,
    /// The next byte belongs to the text of this field; `None` if the field is unknown.
    Text(Option<usize>),
    End,
}

const KNOWN_FIELDS: &[u8] = b"SVCMDHPpqWstcdnFLR";

impl ErrorFields {
    /// `tag` is the tag of the message.
    pub(super) fn new(tag: u8) -> Self {
        Self { tag, position: Position::Tag, texts: [const { None }; KNOWN_FIELDS.len()] }
    }

    pub(super) fn parse(&mut self, mut piece: &[u8]) -> Result<()> {
        while let Some((&first, rest)) = piece.split_first() {
            match self.position {
                Position::Tag if first == 0 => self.position = Position::End,
                Position::Tag => {
                    let field = KNOWN_FIELDS.iter().position(|known| *known == first);
                    if let Some(text) = field.and_then(|field| self.texts.get_mut(field)) {
                        *text = Some(Vec::new());
                    }
                    self.position = Position::Text(field);
                }
                Position::Text(field) => {
                    let end = piece.iter().position(|&b| b == 0);
                    let (text, rest) = piece.split_at(end.unwrap_or(piece.len()));
                    let kept = field.and_then(|field| self.texts.get_mut(field)?.as_mut());
                    if let Some(kept) = kept {
                        // One more character, so that the last one kept is complete.
                        let room = (MAX_ERROR_TEXT + 4).saturating_sub(kept.len());
                        kept.extend_from_slice(text.get(..room).unwrap_or(text));
                    }
                    piece = rest.get(1..).unwrap_or_default();
                    if end.is_some() {
                        self.position = Position::Tag;
                    }
                    continue;
                }
                Position::End => {
                    return Err(Error::protocol(format!(
                        "{} has {} extra bytes",
                        name_of(self.tag),
                        piece.len()
                    )));
                }
            }
            piece = rest;
        }
        Ok(())
    }

    /// Returns the message.
    ///
    /// Other engines omit fields that the protocol requires, and the remaining fields are still
    /// useful. An error without a valid SQLSTATE is an `XX000`.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`]: the message is incomplete.
    pub(super) fn finish(&mut self) -> Result<Message> {
        if self.position != Position::End {
            let name = name_of(self.tag);
            return Err(Error::protocol(format!("{name} ends in the middle of a field")));
        }
        let mut take = |tag: u8| {
            let field = KNOWN_FIELDS.iter().position(|known| *known == tag)?;
            let text = self.texts.get_mut(field)?.take()?;
            Some(truncate(String::from_utf8_lossy(&text).into_owned()))
        };
        let is_error = self.tag == tag::ERROR_RESPONSE;
        let (code, severity) = if is_error {
            (sqlstate::INTERNAL_ERROR, "ERROR")
        } else {
            (sqlstate::SUCCESSFUL_COMPLETION, "NOTICE")
        };
        let localized_severity = take(b'S');
        let fields = Box::new(DbError {
            severity: take(b'V').or(localized_severity).unwrap_or_else(|| severity.to_owned()),
            code: take(b'C').and_then(|c| SqlState::from_code(&c)).unwrap_or(code),
            message: take(b'M').unwrap_or_else(|| "(without a message)".to_owned()),
            detail: take(b'D'),
            hint: take(b'H'),
            position: take(b'P').and_then(|n| n.parse().ok()),
            internal_position: take(b'p').and_then(|n| n.parse().ok()),
            internal_query: take(b'q'),
            where_: take(b'W'),
            schema: take(b's'),
            table: take(b't'),
            column: take(b'c'),
            data_type: take(b'd'),
            constraint: take(b'n'),
            file: take(b'F'),
            line: take(b'L').and_then(|n| n.parse().ok()),
            routine: take(b'R'),
        });
        Ok(if is_error { Message::ErrorResponse(fields) } else { Message::NoticeResponse(fields) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_display_is_one_line_whatever_the_fields_contain() {
        let body = b"VERROR\nFORGED\0C22012\0Ma\nb\0Dc\nd\0He\nf\0\0";
        let Ok(Message::ErrorResponse(error)) = Message::parse(b'E', body) else { panic!() };
        assert!(!error.to_string().contains('\n'), "{error}");
    }

    /// Recorded from Postgres 15, without tag and length.
    #[test]
    fn parse_accepts_recorded_messages_and_rejects_truncated_ones() {
        let cases: [(u8, &[u8], Message); 12] = [
            (b'3', b"", Message::CloseComplete),
            (b'R', b"\0\0\0\0", Message::Authentication(Authentication::Ok)),
            (
                b'R',
                b"\0\0\0\x0aSCRAM-SHA-256\0\0",
                Message::Authentication(Authentication::Sasl {
                    mechanisms: vec!["SCRAM-SHA-256".into()],
                }),
            ),
            (
                b'R',
                b"\0\0\0\x05\x1f\xc2\x8a\x90",
                Message::Authentication(Authentication::Md5Password {
                    salt: [0x1f, 0xc2, 0x8a, 0x90],
                }),
            ),
            (
                b'K',
                b"\0\0\n\0x\xcfr\x12",
                Message::BackendKeyData { process_id: 2560, secret: vec![0x78, 0xcf, 0x72, 0x12] },
            ),
            (
                b'S',
                b"TimeZone\0Etc/UTC\0",
                Message::ParameterStatus { name: "TimeZone".into(), value: "Etc/UTC".into() },
            ),
            (
                b'T',
                b"\0\x01data\0\0\0\0\0\0\0\0\0\0r\xff\xff\xff\xff\xff\xff\0\0",
                Message::RowDescription(vec![Column {
                    name: "data".into(),
                    type_oid: 114,
                    format: Format::Text,
                }]),
            ),
            (b'C', b"SELECT 2\0", Message::CommandComplete),
            (b'Z', b"I", Message::ReadyForQuery),
            (b'Z', b"T", Message::ReadyInTransaction),
            (b'Z', b"E", Message::ReadyInTransaction),
            (
                b'A',
                b"\0\0\x5e\xafjobs\0payload\0",
                Message::NotificationResponse { channel: "jobs".into() },
            ),
        ];
        for (tag, body, expected) in cases {
            assert_eq!(Message::parse(tag, body).unwrap(), expected);
            // Truncated anywhere, or with an extra byte, it is an error and never a panic.
            for cut in 0..body.len() {
                let sasl = tag == b'R' && body.get(3) > Some(&10);
                assert!(
                    sasl || Message::parse(tag, &body[..cut]).is_err(),
                    "{expected:?} at {cut}"
                );
            }
            // Since protocol 3.2, a cancel key may be longer.
            assert!(
                tag == b'K' || Message::parse(tag, &[body, b"\0"].concat()).is_err(),
                "{expected:?} and a byte"
            );
        }
    }

    /// The codes are those of Message Formats in the manual.
    #[test]
    fn parse_recognizes_every_authentication_code() {
        use Authentication::*;
        let unsupported = |name| Unsupported { name };
        let cases: [(u8, &[u8], Authentication); 10] = [
            (0, b"", Ok),
            (2, b"", unsupported("Kerberos V5")),
            (3, b"", CleartextPassword),
            (5, b"salt", Md5Password { salt: *b"salt" }),
            (7, b"", unsupported("GSSAPI")),
            (8, b"data", unsupported("GSSAPI")),
            (9, b"", unsupported("SSPI")),
            (10, b"A\0B\0\0", Sasl { mechanisms: vec!["A".into(), "B".into()] }),
            (11, b"data", SaslContinue(b"data".to_vec())),
            (12, b"data", SaslFinal(b"data".to_vec())),
        ];
        let mut names = std::collections::BTreeSet::new();
        for (code, data, expected) in cases {
            names.insert(expected.name());
            let body = [&[0, 0, 0, code], data].concat();
            assert_eq!(Message::parse(b'R', &body).unwrap(), Message::Authentication(expected));
        }
        assert_eq!(names.len(), 9, "names are distinct: {names:?}");
    }

    /// One server supports only 3.0 although 3.2 was requested; the other does not support an
    /// option.
    #[test]
    fn negotiate_protocol_version_lists_unsupported_options() {
        let read = |body: &[u8]| Message::parse(b'v', body);
        let expected = |options: &[&str]| Message::NegotiateProtocolVersion {
            newest: 3 << 16,
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        assert_eq!(read(b"\0\x03\0\0\0\0\0\0").unwrap(), expected(&[]));
        assert_eq!(read(b"\0\x03\0\0\0\0\0\x01_pq_.a\0").unwrap(), expected(&["_pq_.a"]));
        for bad in [&b"\0\x03\0\0\xff\xff\xff\xff"[..], b"\0\x03\0\0\0\0\0\x01"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn error_response_keeps_every_field() {
        let body = b"SFEHLER\0VERROR\0C23505\0Mmsg\0Ddetail\0Hhint\0P12\0p3\0qselect 1\0Wwhere\0\
            sapp\0torders\0cid\0dint\0norders_pkey\0Fnbtinsert.c\0L664\0R_bt_check_unique\0\
            Xunknown\0\0";
        let Message::ErrorResponse(e) = Message::parse(b'E', body).unwrap() else { panic!() };
        let texts = [
            Some(e.severity()),
            Some(e.code().code()),
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
        assert_eq!(
            texts.map(Option::unwrap),
            [
                "ERROR",
                "23505",
                "msg",
                "detail",
                "hint",
                "select 1",
                "where",
                "app",
                "orders",
                "id",
                "int",
                "orders_pkey",
                "nbtinsert.c",
                "_bt_check_unique"
            ]
        );
        assert_eq!((e.position(), e.internal_position(), e.line()), (Some(12), Some(3), Some(664)));
    }

    #[test]
    fn error_response_with_missing_fields_keeps_the_others() {
        for (body, line) in [
            (&b"SERROR\0Mno code\0\0"[..], "ERROR: no code (SQLSTATE XX000)"),
            (b"SFATAL\0C42\0Mshort\0\0", "FATAL: short (SQLSTATE XX000)"),
            (b"C42P01\0Mno severity\0\0", "ERROR: no severity (SQLSTATE 42P01)"),
            (b"C42P01\0\0", "ERROR: (without a message) (SQLSTATE 42P01)"),
            (b"\0", "ERROR: (without a message) (SQLSTATE XX000)"),
        ] {
            let Message::ErrorResponse(error) = Message::parse(b'E', body).unwrap() else {
                panic!()
            };
            assert_eq!(error.to_string(), line);
        }
        let Message::NoticeResponse(notice) = Message::parse(b'N', b"Mhm\0\0").unwrap() else {
            panic!()
        };
        assert_eq!(notice.to_string(), "NOTICE: hm (SQLSTATE 00000)");
    }

    #[test]
    fn row_description_rejects_a_negative_number_of_columns() {
        for count in [b"\xff\xff", b"\x80\x00"] {
            let error = Message::parse(b'T', count).unwrap_err().to_string();
            assert!(error.contains("RowDescription: -"), "{error}");
        }
        assert_eq!(Message::parse(b'T', b"\0\0").unwrap(), Message::RowDescription(Vec::new()));
    }
}
