//! Checks that each client library resumes: ten returns by each mechanism, through the usual API.
//!
//! `list` has the clients, and `table` judges their connections. The table in docs/reference/clients.md must
//! have the same cells as this test's table.

mod farm;
mod list;
mod others;
mod programs;
mod proxies;
mod table;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use crate::peers::Answer;
use list::{CLIENTS, Client};
use table::{Cell, Row};

/// The number of clients that run at the same time.
const PARALLEL: usize = 2;

/// A way to resume, which is a column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mechanism {
    SessionId,
    Ticket,
    Psk,
}

impl Mechanism {
    const ALL: [Self; 3] = [Self::SessionId, Self::Ticket, Self::Psk];

    /// The name of the mechanism in verdicts, which is also the argument of the programs.
    const fn as_str(self) -> &'static str {
        match self {
            Self::SessionId => "session-id",
            Self::Ticket => "ticket",
            Self::Psk => "psk",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::SessionId => "TLS 1.2 session ID",
            Self::Ticket => "TLS 1.2 ticket",
            Self::Psk => "TLS 1.3 PSK",
        }
    }
}

/// One connection, as both ends saw it.
#[derive(Debug)]
struct Connection {
    /// True if the library reports a resumed session. `None` if the library does not report.
    resumed: Option<bool>,
    /// The server's verdict.
    answer: Answer,
}

impl Connection {
    /// A connection of a client that does not report its sessions.
    const fn by_server(answer: Answer) -> Self {
        Self {
            resumed: None,
            answer,
        }
    }
}

/// The connections of one client, in order.
struct Visit {
    version: String,
    connections: Vec<Connection>,
}

#[test]
fn every_client_library_resumes() {
    let queue = Mutex::new(CLIENTS.iter().enumerate());
    let rows = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some((place, client)) = next else { break };
                    let row = visit_by_each_mechanism(client);
                    rows.lock().unwrap().push((place, row));
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap();
    rows.sort_by_key(|(place, _)| *place);
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    println!("\n{}", table::markdown(&rows));

    let failures: Vec<_> = rows.iter().flat_map(Row::failures).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_documented(&rows);
}

fn visit_by_each_mechanism(client: &Client) -> Row {
    let mut version = String::new();
    let cells = Mechanism::ALL.map(|mechanism| {
        // A client that panics must not hide the results of the others.
        let visit = catch_unwind(AssertUnwindSafe(|| client.visit(mechanism)));
        let cell = match visit {
            Ok(visit) => {
                version.clone_from(&visit.version);
                Cell::judge(client, mechanism, &visit.connections)
            }
            Err(panic) => Cell::Failed {
                shown: "failed".to_owned(),
                why: table::message(panic.as_ref()),
            },
        };
        eprintln!("zoo: {}, {}: {cell}", client.name, mechanism.title());
        cell
    });
    Row {
        name: client.name,
        version,
        cells,
    }
}

/// Asserts that the page has these rows. The versions may differ, because they depend on the machine.
fn assert_documented(rows: &[Row]) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/clients.md");
    let page = fs::read_to_string(page).unwrap();
    for row in rows {
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("| {} ", row.name)));
        let line = line.unwrap_or_else(|| panic!("docs/reference/clients.md: no row {}", row.name));
        let cells: Vec<_> = line.split('|').skip(3).map(str::trim).collect();
        let expected: Vec<_> = row.cells.iter().map(Cell::to_string).collect();
        assert_eq!(
            cells[..expected.len()],
            expected,
            "docs/reference/clients.md: {}",
            row.name
        );
    }
}
