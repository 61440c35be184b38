//! Vector distances of the extension `vector` (pgvector).

use super::{
    Filter,
    predicate::{ARRAY, Predicate, Render, STRING},
};
use crate::{
    error::Result,
    sql::{
        field::Field,
        param::{Param, ToParam},
    },
};

/// The metric by which a distance is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DistanceMetric {
    L2,
    Cosine,
    InnerProduct,
    L1,
    Hamming,
    Jaccard,
}

impl DistanceMetric {
    fn sign(self) -> &'static str {
        match self {
            Self::L2 => "<->",
            Self::Cosine => "<=>",
            Self::InnerProduct => "<#>",
            Self::L1 => "<+>",
            Self::Hamming => "<~>",
            Self::Jaccard => "<%>",
        }
    }
}

/// # Vectors
///
/// These operators need the extension [`vector`](https://github.com/pgvector/pgvector). They apply
/// to arrays of numbers of the same length as the given vector. `hamming_distance` and
/// `jaccard_distance` apply to strings of `0` and `1` of the same length as the given one. For any
/// other field, the result is unknown. Columns must be of type `vector` or `bit`. A threshold of
/// NaN is an error.
///
/// | operator | SQL, where `a` is `CASE WHEN ... THEN ("data"->'a')::text::vector END` |
/// |---|---|
/// | `l2_distance`, `cosine_distance`, `l1_distance` | `a <-> $1::vector < $2`, `<=>`, `<+>` |
/// | `inner_product` | `a <#> $1::vector < $2`: the *negative* inner product, as in pgvector |
/// | `hamming_distance`, `jaccard_distance` | `a <~> $1::varbit < $2`, `<%>` |
///
/// No index serves a threshold: pgvector's indexes serve only ordering by a distance.
///
/// In a column of type `json`, some documents make the query fail: see
/// [`Filter`](crate::Filter#columns-of-type-json).
impl Field {
    /// Matches if the Euclidean distance is less than `below`.
    pub fn l2_distance(self, vector: impl IntoIterator<Item = f32>, below: f64) -> Filter {
        self.distance(DistanceMetric::L2, vector, below)
    }

    /// Matches if the cosine distance is less than `below`.
    pub fn cosine_distance(self, vector: impl IntoIterator<Item = f32>, below: f64) -> Filter {
        self.distance(DistanceMetric::Cosine, vector, below)
    }

    /// Matches if the negative inner product is less than `below`.
    pub fn inner_product(self, vector: impl IntoIterator<Item = f32>, below: f64) -> Filter {
        self.distance(DistanceMetric::InnerProduct, vector, below)
    }

    /// Matches if the taxicab (Manhattan) distance is less than `below`.
    pub fn l1_distance(self, vector: impl IntoIterator<Item = f32>, below: f64) -> Filter {
        self.distance(DistanceMetric::L1, vector, below)
    }

    /// Matches if the number of bits that differ is less than `below`.
    pub fn hamming_distance(self, bits: &str, below: f64) -> Filter {
        self.bit_distance(DistanceMetric::Hamming, bits, below)
    }

    /// Matches if the Jaccard distance of the bits is less than `below`.
    pub fn jaccard_distance(self, bits: &str, below: f64) -> Filter {
        self.bit_distance(DistanceMetric::Jaccard, bits, below)
    }

    fn distance(
        self,
        metric: DistanceMetric,
        vector: impl IntoIterator<Item = f32>,
        below: f64,
    ) -> Filter {
        let numbers: Vec<f32> = vector.into_iter().collect();
        if numbers.is_empty() || !numbers.iter().all(|n| n.is_finite()) {
            return Filter::invalid(
                self,
                "a vector is empty or contains a number that is not finite",
            );
        }
        let texts: Vec<_> = numbers.iter().map(f32::to_string).collect();
        let vector = format!("[{}]", texts.join(","));
        self.within(Distance { metric, vector, size: numbers.len(), below })
    }

    fn bit_distance(self, metric: DistanceMetric, bits: &str, below: f64) -> Filter {
        if bits.is_empty() || !bits.chars().all(|c| matches!(c, '0' | '1')) {
            let message = "a bit string is empty or contains characters other than 0 and 1";
            return Filter::invalid(self, message);
        }
        let vector = bits.to_owned();
        self.within(Distance { metric, vector, size: bits.len(), below })
    }

    fn within(self, distance: Distance) -> Filter {
        // Postgres sorts NaN after every number, so every distance would be less.
        if distance.below.is_nan() {
            return Filter::invalid(self, "the threshold of a distance is NaN");
        }
        Filter::leaf(self, distance)
    }
}

struct Distance {
    metric: DistanceMetric,
    /// The given vector or bit string, in the text form of its SQL type.
    vector: String,
    /// The number of its elements or bits.
    size: usize,
    below: f64,
}

impl Predicate for Distance {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let size = self.size;
        let is_bits = matches!(self.metric, DistanceMetric::Hamming | DistanceMetric::Jaccard);
        let (kind, types) = if is_bits { ("varbit", STRING) } else { ("vector", ARRAY) };
        let value = match (sql.is_column(), is_bits) {
            (true, _) => sql.json()?,
            (false, true) => {
                let text = sql.text()?;
                format!(
                    "CASE WHEN {text} ~ '^[01]+$' AND length({text}) = {size} \
                 THEN {text}::varbit END"
                )
            }
            // Nested, because each test would fail if the one before it were false. Strict mode,
            // because lax mode unwraps arrays inside the array.
            (false, false) => {
                let json = sql.json()?;
                format!(
                    "CASE WHEN jsonb_typeof({json}) = 'array' THEN \
                     CASE WHEN jsonb_array_length({json}) = {size} AND NOT {json} @? \
                     'strict $[*] ? (@.type() != \"number\" || @ > 3.4e38 || @ < -3.4e38)' \
                     THEN {json}::text::vector END END"
                )
            }
        };
        let vector = sql.bind(self.vector.to_param());
        let below = sql.bind(Param::text(self.below.to_string()));
        let test = format!("({value} {} {vector}::{kind} < {below}::float8)", self.metric.sign());
        sql.condition(types, &test)
    }
}
