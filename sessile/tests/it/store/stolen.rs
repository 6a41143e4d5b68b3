//! A stolen farm key and wrong clocks, with sessions in session tables and in a real Redis.

use std::process::Command;

use sessile::client::{Client, Mechanism};

use super::setup::{Farm, Redis, Server, client, hop, verdict};
use crate::peers::eventually;

const MECHANISMS: [Mechanism; 3] = [Mechanism::SessionId, Mechanism::Ticket, Mechanism::Psk];

/// Replaces all generations of the farm key with a new one, and reloads the servers.
fn replace_the_key(farm: &Farm, servers: &[&Server]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.args(["key", "rotate", "--compromised", "--file"]);
    command.arg(farm.folder().join("farm.key"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for server in servers {
        server.peer.hang_up();
        eventually("the server loads the new key", || {
            let said = server.peer.said();
            // The server may notice the changed file before it handles the signal.
            said.contains("farm key reloaded generations")
                || said.contains("was changed on disk; the new content is in use")
        });
    }
}

/// One client for each mechanism, with a session from server `from` that resumed at server `at`.
async fn resumed_clients(from: &Server, at: &Server) -> Vec<Client> {
    let clients: Vec<_> = MECHANISMS.map(client).into();
    for client in &clients {
        let first = verdict(client, from.address()).await;
        assert_eq!(first, "full/nothing-offered");
        let second = verdict(client, at.address()).await;
        assert!(second.starts_with("resumed/"), "{second}");
    }
    clients
}

#[tokio::test(flavor = "current_thread")]
async fn no_session_in_a_table_or_the_store_resumes_after_a_key_theft() {
    // With the first setting, tickets contain sealed sessions. With the second setting, tickets
    // name a stored session.
    for settings in ["", "require-close-notify = true\n"] {
        let redis = Redis::start();
        let farm = Farm::sharing(&redis.url(), settings);
        let [one, other, third] = farm.serve_three();
        let mut groups = Vec::new();
        for _ in 0..4 {
            groups.push(resumed_clients(&one, &other).await);
        }
        replace_the_key(&farm, &[&one, &other, &third]);
        // Test the server that made the sessions, the server that resumed them, and a server
        // without a copy.
        for (clients, server) in groups.iter().zip([&one, &other, &third]) {
            for client in clients {
                let verdict = verdict(client, server.address()).await;
                assert_eq!(verdict, "full/revoked", "{settings}");
            }
            // Sessions made after the rotation resume.
            for client in clients {
                let verdict = verdict(client, one.address()).await;
                assert!(verdict.starts_with("resumed/"), "{verdict}");
            }
        }
        // A snapshot made after the rotation restores no old session.
        one.drain();
        let one = farm.serve("web1");
        for client in &groups[3] {
            let verdict = verdict(client, one.address()).await;
            assert_eq!(verdict, "full/revoked", "{settings}");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn no_session_in_a_snapshot_resumes_after_a_key_theft() {
    let farm = Farm::new("");
    let server = farm.serve("web1");
    let [before, after] = [(); 2].map(|()| client(Mechanism::SessionId));
    verdict(&before, server.address()).await;
    replace_the_key(&farm, &[&server]);
    verdict(&after, server.address()).await;
    server.drain();
    let server = farm.serve("web1");
    let resumed = verdict(&after, server.address()).await;
    assert_eq!(resumed, "resumed/session-id");
    let refused = verdict(&before, server.address()).await;
    assert_eq!(refused, "full/unknown");
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_whose_clock_differs_from_the_stores_by_hours_reports_it_and_issues_no_tickets() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let right = farm.serve("web1");
    let wrong = farm.serve_at("web2", Some("+5h"));
    eventually("the server reports its wrong clock", || {
        let said = wrong.peer.said();
        said.contains("this machine's clock is 4h 59m")
            || said.contains("this machine's clock is 5h")
    });
    let astray = |name: &str| format!("sessile_clock_astray{{server=\"{name}\"}}");
    assert_eq!(wrong.metric(&astray("web2")).await, 1);
    assert_eq!(right.metric(&astray("web1")).await, 0);
    // The server with the wrong clock issues no tickets. Its session table still works, because
    // only its own clock matters there.
    let ticket = hop(Mechanism::Psk, &wrong, &wrong).await;
    assert_eq!(ticket, "full/nothing-offered");
    let id = hop(Mechanism::SessionId, &wrong, &wrong).await;
    assert_eq!(id, "resumed/session-id");
    let ticket = hop(Mechanism::Psk, &right, &right).await;
    assert_eq!(ticket, "resumed/psk");
}
