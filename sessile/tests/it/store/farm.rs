//! Three servers share one Redis, without a balancer. A client resumes at every server.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use sessile::client::Mechanism;

use super::setup::{Farm, Redis, Server, client, hop_until, verdict};
use crate::peers::eventually;

fn addresses(servers: &[Server]) -> Vec<SocketAddr> {
    servers.iter().map(Server::address).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn every_client_resumes_by_session_id_at_every_server() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let servers = farm.serve_three();
    let addresses = addresses(&servers);
    for first in 0..3 {
        for _ in 0..5 {
            let client = client(Mechanism::SessionId);
            let verdicts = (first..first + 7).map(|at| addresses[at % 3]);
            for (n, address) in verdicts.enumerate() {
                let expected = match n {
                    0 => "full/nothing-offered",
                    _ => "resumed/session-id",
                };
                assert_eq!(verdict(&client, address).await, expected);
            }
        }
    }
    let fetched = "sessile_store_requests_total{operation=\"fetch\",result=\"ok\",server=\"web2\"}";
    assert!(servers[1].metric(fetched).await > 0);
    eventually("every worker thread is connected to the store", || {
        servers[1].metrics().sum("sessile_store_up", &[]) == 1
    });
}

#[tokio::test(flavor = "current_thread")]
async fn a_session_outlives_the_server_that_made_it() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let [one, other, third] = farm.serve_three();
    let client = client(Mechanism::SessionId);
    verdict(&client, one.address()).await;
    one.peer.kill();
    assert_eq!(
        verdict(&client, other.address()).await,
        "resumed/session-id"
    );
    other.drain();
    assert_eq!(
        verdict(&client, third.address()).await,
        "resumed/session-id"
    );
    // A server that joins the farm later reads the session from the store.
    let joined = farm.serve("web4");
    assert_eq!(
        verdict(&client, joined.address()).await,
        "resumed/session-id"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn stored_tickets_resume_at_every_server_until_their_session_is_removed() {
    let redis = Redis::start();
    let farm = Farm::sharing(
        &redis.url(),
        "[connection]\npurge-on-reclaim = true\nidle-timeout = \"700ms\"\n",
    );
    let servers = farm.serve_three();
    let addresses = addresses(&servers);
    for (mechanism, how) in [
        (Mechanism::Ticket, "resumed/ticket"),
        (Mechanism::Psk, "resumed/psk"),
        (Mechanism::SessionId, "resumed/session-id"),
    ] {
        let client = client(mechanism);
        verdict(&client, addresses[0]).await;
        for n in 1..5 {
            assert_eq!(verdict(&client, addresses[n % 3]).await, how);
        }
        // The client stays idle until a server reclaims the connection. Then the client returns to another
        // server.
        let target = sessile::client::Target::new(addresses[1], "localhost").unwrap();
        let mut idle = client.connect(&target).await.unwrap();
        idle.closed().await;
        // The server writes the tombstone before it closes the connection.
        assert_eq!(verdict(&client, addresses[2]).await, "full/purged");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_session_missing_from_the_store_is_unknown_even_after_its_server_was_killed() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "require-close-notify = true\n");
    let server = farm.serve("web1");
    let clients = [Mechanism::Ticket, Mechanism::Psk].map(client);
    for client in &clients {
        verdict(client, server.address()).await;
    }
    server.peer.kill();
    // Redis also removes entries if it reaches its memory limit.
    redis::cmd("FLUSHALL").exec(&mut redis.connect()).unwrap();
    let server = farm.serve("web1");
    for client in &clients {
        assert_eq!(verdict(client, server.address()).await, "full/unknown");
    }
}

#[test]
fn openssl_resumes_at_every_server() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let servers = farm.serve_three();
    let session = farm.folder().join("session.pem");
    for (n, address) in addresses(&servers).iter().cycle().take(7).enumerate() {
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-tls1_2",
            "-no_ticket",
            "-servername",
            "localhost",
        ]);
        command.arg("-connect").arg(address.to_string());
        command.arg("-CAfile").arg(farm.root());
        command.arg("-sess_out").arg(&session);
        if n > 0 {
            command.arg("-sess_in").arg(&session);
        }
        let output = command.stdin(Stdio::null()).output();
        let output = output.expect("openssl is missing: install the package openssl");
        let said = String::from_utf8_lossy(&output.stdout);
        let begins = if n == 0 { "\nNew, " } else { "\nReused, " };
        assert!(said.contains(begins), "{n}: {said}");
        assert!(said.contains("Verify return code: 0"), "{said}");
    }
}

#[test]
fn python_resumes_at_every_server() {
    const CLIENT: &str = "
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.maximum_version = ssl.TLSVersion.TLSv1_2
context.options |= ssl.OP_NO_TICKET
session = None
for port in sys.argv[2:]:
    with socket.create_connection(('127.0.0.1', int(port))) as plain:
        with context.wrap_socket(plain, server_hostname='localhost', session=session) as tls:
            print(int(tls.session_reused), end='')
            session = tls.session
";
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let servers = farm.serve_three();
    let ports = addresses(&servers);
    let ports = ports.iter().cycle().take(8);
    let output = Command::new("python3")
        .args(["-c", CLIENT])
        .arg(farm.root())
        .args(ports.map(|address| address.port().to_string()))
        .output()
        .expect("python3 is missing: install the package python3");
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "01111111", "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn servers_connect_to_a_store_that_starts_after_them() {
    let port = Redis::start().stop();
    let farm = Farm::sharing(&format!("redis://127.0.0.1:{port}"), "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("full/store-down", &[], &one, &other).await;
    let _redis = Redis::start_again(port);
    hop_until(
        "resumed/session-id",
        &["full/store-down", "full/unknown"],
        &one,
        &other,
    )
    .await;
}
