//! The table of all targets.

use sessile_proto::Word;
use sessile_proto::verdict::How;

use super::text::{Colour, Shade, count, paint, push, push_wrapped};
use crate::probe::finding::Severity;
use crate::probe::findings;
use crate::probe::plan::MECHANISMS;
use crate::probe::report::{ProbeReport, Status};

/// Columns of a target. A longer target has a line of its own.
const TARGET: usize = 30;

/// Columns of a mechanism.
const MECHANISM: usize = 10;

/// Adds a line for each target: whether each mechanism resumes, and how many findings there are.
pub(super) fn push_overview(text: &mut String, reports: &[&ProbeReport], colour: Colour) {
    let mut head = format!("{:TARGET$}", "target");
    for name in ["1.2 ID", "1.2 ticket", "1.3 PSK"] {
        head += &format!("  {name:MECHANISM$}");
    }
    push(text, &(head + "  findings"));
    for report in reports {
        let mut line = format!("{:TARGET$}", report.target);
        if line.chars().count() > TARGET {
            push(text, &line);
            line = " ".repeat(TARGET);
        }
        if let Some(error) = &report.error {
            push(text, line.trim_end());
            push_wrapped(text, 2, error);
            continue;
        }
        for how in MECHANISMS {
            let (word, shade) = result(report, how);
            let padding = " ".repeat(MECHANISM - word.len());
            line += &format!("  {}{padding}", paint(word, shade, colour));
        }
        line += &format!("  {}", number_of_findings(report));
        push(text, line.trim_end());
    }
}

/// The result of a mechanism in a word.
fn result(report: &ProbeReport, how: How) -> (&'static str, Shade) {
    let mut tested = report.mechanisms.iter();
    match tested
        .find(|tested| tested.how == how)
        .map(|tested| tested.status())
    {
        Some(Status::Resumes) => ("resumes", Shade::Good),
        Some(Status::Partly) => ("partly", Shade::Bad),
        Some(Status::Refuses) => ("refuses", Shade::Bad),
        Some(Status::Failed) => ("failed", Shade::Bad),
        Some(Status::NotOffered) => ("-", Shade::Plain),
        Some(Status::Unfinished) => ("unfinished", Shade::Plain),
        None => ("", Shade::Plain),
    }
}

/// The most severe findings, counted.
fn number_of_findings(report: &ProbeReport) -> String {
    let found = findings::of(report);
    let worst = found.iter().map(|finding| finding.severity()).min();
    let Some(worst) = worst else {
        return String::new();
    };
    let number = found
        .iter()
        .filter(|finding| finding.severity() == worst)
        .count();
    match worst {
        Severity::Critical => format!("{number} {}", worst.as_str()),
        Severity::Warning => count(number, "warning", "warnings"),
        Severity::Notice => count(number, "notice", "notices"),
    }
}
