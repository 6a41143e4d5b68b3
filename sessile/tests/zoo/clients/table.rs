//! Judges the connections of each client, and prints the results as a Markdown table.

use std::any::Any;
use std::fmt;

use super::list::{Client, NOTES};
use super::{Connection, Mechanism};

/// How a client's returns by one mechanism ended.
pub(super) enum Cell {
    /// All returns resumed. The value is their number.
    Resumed(usize),
    /// The library lacks this mechanism. The value is the number of the note with the reason.
    Lacks(usize),
    Failed {
        shown: String,
        why: String,
    },
}

impl Cell {
    /// Compares the connections of a client with the verdict that its library should reach.
    pub(super) fn judge(client: &Client, mechanism: Mechanism, connections: &[Connection]) -> Self {
        let lacking = client.lacking(mechanism);
        let expected = match lacking {
            Some(lacks) => lacks.verdict.to_owned(),
            None => format!("resumed/{}", mechanism.as_str()),
        };
        let Some((first, returns)) = connections.split_first() else {
            return Self::failed(0, client, connections);
        };
        let good = returns.iter().filter(|it| is_as_expected(it, &expected));
        let good = good.count();
        let began_in_full =
            first.answer.verdict.starts_with("full/") && first.resumed != Some(true);
        // A browser also opens connections without a request. So two returns in a row may reach the same
        // server.
        let servers = connections.iter().map(|it| &it.answer.server);
        let moves = servers.clone().zip(servers.skip(1));
        let moved = moves.filter(|(before, after)| before != after).count();
        if !began_in_full || good != client.returns || good != returns.len() || 2 * moved < good {
            return Self::failed(good, client, connections);
        }
        lacking.map_or(Self::Resumed(good), |lacks| Self::Lacks(lacks.note))
    }

    fn failed(good: usize, client: &Client, connections: &[Connection]) -> Self {
        let lines = connections.iter().map(|connection| {
            let reported = match connection.resumed {
                Some(true) => "resumed",
                Some(false) => "full",
                None => "-",
            };
            let answer = &connection.answer;
            format!(
                "  {}: {}, client: {reported}\n",
                answer.server, answer.verdict
            )
        });
        Self::Failed {
            shown: format!("{good} of {}", client.returns),
            why: lines.collect(),
        }
    }
}

/// True if the server reports this verdict on the first request of a connection, and the client does not
/// contradict.
fn is_as_expected(connection: &Connection, verdict: &str) -> bool {
    let answer = &connection.answer;
    let resumed = verdict.starts_with("resumed/");
    answer.verdict == verdict
        && answer.request == 1
        && connection
            .resumed
            .is_none_or(|reported| reported == resumed)
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resumed(returns) => write!(f, "{returns} of {returns}"),
            Self::Lacks(note) => write!(f, "– ({note})"),
            Self::Failed { shown, .. } => f.write_str(shown),
        }
    }
}

/// The row of a client.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) cells: [Cell; 3],
}

impl Row {
    /// The failed cells, with the reports of both ends on each connection.
    pub(super) fn failures(&self) -> impl Iterator<Item = String> {
        let cells = Mechanism::ALL.iter().zip(&self.cells);
        cells.filter_map(|(mechanism, cell)| match cell {
            Cell::Failed { shown, why } => {
                let column = mechanism.title();
                Some(format!("{}, {column}: {shown}\n{why}", self.name))
            }
            _ => None,
        })
    }
}

/// The table, and the notes below it.
pub(super) fn markdown(rows: &[Row]) -> String {
    let titles = Mechanism::ALL.map(Mechanism::title);
    let head = ["client", "version", titles[0], titles[1], titles[2]].map(str::to_owned);
    let mut lines = vec![head];
    for row in rows {
        let [session_id, ticket, psk] = row.cells.each_ref().map(Cell::to_string);
        lines.push([
            row.name.to_owned(),
            row.version.clone(),
            session_id,
            ticket,
            psk,
        ]);
    }
    let widths: [usize; 5] = std::array::from_fn(|column| {
        let lengths = lines.iter().map(|line| line[column].chars().count());
        lengths.max().unwrap_or(0)
    });
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(widths) {
            text += &format!("| {cell:width$} ");
        }
        text += "|\n";
        if number == 0 {
            let rules = widths.map(|width| format!("|{}", "-".repeat(width + 2)));
            text += &rules.concat();
            text += "|\n";
        }
    }
    for (number, note) in (1..).zip(NOTES) {
        text += &format!("\n{number}. {note}");
    }
    text
}

/// The message of a panic.
pub(super) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    text.unwrap_or_else(|| "it panicked".to_owned())
}
