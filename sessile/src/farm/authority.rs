//! The development certificate authority. It is created once and kept in the data folder. Clients
//! must be told to trust it.

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
use crate::state_file::folder_of;

/// Lifetime of the authority's certificate.
const AUTHORITY_DAYS: u64 = 3650;

/// Lifetime of the server's certificate. Browsers refuse more than 398 days.
const SERVER_DAYS: u64 = 397;

/// Age at which the server's certificate is renewed.
const RENEW_AFTER: Duration = Duration::from_secs(300 * SECONDS_PER_DAY);

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// Why the development certificate cannot be opened or created.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(
        "cannot use {file}: {source}; give this user access to the folder {folder}, or choose another folder \
         with --data-dir",
        file = .path.display(), folder = folder_of(.path).display()
    )]
    Io { path: PathBuf, source: io::Error },
    #[error("{file}: {source}; move the file away, and sessile makes a new one", file = .path.display())]
    Key { path: PathBuf, source: rcgen::Error },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// The development authority, and the certificate that all servers of the farm share.
pub struct Authority {
    /// The authority's certificate, which clients must trust.
    pub root: PathBuf,
    /// The servers' certificate for `localhost`, `*.localhost`, 127.0.0.1 and ::1.
    pub certificate: Certificate,
}

impl Authority {
    /// Opens the files in a folder, and creates the missing ones.
    ///
    /// # Errors
    ///
    /// The folder cannot be written, or a key file does not contain a key.
    pub fn open(folder: &Path) -> Result<Self, AuthorityError> {
        let authority = Self {
            root: folder.join("ca.pem"),
            certificate: Certificate {
                chain: folder.join("server.pem"),
                key: folder.join("server.key"),
            },
        };
        let (root_key, root_is_new) = open_key(&folder.join("ca.key"))?;
        let params = authority_params();
        if root_is_new || !authority.root.exists() {
            write(
                &authority.root,
                &params.self_signed(&root_key)?.pem(),
                0o644,
            )?;
        }
        let issuer = Issuer::from_params(&params, &root_key);
        let (server_key, server_is_new) = open_key(&authority.certificate.key)?;
        let chain = &authority.certificate.chain;
        if root_is_new || server_is_new || needs_renewal(chain) {
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
    set_validity(&mut params, AUTHORITY_DAYS);
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
    set_validity(&mut params, SERVER_DAYS);
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, days: u64) {
    let now = SystemTime::now();
    // A new certificate is valid from the day before, for clients whose clocks are behind.
    params.not_before = (now - Duration::from_secs(SECONDS_PER_DAY)).into();
    params.not_after = (now + Duration::from_secs((days - 1) * SECONDS_PER_DAY)).into();
}

/// Reads a private key, or creates one (ECDSA P-256). The flag is true for a new key.
fn open_key(path: &Path) -> Result<(KeyPair, bool), AuthorityError> {
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

/// True if the file is missing or older than [`RENEW_AFTER`].
fn needs_renewal(path: &Path) -> bool {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|modified| modified.elapsed().ok())
        .is_none_or(|age| age > RENEW_AFTER)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    replace_file(path, text, mode).map_err(|source| AuthorityError::Io {
        path: path.into(),
        source,
    })
}

/// Replaces a file atomically: a crash leaves the old file or the new file.
fn replace_file(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let folder = folder_of(path);
    fs::create_dir_all(folder)?;
    let mut staged = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    staged.write_all(text.as_bytes())?;
    staged.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_opens_the_same_certificates() {
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
    fn a_folder_that_cannot_be_used_is_named_with_the_flag_that_changes_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Authority::open(&file.join("farm"))
            .err()
            .unwrap()
            .to_string();
        let named = format!("access to the folder {}", file.join("farm").display());
        assert!(
            error.contains(&named) && error.contains("--data-dir"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_server_certificate_is_signed_again_by_the_same_authority() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let root = fs::read(&authority.root).unwrap();
        fs::remove_file(&authority.certificate.chain).unwrap();
        Authority::open(folder.path()).unwrap();
        assert!(authority.certificate.chain.exists());
        assert_eq!(fs::read(&authority.root).unwrap(), root);
    }
}
