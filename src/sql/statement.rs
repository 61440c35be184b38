use super::ident::quote_relation;
use crate::error::{Error, Result};

/// The largest LIMIT and OFFSET Postgres knows: they are of type bigint.
const MAX_COUNT: u64 = i64::MAX as u64;

/// `SELECT data FROM {entity} [WHERE ...] [ORDER BY ...] [LIMIT n] [OFFSET m]`
#[derive(Debug, Clone, Default)]
pub(crate) struct Select {
    pub(crate) entity: String,
    /// Trusted SQL conditions, all of which must hold.
    pub(crate) conditions: Vec<String>,
    /// Trusted SQL expressions, the first sorts first.
    pub(crate) order: Vec<String>,
    pub(crate) limit: Option<u64>,
    pub(crate) offset: Option<u64>,
}

impl Select {
    pub(crate) fn to_sql(&self) -> Result<String> {
        let mut sql = format!("SELECT \"data\" FROM {}", quote_relation(&self.entity)?);
        for (i, condition) in self.conditions.iter().enumerate() {
            sql.push_str(if i == 0 { " WHERE (" } else { " AND (" });
            sql.push_str(condition);
            // On a line of its own: a comment at the end of the text must not swallow it.
            sql.push_str(if condition.contains("--") { "\n)" } else { ")" });
        }
        for (i, expression) in self.order.iter().enumerate() {
            sql.push_str(if i == 0 { " ORDER BY " } else { ", " });
            sql.push_str(expression);
            if expression.contains("--") {
                sql.push('\n');
            }
        }
        for (keyword, count) in [("LIMIT", self.limit), ("OFFSET", self.offset)] {
            let Some(count) = count else { continue };
            if count > MAX_COUNT {
                return Err(Error::config(format!(
                    "{keyword} {count} is more than Postgres can count: at most {MAX_COUNT}"
                )));
            }
            sql.push_str(&format!(" {keyword} {count}"));
        }
        Ok(sql)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clauses_come_in_order() {
        let select = Select {
            entity: "app.v_order".into(),
            conditions: vec!["a = $1 or b".into(), "c -- why".into()],
            order: vec!["x desc".into(), "y".into()],
            limit: Some(10),
            offset: Some(0),
        };
        assert_eq!(
            select.to_sql().unwrap(),
            "SELECT \"data\" FROM \"app\".\"v_order\" WHERE (a = $1 or b) AND (c -- why\n) \
             ORDER BY x desc, y LIMIT 10 OFFSET 0"
        );
        let bare = Select { entity: "v".into(), ..Select::default() };
        assert_eq!(bare.to_sql().unwrap(), "SELECT \"data\" FROM \"v\"");
    }

    #[test]
    fn a_limit_beyond_bigint_is_an_error() {
        for (limit, offset) in [(Some(1 << 63), None), (None, Some(u64::MAX))] {
            let select = Select { entity: "v".into(), limit, offset, ..Select::default() };
            assert!(select.to_sql().is_err());
        }
    }
}
