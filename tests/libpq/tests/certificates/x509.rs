//! Certificates and revocation lists with any content, also content that no tool would write.

use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

/// One value of DER.
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut value = vec![tag];
    match content.len() {
        short @ 0..=0x7f => value.push(short as u8),
        medium @ 0x80..=0xff => value.extend([0x81, medium as u8]),
        long => {
            value.push(0x82);
            value.extend(u16::try_from(long).expect("a short value").to_be_bytes());
        }
    }
    value.extend(content);
    value
}

pub fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

pub fn oid(text: &str) -> Vec<u8> {
    let numbers: Vec<u64> = text.split('.').map(|n| n.parse().unwrap()).collect();
    let mut content = vec![(numbers[0] * 40 + numbers[1]) as u8];
    for number in &numbers[2..] {
        let mut groups = vec![(number & 0x7f) as u8];
        let mut rest = number >> 7;
        while rest > 0 {
            groups.push(0x80 | (rest & 0x7f) as u8);
            rest >>= 7;
        }
        content.extend(groups.iter().rev());
    }
    tlv(0x06, &content)
}

pub const CN: &str = "2.5.4.3";
pub const EMAIL: &str = "1.2.840.113549.1.9.1";
pub const UTF8: u8 = 0x0c;
pub const BMP: u8 = 0x1e;

/// A name of these attributes: OID, tag of the string, its bytes.
pub fn name(attributes: &[(&str, u8, &[u8])]) -> Vec<u8> {
    let parts: Vec<_> = attributes
        .iter()
        .map(|(kind, tag, text)| tlv(0x31, &sequence(&[oid(kind), tlv(*tag, text)])))
        .collect();
    sequence(&parts)
}

pub fn cn(text: &str) -> Vec<u8> {
    name(&[(CN, UTF8, text.as_bytes())])
}

pub fn extension(kind: &str, critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { tlv(0x01, &[0xff]) } else { vec![] };
    sequence(&[oid(kind), critical, tlv(0x04, value)])
}

pub fn basic_constraints(ca: bool, path_length: Option<u8>) -> Vec<u8> {
    let ca = if ca { tlv(0x01, &[0xff]) } else { vec![] };
    let length = path_length.map(|n| tlv(0x02, &[n])).unwrap_or_default();
    extension("2.5.29.19", true, &sequence(&[ca, length]))
}

pub const DIGITAL_SIGNATURE: u8 = 0;
pub const KEY_CERT_SIGN: u8 = 5;
pub const CRL_SIGN: u8 = 6;

/// Bits as RFC 5280 numbers them, up to 7.
pub fn key_usage(bits: &[u8]) -> Vec<u8> {
    let byte = bits.iter().fold(0, |byte, bit| byte | (0x80 >> bit));
    extension("2.5.29.15", true, &tlv(0x03, &[0, byte]))
}

pub const SERVER: &str = "1.3.6.1.5.5.7.3.1";
pub const CLIENT: &str = "1.3.6.1.5.5.7.3.2";
pub const ANY_PURPOSE: &str = "2.5.29.37.0";

pub fn purposes(purposes: &[&str]) -> Vec<u8> {
    let purposes: Vec<_> = purposes.iter().map(|p| oid(p)).collect();
    extension("2.5.29.37", false, &sequence(&purposes))
}

/// Netscape's: bit 0 is a client, bit 1 a server.
pub fn netscape_type(byte: u8) -> Vec<u8> {
    extension("2.16.840.1.113730.1.1", false, &tlv(0x03, &[0, byte]))
}

pub fn dns(name: &str) -> Vec<u8> {
    tlv(0x82, name.as_bytes())
}

pub fn ip(address: &[u8]) -> Vec<u8> {
    tlv(0x87, address)
}

pub fn email(address: &str) -> Vec<u8> {
    tlv(0x81, address.as_bytes())
}

pub fn uri(text: &str) -> Vec<u8> {
    tlv(0x86, text.as_bytes())
}

pub fn directory(name: &[u8]) -> Vec<u8> {
    tlv(0xa4, name)
}

pub fn alternative_names(names: &[Vec<u8>]) -> Vec<u8> {
    extension("2.5.29.17", false, &sequence(names))
}

pub fn name_constraints(critical: bool, permitted: &[Vec<u8>], excluded: &[Vec<u8>]) -> Vec<u8> {
    let subtrees = |tag, bases: &[Vec<u8>]| match bases {
        [] => vec![],
        bases => {
            let bases: Vec<_> =
                bases.iter().map(|base| sequence(std::slice::from_ref(base))).collect();
            tlv(tag, &bases.concat())
        }
    };
    let value = sequence(&[subtrees(0xa0, permitted), subtrees(0xa1, excluded)]);
    extension("2.5.29.30", critical, &value)
}

pub fn subject_key_id(id: &[u8]) -> Vec<u8> {
    extension("2.5.29.14", false, &tlv(0x04, id))
}

pub fn authority_key_id(id: &[u8]) -> Vec<u8> {
    extension("2.5.29.35", false, &sequence(&[tlv(0x80, id)]))
}

/// `DistributionPointName` with one URI.
fn full_name(url: &str) -> Vec<u8> {
    tlv(0xa0, &tlv(0xa0, &uri(url)))
}

pub fn distribution_point(url: &str) -> Vec<u8> {
    extension("2.5.29.31", false, &sequence(&[sequence(&[full_name(url)])]))
}

/// IssuingDistributionPoint with these fields, by number: 1 users only, 2 authorities only, 4
/// indirect, 5 attributes only.
pub fn issuing_distribution_point(url: Option<&str>, flags: &[u8]) -> Vec<u8> {
    let mut fields = vec![url.map(full_name).unwrap_or_default()];
    fields.extend(flags.iter().map(|number| tlv(0x80 | number, &[0xff])));
    extension("2.5.29.28", true, &sequence(&fields))
}

pub fn crl_number(number: u8) -> Vec<u8> {
    extension("2.5.29.20", false, &tlv(0x02, &[number]))
}

pub fn delta_of(number: u8) -> Vec<u8> {
    extension("2.5.29.27", true, &tlv(0x02, &[number]))
}

/// A year's first second.
fn time(year: u16) -> Vec<u8> {
    match year {
        1950..=2049 => tlv(0x17, format!("{:02}0101000000Z", year % 100).as_bytes()),
        _ => tlv(0x18, format!("{year}0101000000Z").as_bytes()),
    }
}

fn ecdsa_with_sha256() -> Vec<u8> {
    sequence(&[oid("1.2.840.10045.4.3.2")])
}

fn sign(content: Vec<u8>, key: &KeyPair) -> Vec<u8> {
    let signature = key.sign(&content).unwrap();
    let signature = tlv(0x03, &[vec![0], signature].concat());
    sequence(&[content, ecdsa_with_sha256(), signature])
}

/// A key and the name that it has.
#[derive(Clone)]
pub struct Entity {
    pub key: Arc<KeyPair>,
    pub subject: Vec<u8>,
}

impl Entity {
    pub fn new(subject: &str) -> Self {
        Self::named(cn(subject))
    }

    pub fn named(subject: Vec<u8>) -> Self {
        Self { key: Arc::new(KeyPair::generate().unwrap()), subject }
    }
}

/// The fields of a certificate other than names and keys.
#[derive(Clone)]
pub struct Fields {
    pub version: u8,
    pub serial: u8,
    pub from: u16,
    pub until: u16,
    pub extensions: Vec<Vec<u8>>,
}

impl Fields {
    pub fn new(extensions: &[Vec<u8>]) -> Self {
        Self { version: 3, serial: 8, from: 2020, until: 2120, extensions: extensions.to_vec() }
    }

    pub fn authority() -> Self {
        Self::new(&[basic_constraints(true, None), key_usage(&[KEY_CERT_SIGN, CRL_SIGN])])
    }

    pub fn with(mut self, extension: Vec<u8>) -> Self {
        self.extensions.push(extension);
        self
    }

    pub fn years(mut self, from: u16, until: u16) -> Self {
        (self.from, self.until) = (from, until);
        self
    }

    pub fn serial(mut self, serial: u8) -> Self {
        self.serial = serial;
        self
    }

    /// The certificate of one entity, signed by another, or by itself.
    pub fn certificate(&self, of: &Entity, by: &Entity) -> Vec<u8> {
        let version = match self.version {
            1 => vec![],
            version => tlv(0xa0, &tlv(0x02, &[version - 1])),
        };
        let extensions = match &self.extensions[..] {
            [] => vec![],
            extensions => tlv(0xa3, &sequence(extensions)),
        };
        let content = sequence(&[
            version,
            tlv(0x02, &[self.serial]),
            ecdsa_with_sha256(),
            by.subject.clone(),
            sequence(&[time(self.from), time(self.until)]),
            of.subject.clone(),
            of.key.subject_public_key_info(),
            extensions,
        ]);
        sign(content, &by.key)
    }
}

/// A revocation list.
#[derive(Clone)]
pub struct List {
    /// Version 1 has no extensions.
    pub version: u8,
    pub from: u16,
    pub until: Option<u16>,
    pub revoked: Vec<u8>,
    /// Of the first entry.
    pub entry_extensions: Vec<Vec<u8>>,
    pub extensions: Vec<Vec<u8>>,
}

impl List {
    pub fn new(from: u16, until: u16, revoked: &[u8]) -> Self {
        let (revoked, extensions) = (revoked.to_vec(), vec![crl_number(1)]);
        Self { version: 2, from, until: Some(until), revoked, entry_extensions: vec![], extensions }
    }

    pub fn with(mut self, extension: Vec<u8>) -> Self {
        self.extensions.push(extension);
        self
    }

    pub fn sign(&self, by: &Entity) -> Vec<u8> {
        let entries: Vec<_> = self
            .revoked
            .iter()
            .enumerate()
            .map(|(i, serial)| {
                let extensions = match &self.entry_extensions[..] {
                    extensions @ [_, ..] if i == 0 => sequence(extensions),
                    _ => vec![],
                };
                sequence(&[tlv(0x02, &[*serial]), time(2021), extensions])
            })
            .collect();
        let content = sequence(&[
            if self.version == 1 { vec![] } else { tlv(0x02, &[1]) },
            ecdsa_with_sha256(),
            by.subject.clone(),
            time(self.from),
            self.until.map(time).unwrap_or_default(),
            if entries.is_empty() { vec![] } else { sequence(&entries) },
            if self.extensions.is_empty() {
                vec![]
            } else {
                tlv(0xa0, &sequence(&self.extensions))
            },
        ]);
        sign(content, &by.key)
    }
}

pub fn pem(label: &str, values: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for value in values {
        text += &format!("-----BEGIN {label}-----\n");
        for line in base64(value).as_bytes().chunks(64) {
            text += std::str::from_utf8(line).unwrap();
            text.push('\n');
        }
        text += &format!("-----END {label}-----\n");
    }
    text
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes(padded);
        for i in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * i)) as usize & 0x3f];
            text.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
