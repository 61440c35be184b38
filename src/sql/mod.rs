//! The only place that makes SQL text.

mod ident;
mod param;
mod statement;

pub use self::param::ToParam;
pub(crate) use self::{param::Param, statement::Select};
