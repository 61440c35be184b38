//! The error of several attempts to connect.

use crate::error::{ConnectAttempt, Error};

/// The error if an answer of a server was final: that answer, with the attempts before it and after
/// it, in order.
///
/// If several logins were rejected (with a second password, or without TLS), the first rejection is
/// returned, because its attempt had the preferred settings.
pub(super) fn refused(mut attempts: Vec<ConnectAttempt>) -> Error {
    let Some(last) = attempts.last() else { return unreachable(attempts) };
    let is_refusal = |e: &Error| matches!(e, Error::Authentication { server: Some(_), .. });
    let first_refusal = match *last.error {
        Error::Authentication { .. } => attempts.iter().position(|a| is_refusal(&a.error)),
        _ => None,
    };
    let later = attempts.split_off(first_refusal.map_or(attempts.len(), |at| at + 1));
    let Some(answer) = attempts.pop() else { return unreachable(attempts) };
    let with_others = |mut message: String| {
        for (when, others) in [("before", &attempts), ("after", &later)] {
            let others: Vec<String> = others.iter().map(ToString::to_string).collect();
            if !others.is_empty() {
                message += &format!("; {when} that, {}", others.join("; "));
            }
        }
        message
    };
    match *answer.error {
        Error::Authentication { message, server } => {
            Error::Authentication { message: with_others(message), server }
        }
        Error::Tls { message } => Error::Tls { message: with_others(message) },
        Error::Protocol { message } => Error::Protocol { message: with_others(message) },
        other => other,
    }
}

/// The error if nothing is left to try.
pub(super) fn unreachable(mut attempts: Vec<ConnectAttempt>) -> Error {
    match attempts.pop() {
        // A single failure is returned as it is, unless the address could not be reached.
        Some(ConnectAttempt { error, .. })
            if attempts.is_empty()
                && !matches!(*error, Error::Io { .. } | Error::ConnectionClosed { .. }) =>
        {
            *error
        }
        last => {
            attempts.extend(last);
            Error::Connection { attempts }
        }
    }
}

pub(super) const CONNECTING: &str = "while connecting";
