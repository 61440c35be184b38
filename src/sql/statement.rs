use std::{borrow::Cow, collections::BTreeMap, fmt::Write};

use smallvec::SmallVec;

use super::{
    field::{Field, literal},
    filter::{Filter, SqlContext},
    ident::{push_relation, quote_name},
    order::OrderBy,
    param::Param,
    parameters::Parameters,
    partition::Partition,
    placeholders::highest_parameter,
};
use crate::error::{Error, Result};

/// The maximum LIMIT and OFFSET in Postgres, where they are of type bigint.
const MAX_COUNT: u64 = i64::MAX as u64;

const DEFAULT_COLUMN: &str = "data";

/// Appended to a document to check its type: only `json` and `jsonb` have this operator.
pub(crate) const TYPE_TEST: &str = "#> '{}' AS \"data\"";

/// `SELECT data FROM {entity} [WHERE ...] [ORDER BY ...] [LIMIT n] [OFFSET m]`
#[derive(Debug, Clone)]
pub(crate) struct Select {
    pub(crate) entity: String,
    /// The JSON column.
    pub(crate) column: Cow<'static, str>,
    pub(crate) projection: Projection,
    /// Whether the column may be text that contains JSON. Nothing in it can then be selected,
    /// compared or sorted by the server.
    pub(crate) json_text: bool,
    /// Joined with AND. One is usual, as is one parameter: it takes no allocation.
    pub(crate) conditions: SmallVec<[Condition; 1]>,
    /// The most significant first.
    pub(crate) order: Vec<Order>,
    pub(crate) limit: Option<u64>,
    pub(crate) offset: Option<u64>,
    /// The values of `$1`, `$2`, ... in raw SQL.
    pub(crate) parameters: SmallVec<[Param; 1]>,
    /// The position after which the rows begin.
    pub(crate) after: Option<After>,
    /// The rows to which a session of a parallel query is limited.
    pub(crate) partition: Option<Partition>,
}

/// The value that is selected for each row.
#[derive(Debug, Clone)]
pub(crate) enum Projection {
    /// The JSON column, unchanged.
    Document,
    /// An expression in raw SQL.
    Sql(String),
    /// An object that contains only these fields.
    Fields(Vec<Field>),
}

/// A position in the order of a key: rows whose key is greater than `last` are after it.
#[derive(Debug, Clone)]
pub(crate) struct After {
    pub(crate) key: Field,
    /// A JSON value. It is compared as `jsonb`, like [`OrderBy`] without a collation.
    pub(crate) last: String,
}

#[derive(Debug, Clone)]
pub(crate) enum Condition {
    /// Raw SQL.
    Sql(String),
    Filter(Filter),
    /// The document has no such field. These rows sort last, but the field is not greater than any
    /// value.
    WithoutKey(Field),
    /// The field is equal to this JSON value.
    WithKey(Field, String),
}

#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// Raw SQL.
    Sql(String),
    Field(OrderBy),
}

/// A statement and its parameters.
#[derive(Debug, Clone)]
pub(crate) struct Statement<'a> {
    pub(crate) sql: String,
    pub(crate) parameters: Cow<'a, [Param]>,
}

impl Select {
    pub(crate) fn new(entity: &str) -> Self {
        Self {
            entity: entity.to_owned(),
            column: Cow::Borrowed(DEFAULT_COLUMN),
            projection: Projection::Document,
            json_text: false,
            conditions: SmallVec::new(),
            order: Vec::new(),
            limit: None,
            offset: None,
            parameters: SmallVec::new(),
            after: None,
            partition: None,
        }
    }

    /// Whether the text of the statement can be shown in traces, because it should contain no
    /// values. Raw SQL can contain values as literals. If values are bound to it, it is assumed to
    /// contain no others.
    pub(crate) fn is_parameterized(&self) -> bool {
        let has_raw_sql = matches!(self.projection, Projection::Sql(_))
            || self.conditions.iter().any(|condition| matches!(condition, Condition::Sql(_)))
            || self.order.iter().any(|order| matches!(order, Order::Sql(_)));
        !has_raw_sql || !self.parameters.is_empty()
    }

    /// Returns the rest of the query after `rows` rows. `last` is the key of the last one, as JSON.
    pub(crate) fn after(&self, key: &Field, last: &str, rows: u64) -> Self {
        let mut rest = self.clone();
        rest.after = Some(After { key: key.clone(), last: last.to_owned() });
        rest.limit = self.limit.map(|limit| limit.saturating_sub(rows));
        rest.offset = None;
        rest
    }

    /// Returns a query for at most one of the rows without the key, if the rest of the query after
    /// `rows` rows includes them.
    pub(crate) fn without_key(&self, key: &Field, rows: u64) -> Self {
        let mut rest = self.clone();
        rest.after = None;
        rest.conditions.push(Condition::WithoutKey(key.clone()));
        rest.limit = Some(self.limit.map_or(1, |limit| limit.saturating_sub(rows).min(1)));
        rest.offset = None;
        rest
    }

    /// Returns a query for one of the rows with this key, if there are several.
    pub(crate) fn repeated_key(&self, key: &Field, value: &str) -> Self {
        let mut rest = self.clone();
        rest.after = None;
        rest.conditions.push(Condition::WithKey(key.clone(), value.to_owned()));
        (rest.limit, rest.offset) = (Some(1), Some(1));
        rest
    }

    /// Returns the query for the rows.
    pub(crate) fn rows(&self) -> Result<Statement<'_>> {
        self.check_parameters()?;
        let document = self.document()?;
        let projection = match &self.projection {
            Projection::Document => return self.select(&document, &document),
            Projection::Sql(sql) => format!("{} AS \"data\"", in_parentheses(sql)),
            Projection::Fields(fields) => {
                format!("{} AS \"data\"", build_object(fields, &document)?)
            }
        };
        self.select(&projection, &document)
    }

    /// Returns the query for the number of rows.
    pub(crate) fn count(&self) -> Result<Statement<'_>> {
        if self.json_text {
            return self.aggregate("CAST(count(*) AS varchar)");
        }
        self.aggregate("to_jsonb(count(*))")
    }

    /// Returns the query for whether at least one row exists.
    pub(crate) fn exists(&self) -> Result<Statement<'_>> {
        let Statement { sql, parameters } = self.subquery()?;
        // DataFusion supports no EXISTS here.
        let sql = if self.json_text {
            format!(
                "SELECT CAST(count(*) > 0 AS varchar) AS \"data\" FROM (SELECT 1 FROM ({sql}) AS \
                 \"rows\" LIMIT 1) AS \"first\""
            )
        } else {
            format!("SELECT to_jsonb(EXISTS ({sql})) AS \"data\"")
        };
        Ok(Statement { sql, parameters })
    }

    /// Returns the query for the plan. With `analyze`, the server also runs the query.
    pub(crate) fn explain(&self, analyze: bool) -> Result<Statement<'_>> {
        let Statement { sql, parameters } = self.rows()?;
        let analyze = if analyze { ", ANALYZE" } else { "" };
        Ok(Statement { sql: format!("EXPLAIN (FORMAT JSON{analyze}) {sql}"), parameters })
    }

    fn aggregate(&self, aggregate: &str) -> Result<Statement<'_>> {
        let Statement { sql, parameters } = self.subquery()?;
        let sql = format!("SELECT {aggregate} AS \"data\" FROM ({sql}) AS \"rows\"");
        Ok(Statement { sql, parameters })
    }

    /// Returns the rows for an aggregate, without their documents. They are sorted only if the
    /// order decides which rows they are.
    fn subquery(&self) -> Result<Statement<'_>> {
        self.check_parameters()?;
        let document = self.document()?;
        let bounded = self.limit.is_some() || self.offset.is_some();
        let ordered = self.order.iter().any(|o| matches!(o, Order::Sql(_)));
        // A sort order in raw SQL can contain parameters, and the server requires all of them.
        let plain = match (bounded || ordered, &self.projection) {
            (false, Projection::Document | Projection::Fields(_)) => {
                Self { order: Vec::new(), ..self.clone() }
            }
            _ => self.clone(),
        };
        let projection = match &self.projection {
            Projection::Sql(sql) => Cow::Owned(in_parentheses(sql)),
            _ => document.clone(),
        };
        // The server checks the projection but does not compute it. So a missing column, or one of
        // another type, is an error as in the query itself.
        let projection = if self.json_text {
            format!("{projection} AS \"data\"")
        } else {
            format!("{projection} {TYPE_TEST}")
        };
        let Statement { sql, parameters } = plain.select(&projection, &document)?;
        Ok(Statement { sql, parameters: Cow::Owned(parameters.into_owned()) })
    }

    fn document(&self) -> Result<Cow<'static, str>> {
        if let Cow::Borrowed(DEFAULT_COLUMN) = self.column {
            return Ok(Cow::Borrowed("\"data\""));
        }
        quote_name(&self.column)
            .map(Cow::Owned)
            .map_err(|why| Error::config(format!("the column {:?}: {why}", self.column)))
    }

    fn select(&self, projection: &str, document: &str) -> Result<Statement<'_>> {
        let bound = self.parameters.as_slice();
        let mut parameters = Parameters::new(bound.len(), false);
        let mut sql = self.to_sql(projection, document, &mut parameters)?;
        if parameters.is_too_long() {
            parameters = Parameters::new(bound.len(), true);
            sql = self.to_sql(projection, document, &mut parameters)?;
        }
        let added = parameters.finish()?;
        let parameters = match (bound, added) {
            (bound, added) if added.is_empty() => Cow::Borrowed(bound),
            ([], added) => Cow::Owned(added),
            (bound, added) => Cow::Owned([bound, &added].concat()),
        };
        Ok(Statement { sql, parameters })
    }

    fn to_sql(
        &self,
        projection: &str,
        document: &str,
        parameters: &mut Parameters,
    ) -> Result<String> {
        if self.json_text {
            self.check_json_text(document)?;
        }
        // Few texts are longer.
        let mut sql = String::with_capacity(256);
        sql.push_str("SELECT ");
        sql.push_str(projection);
        sql.push_str(" FROM ");
        push_relation(&self.entity, &mut sql)?;
        let mut keyword = " WHERE ";
        let is_json = !matches!(self.projection, Projection::Sql(_));
        for condition in &self.conditions {
            sql.push_str(std::mem::replace(&mut keyword, " AND "));
            match condition {
                Condition::Sql(condition) => push_in_parentheses(condition, &mut sql),
                Condition::Filter(filter) => {
                    let mut target = SqlContext { document, is_json, parameters };
                    sql.push_str(&filter.to_sql(&mut target)?);
                }
                Condition::WithoutKey(key) => {
                    sql.push_str(&format!("{} IS NULL", key.json(document)?));
                }
                Condition::WithKey(key, value) => {
                    let value = parameters.add(Param::text(value));
                    sql.push_str(&format!("{} = {value}::jsonb", key.json(document)?));
                }
            }
        }
        if let Some(After { key, last }) = &self.after {
            sql.push_str(std::mem::replace(&mut keyword, " AND "));
            let last = parameters.add(Param::text(last));
            sql.push_str(&format!("{} > {last}::jsonb", key.json(document)?));
        }
        if let Some(partition) = &self.partition {
            sql.push_str(keyword);
            sql.push_str(&partition.to_sql());
        }
        for (i, expression) in self.order.iter().enumerate() {
            sql.push_str(if i == 0 { " ORDER BY " } else { ", " });
            match expression {
                Order::Sql(expression) => {
                    sql.push_str(expression);
                    if has_comment(expression) {
                        sql.push('\n');
                    }
                }
                Order::Field(order) => sql.push_str(&order.to_sql(document, is_json)?),
            }
        }
        for (keyword, count) in [("LIMIT", self.limit), ("OFFSET", self.offset)] {
            let Some(count) = count else { continue };
            if count > MAX_COUNT {
                return Err(Error::config(format!(
                    "{keyword} {count} is out of range: the maximum is {MAX_COUNT}"
                )));
            }
            // A String accepts everything.
            let _ = write!(sql, " {keyword} {count}");
        }
        Ok(sql)
    }

    /// Checks that the server does not have to look into a document that may be text.
    fn check_json_text(&self, document: &str) -> Result<()> {
        let found = if matches!(self.projection, Projection::Fields(_)) {
            "select_fields()"
        } else if self.after.is_some() {
            "resume_by()"
        } else if self.conditions.iter().any(|condition| match condition {
            Condition::Sql(_) => false,
            Condition::Filter(filter) => filter.reads(document),
            Condition::WithoutKey(_) | Condition::WithKey(..) => true,
        }) {
            "a filter on a field of the document"
        } else if self
            .order
            .iter()
            .any(|order| matches!(order, Order::Field(by) if by.reads(document)))
        {
            "a sort order (order_by_field() or resume_by()) by a field of the document"
        } else {
            return Ok(());
        };
        Err(Error::config(format!(
            "json_text(true) cannot be combined with {found}, because the server does not parse \
             text: use where_sql() or where_rust() and order_by(), or a view with a json column"
        )))
    }

    /// Checks that as many values are bound as the raw SQL has parameters. The parameters of typed
    /// filters follow them, so a missing value would be replaced by the value of a filter.
    fn check_parameters(&self) -> Result<()> {
        let conditions = self.conditions.iter().filter_map(|c| match c {
            Condition::Sql(sql) => Some(sql),
            Condition::Filter(_) | Condition::WithoutKey(_) | Condition::WithKey(..) => None,
        });
        let order = self.order.iter().filter_map(|o| match o {
            Order::Sql(sql) => Some(sql),
            Order::Field(_) => None,
        });
        let projection = match &self.projection {
            Projection::Sql(sql) => Some(sql),
            _ => None,
        };
        let mut highest = 0;
        for sql in conditions.chain(order).chain(projection) {
            highest = highest.max(highest_parameter(sql)?);
        }
        let bound = self.parameters.len();
        if highest == bound {
            return Ok(());
        }
        Err(Error::config(format!(
            "the SQL uses parameters up to ${highest}, but {bound} values are bound: call bind() \
             once for each parameter"
        )))
    }
}

/// Adds parentheses. After a comment, the closing one is on a new line, so that it is not a part of
/// the comment.
fn in_parentheses(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 3);
    push_in_parentheses(sql, &mut out);
    out
}

/// Whether the text may end in a comment.
fn has_comment(sql: &str) -> bool {
    sql.as_bytes().contains(&b'-') && sql.contains("--")
}

fn push_in_parentheses(sql: &str, out: &mut String) {
    out.push('(');
    out.push_str(sql);
    out.push_str(if has_comment(sql) { "\n)" } else { ")" });
}

/// Returns an expression for an object that contains the fields at their paths. Missing fields are
/// null.
fn build_object(fields: &[Field], document: &str) -> Result<String> {
    let mut root = FieldTree::default();
    for field in fields {
        root.add(field.keys()?)?;
    }
    if root.0.is_empty() {
        return Err(Error::config("select_fields() needs at least one field"));
    }
    root.to_sql(document)
}

/// A tree of keys. A node without children is a selected field.
#[derive(Default)]
struct FieldTree<'a>(BTreeMap<&'a str, FieldTree<'a>>);

impl<'a> FieldTree<'a> {
    fn add(&mut self, keys: &'a [String]) -> Result<()> {
        let Some((key, rest)) = keys.split_first() else { return Ok(()) };
        let is_new = !self.0.contains_key(key.as_str());
        let child = self.0.entry(key).or_default();
        // A field and a field inside it cannot both be selected.
        if !is_new && (rest.is_empty() != child.0.is_empty()) {
            return Err(Error::config(format!(
                "select_fields() has both {key:?} and a field inside it: remove one of them"
            )));
        }
        child.add(rest)
    }

    fn to_sql(&self, value: &str) -> Result<String> {
        let mut parts = Vec::new();
        for (key, child) in &self.0 {
            let key = literal(key)?;
            let value = format!("{value}->{key}");
            let value = if child.0.is_empty() { value } else { child.to_sql(&value)? };
            parts.push(format!("{key}, {value}"));
        }
        // A function has at most 100 arguments, which is 50 fields.
        let mut objects: Vec<_> =
            parts.chunks(50).map(|p| format!("jsonb_build_object({})", p.join(", "))).collect();
        // Joined in pairs, because the server would recurse once for each object of a chain.
        while objects.len() > 1 {
            objects = objects
                .chunks(2)
                .map(|pair| match pair {
                    [one] => one.clone(),
                    pair => format!("({})", pair.join(" || ")),
                })
                .collect();
        }
        Ok(objects.pop().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::sql::{field, param::ToParam};

    fn sql(select: &Select) -> String {
        select.rows().unwrap().sql
    }

    #[test]
    fn rows_has_its_clauses_in_order() {
        let select = Select {
            conditions: smallvec![
                Condition::Sql("a = $1 or b".into()),
                Condition::Filter(field("x").eq(1)),
                Condition::Sql("c -- why".into()),
            ],
            order: vec![Order::Sql("x desc".into()), Order::Field(field("y").desc().nulls_last())],
            limit: Some(10),
            offset: Some(0),
            parameters: smallvec!["a".to_param()],
            ..Select::new("app.v_order")
        };
        let statement = select.rows().unwrap();
        assert_eq!(
            statement.sql,
            "SELECT \"data\" FROM \"app\".\"v_order\" WHERE (a = $1 or b) AND \
             (((\"data\"->'x')::jsonb) = $2::jsonb \
             AND jsonb_typeof((\"data\"->'x')::jsonb) = 'number') \
             AND (c -- why\n) \
             ORDER BY x desc, ((\"data\"->'y')::jsonb) DESC NULLS LAST LIMIT 10 OFFSET 0"
        );
        let sent: Vec<_> = statement.parameters.iter().map(|p| p.sent(1).unwrap()).collect();
        assert_eq!(sent, [Some("a"), Some("1")]);
        assert_eq!(sql(&Select::new("v")), "SELECT \"data\" FROM \"v\"");
    }

    #[test]
    fn selected_fields_keep_their_paths() {
        let fields = ["id", "address.city", "address.zip"].map(field).to_vec();
        let select = Select { projection: Projection::Fields(fields), ..Select::new("v") };
        assert_eq!(
            sql(&select),
            "SELECT jsonb_build_object('address', jsonb_build_object('city', \
             \"data\"->'address'->'city', 'zip', \"data\"->'address'->'zip'), 'id', \
             \"data\"->'id') AS \
             \"data\" FROM \"v\""
        );
        for fields in [vec!["a", "a.b"], vec!["a.b", "a"], vec![], vec![""]] {
            let fields = fields.into_iter().map(field).collect();
            let select = Select { projection: Projection::Fields(fields), ..Select::new("v") };
            assert!(select.rows().is_err());
        }
    }

    #[test]
    fn json_text_rejects_what_reads_the_document_on_the_server() {
        let text = Select { json_text: true, ..Select::new("v") };
        let filter = |filter: Filter| smallvec![Condition::Filter(filter)];
        for select in [
            text.clone(),
            Select {
                conditions: smallvec![Condition::Sql("data like '%x%'".into())],
                ..text.clone()
            },
            Select { conditions: filter(Field::column("id").eq(1)), ..text.clone() },
            Select { order: vec![Order::Field(Field::column("id").desc())], ..text.clone() },
            Select { order: vec![Order::Sql("data".into())], ..text.clone() },
        ] {
            for statement in [select.rows(), select.count(), select.exists()] {
                let sql = statement.unwrap().sql;
                assert!(!sql.contains("json") && !sql.contains('#'), "{sql}");
            }
        }
        let id = || field("id");
        for select in [
            Select { projection: Projection::Fields(vec![id()]), ..text.clone() },
            Select { conditions: filter(id().eq(1).or(Field::column("id").eq(1))), ..text.clone() },
            Select { conditions: filter(!Field::column("data").eq("a")), ..text.clone() },
            Select { order: vec![Order::Field(id().asc())], ..text.clone() },
            Select { after: Some(After { key: id(), last: "1".into() }), ..text.clone() },
        ] {
            // Without a limit, they need no order.
            let rows = [select.rows()];
            let counts = [select.count(), select.exists()];
            let counts = counts.into_iter().filter(|_| select.order.is_empty());
            for statement in rows.into_iter().chain(counts) {
                let error = statement.unwrap_err().to_string();
                assert!(error.contains("json_text(true) cannot be combined"), "{error}");
            }
            assert!(Select { json_text: false, ..select }.rows().is_ok());
        }
    }

    #[test]
    fn limit_and_offset_beyond_bigint_are_errors() {
        for (limit, offset) in [(Some(1 << 63), None), (None, Some(u64::MAX))] {
            assert!(Select { limit, offset, ..Select::new("v") }.rows().is_err());
        }
        let largest = Select { limit: Some((1 << 63) - 1), ..Select::new("v") };
        assert!(sql(&largest).ends_with(" LIMIT 9223372036854775807"));
    }

    /// The server does no work that the result does not depend on.
    #[test]
    fn count_and_exists_omit_documents_and_order() {
        let order = vec![Order::Field(field("x").asc())];
        let select = Select { order, ..Select::new("v") };
        // The server checks the type of an unused expression and does not compute it.
        let inner = "SELECT \"data\" #> '{}' AS \"data\" FROM \"v\"";
        let sorted = "ORDER BY ((\"data\"->'x')::jsonb)";
        for (select, inner) in [
            (select.clone(), inner.to_owned()),
            // The order decides which rows they are.
            (Select { limit: Some(5), ..select.clone() }, format!("{inner} {sorted} LIMIT 5")),
            (Select { offset: Some(5), ..select.clone() }, format!("{inner} {sorted} OFFSET 5")),
        ] {
            assert_eq!(
                select.count().unwrap().sql,
                format!("SELECT to_jsonb(count(*)) AS \"data\" FROM ({inner}) AS \"rows\"")
            );
            assert_eq!(
                select.exists().unwrap().sql,
                format!("SELECT to_jsonb(EXISTS ({inner})) AS \"data\"")
            );
        }
    }

    /// The server rejects a statement that does not use all of its parameters.
    #[test]
    fn count_and_exists_use_every_parameter() {
        for select in [
            Select { projection: Projection::Sql("f($1)".into()), ..Select::new("v") },
            Select { order: vec![Order::Sql("f($1)".into())], ..Select::new("v") },
        ] {
            let select = Select { parameters: smallvec![1.to_param()], ..select };
            for statement in [select.rows(), select.count(), select.exists()] {
                let sql = statement.unwrap().sql;
                assert!(sql.contains("f($1)"), "{sql}");
            }
        }
    }

    /// Raw SQL without bound values can contain values as literals.
    #[test]
    fn is_parameterized_is_false_for_raw_sql_without_bound_values() {
        let literal = || "a = 'planted'".to_owned();
        let plain = Select::new("v");
        let filtered = Condition::Filter(field("a").eq("planted"));
        for select in [
            plain.clone(),
            Select { conditions: smallvec![filtered], ..plain.clone() },
            Select { order: vec![Order::Field(field("a").asc())], ..plain.clone() },
        ] {
            assert!(select.is_parameterized(), "{select:?}");
        }
        for select in [
            Select { conditions: smallvec![Condition::Sql(literal())], ..plain.clone() },
            Select { order: vec![Order::Sql(literal())], ..plain.clone() },
            Select { projection: Projection::Sql(literal()), ..plain.clone() },
        ] {
            assert!(!select.is_parameterized(), "{select:?}");
            assert!(Select { parameters: smallvec![1.to_param()], ..select }.is_parameterized());
        }
    }

    #[test]
    fn number_of_bound_values_must_equal_the_highest_parameter() {
        for (text, values) in [("a = $1", 0), ("a = $2", 1), ("a", 1), ("a = '$1'", 1)] {
            let select = Select {
                conditions: smallvec![Condition::Sql(text.into())],
                parameters: smallvec![1.to_param(); values],
                ..Select::new("v")
            };
            let error = select.rows().unwrap_err().to_string();
            assert!(error.contains("bind()"), "{error}");
        }
    }
}
