//! Logging in and starting a session.

use bytes::BytesMut;
use tokio::time::Instant;

use super::{
    async_messages::{AsyncMessages, Notices},
    cancel::CancelKey,
    encryption::cancel_encryption_modes,
    info::ConnectionInfo,
    login::{Login, LoginError},
    outgoing::Outgoing,
    report::{unexpected, violation},
    server_connection::{Connection, Limits},
    session::Session,
    startup::{Rejection, StartupStream, refusal},
    statement_cache::StatementCache,
};
use crate::{
    config::{ConnectionConfig, Password, ProtocolVersion, SslNegotiation, Target},
    error::Result,
    metrics::connection::{Attempt, LoginMetrics, OpenConnection, Phase},
    protocol::{backend::Message, frontend},
    transport::{Address, Transport},
};

/// What a handshake needs in addition to its socket.
pub(super) struct HandshakeContext<'a> {
    pub(super) config: &'a ConnectionConfig,
    pub(super) target: &'a Target,
    pub(super) address: &'a Address,
    pub(super) notices: &'a Notices,
    /// When connecting began.
    pub(super) began: Instant,
    /// The phase of the attempt.
    pub(super) attempt: &'a mut Attempt,
    /// Set until the server answers a startup message of a version newer than 3.0.
    pub(super) unanswered: &'a mut bool,
    /// A password of the provider that the server has rejected. It is not sent again.
    pub(super) refused: Option<&'a Password>,
}

/// Logs in and starts the session. Consumes a socket, and returns a connection that is ready for a
/// query.
pub(super) async fn handshake(
    transport: Transport,
    context: HandshakeContext<'_>,
) -> Result<Connection, Rejection> {
    let HandshakeContext { config, target, address, notices, began, attempt, unanswered, refused } =
        context;
    attempt.enter(Phase::Auth);
    let user = config.user_name()?;
    let tls_info = transport.tls_info();
    let mut stream = StartupStream {
        transport,
        buffer: BytesMut::new(),
        long: None,
        async_messages: AsyncMessages::new(notices.clone()),
        trusted: false,
        unanswered,
    };
    *stream.unanswered = config.protocol.max > ProtocolVersion::V3_0;
    stream.send(&startup_message(config, &user)?).await?;
    let mut login = Login {
        config,
        target,
        user: &user,
        tls: tls_info.as_ref(),
        auth_method: "none",
        provided: None,
        refused,
        metrics: LoginMetrics::begin(),
    };
    let login_began = Instant::now();
    let version = match login.authenticate(&mut stream).await {
        Ok(version) => version,
        Err(LoginError { reason, error }) => {
            login.metrics.failed(reason);
            return Err(error);
        }
    };
    login.metrics.succeeded(login_began.elapsed());
    let auth_method = login.auth_method;
    stream.trusted = true;
    attempt.enter(Phase::Startup);

    let mut cancel = None;
    loop {
        match stream.receive().await? {
            Message::BackendKeyData { process_id, secret } => {
                if version == ProtocolVersion::V3_0 && secret.len() != 4 {
                    let bytes = secret.len();
                    let text =
                        format!("invalid cancel key of {bytes} bytes: expected 4 in protocol 3.0");
                    return Err(violation("BackendKeyData", text).into());
                }
                cancel = Some(CancelKey {
                    address: address.clone(),
                    sockets: config.sockets,
                    require_peer: config.require_peer.clone(),
                    encryption: cancel_encryption_modes(config, address, tls_info.is_some()),
                    tls: config.tls.clone(),
                    host: target.host.clone(),
                    direct: config.ssl_negotiation == SslNegotiation::Direct,
                    process_id,
                    secret,
                });
            }
            Message::ReadyForQuery => {
                stream.async_messages.end_login()?;
                break;
            }
            Message::ErrorResponse(e) => return Err(refusal(e, login.user).into()),
            other => return Ok(unexpected(&other, "the start of the session")?),
        }
    }
    let (kind, ip, unix_socket) = match address {
        Address::Tcp(address) => ("tcp", Some(address.ip()), None),
        #[cfg(unix)]
        Address::Unix(path) => ("unix", None, Some(path.clone())),
        Address::Custom(..) => ("connector", None, None),
    };
    // Other sessions of the same client connect to the same address.
    let server = match address {
        Address::Custom(_, target) => target.clone(),
        _ => Target { hostaddr: ip, ..target.clone() },
    };
    let process_id = cancel.as_ref().map(|key| key.process_id);
    let statements = StatementCache::new(config.statement_cache_capacity(), process_id);
    let open = OpenConnection::new(kind, tls_info.is_some(), began.elapsed());
    let info = ConnectionInfo {
        host: target.host.clone(),
        address: ip,
        unix_socket,
        port: target.port,
        tls_version: tls_info.as_ref().map(|tls| tls.version.clone()),
        tls_cipher: tls_info.map(|tls| tls.cipher),
        auth_method,
        protocol_version: match version {
            ProtocolVersion::V3_0 => "3.0",
            ProtocolVersion::V3_2 => "3.2",
        },
    };
    Ok(Connection {
        transport: stream.transport,
        rcvlowat: 1,
        buffer: stream.buffer,
        requests: BytesMut::new(),
        outgoing: Outgoing::default(),
        followers: 0,
        long: stream.long,
        session: Session::new(stream.async_messages, info, server, cancel).into(),
        statements,
        limits: Limits {
            max_message_size: config.client_options.max_message_size,
            read_timeout: config.client_options.read_timeout,
            cancel_timeout: config.client_options.cancel_timeout,
            drain_limit: config.client_options.drain_limit,
        },
        skip: 0,
        reused: false,
        in_transaction: false,
        is_awaited: false,
        due: 0,
        unanswered: None,
        open,
    })
}

/// Has few parameters, because a pooler rejects unknown ones.
fn startup_message(config: &ConnectionConfig, user: &str) -> Result<Vec<u8>> {
    let database = config.database().unwrap_or_else(|| user.to_owned());
    let mut parameters = vec![
        ("user", user),
        ("database", &database),
        // Always requested, so that the server converts from the encoding of the database.
        ("client_encoding", "UTF8"),
    ];
    let optional = [("application_name", config.application_name()), ("options", config.options())];
    parameters.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let more = config.startup_parameters.iter();
    parameters.extend(more.map(|(name, value)| (name.as_str(), value.as_str())));
    frontend::startup(code(config.protocol.max), &parameters)
}

fn code(version: ProtocolVersion) -> u32 {
    match version {
        ProtocolVersion::V3_0 => frontend::VERSION_3_0,
        ProtocolVersion::V3_2 => frontend::VERSION_3_2,
    }
}
