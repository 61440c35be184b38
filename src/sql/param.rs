use std::fmt;

/// A value for one parameter, as text; `None` is NULL.
#[derive(Clone)]
pub struct Param(pub(crate) Option<String>);

/// A value that [`bind`](crate::QueryBuilder::bind) can send in place of `$1`, `$2`, ...
///
/// Values are always sent as parameters, never put into SQL text, in Postgres's text form and
/// without a type: the server takes the type that the SQL around the parameter asks for. Where
/// that is not what is meant, say so in the SQL: `$1::int`.
///
/// Not for users to implement.
pub trait ToParam: sealed::Sealed {
    #[doc(hidden)]
    fn to_param(self) -> Param;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! by_display {
    ($($ty:ty),*) => {$(
        impl sealed::Sealed for $ty {}
        impl ToParam for $ty {
            fn to_param(self) -> Param {
                Param(Some(self.to_string()))
            }
        }
    )*};
}

// Rust writes these as Postgres reads them; floats in the shortest form that reads back to the
// same value, NaN as NaN, infinity as inf.
by_display!(bool, i8, i16, i32, i64, u8, u16, u32, u64, f32, f64, &str);

impl sealed::Sealed for String {}
impl ToParam for String {
    fn to_param(self) -> Param {
        Param(Some(self))
    }
}

/// `None` is NULL. In SQL, `= NULL` matches nothing: ask `is not distinct from $1`.
impl<T: ToParam> sealed::Sealed for Option<T> {}
impl<T: ToParam> ToParam for Option<T> {
    fn to_param(self) -> Param {
        self.map_or(Param(None), T::to_param)
    }
}

/// Values are data of the user's: never shown.
impl fmt::Debug for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Param(..)" } else { "Param(NULL)" })
    }
}
