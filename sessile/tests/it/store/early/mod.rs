//! Early data (0-RTT): accepted at most once, whatever is played back where; and where it is refused, the
//! connection goes on.

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

/// How often early data has had that outcome at these servers.
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

/// Handshakes that their clients did not finish, which a played back one never is.
fn unfinished(server: &Server) -> u64 {
    let labels = [("cause", "closed")];
    let metrics = server.metrics();
    metrics.sum("sessile_handshake_failures_total", &labels)
}

/// Plays a first flight back to a server, and returns when that has made up its mind.
fn play_back(server: &Server, flight: &[u8]) {
    let before = unfinished(server);
    visitor::play_back(server.address(), flight);
    eventually("it gives the connection up", || unfinished(server) > before);
}

/// Clients come back until the server says that it may not do what early data needs. Every visit comes to a
/// verdict.
pub(super) fn assert_never_accepted(farm: &Farm, server: &Server) {
    let visitor = Visitor::new(farm);
    eventually("the server gives its store up", || {
        visitor.visit(server.address());
        if visitor.may_be_early() {
            let outcome = visitor.visit_early(server.address()).outcome();
            assert_eq!(outcome, "full/store-down rejected/store");
        }
        server.peer.said().contains("no permissions")
    });
    assert_eq!(accepted(&[server]), 0);
}

/// A new client's early data is accepted at a server that it has never seen, and nowhere again.
pub(super) fn assert_accepted_once(farm: &Farm, servers: &[Server; 3]) {
    let all = servers.each_ref();
    let before = accepted(&all);
    let visitor = Visitor::new(farm);
    visitor.visit(servers[0].address());
    let flight = visitor.early(visitor::GET);
    let recorded = flight.bytes.clone();
    let mut visit = Visit::to(servers[1].address(), flight);
    visit.hear(b"of this connection\n");
    assert_eq!(visit.answer().outcome(), "resumed/psk accepted");
    for server in servers {
        play_back(server, &recorded);
    }
    assert_eq!(accepted(&all), before + 1);
}
