//! Addresses as text.

use std::net::{IpAddr, Ipv4Addr};

/// Parses an address in the forms that `inet_aton` or `inet_pton` accept, as libpq does for
/// hostaddr (`getaddrinfo`) and for names in certificates (`is_ip_address`).
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    inet_aton(text).map(IpAddr::V4).or_else(|| text.parse().ok().map(IpAddr::V6))
}

/// Parses an IPv4 address in all forms that resolvers accept: one to four decimal, octal or
/// hexadecimal numbers. The last number fills the remaining bytes.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let mut numbers = Vec::new();
    for part in text.split('.') {
        let (digits, radix) = match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
            Some(hex) => (hex, 16),
            None if part.len() > 1 && part.starts_with('0') => (part, 8),
            None => (part, 10),
        };
        if !digits.chars().all(|c| c.is_digit(radix)) {
            return None;
        }
        numbers.push(u32::from_str_radix(digits, radix).ok()?);
    }
    let last = numbers.pop()?;
    let mut address = 0;
    let mut bits = 32;
    for number in numbers {
        if number > 0xff || bits <= 8 {
            return None;
        }
        bits -= 8;
        address |= number << bits;
    }
    (bits == 32 || last >> bits == 0).then(|| Ipv4Addr::from(address | last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inet_aton_parses_like_the_c_library() {
        for (text, expected) in [
            ("127.0.0.1", Some([127, 0, 0, 1])),
            ("127.1", Some([127, 0, 0, 1])),
            ("10.1.513", Some([10, 1, 2, 1])),
            ("0x7f.0.0.010", Some([127, 0, 0, 8])),
            ("4294967295", Some([255; 4])),
            ("4294967296", None),
            ("256.0.0.1", None),
            ("1.2.3.256", None),
            ("1.2.3.4.5", None),
            ("1.2.3.", None),
            ("08.1", None),
            ("", None),
            ("+1.2.3.4", None),
            ("db", None),
        ] {
            assert_eq!(inet_aton(text), expected.map(Ipv4Addr::from), "{text}");
        }
    }
}
