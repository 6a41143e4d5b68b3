//! The results as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use sessile_bench::{Result, output_of};

use super::model::{CONCURRENCY, ConnectionKind, IDLE, Software};
use super::options::Options;

/// Processor time of a connection, with one value for each round.
#[derive(Default)]
pub(super) struct Costs(BTreeMap<(usize, ConnectionKind, Software), Vec<Duration>>);

impl Costs {
    pub(super) fn add(
        &mut self,
        kind: ConnectionKind,
        concurrency: usize,
        software: Software,
        cost: Duration,
    ) {
        self.0
            .entry((concurrency, kind, software))
            .or_default()
            .push(cost);
    }

    /// The median in microseconds.
    fn median(&self, concurrency: usize, kind: ConnectionKind, software: Software) -> Option<f64> {
        let mut costs = self.0.get(&(concurrency, kind, software))?.clone();
        costs.sort_unstable();
        Some(costs[costs.len() / 2].as_secs_f64() * 1e6)
    }
}

pub(super) struct Report {
    text: String,
    costs: Costs,
    memory: BTreeMap<Software, (u64, u64)>,
}

impl Report {
    pub(super) fn new(options: &Options, costs: Costs) -> Self {
        Self {
            text: format!(
                "{} Medians of {} interleaved rounds of {} connections.\n",
                measured(options, &options.software()),
                options.rounds,
                options.connections,
            ),
            costs,
            memory: BTreeMap::new(),
        }
    }

    pub(super) fn memory(
        &mut self,
        software: Software,
        before: u64,
        after: u64,
        connections: usize,
    ) {
        let each = after.saturating_sub(before) / connections as u64;
        self.memory.insert(software, (before, each));
    }

    /// Prints the report, and writes it to the document.
    pub(super) fn publish(mut self, document: Option<&Path>) -> Result<()> {
        for concurrency in CONCURRENCY {
            self.cost_table(concurrency);
        }
        self.memory_table();
        sessile_bench::publish("servers", &self.text, document)
    }

    fn cost_table(&mut self, concurrency: usize) {
        let mut table = format!(
            "\n| µs of processor time a connection, {concurrency} at a time | sessile | nginx | HAProxy | \
             sessile ÷ the better | the kernel's part |\n|---|--:|--:|--:|--:|--:|\n"
        );
        for kind in ConnectionKind::ALL {
            let cost = |software| self.costs.median(concurrency, kind, software);
            let ours = cost(Software::Sessile);
            let best_peer = [cost(Software::Nginx), cost(Software::Haproxy)]
                .into_iter()
                .flatten()
                .reduce(f64::min);
            let ratio = ours.zip(best_peer).map(|(ours, best)| ours / best);
            let _ = writeln!(
                table,
                "| {kind} | {} | {} | {} | **{}** | {} |",
                format_or_dash(ours, 1),
                format_or_dash(cost(Software::Nginx), 1),
                format_or_dash(cost(Software::Haproxy), 1),
                format_or_dash(ratio, 2),
                format_or_dash(cost(Software::Bare), 1),
            );
        }
        self.text.push_str(&table);
    }

    fn memory_table(&mut self) {
        let mut table = format!(
            "\n| Memory (PSS), {IDLE} idle connections | before | each connection |\n|---|--:|--:|\n"
        );
        for (software, (before, each)) in &self.memory {
            let (before, each) = (*before as f64 / 1024.0 / 1024.0, *each as f64 / 1024.0);
            let _ = writeln!(table, "| {software} | {before:.1} MiB | {each:.1} KiB |");
        }
        self.text.push_str(&table);
    }
}

/// The date, the machine and the versions of a measurement.
pub(super) fn measured(options: &Options, software: &[Software]) -> String {
    let versions: Vec<_> = software
        .iter()
        .filter(|software| **software != Software::Bare)
        .map(|software| software.version(options))
        .collect();
    format!(
        "Measured on {} ({}, Linux {}): {}.",
        output_of("date", &["+%F"]),
        processor(),
        output_of("uname", &["-r"]),
        versions.join("; "),
    )
}

fn format_or_dash(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

fn processor() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    information
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or("unknown processor", |(_, model)| model)
        .to_owned()
}
