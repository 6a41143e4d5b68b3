//! The TLS client against real servers: its offers, its cache, and the ends of connections.

use std::time::Duration;

use rustls::HandshakeKind;
use sessile::client::{
    Client, Close, Error, EstablishedConnection, GivenTicket, Mechanism, Sessions, Target, Trust,
};
use sessile_proto::verdict::How;
use sessile_proto::watch::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peers::{Certificates, NAME, Peer, free_port, nginx, openssl};

const PATIENCE: Duration = Duration::from_secs(5);

fn client(certificates: &Certificates, mechanism: Mechanism) -> Client {
    let trust = Trust::ca_file(&certificates.ca).expect("the CA");
    Client::new(mechanism, &trust, PATIENCE).expect("a client")
}

fn target(peer: &Peer) -> Target {
    Target::new(peer.address(), NAME).expect("a name")
}

async fn connected(client: &Client, peer: &Peer) -> EstablishedConnection {
    let connection = client.connect(&target(peer)).await;
    connection.expect("a connection")
}

/// Connects, waits for TLS 1.3 tickets, and closes.
async fn visit(client: &Client, peer: &Peer) -> Kind {
    let mut connection = connected(client, peer).await;
    if connection.outcome.version == sessile_proto::hello::TLS_1_3 {
        assert!(connection.await_ticket(PATIENCE).await > 0);
    }
    let kind = connection.outcome.kind;
    let rustls_says = connection.stream.tls().handshake_kind();
    assert_eq!(
        matches!(kind, Kind::Resumed(_)),
        rustls_says == Some(HandshakeKind::Resumed),
        "the wire and the library disagree"
    );
    connection.close(PATIENCE).await;
    kind
}

#[tokio::test]
async fn each_mechanism_resumes_if_the_server_supports_it() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache shared:s:1m;");
    for (mechanism, how) in [
        (Mechanism::SessionId, How::SessionId),
        (Mechanism::Ticket, How::Ticket),
        (Mechanism::Psk, How::Psk),
        (Mechanism::Any, How::Psk),
    ] {
        let client = client(&certificates, mechanism);
        assert_eq!(visit(&client, &server).await, Kind::NotOffered);
        for _ in 0..3 {
            assert_eq!(visit(&client, &server).await, Kind::Resumed(how));
        }
    }
}

#[tokio::test]
async fn offers_the_assigned_session_id_next() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache shared:s:1m;");
    let client = client(&certificates, Mechanism::SessionId);
    let mut first = connected(&client, &server).await;
    assert_eq!(first.offered, None);
    let assigned = first.assigned_session_id().unwrap().to_vec();
    first.close(PATIENCE).await;

    let second = connected(&client, &server).await;
    let offered = second.offered.as_ref().unwrap();
    assert_eq!((offered.how, &offered.bytes), (How::SessionId, &assigned));
    assert_eq!(second.assigned_session_id(), None);
}

#[tokio::test]
async fn a_tls12_session_refused_with_tls13_counts_as_refused() {
    let certificates = Certificates::new();
    let directives = "ssl_protocols TLSv1.2; ssl_session_tickets off; ssl_session_cache none;";
    let server = nginx(&certificates, directives);
    let client = client(&certificates, Mechanism::Any);
    assert_eq!(visit(&client, &server).await, Kind::NotOffered);
    assert_eq!(visit(&client, &server).await, Kind::Refused);
}

#[tokio::test]
async fn a_ticket_client_keeps_no_session_that_has_no_ticket() {
    let certificates = Certificates::new();
    let directives = "ssl_session_tickets off; ssl_session_cache shared:s:1m;";
    let server = nginx(&certificates, directives);
    let client = client(&certificates, Mechanism::Ticket);
    for _ in 0..2 {
        assert_eq!(visit(&client, &server).await, Kind::NotOffered);
    }
}

#[tokio::test]
async fn a_hello_retry_request_happens_once_and_the_offer_is_still_seen() {
    let certificates = Certificates::new();
    let server = openssl(&certificates, &["-rev", "-groups", "P-384"]);
    let client = client(&certificates, Mechanism::Psk);
    let mut retries = Vec::new();
    for _ in 0..2 {
        let mut connection = connected(&client, &server).await;
        assert!(connection.await_ticket(PATIENCE).await > 0);
        let outcome = &connection.outcome;
        retries.push((outcome.hello_retry, outcome.kind));
        connection.close(PATIENCE).await;
    }
    let resumed = Kind::Resumed(How::Psk);
    assert_eq!(retries, [(true, Kind::NotOffered), (false, resumed)]);
}

#[tokio::test]
async fn expired_sessions_are_not_offered() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache shared:s:1m;");
    for mechanism in [Mechanism::SessionId, Mechanism::Ticket, Mechanism::Psk] {
        let mut client = Client::new(mechanism, &Trust::Insecure, PATIENCE).unwrap();
        client.sessions = Sessions::new(10, Duration::ZERO);
        for _ in 0..2 {
            assert_eq!(visit(&client, &server).await, Kind::NotOffered);
        }
    }
}

#[tokio::test]
async fn with_empty_sessions_starts_without_sessions() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache shared:s:1m;");
    let first = client(&certificates, Mechanism::SessionId);
    visit(&first, &server).await;
    assert_eq!(
        visit(&first.with_empty_sessions(), &server).await,
        Kind::NotOffered
    );
    assert_eq!(
        visit(&first, &server).await,
        Kind::Resumed(How::SessionId),
        "the first client lost its session"
    );
}

#[tokio::test]
async fn data_passes_in_both_directions() {
    let certificates = Certificates::new();
    let server = openssl(&certificates, &["-rev"]);
    let client = client(&certificates, Mechanism::Any);
    let mut connection = connected(&client, &server).await;
    let line = "0123456789".repeat(1000);
    let stream = &mut connection.stream;
    stream.write_all(line.as_bytes()).await.unwrap();
    stream.write_all(b"\n").await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = vec![0; line.len() + 1];
    stream.read_exact(&mut answer).await.unwrap();
    let reversed: String = line.chars().rev().collect();
    assert_eq!(answer, format!("{reversed}\n").into_bytes());
    assert!(connection.certificate_fingerprint().is_some());
}

#[tokio::test]
async fn a_clean_close_is_distinct_from_a_killed_server() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "keepalive_timeout 50ms;");
    let client = client(&certificates, Mechanism::Any);

    let mut kept_alive = connected(&client, &server).await;
    let request = b"HEAD / HTTP/1.1\r\nHost: farm.test\r\n\r\n";
    kept_alive.stream.write_all(request).await.unwrap();
    assert_eq!(kept_alive.closed().await, Close::Notify);

    let server = nginx(&certificates, "");
    let mut orphan = connected(&client, &server).await;
    let killed = std::thread::spawn(|| server.kill());
    let close = orphan.closed().await;
    killed.join().unwrap();
    assert!(matches!(close, Close::Eof | Close::Reset), "{close}");
}

#[tokio::test]
async fn each_failure_has_its_own_error() {
    let certificates = Certificates::new();
    let tls12 = openssl(&certificates, &["-www", "-tls1_2"]);
    let refused = client(&certificates, Mechanism::Psk)
        .connect(&target(&tls12))
        .await;
    assert!(
        matches!(refused, Err(Error::Alert(_))),
        "{:?}",
        refused.err()
    );
    assert!(refused.is_err_and(|error| error.refuses_version()));

    let stranger = Certificates::new();
    let untrusted = client(&stranger, Mechanism::SessionId)
        .connect(&target(&tls12))
        .await;
    assert!(matches!(untrusted, Err(Error::Certificate(_))));

    let other_name = Target::new(tls12.address(), "other.test").unwrap();
    let wrong_name = client(&certificates, Mechanism::SessionId)
        .connect(&other_name)
        .await;
    assert!(matches!(wrong_name, Err(Error::Certificate(_))));

    let nobody = Target::new(([127, 0, 0, 1], free_port()).into(), NAME).unwrap();
    let unreached = client(&certificates, Mechanism::Any).connect(&nobody).await;
    assert!(matches!(unreached, Err(Error::Connect(_))));
    assert!(Target::new(tls12.address(), "not a name").is_err());
}

#[tokio::test]
async fn distinguishes_servers_without_tls_from_silent_servers() {
    let certificates = Certificates::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::new(listener.local_addr().unwrap(), NAME).unwrap();
    let answers: [&[u8]; 3] = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"silence"];
    let server = async {
        for answer in answers {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut hello = [0; 4096];
            assert!(tcp.read(&mut hello).await.unwrap() > 0);
            if answer == b"silence" {
                // The server stays silent until the client closes the connection.
                while tcp.read(&mut hello).await.is_ok_and(|len| len > 0) {}
            } else {
                tcp.write_all(answer).await.unwrap();
            }
        }
    };
    let trust = Trust::ca_file(&certificates.ca).unwrap();
    let client = Client::new(Mechanism::Any, &trust, Duration::from_millis(200)).unwrap();
    let attempts = async {
        let plain = client.connect(&target).await;
        assert!(matches!(plain, Err(Error::NotTls)), "{:?}", plain.err());
        let closed = client.connect(&target).await;
        let error = closed.err();
        assert!(
            matches!(error, Some(Error::ClosedEarly(Close::Eof))),
            "{error:?}"
        );
        let silent = client.connect(&target).await;
        assert!(matches!(silent, Err(Error::TimedOut { .. })));
    };
    tokio::join!(server, attempts);
}

#[tokio::test]
async fn tickets_show_their_lifetime_and_their_early_data() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_timeout 20m;");
    for (mechanism, number) in [
        (Mechanism::SessionId, 0),
        (Mechanism::Ticket, 1),
        (Mechanism::Psk, 2),
    ] {
        let client = client(&certificates, mechanism);
        let mut connection = connected(&client, &server).await;
        if mechanism == Mechanism::Psk {
            connection.await_ticket(PATIENCE).await;
        }
        // Both tickets of TLS 1.3 have arrived before the server's close.
        connection.close(PATIENCE).await;
        let tickets = connection.tickets();
        assert_eq!(tickets.len(), number, "{mechanism:?}");
        for ticket in tickets {
            assert_eq!((ticket.lifetime, ticket.max_early_data), (1200, None));
        }
        let returned = connected(&client, &server).await;
        let offered = returned.offered.clone().expect("a session");
        let is_offered = |ticket: &GivenTicket| ticket.bytes == offered.bytes;
        assert_eq!(connection.tickets().iter().any(is_offered), number > 0);
    }

    let early = nginx(&certificates, "ssl_early_data on;");
    let client = client(&certificates, Mechanism::Psk);
    let mut connection = connected(&client, &early).await;
    connection.await_ticket(PATIENCE).await;
    assert_eq!(connection.tickets()[0].max_early_data, Some(16384));
}
