use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams,
};
use std::fs;
use std::time::SystemTime;

/// A day of January 2026.
fn day(day: u8) -> Time {
    let days = humantime::parse_rfc3339(&format!("2026-01-{day:02}T00:00:00Z")).expect("a time");
    let since = days.duration_since(SystemTime::UNIX_EPOCH);
    Time::from_unix_millis(since.expect("after 1970").as_millis() as u64)
}

/// A root, an intermediate authority and a client certificate. All are valid from January 1st.
///
/// The client certificate expires on January 20th.
struct Chain {
    folder: tempfile::TempDir,
    root: Issuer<'static, KeyPair>,
    below: Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
}

fn params(name: &str, serial: u64, is_ca: bool) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(serial.into());
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 1, 20);
    if is_ca {
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params
}

impl Chain {
    fn new() -> Self {
        let key = || KeyPair::generate().expect("a key");
        let (root, below, leaf) = (params("root", 1, true), params("below", 2, true), key());
        let root_key = key();
        let folder = tempfile::tempdir().expect("a folder");
        let root_pem = root.self_signed(&root_key).expect("signed").pem();
        fs::write(folder.path().join("ca.pem"), root_pem).expect("written");
        let root = Issuer::new(root, root_key);
        let below_key = key();
        let below_der = below.signed_by(&below_key, &root).expect("signed");
        let below = Issuer::new(below, below_key);
        let leaf = params("client", 3, false).signed_by(&leaf, &below);
        Self {
            chain: vec![leaf.expect("signed").der().clone(), below_der.der().clone()],
            folder,
            root,
            below,
        }
    }

    fn config(&self, mode: config::ClientAuthMode, crl: bool) -> config::ClientAuth {
        config::ClientAuth {
            mode,
            ca: self.folder.path().join("ca.pem"),
            crl: crl.then(|| self.folder.path().join("lists.pem")),
        }
    }

    fn clients(&self, mode: config::ClientAuthMode) -> ClientVerifier {
        let loaded = ClientAuthorities::load(&self.config(mode, false));
        ClientVerifier::new(&loaded.expect("it is right"))
    }

    /// Verifies a session on January 10th, with these revocation lists.
    fn verify_with(&self, lists: &[String]) -> Result<(), Reason> {
        fs::write(self.folder.path().join("lists.pem"), lists.concat()).expect("written");
        let config = self.config(config::ClientAuthMode::Required, true);
        let loaded = ClientAuthorities::load(&config).expect("it is right");
        ClientVerifier::new(&loaded).verify_again(&session(&self.chain), day(10))
    }
}

/// A revocation list whose next update is due on a day of January.
fn list(issuer: &Issuer<'_, KeyPair>, until: u8, revoked: &[u64]) -> String {
    let revoked = revoked.iter().map(|&serial| RevokedCertParams {
        serial_number: serial.into(),
        revocation_time: rcgen::date_time_ymd(2026, 1, 2),
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 2),
        next_update: rcgen::date_time_ymd(2026, 1, until),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let signed = list.signed_by(issuer).expect("signed");
    signed.pem().expect("PEM")
}

/// A session as rustls encodes it; see the test of [`rustls_session`].
fn session(chain: &[CertificateDer<'_>]) -> Vec<u8> {
    let mut bytes = vec![0, 3, 4, 0x13, 1, 1, 0xaa, 0];
    bytes.push(u8::from(!chain.is_empty()));
    if !chain.is_empty() {
        let len: usize = chain.iter().map(|certificate| 3 + certificate.len()).sum();
        bytes.extend_from_slice(&(len as u32).to_be_bytes()[1..]);
    }
    for certificate in chain {
        bytes.extend_from_slice(&(certificate.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(certificate);
    }
    bytes
}

#[test]
fn a_session_is_admitted_until_its_certificate_expires() {
    let chain = Chain::new();
    let clients = chain.clients(config::ClientAuthMode::Required);
    let session = session(&chain.chain);
    assert_eq!(clients.verify_again(&session, day(10)), Ok(()));
    // The cached verification ends when the certificate expires.
    let last = Time::from_unix_millis(day(20).unix_millis() - 1000);
    assert_eq!(clients.verify_again(&session, last), Ok(()));
    assert_eq!(clients.verified.lock().expect("not poisoned").len(), 1);
    let after = Time::from_unix_millis(day(20).unix_millis() + 1000);
    assert_eq!(
        clients.verify_again(&session, after),
        Err(Reason::ClientAuth)
    );
    let stranger = Chain::new().clients(config::ClientAuthMode::Optional);
    assert_eq!(
        stranger.verify_again(&session, day(10)),
        Err(Reason::ClientAuth)
    );
    assert_eq!(clients.verify_again(b"?", day(10)), Err(Reason::OldFormat));
}

#[test]
fn a_verification_is_cached_for_a_minute_and_a_visit_does_not_extend_it() {
    let chain = Chain::new();
    let clients = chain.clients(config::ClientAuthMode::Required);
    let cached_until = || {
        let verified = clients.verified.lock().expect("not poisoned");
        *verified.values().next().expect("a cached chain")
    };
    for seconds in [0, 59] {
        let now = day(10).plus(Duration::from_secs(seconds));
        clients
            .verify_again(&session(&chain.chain), now)
            .expect("it is right");
        assert_eq!(cached_until(), day(10).plus(VERIFIED_TTL));
    }
    let later = day(10).plus(VERIFIED_TTL);
    clients
        .verify_again(&session(&chain.chain), later)
        .expect("it is right");
    assert_eq!(cached_until(), later.plus(VERIFIED_TTL));
}

#[test]
fn a_session_without_a_certificate_resumes_only_if_certificates_are_optional() {
    let chain = Chain::new();
    let anonymous = session(&[]);
    let required = chain.clients(config::ClientAuthMode::Required);
    assert_eq!(
        required.verify_again(&anonymous, day(10)),
        Err(Reason::ClientAuth)
    );
    let optional = chain.clients(config::ClientAuthMode::Optional);
    assert_eq!(optional.verify_again(&anonymous, day(10)), Ok(()));
}

#[test]
fn a_list_of_a_root_makes_intermediates_revocable() {
    let chain = Chain::new();
    let refused = Err(Reason::ClientAuth);
    let below = |revoked: &[u64]| list(&chain.below, 20, revoked);
    let root = |revoked: &[u64]| list(&chain.root, 20, revoked);
    // The list of the issuing authority is enough. Without this list, the client's status is
    // unknown.
    assert_eq!(chain.verify_with(&[below(&[])]), Ok(()));
    assert_eq!(chain.verify_with(&[below(&[3])]), refused);
    assert_eq!(chain.verify_with(&[root(&[])]), refused);
    // With both lists, the intermediate authority can be revoked, too.
    assert_eq!(chain.verify_with(&[root(&[]), below(&[])]), Ok(()));
    assert_eq!(chain.verify_with(&[root(&[2]), below(&[])]), refused);
    assert_eq!(chain.verify_with(&[root(&[]), below(&[3])]), refused);
    // The next update of the list is overdue.
    assert_eq!(chain.verify_with(&[list(&chain.below, 9, &[])]), refused);
    // Another authority with the same name signed the list.
    let other = Chain::new();
    assert_eq!(chain.verify_with(&[list(&other.below, 20, &[])]), refused);
}

#[test]
fn a_list_may_be_der_and_errors_name_the_file() {
    let chain = Chain::new();
    let path = chain.folder.path().join("lists.pem");
    let load = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("written");
        ClientAuthorities::load(&chain.config(config::ClientAuthMode::Required, true))
    };
    let pem = list(&chain.below, 20, &[]);
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    let one = load(&der).expect("a list").lists;
    assert_eq!(one, std::slice::from_ref(&der));
    let two = pem.clone() + &list(&chain.root, 20, &[]);
    assert_eq!(load(two.as_bytes()).expect("two lists").lists.len(), 2);
    let error_text = |bytes: &[u8]| load(bytes).err().expect("it is wrong").to_string();
    assert!(error_text(b"").contains("lists.pem: contains no revocation list"));
    assert!(error_text(&der[..der.len() - 1]).contains("lists.pem: "));
    fs::write(chain.folder.path().join("ca.pem"), "").expect("written");
    assert!(error_text(&der).contains("ca.pem: contains no PEM certificate"));
}

#[test]
fn a_client_without_a_subject_is_named_by_its_hash() {
    let chain = Chain::new();
    assert_eq!(identity(&chain.chain[0]), "CN=client");
    let mut params = params("", 4, false);
    params.distinguished_name = rcgen::DistinguishedName::new();
    let key = KeyPair::generate().expect("a key");
    let bare = params.signed_by(&key, &chain.below).expect("signed");
    let name = identity(bare.der());
    assert!(
        name.starts_with("sha256:") && name.len() == 7 + 64,
        "{name}"
    );
    assert_eq!(
        identity(&CertificateDer::from(vec![1, 2])).len(),
        name.len()
    );
}
