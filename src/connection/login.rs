//! The login: the server's authentication requests, and the answers to them.

use std::io;

use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::{
    random,
    report::{unexpected, violation},
    startup::{Rejection, StartupStream, refusal},
};
use crate::{
    auth::{
        md5,
        scram::{self, Binding, ClientFirst, Keys, ServerFinal},
    },
    config::{
        ChannelBinding, ConnectionConfig, Method, Password, ProtocolVersion, ScramCacheEntry,
        Target,
    },
    error::{DbError, Error, NO_PASSWORD, OneLine, Result},
    metrics::connection::{
        LoginFailure::{
            self, Lost, Malformed, NoPassword, RefusedByPolicy, Rejected, ServerSignature,
        },
        LoginMetrics,
    },
    protocol::{
        backend::{Authentication, Message},
        frontend,
    },
    transport::TlsInfo,
};

/// The state of the login: which requests of the server are expected.
enum LoginState {
    /// No request yet. The server may accept the login, or request any method.
    Start,
    /// The password was sent, as it is or as MD5. The server accepts or rejects it.
    PasswordSent,
    ScramFirst(ClientFirst),
    ScramFinal(ServerFinal),
    /// The server has proved that it knows the password.
    ScramVerified,
}

/// The label of the requested method. SCRAM may be bound to the channel later.
fn mechanism(request: &Authentication) -> Option<&'static str> {
    match request {
        Authentication::CleartextPassword => Some("cleartext"),
        Authentication::Md5Password { .. } => Some("md5"),
        Authentication::Sasl { .. } => Some("scram_sha_256"),
        _ => None,
    }
}

/// A login that failed, and what to count it as.
pub(super) struct LoginError {
    pub(super) reason: LoginFailure,
    pub(super) error: Rejection,
}

/// Adds the reason to an error.
fn because<E: Into<Rejection>>(reason: LoginFailure) -> impl FnOnce(E) -> LoginError {
    move |error| LoginError { reason, error: error.into() }
}

/// Receives the next message of the login.
async fn receive(stream: &mut StartupStream<'_>) -> Result<Message, LoginError> {
    stream.receive().await.map_err(|error| {
        let is_malformed = matches!(error, Error::Protocol { .. });
        because(if is_malformed { Malformed } else { Lost })(error)
    })
}

/// The message of a server that does not support what was requested.
const NEGOTIATION: &str = "NegotiateProtocolVersion";

pub(super) struct Login<'a> {
    pub(super) config: &'a ConnectionConfig,
    pub(super) target: &'a Target,
    pub(super) user: &'a str,
    pub(super) tls: Option<&'a TlsInfo>,
    pub(super) auth_method: &'static str,
    /// What the password provider returned.
    pub(super) provided: Option<Password>,
    /// The refused password, which it must not return again.
    pub(super) refused: Option<&'a Password>,
    pub(super) metrics: LoginMetrics,
}

impl Login<'_> {
    /// Logs in. Returns the version of the protocol that the session uses.
    pub(super) async fn authenticate(
        &mut self,
        stream: &mut StartupStream<'_>,
    ) -> Result<ProtocolVersion, LoginError> {
        let mut version = self.config.protocol.max;
        let mut negotiated = false;
        let mut state = LoginState::Start;
        loop {
            let request = match receive(stream).await? {
                Message::Authentication(request) => request,
                Message::ErrorResponse(e) => return Err(self.rejected(e)),
                Message::NegotiateProtocolVersion { newest, options } if !negotiated => {
                    let agreed = self.negotiate(newest, &options);
                    version = agreed.map_err(because(Malformed))?;
                    negotiated = true;
                    continue;
                }
                other => {
                    return unexpected(&other, "an authentication request")
                        .map_err(because(Malformed));
                }
            };
            if let Some(mechanism) = mechanism(&request) {
                self.metrics.set_mechanism(mechanism);
            }
            self.check_request(&state, &request).map_err(because(RefusedByPolicy))?;
            state = match (state, request) {
                (
                    LoginState::Start | LoginState::PasswordSent | LoginState::ScramVerified,
                    Authentication::Ok,
                ) => return Ok(version),
                (state, request) => self.answer(stream, state, request).await?,
            };
        }
    }

    /// Answers a request of the server.
    async fn answer(
        &mut self,
        stream: &mut StartupStream<'_>,
        state: LoginState,
        request: Authentication,
    ) -> Result<LoginState, LoginError> {
        match (state, request) {
            (LoginState::Start, Authentication::CleartextPassword) => {
                self.auth_method = "password";
                let password = self.password().await.map_err(because(NoPassword))?;
                let message = frontend::password(password.reveal()).map_err(because(Lost))?;
                stream.send(&Zeroizing::new(message)).await.map_err(because(Lost))?;
                Ok(LoginState::PasswordSent)
            }
            (LoginState::Start, Authentication::Md5Password { salt }) => {
                self.auth_method = "md5";
                let password = self.password().await.map_err(because(NoPassword))?;
                let response = md5::response(self.user, password.reveal(), salt);
                let message = frontend::password(&response).map_err(because(Lost))?;
                stream.send(&message).await.map_err(because(Lost))?;
                Ok(LoginState::PasswordSent)
            }
            (LoginState::Start, Authentication::Sasl { mechanisms }) => {
                let (mechanism, binding) =
                    self.choose(&mechanisms).map_err(because(RefusedByPolicy))?;
                if let Binding::EndPoint(_) = binding {
                    self.metrics.set_mechanism("scram_sha_256_plus");
                }
                let nonce = random::bytes().map_err(because(Lost))?;
                let first = ClientFirst::new(nonce, binding);
                let message =
                    frontend::sasl_initial_response(mechanism, first.message().as_bytes());
                let message = message.map_err(because(Lost))?;
                stream.send(&message).await.map_err(because(Lost))?;
                Ok(LoginState::ScramFirst(first))
            }
            (LoginState::ScramFirst(first), Authentication::SaslContinue(data)) => {
                let max_iterations = self.config.client_options.max_scram_iterations;
                let challenge =
                    first.challenge(&data, max_iterations).map_err(because(Malformed))?;
                let keys = self.keys(&challenge.salt, challenge.iterations).await;
                let keys = keys.map_err(because(NoPassword))?;
                let (message, verifier) = challenge.prove(&keys).map_err(because(Lost))?;
                let message = frontend::sasl_response(message.as_bytes()).map_err(because(Lost))?;
                stream.send(&message).await.map_err(because(Lost))?;
                Ok(LoginState::ScramFinal(verifier))
            }
            (LoginState::ScramFinal(verifier), Authentication::SaslFinal(data)) => {
                verifier.verify(&data).map_err(because(ServerSignature))?;
                Ok(LoginState::ScramVerified)
            }
            (LoginState::ScramFirst(_) | LoginState::ScramFinal(_), Authentication::Ok) => {
                let error = Error::authentication(
                    "the server accepted the login before it had proved that it knows the \
                     password: do not trust it",
                );
                Err(because(ServerSignature)(error))
            }
            (LoginState::Start, Authentication::Unsupported { name }) => {
                let error = Error::authentication(format!(
                    "the server asks for {name}, which this client does not support: give the role \
                     a password method (scram-sha-256) in pg_hba.conf"
                ));
                Err(because(RefusedByPolicy)(error))
            }
            (_, request) => {
                let error = Error::authentication(format!(
                    "the server asked for {} in the middle of another method",
                    request.name()
                ));
                Err(because(Malformed)(error))
            }
        }
    }

    /// The error of a login that the server has rejected.
    fn rejected(&mut self, error: Box<DbError>) -> LoginError {
        let password = self.provided.take().filter(|_| error.code().class() == "28");
        let error = refusal(error, self.user);
        because(Rejected)(Rejection { error, by_server: true, password })
    }

    /// Accepts an older version, if the settings allow it. The checks are libpq's
    /// (`pqGetNegotiateProtocolVersion3`).
    fn negotiate(&self, newest: u32, options: &[String]) -> Result<ProtocolVersion> {
        let range = self.config.protocol;
        if let Some(option) = options.first() {
            return Err(violation(
                NEGOTIATION,
                format!(
                    "the server does not recognize the option \"{}\", which was not requested",
                    OneLine::name(option)
                ),
            ));
        }
        match newest {
            frontend::VERSION_3_0 if range.max > ProtocolVersion::V3_0 => {
                if range.min > ProtocolVersion::V3_0 {
                    return Err(violation(
                        NEGOTIATION,
                        "the server supports only protocol 3.0, and min_protocol_version requires \
                         a newer one",
                    ));
                }
                Ok(ProtocolVersion::V3_0)
            }
            other => Err(violation(
                NEGOTIATION,
                format!("unexpected negotiation of protocol {}.{}", other >> 16, other & 0xffff),
            )),
        }
    }

    /// Rejects a request that the settings do not allow, before anything is sent in answer. The
    /// rules are libpq's (`check_expected_areq`).
    fn check_request(&self, state: &LoginState, request: &Authentication) -> Result<()> {
        let config = self.config;
        let requested = match request {
            // With TLS, its handshake has checked this.
            Authentication::Ok if self.tls.is_none() && config.tls.requires_certificate() => {
                return Err(Error::authentication(
                    "sslcertmode=require, but the server did not ask for a certificate: the \
                     session is not encrypted",
                ));
            }
            Authentication::Ok => match state {
                LoginState::Start => Method::None,
                // The method was checked when it was requested.
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
        if let Some(required) = config.require_auth.as_ref().filter(|r| !r.allows(requested)) {
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

    /// With channel_binding=require, rejects any other method and any login that is not bound.
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

    /// Chooses a SASL mechanism, and the kind of channel binding.
    fn choose(&mut self, mechanisms: &[String]) -> Result<(&'static str, Binding)> {
        let offered = |name| mechanisms.iter().any(|m| m == name);
        let setting = self.config.channel_binding;
        if offered(scram::MECHANISM_PLUS) && self.tls.is_none() {
            // A man in the middle has removed TLS. The server would detect the downgrade.
            return Err(Error::authentication(
                "the server offers SCRAM-SHA-256-PLUS over a connection that is not encrypted: \
                 something in between has ended TLS",
            ));
        }
        let end_point = self.tls.and_then(|tls| tls.server_end_point.clone());
        // Without a hash, never "n": a man in the middle could choose such a certificate, and the
        // server would not detect it.
        let binding = match (setting, self.tls, end_point) {
            (ChannelBinding::Disable, ..) | (_, None, _) => Binding::No,
            _ if !offered(scram::MECHANISM_PLUS) => Binding::NotOffered,
            (_, Some(_), Some(hash)) => Binding::EndPoint(hash),
            (_, Some(_), None) => {
                return Err(Error::authentication(
                    "the signature of the server's certificate (Ed25519, perhaps) defines no hash \
                     to bind the login to the channel with: give the server another certificate, \
                     or set channel_binding=disable",
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

    /// Returns the keys for a salt: configured, cached, or computed on another thread, because that
    /// blocks the thread for milliseconds.
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
            self.metrics.if_abandoned(NoPassword);
            let provided = provider.get(self.target, self.user).await;
            self.metrics.if_abandoned(Lost);
            let password = Password::new(provided.map_err(no_password)?);
            if password.reveal().is_empty() {
                let empty = "the password provider returned an empty password";
                return Err(Error::authentication(empty).into());
            }
            // Not sent again, because some servers lock accounts after a few failures.
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

/// Converts a retriable error of the password provider, so that connecting continues with the next
/// host, and can be retried.
fn no_password(error: Error) -> Error {
    if !error.is_retriable() {
        return error;
    }
    let source = match error {
        // Its text would be that of an error on the connection.
        Error::Io { during, source } => io::Error::new(source.kind(), format!("{source} {during}")),
        other => io::Error::other(other),
    };
    Error::Io { during: NO_PASSWORD, source }
}

const SCRAM_PLUS: &str = "scram-sha-256-plus";
