use super::{
    Filter,
    predicate::{Predicate, Render},
};
use crate::{
    error::{Error, Result},
    sql::field::Field,
};

/// A predicate that cannot be rendered, because its arguments are invalid.
struct Invalid(String);

impl Predicate for Invalid {
    fn render(&self, _: &mut Render<'_>) -> Result<String> {
        Err(Error::config(self.0.clone()))
    }
}

impl Filter {
    /// Returns a filter that fails with `message` when the query is executed.
    pub(super) fn invalid(field: Field, message: impl Into<String>) -> Self {
        Self::leaf(field, Invalid(message.into()))
    }
}
