//! What was measured, as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::load::Kind;
use super::options::Options;
use super::peer::Software;
use super::{CONCURRENCY, IDLE, Result};

/// Processor time for each connection, a value for each round.
#[derive(Default)]
pub(super) struct Costs(BTreeMap<(usize, Kind, Software), Vec<Duration>>);

impl Costs {
    pub(super) fn add(
        &mut self,
        kind: Kind,
        concurrency: usize,
        software: Software,
        cost: Duration,
    ) {
        self.0
            .entry((concurrency, kind, software))
            .or_default()
            .push(cost);
    }

    /// Microseconds.
    fn median(&self, concurrency: usize, kind: Kind, software: Software) -> Option<f64> {
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

    /// Prints it, and puts it into a document.
    pub(super) fn publish(mut self, document: Option<&Path>) -> Result<()> {
        for concurrency in CONCURRENCY {
            self.cost_table(concurrency);
        }
        self.memory_table();
        publish("servers", &self.text, document)
    }

    fn cost_table(&mut self, concurrency: usize) {
        let mut table = format!(
            "\n| µs of processor time a connection, {concurrency} at a time | sessile | nginx | HAProxy | \
             sessile ÷ the better | the kernel's part |\n|---|--:|--:|--:|--:|--:|\n"
        );
        for kind in Kind::ALL {
            let cost = |software| self.costs.median(concurrency, kind, software);
            let ours = cost(Software::Sessile);
            let better = [cost(Software::Nginx), cost(Software::Haproxy)]
                .into_iter()
                .flatten()
                .reduce(f64::min);
            let ratio = ours.zip(better).map(|(ours, better)| ours / better);
            let _ = writeln!(
                table,
                "| {kind} | {} | {} | {} | **{}** | {} |",
                shown(ours, 1),
                shown(cost(Software::Nginx), 1),
                shown(cost(Software::Haproxy), 1),
                shown(ratio, 2),
                shown(cost(Software::Bare), 1),
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

/// When, where and with what was measured.
pub(super) fn measured(options: &Options, software: &[Software]) -> String {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        output
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    let software = software
        .iter()
        .filter(|software| **software != Software::Bare);
    let versions: Vec<_> = software.map(|software| software.version(options)).collect();
    format!(
        "Measured on {} ({}, Linux {}): {}.",
        said("date", "+%F"),
        processor(),
        said("uname", "-r"),
        versions.join("; "),
    )
}

/// Prints a text, and puts it into a document: in the place of what is between its marks there.
pub(super) fn publish(mark: &str, text: &str, document: Option<&Path>) -> Result<()> {
    print!("{text}");
    let Some(document) = document else {
        return Ok(());
    };
    let begin = format!("<!-- {mark}: written by the benchmark -->");
    let end = format!("<!-- {mark}: end -->");
    let old = fs::read_to_string(document)?;
    let place = old
        .split_once(&begin)
        .and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)));
    let (head, tail) = place.ok_or_else(|| format!("no {begin} … {end} in the document"))?;
    fs::write(document, format!("{head}{begin}\n\n{text}\n{end}{tail}"))?;
    Ok(())
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

fn processor() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information
        .lines()
        .find(|line| line.starts_with("model name"));
    let model = model
        .and_then(|line| line.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    model.to_owned()
}
