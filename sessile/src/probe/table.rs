//! The report for people: a table for each mechanism, and a summary line.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::Duration;

use sessile_proto::Word;
use sessile_proto::verdict::How;
use sessile_proto::watch::SessionOutcome;

use sessile_proto::resumption_matrix::{Answers, Consistency};

use super::attempt::Attempt;
use super::finding::{Finding, Severity};
use super::findings;
use super::report::{DelayedReturn, MechanismFindings, ProbeReport, Status};

/// Whether the output has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Never,
    Always,
}

/// Which parts the report has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A row for each attempt only if the target has one address.
    Summary,
    /// A row for each attempt.
    Attempts,
}

/// Most columns of a line.
const WIDTH: usize = 80;

/// The indent of the lines below a row.
const BELOW_ROW: usize = 5;

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
            push_matrix(&mut text, tested, report);
            has_matrix = true;
        }
        if shows_attempts {
            table(&mut text, tested, colour);
        }
    }
    if has_matrix {
        push_legend(&mut text, report);
    }
    push_delayed(&mut text, report);
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
fn push_matrix(text: &mut String, tested: &MechanismFindings, report: &ProbeReport) {
    let servers = report.addresses.len();
    let matrix = tested.matrix(&report.addresses);
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

/// The returns after a gap: a row for each server, mechanism and fate of the first connection.
fn push_delayed(text: &mut String, report: &ProbeReport) {
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

/// The name of the mechanism with its TLS version.
#[must_use]
pub const fn title(how: How) -> &'static str {
    match how {
        How::SessionId => "TLS 1.2 session ID",
        How::Ticket => "TLS 1.2 ticket",
        How::Psk => "TLS 1.3 PSK",
    }
}

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

const HEADER: [&str; 7] = ["#", "address", "offered", "outcome", "time", "server", ""];

/// The index of the outcome in a row.
const OUTCOME: usize = 3;

/// The index of the remark. The column has no header, because a remark can be below its row.
const REMARK: usize = 6;

/// A column that has at least one value.
#[derive(Clone, Copy)]
struct Column {
    index: usize,
    width: usize,
}

fn table(text: &mut String, findings: &MechanismFindings, colour: Colour) {
    let mut rows = vec![HEADER.map(ToOwned::to_owned)];
    let attempts = findings.attempts.iter().enumerate();
    rows.extend(attempts.map(|(number, attempt)| row(findings.how, number, attempt)));
    let columns = columns(&rows);
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        let mut width = 0;
        let mut below: Vec<&str> = Vec::new();
        for &column in &columns {
            let value = row[column.index].as_str();
            // The remark is the last column, so it needs no more width than its own.
            let needed = match column.index {
                REMARK => value.chars().count(),
                _ => column.width,
            };
            width += 2 + needed;
            if width <= WIDTH {
                let is_outcome = column.index == OUTCOME && number > 0;
                line.push_str(&cell(value, column, is_outcome, colour));
            } else if number > 0 && !value.is_empty() {
                below.push(value);
            }
        }
        push(text, line.trim_end());
        if !below.is_empty() {
            push_wrapped(text, BELOW_ROW, &below.join("  "));
        }
    }
}

/// The columns with a value, and their widths.
fn columns(rows: &[[String; HEADER.len()]]) -> Vec<Column> {
    (0..HEADER.len())
        .filter(|&index| rows.iter().skip(1).any(|row| !row[index].is_empty()))
        .map(|index| {
            let widths = rows.iter().map(|row| row[index].chars().count());
            Column {
                index,
                width: widths.max().unwrap_or(0),
            }
        })
        .collect()
}

/// A value with the gap before its column. Numbers are aligned to the right.
fn cell(value: &str, column: Column, is_outcome: bool, colour: Colour) -> String {
    let padding = " ".repeat(column.width - value.chars().count());
    let shown = if is_outcome {
        paint(value, outcome_shade(value), colour)
    } else {
        value.to_owned()
    };
    if matches!(HEADER[column.index], "#" | "time") {
        format!("  {padding}{shown}")
    } else {
        format!("  {shown}{padding}")
    }
}

fn row(how: How, number: usize, attempt: &Attempt) -> [String; HEADER.len()] {
    let seen = attempt.seen();
    let offered = match (attempt.offered(), seen) {
        (Some(offer), _) if offer.how == how => offer.to_string(),
        (Some(offer), _) => format!("{} {offer}", offer.how.as_str()),
        (None, Some(_)) => "nothing".to_owned(),
        (None, None) => String::new(),
    };
    let outcome = attempt.outcome();
    let remark = match &attempt.result {
        // The other verdicts repeat what the row shows already.
        Ok(seen) if outcome == SessionOutcome::Refused => seen.verdict.clone().unwrap_or_default(),
        Ok(_) => String::new(),
        Err(failed) => failed.to_string(),
    };
    [
        number.to_string(),
        attempt.address.to_string(),
        offered,
        match outcome {
            SessionOutcome::NotOffered => "full".to_owned(),
            other => other.as_str().to_owned(),
        },
        seen.map(|seen| millis(seen.times.handshake))
            .unwrap_or_default(),
        seen.and_then(|seen| seen.server.clone())
            .unwrap_or_default(),
        remark,
    ]
}

/// Adds a text that is wrapped at [`WIDTH`]. Each line after the first has two more columns of indent.
fn push_wrapped(text: &mut String, indent: usize, words: &str) {
    let mut line = " ".repeat(indent);
    let mut has_words = false;
    for word in words.split(' ') {
        let width = line.chars().count() + 1 + word.chars().count();
        if has_words && width > WIDTH {
            push(text, line.trim_end());
            line = " ".repeat(indent + 2);
            has_words = false;
        }
        if has_words {
            line.push(' ');
        }
        line.push_str(word);
        has_words = true;
    }
    push(text, &line);
}

fn push(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The number with its noun.
#[must_use]
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[derive(Clone, Copy)]
enum Shade {
    Good,
    Bad,
    Plain,
}

const fn shade(status: Status) -> Shade {
    match status {
        Status::Resumes => Shade::Good,
        Status::Partly | Status::Refuses | Status::Failed => Shade::Bad,
        Status::NotOffered | Status::Unfinished => Shade::Plain,
    }
}

fn outcome_shade(outcome: &str) -> Shade {
    match outcome {
        "resumed" => Shade::Good,
        "refused" | "failed" => Shade::Bad,
        _ => Shade::Plain,
    }
}

fn paint(text: &str, shade: Shade, colour: Colour) -> String {
    let code = match (colour, shade) {
        (Colour::Never, _) | (_, Shade::Plain) => return text.to_owned(),
        (Colour::Always, Shade::Good) => 32,
        (Colour::Always, Shade::Bad) => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::samples;

    #[test]
    fn the_report_has_aligned_tables_and_a_summary_of_each_mechanism() {
        let text = write(&samples::report(), Colour::Never, Detail::Attempts);
        let expected = "\
farm.test: server name farm.test, 2 addresses

warning: 1 of 5 handshakes with 192.0.2.1:443 failed: the server does not speak
  TLS

TLS 1.2 session ID: resumed 1 of 2; failed at 192.0.2.1:443 1 time
  full/unknown, says web2
TLS 1.2 ticket: not offered: the server gives no ticket
TLS 1.3 PSK: resumed 1 of 1

TLS 1.2 session ID
  sessions of    to      1     2
                   1   yes     -
                   2     .     .
  #  address        offered        outcome    time  server
  0  192.0.2.1:443  nothing        full     1.5 ms
  1  192.0.2.1:443  07070707…0707  resumed  1.5 ms
  2  192.0.2.2:443  07070707…0707  refused  1.5 ms  web2    full/unknown
  3  192.0.2.1:443                 failed
     the server does not speak TLS

TLS 1.2 ticket
  #  address        offered  outcome    time
  0  192.0.2.1:443  nothing  full     1.5 ms
  1  192.0.2.2:443  nothing  full     1.5 ms

TLS 1.3 PSK
  sessions of    to      1     2
                   1     .   yes
                   2     .     .
  #  address        offered        outcome    time
  0  192.0.2.1:443  nothing        full     1.5 ms
  1  192.0.2.2:443  07070707…0707  resumed  1.5 ms

  1 = 192.0.2.1:443
  2 = 192.0.2.2:443 (web2)
  yes: every session resumed; 1/2: some did; -: refused; end: the server ended
    the handshake; .: not tested
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn a_failed_return_shows_its_offer_and_the_comparison_without_a_session() {
        let text = write(&samples::faulty(), Colour::Never, Detail::Attempts);
        let expected = "\
farm.test: server name farm.test, 1 address

critical: 192.0.2.1:443 ended 2 of 2 handshakes that offered a session of the
  farm, and finished the same handshakes without a session. Clients that return
  cannot connect.
  - until the server's TLS stack is mended, turn off the mechanism that fails;
    the table shows which one

TLS 1.3 PSK: resumed 0 of 2; failed at 192.0.2.1:443 2 times
  2 of 2 connections that offered a session were ended by the server; 2 of 2
    without one succeeded

TLS 1.3 PSK
  #  address        offered        outcome    time
  0  192.0.2.1:443  nothing        full     1.5 ms
  1  192.0.2.1:443  07070707…0707  failed
     the server refused the handshake: alert internal_error; without a session
       it succeeded
  2  192.0.2.1:443  07070707…0707  failed
     the server refused the handshake: alert internal_error; without a session
       it succeeded
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let address = "[2001:db8:1234:5678:9abc:def0:1234:5678]:65535"
            .parse()
            .unwrap();
        let mut report = samples::report();
        for attempt in report.mechanisms.iter_mut().flat_map(|it| &mut it.attempts) {
            attempt.address = address;
            if let Ok(seen) = &mut attempt.result {
                seen.server = Some("a-server-with-a-long-name.of.a-data-centre.example".to_owned());
            }
        }
        let text = write(&report, Colour::Never, Detail::Attempts);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}\n\n{text}");
        }
    }

    #[test]
    fn colours_do_not_change_the_alignment() {
        let plain = write(&samples::report(), Colour::Never, Detail::Attempts);
        let coloured = write(&samples::report(), Colour::Always, Detail::Attempts);
        assert!(coloured.contains("\x1b[32mresumed\x1b[0m"));
        let stripped = ["\x1b[32m", "\x1b[31m", "\x1b[0m"]
            .iter()
            .fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(stripped, plain);
    }

    #[test]
    fn a_run_that_was_stopped_says_so() {
        let mut report = samples::report();
        report.complete = false;
        report.mechanisms[2].attempts.truncate(1);
        let text = write(&report, Colour::Never, Detail::Attempts);
        assert!(text.contains("\nTLS 1.3 PSK: not finished\n"), "{text}");
        assert!(text.ends_with("\nstopped before the end\n"), "{text}");
    }
}
