//! The query builder, and the execution of what it has built.

mod builder;
mod execute;
mod options;

pub use self::builder::QueryBuilder;
