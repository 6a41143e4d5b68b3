//! The report for people: a table for each mechanism, and a summary line.

mod attempts;
mod early_data;
mod events;
mod later;
mod overview;
mod text;
mod tickets;

use std::collections::HashSet;
use std::fmt::Write as _;

use sessile_proto::Word;
use sessile_proto::resumption_matrix::{Answers, Consistency, ResumptionMatrix};
use sessile_proto::watch::SessionOutcome;

use super::finding::{Finding, Severity};
use super::findings;
use super::report::{MechanismFindings, ProbeReport, Status};
pub(super) use early_data::early_data_summary;
pub use events::event_line;
pub(super) use later::later_parts;
pub use text::{Colour, count, title};
use text::{Shade, WIDTH, paint, push, push_wrapped};

/// Which parts the report has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A row for each attempt only if the target has one address.
    Summary,
    /// A row for each attempt.
    Attempts,
}

/// The reports. Several reports have a table of all targets before them.
#[must_use]
pub fn write_all(reports: &[&ProbeReport], colour: Colour, detail: Detail) -> String {
    let mut text = String::new();
    if reports.len() > 1 {
        overview::push_overview(&mut text, reports, colour);
    }
    for report in reports {
        if !text.is_empty() {
            text.push('\n');
        }
        text += &write(report, colour, detail);
    }
    text
}

/// The whole report, with a final line break. A line has at most 80 columns, unless one word is longer.
#[must_use]
pub fn write(report: &ProbeReport, colour: Colour, detail: Detail) -> String {
    let mut text = String::new();
    let head = format!(
        "{}: server name {}, {}",
        report.target,
        report.server_name,
        count(report.addresses.len(), "address", "addresses"),
    );
    push_wrapped(&mut text, 0, &head);
    for left_out in &report.left_out {
        let left_out = format!("left out: {} ({})", left_out.address, left_out.error);
        push_wrapped(&mut text, 0, &left_out);
    }
    if let Some(error) = &report.error {
        push_wrapped(&mut text, 0, error);
        return text;
    }
    text.push('\n');
    let findings = findings::of(report);
    let mut remedies = HashSet::new();
    for finding in &findings {
        let is_new_remedy = remedies.insert(finding.remedy());
        push_finding(&mut text, finding, is_new_remedy, colour);
    }
    if !findings.is_empty() {
        text.push('\n');
    }
    for tested in &report.mechanisms {
        push_summary(&mut text, tested, report, colour);
    }
    if let Some(summary) = early_data_summary(&report.early_data) {
        push_wrapped(&mut text, 0, &format!("0-RTT: {summary}"));
    }
    let servers = report.addresses.len();
    let mut has_matrix = false;
    for tested in &report.mechanisms {
        let shows_matrix = servers > 1 && tested.returns().next().is_some();
        let shows_attempts = detail == Detail::Attempts || servers <= 1;
        if !shows_matrix && !shows_attempts {
            continue;
        }
        text.push('\n');
        push(&mut text, title(tested.how));
        if shows_matrix {
            push_matrix(&mut text, &tested.matrix(&report.addresses));
            has_matrix = true;
        }
        tickets::push_tickets(&mut text, tested, report);
        if shows_attempts {
            attempts::push_attempts(&mut text, tested, colour);
        }
    }
    early_data::push_offers(&mut text, report);
    if has_matrix {
        push_legend(&mut text, report);
    }
    for (heading, lines) in later_parts(report) {
        push(&mut text, &format!("\n{heading}"));
        for line in lines {
            push_wrapped(&mut text, 2, &line);
        }
    }
    if !report.complete {
        push(&mut text, "stopped before the end");
    }
    text
}

/// A finding, and below it the steps of its remedy. Findings with the same remedy show the steps once.
fn push_finding(text: &mut String, finding: &Finding, shows_remedy: bool, colour: Colour) {
    let severity = finding.severity();
    let mechanisms: Vec<&str> = finding.mechanisms.iter().map(|how| title(*how)).collect();
    let mut line = format!("{}: {}", severity.as_str(), finding.text);
    if !mechanisms.is_empty() {
        let _ = write!(line, " ({})", mechanisms.join(", "));
    }
    let mut lines = String::new();
    push_wrapped(&mut lines, 0, &line);
    let shade = match severity {
        Severity::Critical | Severity::Warning => Shade::Bad,
        Severity::Notice => Shade::Plain,
    };
    let word = severity.as_str();
    text.push_str(&lines.replacen(word, &paint(word, shade, colour), 1));
    if !shows_remedy {
        return;
    }
    for step in finding.remedy().steps() {
        let product = if step.product.is_empty() {
            String::new()
        } else {
            format!("{}: ", step.product)
        };
        push_wrapped(text, 2, &format!("- {product}{}", step.text));
    }
}

/// The result for the mechanism in a line, and below it what servers said.
fn push_summary(
    text: &mut String,
    tested: &MechanismFindings,
    report: &ProbeReport,
    colour: Colour,
) {
    let title = title(tested.how);
    let mut lines = String::new();
    let summary = summary(tested, report.addresses.len());
    push_wrapped(&mut lines, 0, &format!("{title}: {summary}"));
    // The colour comes last, because its codes take no columns.
    let title_in_colour = paint(title, shade(tested.status()), colour);
    text.push_str(&lines.replacen(title, &title_in_colour, 1));
    if let Some(ended) = tested.ended_offers() {
        push_wrapped(text, 2, &ended.to_string());
    }
    for cause in tested.causes() {
        let said_by = cause.said_by.join(", ");
        push_wrapped(text, 2, &format!("{}, says {said_by}", cause.verdict));
    }
}

/// Who resumes whose sessions: a row for each server that gave sessions, a column for each server that got them.
fn push_matrix(text: &mut String, matrix: &ResumptionMatrix) {
    let servers = matrix.servers();
    // Each column has a number and a gap. More columns than the line has room for go below.
    let room = (WIDTH - MATRIX_INDENT) / MATRIX_COLUMN;
    for first in (0..servers).step_by(room) {
        let columns = first..servers.min(first + room);
        let mut head = format!("{:MATRIX_INDENT$}", "  sessions of    to");
        for to in columns.clone() {
            let _ = write!(head, "{:>MATRIX_COLUMN$}", to + 1);
        }
        push(text, &head);
        for from in 0..servers {
            let mut row = format!("{:>MATRIX_INDENT$}", from + 1);
            for to in columns.clone() {
                let _ = write!(row, "{:>MATRIX_COLUMN$}", mark(matrix.answers(from, to)));
            }
            push(text, &row);
        }
    }
}

/// The sign for the answers of a pair of servers.
pub(super) fn mark(answers: Answers) -> String {
    match answers.consistency() {
        Consistency::Unknown if answers.ended > 0 => "end".to_owned(),
        Consistency::Unknown => ".".to_owned(),
        Consistency::Always => "yes".to_owned(),
        Consistency::Sometimes => format!("{}/{}", answers.resumed, answers.offered()),
        Consistency::Never => "-".to_owned(),
    }
}

fn push_legend(text: &mut String, report: &ProbeReport) {
    text.push('\n');
    for (number, address) in report.addresses.iter().enumerate() {
        push(
            text,
            &format!("  {} = {}", number + 1, report.server_label(*address)),
        );
    }
    let legend = "yes: every session resumed; 1/2: some did; -: refused; end: the server ended the handshake; .: \
                  not tested";
    push_wrapped(text, 2, legend);
}

/// Columns before the first server of a matrix.
const MATRIX_INDENT: usize = 20;

/// Columns of a server in a matrix.
const MATRIX_COLUMN: usize = 6;

/// The result for the mechanism in one line, such as `resumed 5 of 5`. With several servers, the matrix shows who
/// refused.
pub(super) fn summary(findings: &MechanismFindings, servers: usize) -> String {
    let mut line = match findings.status() {
        Status::Resumes | Status::Partly | Status::Refuses => {
            let returns = findings.returns().count();
            format!("resumed {} of {returns}", findings.resumed())
        }
        Status::NotOffered => {
            let reason = findings.note().unwrap_or("nothing was given");
            return format!("not offered: {reason}");
        }
        Status::Failed => "no handshake was finished".to_owned(),
        Status::Unfinished => "not finished".to_owned(),
    };
    for (what, servers_and_times) in not_resumed_by(findings) {
        if what != REFUSED || servers <= 1 {
            let _ = write!(line, "; {what} {}", servers_and_times.join(", "));
        }
    }
    line
}

const REFUSED: &str = "refused by";

/// The outcomes of attempts that did not resume, each with its servers, in the order of the
/// attempts.
fn not_resumed_by(findings: &MechanismFindings) -> Vec<(&'static str, Vec<String>)> {
    let mut reasons: Vec<(&'static str, String)> = Vec::new();
    for attempt in &findings.attempts {
        let what = match attempt.outcome() {
            SessionOutcome::Refused => REFUSED,
            SessionOutcome::Failed => "failed at",
            SessionOutcome::NotOffered | SessionOutcome::Resumed => continue,
        };
        let server = match attempt.seen().and_then(|seen| seen.server.as_deref()) {
            Some(name) => format!("{} ({name})", attempt.address),
            None => attempt.address.to_string(),
        };
        reasons.push((what, server));
    }
    let mut grouped: Vec<(&'static str, Vec<String>)> = Vec::new();
    for (at, entry) in reasons.iter().enumerate() {
        if reasons[..at].contains(entry) {
            continue;
        }
        let (what, server) = entry;
        let times = reasons.iter().filter(|other| *other == entry).count();
        let server = format!("{server} {}", count(times, "time", "times"));
        match grouped.iter_mut().find(|(known, _)| known == what) {
            Some((_, servers)) => servers.push(server),
            None => grouped.push((*what, vec![server])),
        }
    }
    grouped
}

const fn shade(status: Status) -> Shade {
    match status {
        Status::Resumes => Shade::Good,
        Status::Partly | Status::Refuses | Status::Failed => Shade::Bad,
        Status::NotOffered | Status::Unfinished => Shade::Plain,
    }
}

#[cfg(test)]
mod tests;
