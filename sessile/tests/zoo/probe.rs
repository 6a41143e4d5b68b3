//! `sessile probe` against the zoo of farms.

use std::process::Command;

use serde_json::Value;

use crate::farms::{self, CODES, Farm, Sharing};
use crate::peers::{NAME, run};

/// Probes all addresses of a farm, twice each.
fn probe(farm: &Farm) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.args(["probe", NAME, "--json", "--ca"]);
    command.arg(&farm.certificates.ca);
    let attempts = farm.addresses.len() * 2;
    command.args(["--attempts", &attempts.to_string()]);
    for address in &farm.addresses {
        command.args(["--address", &address.to_string()]);
    }
    let ran = run("sessile", &mut command, "");
    serde_json::from_str(&ran.stdout)
        .unwrap_or_else(|error| panic!("{}: no JSON ({error}): {}", farm.name, ran.stderr))
}

/// The statuses that are right for a mechanism. In some farms, the status depends on the order of addresses.
fn right_statuses(sharing: Sharing, servers: usize) -> &'static [&'static str] {
    match sharing {
        Sharing::NotOffered => &["not-offered"],
        Sharing::Never => &["refuses"],
        Sharing::Ends => &["refuses", "failed"],
        Sharing::NeedsCertificate => &["failed"],
        Sharing::Groups([_]) => &["resumes"],
        // Each return goes to another server than the last one.
        Sharing::Groups(groups) if groups.len() == servers => &["refuses"],
        Sharing::Groups(_) => &["partly", "refuses"],
    }
}

/// True if no return of the mechanism fails to resume.
const fn is_healthy(sharing: Sharing) -> bool {
    matches!(sharing, Sharing::NotOffered | Sharing::Groups([_]))
}

/// Asserts the status of each mechanism, except those about which the probe is wrong today.
#[track_caller]
fn assert_found(farm: &Farm, wrong_today: &[&str]) {
    let expected = &farm.expected;
    for code in expected.codes {
        assert!(CODES.contains(code), "{}: unknown code {code}", farm.name);
    }
    let report = probe(farm);
    let mechanisms = report["mechanisms"].as_array().expect("a list");
    let sharing = [
        ("session-id", expected.session_id),
        ("ticket", expected.ticket),
        ("psk", expected.psk),
    ];
    let mut mistakes = Vec::new();
    for (name, sharing) in sharing {
        let named = |mechanism: &&Value| mechanism["mechanism"] == name;
        let found = mechanisms.iter().find(named).expect("a mechanism");
        let status = found["status"].as_str().expect("a word");
        let right = right_statuses(sharing, farm.addresses.len());
        if !wrong_today.contains(&name) && !right.contains(&status) {
            mistakes.push(format!(
                "{name}: {status} instead of {right:?}, {} of {}, {}",
                found["resumed"], found["returns"], found["note"]
            ));
        }
    }
    assert!(mistakes.is_empty(), "{}: {mistakes:#?}", farm.name);

    if sharing.iter().any(|(_, sharing)| !is_healthy(*sharing)) {
        assert_eq!(report["all_resume"], false, "{}", farm.name);
    } else if wrong_today.is_empty() {
        assert_eq!(report["all_resume"], true, "{}", farm.name);
    }
}

macro_rules! farms {
    ($($farm:ident $(except $($wrong:literal),+)?;)+) => {$(
        #[test]
        fn $farm() {
            assert_found(&farms::$farm(), &[$($($wrong),+)?]);
        }
    )+};
}

farms! {
    nginx_sharing_nothing;
    nginx_sharing_a_cache;
    nginx_sharing_keys;
    nginx_rotated_on_one;
    nginx_in_two_key_groups;
    nginx_with_a_zero_key;
    nginx_without_a_cache;
    nginx_with_a_short_timeout;
    haproxy_without_tickets;
    // The probe takes the absence of a new ticket in a resumed handshake for a failure.
    haproxy_sharing_keys except "psk";
    apache_sharing_nothing;
    caddy_alone;
    openssl_stateful;
    openssl_stateless;
    gnutls_alone;
    node_alone;
    ends_tls13_resumption;
    sessile_by_default;
    sessile_without_tickets;
    sessile_without_entries;
    sessile_sharing_a_key;
    sessile_sharing_nothing;
    sessile_purging_on_reclaim;
    // The probe says that these servers give no ticket, or have nothing in common with the probe.
    haproxy_with_client_certificates except "session-id", "ticket", "psk";
    sessile_with_client_certificates except "session-id", "ticket", "psk";
    nginx_with_client_certificates;
    nginx_with_a_private_name;
    apache_sharing_redis;
    caddy_sharing_keys;
    mosquitto_alone;
}
