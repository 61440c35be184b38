//! What the server says: [Message Formats] marked (B).
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
    /// The server speaks less than it was asked for.
    NegotiateProtocolVersion {
        newest: u32,
        /// Options of the protocol that it does not know.
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
    /// Known to the protocol or not: nothing this client asks for is answered by it.
    Unexpected {
        tag: u8,
    },
}

/// What the server asks for before it lets a user in.
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
    /// A method that this client does not speak.
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
    /// Reads the message with this tag and body.
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
                fields.read(body)?;
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

    /// Reads the beginning of a ParameterStatus or NotificationResponse, whose rest was not kept:
    /// what follows its fields does not count.
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

    /// The error of a message that came where it must not.
    pub(crate) fn unexpected(&self, expected: &str) -> Error {
        Error::protocol(match self {
            Self::Unexpected { tag } => {
                format!("a message {:?} came, where {expected} is expected", char::from(*tag))
            }
            known => format!("{} came, where {expected} is expected", known.name()),
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
    // Longer keys came with protocol 3.2; who may use them is for the session to decide.
    if !(4..=256).contains(&secret.len()) {
        return Err(Error::protocol(format!("a cancel key of {} bytes came", secret.len())));
    }
    Ok(Message::BackendKeyData { process_id, secret: secret.to_vec() })
}

fn parse_negotiate_protocol_version(body: &[u8]) -> Result<Message> {
    let mut r = FieldReader::new(tag::NEGOTIATE_PROTOCOL_VERSION, body);
    let (newest, count) = (r.u32()?, r.i32()?);
    if count < 0 {
        return Err(Error::protocol(format!("NegotiateProtocolVersion has {count} options")));
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
            "ReadyForQuery says transaction status {:?}, which is none",
            char::from(status)
        ))),
    }
}

fn parse_row_description(body: &[u8]) -> Result<Vec<Column>> {
    let mut r = FieldReader::new(tag::ROW_DESCRIPTION, body);
    let count = r.i16()?;
    if count < 0 {
        return Err(Error::protocol(format!("RowDescription has {count} columns")));
    }
    let mut columns = Vec::new();
    for _ in 0..count {
        let name = r.text()?;
        r.bytes(4 + 2)?; // the table's oid, the attribute's number
        let type_oid = r.u32()?;
        r.bytes(2 + 4)?; // the type's size, its modifier
        let format = if r.i16()? == 0 { Format::Text } else { Format::Other };
        columns.push(Column { name, type_oid, format });
    }
    r.finish()?;
    Ok(columns)
}

/// The most that is kept of one text of an error or notice, 8 KiB: a person reads it, or a line of a
/// log carries it, once for every attempt of a program that tries again. Postgres itself shortens what
/// it quotes of values; only functions of users write as much, and the protocol would carry 16 MiB.
const MAX_ERROR_TEXT: usize = 8 << 10;

/// Cuts a text between two of its characters.
fn cut(mut text: String) -> String {
    if text.len() > MAX_ERROR_TEXT {
        let is_boundary = |end: &usize| text.is_char_boundary(*end);
        text.truncate((0..=MAX_ERROR_TEXT).rev().find(is_boundary).unwrap_or_default());
        text.shrink_to_fit();
    }
    text
}

/// The fields of an error or notice, by [Error and Notice Message Fields], read in as many pieces
/// as they arrive in. Of each text the beginning is kept; unknown fields are skipped, as the manual
/// asks.
///
/// [Error and Notice Message Fields]: https://www.postgresql.org/docs/current/protocol-error-fields.html
#[derive(Debug)]
pub(super) struct ErrorFields {
    tag: u8,
    at: At,
    texts: [Option<Vec<u8>>; KNOWN_FIELDS.len()],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The next byte is the tag of a field, or ends the message.
    Tag,
    /// In the text of this field, if it is a known one.
    Text(Option<usize>),
    End,
}

const KNOWN_FIELDS: &[u8] = b"SVCMDHPpqWstcdnFLR";

impl ErrorFields {
    /// `tag` is that of the message.
    pub(super) fn new(tag: u8) -> Self {
        Self { tag, at: At::Tag, texts: [const { None }; KNOWN_FIELDS.len()] }
    }

    pub(super) fn read(&mut self, mut piece: &[u8]) -> Result<()> {
        while let Some((&first, rest)) = piece.split_first() {
            match self.at {
                At::Tag if first == 0 => self.at = At::End,
                At::Tag => {
                    let field = KNOWN_FIELDS.iter().position(|known| *known == first);
                    if let Some(text) = field.and_then(|field| self.texts.get_mut(field)) {
                        *text = Some(Vec::new());
                    }
                    self.at = At::Text(field);
                }
                At::Text(field) => {
                    let end = piece.iter().position(|&b| b == 0);
                    let (text, rest) = piece.split_at(end.unwrap_or(piece.len()));
                    let kept = field.and_then(|field| self.texts.get_mut(field)?.as_mut());
                    if let Some(kept) = kept {
                        // A character more, so that the last one kept is whole.
                        let room = (MAX_ERROR_TEXT + 4).saturating_sub(kept.len());
                        kept.extend_from_slice(text.get(..room).unwrap_or(text));
                    }
                    piece = rest.get(1..).unwrap_or_default();
                    if end.is_some() {
                        self.at = At::Tag;
                    }
                    continue;
                }
                At::End => {
                    return Err(Error::protocol(format!(
                        "{} has {} bytes too many",
                        name_of(self.tag),
                        piece.len()
                    )));
                }
            }
            piece = rest;
        }
        Ok(())
    }

    /// The message, when all of it was read.
    ///
    /// A field that the protocol demands and other engines leave out is no reason to lose the
    /// others: without a valid SQLSTATE an error is one that nothing is known of, `XX000`.
    pub(super) fn finish(&mut self) -> Result<Message> {
        if self.at != At::End {
            let name = name_of(self.tag);
            return Err(Error::protocol(format!("{name} ends in the middle of a field")));
        }
        let mut take = |tag: u8| {
            let field = KNOWN_FIELDS.iter().position(|known| *known == tag)?;
            let text = self.texts.get_mut(field)?.take()?;
            Some(cut(String::from_utf8_lossy(&text).into_owned()))
        };
        let is_error = self.tag == tag::ERROR_RESPONSE;
        let (code, severity) = match is_error {
            true => (sqlstate::INTERNAL_ERROR, "ERROR"),
            false => (sqlstate::SUCCESSFUL_COMPLETION, "NOTICE"),
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
    fn no_field_of_an_error_can_make_another_line() {
        let body = b"VERROR\nFORGED\0C22012\0Ma\nb\0Dc\nd\0He\nf\0\0";
        let Ok(Message::ErrorResponse(error)) = Message::parse(b'E', body) else { panic!() };
        assert!(!error.to_string().contains('\n'), "{error}");
    }

    /// Frames as Postgres 15 sent them, without tag and length.
    #[test]
    fn recorded_messages_are_read() {
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
            // Cut anywhere, or with a byte too many, it is an error and never a panic.
            for cut in 0..body.len() {
                let sasl = tag == b'R' && body.get(3) > Some(&10);
                assert!(
                    sasl || Message::parse(tag, &body[..cut]).is_err(),
                    "{expected:?} at {cut}"
                );
            }
            // A cancel key may be longer, since protocol 3.2.
            assert!(
                tag == b'K' || Message::parse(tag, &[body, b"\0"].concat()).is_err(),
                "{expected:?} and a byte"
            );
        }
    }

    /// The codes are those of the manual's page of message formats.
    #[test]
    fn every_request_of_a_login_has_its_code() {
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
        assert_eq!(names.len(), 9, "an error can tell them apart: {names:?}");
    }

    /// Two servers that know less: 3.0 and no option, as asked of 3.2; an option that they do not know.
    #[test]
    fn a_server_says_what_it_does_not_speak() {
        let read = |body: &[u8]| Message::parse(b'v', body);
        let said = |options: &[&str]| Message::NegotiateProtocolVersion {
            newest: 3 << 16,
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        assert_eq!(read(b"\0\x03\0\0\0\0\0\0").unwrap(), said(&[]));
        assert_eq!(read(b"\0\x03\0\0\0\0\0\x01_pq_.a\0").unwrap(), said(&["_pq_.a"]));
        for bad in [&b"\0\x03\0\0\xff\xff\xff\xff"[..], b"\0\x03\0\0\0\0\0\x01"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_error_keeps_every_field() {
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
    fn an_error_keeps_what_it_has_where_fields_are_missing() {
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
    fn a_count_of_columns_is_not_negative() {
        for count in [b"\xff\xff", b"\x80\x00"] {
            let error = Message::parse(b'T', count).unwrap_err().to_string();
            assert!(error.contains("RowDescription has -"), "{error}");
        }
        assert_eq!(Message::parse(b'T', b"\0\0").unwrap(), Message::RowDescription(Vec::new()));
    }
}
