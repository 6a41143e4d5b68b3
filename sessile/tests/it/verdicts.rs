//! Every reason for a full handshake, caused by actions of a client or an operator.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use sessile::client::{Client, EstablishedConnection, Mechanism, Target};
use sessile::config::{self, Action, Config, Listener, Role, Site, SiteRoute};
use sessile::farm::Authority;
use sessile::serve::{AccessLog, Environment, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::store::setup::client;

/// A server with one site in this process. Stopped when dropped.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn start(folder: &Path, change: impl FnOnce(&mut Config)) -> Running {
    let authority = Authority::open(folder).unwrap();
    let mut config = Config {
        key: config::Key::File(folder.join("farm.key")),
        listeners: vec![Listener::new(
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            Role::Serve,
        )],
        sites: vec![Site {
            names: Vec::new(),
            certificates: vec![authority.certificate],
            client_auth: None,
            early_data: 0,
            routes: vec![SiteRoute {
                path: "/".to_owned(),
                action: Action::Verdict,
            }],
        }],
        ..Config::default()
    };
    config.server.name = "web1".to_owned();
    config.server.state_dir = folder.join("state");
    config.server.workers = 1;
    change(&mut config);
    let env = Environment {
        stop: CancellationToken::new(),
        registry: prometheus::Registry::new(),
        access_log: AccessLog::default(),
    };
    let server = Server::start(&config, &env).unwrap();
    Running {
        address: server.addresses()[0],
        stop: env.stop,
    }
}

async fn connect(client: &Client, server: &Running) -> EstablishedConnection {
    let target = Target::new(server.address, "localhost").unwrap();
    client.connect(&target).await.unwrap()
}

/// Connects, asks for the verdict, and closes cleanly.
async fn verdict(client: &Client, server: &Running) -> String {
    let mut connection = connect(client, server).await;
    let verdict = ask(&mut connection).await;
    connection.close(Duration::from_secs(5)).await;
    verdict
}

async fn ask(connection: &mut EstablishedConnection) -> String {
    let stream = &mut connection.stream;
    stream
        .write_all(b"HEAD / HTTP/1.1\r\nhost: localhost\r\nsessile-probe: 1\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    // The page and the request header both ask for the verdict, but the response has it once.
    assert_eq!(head.matches("sessile-verdict: ").count(), 1, "{head}");
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix("sessile-verdict: "));
    line.unwrap().to_owned()
}

#[tokio::test(flavor = "current_thread")]
async fn all_mechanisms_resume_on_a_server_with_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path(), |_| ());
    for (mechanism, how) in [
        (Mechanism::SessionId, "session-id"),
        (Mechanism::Ticket, "ticket"),
        (Mechanism::Psk, "psk"),
    ] {
        let client = client(mechanism);
        assert_eq!(verdict(&client, &server).await, "full/nothing-offered");
        for _ in 0..3 {
            assert_eq!(verdict(&client, &server).await, format!("resumed/{how}"));
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn only_tickets_resume_on_another_server_with_the_same_key_file() {
    let folder = tempfile::tempdir().unwrap();
    let one = start(folder.path(), |_| ());
    let other = start(folder.path(), |config| config.server.name = "web2".into());
    for (mechanism, expected) in [
        (Mechanism::Ticket, "resumed/ticket"),
        (Mechanism::Psk, "resumed/psk"),
        (Mechanism::SessionId, "full/unknown"),
    ] {
        let client = client(mechanism);
        verdict(&client, &one).await;
        assert_eq!(verdict(&client, &other).await, expected);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_ticket_of_another_farm_has_an_unknown_key() {
    let folder = tempfile::tempdir().unwrap();
    let ours = start(folder.path(), |_| ());
    let theirs = start(folder.path(), |config| config.key = config::Key::Ephemeral);
    for mechanism in [Mechanism::Ticket, Mechanism::Psk] {
        let client = client(mechanism);
        verdict(&client, &theirs).await;
        assert_eq!(verdict(&client, &ours).await, "full/unknown-key");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn evicts_the_oldest_session_even_if_it_was_used_often() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path(), |config| config.session.max_entries = 2);
    let clients = [(); 3].map(|()| client(Mechanism::SessionId));
    verdict(&clients[0], &server).await;
    verdict(&clients[1], &server).await;
    for _ in 0..5 {
        assert_eq!(verdict(&clients[0], &server).await, "resumed/session-id");
    }
    verdict(&clients[2], &server).await;
    assert_eq!(verdict(&clients[0], &server).await, "full/evicted");
}

#[tokio::test(flavor = "current_thread")]
async fn a_session_expires_one_lifetime_after_its_full_handshake() {
    let folder = tempfile::tempdir().unwrap();
    let lifetime = Duration::from_secs(2);
    let server = start(folder.path(), |config| config.session.lifetime = lifetime);
    for mechanism in [Mechanism::SessionId, Mechanism::Ticket, Mechanism::Psk] {
        let client = client(mechanism);
        let begin = Instant::now();
        verdict(&client, &server).await;
        let ended = loop {
            let verdict = verdict(&client, &server).await;
            if !verdict.starts_with("resumed/") {
                break verdict;
            }
            let age = begin.elapsed();
            assert!(age < lifetime * 10, "{mechanism:?} lives on: {age:?}");
        };
        // Clients know the lifetime of a ticket, so a client may not offer an expired ticket.
        let fair = ["full/expired", "full/nothing-offered"];
        assert!(fair.contains(&ended.as_str()), "{mechanism:?}: {ended}");
        // The server announces the lifetime of a ticket in whole seconds, so a session may end a
        // second earlier.
        let least = lifetime - Duration::from_secs(1);
        assert!(begin.elapsed() >= least, "{mechanism:?}: ended early");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn reclaiming_a_connection_keeps_its_session_unless_configured_to_purge() {
    let folder = tempfile::tempdir().unwrap();
    for (purge, mechanisms) in [
        (
            false,
            ["resumed/session-id", "resumed/ticket", "resumed/psk"],
        ),
        (true, ["full/purged"; 3]),
    ] {
        let server = start(folder.path(), |config| {
            config.connection.idle_timeout = Duration::from_millis(100);
            config.connection.purge_on_reclaim = purge;
        });
        let offers = [Mechanism::SessionId, Mechanism::Ticket, Mechanism::Psk];
        for (mechanism, expected) in offers.into_iter().zip(mechanisms) {
            let client = client(mechanism);
            let mut connection = connect(&client, &server).await;
            ask(&mut connection).await;
            let end = connection.closed().await;
            assert_eq!(end, sessile::client::Close::Notify);
            assert_eq!(verdict(&client, &server).await, expected, "{mechanism:?}");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_session_without_close_notify_does_not_resume_if_close_notify_is_required() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path(), |config| {
        config.session.require_close_notify = true;
    });
    for mechanism in [Mechanism::SessionId, Mechanism::Psk] {
        let client = client(mechanism);
        verdict(&client, &server).await;
        assert!(verdict(&client, &server).await.starts_with("resumed/"));
        // The client cuts the connection. The server may notice this cut only after the next
        // ClientHello.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut cut = connect(&client, &server).await;
            let verdict = ask(&mut cut).await;
            drop(cut);
            if verdict == "full/not-closed-cleanly" {
                break;
            }
            assert!(verdict.starts_with("resumed/"), "{verdict}");
            assert!(Instant::now() < deadline, "{mechanism:?} goes on resuming");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn disabled_mechanisms_have_their_own_verdicts() {
    let folder = tempfile::tempdir().unwrap();
    let on = start(folder.path(), |_| ());
    let off = start(folder.path(), |config| {
        config.session.max_entries = 0;
        config.session.tickets = false;
    });
    for (mechanism, expected) in [
        (Mechanism::SessionId, "full/cache-disabled"),
        (Mechanism::Ticket, "full/tickets-disabled"),
        (Mechanism::Psk, "full/tickets-disabled"),
    ] {
        let client = client(mechanism);
        assert_eq!(verdict(&client, &off).await, "full/nothing-offered");
        assert_eq!(verdict(&client, &off).await, "full/nothing-offered");
        verdict(&client, &on).await;
        assert_eq!(verdict(&client, &off).await, expected, "{mechanism:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_stored_session_from_before_a_restart_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    // With this setting, sessions are in the session table, which is lost with the process.
    let stored = |config: &mut Config| config.session.require_close_notify = true;
    for mechanism in [Mechanism::Ticket, Mechanism::Psk] {
        let client = client(mechanism);
        let before = start(folder.path(), stored);
        verdict(&client, &before).await;
        drop(before);
        let after = start(folder.path(), stored);
        assert_eq!(verdict(&client, &after).await, "full/lost");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_session_of_one_site_does_not_resume_at_another() {
    let folder = tempfile::tempdir().unwrap();
    let one = start(folder.path(), |_| ());
    // Another site of the same farm accepts the same name.
    let other = start(folder.path(), |config| {
        config.sites[0].names = vec!["localhost".to_owned()];
    });
    for mechanism in [Mechanism::Ticket, Mechanism::Psk] {
        let client = client(mechanism);
        verdict(&client, &one).await;
        assert_eq!(verdict(&client, &other).await, "full/name-mismatch");
    }
}
