//! Snapshots: a drained server saves its sessions, and its next start restores them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use sessile::client::{Client, Mechanism};

use super::setup::{Farm, client, verdict};
use crate::peers::{Peer, eventually};

const MECHANISMS: [Mechanism; 3] = [Mechanism::SessionId, Mechanism::Ticket, Mechanism::Psk];

/// One client for each mechanism, each with a session from the server.
async fn clients(address: SocketAddr) -> Vec<Client> {
    let clients: Vec<_> = MECHANISMS.map(client).into();
    for client in &clients {
        assert_eq!(verdict(client, address).await, "full/nothing-offered");
    }
    clients
}

async fn verdicts(clients: &[Client], address: SocketAddr) -> Vec<String> {
    let mut verdicts = Vec::new();
    for client in clients {
        verdicts.push(verdict(client, address).await);
    }
    verdicts
}

const RESUMED: [&str; 3] = ["resumed/session-id", "resumed/ticket", "resumed/psk"];

fn snapshots(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).into_iter().flatten();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.contains("sessions-")).collect();
    names.sort();
    names
}

/// Waits until the server has read its snapshot and removed the file.
fn await_snapshot_read(farm: &Farm) {
    let is_gone = || snapshots(&farm.folder().join("state")).is_empty();
    eventually("the server removes the snapshot", is_gone);
}

#[tokio::test(flavor = "current_thread")]
async fn every_client_of_a_server_survives_its_restart() {
    // With the first setting, tickets contain sealed sessions. With the second setting, tickets
    // name an entry of the session table.
    for settings in ["", "require-close-notify = true\n"] {
        let farm = Farm::new(settings);
        let server = farm.serve("web1");
        let clients = clients(server.address()).await;
        server.drain();
        assert_eq!(
            snapshots(&farm.folder().join("state")),
            ["sessions-web1.snapshot"]
        );
        let server = farm.serve("web1");
        await_snapshot_read(&farm);
        for _ in 0..2 {
            assert_eq!(verdicts(&clients, server.address()).await, RESUMED);
        }
        server.drain();
        let server = farm.serve("web1");
        assert_eq!(verdicts(&clients, server.address()).await, RESUMED);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn sessions_are_reported_lost_after_a_crash_or_without_snapshots() {
    for (settings, crash) in [("", true), ("snapshot = false\n", false)] {
        let farm = Farm::new(&format!("require-close-notify = true\n{settings}"));
        let server = farm.serve("web1");
        let clients = clients(server.address()).await;
        match crash {
            true => server.peer.kill(),
            false => server.drain(),
        }
        assert!(snapshots(&farm.folder().join("state")).is_empty());
        let server = farm.serve("web1");
        let lost = ["full/unknown", "full/lost", "full/lost"];
        assert_eq!(verdicts(&clients, server.address()).await, lost);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_crash_after_a_restart_does_not_restore_the_same_snapshot_twice() {
    let farm = Farm::new("require-close-notify = true\n");
    let server = farm.serve("web1");
    let clients = clients(server.address()).await;
    server.drain();
    let reader = farm.serve("web1");
    await_snapshot_read(&farm);
    reader.peer.kill();
    let server = farm.serve("web1");
    let lost = ["full/unknown", "full/lost", "full/lost"];
    assert_eq!(verdicts(&clients, server.address()).await, lost);
}

#[tokio::test(flavor = "current_thread")]
async fn servers_that_share_a_state_folder_have_separate_snapshots() {
    let farm = Farm::new("");
    let servers = ["web1", "web2"].map(|name| farm.serve(name));
    let one = clients(servers[0].address()).await;
    let other = clients(servers[1].address()).await;
    servers.into_iter().for_each(|server| server.drain());
    let kept = ["sessions-web1.snapshot", "sessions-web2.snapshot"];
    assert_eq!(snapshots(&farm.folder().join("state")), kept);
    let servers = ["web1", "web2"].map(|name| farm.serve(name));
    assert_eq!(verdicts(&one, servers[0].address()).await, RESUMED);
    assert_eq!(verdicts(&other, servers[1].address()).await, RESUMED);
}

#[tokio::test(flavor = "current_thread")]
async fn a_damaged_snapshot_is_reported_and_the_server_starts() {
    let farm = Farm::new("");
    let server = farm.serve("web1");
    let client = client(Mechanism::SessionId);
    verdict(&client, server.address()).await;
    server.drain();
    let file = farm.folder().join("state/sessions-web1.snapshot");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let server = farm.serve("web1");
    assert_eq!(verdict(&client, server.address()).await, "full/unknown");
    let said = server.peer.said();
    assert!(said.contains("the file was cut or changed"), "{said}");
    assert!(!file.exists());
}

#[tokio::test(flavor = "current_thread")]
async fn a_farm_that_is_stopped_and_started_resumes_its_clients() {
    let folder = tempfile::tempdir().unwrap();
    let farm = || {
        Peer::start("sessile", |port| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
            command.args(["farm", "--quiet", "--admin", "127.0.0.1:0"]);
            command.args(["--listen", &format!("127.0.0.1:{port}")]);
            command.arg("--data-dir").arg(folder.path());
            command
        })
    };
    let running = farm();
    let clients = clients(running.address()).await;
    running.signal(Signal::INT);
    assert!(running.wait().success());
    assert_eq!(snapshots(folder.path()).len(), 3);
    let running = farm();
    assert_eq!(verdicts(&clients, running.address()).await, RESUMED);
}
