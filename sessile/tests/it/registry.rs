//! A registry export changes the behaviour of a server. The tests import the export, start the
//! server, and connect as clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::peers::{Certificates, Sessile, run};

const SCHANNEL: &str = "Windows Registry Editor Version 5.00\r\n\r\n\
    [HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Control\\SecurityProviders\\SCHANNEL]\r\n";

/// A configuration with these values, imported from the format of regedit.
fn imported(certificates: &Certificates, values: &str) -> PathBuf {
    let folder = certificates.folder();
    let config = folder.join("sessile.toml");
    let (chain, key) = (certificates.chain.display(), certificates.key.display());
    let text = format!(
        "[log]\naccess = \"off\"\n\n[[listener]]\naddress = \"127.0.0.1:0\"\n\n[[site]]\n\
         certificates = [{{ chain = \"{chain}\", key = \"{key}\" }}]\n\n[[site.route]]\npath = \"/\"\nverdict = true\n"
    );
    fs::write(&config, text).expect("a file");
    let export = folder.join("schannel.reg");
    let utf16 = format!("\u{feff}{SCHANNEL}{values}\r\n");
    let bytes: Vec<u8> = utf16.encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&export, bytes).expect("a file");
    let mut import = Command::new(env!("CARGO_BIN_EXE_sessile"));
    import.args(["settings", "import"]).arg(&export);
    import.arg("--config").arg(&config);
    run("sessile", &mut import, "").succeeded();
    config
}

fn probe(server: &Sessile, certificates: &Certificates, attempts: u32) -> Value {
    let mut probe = Command::new(env!("CARGO_BIN_EXE_sessile"));
    probe.args([
        "probe",
        &server.address().to_string(),
        "--json",
        "--rate",
        "0",
    ]);
    probe.args(["--attempts", &attempts.to_string(), "--ca"]);
    probe.arg(&certificates.ca);
    let ran = run("sessile", &mut probe, "");
    serde_json::from_str(&ran.stdout).expect("JSON")
}

fn mechanism<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mechanisms = report["mechanisms"].as_array().expect("a list");
    let found = mechanisms.iter().find(|found| found["mechanism"] == name);
    found.expect("the probe tries it")
}

#[test]
fn a_cache_size_of_zero_turns_the_server_side_cache_off() {
    let certificates = Certificates::new();
    let config = imported(&certificates, "\"MaximumCacheSize\"=dword:00000000");
    let server = Sessile::serve_configured(&config, certificates.folder());
    let report = probe(&server, &certificates, 3);
    let by_id = mechanism(&report, "session-id");
    assert_eq!(by_id["status"], "not-offered", "{by_id}");
    let note = by_id["note"].as_str().expect("why");
    assert!(note.contains("server-side cache is off"), "{note}");
    assert_eq!(by_id["resumed"], 0, "{by_id}");
    // Tickets need no cache.
    assert_eq!(mechanism(&report, "ticket")["resumed"], 3);
    assert_eq!(mechanism(&report, "psk")["resumed"], 3);
    let metrics = server.metrics();
    assert_eq!(metrics.verdict("resumed/session-id"), 0);
}

#[test]
fn sessions_resume_after_two_but_not_four_seconds_with_a_cache_time_of_three() {
    let certificates = Certificates::new();
    let config = imported(&certificates, "\"ServerCacheTime\"=dword:00000bb8");
    let server = Sessile::serve_configured(&config, certificates.folder());
    let session = certificates.folder().join("session.pem");
    let begin = Instant::now();
    assert!(!reused(&server, &session, &["-sess_out"]));
    // This sleep does not wait for an event: the test needs a session of a given age.
    std::thread::sleep(Duration::from_secs(2).saturating_sub(begin.elapsed()));
    assert!(reused(&server, &session, &["-sess_in"]));
    assert!(begin.elapsed() < Duration::from_secs(3), "a busy machine");
    std::thread::sleep(Duration::from_secs(4).saturating_sub(begin.elapsed()));
    assert!(!reused(&server, &session, &["-sess_in"]));
    server.await_metrics(|metrics| metrics.verdict("full/expired") == 1);
}

/// True if openssl resumed a TLS 1.2 connection by session ID.
fn reused(server: &Sessile, session: &Path, arguments: &[&str]) -> bool {
    let mut client = Command::new("openssl");
    client.args(["s_client", "-tls1_2", "-no_ticket", "-connect"]);
    client
        .arg(server.address().to_string())
        .args(arguments)
        .arg(session);
    let ran = run("openssl", &mut client, "").succeeded();
    ran.count("Reused") == 1
}
