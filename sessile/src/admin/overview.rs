//! `/` of the admin listener: the servers with their state, the verdicts, and links, as HTML or as text.

use std::collections::HashMap;
use std::fmt::Write as _;

use bytes::Bytes;
use http::Response;
use prometheus::Registry;
use prometheus::proto::{Metric, MetricFamily};
use serde_json::Value;
use sessile_proto::verdict::Verdict;

use crate::page::{Page, escaped};

/// The metric with the verdicts of servers.
const VERDICTS: &str = "sessile_handshakes_total";

/// The metric with the open connections of servers.
const OPEN: &str = "sessile_connections_open";

const SILENT: &str = "The balancer does not answer.";

/// The servers that the overview is about.
pub(super) enum Farm {
    /// The servers of this process.
    Process,
    /// The servers behind a balancer, as JSON of its API. `None`: the balancer does not answer.
    Balancer(Option<Value>),
}

/// The state of the process, for people.
pub(super) struct Overview {
    /// Why the process should get no new clients; `None` if it is ready.
    not_ready: Option<String>,
    /// True if the process has a balancer, and the balancer does not answer.
    is_silent: bool,
    servers: Vec<ServerRow>,
    /// The verdicts that at least one handshake had. A balancer has no verdicts.
    verdicts: Vec<(Verdict, u64)>,
    paths: Vec<&'static str>,
}

/// A server of this process, or behind this balancer.
#[derive(Default)]
struct ServerRow {
    name: String,
    state: String,
    /// Empty if the server is in this process.
    address: String,
    open: u64,
    resumed: u64,
    full: u64,
}

impl Overview {
    pub(super) fn new(not_ready: Option<String>, registry: &Registry, farm: &Farm) -> Self {
        let families = registry.gather();
        let mut paths = vec!["/healthz", "/readyz", "/metrics"];
        if matches!(farm, Farm::Balancer(_)) {
            paths.push("/api/balancer");
        }
        let servers = match farm {
            Farm::Process => servers_of_process(&families, not_ready.is_none()),
            Farm::Balancer(Some(balancer)) => servers_of_balancer(balancer),
            Farm::Balancer(None) => Vec::new(),
        };
        Self {
            not_ready,
            is_silent: matches!(farm, Farm::Balancer(None)),
            servers,
            verdicts: verdict_counts(&families),
            paths,
        }
    }

    /// The first line: the program, and if it is ready.
    fn state(&self) -> &str {
        self.not_ready.as_deref().unwrap_or("ready")
    }

    /// The state as text.
    pub(super) fn text(&self) -> String {
        let mut out = format!("sessile {}: {}\n", env!("CARGO_PKG_VERSION"), self.state());
        let longest = self
            .servers
            .iter()
            .map(|server| server.name.chars().count());
        let width = longest.max().unwrap_or(0).max("server".len());
        if self.is_silent {
            let _ = writeln!(out, "\n{SILENT}");
        }
        if !self.servers.is_empty() {
            let _ = writeln!(
                out,
                "\n{:<width$}  {:<10}  {:>6}  {:>8}  {:>8}  address",
                "server", "state", "open", "resumed", "full"
            );
        }
        for server in &self.servers {
            let line = format!(
                "{:<width$}  {:<10}  {:>6}  {:>8}  {:>8}  {}",
                server.name, server.state, server.open, server.resumed, server.full, server.address
            );
            out.push_str(line.trim_end());
            out.push('\n');
        }
        if !self.verdicts.is_empty() {
            out.push_str("\nverdict                  handshakes\n");
        }
        for (verdict, count) in &self.verdicts {
            let _ = writeln!(out, "{:<23}  {count:>10}", verdict.to_string());
        }
        out.push('\n');
        for path in &self.paths {
            let _ = writeln!(out, "{path}");
        }
        out
    }

    /// The state as a page.
    pub(super) fn html(&self) -> Response<Bytes> {
        let (tone, icon) = match self.not_ready {
            None => ("good", "#1a7f37"),
            Some(_) => ("warn", "#9a6700"),
        };
        let state = escaped(self.state());
        let links: String = self
            .paths
            .iter()
            .map(|path| format!("<li><a href=\"{path}\">{path}</a>"))
            .collect();
        let body = format!(
            "<section class=\"headline is-{tone}\">\n<p class=quiet>sessile {}</p>\n\
             <h1 class={tone}>{state}</h1>\n<p>{}</p>\n</section>\n{}{}\
             <section>\n<h2>For programs</h2>\n<ul>{links}</ul>\n</section>\n",
            env!("CARGO_PKG_VERSION"),
            self.sum(),
            self.server_table(),
            self.verdict_table(),
        );
        let page = Page {
            title: &format!("sessile · {}", self.state()),
            icon,
            body: &body,
            script: "",
        };
        page.response()
    }

    /// The handshakes of all servers in one line.
    fn sum(&self) -> String {
        if self.is_silent {
            return SILENT.to_owned();
        }
        let resumed: u64 = self.servers.iter().map(|server| server.resumed).sum();
        let full: u64 = self.servers.iter().map(|server| server.full).sum();
        let open: u64 = self.servers.iter().map(|server| server.open).sum();
        let open = match open {
            1 => "1 connection is".to_owned(),
            _ => format!("{open} connections are"),
        };
        format!(
            "{resumed} of {} handshakes resumed. {open} open.",
            resumed + full
        )
    }

    fn server_table(&self) -> String {
        if self.servers.is_empty() {
            return String::new();
        }
        let rows: String = self.servers.iter().map(ServerRow::html).collect();
        format!(
            "<section>\n<h2>Servers</h2>\n<div class=scroll><table>\n<thead><tr><th scope=col>server\
             <th scope=col>state<th scope=col class=number>open<th scope=col class=number>resumed\
             <th scope=col class=number>full<th scope=col class=wide>address</thead>\n\
             <tbody>\n{rows}</tbody>\n</table></div>\n</section>\n"
        )
    }

    fn verdict_table(&self) -> String {
        if self.verdicts.is_empty() {
            return String::new();
        }
        let mut rows = String::new();
        for (verdict, count) in &self.verdicts {
            let tone = match verdict {
                Verdict::Resumed(_) => "good",
                Verdict::Full(_) => "warn",
            };
            let _ = writeln!(
                rows,
                "<tr><td class=\"mono {tone}\">{verdict}<td class=number>{count}"
            );
        }
        format!(
            "<section>\n<h2>Verdicts</h2>\n<div class=scroll><table>\n<thead><tr><th scope=col>verdict\
             <th scope=col class=number>handshakes</thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n</section>\n"
        )
    }
}

impl ServerRow {
    fn html(&self) -> String {
        let tone = match self.state.as_str() {
            "up" => "good",
            "down" => "bad",
            _ => "warn",
        };
        format!(
            "<tr><td>{}<td class={tone}>{}<td class=number>{}<td class=number>{}<td class=number>{}\
             <td class=\"wide mono\">{}\n",
            escaped(&self.name),
            escaped(&self.state),
            self.open,
            self.resumed,
            self.full,
            escaped(&self.address),
        )
    }
}

/// The servers behind a balancer, from its API.
fn servers_of_balancer(balancer: &Value) -> Vec<ServerRow> {
    let servers = balancer["servers"].as_array().into_iter().flatten();
    let rows = servers.map(|server| {
        let word = |key: &str| server[key].as_str().unwrap_or_default().to_owned();
        let outcome = |key: &str| server["outcomes"][key].as_u64().unwrap_or(0);
        ServerRow {
            name: word("name"),
            state: word("state"),
            address: word("address"),
            open: server["open"].as_u64().unwrap_or(0),
            resumed: outcome("resumed"),
            full: outcome("refused") + outcome("not-offered"),
        }
    });
    rows.collect()
}

/// The servers in this process, from their metrics.
fn servers_of_process(families: &[MetricFamily], is_ready: bool) -> Vec<ServerRow> {
    let mut servers: Vec<ServerRow> = Vec::new();
    for (metric, verdict) in verdict_metrics(families) {
        let name = label(metric, "server");
        if servers.last().is_none_or(|server| server.name != name) {
            servers.push(ServerRow {
                name: name.to_owned(),
                state: if is_ready { "up" } else { "draining" }.to_owned(),
                open: open_connections(families, name),
                ..ServerRow::default()
            });
        }
        if let Some(server) = servers.last_mut() {
            match verdict {
                Verdict::Resumed(_) => server.resumed += count(metric),
                Verdict::Full(_) => server.full += count(metric),
            }
        }
    }
    servers
}

/// The verdicts that at least one handshake of this process had, with their counts.
fn verdict_counts(families: &[MetricFamily]) -> Vec<(Verdict, u64)> {
    let mut totals: HashMap<Verdict, u64> = HashMap::new();
    for (metric, verdict) in verdict_metrics(families) {
        *totals.entry(verdict).or_default() += count(metric);
    }
    Verdict::all()
        .filter_map(|verdict| Some((verdict, *totals.get(&verdict)?)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// The counters of verdicts. Those of one server follow each other.
fn verdict_metrics(families: &[MetricFamily]) -> impl Iterator<Item = (&Metric, Verdict)> {
    metrics(families, VERDICTS)
        .filter_map(|metric| Some((metric, Verdict::parse(label(metric, "verdict"))?)))
}

fn open_connections(families: &[MetricFamily], server: &str) -> u64 {
    let mut gauges = metrics(families, OPEN);
    let gauge = gauges.find(|gauge| label(gauge, "server") == server);
    gauge.map_or(0, |gauge| gauge.get_gauge().get_value() as u64)
}

fn metrics<'f>(families: &'f [MetricFamily], name: &str) -> impl Iterator<Item = &'f Metric> {
    let family = families.iter().find(|family| family.name() == name);
    family.into_iter().flat_map(MetricFamily::get_metric)
}

fn label<'m>(metric: &'m Metric, name: &str) -> &'m str {
    let mut labels = metric.get_label().iter();
    labels
        .find(|label| label.name() == name)
        .map_or("", |label| label.value())
}

fn count(metric: &Metric) -> u64 {
    metric.get_counter().get_value() as u64
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, Opts};
    use serde_json::json;

    use super::*;

    /// The metrics of two servers in one process.
    fn registry() -> Registry {
        let registry = Registry::new();
        for (server, verdicts) in [
            ("web1", &[("resumed/psk", 3)][..]),
            (
                "web2",
                &[("resumed/psk", 2), ("full/expired", 1), ("full/lost", 0)],
            ),
        ] {
            let opts = Opts::new(VERDICTS, "help").const_label("server", server);
            let family = IntCounterVec::new(opts, &["verdict"]).unwrap();
            registry.register(Box::new(family.clone())).unwrap();
            for (verdict, count) in verdicts {
                family.with_label_values(&[verdict]).inc_by(*count);
            }
        }
        registry
    }

    #[test]
    fn the_servers_of_a_process_have_their_verdicts() {
        let overview = Overview::new(None, &registry(), &Farm::Process);
        let expected = format!(
            "sessile {}: ready\n\n\
             server  state         open   resumed      full  address\n\
             web1    up               0         3         0\n\
             web2    up               0         2         1\n\n\
             verdict                  handshakes\n\
             resumed/psk                       5\n\
             full/expired                      1\n\n\
             /healthz\n/readyz\n/metrics\n",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(overview.text(), expected);
    }

    #[test]
    fn the_servers_of_a_balancer_have_their_state() {
        let balancer = json!({"servers": [{
            "name": "<a>", "state": "down", "address": "10.0.0.1:443", "open": 1,
            "outcomes": {"resumed": 7, "refused": 2, "not-offered": 1, "failed": 5},
        }]});
        let reason = Some("no server is up".to_owned());
        let farm = Farm::Balancer(Some(balancer));
        let overview = Overview::new(reason, &Registry::new(), &farm);
        let text = overview.text();
        assert!(text.contains(": no server is up\n"), "{text}");
        assert!(
            text.contains("down             1         7         3  10.0.0.1:443\n"),
            "{text}"
        );
        assert!(text.ends_with("/metrics\n/api/balancer\n"), "{text}");
        let html = String::from_utf8(overview.html().into_body().to_vec()).unwrap();
        assert!(html.contains("<td>&lt;a><td class=bad>down"), "{html}");
        assert!(html.contains("7 of 10 handshakes resumed."), "{html}");
    }

    #[test]
    fn a_balancer_that_does_not_answer_is_not_shown_as_an_empty_farm() {
        let farm = Farm::Balancer(None);
        let overview = Overview::new(None, &Registry::new(), &farm);
        let text = overview.text();
        assert!(text.contains("\nThe balancer does not answer.\n"), "{text}");
        assert!(text.ends_with("/api/balancer\n"), "{text}");
        let html = String::from_utf8(overview.html().into_body().to_vec()).unwrap();
        assert!(
            html.contains("<p>The balancer does not answer.</p>"),
            "{html}"
        );
        assert!(!html.contains("0 of 0"), "{html}");
    }
}
