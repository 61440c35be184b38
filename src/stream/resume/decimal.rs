//! Exact comparison of JSON numbers.

use std::cmp::Ordering;

/// Compares two JSON numbers exactly, for any size.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    if let (Ok(a), Ok(b)) = (a.parse::<i64>(), b.parse::<i64>()) {
        return a.cmp(&b);
    }
    let (a, b) = (Decimal::parse(a), Decimal::parse(b));
    let size = |a: &Decimal, b: &Decimal| (a.exponent, &a.digits).cmp(&(b.exponent, &b.digits));
    match (a.sign(), b.sign()) {
        (1, 1) => size(&a, &b),
        (-1, -1) => size(&b, &a),
        (a, b) => a.cmp(&b),
    }
}

/// The number `0.{digits} * 10^exponent`, without leading and trailing zeros.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i64,
}

impl Decimal {
    fn parse(number: &str) -> Self {
        let negative = number.starts_with('-');
        let number = number.trim_start_matches('-');
        let (number, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = whole.bytes().chain(fraction.bytes());
        let zeros = digits.clone().take_while(|d| *d == b'0').count();
        let mut digits: Vec<u8> = digits.skip(zeros).collect();
        digits.truncate(digits.iter().rposition(|d| *d != b'0').map_or(0, |last| last + 1));
        // More exceeds every number of Postgres.
        const MAX: i64 = i32::MAX as i64;
        let beyond = if exponent.starts_with('-') { -MAX } else { MAX };
        let exponent = exponent.parse().unwrap_or(beyond).clamp(-MAX, MAX);
        Self { negative, exponent: exponent + whole.len() as i64 - zeros as i64, digits }
    }

    fn sign(&self) -> i8 {
        match (self.digits.is_empty(), self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_exactly() {
        let sorted = [
            "-123456789012345678901234567891",
            "-123456789012345678901234567890",
            "-2e3",
            "-1.5",
            "-1.25",
            "-0.01",
            "0",
            "0.001e-9223372036854775808",
            "1e-99999999999999999999",
            "1e-7",
            "0.01",
            "0.1",
            "0.10000000000000000000001",
            "1",
            "9",
            "10",
            "9223372036854775807",
            "9223372036854775808",
            "1e30",
            "1e9223372036854775807",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
        for (a, b) in [("1", "1.00"), ("100", "1e2"), ("0", "-0.0"), ("0.5", "5e-1"), ("0e5", "0")]
        {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} and {b}");
        }
    }
}
