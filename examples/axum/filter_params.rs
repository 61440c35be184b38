//! The query string of a request as typed filters, whose values are parameters.

use std::collections::HashSet;

use fraiseql_wire::{Filter, QueryBuilder, RawJson, field};

#[derive(Debug, Default)]
pub struct FilterParams {
    filters: Vec<Filter>,
    limit: Option<u64>,
}

impl FilterParams {
    /// Parses the parameters. The error names the invalid one.
    pub fn parse(parameters: Vec<(String, String)>) -> Result<Self, String> {
        let mut params = Self::default();
        let mut seen = HashSet::new();
        let (mut least, mut most) = (f64::NEG_INFINITY, f64::INFINITY);
        for (name, value) in parameters {
            let filter = match name.as_str() {
                "status" | "customer.name" | "customer.city" => {
                    field(&name).eq(text(&name, value)?)
                }
                "tag" => field("tags").has_key(&text(&name, value)?),
                "min_total" => {
                    least = number(&name, &value)?;
                    field("total").gte(least)
                }
                "max_total" => {
                    most = number(&name, &value)?;
                    field("total").lte(most)
                }
                "limit" => {
                    params.limit = Some(whole(&name, &value)?);
                    Filter::all([])
                }
                _ => {
                    return Err(format!(
                        "unknown parameter {name:?}: expected status, customer.name, customer.city, \
                         tag, min_total, max_total or limit"
                    ));
                }
            };
            params.filters.push(filter);
            if !seen.insert(name.clone()) {
                return Err(format!("{name} is given more than once"));
            }
        }
        if least > most {
            return Err(format!("min_total is {least}, above max_total, which is {most}"));
        }
        Ok(params)
    }

    pub fn apply(self, query: QueryBuilder<RawJson>) -> QueryBuilder<RawJson> {
        let query = self.filters.into_iter().fold(query, QueryBuilder::filter);
        match self.limit {
            Some(limit) => query.limit(limit),
            None => query,
        }
    }
}

/// Postgres text cannot contain NUL.
fn text(name: &str, value: String) -> Result<String, String> {
    match value.contains('\0') {
        true => Err(format!("{name} contains a NUL character")),
        false => Ok(value),
    }
}

fn number(name: &str, value: &str) -> Result<f64, String> {
    match value.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(format!("invalid {name} {value:?}: expected a number, such as 99.50")),
    }
}

/// At most 32 bits: Postgres allows up to 2^63.
fn whole(name: &str, value: &str) -> Result<u64, String> {
    match value.parse::<u32>() {
        Ok(number) => Ok(number.into()),
        Err(_) => {
            Err(format!("invalid {name} {value:?}: expected a whole number from 0 to {}", u32::MAX))
        }
    }
}
