use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use ::metrics::SharedString;

/// The values of a label that users choose: so many different ones, then one for all others. Every
/// value is a series that is kept for as long as the process runs.
pub(super) struct UserLabel(Mutex<BTreeSet<Arc<str>>>);

const MAX_VALUES: usize = 1000;

/// The longest value, in bytes: two identifiers with a dot and their quotes.
const MAX_LENGTH: usize = 133;

impl UserLabel {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(BTreeSet::new()))
    }

    pub(super) fn value(&self, text: &str) -> SharedString {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = values.get(text) {
            return Arc::clone(value).into();
        }
        if values.len() >= MAX_VALUES || text.len() > MAX_LENGTH {
            return SharedString::const_str("other");
        }
        let value: Arc<str> = text.into();
        values.insert(Arc::clone(&value));
        value.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_only_so_many_values() {
        let label = UserLabel::new();
        assert_eq!(&*label.value(&"x".repeat(200)), "other");
        for i in 0..MAX_VALUES {
            assert_eq!(&*label.value(&format!("v_{i}")), format!("v_{i}"));
        }
        assert_eq!(&*label.value("v_more"), "other");
        assert_eq!(&*label.value("v_7"), "v_7");
    }
}
