//! The only place that makes SQL text.

mod field;
mod filter;
mod ident;
mod nesting;
mod operand;
mod operator;
mod order;
mod param;
mod parameters;
mod part;
mod scan;
mod statement;

pub use self::{
    field::{Field, field},
    filter::Filter,
    operand::Operand,
    order::OrderBy,
    param::{Json, ToParam},
};
pub(crate) use self::{
    part::{Survey, by_hash, lockable, survey},
    statement::{Condition, Order, Projection, Select, Statement, TYPE_TEST},
};
