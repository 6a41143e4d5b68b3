//! Sites with client certificates: which clients are accepted and which resume. Changes of the
//! certificate, its authority or the site's settings end sessions. OpenSSL keeps its session in a
//! file. So a test can offer a session and present another certificate.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use serde_json::Value;

use crate::peers::{Certificates, Metrics, NAME, Sessile, free_port, run};
use crate::store::setup::{Farm, Redis, Server};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// The mechanisms: the arguments of openssl, and the verdict of a return.
const OFFERS: [(&[&str], &str); 3] = [
    (&["-tls1_3"], "resumed/psk"),
    (&["-tls1_2"], "resumed/ticket"),
    (&["-tls1_2", "-no_ticket"], "resumed/session-id"),
];

/// An authority that issues certificates for clients.
struct ClientCa {
    folder: PathBuf,
    certificate: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    issued: Cell<u64>,
}

/// The files of a client's certificate.
#[derive(Clone)]
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    serial: u64,
}

impl ClientCa {
    fn new(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = folder.join("ca.pem");
        fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        Self {
            folder,
            certificate,
            issuer: Issuer::new(params, key),
            issued: Cell::new(0),
        }
    }

    fn issue(&self, name: &str, valid: Duration) -> Identity {
        let serial = self.issued.get() + 1;
        self.issued.set(serial);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.serial_number = Some(serial.into());
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (SystemTime::now() - HOUR).into();
        params.not_after = (SystemTime::now() + valid).into();
        let key = KeyPair::generate().unwrap();
        let identity = Identity {
            certificate: self.folder.join(format!("{serial}.pem")),
            key: self.folder.join(format!("{serial}.key")),
            serial,
        };
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(&identity.certificate, certificate.pem()).unwrap();
        fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }

    /// A revocation list with these certificates, as PEM.
    fn revoke(&self, revoked: &[&Identity]) -> String {
        let now = SystemTime::now();
        let revoked = revoked.iter().map(|identity| RevokedCertParams {
            serial_number: SerialNumber::from(identity.serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: (now - HOUR).into(),
            next_update: (now + 24 * HOUR).into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A server's configuration, and clients with their sessions.
struct Setup {
    state: tempfile::TempDir,
    certificates: Certificates,
    ca: ClientCa,
}

impl Setup {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        Self {
            ca: ClientCa::new(state.path(), "clients"),
            certificates: Certificates::new(),
            state,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("sessile.toml")
    }

    /// The lines of a site, with its names and its settings for client authentication. Without
    /// names, the site is for every name.
    fn site(&self, names: &str, client_auth: &str) -> String {
        let client_auth = match client_auth {
            "" => String::new(),
            keys => format!("client-auth = {{ {keys} }}\n"),
        };
        format!(
            "[[site]]\nnames = [{names}]\n{client_auth}\
             certificates = [{{ chain = {:?}, key = {:?} }}]\n\
             [[site.route]]\npath = \"/\"\nverdict = true\n",
            self.certificates.chain, self.certificates.key,
        )
    }

    fn write(&self, sites: &str) {
        // Use two workers, because each worker has its own cache of verified clients.
        let text = format!(
            "[server]\nname = \"web1\"\nworkers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\n{sites}"
        );
        fs::write(self.config(), text).unwrap();
    }

    /// Writes a configuration with one site.
    fn ask(&self, client_auth: &str) {
        self.write(&self.site("", client_auth));
    }

    fn serve(&self) -> Sessile {
        Sessile::serve_configured(&self.config(), self.state.path())
    }

    /// Makes a visit with each mechanism and the sessions of `client`. Returns the reports of the
    /// built-in page.
    fn visit(&self, server: &Sessile, client: &str, identity: Option<&Identity>) -> [Seen; 3] {
        std::array::from_fn(|at| {
            let session = self.path(&format!("{client}-{at}.session"));
            visit(server.address(), NAME, OFFERS[at].0, &session, identity)
        })
    }
}

/// The verdict and the client's certificate as the server saw it. `None` if there was no response.
type Seen = Option<(String, Option<String>)>;

fn visit(
    server: std::net::SocketAddr,
    name: &str,
    arguments: &[&str],
    session: &Path,
    identity: Option<&Identity>,
) -> Seen {
    let request =
        format!("GET /verdict.json HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-ign_eof", "-servername", name, "-connect"]);
    command.arg(server.to_string()).args(arguments);
    if session.exists() {
        command.arg("-sess_in").arg(session);
    }
    command.arg("-sess_out").arg(session);
    if let Some(identity) = identity {
        // OpenSSL sends all certificates of the file.
        command.arg("-cert").arg(&identity.certificate);
        command.arg("-cert_chain").arg(&identity.certificate);
        command.arg("-key").arg(&identity.key);
    }
    let ran = run("openssl", &mut command, &request);
    let json = ran
        .stdout
        .lines()
        .find(|line| line.starts_with("{\"server\":"))?;
    let json: Value = serde_json::from_str(json).unwrap();
    let text = |name: &str| json[name].as_str().map(str::to_owned);
    Some((text("verdict").unwrap(), text("client_certificate")))
}

fn seen(verdict: &str, subject: Option<&str>) -> Seen {
    Some((verdict.to_owned(), subject.map(str::to_owned)))
}

fn all(verdict: &str, subject: Option<&str>) -> [Seen; 3] {
    [(); 3].map(|()| seen(verdict, subject))
}

fn resumed(subject: Option<&str>) -> [Seen; 3] {
    OFFERS.map(|(_, how)| seen(how, subject))
}

const REFUSED: [Seen; 3] = [const { None }; 3];
const ALICE: Option<&str> = Some("CN=alice");
const BOB: Option<&str> = Some("CN=bob");

#[test]
fn a_client_with_a_certificate_resumes_with_its_identity_and_others_are_refused() {
    let setup = Setup::new();
    setup.ask("ca = \"clients/ca.pem\"");
    let server = setup.serve();
    let alice = setup.ca.issue("alice", HOUR);
    let visit = |client, identity| setup.visit(&server, client, identity);
    assert_eq!(
        visit("alice", Some(&alice)),
        all("full/nothing-offered", ALICE)
    );
    for _ in 0..3 {
        assert_eq!(visit("alice", Some(&alice)), resumed(ALICE));
    }
    assert_eq!(visit("nobody", None), REFUSED);
    let stranger = ClientCa::new(setup.state.path(), "strangers").issue("alice", HOUR);
    assert_eq!(visit("stranger", Some(&stranger)), REFUSED);
    let cause = [("cause", "client-certificate")];
    let failures = |metrics: &Metrics| metrics.sum("sessile_handshake_failures_total", &cause);
    server.await_metrics(|metrics| failures(metrics) == 6);
    assert_eq!(server.metrics().handshakes(), 12);
    server.await_line("web1 TLSv1.3 resumed/psk none \"CN=alice\"");
}

#[test]
fn anonymous_sessions_stay_anonymous_if_a_certificate_is_optional() {
    let setup = Setup::new();
    setup.ask("mode = \"optional\", ca = \"clients/ca.pem\"");
    let server = setup.serve();
    let alice = setup.ca.issue("alice", HOUR);
    let visit = |client, identity| setup.visit(&server, client, identity);
    assert_eq!(visit("anyone", None), all("full/nothing-offered", None));
    assert_eq!(visit("anyone", None), resumed(None));
    assert_eq!(
        visit("alice", Some(&alice)),
        all("full/nothing-offered", ALICE)
    );
    assert_eq!(visit("alice", None), resumed(ALICE));
    // When certificates become mandatory, the server asks all clients again, also clients that had
    // been asked before.
    setup.ask("ca = \"clients/ca.pem\"");
    server.reload();
    assert_eq!(visit("anyone", None), REFUSED);
    assert_eq!(visit("alice", Some(&alice)), all("full/client-auth", ALICE));
}

#[test]
fn sessions_end_when_client_authentication_is_switched_on_or_off() {
    let setup = Setup::new();
    setup.ask("");
    let server = setup.serve();
    let alice = setup.ca.issue("alice", HOUR);
    let visit = |client, identity| setup.visit(&server, client, identity);
    for client in ["alice", "nobody"] {
        assert_eq!(
            visit(client, Some(&alice)),
            all("full/nothing-offered", None)
        );
        assert_eq!(visit(client, None), resumed(None));
    }
    for mode in ["required", "optional"] {
        setup.ask(&format!("ca = \"clients/ca.pem\", mode = {mode:?}"));
        server.reload();
        assert_eq!(visit("alice", Some(&alice)), all("full/client-auth", ALICE));
        assert_eq!(visit("alice", None), resumed(ALICE));
        if mode == "required" {
            assert_eq!(visit("nobody", None), REFUSED);
        }
    }
    setup.ask("");
    server.reload();
    assert_eq!(visit("alice", None), all("full/client-auth", None));
}

#[test]
fn sessions_end_when_their_authority_is_removed() {
    let setup = Setup::new();
    setup.ask("ca = \"trusted.pem\"");
    let other = ClientCa::new(setup.state.path(), "others");
    let trust = |authorities: &[&ClientCa]| {
        let read = |ca: &&ClientCa| fs::read_to_string(&ca.certificate).unwrap();
        let pem: String = authorities.iter().map(read).collect();
        fs::write(setup.path("trusted.pem"), pem).unwrap();
    };
    trust(&[&setup.ca]);
    let server = setup.serve();
    let visit = |client, identity| setup.visit(&server, client, identity);
    let (alice, renewed) = (setup.ca.issue("alice", HOUR), other.issue("alice", HOUR));
    visit("alice", Some(&alice));
    assert_eq!(visit("alice", Some(&alice)), resumed(ALICE));
    // The server trusts both authorities, as at the start of a change. No session is lost.
    trust(&[&setup.ca, &other]);
    server.reload();
    assert_eq!(visit("alice", Some(&alice)), resumed(ALICE));
    trust(&[&other]);
    server.reload();
    assert_eq!(visit("alice", Some(&alice)), REFUSED);
    assert_eq!(
        visit("alice", Some(&renewed)),
        all("full/client-auth", ALICE)
    );
    assert_eq!(visit("alice", Some(&renewed)), resumed(ALICE));
}

#[test]
fn a_revoked_certificate_ends_only_its_own_sessions() {
    let setup = Setup::new();
    setup.ask("ca = \"clients/ca.pem\", crl = \"clients.crl\"");
    let list = |revoked: &[&Identity]| {
        fs::write(setup.path("clients.crl"), setup.ca.revoke(revoked)).unwrap();
    };
    list(&[]);
    let server = setup.serve();
    let visit = |client, identity| setup.visit(&server, client, identity);
    let (alice, bob) = (setup.ca.issue("alice", HOUR), setup.ca.issue("bob", HOUR));
    for (client, identity, subject) in [("alice", &alice, ALICE), ("bob", &bob, BOB)] {
        visit(client, Some(identity));
        assert_eq!(visit(client, Some(identity)), resumed(subject));
    }
    list(&[&alice]);
    assert_eq!(visit("alice", Some(&alice)), resumed(ALICE));
    server.reload();
    assert_eq!(visit("bob", Some(&bob)), resumed(BOB));
    assert_eq!(visit("alice", Some(&alice)), REFUSED);
    let renewed = setup.ca.issue("alice", HOUR);
    assert_eq!(
        visit("alice", Some(&renewed)),
        all("full/client-auth", ALICE)
    );
    assert_eq!(visit("alice", Some(&renewed)), resumed(ALICE));
    // A file without a list makes the reload fail, and the server keeps the old list.
    fs::write(setup.path("clients.crl"), "no list").unwrap();
    let said = server.reload();
    assert!(
        said.contains("clients.crl: contains no revocation list"),
        "{said}"
    );
    assert_eq!(visit("bob", Some(&bob)), resumed(BOB));
}

#[test]
fn a_session_ends_with_the_certificate_of_its_client() {
    let setup = Setup::new();
    setup.ask("ca = \"clients/ca.pem\"");
    let mut server = setup.serve();
    let (alice, bob) = (
        setup.ca.issue("alice", HOUR),
        setup.ca.issue("bob", 9 * HOUR),
    );
    setup.visit(&server, "alice", Some(&alice));
    setup.visit(&server, "bob", Some(&bob));
    server.terminate();
    assert!(server.ended().success());
    let later = Sessile::serve_at("+2h", &setup.config(), setup.state.path());
    let visit = |client, identity| setup.visit(&later, client, identity);
    assert_eq!(visit("bob", Some(&bob)), resumed(BOB));
    assert_eq!(visit("alice", Some(&alice)), REFUSED);
    let renewed = setup.ca.issue("alice", 9 * HOUR);
    assert_eq!(
        visit("alice", Some(&renewed)),
        all("full/client-auth", ALICE)
    );
}

#[test]
fn sessions_that_do_not_fit_into_a_hello_are_not_kept() {
    let setup = Setup::new();
    setup.ask("ca = \"clients/ca.pem\"");
    let server = setup.serve();
    let alice = setup.ca.issue("alice", HOUR);
    let more = (0..30).map(|_| fs::read_to_string(&setup.ca.certificate).unwrap());
    let mut chain = fs::read_to_string(&alice.certificate).unwrap();
    chain.extend(more);
    fs::write(&alice.certificate, chain).unwrap();
    let visit = || setup.visit(&server, "alice", Some(&alice));
    assert_eq!(visit(), all("full/nothing-offered", ALICE));
    let again = [
        "full/nothing-offered",
        "full/nothing-offered",
        "full/unknown",
    ];
    assert_eq!(visit(), again.map(|verdict| seen(verdict, ALICE)));
}

#[test]
fn a_ticket_of_one_site_does_not_resume_at_another() {
    let setup = Setup::new();
    let site = |name: &str| setup.site(&format!("{name:?}"), "ca = \"clients/ca.pem\"");
    setup.write(&(site("a.test") + &site("b.test") + &setup.site("\"*.c.test\"", "")));
    let server = setup.serve();
    let alice = setup.ca.issue("alice", HOUR);
    for (at, (arguments, how)) in OFFERS.into_iter().enumerate() {
        let visit = |name: &str, session: &str| {
            let session = setup.path(&format!("{session}-{at}.session"));
            visit(server.address(), name, arguments, &session, Some(&alice))
        };
        visit("a.test", "a");
        assert_eq!(visit("a.test", "a"), seen(how, ALICE));
        fs::copy(
            setup.path(&format!("a-{at}.session")),
            setup.path(&format!("b-{at}.session")),
        )
        .unwrap();
        assert_eq!(visit("b.test", "b"), seen("full/name-mismatch", ALICE));
        assert_eq!(visit("a.test", "a"), seen(how, ALICE));
        // The ticket also does not resume under another name of the same site.
        visit("x.c.test", "x");
        assert_eq!(visit("x.c.test", "x"), seen(how, None));
        assert_eq!(visit("y.c.test", "x"), seen("full/name-mismatch", None));
    }
}

#[test]
fn curl_resumes_with_its_certificate() {
    let setup = Setup::new();
    setup.ask("ca = \"clients/ca.pem\"");
    let server = setup.serve();
    let alice = setup.ca.issue("alice", HOUR);
    let url = format!("https://{NAME}:{}/verdict.json", server.address().port());
    // Debian's curl takes no TLS 1.2 tickets.
    for (version, how) in [("1.2", "resumed/session-id"), ("1.3", "resumed/psk")] {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--http1.1",
            "-H",
            "connection: close",
        ]);
        command.args(["--tls-max", version, "--resolve"]);
        command.arg(format!("{NAME}:{}:127.0.0.1", server.address().port()));
        command.arg("--cacert").arg(&setup.certificates.ca);
        command.arg("--cert").arg(&alice.certificate);
        command.arg("--key").arg(&alice.key).args([&url, &url]);
        let ran = run("curl", &mut command, "").succeeded();
        assert_eq!(ran.verdicts(), ["full/nothing-offered", how]);
        assert_eq!(
            ran.stdout
                .matches("\"client_certificate\":\"CN=alice\"")
                .count(),
            2
        );
    }
}

/// A farm with a site that requires certificates.
fn mutual_farm(store: &str) -> (Farm, ClientCa, Certificates) {
    let certificates = Certificates::new();
    let ca = ClientCa::new(certificates.folder(), "clients");
    let farm = Farm::new(&format!(
        "{store}[[site]]\nnames = [\"mutual.test\"]\n\
         client-auth = {{ mode = \"optional\", ca = {:?} }}\n\
         certificates = [{{ chain = {:?}, key = {:?} }}]\n\
         [[site.route]]\npath = \"/\"\nverdict = true\n",
        ca.certificate, certificates.chain, certificates.key
    ));
    (farm, ca, certificates)
}

#[test]
fn ticket_sizes_do_not_reveal_client_certificates_while_the_store_is_down() {
    let nobody = free_port();
    let (farm, ca, _certificates) =
        mutual_farm(&format!("store = \"redis://127.0.0.1:{nobody}\"\n"));
    let [one, other] = ["web1", "web2"].map(|name| farm.serve(name));
    let alice = ca.issue("alice", HOUR);
    for (arguments, how) in &OFFERS[..2] {
        let session = farm.folder().join("session");
        let visit = |server: &Server| {
            let address = server.address();
            visit(address, "mutual.test", arguments, &session, Some(&alice))
        };
        let _ = fs::remove_file(&session);
        assert_eq!(visit(&one), seen("full/nothing-offered", ALICE));
        assert_eq!(ticket_len(&session), 32);
        assert_eq!(visit(&one), seen(how, ALICE));
        assert_eq!(visit(&other), seen("full/store-down", ALICE));
    }
}

#[test]
fn ticket_sizes_do_not_reveal_client_certificates_with_a_shared_store() {
    let redis = Redis::start();
    let ticket_lens = |shared: bool, known: bool| {
        let store = if shared {
            format!("store = \"{}\"\nstore-timeout = \"3s\"\n", redis.url())
        } else {
            String::new()
        };
        let (farm, ca, _certificates) = mutual_farm(&store);
        let [one, other] = ["web1", "web2"].map(|name| farm.serve(name));
        let alice = ca.issue("alice", HOUR);
        let identity = known.then_some(&alice);
        let subject = identity.and(ALICE);
        let mut sizes = Vec::new();
        for (arguments, how) in &OFFERS[..2] {
            let session = farm.folder().join(format!("{}.session", sizes.len()));
            let visit = |server: &Server| {
                visit(
                    server.address(),
                    "mutual.test",
                    arguments,
                    &session,
                    identity,
                )
            };
            assert_eq!(visit(&one), seen("full/nothing-offered", subject));
            assert_eq!(visit(&other), seen(how, subject));
            assert_eq!(visit(&one), seen(how, subject));
            sizes.push(ticket_len(&session));
        }
        sizes
    };
    assert_eq!(ticket_lens(true, true), [32, 32]);
    assert_eq!(ticket_lens(true, false), [32, 32]);
    let sealed = ticket_lens(false, true);
    assert!(sealed.iter().all(|&len| len > 400), "{sealed:?}");
}

/// The length of the ticket in a session file of openssl, in bytes.
fn ticket_len(session: &Path) -> usize {
    let mut command = Command::new("openssl");
    command
        .args(["sess_id", "-noout", "-text", "-in"])
        .arg(session);
    let ran = run("openssl", &mut command, "").succeeded();
    let text = ran.stdout;
    let lines = text
        .lines()
        .skip_while(|line| !line.contains("TLS session ticket:"));
    let dump = lines
        .skip(1)
        .map_while(|line| line.trim_start().split_once(" - "));
    let bytes = |line: &str| {
        line.get(..48)
            .unwrap_or(line)
            .split([' ', '-'])
            .filter(|byte| byte.len() == 2)
            .count()
    };
    dump.map(|(_, line)| bytes(line)).sum()
}
