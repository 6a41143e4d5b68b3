//! `sessile probe` against real servers.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::peers::{By, Certificates, End, Fault, Faulty, NAME, free_port, nginx, openssl};

/// The words of a report, whose lines may be wrapped.
fn in_one_line(report: &str) -> String {
    report.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn probe(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sessile"))
        .args(["probe", "--rate", "0"])
        .args(arguments)
        .output()
        .expect("the program under test")
}

/// A JSON report and the exit status.
struct Found {
    report: Value,
    status: Option<i32>,
}

impl Found {
    fn by(certificates: &Certificates, addresses: &[SocketAddr], attempts: &str) -> Self {
        let ca = certificates.ca.to_str().expect("a path in UTF-8");
        let mut arguments = vec![NAME, "--ca", ca, "--json", "--attempts", attempts];
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        for address in &addresses {
            arguments.extend(["--address", address]);
        }
        let output = probe(&arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        Self {
            report: serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|error| panic!("no JSON ({error}): {said}")),
            status: output.status.code(),
        }
    }

    fn mechanism(&self, name: &str) -> &Value {
        let mechanisms = self.report["mechanisms"].as_array().expect("a list");
        let named = |mechanism: &&Value| mechanism["mechanism"] == name;
        mechanisms.iter().find(named).expect("a mechanism")
    }

    /// The statuses of session IDs, tickets and PSKs.
    fn statuses(&self) -> [&str; 3] {
        ["session-id", "ticket", "psk"]
            .map(|name| self.mechanism(name)["status"].as_str().expect("a word"))
    }
}

#[test]
fn a_server_with_cache_and_tickets_resumes_everything() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache shared:s:1m;");
    let found = Found::by(&certificates, &[server.address()], "3");
    assert_eq!(found.statuses(), ["resumes"; 3], "{:#}", found.report);
    assert_eq!(found.status, Some(0));
    for name in ["session-id", "ticket", "psk"] {
        let mechanism = found.mechanism(name);
        assert_eq!(
            (&mechanism["resumed"], &mechanism["returns"]),
            (&3.into(), &3.into())
        );
        let attempts = mechanism["attempts"].as_array().unwrap();
        assert_eq!(attempts[0]["outcome"], "not-offered");
        for attempt in &attempts[1..] {
            assert_eq!(attempt["outcome"], "resumed");
            assert_eq!(attempt["offered"]["type"], name);
            assert_eq!(attempt["protocol"], mechanism["protocol"]);
        }
    }
}

#[test]
fn a_server_without_a_cache_gives_no_session_id_and_the_probe_succeeds() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache off;");
    let found = Found::by(&certificates, &[server.address()], "2");
    assert_eq!(found.statuses(), ["not-offered", "resumes", "resumes"]);
    let note = found.mechanism("session-id")["note"].as_str().unwrap();
    assert!(note.contains("its server-side cache is off"), "{note}");
    assert_eq!(found.status, Some(0));
}

#[test]
fn a_server_that_forgets_session_ids_refuses_them() {
    let certificates = Certificates::new();
    let directives = "ssl_session_cache none; ssl_session_tickets off;";
    let server = nginx(&certificates, directives);
    let found = Found::by(&certificates, &[server.address()], "2");
    assert_eq!(found.mechanism("session-id")["status"], "refuses");
    assert_eq!(found.mechanism("ticket")["status"], "not-offered");
    assert_eq!(found.status, Some(1));
}

#[test]
fn names_the_servers_that_share_nothing() {
    let certificates = Certificates::new();
    let farm = [(); 2].map(|()| nginx(&certificates, "ssl_session_cache shared:s:1m;"));
    let addresses = [farm[0].address(), farm[1].address()];
    let found = Found::by(&certificates, &addresses, "4");
    // Each return goes to the server that does not have the offered session.
    assert_eq!(found.statuses(), ["refuses"; 3], "{:#}", found.report);
    assert_eq!(found.status, Some(1));

    let [one, two] = addresses.map(|address| address.to_string());
    let ca = certificates.ca.to_str().unwrap();
    let both = format!("{one},{two}");
    let output = probe(&[NAME, "--ca", ca, "--attempts", "4", "--address", &both]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = format!("TLS 1.3 PSK: resumed 0 of 4; refused by {two} 2 times, {one} 2 times");
    assert!(in_one_line(&text).contains(&line), "{text}");
    assert!(!text.contains('\x1b'), "colour without a terminal");
    assert!(output.stderr.is_empty(), "progress without a terminal");
}

#[test]
fn servers_with_the_same_ticket_key_resume_each_others_tickets() {
    let certificates = Certificates::new();
    let key = certificates.folder().join("ticket.key");
    std::fs::write(&key, [7; 80]).unwrap();
    let directives = format!(
        "ssl_session_cache off; ssl_session_ticket_key {};",
        key.display()
    );
    let farm = [(); 2].map(|()| nginx(&certificates, &directives));
    let addresses = [farm[0].address(), farm[1].address()];
    let found = Found::by(&certificates, &addresses, "4");
    assert_eq!(found.statuses(), ["not-offered", "resumes", "resumes"]);
    assert_eq!(found.status, Some(0));
}

#[test]
fn a_version_that_the_server_does_not_speak_is_not_offered() {
    let certificates = Certificates::new();
    for (version, missing) in [("-tls1_2", 1..=1), ("-tls1_3", 2..=2)] {
        let server = openssl(&certificates, &["-www", version]);
        let found = Found::by(&certificates, &[server.address()], "2");
        let not_offered = found.statuses().map(|status| status == "not-offered");
        let expected = match missing.start() {
            1 => [false, false, true],
            _ => [true, true, false],
        };
        assert_eq!(not_offered, expected, "{version}: {:#}", found.report);
        assert_eq!(found.status, Some(0), "{version}: {:#}", found.report);
    }
}

#[test]
fn a_server_without_tickets_resumes_tls13_from_its_cache() {
    let certificates = Certificates::new();
    let server = openssl(&certificates, &["-www", "-no_ticket"]);
    let found = Found::by(&certificates, &[server.address()], "2");
    // Without tickets, OpenSSL keeps its TLS 1.3 sessions in a cache, and its PSKs only name these
    // sessions.
    assert_eq!(found.statuses(), ["resumes", "not-offered", "resumes"]);
    assert_eq!(
        found.mechanism("ticket")["note"],
        "the server gives no ticket"
    );
    assert_eq!(found.status, Some(0));
}

#[test]
fn a_server_that_is_not_http_is_probed_too() {
    let certificates = Certificates::new();
    let server = openssl(&certificates, &["-rev"]);
    let found = Found::by(&certificates, &[server.address()], "1");
    assert_eq!(found.statuses(), ["resumes"; 3], "{:#}", found.report);
    assert_eq!(found.status, Some(0));
}

#[test]
fn shows_the_verdict_of_a_sessile_server_as_the_cause() {
    let certificates = Certificates::new();
    let directives = "ssl_session_cache none; ssl_session_tickets off; ssl_protocols TLSv1.2;\n\
        add_header sessile-server web2 always; add_header sessile-verdict full/evicted always;";
    let server = nginx(&certificates, directives);
    let found = Found::by(&certificates, &[server.address()], "1");
    let id = found.mechanism("session-id");
    assert_eq!(id["attempts"][1]["server"], "web2");
    assert_eq!(id["attempts"][1]["verdict"], "full/evicted");
    assert_eq!(id["cause"][0]["verdict"], "full/evicted");
    assert_eq!(id["cause"][0]["said_by"][0], "web2");
}

#[test]
fn a_stopped_server_fails_the_probe_without_ending_it() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache shared:s:1m;");
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let found = Found::by(&certificates, &[server.address(), nobody], "3");
    assert_eq!(found.statuses(), ["partly"; 3], "{:#}", found.report);
    assert_eq!(found.status, Some(1));
    let failed = &found.mechanism("psk")["attempts"][1];
    assert_eq!(failed["outcome"], "failed");
    assert!(
        failed["error"]
            .as_str()
            .unwrap()
            .starts_with("cannot connect")
    );
}

#[test]
fn missing_connections_and_wrong_usage_exit_with_2_and_a_reason() {
    let said = |arguments: &[&str]| {
        let output = probe(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8(text).unwrap()
    };
    let nobody = format!("127.0.0.1:{}", free_port());
    assert!(said(&[&nobody]).contains("no connection to 127.0.0.1"));
    assert!(said(&["http://farm.test/"]).contains("HOST:PORT"));
    let unknown = said(&["farm.test", "--address", "a.invalid:1"]);
    assert!(
        unknown.contains("cannot find the address of a.invalid"),
        "{unknown}"
    );
    assert!(
        said(&["farm.test", "--ca", "no-such.pem", "--address", "127.0.0.1"])
            .contains("no-such.pem")
    );
    assert!(said(&["farm.test", "--attempts", "0"]).contains("--attempts"));
    assert!(said(&["127.0.0.1", "--sni", "not a name"]).contains("neither a host name"));

    let certificates = Certificates::new();
    let server = nginx(&certificates, "");
    let untrusted = said(&[&server.address().to_string()]);
    assert!(
        untrusted.contains("certificate is not accepted"),
        "{untrusted}"
    );
    assert!(untrusted.contains("--insecure"), "{untrusted}");
}

#[test]
fn an_address_as_host_is_verified_and_sends_no_server_name() {
    let certificates = Certificates::new();
    let directives =
        "ssl_session_cache shared:s:1m; add_header sessile-server \"[$ssl_server_name]\" always;";
    let server = nginx(&certificates, directives);
    let address = server.address().to_string();
    let ca = certificates.ca.to_str().unwrap();
    for (arguments, name) in [(&[][..], "[]"), (&["--sni", NAME][..], "[farm.test]")] {
        let mut all = vec![address.as_str(), "--ca", ca, "--json", "--attempts", "1"];
        all.extend(arguments);
        let output = probe(&all);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["mechanisms"][0]["attempts"][0]["server"], name);
    }
}

#[test]
fn an_interrupted_probe_prints_a_partial_report() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = silent.local_addr().unwrap().to_string();
    let child = Command::new(env!("CARGO_BIN_EXE_sessile"))
        .args(["probe", &target, "--insecure", "--json", "--timeout", "1h"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Wait until the first handshake has begun.
    let (_connection, _) = silent.accept().unwrap();
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["complete"], false);
    assert_eq!(report["mechanisms"][0]["status"], "unfinished");
}

#[test]
fn distinguishes_a_server_that_ends_handshakes_with_its_session_from_one_that_is_down() {
    let certificates = Certificates::new();
    let ca = certificates.ca.to_str().unwrap();
    for (by, end) in By::ALL.into_iter().zip(End::ALL) {
        let server = Faulty::start(&certificates, by, Fault::Offers(end));
        let address = server.address().to_string();
        let mut arguments = vec![NAME, "--ca", ca, "--address", &address];
        arguments.extend(["--attempts", "3", "--timeout", "2s"]);
        let output = probe(&arguments);
        assert_eq!(output.status.code(), Some(1), "{by:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let words = in_one_line(&text);
        let line = "3 of 3 connections that offered a session were ended by the server; 3 of 3 without one succeeded";
        assert!(words.contains(line), "{text}");
        let remarks = words.matches("; without a session it succeeded").count();
        assert_eq!(remarks, 3, "{text}");

        arguments.push("--json");
        let output = probe(&arguments);
        let found = Found {
            report: serde_json::from_slice(&output.stdout).unwrap(),
            status: output.status.code(),
        };
        assert_eq!(found.status, Some(1));
        let mechanism = found.mechanism(by.as_str());
        assert_eq!(mechanism["status"], "refuses", "{mechanism:#}");
        let counts = serde_json::json!({"offered": 3, "ended": 3, "compared": 3, "succeeded": 3});
        assert_eq!(mechanism["ended_offers"], counts, "{mechanism:#}");
        let attempts = mechanism["attempts"].as_array().unwrap();
        for failed in &attempts[1..] {
            assert_eq!(failed["outcome"], "failed");
            assert_eq!(failed["offered"]["type"], by.as_str());
            assert_eq!(failed["without_session"]["succeeded"], true);
        }
    }
}

#[test]
fn a_server_that_stops_after_the_first_handshake_is_not_called_faulty() {
    let certificates = Certificates::new();
    let server = Faulty::start(&certificates, By::Psk, Fault::AllAfterFirst(End::Reset));
    let found = Found::by(&certificates, &[server.address()], "2");
    assert_eq!(found.status, Some(1), "{:#}", found.report);
    let psk = found.mechanism("psk");
    assert_eq!(psk["ended_offers"]["succeeded"], 0, "{psk:#}");
    let failed = &psk["attempts"][1];
    assert_eq!(failed["without_session"]["succeeded"], false, "{failed:#}");
}
