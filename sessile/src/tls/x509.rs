//! Reads validity and names from certificates and revocation lists (RFC 5280, 4.1 and 5.1).
//!
//! rustls does not expose these fields. This module verifies nothing.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{
    ASN1Time, AttributeTypeAndValue, CertificateRevocationList, FromDer, X509Certificate, X509Name,
};

/// Most bytes of a subject in text form.
const MAX_SUBJECT: usize = 256;

/// The names of attribute types by object identifier.
///
/// RFC 4514, section 3, has most of these names, and OpenSSL adds the others. `x509-parser` has other
/// names for some types.
const ATTRIBUTES: [(&str, &str); 11] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// The notBefore and notAfter of a certificate. A time before 1970 is read as the start of 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
}

/// Reads the validity of a DER certificate; `None` if the bytes are no certificate.
pub(crate) fn validity(certificate: &[u8]) -> Option<Validity> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    Some(Validity {
        from: system_time(validity.not_before),
        until: system_time(validity.not_after),
    })
}

/// The subject of a DER certificate, as DER; `None` if the bytes are no certificate.
pub(crate) fn subject(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.tbs_certificate.subject.as_raw())
}

/// The issuer and the nextUpdate of a revocation list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RevocationList<'a> {
    /// The issuer's name, as DER.
    pub(crate) issuer: &'a [u8],
    pub(crate) next_update: Option<SystemTime>,
}

/// Reads a DER revocation list; `None` if the bytes are no list.
pub(crate) fn revocation_list(list: &[u8]) -> Option<RevocationList<'_>> {
    let (_, parsed) = CertificateRevocationList::from_der(list).ok()?;
    let tbs_list = parsed.tbs_cert_list;
    Some(RevocationList {
        issuer: tbs_list.issuer.as_raw(),
        next_update: tbs_list.next_update.map(system_time),
    })
}

/// The text form of a DER name (RFC 4514), the most specific part first: `CN=alice,O=Example`.
///
/// Control characters are escaped, and a long text is cut. `None` if the bytes are no name or an empty
/// name.
pub(crate) fn name_text(name: &[u8]) -> Option<String> {
    let (_, parsed) = X509Name::from_der(name).ok()?;
    let mut parts: Vec<_> = parsed
        .iter_rdn()
        .map(|set| {
            let attributes: Vec<_> = set.iter().map(attribute_text).collect();
            attributes.join("+")
        })
        .collect();
    parts.reverse();
    let mut text = parts.join(",");
    if text.len() > MAX_SUBJECT {
        text.truncate(text.floor_char_boundary(MAX_SUBJECT));
        text.push('…');
    }
    (!text.is_empty()).then_some(text)
}

fn attribute_text(attribute: &AttributeTypeAndValue<'_>) -> String {
    let type_id = attribute.attr_type().to_id_string();
    let name = ATTRIBUTES
        .iter()
        .find(|(id, _)| *id == type_id)
        .map_or(type_id.as_str(), |(_, name)| name);
    let mut text = format!("{name}=");
    let value = attribute_value(attribute);
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
    text
}

fn attribute_value(attribute: &AttributeTypeAndValue<'_>) -> String {
    let value = attribute.attr_value();
    if value.tag() != Tag::BmpString {
        return String::from_utf8_lossy(value.data).into_owned();
    }
    // A BMPString holds big-endian UTF-16.
    let units = value
        .data
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    char::decode_utf16(units)
        .map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

fn system_time(time: ASN1Time) -> SystemTime {
    let since_1970 = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(since_1970)
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
    fn a_subject_has_the_text_form_of_rfc_4514() {
        let custom = DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 311]);
        let parts = [
            (DnType::OrganizationName, "Example, Inc."),
            (custom, "x"),
            (DnType::CommonName, "älice"),
        ];
        let text = named(&parts).expect("a name");
        assert_eq!(text, "CN=älice,1.3.6.1.4.1.311=x,O=Example\\, Inc.");
        assert_eq!(named(&[]), None);
    }

    #[test]
    fn control_characters_are_escaped_and_long_subjects_cut() {
        let text = named(&[(DnType::CommonName, "a\n\u{85}\"b")]);
        assert_eq!(text.as_deref(), Some("CN=a\\0A\\C2\\85\\\"b"));
        let long = named(&[(DnType::CommonName, &"ä".repeat(500))]).expect("a name");
        assert!(
            long.len() < MAX_SUBJECT + 4 && long.ends_with("ä…"),
            "{long}"
        );
    }

    #[test]
    fn no_prefix_of_a_name_has_a_text_form() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "a");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        let name = subject(certificate.der()).expect("a subject");
        assert!((0..name.len()).all(|end| name_text(&name[..end]).is_none()));
    }

    #[test]
    fn issuer_and_next_update_are_read_from_a_revocation_list() {
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
        let signed = list
            .signed_by(&rcgen::Issuer::new(params, key))
            .expect("signed");
        let read = revocation_list(signed.der()).expect("a list");
        assert_eq!(Some(read.issuer), subject(authority.der()));
        assert_eq!(read.next_update, Some(at("2026-02-01T00:00:00Z")));
    }
}
