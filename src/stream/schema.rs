//! The column that a query must return.

use crate::{
    connection::violation,
    error::{Error, Result},
    protocol::backend::{Column, Format},
};

const JSON: u32 = 114;
const JSONB: u32 = 3802;
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;

/// Checks that a result has exactly one column, json or jsonb, as text. With `json_text`, it may
/// also be text or varchar.
pub(super) fn check_columns(columns: &[Column], json_text: bool) -> Result<()> {
    match columns {
        [Column { type_oid: JSON | JSONB, format: Format::Text, .. }] => Ok(()),
        [Column { type_oid: TEXT | VARCHAR, format: Format::Text, .. }] if json_text => Ok(()),
        [Column { type_oid: JSON | JSONB, .. }] => {
            Err(violation("RowDescription", "unexpected binary format of a column: expected text"))
        }
        [] => Err(no_columns()),
        [only] => Err(Error::InvalidSchema {
            found: format!(
                "{}; make it json or jsonb, for example with to_jsonb() in the view{}",
                describe(only),
                match only.type_oid {
                    TEXT | VARCHAR => ", or call json_text(true) if it contains JSON",
                    _ => "",
                }
            ),
        }),
        several => {
            // The first few are enough to recognize the query.
            let mut shown: Vec<String> = several.iter().take(4).map(describe).collect();
            if several.len() > shown.len() {
                shown.push("...".into());
            }
            Err(Error::InvalidSchema {
                found: format!(
                    "{} columns ({}); make one document of them, for example with \
                     jsonb_build_object() in the view",
                    several.len(),
                    shown.join(", ")
                ),
            })
        }
    }
}

fn no_columns() -> Error {
    Error::InvalidSchema { found: "no column".into() }
}

fn describe(column: &Column) -> String {
    // Postgres names have at most 63 bytes; a hostile server may send more.
    let name: String = column.name.chars().take(63).collect();
    format!("{name:?} of type {}", type_name(column.type_oid))
}

/// Returns the name of a common type, from `pg_type.dat`, or the OID of any other.
fn type_name(oid: u32) -> String {
    let name = match oid {
        16 => "boolean",
        17 => "bytea",
        20 => "bigint",
        21 => "smallint",
        23 => "integer",
        TEXT => "text",
        JSON => "json",
        142 => "xml",
        700 => "real",
        701 => "double precision",
        1042 => "char",
        VARCHAR => "varchar",
        1082 => "date",
        1114 => "timestamp",
        1184 => "timestamptz",
        1700 => "numeric",
        2249 => "record",
        2950 => "uuid",
        JSONB => "jsonb",
        oid => return format!("with oid {oid}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_oid: u32) -> Column {
        Column { name: name.into(), type_oid, format: Format::Text }
    }

    #[test]
    fn check_columns_accepts_exactly_one_json_column() {
        assert!(check_columns(&[column("data", JSON)], false).is_ok());
        assert!(check_columns(&[column("anything", JSONB)], false).is_ok());
        let found = |columns: &[Column]| check_columns(columns, false).unwrap_err().to_string();
        assert!(found(&[column("data", 25)]).contains("\"data\" of type text"));
        assert!(found(&[column("data", 99_999)]).contains("oid 99999"));
        let two = found(&[column("id", 20), column("data", JSONB)]);
        assert!(two.contains("2 columns (\"id\" of type bigint, \"data\" of type jsonb)"), "{two}");
        assert!(found(&vec![column("x", 23); 1000]).contains("..."));
        let binary = Column { format: Format::Other, ..column("data", JSONB) };
        assert!(check_columns(&[binary], true).is_err());
    }

    #[test]
    fn json_text_accepts_one_column_of_type_text_or_varchar() {
        for oid in [TEXT, VARCHAR, JSON, JSONB] {
            let column = column("data", oid);
            assert!(check_columns(std::slice::from_ref(&column), true).is_ok());
            assert!(check_columns(&[column.clone(), column.clone()], true).is_err());
            let binary = Column { format: Format::Other, ..column };
            assert!(check_columns(&[binary], true).is_err());
        }
        for oid in [16, 17, 20, 142, 1042, 99_999] {
            let error = check_columns(&[column("data", oid)], true).unwrap_err().to_string();
            assert!(!error.contains("json_text"), "{error}");
        }
        let error = check_columns(&[column("data", TEXT)], false).unwrap_err().to_string();
        assert!(error.contains("json_text(true)"), "{error}");
    }
}
