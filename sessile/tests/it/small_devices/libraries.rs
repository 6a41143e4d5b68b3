//! Clients with the TLS libraries of small devices. Each client is a C program that the test
//! compiles.

use std::path::Path;
use std::process::Command;

use super::wire::Wire;
use super::{Devices, STORED};
use crate::peers::run;
use crate::store::setup::Redis;

/// Number of returns of a client.
const RETURNS: usize = 10;

const LIMITS: [(u8, usize); 2] = [(1, 512), (4, 4096)];

struct Library {
    source: &'static str,
    /// The Debian package with the library.
    package: &'static str,
    links: &'static [&'static str],
}

const WOLFSSL: Library = Library {
    source: "wolfssl.c",
    package: "libwolfssl-dev",
    links: &["-lwolfssl"],
};

const MBEDTLS: Library = Library {
    source: "mbedtls.c",
    package: "libmbedtls-dev",
    links: &["-lmbedtls", "-lmbedx509", "-lmbedcrypto"],
};

/// The ways to resume: the protocol version, true if the client uses tickets, and the verdict.
const PSK: (u8, bool, &str) = (13, true, "resumed/psk");
const TICKET: (u8, bool, &str) = (12, true, "resumed/ticket");
const SESSION_ID: (u8, bool, &str) = (12, false, "resumed/session-id");

impl Library {
    /// # Panics
    ///
    /// With the name of the package if the compiler or the library is missing.
    fn compile(&self, devices: &Devices) -> Command {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/small_devices");
        let program = devices.certificates.folder().join("device");
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&program);
        cc.arg(sources.join(self.source)).args(self.links);
        let compiled = run("gcc", &mut cc, "");
        assert!(
            compiled.status.success(),
            "{} is not compiled: install the packages {} and libc6-dev:\n{}",
            self.source,
            self.package,
            compiled.stderr,
        );
        Command::new(program)
    }
}

/// A client makes a session and resumes it in all later connections. All responses are complete.
fn assert_returns(
    library: &Library,
    devices: &Devices,
    (version, tickets, resumed): (u8, bool, &str),
    max_fragment_length: Option<(u8, usize)>,
) {
    let wire = Wire::start(devices.server.address());
    let mut client = library.compile(devices);
    client.arg(wire.address().port().to_string());
    client.arg(&devices.certificates.ca);
    client.arg(version.to_string());
    client.arg(u8::from(tickets).to_string());
    let (code, limit) = max_fragment_length.unwrap_or((0, 1 << 14));
    client.arg(code.to_string());
    client.args([&(1 + RETURNS).to_string(), "/large"]);
    let ran = run(library.package, &mut client, "").succeeded();
    let what = format!("{} {version} {resumed} {limit}", library.source);
    let length = super::large().len();
    let full = format!("full/nothing-offered {length}");
    let again = format!("{resumed} {length}");
    let mut expected = vec![full.as_str()];
    expected.extend([again.as_str()].repeat(RETURNS));
    assert_eq!(ran.stdout.lines().collect::<Vec<_>>(), expected, "{what}");
    for _ in 0..=RETURNS {
        if max_fragment_length.is_some() {
            wire.records().assert_limit(limit, version == 13, &what);
        }
    }
}

#[test]
fn wolfssl_resumes_with_every_mechanism() {
    let devices = Devices::new("");
    for way in [PSK, TICKET, SESSION_ID] {
        for limit in [None].into_iter().chain(LIMITS.map(Some)) {
            assert_returns(&WOLFSSL, &devices, way, limit);
        }
    }
}

#[test]
fn wolfssl_resumes_stored_sessions() {
    let devices = Devices::new(STORED);
    assert_returns(&WOLFSSL, &devices, PSK, None);
    assert_returns(&WOLFSSL, &devices, PSK, Some(LIMITS[0]));
    // With early data, the NewSessionTicket messages have an extension.
    let redis = Redis::start();
    let devices = Devices::new(&early_data(&redis));
    assert_returns(&WOLFSSL, &devices, PSK, None);
    assert_returns(&WOLFSSL, &devices, PSK, Some(LIMITS[0]));
}

/// Settings of `[session]` with which clients may send early data.
pub(super) fn early_data(redis: &Redis) -> String {
    let url = redis.url();
    format!("store = \"{url}\"\nstore-timeout = \"3s\"\nearly-data = \"16KiB\"\n")
}

#[test]
fn mbedtls_resumes_with_every_mechanism() {
    let devices = Devices::new("");
    for way in [TICKET, SESSION_ID] {
        for limit in [None].into_iter().chain(LIMITS.map(Some)) {
            assert_returns(&MBEDTLS, &devices, way, limit);
        }
    }
}
