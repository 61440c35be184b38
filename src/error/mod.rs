//! The error type of the crate, and its retry advice.

mod advice;
mod copy;
mod db;
mod hint;
pub mod sqlstate;
mod text;
mod timeout;
mod variants;

pub use self::{
    advice::{ErrorCategory, RetryAdvice},
    db::DbError,
    timeout::TimeoutPhase,
    variants::{ConnectAttempt, Error, Result},
};
pub(crate) use self::{
    hint::{
        LOGGING_IN, LOGGING_IN_BY_3_2, NO_PASSWORD, NOT_STARTED, OPENING, RESOLVING, WRONG_ROLE,
        for_refusal as advice_for_refusal,
    },
    text::OneLine,
};
