//! `sessile probe` against real servers.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::peers::{
    By, Certificates, End, Fault, Faulty, NAME, assert_follows_schema, free_port, nginx,
    nginx_with, openssl, ticket_key,
};

/// The words of a report, whose lines may be wrapped.
fn in_one_line(report: &str) -> String {
    report.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn probe(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sessile"))
        .args(["probe", "--rate", "0"])
        .args(arguments)
        .output()
        .expect("the program under test")
}

/// A JSON report and the exit status.
pub(crate) struct Found {
    pub(crate) report: Value,
    pub(crate) status: Option<i32>,
}

impl Found {
    pub(crate) fn by(
        certificates: &Certificates,
        addresses: &[SocketAddr],
        attempts: &str,
    ) -> Self {
        let ca = certificates.ca.to_str().expect("a path in UTF-8");
        let mut arguments = vec![NAME, "--ca", ca, "--json", "--attempts", attempts];
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        for address in &addresses {
            arguments.extend(["--address", address]);
        }
        Self::of(&probe(&arguments))
    }

    /// Probes one server with more arguments.
    pub(crate) fn with(certificates: &Certificates, server: SocketAddr, more: &[&str]) -> Self {
        let ca = certificates.ca.to_str().expect("a path in UTF-8");
        let address = server.to_string();
        let plain = [NAME, "--ca", ca, "--json", "--address", &address];
        Self::of(&probe(&[&plain[..], more].concat()))
    }

    pub(crate) fn of(output: &Output) -> Self {
        let said = String::from_utf8_lossy(&output.stderr);
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {said}"));
        assert_follows_schema(&output.stdout);
        Self {
            report,
            status: output.status.code(),
        }
    }

    pub(crate) fn mechanism(&self, name: &str) -> &Value {
        let mechanisms = self.report["mechanisms"].as_array().expect("a list");
        let named = |mechanism: &&Value| mechanism["mechanism"] == name;
        mechanisms.iter().find(named).expect("a mechanism")
    }

    /// The codes of the findings.
    pub(crate) fn codes(&self) -> Vec<&str> {
        let findings = self.report["findings"].as_array().expect("a list").iter();
        findings
            .map(|finding| finding["code"].as_str().expect("a word"))
            .collect()
    }

    /// The statuses of session IDs, tickets and PSKs.
    pub(crate) fn statuses(&self) -> [&str; 3] {
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
    // Each server gets four sessions of its own and four of the other server.
    assert_eq!(found.statuses(), ["partly"; 3], "{:#}", found.report);
    assert_eq!(found.status, Some(1));
    let groups = serde_json::json!([[addresses[0]], [addresses[1]]]);
    for name in ["session-id", "ticket", "psk"] {
        let mechanism = found.mechanism(name);
        let counts = (&mechanism["resumed"], &mechanism["returns"]);
        assert_eq!(counts, (&8.into(), &16.into()), "{mechanism:#}");
        assert_eq!(mechanism["groups"], groups, "{mechanism:#}");
    }
    assert_eq!(found.codes(), ["no-shared-ticket-keys", "no-shared-cache"]);

    let [one, two] = addresses.map(|address| address.to_string());
    let ca = certificates.ca.to_str().unwrap();
    let both = format!("{one},{two}");
    let output = probe(&[NAME, "--ca", ca, "--attempts", "4", "--address", &both]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = format!("Each of these groups resumes only its own sessions: {one}; {two}.");
    assert!(in_one_line(&text).contains(&line), "{text}");
    assert!(
        in_one_line(&text).contains("PSK: resumed 8 of 16"),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "colour without a terminal");
    assert!(output.stderr.is_empty(), "progress without a terminal");
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
    let report = said(&[&nobody, "--html", "/no/such/folder/page.html"]);
    assert!(report.contains("no handshake was finished"), "{report}");
    assert!(report.contains("cannot write the HTML page"), "{report}");
    for (duration, words) in [("0s", "longer than 0s"), ("400days", "at most 365days")] {
        let text = said(&["farm.test", "--watch", duration]);
        assert!(text.contains(words), "{text}");
    }
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

/// Probes farms of nginx that share nothing or a ticket key. `keys`: the key file of each server.
fn groups_of(keys: &[u8]) -> Value {
    let certificates = Certificates::new();
    let farm: Vec<_> = keys
        .iter()
        .map(|key| {
            let file = certificates.folder().join(format!("{key}.key"));
            std::fs::write(&file, ticket_key(*key)).unwrap();
            let directives = format!(
                "ssl_session_cache off; ssl_session_ticket_key {};",
                file.display()
            );
            nginx(&certificates, &directives)
        })
        .collect();
    let addresses: Vec<SocketAddr> = farm.iter().map(crate::peers::Peer::address).collect();
    let found = Found::by(&certificates, &addresses, "1");
    assert_eq!(found.status, Some(1));
    assert_eq!(
        found.codes(),
        ["no-shared-ticket-keys"],
        "{:#}",
        found.report
    );
    let index = |address: &Value| {
        let is_it = |known: &SocketAddr| *address == known.to_string();
        addresses.iter().position(is_it).unwrap()
    };
    let groups = found.mechanism("psk")["groups"].as_array().unwrap().iter();
    groups
        .map(|group| {
            group
                .as_array()
                .unwrap()
                .iter()
                .map(index)
                .collect::<Vec<_>>()
        })
        .collect::<Vec<_>>()
        .into()
}

#[test]
fn the_groups_that_share_a_key_do_not_depend_on_the_order_of_the_addresses() {
    assert_eq!(
        groups_of(&[1, 1, 2, 2]),
        serde_json::json!([[0, 1], [2, 3]])
    );
    assert_eq!(
        groups_of(&[1, 2, 1, 2]),
        serde_json::json!([[0, 2], [1, 3]])
    );
}

#[test]
fn a_key_that_was_rotated_on_one_server_is_named() {
    let certificates = Certificates::new();
    let files = [1_u8, 2].map(|key| {
        let file = certificates.folder().join(format!("{key}.key"));
        std::fs::write(&file, ticket_key(key)).unwrap();
        file.display().to_string()
    });
    let old = format!(
        "ssl_session_cache off; ssl_session_ticket_key {};",
        files[0]
    );
    let rotated = format!(
        "ssl_session_cache off; ssl_session_ticket_key {}; ssl_session_ticket_key {};",
        files[1], files[0]
    );
    let farm = [&old, &old, &rotated].map(|directives| nginx(&certificates, directives));
    let addresses = [0, 1, 2].map(|server: usize| farm[server].address());
    let found = Found::by(&certificates, &addresses, "1");
    // nginx renews a ticket of an old key.
    let codes = ["one-way-keys", "one-way-keys", "renews-tls12-ticket"];
    assert_eq!(found.codes(), codes, "{:#}", found.report);
    let both = serde_json::json!([addresses[0], addresses[2]]);
    assert_eq!(found.report["findings"][0]["servers"], both);
}

#[test]
fn a_required_client_certificate_is_named_and_can_be_given() {
    let certificates = Certificates::new();
    let ca = certificates.ca.to_str().unwrap();
    let directives = format!(
        "ssl_session_cache shared:s:1m; ssl_verify_client on; ssl_client_certificate {ca};"
    );
    let web = nginx(&certificates, &directives);
    let chain = certificates.chain.to_str().unwrap();
    let key = certificates.key.to_str().unwrap();
    let strict = openssl(&certificates, &["-www", "-Verify", "2", "-CAfile", ca]);
    for server in [&web, &strict] {
        let address = server.address().to_string();
        let plain = [NAME, "--ca", ca, "--json", "--address", &address];
        let output = probe(&plain);
        let found = Found::of(&output);
        // nginx finishes the handshake, refuses the request, and removes the session from its cache.
        if server.address() == web.address() {
            assert_eq!(
                found.codes(),
                ["client-certificate-requested"],
                "{:#}",
                found.report
            );
            assert_eq!(found.status, Some(0));
        } else {
            assert_eq!(
                found.codes(),
                ["client-certificate-required"],
                "{:#}",
                found.report
            );
            assert_eq!(found.statuses(), ["failed"; 3], "{:#}", found.report);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(text.contains("a client certificate is required"), "{text}");
        }
        let with = [&plain[..], &["--cert", chain, "--key", key]].concat();
        let found = Found::of(&probe(&with));
        assert_eq!(found.statuses(), ["resumes"; 3], "{:#}", found.report);
        assert_eq!(found.status, Some(0));
        let first = &found.mechanism("psk")["attempts"][0];
        assert_eq!(first["certificate_requested"], true, "{first:#}");
    }
    let missing = probe(&[NAME, "--cert", chain]);
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn a_share_and_single_mechanisms_decide_for_monitors() {
    let certificates = Certificates::new();
    let farm = [(); 2].map(|()| nginx(&certificates, "ssl_session_cache shared:s:1m;"));
    let both = format!("{},{}", farm[0].address(), farm[1].address());
    let ca = certificates.ca.to_str().unwrap();
    let plain = [NAME, "--ca", ca, "--address", &both, "--attempts", "1"];
    for (share, status) in [("50%", 0), ("51%", 1), ("0", 0), ("101%", 2)] {
        let arguments = [&plain[..], &["--mechanism", "psk", "--fail-under", share]].concat();
        assert_eq!(probe(&arguments).status.code(), Some(status), "{share}");
    }
    let output = probe(&[&plain[..], &["--prometheus"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let line = format!("sessile_probe_resumed{{target=\"{NAME}\",mechanism=\"psk\"}} 2");
    assert!(text.contains(&line), "{text}");
    let output = probe(&[&plain[..], &["--dry-run"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text.starts_with("about 24 connections to 2 addresses"),
        "{text}"
    );
    let page = certificates.folder().join("report.html");
    let html = ["--html", page.to_str().unwrap()];
    assert_eq!(probe(&[&plain[..], &html].concat()).status.code(), Some(1));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("do not share ticket keys"), "{page}");
    let missing = probe(&[&plain[..], &["--html", "/no-such-folder/report.html"]].concat());
    let text = String::from_utf8(missing.stderr).unwrap();
    assert!(text.contains("/no-such-folder/report.html"), "{text}");
    let verbose = probe(&[&plain[..], &["--verbose"]].concat());
    let text = String::from_utf8(verbose.stdout).unwrap();
    assert!(text.contains("  #  address"), "{text}");
}

#[test]
fn a_server_that_ends_connections_with_http_requests_is_probed() {
    let certificates = Certificates::new();
    let ca = certificates.ca.to_str().unwrap();
    // This server closes each connection at the first request.
    let server = nginx(&certificates, "ssl_session_cache shared:s:1m; return 444;");
    let address = server.address().to_string();
    for request in ["http1", "none"] {
        let arguments = [
            NAME,
            "--ca",
            ca,
            "--json",
            "--address",
            &address,
            "--request",
            request,
        ];
        let found = Found::of(&probe(&arguments));
        assert_eq!(
            found.statuses(),
            ["resumes"; 3],
            "{request}: {:#}",
            found.report
        );
        assert_eq!(found.codes(), [""; 0], "{request}");
    }
}

#[test]
fn sessions_of_one_name_are_offered_to_another_name() {
    let certificates = Certificates::new();
    let ca = certificates.ca.to_str().unwrap();
    // The configuration of CVE-2025-23419: two names share a cache, and one of them requires client certificates.
    let server = nginx_with(certificates.folder(), |port| {
        let pair = certificates.nginx_directives();
        let common = format!(
            "listen 127.0.0.1:{port} ssl; {pair} ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:1m;"
        );
        format!(
            "{common} server_name {NAME}; return 204; }}\n server {{ {common} server_name mtls.test; \
             ssl_verify_client on; ssl_client_certificate {ca}; return 204;\n"
        )
    });
    let address = server.address().to_string();
    let arguments = [
        NAME,
        "--insecure",
        "--json",
        "--address",
        &address,
        "--other-name",
        "mtls.test",
    ];
    let found = Found::of(&probe(&arguments));
    // This nginx resumes with TLS 1.2, but refuses the request as misdirected. It ends the handshake with TLS 1.3.
    assert_eq!(
        found.codes(),
        ["resumes-for-other-name"],
        "{:#}",
        found.report
    );
    let text = found.report["findings"][0]["text"].as_str().unwrap();
    assert!(text.contains("refused HEAD / with 421"), "{text}");
    let offers = found.report["other_names"].as_array().unwrap();
    let outcomes: Vec<_> = offers
        .iter()
        .map(|offer| offer["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["resumed", "resumed", "failed"], "{offers:#?}");
    assert_eq!(found.status, Some(0));
}
