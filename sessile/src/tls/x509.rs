//! Reads what rustls does not tell: from when until when a certificate is valid, whose it is, and who
//! issued a revocation list until when (RFC 5280, 4.1 and 5.1). Nothing is verified here.

use std::fmt::Write as _;
use std::time::SystemTime;

const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const INTEGER: u8 = 0x02;
const BMP_STRING: u8 = 0x1e;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Most bytes of a subject as text.
const MAX_SUBJECT: usize = 256;

/// What people call the parts of a name (RFC 4514, 3, and what OpenSSL adds to it), by their object
/// identifiers.
const ATTRIBUTES: [(&[u8], &str); 11] = [
    (b"\x55\x04\x03", "CN"),
    (b"\x55\x04\x05", "serialNumber"),
    (b"\x55\x04\x06", "C"),
    (b"\x55\x04\x07", "L"),
    (b"\x55\x04\x08", "ST"),
    (b"\x55\x04\x09", "STREET"),
    (b"\x55\x04\x0a", "O"),
    (b"\x55\x04\x0b", "OU"),
    (b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x01", "UID"),
    (b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19", "DC"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01", "emailAddress"),
];

/// When a certificate begins and ends to be valid. A time before 1970 is the start of 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
}

/// Reads the validity of a DER certificate; `None` where it is none.
pub(crate) fn validity(certificate: &[u8]) -> Option<Validity> {
    let (validity, _) = element(from_validity(certificate)?, SEQUENCE)?;
    let (from, rest) = time(validity)?;
    let (until, _) = time(rest)?;
    Some(Validity { from, until })
}

/// The subject of a DER certificate: the contents of its name.
pub(crate) fn subject(certificate: &[u8]) -> Option<&[u8]> {
    let (_, _, rest) = any(from_validity(certificate)?)?;
    let (subject, _) = element(rest, SEQUENCE)?;
    Some(subject)
}

/// What a DER certificate's fields are from its validity on.
fn from_validity(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(certificate, SEQUENCE)?;
    if let Some((_, rest)) = element(fields, VERSION) {
        fields = rest;
    }
    // Serial number, signature algorithm and issuer.
    for _ in 0..3 {
        (_, _, fields) = any(fields)?;
    }
    Some(fields)
}

/// Who issued a revocation list, and when the next one is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RevocationList<'a> {
    /// The contents of the name.
    pub(crate) issuer: &'a [u8],
    pub(crate) next_update: Option<SystemTime>,
}

/// Reads the head of a DER revocation list; `None` where it is none.
pub(crate) fn revocation_list(list: &[u8]) -> Option<RevocationList<'_>> {
    let (list, _) = element(list, SEQUENCE)?;
    let (mut fields, _) = element(list, SEQUENCE)?;
    if let Some((_, rest)) = element(fields, INTEGER) {
        fields = rest;
    }
    let (_signature, fields) = element(fields, SEQUENCE)?;
    let (issuer, fields) = element(fields, SEQUENCE)?;
    let (_this_update, fields) = time(fields)?;
    let next_update = time(fields).map(|(next_update, _)| next_update);
    Some(RevocationList {
        issuer,
        next_update,
    })
}

/// A name as RFC 4514 writes it, the most particular part first: `CN=alice,O=Example`. Without control
/// characters, cut where it is too long; `None` where it is no name or an empty one.
pub(crate) fn name_text(mut name: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    while !name.is_empty() {
        let (mut set, rest) = element(name, SET)?;
        let mut part = String::new();
        while !set.is_empty() {
            let (attribute, others) = element(set, SEQUENCE)?;
            let (kind, value) = element(attribute, OID)?;
            let (tag, value, _) = any(value)?;
            if !part.is_empty() {
                part.push('+');
            }
            attribute_text(kind, tag, value, &mut part);
            set = others;
        }
        parts.push(part);
        name = rest;
    }
    parts.reverse();
    let mut text = parts.join(",");
    if text.len() > MAX_SUBJECT {
        text.truncate(text.floor_char_boundary(MAX_SUBJECT));
        text.push('…');
    }
    (!text.is_empty()).then_some(text)
}

fn attribute_text(kind: &[u8], tag: u8, value: &[u8], text: &mut String) {
    match ATTRIBUTES.iter().find(|(known, _)| *known == kind) {
        Some((_, name)) => text.push_str(name),
        None => oid_text(kind, text),
    }
    text.push('=');
    let value = match tag {
        BMP_STRING => {
            let units = value
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units)
                .map(|char| char.unwrap_or('\u{fffd}'))
                .collect()
        }
        _ => String::from_utf8_lossy(value).into_owned(),
    };
    let last = value.chars().count().saturating_sub(1);
    for (at, char) in value.chars().enumerate() {
        let escaped = match char {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => true,
            ' ' => at == 0 || at == last,
            '#' => at == 0,
            _ => false,
        };
        if char.is_control() {
            for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(text, "\\{byte:02X}");
            }
            continue;
        }
        if escaped {
            text.push('\\');
        }
        text.push(char);
    }
}

/// An object identifier in numbers and dots.
fn oid_text(kind: &[u8], text: &mut String) {
    let mut number = 0u64;
    let mut first = true;
    for &byte in kind {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        // The first two numbers are in one.
        let _ = match first {
            true => {
                let root = (number / 40).min(2);
                write!(text, "{root}.{}", number - 40 * root)
            }
            false => write!(text, ".{number}"),
        };
        (number, first) = (0, false);
    }
}

/// Contents of the element that `der` begins with, and what follows it.
fn element(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, contents, rest) = any(der)?;
    (tag == wanted).then_some((contents, rest))
}

fn any(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // A length of one to three bytes: 16 MiB is more than any certificate.
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let len = bytes
                .iter()
                .fold(0, |len, &byte| len << 8 | usize::from(byte));
            (len, rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    Some((tag, contents, rest))
}

/// `YYMMDDHHMMSSZ` (50 to 99 are the last century's) or `YYYYMMDDHHMMSSZ`.
fn time(der: &[u8]) -> Option<(SystemTime, &[u8])> {
    let (tag, contents, rest) = any(der)?;
    let digits = std::str::from_utf8(contents).ok()?.strip_suffix('Z')?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let full = match (tag, digits.len()) {
        (UTC_TIME, 12) if digits < "50" => format!("20{digits}"),
        (UTC_TIME, 12) => format!("19{digits}"),
        (GENERALIZED_TIME, 14) => digits.to_owned(),
        _ => return None,
    };
    if full.as_str() < "1970" {
        return Some((SystemTime::UNIX_EPOCH, rest));
    }
    let part = |from, to| full.get(from..to);
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(8, 10)?, part(10, 12)?, part(12, 14)?);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    Some((humantime::parse_rfc3339(&text).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::DnType;

    fn certificate(from: (i32, u8, u8), until: (i32, u8, u8)) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        let key = rcgen::KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).expect("a time")
    }

    #[test]
    fn both_forms_of_time_are_read() {
        let read = validity(&certificate((1999, 2, 3), (4096, 1, 1))).expect("a certificate");
        assert_eq!(read.from, at("1999-02-03T00:00:00Z"));
        assert_eq!(read.until, at("4096-01-01T00:00:00Z"));
        let read = validity(&certificate((1955, 1, 1), (2049, 12, 31))).expect("a certificate");
        assert_eq!(read.from, SystemTime::UNIX_EPOCH);
        assert_eq!(read.until, at("2049-12-31T00:00:00Z"));
    }

    #[test]
    fn no_prefix_of_a_certificate_has_a_validity() {
        let der = certificate((2000, 1, 1), (2100, 1, 1));
        assert!((0..der.len()).all(|end| validity(&der[..end]).is_none()));
        assert!(validity(&der).is_some());
    }

    fn named(parts: &[(DnType, &str)]) -> Option<String> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        name_text(subject(certificate.der()).expect("a subject"))
    }

    #[test]
    fn a_subject_reads_as_people_write_it() {
        let own = DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 311]);
        let parts = [
            (DnType::OrganizationName, "Example, Inc."),
            (own, "x"),
            (DnType::CommonName, "älice"),
        ];
        let text = named(&parts).expect("a name");
        assert_eq!(text, "CN=älice,1.3.6.1.4.1.311=x,O=Example\\, Inc.");
        assert_eq!(named(&[]), None);
    }

    #[test]
    fn a_subject_brings_no_control_characters_and_has_a_limit() {
        let text = named(&[(DnType::CommonName, "a\n\u{85}\"b")]);
        assert_eq!(text.as_deref(), Some("CN=a\\0A\\C2\\85\\\"b"));
        let long = named(&[(DnType::CommonName, &"ä".repeat(500))]).expect("a name");
        assert!(
            long.len() < MAX_SUBJECT + 4 && long.ends_with("ä…"),
            "{long}"
        );
    }

    #[test]
    fn no_prefix_of_a_name_is_one() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "a");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        let name = subject(certificate.der()).expect("a subject");
        assert!((0..name.len()).all(|end| name_text(&name[..end]).is_none()));
    }

    #[test]
    fn a_revocation_list_says_whose_it_is_and_when_the_next_is_due() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("signed");
        let list = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, 1),
            next_update: rcgen::date_time_ymd(2026, 2, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = list
            .signed_by(&rcgen::Issuer::new(params, key))
            .expect("signed");
        let read = revocation_list(list.der()).expect("a list");
        assert_eq!(Some(read.issuer), subject(authority.der()));
        assert_eq!(read.next_update, Some(at("2026-02-01T00:00:00Z")));
    }
}
