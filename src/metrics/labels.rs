use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use ::metrics::SharedString;

use crate::sync::lock;

/// The values of a label whose text comes from the caller.
///
/// A recorder keeps a series for each value as long as the process runs. So there are at most
/// [`MAX_VALUES`]; all later ones become `other`.
pub(super) struct UserLabel(Mutex<BTreeSet<Arc<str>>>);

const MAX_VALUES: usize = 1000;

/// The maximum length of a value in bytes: two quoted identifiers and a dot.
const MAX_LENGTH: usize = 133;

impl UserLabel {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(BTreeSet::new()))
    }

    pub(super) fn value(&self, text: &str) -> SharedString {
        let mut values = lock(&self.0);
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
    fn user_label_replaces_values_beyond_the_maximum_by_other() {
        let label = UserLabel::new();
        assert_eq!(&*label.value(&"x".repeat(200)), "other");
        for i in 0..MAX_VALUES {
            assert_eq!(&*label.value(&format!("v_{i}")), format!("v_{i}"));
        }
        assert_eq!(&*label.value("v_more"), "other");
        assert_eq!(&*label.value("v_7"), "v_7");
    }
}
