//! How a query is executed: on one connection or several, with or without resumptions.

use crate::{
    error::{Error, Result},
    sql::{After, Field, Operand, Order, Select, split_by_hash},
    stream::{Execution, MAX_PARALLEL, MIN_MEMORY, StreamSettings},
};

/// The maximum depth of the key in a document: that of `serde_json`, which finds it there.
const MAX_RESUME_KEYS: usize = 127;

#[derive(Debug, Default, Clone)]
pub(super) struct QueryOptions {
    pub(super) parallel: Option<usize>,
    /// Raw SQL.
    pub(super) partition_by: Option<String>,
    pub(super) resume_by: Option<Field>,
    pub(super) resume_after: Option<Operand>,
}

impl QueryOptions {
    /// Validates the options and, if the query can be resumed, orders it by its key.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: options cannot be combined.
    pub(super) fn apply(&self, select: &mut Select, settings: &StreamSettings) -> Result<()> {
        self.validate(select, settings)?;
        self.set_position(select)?;
        if let Some(key) = &self.resume_by {
            select.order.push(Order::Field(key.clone().asc()));
        }
        Ok(())
    }

    /// Limits the rows to those after the key of `resume_after`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: the position is not a key, or there is no `resume_by`.
    pub(super) fn set_position(&self, select: &mut Select) -> Result<()> {
        let Some(last) = &self.resume_after else { return Ok(()) };
        let Some(key) = &self.resume_by else {
            return Err(Error::config("resume_after() requires resume_by(), which names the key"));
        };
        key.keys()?;
        select.after = Some(After { key: key.clone(), last: last.as_key()? });
        Ok(())
    }

    /// Returns how the query is executed.
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
            Some(key) if key.keys()?.len() > MAX_RESUME_KEYS => Err(Error::config(format!(
                "the path of resume_by() has {} keys: at most {MAX_RESUME_KEYS} are supported",
                key.keys()?.len()
            ))),
            Some(key) => Ok(Execution::Resumable(key)),
            None => Ok(Execution::Single),
        }
    }

    fn validate(&self, select: &Select, settings: &StreamSettings) -> Result<()> {
        let invalid = |message: String| Err(Error::config(message));
        if let Some(parts) = self.parallel.filter(|parts| *parts != 1) {
            if !(2..=MAX_PARALLEL).contains(&parts) {
                return invalid(format!("invalid parallel({parts}): expected 1 to {MAX_PARALLEL}"));
            }
            let conflicts = [
                (!select.order.is_empty(), "order_by: its rows arrive in no particular order"),
                (
                    select.limit.is_some(),
                    "limit or fetch_one: each connection would count its own rows",
                ),
                (select.offset.is_some(), "offset: each connection would count its own rows"),
                (self.resume_by.is_some(), "resume_by: its rows arrive in no particular order"),
            ];
            let minimum = parts * MIN_MEMORY;
            if let Some(bytes) = settings.max_memory.filter(|bytes| *bytes < minimum) {
                return invalid(format!(
                    "max_memory({bytes}) is too small: parallel({parts}) needs at least {minimum} \
                     bytes for its connections together"
                ));
            }
            if let Some((_, why)) = conflicts.iter().find(|(is_set, _)| *is_set) {
                return invalid(format!("parallel({parts}) cannot be combined with {why}"));
            }
        } else if self.partition_by.is_some() && self.parallel.is_none() {
            return invalid("partition_by() requires parallel()".into());
        }
        if self.resume_by.is_some() && !select.order.is_empty() {
            return invalid(
                "resume_by() orders the query by its key, so it cannot be combined with order_by"
                    .into(),
            );
        }
        Ok(())
    }
}
