//! Queries by several connections, at once or one after the other.

use std::sync::Arc;

use super::query;
use crate::{
    error::{Error, Result},
    sql::{Field, Order, Select, split_by_hash},
    stream::{MAX_PARALLEL, MIN_MEMORY, Parallel, Request, Rest, Resume, StreamSettings},
};

#[derive(Debug, Default)]
pub(super) struct Scale {
    pub(super) parallel: Option<usize>,
    /// Trusted SQL.
    pub(super) partition_by: Option<String>,
    pub(super) resume_by: Option<Field>,
}

impl Scale {
    /// The query, sorted by the key if it can be resumed.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: the settings contradict themselves.
    pub(super) fn select(&self, select: &Select, settings: &StreamSettings) -> Result<Select> {
        self.check(select, settings)?;
        let key = self.resume_by.clone().map(|key| Order::Field(key.asc()));
        let order = select.order.iter().cloned().chain(key).collect();
        Ok(Select { order, ..select.clone() })
    }

    /// What is to be asked for to have the rows of such a [`select`](Self::select).
    pub(super) fn request(&self, select: &Select) -> Result<Request> {
        if let Some(parts) = self.parallel.filter(|parts| *parts > 1) {
            let (select, partition_by) = (select.clone(), self.partition_by.clone());
            if let Some(expression) = &partition_by {
                split_by_hash(expression, parts)?;
            }
            return Ok(Request::Parallel(Parallel { select, parts, partition_by }));
        }
        let resume = self.resume_by.as_ref().map(|key| resume(select.clone(), key)).transpose()?;
        Ok(Request::Single { query: query(&select.rows()?)?, resume })
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

fn resume(select: Select, key: &Field) -> Result<Resume> {
    let path = key.keys()?.to_vec();
    let key = key.clone();
    let rest = move |last: Rest<'_>, rows| {
        let rest = match last {
            Rest::Behind(last) => select.behind(&key, last, rows),
            Rest::WithoutKey => select.without(&key, rows),
        };
        query(&rest.rows()?)
    };
    Ok(Resume { path, rest: Arc::new(rest) })
}
