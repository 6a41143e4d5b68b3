//! `sessile probe` against `sessile farm`, as in the first commands of the README.

use std::process::Command;

use serde_json::Value;

use crate::peers::{Farm, Ran, run};

fn probe(farm: &Farm, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.args(["probe", &farm.address().to_string()]);
    run("sessile", command.args(arguments), "")
}

/// The status, the number of resumed returns and the number of returns, for session IDs, tickets
/// and PSKs.
fn mechanisms(ran: &Ran) -> Vec<(String, u64, u64)> {
    let report: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let all = report["mechanisms"].as_array().expect("a list").iter();
    let known = all.map(|mechanism| {
        let status = mechanism["status"].as_str().expect("a word").to_owned();
        let count = |name: &str| mechanism[name].as_u64().expect("a count");
        (status, count("resumed"), count("returns"))
    });
    known.collect()
}

fn everything_resumes(returns: u64) -> Vec<(String, u64, u64)> {
    vec![("resumes".to_owned(), returns, returns); 3]
}

#[test]
fn all_mechanisms_resume_at_every_server_of_a_farm_with_a_key() {
    for policy in ["source", "round-robin", "least-connections"] {
        let farm = Farm::start(&["--policy", policy]);
        let ran = probe(&farm, &["--insecure", "--json"]);
        assert_eq!(mechanisms(&ran), everything_resumes(5), "{policy}");
        assert_eq!(ran.status.code(), Some(0), "{policy}");
        // The second run trusts the farm's CA and prints the table.
        let trusting = ["--sni", "localhost", "--ca", &farm.ca()];
        let ran = probe(&farm, &trusting).succeeded();
        for line in [
            "session ID: resumed 5 of 5",
            "ticket: resumed 5 of 5",
            "PSK: resumed 5 of 5",
        ] {
            assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
        }
        let metrics = farm.metrics();
        let resumed =
            ["session-id", "ticket", "psk"].map(|how| metrics.verdict(&format!("resumed/{how}")));
        assert_eq!(resumed, [10; 3], "{policy}: {metrics}");
        assert_eq!(
            metrics.verdict("full/nothing-offered"),
            6,
            "{policy}: {metrics}"
        );
        assert_eq!(metrics.handshakes(), 36, "{policy}: {metrics}");
    }
}

#[test]
fn isolated_servers_lose_tls13_sessions_with_round_robin() {
    let farm = Farm::start(&["--isolated", "--policy", "round-robin"]);
    let ran = probe(&farm, &["--insecure", "--json", "--attempts", "6"]);
    let resumes = ("resumes".to_owned(), 6, 6);
    // Clear bytes of TLS 1.2 lead back to the right server. TLS 1.3 has no such bytes.
    let expected = [resumes.clone(), resumes, ("refuses".to_owned(), 0, 6)];
    assert_eq!(mechanisms(&ran), expected);
    assert_eq!(ran.status.code(), Some(1));
    let metrics = farm.metrics();
    assert_eq!(metrics.verdict("full/unknown-key"), 6, "{metrics}");
    assert_eq!(metrics.routed("session-id", "resumed"), 6, "{metrics}");
    assert_eq!(metrics.routed("ticket", "resumed"), 6, "{metrics}");
    assert_eq!(metrics.routed("policy", "refused"), 6, "{metrics}");
    assert_eq!(metrics.routed("policy", "not-offered"), 3, "{metrics}");
}

#[test]
fn isolated_servers_lose_nothing_with_the_source_policy() {
    let farm = Farm::start(&["--isolated"]);
    let ran = probe(&farm, &["--insecure", "--json", "--attempts", "3"]);
    assert_eq!(mechanisms(&ran), everything_resumes(3));
    assert_eq!(ran.status.code(), Some(0));
    assert_eq!(farm.metrics().routed("policy", "resumed"), 3);
}

#[test]
fn a_farm_drains_and_exits_on_a_signal() {
    let mut farm = Farm::start(&[]);
    probe(&farm, &["--insecure", "--attempts", "1"]).succeeded();
    farm.terminate();
    assert_eq!(farm.ended().code(), Some(0));
    let ran = probe(&farm, &["--insecure", "--attempts", "1"]);
    assert_eq!(ran.status.code(), Some(2), "{}", ran.stdout);
    assert!(
        ran.stderr.contains("no connection"),
        "{}{}",
        ran.stdout,
        ran.stderr
    );
    let mut wrong = Command::new(env!("CARGO_BIN_EXE_sessile"));
    let ran = run("sessile", wrong.args(["probe", "https://localhost/"]), "");
    assert_eq!(ran.status.code(), Some(2), "{}", ran.stderr);
}
