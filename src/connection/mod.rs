//! A connection to a server: it exists only when it is ready for a query.

mod async_messages;
mod attempts;
mod cancel;
mod cancel_token;
mod connect;
mod connecting;
mod drain;
mod encryption;
mod handshake;
mod info;
mod lease;
mod login;
mod messages;
mod outgoing;
mod peer;
mod random;
mod report;
mod running_query;
mod server_connection;
mod session;
mod slot;
mod startup;
mod statement_cache;
mod target_session;
mod trace;
mod transaction;
mod unanswered;

pub use self::{
    cancel_token::CancelToken,
    info::{ConnectionInfo, ServerVersion},
};
pub(crate) use self::{
    drain::cancel_and_drain,
    lease::{FetchClaim, Lease, Leased, SlotHandle, StreamGuard},
    messages::Taken,
    report::{TARGET, count_protocol_error, violation},
    running_query::{QuerySession, RunningQuery},
    server_connection::{Connection, within},
    session::{Session, stop_lost},
    slot::Slot,
    statement_cache::Choice,
    trace::{trace_received, trace_sent},
};
