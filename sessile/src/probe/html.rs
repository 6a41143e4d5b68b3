//! The report as one HTML page that loads nothing else, with a picture of each matrix.

use std::fmt::Write as _;
use std::net::SocketAddr;

use sessile_proto::Word;
use sessile_proto::resumption_matrix::{Answers, Consistency, ResumptionMatrix};

use super::finding::{Finding, Severity};
use super::findings;
use super::report::ProbeReport;
use super::table::{count, early_data_summary, later_parts, mark, summary, title};
use crate::page::{Page, escaped};

/// The width and height of a place in a matrix, in pixels.
const PLACE: usize = 44;

/// The width of the labels at the left and at the top of a matrix, in pixels.
const LABEL: usize = 44;

/// The page about one or several targets. `date` is shown as it is.
#[must_use]
pub fn write(reports: &[&ProbeReport], date: &str) -> String {
    let mut body = String::new();
    for report in reports {
        push_report(&mut body, report, date);
    }
    let is_good = reports.iter().all(|report| report.all_resume());
    let title = match reports {
        [report] => report.target.clone(),
        reports => count(reports.len(), "target", "targets"),
    };
    Page {
        title: &format!("sessile probe: {title}"),
        icon: if is_good { "#1a7f37" } else { "#9a6700" },
        body: &body,
        script: "",
    }
    .document()
}

fn push_report(body: &mut String, report: &ProbeReport, date: &str) {
    let (headline, class) = match (report.all_resume(), report.has_no_connection()) {
        (true, _) => ("Everything resumes that the servers offer", "is-good"),
        (false, true) => ("No handshake was finished", "is-warn"),
        (false, false) => ("Some sessions do not resume", "is-warn"),
    };
    let _ = writeln!(
        body,
        "<section class=\"headline {class}\"><h1>{headline}</h1>\n<p>{}, server name {}</p>\n\
         <p class=quiet>sessile probe, {}</p></section>",
        escaped(&report.target),
        escaped(&report.server_name),
        escaped(date),
    );
    if let Some(error) = &report.error {
        let _ = writeln!(body, "<section><p>{}</p></section>", escaped(error));
        return;
    }
    push_findings(body, &findings::of(report));
    for tested in &report.mechanisms {
        let summary = summary(tested, report.addresses.len());
        let _ = writeln!(
            body,
            "<section><h2>{}</h2>\n<p>{}</p>",
            title(tested.how),
            escaped(&summary)
        );
        if tested.returns().next().is_some() {
            let matrix = tested.matrix(&report.addresses);
            push_picture(body, &matrix, &report.addresses, "resumed");
        }
        body.push_str("</section>\n");
    }
    if let Some(summary) = early_data_summary(&report.early_data) {
        let _ = writeln!(body, "<section><h2>0-RTT</h2>\n<p>{summary}</p>");
        let matrix = report.early_data.matrix(&report.addresses);
        push_picture(body, &matrix, &report.addresses, "accepted");
        body.push_str("</section>\n");
    }
    for (heading, lines) in later_parts(report) {
        let _ = writeln!(body, "<section><h2>{}</h2>\n<ul>", escaped(&heading));
        for line in lines {
            let _ = writeln!(body, "<li>{}</li>", escaped(&line));
        }
        body.push_str("</ul></section>\n");
    }
    push_servers(body, report);
}

fn push_findings(body: &mut String, findings: &[Finding]) {
    for finding in findings {
        let class = match finding.severity() {
            Severity::Critical => "bad",
            Severity::Warning => "warn",
            Severity::Notice => "quiet",
        };
        let mechanisms: Vec<&str> = finding.mechanisms.iter().map(|how| title(*how)).collect();
        let _ = writeln!(
            body,
            "<section><h2><span class={class}>{}</span> {}</h2>\n<p>{}</p>",
            finding.severity().as_str(),
            mechanisms.join(", "),
            escaped(&finding.text),
        );
        let steps = finding.remedy().steps();
        if !steps.is_empty() {
            body.push_str("<dl>\n");
            for step in steps {
                let product = if step.product.is_empty() {
                    "remedy"
                } else {
                    step.product
                };
                let _ = writeln!(
                    body,
                    "<dt>{}</dt><dd>{}</dd>",
                    escaped(product),
                    escaped(step.text)
                );
            }
            body.push_str("</dl>\n");
        }
        body.push_str("</section>\n");
    }
}

/// A row of places for each server that gave sessions, a column for each server that got them.
fn push_picture(
    body: &mut String,
    matrix: &ResumptionMatrix,
    addresses: &[SocketAddr],
    success: &str,
) {
    let servers = matrix.servers();
    let size = LABEL + servers * PLACE;
    let _ = writeln!(
        body,
        "<div class=scroll><svg width={size} height={size} role=img font-size=14 text-anchor=middle \
         aria-label=\"who resumes whose sessions\">"
    );
    for server in 0..servers {
        let middle = LABEL + server * PLACE + PLACE / 2;
        let (number, edge) = (server + 1, LABEL / 2);
        let _ = writeln!(
            body,
            "<text x={middle} y={edge} fill=currentColor>{number}</text>\
             <text x={edge} y={} fill=currentColor>{number}</text>",
            middle + 5
        );
    }
    for from in 0..servers {
        for to in 0..servers {
            let answers = matrix.answers(from, to);
            let [x, y] = [to, from].map(|index| LABEL + index * PLACE);
            let _ = writeln!(
                body,
                "<g><title>{} offered to {}: {} of {} {success}</title>\
                 <rect x={x} y={y} width={side} height={side} rx=4 fill=\"{}\"/>\
                 <text x={} y={} fill=#fff>{}</text></g>",
                addresses[from],
                addresses[to],
                answers.resumed,
                answers.offered(),
                colour(answers),
                x + PLACE / 2 - 1,
                y + PLACE / 2 + 4,
                mark(answers),
                side = PLACE - 2,
            );
        }
    }
    body.push_str(
        "</svg></div>\n<p class=quiet>Rows: who gave the session. Columns: who got it.</p>\n",
    );
}

const fn colour(answers: Answers) -> &'static str {
    match answers.consistency() {
        Consistency::Always => "#1a7f37",
        Consistency::Sometimes => "#9a6700",
        Consistency::Never => "#cf222e",
        Consistency::Unknown if answers.ended > 0 => "#82071e",
        Consistency::Unknown => "#59636e",
    }
}

fn push_servers(body: &mut String, report: &ProbeReport) {
    body.push_str("<section><h2>Servers</h2>\n<dl>\n");
    for (number, address) in report.addresses.iter().enumerate() {
        let label = report.server_label(*address);
        let _ = writeln!(body, "<dt>{}</dt><dd>{}</dd>", number + 1, escaped(&label));
    }
    body.push_str(
        "</dl>\n<p class=quiet>yes: every session resumed; 1/2: some did; -: refused; end: the server ended the \
         handshake; .: not tested</p></section>\n",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::samples;
    use crate::probe::{EarlyDataOffer, EarlyDataOutcome};

    #[test]
    fn the_page_has_the_findings_and_a_picture_and_escapes_its_texts() {
        let mut report = samples::report();
        report.target = "<script>".to_owned();
        report.early_data.offers.push(EarlyDataOffer {
            origin: samples::address(1),
            address: samples::address(2),
            outcome: EarlyDataOutcome::Accepted,
            error: None,
        });
        let page = write(&[&report], "2026-11-27");
        assert!(page.contains("Some sessions do not resume"));
        assert!(page.contains("warning</span>"), "{page}");
        assert!(
            page.contains("<title>192.0.2.1:443 offered to 192.0.2.2:443: 0 of 1 resumed</title>")
        );
        assert!(
            page.contains("<title>192.0.2.1:443 offered to 192.0.2.2:443: 1 of 1 accepted</title>")
        );
        assert!(page.contains("sessile probe: &lt;script>"));
        assert!(!page.contains("<script>"));
        assert!(!page.contains("http://") || page.contains("http://www.w3.org/2000/svg"));
    }
}
