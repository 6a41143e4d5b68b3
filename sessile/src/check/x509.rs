//! Reads the one thing from a certificate that rustls does not tell: from when until when it is
//! valid (RFC 5280, 4.1.2.5). Nothing is verified here.

use std::time::SystemTime;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When a certificate begins and ends to be valid. A time before 1970 is the start of 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

/// Reads the validity of a DER certificate; `None` where it is none.
pub(super) fn validity(certificate: &[u8]) -> Option<Validity> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(certificate, SEQUENCE)?;
    if let Some((_, rest)) = element(fields, VERSION) {
        fields = rest;
    }
    // Serial number, signature algorithm and issuer.
    for _ in 0..3 {
        (_, _, fields) = any(fields)?;
    }
    let (validity, _) = element(fields, SEQUENCE)?;
    let (from, rest) = time(validity)?;
    let (until, _) = time(rest)?;
    Some(Validity { from, until })
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
}
