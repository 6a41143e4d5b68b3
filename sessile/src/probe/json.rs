//! The report for programs. `docs/reference/probe.schema.json` promises the format. Later versions add
//! fields, but do not rename or remove fields.

use std::net::SocketAddr;
use std::time::Duration;

use rustls::CipherSuite;
use serde_json::{Value, json};
use sessile_proto::Word;
use sessile_proto::hello::{TLS_1_2, TLS_1_3};
use sessile_proto::resumption_matrix::ResumptionMatrix;
use sessile_proto::verdict::How;

use sessile_proto::watch::SessionOutcome;

use super::after_gap::{DelayedReturn, SessionAge};
use super::attempt::{Attempt, FailedHandshake};
use super::events::{KeyAge, ProbeEvent, Watched};
use super::finding::Finding;
use super::findings;
use super::report::{
    Cause, EarlyDataFindings, LeftOut, MechanismFindings, OtherNameOffer, ProbeReport,
};
use super::ticket_facts::{KeyNames, TicketFacts};
use crate::client::{Offer, hex};

/// The version of `docs/reference/probe.schema.json`. It changes only if a field is renamed or removed.
const SCHEMA_VERSION: u32 = 1;

/// The report as JSON, or a list of several reports. Indented, without a final line break.
#[must_use]
pub fn write(reports: &[&ProbeReport]) -> String {
    match reports {
        [report] => format!("{:#}", of(report)),
        reports => format!(
            "{:#}",
            Value::from_iter(reports.iter().map(|report| of(report)))
        ),
    }
}

fn of(report: &ProbeReport) -> Value {
    let left_out: Vec<Value> = report.left_out.iter().map(left_out).collect();
    let mechanisms: Vec<Value> = report
        .mechanisms
        .iter()
        .map(|tested| mechanism(report, tested))
        .collect();
    let findings: Vec<Value> = findings::of(report).iter().map(finding).collect();
    let (offered, resumed) = report.returns();
    json!({
        "schema_version": SCHEMA_VERSION,
        "target": report.target,
        "error": report.error,
        "server_name": report.server_name,
        "addresses": report.addresses,
        "left_out": left_out,
        "complete": report.complete,
        "all_resume": report.all_resume(),
        "offered": offered,
        "resumed": resumed,
        "findings": findings,
        "mechanisms": mechanisms,
        "delayed": report.delayed.iter().map(delayed).collect::<Vec<_>>(),
        "watched": report.watched.as_ref().map(watched),
        "early_data": early_data(&report.early_data),
        "session_ages": report.session_ages.iter().map(session_age).collect::<Vec<_>>(),
        "other_names": report.other_names.iter().map(other_name).collect::<Vec<_>>(),
    })
}

fn left_out(left_out: &LeftOut) -> Value {
    json!({ "address": left_out.address, "error": left_out.error })
}

fn finding(finding: &Finding) -> Value {
    let mechanisms: Vec<&str> = finding.mechanisms.iter().map(|how| how.as_str()).collect();
    let remedies: Vec<Value> = finding
        .remedy()
        .steps()
        .iter()
        .map(|step| json!({ "product": step.product, "text": step.text }))
        .collect();
    json!({
        "code": finding.code.as_str(),
        "severity": finding.severity().as_str(),
        "mechanisms": mechanisms,
        "servers": finding.servers,
        "text": finding.text,
        "remedies": remedies,
    })
}

fn delayed(made: &DelayedReturn) -> Value {
    json!({
        "mechanism": made.how.as_str(),
        "address": made.address,
        "gap_seconds": made.gap.as_secs_f64(),
        "first_connection": made.first_connection.as_str(),
        "closed_after_seconds": made.closed_after.map(|after| after.as_secs_f64()),
        "outcome": made.outcome.as_str(),
        "error": made.error,
    })
}

fn session_age(age: &SessionAge) -> Value {
    json!({
        "mechanism": age.how.as_str(),
        "address": age.address,
        "first_connection": age.first_connection.as_str(),
        "max_seconds": age.limits.max.as_secs_f64(),
        "within_seconds": age.limits.within.as_secs_f64(),
        "kept_seconds": age.kept().map(|kept| kept.as_secs_f64()),
        "refused_seconds": age.refused().map(|refused| refused.as_secs_f64()),
        "error": age.error,
    })
}

fn watched(watched: &Watched) -> Value {
    let event = |event: &ProbeEvent| {
        let [before, after] = match event.event.keys() {
            Some(keys) => keys.map(|name| Some(hex(&name))),
            None => [None, None],
        };
        json!({
            "time": humantime::format_rfc3339_millis(event.at).to_string(),
            "address": event.address,
            "mechanism": event.how.map(Word::as_str),
            "event": event.event.as_str(),
            "key_before": before,
            "key_after": after,
        })
    };
    let key_age = |age: &KeyAge| {
        json!({
            "mechanism": age.how.as_str(),
            "address": age.address,
            "age_seconds": age.age.as_secs(),
        })
    };
    json!({
        "duration_seconds": watched.limits.duration.as_secs_f64(),
        "interval_seconds": watched.limits.interval.as_secs_f64(),
        "events": watched.events.iter().map(event).collect::<Vec<_>>(),
        "key_ages": watched.key_ages.iter().map(key_age).collect::<Vec<_>>(),
    })
}

fn other_name(offered: &OtherNameOffer) -> Value {
    let outcome = match &offered.offer {
        Ok(seen) => SessionOutcome::from(seen.kind),
        Err(_) => SessionOutcome::Failed,
    };
    json!({
        "name": offered.name,
        "mechanism": offered.how.as_str(),
        "address": offered.address,
        "outcome": outcome.as_str(),
        "error": offered.offer.as_ref().err().map(ToString::to_string),
        "http_status": offered.offer.as_ref().ok().and_then(|seen| seen.status),
        "certificate_requested": match &offered.full {
            Ok(seen) => seen.certificate_requested,
            Err(failed) => failed.certificate_requested,
        },
    })
}

/// `null` if no server gives sessions for early data.
fn early_data(found: &EarlyDataFindings) -> Value {
    if found.is_empty() {
        return Value::Null;
    }
    let offers = found.offers.iter().map(|offer| {
        json!({
            "origin": offer.origin,
            "address": offer.address,
            "outcome": offer.outcome.as_str(),
            "error": offer.error,
        })
    });
    let replays = found.replays.iter().map(|replay| {
        json!({
            "origin": replay.origin,
            "address": replay.address,
            "outcome": replay.outcome.as_str(),
            "http_status": replay.status,
            "error": replay.error,
        })
    });
    json!({
        "offers": offers.collect::<Vec<_>>(),
        "replays": replays.collect::<Vec<_>>(),
    })
}

fn mechanism(report: &ProbeReport, findings: &MechanismFindings) -> Value {
    let matrix = findings.matrix(&report.addresses);
    let groups: Vec<Vec<SocketAddr>> = matrix
        .sharing()
        .groups
        .iter()
        .map(|group| group.iter().map(|&index| report.addresses[index]).collect())
        .collect();
    let causes: Vec<Value> = findings.causes().iter().map(cause).collect();
    let attempts: Vec<Value> = findings.attempts.iter().enumerate().map(attempt).collect();
    json!({
        "mechanism": findings.how.as_str(),
        "protocol": match findings.how {
            How::SessionId | How::Ticket => "TLS 1.2",
            How::Psk => "TLS 1.3",
        },
        "status": findings.status().as_str(),
        "returns": findings.returns().count(),
        "resumed": findings.resumed(),
        "note": findings.note(),
        "cause": causes,
        "ended_offers": findings.ended_offers().map(|counts| json!({
            "offered": counts.offered,
            "ended": counts.ended,
            "compared": counts.compared,
            "succeeded": counts.succeeded,
        })),
        "groups": groups,
        "matrix": cells(report, &matrix),
        "tickets": tickets(report, findings),
        "attempts": attempts,
    })
}

/// The facts about the tickets of each server that gave tickets.
fn tickets(report: &ProbeReport, findings: &MechanismFindings) -> Vec<Value> {
    let names = KeyNames::of(report);
    let facts_of = |&server: &SocketAddr| {
        let facts = TicketFacts::of(report, findings, &names, server)?;
        Some(json!({
            "address": server,
            "in_full_handshake": facts.in_full_handshake,
            "in_resumed_handshake": facts.in_resumed_handshake,
            "bytes": facts.bytes,
            "lifetime_seconds": facts.lifetime_seconds,
            "max_early_data_bytes": facts.max_early_data,
            "usable_twice": facts.usable_twice,
            "key_names": facts.key_names,
        }))
    };
    report.addresses.iter().filter_map(facts_of).collect()
}

/// The pairs of servers of which a session was offered.
fn cells(report: &ProbeReport, matrix: &ResumptionMatrix) -> Vec<Value> {
    let servers = 0..report.addresses.len();
    servers
        .clone()
        .flat_map(|from| servers.clone().map(move |to| (from, to)))
        .filter(|&(from, to)| matrix.answers(from, to).offered() > 0)
        .map(|(from, to)| {
            let answers = matrix.answers(from, to);
            json!({
                "from": report.addresses[from],
                "to": report.addresses[to],
                "resumed": answers.resumed,
                "refused": answers.refused,
                "ended": answers.ended,
            })
        })
        .collect()
}

fn cause(cause: &Cause) -> Value {
    json!({ "verdict": cause.verdict.to_string(), "said_by": cause.said_by })
}

fn attempt((number, attempt): (usize, &Attempt)) -> Value {
    let mut json = json!({
        "attempt": number,
        "address": attempt.address,
        "origin": attempt.origin,
        "outcome": attempt.outcome().as_str(),
        "error": attempt.error().map(ToString::to_string),
        "offered": attempt.offered().map(offer),
        "certificate_requested": attempt.requests_certificate(),
    });
    match &attempt.result {
        Ok(seen) => {
            json["session_given"] = seen.given.into();
            json["protocol"] = protocol(seen.version).into();
            json["cipher_suite"] = suite(seen.cipher_suite).into();
            json["connect_ms"] = millis(seen.times.connect).into();
            json["first_byte_ms"] = millis(seen.times.first_byte).into();
            json["handshake_ms"] = millis(seen.times.handshake).into();
            json["certificate_sha256"] = seen.certificate.map(|digest| hex(&digest)).into();
            json["http_status"] = seen.status.into();
            json["server"] = seen.server.clone().into();
            json["verdict"] = seen.verdict.clone().into();
        }
        Err(FailedHandshake {
            without_session: Some(compared),
            ..
        }) => {
            json["without_session"] = json!({
                "succeeded": compared.is_ok(),
                "error": compared.as_ref().err().map(ToString::to_string),
            });
        }
        Err(_) => {}
    }
    json
}

fn offer(offer: &Offer) -> Value {
    json!({
        "type": offer.how.as_str(),
        "prefix": offer.prefix(),
        "suffix": offer.suffix(),
        "bytes": offer.bytes.len(),
    })
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
    use crate::probe::finding::{Code, Severity};
    use crate::probe::samples;
    use crate::probe::{EarlyDataOutcome, FirstConnection, Status};

    #[test]
    fn contains_the_promised_fields() {
        let text = write(&[&samples::report()]);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["complete"], true);
        assert_eq!(value["all_resume"], false);
        let id = &value["mechanisms"][0];
        assert_eq!(id["mechanism"], "session-id");
        assert_eq!(id["protocol"], "TLS 1.2");
        assert_eq!(id["status"], "partly");
        assert_eq!(id["resumed"], 1);
        assert_eq!(id["returns"], 2);
        assert_eq!(id["cause"][0]["verdict"], "full/unknown");
        assert_eq!(id["cause"][0]["said_by"][0], "web2");
        assert_eq!(id["attempts"][0]["offered"], Value::Null);
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
        assert_eq!(id["ended_offers"], Value::Null);
        assert_eq!(id["attempts"][3]["offered"], Value::Null);
        assert!(id["attempts"][3].get("without_session").is_none());
        assert_eq!(value["mechanisms"][1]["status"], "not-offered");
        assert_eq!(value["mechanisms"][1]["note"], "the server gives no ticket");
    }

    /// The words of an enumeration in the schema.
    fn schema_words(name: &str) -> Vec<String> {
        let schema = include_str!("../../../docs/reference/probe.schema.json");
        let schema: Value = serde_json::from_str(schema).unwrap();
        let words = schema["$defs"][name]["enum"].as_array();
        let words = words.expect("an enumeration").iter();
        words
            .map(|word| word.as_str().unwrap().to_owned())
            .collect()
    }

    #[track_caller]
    fn assert_in_schema<W: Word>(name: &str) {
        let mut words: Vec<&str> = W::all().map(Word::as_str).collect();
        let mut schema_words = schema_words(name);
        words.sort_unstable();
        schema_words.sort_unstable();
        assert_eq!(schema_words, words, "{name}");
    }

    #[test]
    fn the_schema_has_all_words() {
        assert_in_schema::<Code>("code");
        assert_in_schema::<Severity>("severity");
        assert_in_schema::<Status>("status");
        assert_in_schema::<How>("mechanism");
        assert_in_schema::<SessionOutcome>("outcome");
        assert_in_schema::<FirstConnection>("first_connection");
        assert_in_schema::<EarlyDataOutcome>("early_data_outcome");
    }

    #[test]
    fn contains_the_findings_the_groups_and_the_matrix() {
        let value: Value = serde_json::from_str(&write(&[&samples::report()])).unwrap();
        let finding = &value["findings"][0];
        assert_eq!(finding["code"], "address-fails");
        assert_eq!(finding["severity"], "warning");
        assert_eq!(finding["servers"][0], "192.0.2.1:443");
        let id = &value["mechanisms"][0];
        assert_eq!(id["groups"], json!([["192.0.2.1:443"]]));
        let pair = json!({
            "from": "192.0.2.1:443", "to": "192.0.2.2:443", "resumed": 0, "refused": 1, "ended": 0,
        });
        assert_eq!(id["matrix"][1], pair);
        assert_eq!(
            (&value["offered"], &value["resumed"]),
            (&4.into(), &2.into())
        );
    }

    #[test]
    fn contains_the_facts_about_tickets() {
        let mut report = samples::report();
        let full = report.mechanisms[2].attempts[0].result.as_mut().unwrap();
        full.tickets = vec![samples::given_ticket(1, 1), samples::given_ticket(1, 2)];
        full.tickets[1].max_early_data = Some(16384);
        report.usable_twice.push((samples::address(1), true));
        let value: Value = serde_json::from_str(&write(&[&report])).unwrap();
        assert_eq!(value["mechanisms"][0]["tickets"], json!([]));
        let facts = json!([{
            "address": "192.0.2.1:443",
            "in_full_handshake": [2],
            "in_resumed_handshake": [],
            "bytes": [200],
            "lifetime_seconds": [3600],
            "max_early_data_bytes": [16384],
            "usable_twice": true,
            "key_names": ["01".repeat(16)],
        }]);
        assert_eq!(value["mechanisms"][2]["tickets"], facts);
    }

    #[test]
    fn a_failed_return_contains_its_offer_and_the_comparison() {
        let mut report = samples::faulty();
        let failed = samples::ended(How::Psk, Err(crate::client::Error::NotTls));
        report.mechanisms[0].attempts.push(failed);
        let text = write(&[&report]);
        let value: Value = serde_json::from_str(&text).unwrap();
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
