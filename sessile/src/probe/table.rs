//! The report for people: a table for each mechanism, and a summary line.

use std::fmt::Write as _;
use std::time::Duration;

use sessile_proto::Word;
use sessile_proto::verdict::How;
use sessile_proto::watch::SessionOutcome;

use super::report::{Attempt, MechanismFindings, ProbeReport, Status};

/// Whether the output has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Never,
    Always,
}

/// The whole report, with a final line break.
#[must_use]
pub fn write(report: &ProbeReport, colour: Colour) -> String {
    let mut text = format!(
        "{}: server name {}, {}\n",
        report.target,
        report.server_name,
        count(report.addresses.len(), "address", "addresses"),
    );
    for left_out in &report.left_out {
        push(
            &mut text,
            &format!("left out: {} ({})", left_out.address, left_out.error),
        );
    }
    for findings in &report.mechanisms {
        text.push('\n');
        push(&mut text, title(findings.how));
        table(&mut text, findings, colour);
    }
    text.push('\n');
    for findings in &report.mechanisms {
        let word = paint(title(findings.how), shade(findings.status()), colour);
        push(&mut text, &format!("{word}: {}", summary(findings)));
        if let Some(ended) = findings.ended_offers() {
            push(&mut text, &format!("  {ended}"));
        }
        for cause in findings.causes() {
            let said_by = cause.said_by.join(", ");
            push(&mut text, &format!("  {}, says {said_by}", cause.verdict));
        }
    }
    if !report.complete {
        push(&mut text, "stopped before the end");
    }
    text
}

/// The name of the mechanism with its TLS version.
#[must_use]
pub const fn title(how: How) -> &'static str {
    match how {
        How::SessionId => "TLS 1.2 session ID",
        How::Ticket => "TLS 1.2 ticket",
        How::Psk => "TLS 1.3 PSK",
    }
}

/// The result for the mechanism in one line, such as `resumed 5 of 5`.
#[must_use]
pub fn summary(findings: &MechanismFindings) -> String {
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
    for (what, servers) in not_resumed_by(findings) {
        let _ = write!(line, "; {what} {}", servers.join(", "));
    }
    line
}

/// The outcomes of attempts that did not resume, each with its servers, in the order of the
/// attempts.
fn not_resumed_by(findings: &MechanismFindings) -> Vec<(&'static str, Vec<String>)> {
    // If the first attempt was finished, it was the full handshake.
    let full_handshakes = match findings.attempts.first() {
        Some(first) if first.result.is_ok() => 1,
        _ => 0,
    };
    let mut reasons: Vec<(&'static str, String)> = Vec::new();
    for attempt in findings.attempts.iter().skip(full_handshakes) {
        let what = match attempt.outcome() {
            SessionOutcome::Refused => "refused by",
            SessionOutcome::NotOffered => "no session to offer to",
            SessionOutcome::Failed => "failed at",
            SessionOutcome::Resumed => continue,
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

const HEADER: [&str; 8] = [
    "#",
    "address",
    "offered",
    "outcome",
    "connect",
    "handshake",
    "server",
    "remark",
];

/// The index of the outcome in a row.
const OUTCOME: usize = 3;

fn table(text: &mut String, findings: &MechanismFindings, colour: Colour) {
    let mut rows = vec![HEADER.map(ToOwned::to_owned)];
    rows.extend(findings.attempts.iter().enumerate().map(row));
    let mut columns = Vec::new();
    for column in 0..HEADER.len() {
        if rows.iter().skip(1).any(|row| !row[column].is_empty()) {
            let width = rows.iter().map(|row| row[column].chars().count()).max();
            columns.push((column, width.unwrap_or(0)));
        }
    }
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for &(column, width) in &columns {
            let cell = &row[column];
            let gap = " ".repeat(width - cell.chars().count());
            let shown = match column {
                OUTCOME if number > 0 => paint(cell, outcome_shade(cell), colour),
                _ => cell.clone(),
            };
            // Numbers are aligned to the right.
            let numeric = matches!(HEADER[column], "#" | "connect" | "handshake");
            line.push_str("  ");
            line.push_str(&if numeric { gap + &shown } else { shown + &gap });
        }
        push(text, line.trim_end());
    }
}

fn row((number, attempt): (usize, &Attempt)) -> [String; HEADER.len()] {
    let seen = attempt.seen();
    let offered = match (attempt.offered(), seen) {
        (Some(offer), _) => offer.to_string(),
        (None, Some(_)) => "nothing".to_owned(),
        (None, None) => String::new(),
    };
    let remark = match &attempt.result {
        Ok(seen) => seen.verdict.clone().unwrap_or_default(),
        Err(failed) => failed.to_string(),
    };
    [
        number.to_string(),
        attempt.address.to_string(),
        offered,
        match attempt.outcome() {
            SessionOutcome::NotOffered => "full".to_owned(),
            other => other.as_str().to_owned(),
        },
        seen.map(|seen| millis(seen.times.connect))
            .unwrap_or_default(),
        seen.map(|seen| millis(seen.times.handshake))
            .unwrap_or_default(),
        seen.and_then(|seen| seen.server.clone())
            .unwrap_or_default(),
        remark,
    ]
}

fn push(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn count(number: usize, one: &str, many: &str) -> String {
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
        let text = write(&samples::report(), Colour::Never);
        let expected = "\
farm.test: server name farm.test, 2 addresses

TLS 1.2 session ID
  #  address        offered                       outcome  connect  handshake  server  remark
  0  192.0.2.1:443  nothing                       full      0.2 ms     1.5 ms
  1  192.0.2.1:443  session-id 07070707…07070707  resumed   0.2 ms     1.5 ms
  2  192.0.2.2:443  session-id 07070707…07070707  refused   0.2 ms     1.5 ms  web2    full/unknown
  3  192.0.2.1:443                                failed                               the server does not speak TLS

TLS 1.2 ticket
  #  address        offered  outcome  connect  handshake
  0  192.0.2.1:443  nothing  full      0.2 ms     1.5 ms
  1  192.0.2.2:443  nothing  full      0.2 ms     1.5 ms

TLS 1.3 PSK
  #  address        offered                outcome  connect  handshake
  0  192.0.2.1:443  nothing                full      0.2 ms     1.5 ms
  1  192.0.2.2:443  psk 07070707…07070707  resumed   0.2 ms     1.5 ms

TLS 1.2 session ID: resumed 1 of 3; refused by 192.0.2.2:443 (web2) 1 time; failed at 192.0.2.1:443 1 time
  full/unknown, says web2
TLS 1.2 ticket: not offered: the server gives no ticket
TLS 1.3 PSK: resumed 1 of 1
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn a_failed_return_shows_its_offer_and_the_comparison_without_a_session() {
        let text = write(&samples::faulty(), Colour::Never);
        let expected = "\
farm.test: server name farm.test, 1 address

TLS 1.3 PSK
  #  address        offered                outcome  connect  handshake  remark
  0  192.0.2.1:443  nothing                full      0.2 ms     1.5 ms
  1  192.0.2.1:443  psk 07070707…07070707  failed                       the server refused the handshake: alert internal_error; without a session it succeeded
  2  192.0.2.1:443  psk 07070707…07070707  failed                       the server refused the handshake: alert internal_error; without a session it succeeded

TLS 1.3 PSK: resumed 0 of 2; failed at 192.0.2.1:443 2 times
  2 of 2 connections that offered a session were ended by the server; 2 of 2 without one succeeded
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn colours_do_not_change_the_alignment() {
        let plain = write(&samples::report(), Colour::Never);
        let coloured = write(&samples::report(), Colour::Always);
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
        let text = write(&report, Colour::Never);
        assert!(
            text.ends_with("TLS 1.3 PSK: not finished\nstopped before the end\n"),
            "{text}"
        );
    }
}
