//! The only place that makes SQL text.

mod field;
mod filter;
mod ident;
mod operand;
mod operator;
mod order;
mod param;
mod scan;
mod statement;

pub(crate) use self::statement::{Condition, Order, Projection, Select, Statement};
pub use self::{
    field::{Field, field},
    filter::Filter,
    operand::Operand,
    order::OrderBy,
    param::{Json, ToParam},
};
