//! `sessile probe --after`: returns after a gap.

use std::path::Path;

use serde_json::Value;

use crate::peers::{Certificates, Sessile, nginx};
use crate::probe::Found;

/// The delayed returns of a report: gap, first connection and outcome.
fn delayed(found: &Found) -> Vec<(f64, String, String)> {
    let all = found.report["delayed"].as_array().expect("a list").iter();
    let word = |value: &Value| value.as_str().expect("a word").to_owned();
    all.map(|made| {
        let gap = made["gap_seconds"].as_f64().expect("a number");
        (gap, word(&made["first_connection"]), word(&made["outcome"]))
    })
    .collect()
}

#[test]
fn a_session_that_is_gone_after_a_gap_is_found() {
    let certificates = Certificates::new();
    let directives =
        "ssl_session_cache shared:s:1m; ssl_session_tickets off; ssl_session_timeout 3s;";
    let server = nginx(&certificates, directives);
    let delays = [
        "--mechanism",
        "session-id",
        "--after",
        "1s,6s",
        "--first-connection",
        "close-notify,reset",
    ];
    let found = Found::with(&certificates, server.address(), &delays);
    let outcomes = [
        (1.0, "close-notify", "resumed"),
        (6.0, "close-notify", "refused"),
        (1.0, "reset", "resumed"),
        (6.0, "reset", "refused"),
    ];
    let outcomes = outcomes.map(|(gap, fate, outcome)| (gap, fate.to_owned(), outcome.to_owned()));
    assert_eq!(delayed(&found), outcomes, "{:#}", found.report);
    assert_eq!(found.codes(), ["lost-after-gap"; 2], "{:#}", found.report);
    let text = found.report["findings"][0]["text"].as_str().unwrap();
    assert!(
        text.contains("resumed a session after 1s, and refused one after 6s"),
        "{text}"
    );
    assert_eq!(found.status, Some(1));
}

/// A server that closes idle connections after a second, and forgets their sessions.
fn forgetful(certificates: &Certificates, folder: &Path) -> Sessile {
    let config = folder.join("sessile.toml");
    let text = format!(
        "[key]\nfile = \"none\"\n[session]\ntickets = false\n\
         [connection]\nidle-timeout = \"1s\"\npurge-on-reclaim = true\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n\
         [[site.route]]\npath = \"/\"\nverdict = true\n",
        certificates.chain, certificates.key,
    );
    std::fs::write(&config, text).unwrap();
    Sessile::serve_configured(&config, folder)
}

#[test]
fn a_session_that_is_lost_with_its_idle_connection_is_found() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().unwrap();
    let server = forgetful(&certificates, folder.path());
    let delays = ["--mechanism", "session-id", "--after", "4s"];
    let found = Found::with(&certificates, server.address(), &delays);
    assert_eq!(
        found.codes(),
        ["lost-with-idle-connection"],
        "{:#}",
        found.report
    );
    let idle = &found.report["delayed"][0];
    assert_eq!(idle["first_connection"], "idle");
    assert!(idle["closed_after_seconds"].is_f64(), "{idle:#}");
    assert_eq!(found.report["delayed"][1]["outcome"], "resumed");
}

/// The result of the search for an age: the oldest session that resumed, and the youngest that was refused.
fn age(found: &Found, index: usize) -> (Option<f64>, Option<f64>) {
    let age = &found.report["session_ages"][index];
    (
        age["kept_seconds"].as_f64(),
        age["refused_seconds"].as_f64(),
    )
}

#[test]
fn the_age_at_which_a_server_refuses_is_found_within_the_bound() {
    let certificates = Certificates::new();
    let server = nginx(
        &certificates,
        "ssl_session_cache shared:s:1m; ssl_session_timeout 4s;",
    );
    let search = [
        "--mechanism",
        "session-id,ticket",
        "--find-age",
        "8s",
        "--within",
        "2s",
        "--first-connection",
        "close-notify",
    ];
    let found = Found::with(&certificates, server.address(), &search);
    let (Some(kept), Some(refused)) = age(&found, 0) else {
        panic!("{:#}", found.report);
    };
    // nginx counts whole seconds. The machine can delay a return, but a session never lives longer.
    assert!(
        kept < 6.0 && refused >= 3.0 && kept < refused,
        "{kept} {refused}"
    );
    // A ticket is not offered after its lifetime of 4 s.
    let (kept, refused) = age(&found, 1);
    assert!(
        kept.is_some_and(|kept| kept < 6.0) && refused.is_none(),
        "{:#}",
        found.report
    );
    assert_eq!(found.codes(), [""; 0], "{:#}", found.report);
    assert_eq!(found.status, Some(0));
}

#[test]
fn a_search_finds_sessions_that_are_lost_with_idle_connections() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().unwrap();
    let server = forgetful(&certificates, folder.path());
    let search = [
        "--mechanism",
        "session-id",
        "--find-age",
        "4s",
        "--within",
        "4s",
    ];
    let found = Found::with(&certificates, server.address(), &search);
    assert_eq!(
        found.codes(),
        ["lost-with-idle-connection"],
        "{:#}",
        found.report
    );
    assert_eq!(found.status, Some(1));
    let (idle, ended) = (age(&found, 0), age(&found, 1));
    assert!(idle.1.is_some() && ended.1.is_none(), "{:#}", found.report);
}
