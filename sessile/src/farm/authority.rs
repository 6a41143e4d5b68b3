//! A certificate authority for trying things out: made once, kept in the data folder, trusted by
//! nobody who was not told to.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::config::Certificate;

/// How long the authority's certificate is valid.
const AUTHORITY_DAYS: u64 = 3650;

/// How long a server's certificate is valid; browsers refuse more than 398 days.
const SERVER_DAYS: u64 = 397;

/// A server's certificate is made anew when its file is older than this.
const RENEW_AFTER: Duration = Duration::from_secs(300 * DAY);

/// Certificates begin a day ago, for clients whose clocks are behind.
const DAY: u64 = 24 * 60 * 60;

/// Why there is no development certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("data folder {file}: {source}", file = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{file}: {source}; move it away to have a new one made", file = .path.display())]
    Key { path: PathBuf, source: rcgen::Error },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// The development authority and the certificate that the farm's servers share.
pub struct Authority {
    /// The authority's certificate, for clients to trust.
    pub root: PathBuf,
    /// The servers' certificate: `localhost`, `*.localhost`, 127.0.0.1 and ::1.
    pub certificate: Certificate,
}

impl Authority {
    /// Finds the files in a folder, or makes them.
    ///
    /// # Errors
    /// Where the folder cannot be written, or holds something else under these names.
    pub fn open(folder: &Path) -> Result<Self, AuthorityError> {
        let authority = Self {
            root: folder.join("ca.pem"),
            certificate: Certificate {
                chain: folder.join("server.pem"),
                key: folder.join("server.key"),
            },
        };
        let (root_key, root_is_new) = key(&folder.join("ca.key"))?;
        let params = authority_params();
        if root_is_new || !authority.root.exists() {
            write(
                &authority.root,
                &params.self_signed(&root_key)?.pem(),
                0o644,
            )?;
        }
        let issuer = Issuer::from_params(&params, &root_key);
        let (server_key, server_is_new) = key(&authority.certificate.key)?;
        let chain = &authority.certificate.chain;
        if root_is_new || server_is_new || is_old(chain) {
            let signed = server_params()?.signed_by(&server_key, &issuer)?;
            write(chain, &signed.pem(), 0o644)?;
        }
        Ok(authority)
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let name = &mut params.distinguished_name;
    name.push(DnType::CommonName, "sessile development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, AUTHORITY_DAYS);
    params
}

fn server_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(["localhost".to_owned(), "*.localhost".to_owned()])?;
    for address in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        params.subject_alt_names.push(SanType::IpAddress(address));
    }
    let name = &mut params.distinguished_name;
    name.push(DnType::CommonName, "sessile development server");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, SERVER_DAYS);
    Ok(params)
}

fn valid(params: &mut CertificateParams, days: u64) {
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(DAY)).into();
    params.not_after = (now + Duration::from_secs((days - 1) * DAY)).into();
}

/// Reads a private key, or makes one (ECDSA P-256). Says whether it is new.
fn key(path: &Path) -> Result<(KeyPair, bool), AuthorityError> {
    match fs::read_to_string(path) {
        Ok(pem) => KeyPair::from_pem(&pem)
            .map(|key| (key, false))
            .map_err(|source| AuthorityError::Key {
                path: path.into(),
                source,
            }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            write(path, &key.serialize_pem(), 0o600)?;
            Ok((key, true))
        }
        Err(source) => Err(AuthorityError::Io {
            path: path.into(),
            source,
        }),
    }
}

fn is_old(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified
        .ok()
        .and_then(|modified| modified.elapsed().ok())
        .is_none_or(|age| age > RENEW_AFTER)
}

/// Replaces a file as a whole, so that a crash leaves the old one or the new one.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut staged = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(folder)?;
        staged.write_all(text.as_bytes())?;
        staged.persist(path)?;
        Ok(())
    };
    write().map_err(|source| AuthorityError::Io {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_start_finds_the_same_certificates() {
        let folder = tempfile::tempdir().unwrap();
        let read = |authority: &Authority| {
            let files = [&authority.root, &authority.certificate.chain];
            files.map(|file| fs::read(file).unwrap())
        };
        let first = Authority::open(folder.path()).unwrap();
        let before = read(&first);
        assert_eq!(before, read(&Authority::open(folder.path()).unwrap()));
        let private = fs::metadata(folder.path().join("ca.key")).unwrap();
        assert_eq!(private.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_server_certificate_that_is_gone_is_signed_anew_by_the_same_authority() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let root = fs::read(&authority.root).unwrap();
        fs::remove_file(&authority.certificate.chain).unwrap();
        Authority::open(folder.path()).unwrap();
        assert!(authority.certificate.chain.exists());
        assert_eq!(fs::read(&authority.root).unwrap(), root);
    }
}
