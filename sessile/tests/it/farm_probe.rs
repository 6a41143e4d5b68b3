//! `sessile probe` against `sessile farm`, as in the first commands of the README.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use sessile::client::Trust;
use sessile::probe::{self, ProbePlan, ProbeReport};

use crate::peers::{Farm, Ran, run};

fn probe(farm: &Farm, arguments: &[&str]) -> Ran {
    probe_target(&farm.address().to_string(), arguments)
}

fn probe_target(target: &str, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.args(["probe", target, "--rate", "0"]);
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
        // Each run also uses one TLS 1.3 session twice.
        assert_eq!(resumed, [10, 10, 14], "{policy}: {metrics}");
        assert_eq!(
            metrics.verdict("full/nothing-offered"),
            8,
            "{policy}: {metrics}"
        );
        assert_eq!(metrics.handshakes(), 42, "{policy}: {metrics}");
    }
}

#[test]
fn the_table_names_every_server_of_the_farm_and_fits_a_terminal() {
    let farm = Farm::start(&[]);
    let ran = probe(&farm, &["--insecure"]).succeeded();
    let psk = ran
        .stdout
        .split("\n\n")
        .find(|part| part.starts_with("TLS 1.3 PSK\n"));
    let psk = psk.expect("a table of TLS 1.3 PSK");
    for (server, times) in [("web1", 2), ("web2", 2), ("web3", 2)] {
        assert_eq!(psk.matches(server).count(), times, "{}", ran.stdout);
    }
    assert_eq!(psk.matches("  resumed  ").count(), 5, "{}", ran.stdout);
    let isolated = Farm::start(&["--isolated"]);
    let ran_isolated = probe(&isolated, &["--insecure"]);
    for line in ran.stdout.lines().chain(ran_isolated.stdout.lines()) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn the_target_can_be_a_url_and_an_address_can_be_a_name() {
    let farm = Farm::start(&[]);
    let url = format!("https://localhost:{}/verdict.json", farm.port());
    // The farm has no IPv6 address, and localhost may have one.
    let ran = probe_target(&url, &["--insecure", "--json"]).succeeded();
    assert_eq!(mechanisms(&ran), everything_resumes(5));
    let name = format!("localhost:{}", farm.port());
    let ran = probe_target(
        "farm.localhost",
        &["--address", &name, "--ca", &farm.ca(), "--json"],
    );
    let report: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let addresses = report["addresses"].as_array().expect("a list");
    assert!(
        addresses.contains(&farm.address().to_string().into()),
        "{report}"
    );
}

/// Probes a farm with the addresses of the names.
async fn probe_names(names: &[Vec<SocketAddr>]) -> ProbeReport {
    let plan = ProbePlan {
        start_tls: None,
        proxy: None,
        target: "localhost".to_owned(),
        server_name: "localhost".to_owned(),
        host: "localhost".to_owned(),
        addresses: names.concat(),
        names: names.to_vec(),
        other_names: Vec::new(),
        mechanisms: probe::MECHANISMS.to_vec(),
        returns: 2,
        request: probe::Request::Http1,
        alpn: None,
        gaps: Vec::new(),
        age_limits: None,
        watch: None,
        first_connections: Vec::new(),
        trust: Trust::Insecure,
        certificate: None,
        pace: probe::Pace::new(0),
        timeout: Duration::from_secs(30),
    };
    let mut report = ProbeReport::new(&plan);
    let result = probe::run(&plan, &mut report, &mut |_| {}).await;
    result.expect("the plan is valid");
    report
}

#[tokio::test]
async fn an_address_that_refuses_is_left_out_if_its_name_has_another() {
    let farm = Farm::start(&[]);
    let answering = farm.address();
    // The farm listens on one address only, so the others refuse.
    let [first, second] =
        [1, 2].map(|host| SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, host], farm.port())));
    let report = probe_names(&[vec![first, answering, second]]).await;
    assert!(report.all_resume());
    assert_eq!(report.addresses, [answering]);
    let left_out: Vec<_> = report.left_out.iter().map(|left| left.address).collect();
    assert_eq!(left_out, [first, second]);
    let text = probe::table::write(
        &report,
        probe::table::Colour::Never,
        probe::table::Detail::Summary,
    );
    assert!(text.contains("left out: [::1]:"), "{text}");
    // Another name does not replace an address.
    let report = probe_names(&[vec![first], vec![answering]]).await;
    assert_eq!(report.addresses, [first, answering]);
    assert!(!report.all_resume());
    let report = probe_names(&[vec![first, second]]).await;
    assert!(report.has_no_connection());
}

#[test]
fn the_admin_listener_of_a_farm_has_the_api_and_a_page() {
    let farm = Farm::start(&["--servers", "2"]);
    probe(&farm, &["--insecure", "--attempts", "1"]).succeeded();
    let page = |accept: &str| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--include", "-H", &format!("accept: {accept}")]);
        run("curl", command.arg(format!("http://{}/", farm.admin())), "")
            .succeeded()
            .stdout
    };
    let html = page("text/html");
    assert!(
        html.contains("content-security-policy: default-src 'none'"),
        "{html}"
    );
    for part in [
        ">web1<",
        ">web2<",
        ">up<",
        "resumed/psk",
        "5 of 9 handshakes resumed",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
    let text = page("*/*");
    for part in ["\nweb1    up ", "\nresumed/psk  ", "\n/api/balancer"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let server = farm.await_server("web2", |server| server["state"] == "up");
    assert_eq!(server["connections"], 4, "{server}");
    let token = std::fs::read_to_string(farm.data().join("admin.token")).unwrap();
    let mut drain = Command::new("curl");
    drain.args(["-sS", "--fail", "-d", r#"{"drain": true}"#]);
    drain.args(["-H", &format!("authorization: Bearer {}", token.trim())]);
    drain.arg(format!("http://{}/api/balancer/servers/web1", farm.admin()));
    run("curl", &mut drain, "").succeeded();
    assert!(
        page("*/*").contains("\nweb1    draining"),
        "{}",
        page("*/*")
    );
}

#[test]
fn isolated_servers_lose_tls13_sessions() {
    let farm = Farm::start(&["--isolated"]);
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
    let farm = Farm::start(&["--isolated", "--policy", "source"]);
    let ran = probe(&farm, &["--insecure", "--json", "--attempts", "3"]);
    assert_eq!(mechanisms(&ran), everything_resumes(3));
    assert_eq!(ran.status.code(), Some(0));
    // The probe also uses one session twice.
    assert_eq!(farm.metrics().routed("policy", "resumed"), 3 + 2);
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
    let ran = run("sessile", wrong.args(["probe", "http://localhost/"]), "");
    assert_eq!(ran.status.code(), Some(2), "{}", ran.stderr);
}
