//! Prints the reports of a probe, and decides the exit status.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context as _;

use super::args::Args;
use crate::cli::terminal::{self, EXIT_INTERRUPTED};
use crate::probe::finding::Severity;
use crate::probe::table::{self, Detail};
use crate::probe::{ProbeReport, findings, html, json, prometheus};

/// Exit status for wrong usage, and for a target that accepts no connection.
const EXIT_NO_CONNECTION: u8 = 2;

/// Exit status for sessions that do not resume.
const EXIT_NOT_RESUMED: u8 = 1;

/// Prints the reports. The exit status is that of the worst report.
///
/// # Errors
///
/// The output or the HTML page cannot be written.
pub(super) fn print(args: &Args, reports: &[&ProbeReport]) -> anyhow::Result<ExitCode> {
    let text = if args.json {
        json::write(reports) + "\n"
    } else if args.prometheus {
        prometheus::write(reports)
    } else {
        let detail = if args.verbose {
            Detail::Attempts
        } else {
            Detail::Summary
        };
        table::write_all(reports, terminal::colour(), detail)
    };
    terminal::print_report(&text)?;
    // The report is safe on the standard output if the page cannot be written.
    if let Some(file) = &args.html {
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        std::fs::write(file, html::write(reports, &date))
            .with_context(|| format!("cannot write the HTML page to {}", file.display()))?;
    }
    let mut worst = 0;
    for report in reports {
        worst = worst.max(exit_status(args, report));
    }
    Ok(ExitCode::from(worst))
}

/// The exit status for one report. If no connection was made, this prints the reason.
fn exit_status(args: &Args, report: &ProbeReport) -> u8 {
    if let Some(error) = &report.error {
        print_error(&anyhow::anyhow!("{error}"));
        return EXIT_NO_CONNECTION;
    }
    if !report.complete {
        return EXIT_INTERRUPTED;
    }
    if report.has_no_connection() {
        let hint = if report.requires_certificate() {
            ": a client certificate is required (--cert FILE --key FILE)"
        } else if !report.has_refused_certificate() {
            ""
        } else if args.ca.is_some() {
            " (--insecure accepts any certificate, also a self-signed one)"
        } else {
            " (--ca FILE names the authority to trust, --insecure accepts any certificate)"
        };
        let target = &report.target;
        print_error(&anyhow::anyhow!("no connection to {target}{hint}"));
        return EXIT_NO_CONNECTION;
    }
    let is_good = match args.fail_under {
        None => report.all_resume(),
        Some(percent) => report.reaches(percent),
    };
    let has_critical = findings::of(report)
        .iter()
        .any(|finding| finding.severity() == Severity::Critical);
    if is_good && !has_critical {
        0
    } else {
        EXIT_NOT_RESUMED
    }
}

/// Prints an error, and returns its exit status.
pub(super) fn print_error(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "sessile probe: {error:#}");
    ExitCode::from(EXIT_NO_CONNECTION)
}
