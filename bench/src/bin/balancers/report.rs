//! The results as Markdown.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use sessile_bench::{Result, output_of};

use super::model::{AT_ONCE, Options, Software};

/// The rows of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Row {
    Connections { at_once: usize },
    Bytes,
}

impl Row {
    pub(super) const ALL: [Self; 3] = [
        Self::Connections {
            at_once: AT_ONCE[0],
        },
        Self::Connections {
            at_once: AT_ONCE[1],
        },
        Self::Bytes,
    ];

    /// The bare balancer knows only the short response.
    pub(super) fn has(self, software: Software) -> bool {
        self != Self::Bytes || software != Software::Bare
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connections { at_once } => write!(f, "µs a connection, {at_once} at a time"),
            Self::Bytes => f.write_str("ms a GiB, one connection"),
        }
    }
}

/// Processor time, with one value for each round, and memory of an idle connection.
#[derive(Default)]
pub(super) struct Costs {
    times: BTreeMap<(Row, Software), Vec<Duration>>,
    memory: BTreeMap<Software, u64>,
}

impl Costs {
    pub(super) fn add(&mut self, row: Row, software: Software, cost: Duration) {
        self.times.entry((row, software)).or_default().push(cost);
    }

    pub(super) fn add_memory(&mut self, software: Software, bytes: u64) {
        self.memory.insert(software, bytes);
    }

    /// The median in microseconds for a connection, and in milliseconds for a GiB.
    fn median(&self, row: Row, software: Software) -> Option<f64> {
        let mut costs = self.times.get(&(row, software))?.clone();
        costs.sort_unstable();
        let median = costs[costs.len() / 2].as_secs_f64();
        Some(match row {
            Row::Connections { .. } => median * 1e6,
            Row::Bytes => median * 1e3,
        })
    }
}

/// Prints the tables, and writes them to the section of the document for this number of workers.
pub(super) fn publish(options: &Options, costs: &Costs) -> Result<()> {
    let mark = format!("balancers, {}", options.workers);
    sessile_bench::publish(&mark, &text(options, costs), options.write.as_deref())
}

fn text(options: &Options, costs: &Costs) -> String {
    let workers = match options.workers {
        1 => "One worker each".to_owned(),
        workers => format!("{workers} workers each"),
    };
    let mut text = format!(
        "{workers}; measured on {} (Linux {}). Medians of {} interleaved rounds of {} connections, and of a GiB \
         in four.\n\n| processor time |",
        output_of("date", &["+%F"]),
        output_of("uname", &["-r"]),
        options.rounds,
        options.connections,
    );
    for software in Software::ALL {
        let _ = write!(text, " {software} |");
    }
    text.push_str(" sessile ÷ the best other |\n|---|");
    text.push_str(&"--:|".repeat(Software::ALL.len() + 1));
    text.push('\n');
    for row in Row::ALL {
        let _ = write!(text, "| {row} |");
        let cost = |software| costs.median(row, software).unwrap_or(f64::NAN);
        for software in Software::ALL {
            text.push_str(&cell(cost(software)));
        }
        let best = Software::others().map(cost).fold(f64::INFINITY, f64::min);
        let _ = writeln!(text, " **{:.2}** |", cost(Software::Sessile) / best);
    }
    text.push_str("| KiB of memory (PSS) an idle connection |");
    let memory = |software| {
        costs
            .memory
            .get(&software)
            .map_or(f64::NAN, |bytes| *bytes as f64 / 1024.0)
    };
    for software in Software::ALL {
        text.push_str(&cell(memory(software)));
    }
    let least = Software::others().map(memory).fold(f64::INFINITY, f64::min);
    let _ = writeln!(text, " **{:.2}** |", memory(Software::Sessile) / least);
    text
}

fn cell(value: f64) -> String {
    if value.is_nan() {
        " – |".to_owned()
    } else {
        format!(" {value:.1} |")
    }
}
