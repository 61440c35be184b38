//! How the server finds the statement of a query: by its text, or by the name of a prepared
//! statement.

use tracing::warn;

use super::{
    exchange::{Exchange, late_cancel},
    observer::QueryObserver,
    plan::{Execution, QueryPlan},
};
use crate::{
    connection::{Choice, Connection, SlotHandle, TARGET},
    error::Error,
};

/// Chooses the statement of a query. `is_being_prepared`: whether a request in flight prepares its
/// text.
pub(super) fn choose(
    plan: &QueryPlan,
    slot: &SlotHandle,
    connection: &mut Connection,
    observer: &QueryObserver,
    is_being_prepared: impl FnOnce() -> bool,
) -> Choice {
    let config = slot.config();
    // The columns of a prepared statement may not be described again.
    let is_cached = plan.spec.is_persistent
        && !plan.spec.settings.json_text
        && matches!(plan.execution, Execution::Single)
        && config.statement_cache_capacity() > 0
        && !config.prepared_statements_lost().get()
        && plan.query.has_room_for_name();
    if !is_cached {
        return Choice::Unnamed;
    }
    let (statements, sql) = (&mut connection.statements, plan.query.sql());
    let choice = match statements.is_unconfirmed(sql) && is_being_prepared() {
        true => Choice::Unnamed,
        false => statements.choose(sql),
    };
    let metrics = &observer.metrics;
    match choice {
        Choice::Prepared(_) | Choice::Described(_) => metrics.statement_hit(),
        _ => metrics.statement_missed(),
    }
    metrics.statements_evicted(connection.statements.take_evicted());
    choice
}

/// Returns how to run a query again after an error that is not about the query itself. Nothing was
/// delivered yet.
pub(super) fn retry(
    plan: &QueryPlan,
    slot: &SlotHandle,
    exchange: &mut Exchange,
    (sent, error): (&Choice, &Error),
    observer: &QueryObserver,
) -> Option<Choice> {
    if exchange.is_late_cancel(error) {
        late_cancel(error);
        exchange.is_rerun = true;
        return Some(Choice::Unnamed);
    }
    let statements = &mut exchange.connection.statements;
    let sql = plan.query.sql();
    if matches!(error, Error::InvalidSchema { .. }) {
        statements.forget(sql, true);
    }
    let code = error.sqlstate().filter(|_| !exchange.query.has_bound())?;
    let retry = statements.recover(sql, sent, exchange.query.has_parsed(), *code)?;
    if let Some(reason) = retry.reason {
        observer.metrics.statement_reprepared(reason);
    }
    if retry.statements_lost && slot.config().prepared_statements_lost().set() {
        warn!(
            target: TARGET,
            "the server has lost a prepared statement, so statements are no longer cached: \
             set statement_cache_capacity to 0 if a pooler does not support prepared statements"
        );
    }
    Some(retry.choice)
}
