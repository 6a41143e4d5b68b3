//! The report in the text format of Prometheus, for the textfile collector of node_exporter.

use std::fmt::Write as _;

use sessile_proto::Word;
use strum::VariantArray;

use super::finding::Code;
use super::findings;
use super::report::{MechanismFindings, ProbeReport};

/// The reports as metrics. All are gauges, because each run begins anew.
#[must_use]
pub fn write(reports: &[&ProbeReport]) -> String {
    let mut text = String::new();
    describe(&mut text, "offered", "Sessions that the probe offered.");
    for (labels, tested) in mechanisms(reports) {
        sample(&mut text, "offered", &labels, tested.returns().count());
    }
    describe(&mut text, "resumed", "Offered sessions that resumed.");
    for (labels, tested) in mechanisms(reports) {
        sample(&mut text, "resumed", &labels, tested.resumed());
    }
    describe(
        &mut text,
        "mechanism",
        "1 for the status of each mechanism.",
    );
    for (labels, tested) in mechanisms(reports) {
        let labels = format!("{labels},status=\"{}\"", tested.status().as_str());
        sample(&mut text, "mechanism", &labels, 1);
    }
    describe(&mut text, "findings", "Findings by code.");
    for report in reports {
        let found = findings::of(report);
        for code in Code::VARIANTS {
            let with_code = found.iter().filter(|finding| finding.code == *code);
            let labels = format!("{},code=\"{}\"", target(report), code.as_str());
            sample(&mut text, "findings", &labels, with_code.count());
        }
    }
    let success = "1 if everything resumed that the servers offer.";
    describe(&mut text, "success", success);
    for report in reports {
        let value = usize::from(report.all_resume());
        sample(&mut text, "success", &target(report), value);
    }
    describe(
        &mut text,
        "complete",
        "0 if the run was stopped before its end.",
    );
    for report in reports {
        let value = usize::from(report.complete);
        sample(&mut text, "complete", &target(report), value);
    }
    text
}

fn target(report: &ProbeReport) -> String {
    format!("target=\"{}\"", escaped(&report.target))
}

/// Each mechanism of each target, with its labels.
fn mechanisms<'a>(
    reports: &'a [&ProbeReport],
) -> impl Iterator<Item = (String, &'a MechanismFindings)> {
    reports.iter().flat_map(|report| {
        report.mechanisms.iter().map(|tested| {
            let mechanism = tested.how.as_str();
            (
                format!("{},mechanism=\"{mechanism}\"", target(report)),
                tested,
            )
        })
    })
}

fn describe(text: &mut String, name: &str, help: &str) {
    let _ = writeln!(text, "# HELP sessile_probe_{name} {help}");
    let _ = writeln!(text, "# TYPE sessile_probe_{name} gauge");
}

fn sample(text: &mut String, name: &str, labels: &str, value: usize) {
    let _ = writeln!(text, "sessile_probe_{name}{{{labels}}} {value}");
}

/// A label value in the text format.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::samples;

    #[test]
    fn a_report_becomes_gauges() {
        let text = write(&[&samples::report()]);
        for line in [
            "sessile_probe_offered{target=\"farm.test\",mechanism=\"session-id\"} 2",
            "sessile_probe_resumed{target=\"farm.test\",mechanism=\"session-id\"} 1",
            "sessile_probe_mechanism{target=\"farm.test\",mechanism=\"ticket\",status=\"not-offered\"} 1",
            "sessile_probe_findings{target=\"farm.test\",code=\"ends-resumption\"} 0",
            "sessile_probe_success{target=\"farm.test\"} 0",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escaped("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }
}
