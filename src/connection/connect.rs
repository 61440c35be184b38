use std::{io::ErrorKind, sync::OnceLock, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::{Instrument, Span, debug, field::Empty, info_span, warn};

use super::{
    async_messages::Notices,
    attempts::{CONNECTING, refused, unreachable},
    connecting::Connecting,
    encryption::{Encryption, encryption_modes},
    handshake::{HandshakeContext, handshake},
    peer::check_peer,
    random,
    report::TARGET,
    server_connection::Connection,
    startup::Rejection,
    target_session::check_role,
};
use crate::{
    config::{
        ConnectionConfig, LoadBalanceHosts, Password, SslNegotiation, Target, TargetSessionAttrs,
    },
    error::{
        ConnectAttempt, Error, LOGGING_IN_BY_3_2, NO_PASSWORD, NOT_STARTED, OPENING, RESOLVING,
        Result, TimeoutPhase, WRONG_ROLE, sqlstate,
    },
    metrics::connection::{Attempt, CloseReason, Phase, tls_agreed},
    transport::{Address, Encrypted, REQUESTING_TLS, Tls, Transport, resolve},
};

/// Opens a session: tries the hosts, their addresses and the kinds of encryption, until a server
/// accepts the client and has the wanted role.
///
/// The order is that of libpq's `PQconnectPoll`. After a failure it continues with:
///
/// * the next address, if this one cannot be reached or does not answer;
/// * the next host, if the server does not accept connections now (57P03) or has the wrong role;
/// * another kind of encryption, if the server rejects the session and `sslmode` allows it.
///   Otherwise the rejection is final.
///
/// One difference from libpq: if the connection is lost during the login, this continues with the
/// next address, where libpq stops.
///
/// Cancel-safe: dropping the future closes what it opened.
pub(crate) async fn connect(
    config: &ConnectionConfig,
    notices: &Notices,
    connecting: &Connecting,
) -> Result<Connection> {
    connect_to(config.targets(), config, notices, connecting).await
}

/// Same as [`connect`], with `targets` instead of the configured hosts.
pub(super) async fn connect_to(
    mut targets: Vec<Target>,
    config: &ConnectionConfig,
    notices: &Notices,
    connecting: &Connecting,
) -> Result<Connection> {
    let shuffle = config.load_balance_hosts == LoadBalanceHosts::Random;
    if shuffle {
        random::shuffle(&mut targets)?;
    }
    let wanted: &[TargetSessionAttrs] = match config.target_session_attrs {
        // First a standby; if there is none, any server.
        TargetSessionAttrs::PreferStandby => {
            &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any]
        }
        TargetSessionAttrs::Any => &[TargetSessionAttrs::Any],
        TargetSessionAttrs::ReadWrite => &[TargetSessionAttrs::ReadWrite],
        TargetSessionAttrs::ReadOnly => &[TargetSessionAttrs::ReadOnly],
        TargetSessionAttrs::Primary => &[TargetSessionAttrs::Primary],
        TargetSessionAttrs::Standby => &[TargetSessionAttrs::Standby],
    };
    let mut attempts = Vec::new();
    for wanted in wanted {
        for target in &targets {
            let mut host = HostAttempt {
                config,
                target,
                wanted: *wanted,
                notices,
                connecting,
                attempts: &mut attempts,
                tls: OnceLock::new(),
                attempt: Attempt::default(),
                unanswered: false,
                refused: None,
            };
            match host.connect(shuffle).await {
                Ok(connection) => return Ok(connection),
                Err(NextStep::NextHost) => {}
                Err(_) => return Err(refused(attempts)),
            }
        }
    }
    Err(unreachable(attempts))
}

/// The attempts to connect to one host.
struct HostAttempt<'a> {
    config: &'a ConnectionConfig,
    target: &'a Target,
    wanted: TargetSessionAttrs,
    notices: &'a Notices,
    connecting: &'a Connecting,
    attempts: &'a mut Vec<ConnectAttempt>,
    /// Loaded once per host, and only if TLS is used.
    tls: OnceLock<Tls>,
    /// The phase of the current attempt.
    attempt: Attempt,
    /// Set until the server answers a request for a protocol version newer than 3.0.
    unanswered: bool,
    /// The provider's password that this host rejected. The provider is asked once more.
    refused: Option<Password>,
}

impl HostAttempt<'_> {
    async fn connect(&mut self, shuffle: bool) -> Result<Connection, NextStep> {
        let deadline = deadline(self.config);
        self.attempt.enter(Phase::Resolve);
        self.connecting.tries(self.target.to_string());
        let mut addresses = match within(
            self.config,
            deadline,
            resolve(self.target, self.config.client_options.connector.as_ref()),
        )
        .await
        {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(e)) => {
                self.failed(None, Error::Io { during: RESOLVING, source: e });
                return Err(NextStep::NextHost);
            }
            Err(e) => {
                self.failed(None, e);
                return Err(NextStep::NextHost);
            }
        };
        if addresses.is_empty() {
            let error = std::io::ErrorKind::NotFound.into();
            self.failed(None, Error::Io { during: RESOLVING, source: error });
        }
        if shuffle {
            if let Err(e) = random::shuffle(&mut addresses) {
                self.failed(None, e);
            }
        }
        self.try_addresses(&addresses, deadline).await
    }

    /// Tries the addresses in order. `deadline` applies to the first one; each further one has its
    /// own.
    async fn try_addresses(
        &mut self,
        addresses: &[Address],
        mut deadline: Option<Instant>,
    ) -> Result<Connection, NextStep> {
        for address in addresses {
            match self.try_address(address, deadline).await {
                Ok(connection) => return Ok(connection),
                Err(NextStep::NextAddress) => {}
                Err(next) => return Err(next),
            }
            deadline = self::deadline(self.config);
        }
        Err(NextStep::NextHost)
    }

    /// Tries one address with each kind of encryption that is allowed.
    async fn try_address(
        &mut self,
        address: &Address,
        deadline: Option<Instant>,
    ) -> Result<Connection, NextStep> {
        let mut modes = encryption_modes(self.config, address);
        while let Some((&encryption, others)) = modes.split_first() {
            let config = self.config;
            let span = attempt_span(self.target, address, encryption);
            self.unanswered = false;
            self.connecting.tries(self.label(Some(address)));
            let attempt = self.try_encryption(address, encryption, others);
            let attempt = attempt.instrument(span.clone());
            let failure = match within(config, deadline, attempt).await {
                Ok(Ok(connection)) => {
                    self.attempt.succeeded();
                    return Ok(connection);
                }
                Ok(Err(failure)) => failure,
                // `Error::Timeout` has no text that could name the version.
                Err(timeout) if self.unanswered => {
                    let source = Some(std::io::Error::new(ErrorKind::TimedOut, timeout));
                    let error = Error::ConnectionClosed { during: LOGGING_IN_BY_3_2, source };
                    Failure { error, next: NextStep::NextAddress }
                }
                Err(timeout) => Failure { error: timeout, next: NextStep::NextAddress },
            };
            let Failure { error, next } = failure;
            span.record("otel.status_code", "ERROR");
            let state = error.sqlstate().map(|state| state.code());
            span.record("error.type", state.unwrap_or(error.category().as_str()));
            let falls_back =
                encryption == Encryption::Tls && others.first() == Some(&Encryption::Plain);
            if falls_back && matches!(next, NextStep::OtherEncryption) {
                warn!(target: TARGET, target_host = %self.target, %error,
                    "TLS failed, and the session continues in plaintext, because sslmode=prefer \
                     allows it: correct the cause and set sslmode=verify-full, or set \
                     sslmode=disable");
            }
            self.failed(Some(address), error);
            match next {
                NextStep::NewPassword => {}
                NextStep::OtherEncryption => modes = others,
                next => return Err(next),
            }
        }
        // Rejected with every kind of encryption.
        Err(NextStep::Stop)
    }

    /// Tries one kind of encryption; `others` remain to be tried.
    async fn try_encryption(
        &mut self,
        address: &Address,
        encryption: Encryption,
        others: &[Encryption],
    ) -> Result<Connection, Failure> {
        let config = self.config;
        let began = Instant::now();
        self.attempt.enter(Phase::Connect);
        let during = match address {
            Address::Custom(..) => OPENING,
            _ => CONNECTING,
        };
        let mut transport = Transport::connect(address, &config.sockets)
            .await
            .map_err(|e| Failure::new(Error::Io { during, source: e }, NextStep::NextAddress))?;
        check_peer(config.require_peer.as_deref(), &transport)
            .map_err(|e| Failure::new(e, NextStep::Stop))?;
        let mut refused = NextStep::OtherEncryption;
        if encryption == Encryption::Tls {
            self.attempt.enter(Phase::Tls);
            // After an error here, plaintext may be tried, if it is allowed. A file that cannot be
            // read at the moment is no reason to continue without TLS.
            let loaded = self.tls().await.map_err(|e| {
                let next =
                    if is_lost(&e) { NextStep::NextAddress } else { NextStep::OtherEncryption };
                Failure::new(e, next)
            })?;
            let began = Instant::now();
            transport = match transport.encrypt(&loaded).await {
                Ok(Encrypted::Yes(transport)) => {
                    tls_agreed(began.elapsed());
                    transport
                }
                // The session continues in plaintext, so that is not tried again.
                Ok(Encrypted::No(transport)) if others.contains(&Encryption::Plain) => {
                    refused = NextStep::Stop;
                    transport
                }
                Ok(Encrypted::No(_)) => {
                    let message = "the server has none; switch ssl on in its postgresql.conf, or \
                                   choose a weaker sslmode";
                    return Err(Failure::new(
                        Error::Tls { message: message.into() },
                        NextStep::Stop,
                    ));
                }
                Err(e @ Error::Tls { .. }) => {
                    return Err(Failure::new(e, NextStep::OtherEncryption));
                }
                // libpq stops here too: an unauthenticated answer, or none, is no reason to
                // continue without TLS.
                Err(
                    e @ (Error::Io { during: NOT_STARTED | REQUESTING_TLS, .. }
                    | Error::ConnectionClosed { during: REQUESTING_TLS, .. }),
                ) => {
                    return Err(Failure::new(e, NextStep::NextAddress));
                }
                // The server may have closed the connection because of TLS.
                Err(e) if is_lost(&e) && !others.is_empty() => {
                    return Err(Failure::new(e, NextStep::OtherEncryption));
                }
                Err(e) => return Err(Failure::lost_or(e, NextStep::Stop)),
            };
        }
        let refused_before = self.refused.clone();
        let context = HandshakeContext {
            config,
            target: self.target,
            address,
            notices: self.notices,
            began,
            attempt: &mut self.attempt,
            unanswered: &mut self.unanswered,
            refused: refused_before.as_ref(),
        };
        let mut connection = handshake(transport, context).await.map_err(|rejection| {
            let Rejection { error, by_server, password } = rejection;
            // During a rotation the provider may have a newer password. Only once for each
            // host, because some servers lock accounts after a few refusals.
            if password.is_some() && refused_before.is_none() {
                self.refused = password;
                return Failure::new(error, NextStep::NewPassword);
            }
            match error.sqlstate() {
                Some(code) if by_server && *code == sqlstate::CANNOT_CONNECT_NOW => {
                    Failure::new(error, NextStep::NextHost)
                }
                // Two passwords of the provider were refused. With other encryption, it would be
                // asked again, and what it returns might be sent in plaintext.
                _ if by_server && refused_before.is_some() => Failure::new(error, NextStep::Stop),
                _ if by_server => Failure::new(error, refused),
                // The provider may have a password for another host.
                _ if matches!(error, Error::Io { during: NO_PASSWORD, .. }) => {
                    Failure::new(error, NextStep::NextHost)
                }
                _ => Failure::lost_or(error, NextStep::Stop),
            }
        })?;
        match check_role(&mut connection, self.wanted).await {
            Ok(None) => Ok(connection),
            Ok(Some(other)) => {
                connection.set_close_reason(CloseReason::Close);
                let error = std::io::Error::other(other);
                Err(Failure::new(
                    Error::Io { during: WRONG_ROLE, source: error },
                    NextStep::NextHost,
                ))
            }
            Err(e) => Err(Failure::lost_or(e, NextStep::NextHost)),
        }
    }

    async fn tls(&self) -> Result<Tls> {
        if let Some(tls) = self.tls.get() {
            return Ok(tls.clone());
        }
        let direct = self.config.ssl_negotiation == SslNegotiation::Direct;
        let tls = Tls::load(&self.config.tls, self.target.host.as_deref(), direct).await?;
        Ok(self.tls.get_or_init(|| tls).clone())
    }

    fn failed(&mut self, address: Option<&Address>, error: Error) {
        let target = self.label(address);
        debug!(target: TARGET, %target, %error, "an attempt to connect failed");
        self.attempt.failed(error.category().as_str());
        let attempt = ConnectAttempt { target, error: Box::new(error) };
        self.connecting.failed(&attempt);
        self.attempts.push(attempt);
    }

    /// The target as configured, and the address that it stands for.
    fn label(&self, address: Option<&Address>) -> String {
        let target = self.target.to_string();
        match address.map(ToString::to_string).filter(|address| *address != target) {
            Some(address) => format!("{target} ({address})"),
            None => target,
        }
    }
}

/// What to try after a failure.
enum NextStep {
    /// The same address and encryption, with another password.
    NewPassword,
    /// The same address, encrypted otherwise.
    OtherEncryption,
    /// The next address of the host.
    NextAddress,
    NextHost,
    /// Nothing: the server's answer is final.
    Stop,
}

struct Failure {
    error: Error,
    next: NextStep,
}

impl Failure {
    fn new(error: Error, next: NextStep) -> Self {
        Self { error, next }
    }

    /// After a lost connection the next address is tried, because it may work.
    fn lost_or(error: Error, next: NextStep) -> Self {
        let next = if is_lost(&error) { NextStep::NextAddress } else { next };
        Self { error, next }
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(error, Error::Io { .. } | Error::ConnectionClosed { .. })
}

/// The span of one attempt.
fn attempt_span(target: &Target, address: &Address, encryption: Encryption) -> Span {
    let peer = match address {
        Address::Tcp(address) => Some(address.ip().to_string()),
        #[cfg(unix)]
        Address::Unix(path) => Some(path.display().to_string()),
        Address::Custom(..) => None,
    };
    info_span!(
        target: TARGET,
        "connect",
        otel.name = "connect",
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "postgresql",
        server.address = target.host,
        server.port = i64::from(target.port),
        network.peer.address = peer,
        tls = encryption == Encryption::Tls,
        "error.type" = Empty,
    )
}

/// Runs a step, with the deadline.
async fn within<T>(
    config: &ConnectionConfig,
    deadline: Option<Instant>,
    step: impl Future<Output = T>,
) -> Result<T> {
    let Some(deadline) = deadline else { return Ok(step.await) };
    timeout_at(deadline, step).await.map_err(|_| Error::Timeout {
        phase: TimeoutPhase::Connect,
        after: config.connect_timeout.unwrap_or_default(),
    })
}

fn deadline(config: &ConnectionConfig) -> Option<Instant> {
    let after: Duration = config.connect_timeout?;
    Instant::now().checked_add(after)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::error::ErrorCategory;

    /// A name with several addresses, which not every test machine has: the first refuses, the
    /// second accepts and stays silent, the third is a server, and the fourth is not tried.
    #[tokio::test]
    async fn every_address_of_a_name_is_tried_in_order() {
        let listen = async || TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (closed, silent, server, unused) =
            (listen().await, listen().await, listen().await, listen().await);
        let addresses = [&closed, &silent, &server, &unused]
            .map(|listener| Address::Tcp(listener.local_addr().unwrap()));
        drop(closed);
        let serving = tokio::spawn(async move {
            let (mut socket, _) = server.accept().await.unwrap();
            let len = socket.read_u32().await.unwrap() as usize;
            socket.read_exact(&mut vec![0; len - 4]).await.unwrap();
            socket.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await.unwrap();
            socket
        });

        let config: ConnectionConfig =
            "host=several.example user=u sslmode=disable connect_timeout=2".parse().unwrap();
        let mut attempts = Vec::new();
        let (targets, notices) = (config.targets(), Notices::default());
        let mut host = HostAttempt {
            config: &config,
            target: &targets[0],
            wanted: TargetSessionAttrs::Any,
            notices: &notices,
            connecting: &Connecting::default(),
            attempts: &mut attempts,
            tls: OnceLock::new(),
            attempt: Attempt::default(),
            unanswered: false,
            refused: None,
        };
        let connected = host.try_addresses(&addresses, deadline(&config)).await;
        assert!(connected.is_ok());
        let tried: Vec<_> = attempts.iter().map(|attempt| attempt.target.clone()).collect();
        let name = |address: &Address| format!("several.example:5432 ({address})");
        assert_eq!(tried, [name(&addresses[0]), name(&addresses[1])]);
        let errors: Vec<_> = attempts.iter().map(|attempt| attempt.error.category()).collect();
        assert_eq!(errors, [ErrorCategory::Io, ErrorCategory::Timeout]);
        serving.await.unwrap();
        let untried = tokio::time::timeout(Duration::ZERO, unused.accept()).await;
        assert!(untried.is_err(), "the search ends at the first server");
    }
}
