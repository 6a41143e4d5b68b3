//! The lines about sessions after a gap, and about events.

use std::time::Duration;

use humantime::format_duration;
use sessile_proto::Word;
use sessile_proto::age_search::FoundAge;

use super::events::event_line;
use super::text::title;
use crate::probe::after_gap::{DelayedReturn, SessionAge};
use crate::probe::report::ProbeReport;

/// The parts of a report about what happened after the first tests: each has a heading and lines.
pub(in crate::probe) fn later_parts(report: &ProbeReport) -> Vec<(String, Vec<String>)> {
    let mut parts = Vec::new();
    if let Some(first) = report.session_ages.first() {
        let within = format_duration(first.limits.within);
        let lines = report.session_ages.iter();
        let lines = lines.map(|age| age_line(report, age)).collect();
        parts.push((format!("Ages of sessions (within {within})"), lines));
    }
    if !report.delayed.is_empty() {
        parts.push(("Returns after a gap".to_owned(), delayed_lines(report)));
    }
    if let Some(watched) = &report.watched {
        let heading = format!(
            "Watched for {}, every {}",
            format_duration(watched.limits.duration),
            format_duration(watched.limits.interval)
        );
        let mut lines: Vec<String> = watched.events.iter().map(event_line).collect();
        if lines.is_empty() {
            lines.push("nothing happened".to_owned());
        }
        parts.push((heading, lines));
    }
    parts
}

/// The returns after a gap: a line for each server, mechanism and fate of the first connection.
fn delayed_lines(report: &ProbeReport) -> Vec<String> {
    let same = |one: &DelayedReturn, other: &DelayedReturn| {
        (one.address, one.how, one.first_connection)
            == (other.address, other.how, other.first_connection)
    };
    let line = |row: &[DelayedReturn]| {
        let gaps: Vec<String> = row.iter().map(gap_words).collect();
        format!(
            "{}, {}, first connection {}: {}",
            report.server_label(row[0].address),
            title(row[0].how),
            row[0].first_connection.as_str(),
            gaps.join("; ")
        )
    };
    report.delayed.chunk_by(same).map(line).collect()
}

fn gap_words(made: &DelayedReturn) -> String {
    let gap = format_duration(made.gap);
    let outcome = made.outcome.as_str();
    match made.closed_after {
        None => format!("{gap} {outcome}"),
        Some(after) => format!(
            "{gap} {outcome} (closed by the server after {:.1} s)",
            after.as_secs_f64()
        ),
    }
}

/// The age at which a server refuses sessions.
fn age_line(report: &ProbeReport, age: &SessionAge) -> String {
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
    format!(
        "{}, {}, first connection {}: {}",
        report.server_label(age.address),
        title(age.how),
        age.first_connection.as_str(),
        parts.join(", ")
    )
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
