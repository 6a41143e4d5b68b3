//! `sessile probe` against the zoo of farms.

use std::process::Command;

use serde_json::Value;

use crate::farms::{self, Farm, Sharing};
use crate::peers::{NAME, assert_follows_schema, run};

/// Probes all addresses of a farm.
fn probe(farm: &Farm) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.args(["probe", NAME, "--json", "--rate", "0", "--ca"]);
    command.arg(&farm.certificates.ca);
    command.args(farm.arguments);
    if farm.has_client_certificate {
        // The certificate of the servers is also valid for clients.
        command.arg("--cert").arg(&farm.certificates.chain);
        command.arg("--key").arg(&farm.certificates.key);
    }
    for address in &farm.addresses {
        command.args(["--address", &address.to_string()]);
    }
    let ran = run("sessile", &mut command, "");
    assert_follows_schema(ran.stdout.as_bytes());
    serde_json::from_str(&ran.stdout)
        .unwrap_or_else(|error| panic!("{}: no JSON ({error}): {}", farm.name, ran.stderr))
}

/// The status and the groups that are right for a mechanism.
fn right(sharing: Sharing) -> (&'static str, &'static [&'static [usize]]) {
    match sharing {
        Sharing::NotOffered => ("not-offered", &[]),
        Sharing::Never | Sharing::Ends => ("refuses", &[]),
        Sharing::NeedsCertificate => ("failed", &[]),
        Sharing::Groups(groups @ [_]) => ("resumes", groups),
        Sharing::Groups(groups) => ("partly", groups),
    }
}

/// The words that a remedy must have: code of the finding, product and words. A step for all has no product.
const REMEDIES: [(&str, &str, &str); 29] = [
    ("ends-resumption", "", "turn off the mechanism that fails"),
    ("weak-ticket-key", "nginx", "openssl rand 80"),
    ("weak-ticket-key", "HAProxy", "openssl rand -base64 80"),
    ("weak-ticket-key", "GnuTLS", "3.6.14"),
    ("no-shared-ticket-keys", "nginx", "ssl_session_ticket_key"),
    ("no-shared-ticket-keys", "HAProxy", "tls-ticket-keys"),
    ("no-shared-ticket-keys", "Apache", "SSLSessionTicketKeyFile"),
    ("no-shared-ticket-keys", "Envoy", "session_ticket_keys"),
    ("no-shared-ticket-keys", "Caddy", "distributed"),
    ("no-shared-ticket-keys", "Traefik", "not possible"),
    ("no-shared-ticket-keys", "IIS", "New-TlsSessionTicketKey"),
    ("no-shared-ticket-keys", "all", "sessile key export"),
    ("no-shared-cache", "Apache", "SSLSessionCache"),
    ("no-shared-cache", "nginx", "ssl_session_tickets on"),
    ("no-shared-cache", "sessile", "session.store"),
    ("refuses-shared-keys", "nginx", "ssl_certificate"),
    ("one-way-keys", "", "to every server first"),
    ("lifetime-over-seven-days", "nginx", "ssl_session_timeout"),
    ("early-data-replayed", "nginx", "ssl_early_data off"),
    ("early-data-replayed", "HAProxy", "allow-0rtt"),
    ("client-certificate-required", "", "--cert FILE --key FILE"),
    ("client-certificate-requested", "", "--cert FILE --key FILE"),
    ("lost-with-idle-connection", "IIS 6.0", "EnableKernelSSL=1"),
    ("lost-after-gap", "nginx", "ssl_session_timeout"),
    ("several-servers-at-address", "", "--address"),
    ("resumes-for-other-name", "nginx", "1.26.3"),
    ("no-mechanism", "nginx", "ssl_session_tickets on"),
    ("not-offered-by-all", "", "same settings"),
    ("forgets-own-sessions", "", "--address"),
];

/// The faults of a finding's remedy.
fn faults_of_remedy(finding: &Value) -> Vec<String> {
    let remedies = finding["remedies"].as_array().expect("a list");
    let of_code = REMEDIES.iter().filter(|row| finding["code"] == row.0);
    let mut faults = Vec::new();
    for (code, product, words) in of_code.clone() {
        let is_named = remedies.iter().any(|step| {
            step["product"] == *product
                && step["text"]
                    .as_str()
                    .is_some_and(|text| text.contains(words))
        });
        if !is_named {
            faults.push(format!(
                "{code}: no step for {product:?} with {words:?}: {remedies:#?}"
            ));
        }
    }
    if of_code.count() == 0 && !remedies.is_empty() {
        faults.push(format!("{}: an unexpected remedy", finding["code"]));
    }
    faults
}

/// Asserts the status and the groups of each mechanism, and the findings with their remedies.
#[track_caller]
fn assert_found(farm: &Farm) {
    let expected = &farm.expected;
    let report = probe(farm);
    let mut mistakes = Vec::new();
    for (name, sharing) in [
        ("session-id", expected.session_id),
        ("ticket", expected.ticket),
        ("psk", expected.psk),
    ] {
        let mechanisms = report["mechanisms"].as_array().expect("a list");
        let named = |mechanism: &&Value| mechanism["mechanism"] == name;
        let found = mechanisms.iter().find(named).expect("a mechanism");
        let (status, groups) = right(sharing);
        if found["status"] != status {
            mistakes.push(format!(
                "{name}: {} instead of {status}, {} of {}, {}",
                found["status"], found["resumed"], found["returns"], found["note"]
            ));
        }
        let to_addresses = |group: &&[usize]| -> Vec<String> {
            group
                .iter()
                .map(|&server| farm.addresses[server].to_string())
                .collect()
        };
        let groups: Vec<Vec<String>> = groups.iter().map(to_addresses).collect();
        if found["groups"] != serde_json::json!(groups) {
            mistakes.push(format!(
                "{name}: groups {} instead of {groups:?}",
                found["groups"]
            ));
        }
    }
    let findings = report["findings"].as_array().expect("a list");
    mistakes.extend(findings.iter().flat_map(faults_of_remedy));
    let mut codes: Vec<&str> = findings
        .iter()
        .map(|finding| finding["code"].as_str().expect("a word"))
        .collect();
    codes.dedup();
    let mut right_codes = expected.codes.to_vec();
    codes.sort_unstable();
    right_codes.sort_unstable();
    if codes != right_codes {
        let texts: Vec<&Value> = findings.iter().map(|finding| &finding["text"]).collect();
        mistakes.push(format!(
            "findings {codes:?} instead of {right_codes:?}: {texts:#?}"
        ));
    }
    assert!(mistakes.is_empty(), "{}: {mistakes:#?}", farm.name);
}

macro_rules! farms {
    ($($farm:ident;)+) => {$(
        #[test]
        fn $farm() {
            assert_found(&farms::$farm());
        }
    )+};
}

farms! {
    nginx_sharing_nothing;
    nginx_sharing_a_cache;
    nginx_sharing_keys;
    nginx_with_other_certificates;
    nginx_rotated_on_one;
    nginx_in_two_key_groups;
    nginx_with_early_data;
    nginx_with_a_zero_key;
    nginx_without_a_cache;
    nginx_with_a_short_timeout;
    haproxy_without_tickets;
    haproxy_sharing_keys;
    apache_sharing_nothing;
    caddy_alone;
    openssl_stateful;
    openssl_stateless;
    gnutls_alone;
    node_alone;
    node_with_h2_only;
    ends_tls13_resumption;
    resets_after_a_ticket;
    hangs_after_a_session_id;
    sessile_by_default;
    sessile_without_tickets;
    sessile_without_entries;
    sessile_sharing_a_key;
    sessile_sharing_nothing;
    sessile_purging_on_reclaim;
    haproxy_with_client_certificates;
    sessile_with_client_certificates;
    nginx_with_client_certificates;
    haproxy_with_accepted_clients;
    sessile_with_accepted_clients;
    nginx_with_accepted_clients;
    asyncio_with_client_certificates;
    nginx_with_a_private_name;
    apache_sharing_redis;
    caddy_sharing_keys;
    mosquitto_alone;
    mosquitto_without_a_request;
    mosquitto_after_a_gap;
    grpc_alone;
    grpc_with_http1;
    grpc_without_a_request;
    smtp_alone;
    imap_sharing_keys;
    pop3_sharing_nothing;
    dovecot_by_default;
    dovecot_with_one_process;
    smtps_alone;
    ftp_alone;
    ftp_with_a_certificate;
    ldap_alone;
    postgres_alone;
}
