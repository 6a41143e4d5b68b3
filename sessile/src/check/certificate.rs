//! Checks one certificate and its key, as a client and the TLS library would.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use super::utc;
use crate::config::Certificate;
use crate::tls::x509::{Validity, validity};

/// Most bytes of a PEM file.
const MAX_BYTES: u64 = 1 << 20;

/// The warning about the end of a certificate begins this long before that end.
pub(super) const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// A problem with a certificate or its key.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateError {
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: contains no PEM certificate; a chain is one or more BEGIN CERTIFICATE blocks", .0.display())]
    NoCertificate(PathBuf),
    #[error("{}: certificate {number} of the chain cannot be parsed; get a new copy of the file", path.display())]
    Unparsable { path: PathBuf, number: usize },
    #[error(
        "{}: contains no usable PEM private key; write a PKCS#8, RSA or EC key that has no password", .0.display()
    )]
    NoKey(PathBuf),
    #[error("{}: the TLS library cannot use this private key: {source}", path.display())]
    UnusableKey {
        path: PathBuf,
        source: rustls::Error,
    },
    #[error(
        "{}: the private key does not match the certificate in {}; use the key that belongs to it",
        key.display(), chain.display()
    )]
    Mismatch { chain: PathBuf, key: PathBuf },
    #[error("{}: certificate {number} of the chain ended on {}; renew it", path.display(), utc(*until))]
    Expired {
        path: PathBuf,
        number: usize,
        until: SystemTime,
    },
    #[error(
        "{}: certificate {number} of the chain is not valid before {}; check the clock, or use another \
         certificate", path.display(), utc(*from)
    )]
    NotYet {
        path: PathBuf,
        number: usize,
        from: SystemTime,
    },
    #[error(
        "{}: the certificate does not cover {name}, a name of its site: clients will refuse it; get a certificate \
         that has this name", path.display()
    )]
    NotCovered { path: PathBuf, name: String },
}

/// Checks a certificate for the names of its site. Returns the end of the chain's validity, and all
/// problems.
pub(super) fn examine(
    pair: &Certificate,
    names: &[String],
    now: SystemTime,
) -> (Option<SystemTime>, Vec<CertificateError>) {
    let mut errors = Vec::new();
    let key = read_key(&pair.key).map_err(|error| errors.push(error)).ok();
    let chain = match read_chain(&pair.chain) {
        Ok(chain) => chain,
        Err(error) => {
            errors.push(error);
            return (None, errors);
        }
    };
    let mut until: Option<SystemTime> = None;
    for (index, certificate) in chain.iter().enumerate() {
        match check_validity(&pair.chain, index + 1, certificate, now) {
            Ok(end) => until = Some(until.map_or(end, |until| until.min(end))),
            Err(error) => errors.push(error),
        }
    }
    if let Some(leaf) = chain
        .first()
        .and_then(|leaf| ParsedCertificate::try_from(leaf).ok())
    {
        let path = &pair.chain;
        let uncovered = names.iter().filter(|name| !covers(&leaf, name));
        errors.extend(uncovered.map(|name| CertificateError::NotCovered {
            path: path.clone(),
            name: name.clone(),
        }));
    }
    if let Some(key) = key {
        errors.extend(check_key(pair, chain, key).err());
    }
    (until, errors)
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|source| CertificateError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(CertificateError::NoCertificate(path.to_owned())),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let pem = zeroize::Zeroizing::new(read(path)?);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| CertificateError::NoKey(path.to_owned()))
}

fn check_validity(
    path: &Path,
    number: usize,
    certificate: &CertificateDer<'_>,
    now: SystemTime,
) -> Result<SystemTime, CertificateError> {
    let path = path.to_owned();
    // The TLS library must be able to parse the leaf, too.
    let parsed = number > 1 || ParsedCertificate::try_from(certificate).is_ok();
    match validity(certificate).filter(|_| parsed) {
        None => Err(CertificateError::Unparsable { path, number }),
        Some(Validity { until, .. }) if until < now => Err(CertificateError::Expired {
            path,
            number,
            until,
        }),
        Some(Validity { from, .. }) if from > now => {
            Err(CertificateError::NotYet { path, number, from })
        }
        Some(Validity { until, .. }) => Ok(until),
    }
}

fn covers(leaf: &ParsedCertificate<'_>, name: &str) -> bool {
    // A certificate covers a wildcard name of the site if the certificate covers any label below
    // it.
    let concrete = match name.strip_prefix("*.") {
        Some(below) => format!("any-label.{below}"),
        None => name.to_owned(),
    };
    ServerName::try_from(concrete).is_ok_and(|name| verify_server_name(leaf, &name).is_ok())
}

fn check_key(
    pair: &Certificate,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(), CertificateError> {
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|source| {
        CertificateError::UnusableKey {
            path: pair.key.clone(),
            source,
        }
    })?;
    match CertifiedKey::new(chain, key).keys_match() {
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err(CertificateError::Mismatch {
                chain: pair.chain.clone(),
                key: pair.key.clone(),
            })
        }
        // All other problems are in the certificate itself. `check_validity` reports those.
        _ => Ok(()),
    }
}
