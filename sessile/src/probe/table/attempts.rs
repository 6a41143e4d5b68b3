//! The table of a mechanism's attempts.

use std::time::Duration;

use sessile_proto::Word;
use sessile_proto::verdict::How;
use sessile_proto::watch::SessionOutcome;

use super::text::{Colour, Shade, WIDTH, paint, push, push_wrapped};
use crate::probe::attempt::Attempt;
use crate::probe::report::MechanismFindings;

/// The indent of the lines below a row.
const BELOW_ROW: usize = 5;

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

pub(super) fn push_attempts(text: &mut String, findings: &MechanismFindings, colour: Colour) {
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

fn outcome_shade(outcome: &str) -> Shade {
    match outcome {
        "resumed" => Shade::Good,
        "refused" | "failed" => Shade::Bad,
        _ => Shade::Plain,
    }
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
