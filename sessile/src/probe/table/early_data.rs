//! The lines about early data.

use sessile_proto::Word;

use super::push_matrix;
use super::text::{push, push_wrapped};
use crate::probe::report::ProbeReport;
use crate::probe::report::{EarlyDataFindings, EarlyDataOutcome};

/// How often servers accepted early data, in a line. `None` if no server gives sessions for early data.
pub(in crate::probe) fn early_data_summary(found: &EarlyDataFindings) -> Option<String> {
    if found.is_empty() {
        return None;
    }
    let accepted = EarlyDataOutcome::Accepted;
    let offers = found.offers.iter();
    let count = offers.filter(|offer| offer.outcome == accepted).count();
    let mut line = format!("accepted {count} of {}", found.offers.len());
    if !found.replays.is_empty() {
        let replays = found.replays.iter();
        let count = replays.filter(|replay| replay.outcome == accepted).count();
        line += &format!("; accepted again {count} of {}", found.replays.len());
    }
    Some(line)
}

/// Who accepts early data with whose sessions, and who accepts it again.
pub(super) fn push_offers(text: &mut String, report: &ProbeReport) {
    let found = &report.early_data;
    if found.is_empty() {
        return;
    }
    push(text, "\n0-RTT (yes: early data accepted)");
    if report.addresses.len() > 1 {
        push_matrix(text, &found.matrix(&report.addresses));
    }
    for offer in &found.offers {
        if let Some(error) = &offer.error {
            let label = report.server_label(offer.address);
            push_wrapped(text, 2, &format!("{label} failed: {error}"));
        }
    }
    for replay in &found.replays {
        let label = report.server_label(replay.address);
        let mut line = format!(
            "the same bytes again at {label}: {}",
            replay.outcome.as_str()
        );
        if let Some(status) = replay.status {
            line += &format!(", answered with {status}");
        }
        if let Some(error) = &replay.error {
            line += &format!(", {error}");
        }
        push_wrapped(text, 2, &line);
    }
}
