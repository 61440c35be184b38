//! How the rows are read: by one connection or several, with or without resumptions.

use crate::{
    error::{Error, Result},
    sql::{Field, Order, Select, split_by_hash},
    stream::{Execution, MAX_PARALLEL, MIN_MEMORY, StreamSettings},
};

#[derive(Debug, Default)]
pub(super) struct QueryOptions {
    pub(super) parallel: Option<usize>,
    /// Raw SQL.
    pub(super) partition_by: Option<String>,
    pub(super) resume_by: Option<Field>,
}

impl QueryOptions {
    /// Sorts the query by its key, if it can be resumed.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: the settings contradict each other.
    pub(super) fn apply(&self, select: &mut Select, settings: &StreamSettings) -> Result<()> {
        self.check(select, settings)?;
        if let Some(key) = &self.resume_by {
            select.order.push(Order::Field(key.clone().asc()));
        }
        Ok(())
    }

    /// Returns how the rows are read.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: the expression of `partition_by` or the key of `resume_by` is not valid.
    pub(super) fn execution(self) -> Result<Execution> {
        if let Some(parts) = self.parallel.filter(|parts| *parts > 1) {
            if let Some(expression) = &self.partition_by {
                split_by_hash(expression, parts)?;
            }
            return Ok(Execution::Parallel { parts, partition_by: self.partition_by });
        }
        match self.resume_by {
            Some(key) => key.keys().map(drop).map(|()| Execution::Resumable(key)),
            None => Ok(Execution::Single),
        }
    }

    fn check(&self, select: &Select, settings: &StreamSettings) -> Result<()> {
        let refuse = |message: String| Err(Error::config(message));
        if let Some(parts) = self.parallel.filter(|parts| *parts != 1) {
            if !(2..=MAX_PARALLEL).contains(&parts) {
                return refuse(format!("parallel({parts}): from 1 to {MAX_PARALLEL} connections"));
            }
            let contradiction = [
                (!select.order.is_empty(), "order_by: its rows come in no order"),
                (
                    select.limit.is_some(),
                    "limit or fetch_one: each connection would count for itself",
                ),
                (select.offset.is_some(), "offset: each connection would count for itself"),
                (self.resume_by.is_some(), "resume_by: its rows come in no order"),
            ];
            let least = parts * MIN_MEMORY;
            if let Some(bytes) = settings.max_memory.filter(|bytes| *bytes < least) {
                return refuse(format!(
                    "max_memory({bytes}) is for all connections together: parallel({parts}) needs {least}"
                ));
            }
            if let Some((_, why)) = contradiction.iter().find(|(is_so, _)| *is_so) {
                return refuse(format!("parallel({parts}) does not go with {why}"));
            }
        } else if self.partition_by.is_some() && self.parallel.is_none() {
            return refuse("partition_by() is for parallel(), which was not asked for".into());
        }
        if self.resume_by.is_some() && !select.order.is_empty() {
            return refuse("resume_by() sorts by its key, so it does not go with order_by".into());
        }
        Ok(())
    }
}
