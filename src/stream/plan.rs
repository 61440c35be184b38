//! The plan of a query: what it selects, and how it is executed.

use bytes::{Bytes, BytesMut};

use super::{settings::StreamSettings, span::QueryText};
use crate::{
    error::Result,
    metrics::QueryLabels,
    protocol::frontend::{self, NO_CLOSES, Query},
    sql::{Condition, Field, Select, Statement},
};

/// A query that is ready to be sent. Everything that can be validated without a server has been
/// validated.
#[derive(Debug)]
pub(crate) struct QueryPlan {
    pub(crate) spec: Box<QuerySpec>,
    /// The whole query. The sessions of a parallel query have others.
    pub(crate) query: Query,
    pub(crate) execution: Execution,
}

/// The specification of a query. It is boxed, because builders and futures are moved.
#[derive(Debug, Clone)]
pub(crate) struct QuerySpec {
    pub(crate) select: Select,
    pub(crate) settings: StreamSettings,
    /// Whether the server may keep the statement for the next use of its text.
    pub(crate) is_persistent: bool,
    pub(crate) has_predicates: bool,
}

/// How a query is executed.
#[derive(Debug)]
pub(crate) enum Execution {
    /// As one query.
    Single,
    /// As one query that is ordered by this field. If its connection is lost, it is resumed.
    Resumable(Field),
    /// By several sessions in one snapshot. `partition_by` is raw SQL; without it, the relation is
    /// divided by its blocks.
    Parallel { parts: usize, partition_by: Option<String> },
}

impl QueryPlan {
    pub(super) fn labels(&self) -> QueryLabels<'_> {
        let conditions = &self.spec.select.conditions;
        let is_sql = |condition: &Condition| matches!(condition, Condition::Sql(_));
        QueryLabels {
            entity: &self.spec.select.entity,
            has_where_sql: conditions.iter().any(is_sql),
            has_filter: !conditions.iter().all(is_sql),
            has_where_rust: self.spec.has_predicates,
            has_order_by: !self.spec.select.order.is_empty(),
        }
    }

    pub(super) fn text(&self) -> QueryText<'_> {
        QueryText {
            entity: &self.spec.select.entity,
            sql: self.query.sql(),
            is_parameterized: self.spec.select.is_parameterized(),
        }
    }

    /// Whether the caller of `execute()` reads the first rows. Otherwise a reader does, which looks
    /// at each row.
    pub(super) fn reads_first_rows(&self) -> bool {
        matches!(self.execution, Execution::Single) && !self.spec.settings.is_tiny()
    }
}

/// Encodes a statement.
pub(crate) fn encode(statement: Statement<'_>) -> Result<Query> {
    let Statement { sql, parameters } = statement;
    for (parameter, number) in parameters.iter().zip(1..) {
        parameter.sent(number)?;
    }
    // Each was checked. Collected, they would take an allocation.
    Query::with(sql, parameters.iter().map(|parameter| parameter.sent(0).ok().flatten()))
}

/// The request that executes a query as the unnamed statement.
pub(super) fn unnamed(query: &Query) -> Result<Bytes> {
    let mut buffer = BytesMut::new();
    let request = query.request(frontend::Statement::Unnamed, NO_CLOSES, None, &mut buffer);
    request.map(|(request, _)| request)
}
