//! The report for programs. `docs/reference/probe.md` promises its shape: fields are added, and none is
//! renamed or removed.

use std::time::Duration;

use rustls::CipherSuite;
use serde::Serialize;
use sessile_proto::hello::{TLS_1_2, TLS_1_3};
use sessile_proto::verdict::How;

use super::report::{Attempt, Findings, Report, Seen};
use crate::client::hex;

#[derive(Serialize)]
struct Written<'a> {
    target: &'a str,
    server_name: &'a str,
    addresses: Vec<String>,
    left_out: Vec<LeftOut<'a>>,
    complete: bool,
    all_resume: bool,
    mechanisms: Vec<Mechanism<'a>>,
}

#[derive(Serialize)]
struct LeftOut<'a> {
    address: String,
    error: &'a str,
}

#[derive(Serialize)]
struct Mechanism<'a> {
    mechanism: &'static str,
    protocol: &'static str,
    status: &'static str,
    returns: usize,
    resumed: usize,
    note: Option<&'static str>,
    cause: Vec<Cause>,
    ended_offers: Option<EndedOffers>,
    attempts: Vec<Handshake<'a>>,
}

#[derive(Serialize)]
struct EndedOffers {
    offered: usize,
    ended: usize,
    compared: usize,
    succeeded: usize,
}

#[derive(Serialize)]
struct Cause {
    verdict: String,
    said_by: Vec<String>,
}

#[derive(Serialize)]
struct Handshake<'a> {
    attempt: usize,
    address: String,
    outcome: &'static str,
    error: Option<String>,
    offered: Option<Offered>,
    #[serde(skip_serializing_if = "Option::is_none")]
    without_session: Option<Comparison>,
    #[serde(flatten)]
    seen: Option<Shown<'a>>,
}

/// A handshake without a session, after one with a session failed.
#[derive(Serialize)]
struct Comparison {
    succeeded: bool,
    error: Option<String>,
}

#[derive(Serialize)]
struct Shown<'a> {
    session_given: bool,
    protocol: String,
    cipher_suite: String,
    connect_ms: f64,
    first_byte_ms: f64,
    handshake_ms: f64,
    certificate_sha256: Option<String>,
    server: Option<&'a str>,
    verdict: Option<&'a str>,
}

#[derive(Serialize)]
struct Offered {
    #[serde(rename = "type")]
    how: &'static str,
    prefix: String,
    suffix: String,
    bytes: usize,
}

/// The report as JSON, indented, without a final line break.
///
/// # Errors
///
/// Never in practice: every key is text and every number finite.
pub fn write(report: &Report) -> serde_json::Result<String> {
    let address = |address: &std::net::SocketAddr| address.to_string();
    let left_out = report.left_out.iter().map(|left_out| LeftOut {
        address: address(&left_out.address),
        error: &left_out.error,
    });
    serde_json::to_string_pretty(&Written {
        target: &report.target,
        server_name: &report.server_name,
        addresses: report.addresses.iter().map(address).collect(),
        left_out: left_out.collect(),
        complete: report.complete,
        all_resume: report.all_resume(),
        mechanisms: report.mechanisms.iter().map(mechanism).collect(),
    })
}

fn mechanism(findings: &Findings) -> Mechanism<'_> {
    let causes = findings.causes().into_iter().map(|cause| Cause {
        verdict: cause.verdict.to_string(),
        said_by: cause.said_by,
    });
    Mechanism {
        mechanism: findings.how.as_str(),
        protocol: match findings.how {
            How::SessionId | How::Ticket => "TLS 1.2",
            How::Psk => "TLS 1.3",
        },
        status: findings.status().as_str(),
        returns: findings.returns().count(),
        resumed: findings.resumed(),
        note: findings.note(),
        cause: causes.collect(),
        ended_offers: findings.ended_offers().map(|found| EndedOffers {
            offered: found.offered,
            ended: found.ended,
            compared: found.compared,
            succeeded: found.succeeded,
        }),
        attempts: findings
            .attempts
            .iter()
            .enumerate()
            .map(handshake)
            .collect(),
    }
}

fn handshake((number, attempt): (usize, &Attempt)) -> Handshake<'_> {
    let failed = attempt.result.as_ref().err();
    let comparison = failed.and_then(|failed| failed.without_session.as_ref());
    Handshake {
        attempt: number,
        address: attempt.address.to_string(),
        outcome: attempt.outcome(),
        error: attempt.error().map(ToString::to_string),
        offered: attempt.offered().map(|offer| Offered {
            how: offer.how.as_str(),
            prefix: offer.prefix(),
            suffix: offer.suffix(),
            bytes: offer.bytes.len(),
        }),
        without_session: comparison.map(|compared| Comparison {
            succeeded: compared.is_ok(),
            error: compared.as_ref().err().map(ToString::to_string),
        }),
        seen: attempt.seen().map(shown),
    }
}

fn shown(seen: &Seen) -> Shown<'_> {
    Shown {
        session_given: seen.given,
        protocol: protocol(seen.version),
        cipher_suite: suite(seen.cipher_suite),
        connect_ms: millis(seen.times.connect),
        first_byte_ms: millis(seen.times.first_byte),
        handshake_ms: millis(seen.times.handshake),
        certificate_sha256: seen.certificate.map(|digest| hex(&digest)),
        server: seen.server.as_deref(),
        verdict: seen.verdict.as_deref(),
    }
}

/// Milliseconds, to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn protocol(version: u16) -> String {
    match version {
        TLS_1_2 => "TLS 1.2".to_owned(),
        TLS_1_3 => "TLS 1.3".to_owned(),
        other => format!("{other:#06x}"),
    }
}

/// The registered name; rustls marks the suites of TLS 1.3 in a way of its own.
fn suite(number: u16) -> String {
    match CipherSuite::from(number).as_str() {
        Some(name) => name.replace("TLS13_", "TLS_"),
        None => format!("{number:#06x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::samples;

    #[test]
    fn the_fields_that_are_promised_are_there() {
        let text = write(&samples::report()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["complete"], true);
        assert_eq!(value["all_resume"], false);
        let id = &value["mechanisms"][0];
        assert_eq!(id["mechanism"], "session-id");
        assert_eq!(id["protocol"], "TLS 1.2");
        assert_eq!(id["status"], "partly");
        assert_eq!(id["resumed"], 1);
        assert_eq!(id["returns"], 3);
        assert_eq!(id["cause"][0]["verdict"], "full/unknown");
        assert_eq!(id["cause"][0]["said_by"][0], "web2");
        assert_eq!(id["attempts"][0]["offered"], serde_json::Value::Null);
        assert_eq!(id["attempts"][0]["session_given"], true);
        let back = &id["attempts"][1];
        assert_eq!(back["outcome"], "resumed");
        assert_eq!(back["offered"]["type"], "session-id");
        assert_eq!(back["offered"]["prefix"], "07".repeat(16));
        assert_eq!(back["offered"]["suffix"], "07070707");
        assert_eq!(back["offered"]["bytes"], 32);
        assert_eq!(back["handshake_ms"], 1.5);
        assert_eq!(
            back["cipher_suite"],
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
        );
        assert_eq!(id["attempts"][3]["outcome"], "failed");
        assert_eq!(id["attempts"][3]["error"], "the server does not speak TLS");
        assert_eq!(id["ended_offers"], serde_json::Value::Null);
        assert_eq!(id["attempts"][3]["offered"], serde_json::Value::Null);
        assert!(id["attempts"][3].get("without_session").is_none());
        assert_eq!(value["mechanisms"][1]["status"], "not-offered");
        assert_eq!(value["mechanisms"][1]["note"], "the server gives no ticket");
    }

    #[test]
    fn a_failed_return_has_its_offer_and_the_comparison() {
        let mut report = samples::faulty();
        let failed = samples::ended(How::Psk, Err(crate::client::Error::NotTls));
        report.mechanisms[0].attempts.push(failed);
        let text = write(&report).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let psk = &value["mechanisms"][0];
        assert_eq!(psk["status"], "refuses");
        let counts = serde_json::json!({"offered": 3, "ended": 3, "compared": 3, "succeeded": 2});
        assert_eq!(psk["ended_offers"], counts);
        let ended = &psk["attempts"][1];
        assert_eq!(ended["outcome"], "failed");
        assert_eq!(ended["offered"]["type"], "psk");
        assert_eq!(ended["offered"]["bytes"], 32);
        let well = serde_json::json!({"succeeded": true, "error": null});
        assert_eq!(ended["without_session"], well);
        let comparison = &psk["attempts"][3]["without_session"];
        assert_eq!(comparison["succeeded"], false);
        assert_eq!(comparison["error"], "the server does not speak TLS");
    }

    #[test]
    fn suites_of_both_versions_have_their_registered_names() {
        assert_eq!(suite(0x1301), "TLS_AES_128_GCM_SHA256");
        assert_eq!(suite(0x1a1a), "0x1a1a");
    }
}
