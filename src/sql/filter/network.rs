//! IP addresses and networks.

use super::{
    Filter,
    predicate::{Predicate, Render, STRING},
};
use crate::{
    error::Result,
    sql::{field::Field, param::ToParam},
};

enum NetworkTest {
    /// An operator of `inet` and its right operand.
    Operator(&'static str, String),
    Family(u8),
    /// Inside one of these networks.
    Within(&'static [&'static str]),
}

/// # Networks
///
/// These operators apply to strings that contain an address or a network, such as `10.1.2.3`,
/// `10.0.0.0/8` or `2001:db8::1`. For any other field, and for an IPv6 address with an embedded
/// IPv4 address, the result is unknown. Columns must be of type `inet` or `cidr`.
///
/// | operator | SQL, where `a` is `CASE WHEN ("data"->>'a') ~ '^...$' THEN ("data"->>'a')::inet END` |
/// |---|---|
/// | `in_subnet` | `a <<= $1::inet` |
/// | `contains_subnet`, `contains_ip` | `a >>= $1::inet` |
/// | `ip_range_overlaps` | `a && $1::inet` |
/// | `is_ipv4`, `is_ipv6` | `family(a) = 4` |
/// | all others | `a <<= ANY('{...}'::inet[])`, with the networks of the RFC |
///
/// On a column of type `inet`, an index `using gist (ip inet_ops)` serves the operators of the
/// first three rows.
///
/// In a column of type `json`, some documents make the query fail: see
/// [`Filter`](crate::Filter#columns-of-type-json).
impl Field {
    /// Matches an address or a network inside `network`, and `network` itself.
    pub fn in_subnet(self, network: &str) -> Filter {
        self.network(NetworkTest::Operator("<<=", network.to_owned()))
    }

    /// Matches a network that contains `network`, and `network` itself.
    pub fn contains_subnet(self, network: &str) -> Filter {
        self.network(NetworkTest::Operator(">>=", network.to_owned()))
    }

    /// Matches a network that contains `address`, and `address` itself.
    pub fn contains_ip(self, address: &str) -> Filter {
        self.network(NetworkTest::Operator(">>=", address.to_owned()))
    }

    /// Matches a network that has at least one address in common with `network`.
    pub fn ip_range_overlaps(self, network: &str) -> Filter {
        self.network(NetworkTest::Operator("&&", network.to_owned()))
    }

    /// Matches an IPv4 address or network.
    pub fn is_ipv4(self) -> Filter {
        self.network(NetworkTest::Family(4))
    }

    /// Matches an IPv6 address or network.
    pub fn is_ipv6(self) -> Filter {
        self.network(NetworkTest::Family(6))
    }

    /// Matches a private address: RFC 1918, and RFC 4193 for IPv6.
    pub fn is_private(self) -> Filter {
        const PRIVATE: &[&str] = &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];
        self.network(NetworkTest::Within(PRIVATE))
    }

    /// Matches a loopback address: RFC 1122, section 3.2.1.3, and RFC 4291.
    pub fn is_loopback(self) -> Filter {
        self.network(NetworkTest::Within(&["127.0.0.0/8", "::1/128"]))
    }

    /// Matches a multicast address: RFC 5771 and RFC 4291.
    pub fn is_multicast(self) -> Filter {
        self.network(NetworkTest::Within(&["224.0.0.0/4", "ff00::/8"]))
    }

    /// Matches a link-local address: RFC 3927 and RFC 4291.
    pub fn is_link_local(self) -> Filter {
        self.network(NetworkTest::Within(&["169.254.0.0/16", "fe80::/10"]))
    }

    /// Matches an address reserved for documentation: RFC 5737 and RFC 3849.
    pub fn is_documentation(self) -> Filter {
        const DOCUMENTATION: &[&str] =
            &["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"];
        self.network(NetworkTest::Within(DOCUMENTATION))
    }

    /// Matches an address of the shared space for carrier-grade NAT: RFC 6598.
    pub fn is_carrier_grade(self) -> Filter {
        self.network(NetworkTest::Within(&["100.64.0.0/10"]))
    }

    fn network(self, test: NetworkTest) -> Filter {
        Filter::leaf(self, test)
    }
}

/// Matches only texts that the server accepts as `inet`: IPv4 with four decimal parts, or IPv6 with
/// `::` in any position, with or without a prefix length. `X` is replaced by a group of IPv6.
///
/// Character classes list their characters, because `\d` and case-insensitive matching depend on
/// the database's collation. With an ICU collation, `\d` matches digits of other scripts, which
/// `inet` rejects.
const ADDRESS_PATTERN: &str = concat!(
    "^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])",
    "([.](25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}(/(3[0-2]|[12]?[0-9]))?|(",
    "(X:){7}X|(X:){1,7}:|(X:){1,6}:X|(X:){1,5}(:X){1,2}|(X:){1,4}(:X){1,3}|(X:){1,3}(:X){1,4}|",
    "(X:){1,2}(:X){1,5}|X:(:X){1,6}|:((:X){1,7}|:)",
    ")(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)$",
);

impl Predicate for NetworkTest {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let text = sql.text()?;
        let value = if sql.is_column() {
            text
        } else {
            format!(
                "CASE WHEN {text} ~ '{}' THEN {text}::inet END",
                ADDRESS_PATTERN.replace('X', "[0-9a-fA-F]{1,4}")
            )
        };
        let test = match self {
            Self::Operator(sign, right) => {
                format!("({value} {sign} {}::inet)", sql.bind(right.to_param()))
            }
            Self::Family(family) => format!("(family({value}) = {family})"),
            Self::Within(networks) => {
                format!("({value} <<= ANY('{{{}}}'::inet[]))", networks.join(","))
            }
        };
        sql.condition(STRING, &test)
    }
}
