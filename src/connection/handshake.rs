use std::io;

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::{spawn_blocking, yield_now},
    time::Instant,
};
use zeroize::Zeroizing;

use super::{
    Connection, Limits, SMALL_READ, Taken,
    cancel::CancelKey,
    connect::cancel_encryption_modes,
    count_protocol_error, random,
    session::{AsyncMessages, ConnectionInfo, Notices, Session},
    statement_cache::StatementCache,
    take_message, unexpected,
};
use crate::{
    auth::{
        md5,
        scram::{self, Binding, ClientFirst, Keys, ServerFinal},
    },
    config::{
        ChannelBinding, ConnectionConfig, Method, Password, ProtocolVersion, ScramCacheEntry,
        SslNegotiation, Target,
    },
    error::{
        DbError, Error, LOGGING_IN, LOGGING_IN_BY_3_2, NOT_STARTED, OneLine, Result,
        advice_for_refusal,
    },
    metrics::connection::{self as metrics, Attempt, OpenConnection, Phase},
    protocol::{
        backend::{Authentication, Message},
        frame::{Header, MAX_STARTUP_FRAME, PreV3Error},
        frontend,
        long::Long,
    },
    transport::{Address, TlsInfo, Transport, from_io_error},
};

/// Who comes, and how they got here.
pub(super) struct HandshakeContext<'a> {
    pub(super) config: &'a ConnectionConfig,
    pub(super) target: &'a Target,
    pub(super) address: &'a Address,
    pub(super) notices: &'a Notices,
    /// When the socket was asked for.
    pub(super) began: Instant,
    /// How far they have come.
    pub(super) attempt: &'a mut Attempt,
    /// Set while nothing was answered to a start-up message of a version newer than 3.0.
    pub(super) unanswered: &'a mut bool,
    /// A password of the provider that the server has refused, and that is not sent again.
    pub(super) refused: Option<&'a Password>,
}

/// Why there is no session.
pub(super) struct Rejection {
    pub(super) error: Error,
    /// The server itself refuses this login: encrypted otherwise, it may not.
    pub(super) by_server: bool,
    /// The provider's password that the server refused.
    pub(super) password: Option<Password>,
}

impl From<Error> for Rejection {
    fn from(error: Error) -> Self {
        Self { error, by_server: false, password: None }
    }
}

/// Logs in and starts the session: consumes a socket, returns a connection ready for a query.
pub(super) async fn handshake(
    transport: Transport,
    context: HandshakeContext<'_>,
) -> Result<Connection, Rejection> {
    let HandshakeContext { config, target, address, notices, began, attempt, unanswered, refused } =
        context;
    attempt.comes_to(Phase::Auth);
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
    };
    let asked = Instant::now();
    let mut counted = metrics::Login::begin();
    let version = login.authenticate(&mut stream, &mut counted).await?;
    counted.succeeded(asked.elapsed());
    let auth_method = login.auth_method;
    stream.trusted = true;
    attempt.comes_to(Phase::Startup);

    let mut cancel = None;
    loop {
        match stream.receive().await? {
            Message::BackendKeyData { process_id, secret } => {
                if version == ProtocolVersion::V3_0 && secret.len() != 4 {
                    let error = Error::protocol(format!(
                        "a cancel key of {} bytes came, where protocol 3.0 has 4",
                        secret.len()
                    ));
                    count_protocol_error("BackendKeyData", Err::<(), _>(error))?;
                }
                cancel = Some(CancelKey {
                    address: address.clone(),
                    sockets: config.sockets,
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
    let is_tcp = matches!(address, Address::Tcp(_));
    let open = OpenConnection::new(is_tcp, tls_info.is_some(), began.elapsed());
    let info = ConnectionInfo {
        host: target.host.clone(),
        address: match address {
            Address::Tcp(address) => Some(address.ip()),
            #[cfg(unix)]
            Address::Unix(_) => None,
        },
        unix_socket: target.unix_socket.clone(),
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
        low_water: 1,
        buffer: stream.buffer,
        long: stream.long,
        session: Session::new(stream.async_messages, info, cancel).into(),
        statements: StatementCache::new(config.statement_cache_capacity()),
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

/// The parameters are few: a pooler refuses those it does not know.
fn startup_message(config: &ConnectionConfig, user: &str) -> Result<Vec<u8>> {
    let database = config.database().unwrap_or_else(|| user.to_owned());
    let mut parameters = vec![
        ("user", user),
        ("database", &database),
        // Always asked for, so that the server converts what is stored in another encoding.
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

/// Where the login stands: what the server may say next.
enum LoginState {
    /// Nothing has been asked yet. The server may let the user in, or ask for anything.
    Start,
    /// The password was sent, in clear or as MD5: the server says yes or no.
    PasswordSent,
    ScramFirst(ClientFirst),
    ScramFinal(ServerFinal),
    /// The server has proved that it knows the password.
    ScramVerified,
}

/// The label of what is asked for first. SCRAM may turn out to be bound to the channel.
fn mechanism(request: &Authentication) -> Option<&'static str> {
    match request {
        Authentication::CleartextPassword => Some("cleartext"),
        Authentication::Md5Password { .. } => Some("md5"),
        Authentication::Sasl { .. } => Some("scram_sha_256"),
        _ => None,
    }
}

struct Login<'a> {
    config: &'a ConnectionConfig,
    target: &'a Target,
    user: &'a str,
    tls: Option<&'a TlsInfo>,
    auth_method: &'static str,
    /// What the password provider returned.
    provided: Option<Password>,
    /// The refused password, which it must not return again.
    refused: Option<&'a Password>,
}

impl Login<'_> {
    /// Goes through the login, and returns the version that is spoken.
    async fn authenticate(
        &mut self,
        stream: &mut StartupStream<'_>,
        counted: &mut metrics::Login,
    ) -> Result<ProtocolVersion, Rejection> {
        let mut version = self.config.protocol.max;
        let mut negotiated = false;
        let mut state = LoginState::Start;
        loop {
            counted.may_fail_as("lost");
            let message = stream.receive().await;
            if matches!(message, Err(Error::Protocol { .. })) {
                counted.may_fail_as("malformed");
            }
            let request = match message? {
                Message::Authentication(request) => request,
                Message::ErrorResponse(e) => {
                    counted.may_fail_as("rejected");
                    let password = self.provided.take().filter(|_| e.code().class() == "28");
                    let error = refusal(e, self.user);
                    return Err(Rejection { error, by_server: true, password });
                }
                Message::NegotiateProtocolVersion { newest, options } if !negotiated => {
                    counted.may_fail_as("malformed");
                    version = count_protocol_error(
                        "NegotiateProtocolVersion",
                        self.negotiate(newest, &options),
                    )?;
                    negotiated = true;
                    continue;
                }
                other => {
                    counted.may_fail_as("malformed");
                    return Ok(unexpected(&other, "an authentication request")?);
                }
            };
            if let Some(mechanism) = mechanism(&request) {
                counted.mechanism(mechanism);
            }
            counted.may_fail_as("refused_by_policy");
            self.check(&state, &request)?;
            state = match (state, request) {
                (
                    LoginState::Start | LoginState::PasswordSent | LoginState::ScramVerified,
                    Authentication::Ok,
                ) => {
                    return Ok(version);
                }
                (LoginState::Start, Authentication::CleartextPassword) => {
                    self.auth_method = "password";
                    counted.may_fail_as("no_password");
                    let password = self.password().await?;
                    counted.may_fail_as("lost");
                    stream.send(&Zeroizing::new(frontend::password(password.reveal())?)).await?;
                    LoginState::PasswordSent
                }
                (LoginState::Start, Authentication::Md5Password { salt }) => {
                    self.auth_method = "md5";
                    counted.may_fail_as("no_password");
                    let password = self.password().await?;
                    counted.may_fail_as("lost");
                    let response = md5::response(self.user, password.reveal(), salt);
                    stream.send(&frontend::password(&response)?).await?;
                    LoginState::PasswordSent
                }
                (LoginState::Start, Authentication::Sasl { mechanisms }) => {
                    let (mechanism, binding) = self.choose(&mechanisms)?;
                    if let Binding::EndPoint(_) = binding {
                        counted.mechanism("scram_sha_256_plus");
                    }
                    counted.may_fail_as("lost");
                    let first = ClientFirst::new(random::bytes()?, binding);
                    let message = first.message();
                    stream
                        .send(&frontend::sasl_initial_response(mechanism, message.as_bytes())?)
                        .await?;
                    LoginState::ScramFirst(first)
                }
                (LoginState::ScramFirst(first), Authentication::SaslContinue(data)) => {
                    counted.may_fail_as("malformed");
                    let challenge =
                        first.challenge(&data, self.config.client_options.max_scram_iterations)?;
                    counted.may_fail_as("no_password");
                    let keys = self.keys(&challenge.salt, challenge.iterations).await?;
                    counted.may_fail_as("lost");
                    let (message, verifier) = challenge.prove(&keys)?;
                    stream.send(&frontend::sasl_response(message.as_bytes())?).await?;
                    LoginState::ScramFinal(verifier)
                }
                (LoginState::ScramFinal(verifier), Authentication::SaslFinal(data)) => {
                    counted.may_fail_as("server_signature");
                    verifier.verify(&data)?;
                    LoginState::ScramVerified
                }
                (LoginState::ScramFirst(_) | LoginState::ScramFinal(_), Authentication::Ok) => {
                    counted.may_fail_as("server_signature");
                    return Err(Error::authentication(
                        "the server let the user in before it had proved that it knows the \
                         password: it is not to be trusted",
                    )
                    .into());
                }
                (LoginState::Start, Authentication::Unsupported { name }) => {
                    return Err(Error::authentication(format!(
                        "the server asks for {name}, which this client does not speak: give the \
                         role a password method (scram-sha-256) in pg_hba.conf"
                    ))
                    .into());
                }
                (_, request) => {
                    counted.may_fail_as("malformed");
                    return Err(Error::authentication(format!(
                        "the server asked for {} in the middle of another method",
                        request.name()
                    ))
                    .into());
                }
            };
        }
    }

    /// Takes an older version, if it will do. The checks are libpq's
    /// (`pqGetNegotiateProtocolVersion3`).
    fn negotiate(&self, newest: u32, options: &[String]) -> Result<ProtocolVersion> {
        let range = self.config.protocol;
        if let Some(option) = options.first() {
            return Err(Error::protocol(format!(
                "the server does not recognize the option \"{}\", which was not requested",
                OneLine::name(option)
            )));
        }
        match newest {
            frontend::VERSION_3_0 if range.max > ProtocolVersion::V3_0 => {
                if range.min > ProtocolVersion::V3_0 {
                    return Err(Error::protocol(
                        "the server speaks 3.0 only, and min_protocol_version asks for more",
                    ));
                }
                Ok(ProtocolVersion::V3_0)
            }
            other => Err(Error::protocol(format!(
                "the server wants to speak version {}.{}, which was not asked for",
                other >> 16,
                other & 0xffff
            ))),
        }
    }

    /// Refuses what the settings do not allow, before anything is given away. The rules are
    /// libpq's (`check_expected_areq`).
    fn check(&self, state: &LoginState, request: &Authentication) -> Result<()> {
        let config = self.config;
        let asked = match request {
            // By TLS, that was seen to in the handshake.
            Authentication::Ok if self.tls.is_none() && config.tls.requires_certificate() => {
                return Err(Error::authentication(
                    "sslcertmode=require, but the server did not ask for a certificate: the session \
                     is not encrypted",
                ));
            }
            Authentication::Ok => match state {
                LoginState::Start => Method::None,
                // Checked when it was asked for.
                _ => return self.check_binding(state),
            },
            Authentication::CleartextPassword => Method::Password,
            Authentication::Md5Password { .. } => Method::Md5,
            Authentication::Sasl { mechanisms }
                if !mechanisms.iter().any(|m| m.starts_with(scram::MECHANISM)) =>
            {
                Method::OAuth
            }
            Authentication::Sasl { .. } => Method::Scram,
            Authentication::SaslContinue(_) | Authentication::SaslFinal(_) => return Ok(()),
            Authentication::Unsupported { name } if name.starts_with("SSPI") => Method::Sspi,
            Authentication::Unsupported { .. } => Method::Gss,
        };
        if let Some(required) = config.require_auth.as_ref().filter(|r| !r.allows(asked)) {
            return Err(Error::authentication(format!(
                "require_auth is {:?}, but the server asks for {}",
                required.as_str(),
                request.name()
            )));
        }
        match request {
            Authentication::Sasl { .. } => Ok(()),
            _ => self.check_binding(state),
        }
    }

    /// With channel_binding=require nothing else must be answered, and nobody be let in unbound.
    fn check_binding(&self, state: &LoginState) -> Result<()> {
        let bound = matches!(state, LoginState::ScramVerified) && self.auth_method == SCRAM_PLUS;
        if self.config.channel_binding == ChannelBinding::Require && !bound {
            return Err(Error::authentication(
                "channel_binding=require, but the server does not bind this login to the channel: \
                 it has to be a role with a scram-sha-256 password, over TLS",
            ));
        }
        Ok(())
    }

    /// Chooses a SASL mechanism, and what to say about channel binding.
    fn choose(&mut self, mechanisms: &[String]) -> Result<(&'static str, Binding)> {
        let offered = |name| mechanisms.iter().any(|m| m == name);
        let setting = self.config.channel_binding;
        if offered(scram::MECHANISM_PLUS) && self.tls.is_none() {
            // Somebody in between has taken TLS away: the server would see a downgrade.
            return Err(Error::authentication(
                "the server offers SCRAM-SHA-256-PLUS over a connection that is not encrypted: \
                 something in between has ended TLS",
            ));
        }
        let end_point = self.tls.and_then(|tls| tls.server_end_point.clone());
        // Never "n" for want of a hash: whoever is in between could choose such a certificate, and the
        // server would not see that something is wrong.
        let binding = match (setting, self.tls, end_point) {
            (ChannelBinding::Disable, ..) | (_, None, _) => Binding::No,
            _ if !offered(scram::MECHANISM_PLUS) => Binding::NotOffered,
            (_, Some(_), Some(hash)) => Binding::EndPoint(hash),
            (_, Some(_), None) => {
                return Err(Error::authentication(
                    "the signature of the server's certificate (Ed25519, perhaps) defines no hash to \
                     bind the login to the channel with: give the server another certificate, or \
                     set channel_binding=disable",
                ));
            }
        };
        if let Binding::EndPoint(_) = binding {
            self.auth_method = SCRAM_PLUS;
            return Ok((scram::MECHANISM_PLUS, binding));
        }
        self.auth_method = "scram-sha-256";
        if setting == ChannelBinding::Require {
            self.check_binding(&LoginState::Start)?;
        }
        if !offered(scram::MECHANISM) {
            let names = mechanisms.iter().take(8).map(|name| OneLine::name(name).to_string());
            return Err(Error::authentication(format!(
                "the server offers {:?}; this client supports only {}",
                names.collect::<Vec<_>>(),
                scram::MECHANISM
            )));
        }
        Ok((scram::MECHANISM, binding))
    }

    /// The keys for a salt: given, remembered, or computed on another thread, for that takes
    /// milliseconds in which no other task of this one would run.
    async fn keys(&mut self, salt: &[u8], iterations: u32) -> Result<Keys, Rejection> {
        let config = self.config;
        let (client, server) = (&config.scram_client_key, &config.scram_server_key);
        if let (Some(client), Some(server)) = (client, server) {
            return Ok(Keys { client: client.clone(), server: server.clone() });
        }
        let password = self.password().await?;
        let cached = config.scram_cache.get().filter(|cached| {
            cached.salt == salt && cached.iterations == iterations && cached.password == password
        });
        let mut keys = match cached {
            Some(cached) => Keys { client: cached.client_key, server: cached.server_key },
            None => {
                let (secret, salt) = (password.clone(), salt.to_vec());
                let derive = move || Keys::derive(secret.reveal(), &salt, iterations);
                spawn_blocking(derive).await.map_err(|_| {
                    Error::authentication("the runtime was shut down while logging in")
                })??
            }
        };
        config.scram_cache.set(ScramCacheEntry {
            password,
            salt: salt.to_vec(),
            iterations,
            client_key: keys.client.clone(),
            server_key: keys.server.clone(),
        });
        if let Some(client) = client {
            keys.client = client.clone();
        }
        if let Some(server) = server {
            keys.server = server.clone();
        }
        Ok(keys)
    }

    async fn password(&mut self) -> Result<Password, Rejection> {
        if let Some(provider) = &self.config.client_options.password_provider {
            let password = Password::new(provider.get().await?);
            if password.reveal().is_empty() {
                let empty = "the password provider gives an empty password";
                return Err(Error::authentication(empty).into());
            }
            // Each refusal counts where accounts are locked after a few.
            if self.refused == Some(&password) {
                let error = Error::authentication(
                    "the password provider was asked again, and returned the same password",
                );
                return Err(Rejection { error, by_server: true, password: None });
            }
            self.provided = Some(password.clone());
            return Ok(password);
        }
        let found = self.config.find_password(self.target)?.filter(|p| !p.reveal().is_empty());
        let found = found.ok_or_else(|| {
            Error::authentication(format!(
                "the server asks for the password of {:?}, and none is given: write it in the \
                 connection string, in PGPASSWORD, or in the password file{}",
                self.user,
                self.config.passfile().map(|f| format!(" {f}")).unwrap_or_default()
            ))
        })?;
        Ok(found)
    }
}

const SCRAM_PLUS: &str = "scram-sha-256-plus";

/// The server's refusal: of this login (class 28), or for another reason.
fn refusal(e: Box<DbError>, user: &str) -> Error {
    if e.code().class() != "28" {
        return Error::Server(e);
    }
    let message = format!("{e}; {}", advice_for_refusal(&e, user));
    Error::Authentication { message, server: Some(e) }
}

/// A socket before there is a session.
struct StartupStream<'a> {
    transport: Transport,
    buffer: BytesMut,
    long: Option<Long>,
    async_messages: AsyncMessages,
    /// The login is over: before that, nothing is believed but what belongs to it.
    trusted: bool,
    /// Nothing was answered to a version newer than 3.0.
    unanswered: &'a mut bool,
}

impl StartupStream<'_> {
    async fn send(&mut self, message: &[u8]) -> Result<()> {
        let sent = async {
            self.transport.write_all(message).await?;
            // TLS may keep it back otherwise.
            self.transport.flush().await
        };
        sent.await.map_err(|e| from_io_error(self.during(), e))
    }

    /// The next message that belongs to the login.
    async fn receive(&mut self) -> Result<Message> {
        loop {
            let async_messages = Some(&self.async_messages).filter(|_| self.trusted);
            match take_message(&mut self.buffer, &mut self.long, MAX_STARTUP_FRAME, async_messages)
            {
                Ok(Taken::Message(message)) => {
                    *self.unanswered = false;
                    return Ok(message);
                }
                Ok(Taken::Async) => {
                    // Its handler has run: check connect_timeout.
                    yield_now().await;
                    continue;
                }
                Ok(Taken::Incomplete) => self.buffer.reserve(SMALL_READ),
                Err(e) => return Err(self.pre_v3_error().await.unwrap_or(e)),
            }
            match self.transport.read_buf(&mut self.buffer).await {
                Ok(0) => {
                    return Err(Error::ConnectionClosed { during: self.during(), source: None });
                }
                Ok(_) => {}
                Err(e) => return Err(from_io_error(self.during(), e)),
            }
        }
    }

    /// The error of a server that could not start a process for the session: text without a length,
    /// as before protocol 3.
    async fn pre_v3_error(&mut self) -> Option<Error> {
        loop {
            match Header::pre_v3_error(&self.buffer)? {
                PreV3Error::Whole(text) => {
                    let source = io::Error::other(OneLine::name(&text).to_string());
                    return Some(Error::Io { during: NOT_STARTED, source });
                }
                // The server could send no more than what has arrived.
                PreV3Error::Beginning(text) => {
                    match self.transport.read_buf(&mut self.buffer).await {
                        Ok(1..) => {}
                        _ => {
                            let source = io::Error::other(OneLine::name(&text).to_string());
                            return Some(Error::Io { during: NOT_STARTED, source });
                        }
                    }
                }
            }
        }
    }

    /// The step in progress, for errors.
    fn during(&self) -> &'static str {
        if *self.unanswered { LOGGING_IN_BY_3_2 } else { LOGGING_IN }
    }
}
