//! A farm key that was stolen, and clocks that are wrong, where sessions lie in tables and in a real Redis.

use std::process::Command;

use sessile::client::{Client, Mechanism};

use super::setup::{Farm, Redis, Server, client, hop, verdict};
use crate::peers::eventually;

const MECHANISMS: [Mechanism; 3] = [Mechanism::SessionId, Mechanism::Ticket, Mechanism::Psk];

/// Ends every generation of the key that the servers of this farm have, and has them read the new one.
fn replace_the_key(farm: &Farm, servers: &[&Server]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.args(["key", "rotate", "--compromised", "--file"]);
    command.arg(farm.folder().join("farm.key"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for server in servers {
        server.peer.hang_up();
        eventually("it has the new key", || {
            let said = server.peer.said();
            // It may have found out by itself.
            said.contains("farm key reloaded generations")
                || said.contains("changed since it was read; taken over")
        });
    }
}

/// A client of every kind that was at one server and resumed at another.
async fn visitors(from: &Server, at: &Server) -> Vec<Client> {
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
async fn after_a_theft_no_old_session_resumes_from_a_table_or_the_store() {
    // With tickets sealed, and with tickets that name what is stored.
    for settings in ["", "require-close-notify = true\n"] {
        let redis = Redis::start();
        let farm = Farm::sharing(&redis.url(), settings);
        let [one, other, third] = farm.serve_three();
        let mut groups = Vec::new();
        for _ in 0..4 {
            groups.push(visitors(&one, &other).await);
        }
        replace_the_key(&farm, &[&one, &other, &third]);
        // Where it was made, where it resumed, and where only the store knows it.
        for (clients, server) in groups.iter().zip([&one, &other, &third]) {
            for client in clients {
                let verdict = verdict(client, server.address()).await;
                assert_eq!(verdict, "full/revoked", "{settings}");
            }
            // What they have made since is as good as any.
            for client in clients {
                let verdict = verdict(client, one.address()).await;
                assert!(verdict.starts_with("resumed/"), "{verdict}");
            }
        }
        // A table that was drained after it and is there again.
        one.drain();
        let one = farm.serve("web1");
        for client in &groups[3] {
            let verdict = verdict(client, one.address()).await;
            assert_eq!(verdict, "full/revoked", "{settings}");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn after_a_theft_no_snapshot_brings_an_old_session_back() {
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
async fn a_server_whose_clock_is_hours_off_the_stores_says_so_and_seals_nothing() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let right = farm.serve("web1");
    let wrong = farm.serve_at("web2", Some("+5h"));
    eventually("it sees it", || {
        let said = wrong.peer.said();
        said.contains("this machine's clock is 4h 59m")
            || said.contains("this machine's clock is 5h")
    });
    let astray = |name: &str| format!("sessile_clock_astray{{server=\"{name}\"}}");
    assert_eq!(wrong.metric(&astray("web2")).await, 1);
    assert_eq!(right.metric(&astray("web1")).await, 0);
    // No ticket to come back with; sessions in its own table go by its own clock alone.
    let ticket = hop(Mechanism::Psk, &wrong, &wrong).await;
    assert_eq!(ticket, "full/nothing-offered");
    let id = hop(Mechanism::SessionId, &wrong, &wrong).await;
    assert_eq!(id, "resumed/session-id");
    let ticket = hop(Mechanism::Psk, &right, &right).await;
    assert_eq!(ticket, "resumed/psk");
}
