//! The report for people: one table that fits a terminal of 110 columns.

use std::fmt::Write as _;

use super::LabReport;
use crate::probe::table::Colour;

/// Widths of all columns except the last. The whole table is 109 characters wide.
const WIDTHS: [usize; 3] = [24, 33, 38];

const HEADER: [&str; 4] = ["scenario", "what the article says", "what was observed", ""];

/// The whole report, with a final line break.
#[must_use]
pub fn write(report: &LabReport, colour: Colour) -> String {
    let mut text = format!(
        "{}: TLS 1.2 session IDs on servers like IIS 6.0; five idle minutes take {} s (--scale {})\n\n",
        report.experiment,
        (report.idle_timeout_seconds * 10.0).round() / 10.0,
        report.scale,
    );
    row(&mut text, HEADER, colour);
    for scenario in &report.scenarios {
        let _ = writeln!(text, "\n{} {}", scenario.number, scenario.title);
        for finding in &scenario.findings {
            let result = if finding.ok { "ok" } else { "differs" };
            let cells = [finding.case, finding.article, &finding.observed, result];
            row(&mut text, cells, colour);
        }
    }
    let _ = match report.kernel_connections() {
        0 => writeln!(
            text,
            "\nTLS records: in user space on all connections (the kernel takes only those that send files\n\
             of 64 KiB or more)"
        ),
        some => writeln!(text, "\nTLS records: in the kernel on {some} connections"),
    };
    let all = report.findings().count();
    let _ = match report.findings().filter(|finding| !finding.ok).count() {
        0 => writeln!(text, "\nall {all} observations are as the article says"),
        differ => writeln!(
            text,
            "\n{differ} of {all} observations differ from what the article says"
        ),
    };
    text
}

fn row(text: &mut String, cells: [&str; 4], colour: Colour) {
    let [wrapped @ .., result] = cells;
    let columns: Vec<_> = wrapped
        .iter()
        .zip(WIDTHS)
        .map(|(cell, width)| wrap(cell, width))
        .collect();
    let height = columns.iter().map(Vec::len).max().unwrap_or(0);
    for line in 0..height {
        let mut written = String::new();
        for (column, width) in columns.iter().zip(WIDTHS) {
            let cell = column.get(line).map_or("", String::as_str);
            let _ = write!(written, "  {cell:width$}");
        }
        if line == 0 {
            let _ = write!(written, "  {}", paint(result, colour));
        }
        text.push_str(written.trim_end());
        text.push('\n');
    }
}

/// Breaks a text between words into lines of at most `width` characters. A longer word gets its
/// own line.
fn wrap(cell: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in cell.split_whitespace() {
        let needed = word.chars().count();
        let line = lines.last_mut().expect("there is always a first line");
        match line.chars().count() {
            0 => line.push_str(word),
            used if used + 1 + needed <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn paint(result: &str, colour: Colour) -> String {
    let code = match (colour, result) {
        (Colour::Always, "ok") => 32,
        (Colour::Always, "differs") => 31,
        _ => return result.to_owned(),
    };
    format!("\x1b[{code}m{result}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::report::sample;

    #[test]
    fn the_table_has_wrapped_aligned_cells_and_a_summary() {
        let expected = "\
lab: TLS 1.2 session IDs on servers like IIS 6.0; five idle minutes take 42.9 s (--scale 7)

  scenario                  what the article says              what was observed

1 EnableKernelSSL=0
  back                      the session ID was purged with     web1: full/purged, new session ID,      ok
                            the connection's object            routed by session-id
  and again                 resumes                            web1: full/purged, new session ID,      differs
                                                               routed by session-id

TLS records: in user space on all connections (the kernel takes only those that send files
of 64 KiB or more)

1 of 2 observations differ from what the article says
";
        let mut report = sample();
        let text = write(&report, Colour::Never);
        assert_eq!(text, expected, "\n{text}");
        report.scenarios[0].kernel_connections = 3;
        let text = write(&report, Colour::Never);
        assert!(text.contains("in the kernel on 3 connections"), "{text}");
    }

    #[test]
    fn colours_change_only_the_results() {
        let coloured = write(&sample(), Colour::Always);
        assert!(coloured.contains("\x1b[31mdiffers\x1b[0m"), "{coloured}");
        let codes = ["\x1b[31m", "\x1b[32m", "\x1b[0m"];
        let stripped = codes
            .iter()
            .fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(stripped, write(&sample(), Colour::Never));
    }
}
