//! Sessions that are found and valid, but do not match the new ClientHello.

use std::fs;
use std::path::Path;
use std::process::Command;

use sessile_proto::hello::{DEFAULT_LIMIT, HelloReader};

use super::attacks::six_hours_apart;
use super::clients::{HOW, How, openssl, openssl_with};
use super::{Farm, Setup};
use crate::peers::{Cut, Peer, Proxy, run};

/// Arguments that offer one of two cipher suites with the same hash. Therefore, OpenSSL offers a
/// session of one suite together with the other suite.
fn suite(how: How, other: bool) -> [&'static str; 2] {
    match (how, other) {
        (How::Psk, false) => ["-ciphersuites", "TLS_AES_128_GCM_SHA256"],
        (How::Psk, true) => ["-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"],
        (_, false) => ["-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        (_, true) => ["-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
    }
}

fn visit(farm: &Farm, session: &Path, server: &Peer, how: How, arguments: &[&str]) -> String {
    openssl_with(how, &farm.root(), session, server.address(), |command| {
        command.args(arguments);
    })
}

#[test]
fn a_session_with_another_suite_is_declined_and_the_next_one_starts_with_age_zero() {
    let farm = Farm::new("10h", "10h", None);
    let [then, now, later] = six_hours_apart(&farm, [""; 3]);
    for how in HOW {
        let session = farm.path(&format!("suite-{how:?}.pem"));
        let at = |server, other| visit(&farm, &session, server, how, &suite(how, other));
        assert_eq!(at(&then, false), "full/nothing-offered");
        // The server accepts the ticket. The library then declines the session because of the
        // suite.
        assert_eq!(at(&now, true), "full/suite-mismatch", "{how:?}");
        // This is twelve hours after the first full handshake, but only six hours after the second.
        assert_eq!(at(&later, true), how.verdict());
    }
}

/// An OpenSSL configuration that omits the extension. `s_client` has no argument for this.
const WITHOUT_EMS: &str = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n\
                           [tls]\nOptions = -ExtendedMasterSecret\n";

#[test]
fn a_session_without_extended_master_secret_does_not_resume_with_it() {
    let farm = Farm::new("1h", "10h", None);
    let server = farm.serve("web1");
    let configuration = farm.path("without-ems.cnf");
    fs::write(&configuration, WITHOUT_EMS).unwrap();
    for how in [How::SessionId, How::Ticket] {
        let session = farm.path(&format!("ems-{how:?}.pem"));
        let with = || visit(&farm, &session, &server, how, &[]);
        let without = || {
            openssl_with(how, &farm.root(), &session, server.address(), |command| {
                command.env("OPENSSL_CONF", &configuration);
            })
        };
        assert_eq!(without(), "full/nothing-offered");
        assert_eq!(without(), how.verdict());
        assert_eq!(with(), "full/ems-mismatch", "{how:?}");
        assert_eq!(with(), how.verdict());
    }
}

/// Finds a hexadecimal field in a session file and changes its last byte.
const CHANGE: &str = r#"
import base64, sys
file, ticket = sys.argv[1], bytes.fromhex(sys.argv[2])
lines = open(file).read().split("\n")
first, last = (lines.index("-----%s SSL SESSION PARAMETERS-----" % word) for word in ("BEGIN", "END"))
der = base64.b64decode("".join(lines[first + 1:last]))
assert der.count(ticket) == 1
der = der.replace(ticket, ticket[:-1] + bytes([ticket[-1] ^ 1]))
lines[first + 1:last] = base64.encodebytes(der).decode().split()
open(file, "w").write("\n".join(lines))
"#;

/// The offer of a client, recorded by a proxy.
fn offered(farm: &Farm, session: &Path, server: &Peer, how: How) -> Vec<u8> {
    let proxy = Proxy::start(server.address(), Cut::Whole);
    let verdict = openssl(how, &farm.root(), session, proxy.address(), None);
    assert_eq!(verdict, how.verdict());
    let mut reader = HelloReader::new(DEFAULT_LIMIT);
    assert!(reader.push(&proxy.hello()).unwrap());
    let hello = reader.hello().unwrap();
    match how {
        How::Psk => {
            let mut identities = hello.pre_shared_key.unwrap().identities();
            identities.next().unwrap().identity.to_vec()
        }
        _ => hello.session_ticket.unwrap().to_vec(),
    }
}

#[test]
fn a_changed_ticket_has_another_verdict_than_a_foreign_ticket() {
    let farm = Farm::new("1h", "10h", None);
    let server = farm.serve_as("web1", &Setup::default());
    for how in [How::Ticket, How::Psk] {
        let session = farm.path(&format!("changed-{how:?}.pem"));
        let before = farm.path(&format!("before-{how:?}.pem"));
        assert_eq!(
            visit(&farm, &session, &server, how, &[]),
            "full/nothing-offered"
        );
        fs::copy(&session, &before).unwrap();
        let ticket = offered(&farm, &session, &server, how);
        let hex: String = ticket.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut command = Command::new("python3");
        command.args(["-c", CHANGE]).arg(&before).arg(hex);
        let ran = run("python3", &mut command, "");
        assert!(ran.status.success(), "{}", ran.stderr);
        assert_eq!(
            visit(&farm, &before, &server, how, &[]),
            "full/bad-ticket",
            "{how:?}"
        );
    }
}
