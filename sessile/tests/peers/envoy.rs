//! `sessile key export --format envoy`: real Envoys resume each other's tickets with the exported keys.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::peers::{Certificates, Peer, eventually, s_client, set_clock};

const API: &str = "type.googleapis.com/envoy.extensions";

/// An Envoy that answers 200, with the ticket keys of an exported file.
fn envoy(certificates: &Certificates, name: &str, tickets: &Path) -> Peer {
    Peer::start("envoy", |port| {
        let file = certificates.folder().join(format!("{name}.json"));
        let config = config(certificates, tickets, port);
        fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new("envoy");
        command.args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]);
        command.args(["--service-node", name, "--service-cluster", "shop", "-c"]);
        command.arg(file);
        command
    })
}

fn config(certificates: &Certificates, tickets: &Path, port: u16) -> Value {
    let tls = json!({
        "@type": format!("{API}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{
                "certificate_chain": {"filename": certificates.chain},
                "private_key": {"filename": certificates.key},
            }],
        },
        "session_ticket_keys_sds_secret_config": {
            "name": "sessile-ticket-keys",
            "sds_config": {"path_config_source": {"path": tickets}},
        },
    });
    let routes = json!([{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]);
    let manager = json!({
        "@type": format!("{API}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "test",
        "delayed_close_timeout": "0s",
        "http_protocol_options": {"accept_http_10": true},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": format!("{API}.filters.http.router.v3.Router"),
        }}],
    });
    json!({"static_resources": {"listeners": [{
        "name": "tls",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
            "filters": [{"name": "http", "typed_config": manager}],
        }],
    }]}})
}

fn export(key: &Path, clock: Option<&str>, tickets: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.args(["key", "export", "--format", "envoy", "--file"]);
    command.arg(key).arg("--output").arg(tickets);
    if let Some(clock) = clock {
        set_clock(&mut command, clock);
    }
    assert!(command.status().unwrap().success());
}

/// Makes a session at a server.
fn session(certificates: &Certificates, server: &Peer, version: &str) -> PathBuf {
    let file = certificates.folder().join("session");
    let written = ["-sess_out", file.to_str().unwrap()];
    s_client(server.address(), None, &[&[version], &written[..]].concat());
    file
}

fn resumes(server: &Peer, session: &Path, version: &str) -> bool {
    let read = ["-sess_in", session.to_str().unwrap()];
    let said = s_client(server.address(), None, &[&[version], &read[..]].concat());
    said.contains("\nReused, TLSv1")
}

/// The first bytes of a new TLS 1.2 ticket, which are the name of its key.
fn key_name(server: &Peer) -> String {
    let said = s_client(server.address(), None, &["-tls1_2"]);
    let dump = said.split("TLS session ticket:\n").nth(1).unwrap();
    dump.lines().next().unwrap()[..55].to_owned()
}

#[test]
fn three_envoys_resume_each_others_tickets_across_two_epochs() {
    let certificates = Certificates::new();
    let key = certificates.folder().join("farm.key");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    let made = command.args(["key", "new", "--file"]).arg(&key).status();
    assert!(made.unwrap().success());
    let exports = [("one", None), ("two", Some("+1h")), ("three", None)];
    let servers = exports.map(|(name, clock)| {
        let tickets = certificates.folder().join(format!("{name}.yaml"));
        export(&key, clock, &tickets);
        envoy(&certificates, name, &tickets)
    });
    let [one, two, _] = &servers;
    assert_ne!(key_name(one), key_name(two));
    for version in ["-tls1_2", "-tls1_3"] {
        for from in &servers {
            let session = session(&certificates, from, version);
            for to in &servers {
                assert!(resumes(to, &session, version), "{version}");
            }
        }
    }
    // A file that root replaces keeps its owner, because Envoy often runs as another user.
    let first = certificates.folder().join("one.yaml");
    chown(&first, Some(1234), None).unwrap();
    // Envoy watches the file. The tickets of the epoch before stay valid.
    let old = session(&certificates, one, "-tls1_2");
    export(&key, Some("+1h"), &first);
    assert_eq!(fs::metadata(&first).unwrap().uid(), 1234);
    eventually("the first Envoy uses the new key", || {
        key_name(one) == key_name(two)
    });
    for server in &servers {
        assert!(resumes(server, &old, "-tls1_2"));
    }
}
