use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Connection, SMALL_READ, Taken, cancel::CancelKey, take_message};
use crate::{
    config::ConnectionConfig,
    error::{DbError, Error, Result},
    md5,
    protocol::{
        backend::{Authentication, Message},
        frame::MAX_STARTUP_FRAME,
        frontend,
    },
    scram::{self, ClientFirst, ServerFinal},
    transport::{Address, Transport},
};

/// Logs in and starts the session: consumes a socket, returns a connection ready for a query.
pub(super) async fn handshake(
    transport: Transport,
    address: &Address,
    config: &ConnectionConfig,
) -> Result<Connection> {
    let user = config.user_name()?;
    let mut wire = Wire { transport, buffer: BytesMut::new() };
    wire.send(&startup_message(config, &user)?).await?;
    authenticate(&mut wire, config, &user).await?;

    let mut cancel = None;
    loop {
        match wire.receive().await? {
            Message::BackendKeyData { process_id, secret } => {
                cancel = Some(CancelKey { address: address.clone(), process_id, secret });
            }
            Message::ReadyForQuery => break,
            Message::ErrorResponse(e) => return Err(refused(e, &user)),
            other => return Err(other.unexpected("the start of the session")),
        }
    }
    // Without it no query could be stopped, and dropping a stream would not end the server's work.
    let cancel =
        cancel.ok_or_else(|| Error::protocol("the server gave no key to cancel queries with"))?;
    Ok(Connection { transport: wire.transport, buffer: wire.buffer, cancel, reused: false })
}

/// The parameters are few: a pooler refuses those it does not know.
fn startup_message(config: &ConnectionConfig, user: &str) -> Result<Vec<u8>> {
    let mut parameters = vec![
        ("user", user),
        ("database", config.database.as_deref().unwrap_or(user)),
        // Always asked for, so that the server converts what is stored in another encoding.
        ("client_encoding", "UTF8"),
    ];
    let optional = [("application_name", &config.application_name), ("options", &config.options)];
    for (name, value) in optional {
        if let Some(value) = value {
            parameters.push((name, value));
        }
    }
    frontend::startup(&parameters)
}

/// Where the login stands: what the server may say next.
enum Login {
    /// Nothing has been asked yet. The server may let the user in, or ask for anything.
    Start,
    /// The password was sent, in clear or as MD5: the server says yes or no.
    PasswordSent,
    ScramFirst(ClientFirst),
    ScramFinal(ServerFinal),
    /// The server has proved that it knows the password.
    ScramVerified,
}

async fn authenticate(wire: &mut Wire, config: &ConnectionConfig, user: &str) -> Result<()> {
    let mut login = Login::Start;
    loop {
        let request = match wire.receive().await? {
            Message::Authentication(request) => request,
            Message::ErrorResponse(e) => return Err(refused(e, user)),
            other => return Err(other.unexpected("an authentication request")),
        };
        login = match (login, request) {
            (Login::Start | Login::PasswordSent | Login::ScramVerified, Authentication::Ok) => {
                return Ok(());
            }
            (Login::Start, Authentication::CleartextPassword) => {
                wire.send(&frontend::password(password(config, user)?)?).await?;
                Login::PasswordSent
            }
            (Login::Start, Authentication::Md5Password { salt }) => {
                let response = md5::response(user, password(config, user)?, salt);
                wire.send(&frontend::password(&response)?).await?;
                Login::PasswordSent
            }
            (Login::Start, Authentication::Sasl { mechanisms }) => {
                if !mechanisms.iter().any(|m| m == scram::MECHANISM) {
                    return Err(Error::authentication(format!(
                        "the server offers {mechanisms:?}, of which this client speaks none; it \
                         speaks {}",
                        scram::MECHANISM
                    )));
                }
                let first = ClientFirst::new(nonce()?);
                let message = first.message();
                let message =
                    frontend::sasl_initial_response(scram::MECHANISM, message.as_bytes())?;
                wire.send(&message).await?;
                Login::ScramFirst(first)
            }
            (Login::ScramFirst(first), Authentication::SaslContinue(data)) => {
                let challenge = first.challenge(&data)?;
                let (message, verifier) = challenge.prove(password(config, user)?)?;
                wire.send(&frontend::sasl_response(message.as_bytes())?).await?;
                Login::ScramFinal(verifier)
            }
            (Login::ScramFinal(verifier), Authentication::SaslFinal(data)) => {
                verifier.verify(&data)?;
                Login::ScramVerified
            }
            (Login::ScramFirst(_) | Login::ScramFinal(_), Authentication::Ok) => {
                return Err(Error::authentication(
                    "the server let the user in before it had proved that it knows the password: it \
                     is not to be trusted",
                ));
            }
            (Login::Start, Authentication::Unsupported { name }) => {
                return Err(Error::authentication(format!(
                    "the server asks for {name}, which this client does not speak: give the role a \
                     password method (scram-sha-256) in pg_hba.conf"
                )));
            }
            (_, request) => {
                return Err(Error::authentication(format!(
                    "the server asked for {} in the middle of another method",
                    request.name()
                )));
            }
        };
    }
}

fn password<'a>(config: &'a ConnectionConfig, user: &str) -> Result<&'a str> {
    config.password.as_ref().map(|p| p.reveal()).ok_or_else(|| {
        Error::authentication(format!(
            "the server asks for the password of {user:?}, and none is given: write it in the \
             connection string"
        ))
    })
}

fn nonce() -> Result<[u8; scram::NONCE_BYTES]> {
    let mut nonce = [0; scram::NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|e| {
        Error::authentication(format!("the operating system gives no random bytes: {e}"))
    })?;
    Ok(nonce)
}

/// The server's refusal: of this login (class 28), or for another reason.
fn refused(e: Box<DbError>, user: &str) -> Error {
    if e.code().class() != "28" {
        return Error::Server(e);
    }
    Error::Authentication {
        message: format!(
            "{e}; check the user {user:?}, its password, and pg_hba.conf on the server"
        ),
        server: Some(e),
    }
}

/// A socket before there is a session.
struct Wire {
    transport: Transport,
    buffer: BytesMut,
}

impl Wire {
    async fn send(&mut self, message: &[u8]) -> Result<()> {
        self.transport.write_all(message).await.map_err(|e| Error::io(DURING, e))
    }

    /// The next message that belongs to the login.
    async fn receive(&mut self) -> Result<Message> {
        loop {
            match take_message(&mut self.buffer, MAX_STARTUP_FRAME)? {
                Taken::Message(message) => return Ok(message),
                Taken::Absorbed => continue,
                Taken::Incomplete => self.buffer.reserve(SMALL_READ),
            }
            match self.transport.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(Error::ConnectionClosed { during: DURING, source: None }),
                Ok(_) => {}
                Err(e) => return Err(Error::io(DURING, e)),
            }
        }
    }
}

const DURING: &str = "while logging in";
