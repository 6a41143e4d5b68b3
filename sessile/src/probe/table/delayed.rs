//! The lines about sessions after a gap.

use std::time::Duration;

use humantime::format_duration;
use sessile_proto::Word;
use sessile_proto::age_search::FoundAge;

use super::text::{push, push_wrapped, title};
use crate::probe::after_gap::DelayedReturn;
use crate::probe::report::ProbeReport;

/// The returns after a gap: a row for each server, mechanism and fate of the first connection.
pub(super) fn push_delayed(text: &mut String, report: &ProbeReport) {
    let same = |one: &DelayedReturn, other: &DelayedReturn| {
        (one.address, one.how, one.first_connection)
            == (other.address, other.how, other.first_connection)
    };
    push_ages(text, report);
    if !report.delayed.is_empty() {
        push(text, "\nReturns after a gap");
    }
    for row in report.delayed.chunk_by(same) {
        let first = &row[0];
        let gaps: Vec<String> = row
            .iter()
            .map(|made| {
                let gap = format_duration(made.gap);
                match (made.outcome, made.closed_after) {
                    (outcome, None) => format!("{gap} {}", outcome.as_str()),
                    (outcome, Some(after)) => format!(
                        "{gap} {} (closed by the server after {:.1} s)",
                        outcome.as_str(),
                        after.as_secs_f64()
                    ),
                }
            })
            .collect();
        let line = format!(
            "{}, {}, first connection {}: {}",
            report.server_label(first.address),
            title(first.how),
            first.first_connection.as_str(),
            gaps.join("; ")
        );
        push_wrapped(text, 2, &line);
    }
}

/// The ages at which servers refuse sessions.
fn push_ages(text: &mut String, report: &ProbeReport) {
    if let Some(first) = report.session_ages.first() {
        let within = format_duration(first.limits.within);
        push(text, &format!("\nAges of sessions (within {within})"));
    }
    for age in &report.session_ages {
        let mut parts = Vec::new();
        match (age.found, age.kept(), age.refused()) {
            (Some(FoundAge::NotReached { kept }), _, _) => {
                parts.push(format!(
                    "kept for {}, the longest that was tried",
                    seconds(kept)
                ));
            }
            (_, kept, Some(refused)) => {
                let kept = kept.filter(|kept| !kept.is_zero());
                parts.extend(kept.map(|kept| format!("kept for {}", seconds(kept))));
                parts.push(format!("refused after {}", seconds(refused)));
            }
            _ => parts.push("not known".to_owned()),
        }
        parts.extend(age.error.clone());
        let line = format!(
            "{}, {}, first connection {}: {}",
            report.server_label(age.address),
            title(age.how),
            age.first_connection.as_str(),
            parts.join(", ")
        );
        push_wrapped(text, 2, &line);
    }
}

/// The duration in whole seconds, or in milliseconds below ten seconds.
fn seconds(duration: Duration) -> String {
    let millis = match duration.as_millis() {
        millis if millis < 10_000 => millis,
        millis => millis / 1000 * 1000,
    };
    let millis = u64::try_from(millis).unwrap_or(u64::MAX);
    format_duration(Duration::from_millis(millis)).to_string()
}
