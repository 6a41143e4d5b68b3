//! Early data (0-RTT) is accepted at most once in the farm. If a server rejects early data, the
//! connection continues.

mod refusals;
mod replays;
mod upstream;
mod visitor;

use super::setup::{Farm, Redis, Server};
use crate::peers::eventually;
use visitor::{Visit, Visitor};

/// The setting that turns early data on.
pub(super) const ON: &str = "early-data = \"16KiB\"\n";

fn farm(redis: &Redis) -> Farm {
    Farm::sharing(&redis.url(), ON)
}

/// The number of times that early data had this outcome at these servers.
fn outcomes(servers: &[&Server], outcome: &str) -> u64 {
    let of = |server: &&Server| {
        let labels = [("outcome", outcome)];
        server.metrics().sum("sessile_early_data_total", &labels)
    };
    servers.iter().map(of).sum()
}

fn accepted(servers: &[&Server]) -> u64 {
    outcomes(servers, "accepted")
}

/// Handshakes that clients did not finish. A replay never finishes its handshake.
fn unfinished(server: &Server) -> u64 {
    let labels = [("cause", "closed")];
    let metrics = server.metrics();
    metrics.sum("sessile_handshake_failures_total", &labels)
}

/// Replays a first flight, and waits until the server counts the unfinished handshake.
fn replay_and_wait(server: &Server, flight: &[u8]) {
    let before = unfinished(server);
    visitor::send_flight(server.address(), flight);
    eventually("the server gives up the connection", || {
        unfinished(server) > before
    });
}

/// Checks a server that lacks the store permissions for early data. The server accepts no early
/// data, logs the reason, and finishes every handshake.
pub(super) fn assert_never_accepted(farm: &Farm, server: &Server) {
    let visitor = Visitor::new(farm);
    eventually("the server reports the missing permissions", || {
        visitor.visit(server.address());
        if visitor.allows_early_data() {
            let outcome = visitor.visit_early(server.address()).outcome();
            assert_eq!(outcome, "full/store-down rejected/store");
        }
        server.peer.said().contains("no permissions")
    });
    assert_eq!(accepted(&[server]), 0);
}

/// Checks that another server accepts the early data of a new client, and that no server accepts a
/// replay.
pub(super) fn assert_accepted_once(farm: &Farm, servers: &[Server; 3]) {
    let all = servers.each_ref();
    let before = accepted(&all);
    let visitor = Visitor::new(farm);
    visitor.visit(servers[0].address());
    let flight = visitor.early(visitor::GET);
    let recorded = flight.bytes.clone();
    let mut visit = Visit::to(servers[1].address(), flight);
    visit.read_until(b"of this connection\n");
    assert_eq!(visit.answer().outcome(), "resumed/psk accepted");
    for server in servers {
        replay_and_wait(server, &recorded);
    }
    assert_eq!(accepted(&all), before + 1);
}
