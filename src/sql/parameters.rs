use super::param::Param;
use crate::error::{Error, Result};

/// The maximum number of parameters that the protocol allows in one statement.
const MAX_PARAMETERS: usize = u16::MAX as usize;

/// The maximum number of values in one array. The server scans an array from its start to access an
/// element, so longer arrays would be slow.
const ARRAY_LEN: usize = 1000;

/// Collects the parameters of a statement, after those that are bound, while its SQL is built.
#[derive(Default)]
pub(super) struct Parameters {
    /// The number of values that are bound.
    bound: usize,
    list: Vec<Param>,
    /// Sends values in arrays, because a statement cannot have enough parameters.
    uses_arrays: bool,
    /// The array that is being filled, and its index in `list`.
    open_array: Vec<Param>,
    open_index: usize,
}

impl Parameters {
    pub(super) fn new(bound: usize, uses_arrays: bool) -> Self {
        Self { bound, uses_arrays, ..Self::default() }
    }

    /// Adds a value of a type that the server infers, and returns its SQL.
    pub(super) fn add(&mut self, param: Param) -> String {
        self.list.push(param);
        format!("${}", self.len())
    }

    /// Adds a value that the SQL casts or uses as text, and returns its SQL.
    pub(super) fn add_text(&mut self, param: Param) -> String {
        if !self.uses_arrays {
            return self.add(param);
        }
        if self.open_array.is_empty() {
            self.open_index = self.list.len();
            self.list.push(Param::text("")); // replaced by close()
        }
        self.open_array.push(param.into_element());
        let sql =
            format!("(${}::text[])[{}]", self.bound + self.open_index + 1, self.open_array.len());
        if self.open_array.len() == ARRAY_LEN {
            self.close();
        }
        sql
    }

    fn close(&mut self) {
        let elements = std::mem::take(&mut self.open_array);
        if let Some(place) = self.list.get_mut(self.open_index).filter(|_| !elements.is_empty()) {
            *place = Param::array(elements);
        }
    }

    fn len(&self) -> usize {
        self.bound + self.list.len()
    }

    pub(super) fn is_too_long(&self) -> bool {
        self.len() > MAX_PARAMETERS
    }

    /// Returns the parameters that follow those that are bound.
    ///
    /// # Errors
    /// [`Error::Config`]: there are too many parameters.
    pub(super) fn finish(mut self) -> Result<Vec<Param>> {
        self.close();
        if self.is_too_long() {
            return Err(Error::config(format!(
                "the query has {} parameters, but the protocol allows at most {MAX_PARAMETERS}: \
                 use in_() or an array instead of one parameter for each value",
                self.len()
            )));
        }
        Ok(self.list)
    }
}
