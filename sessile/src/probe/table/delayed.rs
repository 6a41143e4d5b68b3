//! The lines about returns after a gap.

use sessile_proto::Word;

use super::text::{push, push_wrapped, title};
use crate::probe::report::{DelayedReturn, ProbeReport};

/// The returns after a gap: a row for each server, mechanism and fate of the first connection.
pub(super) fn push_delayed(text: &mut String, report: &ProbeReport) {
    let same = |one: &DelayedReturn, other: &DelayedReturn| {
        (one.address, one.how, one.first_connection)
            == (other.address, other.how, other.first_connection)
    };
    if !report.delayed.is_empty() {
        push(text, "\nReturns after a gap");
    }
    for row in report.delayed.chunk_by(same) {
        let first = &row[0];
        let gaps: Vec<String> = row
            .iter()
            .map(|made| {
                let gap = humantime::format_duration(made.gap);
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
