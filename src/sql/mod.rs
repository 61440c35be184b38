//! Builds the SQL text of queries. No other module does.

mod date;
mod field;
mod filter;
mod ident;
mod nesting;
mod operand;
mod order;
mod param;
mod parameters;
mod partition;
mod placeholders;
mod statement;

pub use self::{
    field::{Field, field},
    filter::Filter,
    operand::Operand,
    order::OrderBy,
    param::{Json, ToParam},
};
pub(crate) use self::{
    partition::{
        BEGIN, COMMIT, CTID_HINT, Comparison, ExportedSnapshot, PROBE, Partition, ROLLBACK,
        RelationInfo, SessionView, split_by_hash,
    },
    statement::{After, Condition, Order, Projection, Select, Statement, TYPE_TEST},
};
