//! The report for programs. `docs/reference/probe.md` promises the format: later versions add fields, but
//! rename and remove none.

use std::time::Duration;

use rustls::CipherSuite;
use serde::Serialize;
use sessile_proto::Word;
use sessile_proto::hello::{TLS_1_2, TLS_1_3};
use sessile_proto::verdict::How;

use super::report::{self, Attempt, FinishedHandshake, MechanismFindings, ProbeReport};
use crate::client::hex;

#[derive(Serialize)]
struct JsonReport<'a> {
    target: &'a str,
    server_name: &'a str,
    addresses: Vec<String>,
    left_out: Vec<JsonLeftOut<'a>>,
    complete: bool,
    all_resume: bool,
    mechanisms: Vec<JsonMechanism<'a>>,
}

#[derive(Serialize)]
struct JsonLeftOut<'a> {
    address: String,
    error: &'a str,
}

#[derive(Serialize)]
struct JsonMechanism<'a> {
    mechanism: &'static str,
    protocol: &'static str,
    status: &'static str,
    returns: usize,
    resumed: usize,
    note: Option<&'static str>,
    cause: Vec<JsonCause>,
    ended_offers: Option<JsonEndedOffers>,
    attempts: Vec<JsonAttempt<'a>>,
}

#[derive(Serialize)]
struct JsonEndedOffers {
    offered: usize,
    ended: usize,
    compared: usize,
    succeeded: usize,
}

#[derive(Serialize)]
struct JsonCause {
    verdict: String,
    said_by: Vec<String>,
}

#[derive(Serialize)]
struct JsonAttempt<'a> {
    attempt: usize,
    address: String,
    outcome: &'static str,
    error: Option<String>,
    offered: Option<JsonOffer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    without_session: Option<JsonComparison>,
    #[serde(flatten)]
    seen: Option<JsonHandshake<'a>>,
}

/// The handshake without a session that follows a failed handshake with a session.
#[derive(Serialize)]
struct JsonComparison {
    succeeded: bool,
    error: Option<String>,
}

#[derive(Serialize)]
struct JsonHandshake<'a> {
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
struct JsonOffer {
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
/// Never in practice: all keys are text and all numbers are finite.
pub fn write(report: &ProbeReport) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&JsonReport {
        target: &report.target,
        server_name: &report.server_name,
        addresses: report.addresses.iter().map(ToString::to_string).collect(),
        left_out: report.left_out.iter().map(left_out).collect(),
        complete: report.complete,
        all_resume: report.all_resume(),
        mechanisms: report.mechanisms.iter().map(mechanism).collect(),
    })
}

fn left_out(left_out: &report::LeftOut) -> JsonLeftOut<'_> {
    JsonLeftOut {
        address: left_out.address.to_string(),
        error: &left_out.error,
    }
}

fn cause(cause: report::Cause) -> JsonCause {
    JsonCause {
        verdict: cause.verdict.to_string(),
        said_by: cause.said_by,
    }
}

fn mechanism(findings: &MechanismFindings) -> JsonMechanism<'_> {
    JsonMechanism {
        mechanism: findings.how.as_str(),
        protocol: match findings.how {
            How::SessionId | How::Ticket => "TLS 1.2",
            How::Psk => "TLS 1.3",
        },
        status: findings.status().as_str(),
        returns: findings.returns().count(),
        resumed: findings.resumed(),
        note: findings.note(),
        cause: findings.causes().into_iter().map(cause).collect(),
        ended_offers: findings.ended_offers().map(|counts| JsonEndedOffers {
            offered: counts.offered,
            ended: counts.ended,
            compared: counts.compared,
            succeeded: counts.succeeded,
        }),
        attempts: findings
            .attempts
            .iter()
            .enumerate()
            .map(handshake)
            .collect(),
    }
}

fn handshake((number, attempt): (usize, &Attempt)) -> JsonAttempt<'_> {
    let comparison = match &attempt.result {
        Ok(_) => None,
        Err(failed) => failed.without_session.as_ref(),
    };
    JsonAttempt {
        attempt: number,
        address: attempt.address.to_string(),
        outcome: attempt.outcome().as_str(),
        error: attempt.error().map(ToString::to_string),
        offered: attempt.offered().map(|offer| JsonOffer {
            how: offer.how.as_str(),
            prefix: offer.prefix(),
            suffix: offer.suffix(),
            bytes: offer.bytes.len(),
        }),
        without_session: comparison.map(|compared| JsonComparison {
            succeeded: compared.is_ok(),
            error: compared.as_ref().err().map(ToString::to_string),
        }),
        seen: attempt.seen().map(finished_handshake),
    }
}

fn finished_handshake(seen: &FinishedHandshake) -> JsonHandshake<'_> {
    JsonHandshake {
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

/// The duration in milliseconds, rounded to microseconds.
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

/// The registered name of a cipher suite.
fn suite(number: u16) -> String {
    // rustls writes TLS13_ instead of the registered TLS_.
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
    fn contains_the_promised_fields() {
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
    fn a_failed_return_contains_its_offer_and_the_comparison() {
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
    fn cipher_suites_have_their_registered_names() {
        assert_eq!(suite(0x1301), "TLS_AES_128_GCM_SHA256");
        assert_eq!(suite(0x1a1a), "0x1a1a");
    }
}
