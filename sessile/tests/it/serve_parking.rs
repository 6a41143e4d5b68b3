//! Parked connections: HTTP/1.1 connections whose buffers are freed while no request is open. A client sees no
//! difference, and no byte of a body is read as a request.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sessile::client::{Client, Close, EstablishedConnection, Mechanism, Target, Trust};
use sessile_proto::verdict::How;
use sessile_proto::watch::Kind;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::limits::reserve_files;
use crate::peers::{Certificates, Metrics, NAME, Peer, Sessile, curl, run};
use crate::serve_proxy::upstream;

const PATIENCE: Duration = Duration::from_secs(30);

const GET: &str = "GET /here HTTP/1.1\r\nHost: farm.test\r\n\r\n";

/// The request of an attacker, in the body of another request.
const SMUGGLED: &str = "GET /admin HTTP/1.1\r\nHost: farm.test\r\n\r\n";

/// A server with one worker. It forwards requests to an upstream, except below `/here` and `/admin`.
struct Setup {
    server: Sessile,
    client: Client,
    certificates: Certificates,
    _upstream: Peer,
    _folder: TempDir,
}

impl Setup {
    fn start() -> Self {
        Self::with("")
    }

    /// `keys`: more sections of the configuration.
    fn with(keys: &str) -> Self {
        let (certificates, folder) = (Certificates::new(), tempfile::tempdir().unwrap());
        let upstream = upstream();
        let text = format!(
            "server.workers = 1\nlog.access = \"off\"\n{keys}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
             [[upstream]]\nname = \"app\"\nservers = [\"http://{}\"]\n\
             [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n\
             [[site.route]]\npath = \"/\"\nproxy = \"app\"\n\
             [[site.route]]\npath = \"/here\"\nrespond = \"here\"\n\
             [[site.route]]\npath = \"/admin\"\nrespond = \"admin\"\n",
            upstream.address(),
            certificates.chain,
            certificates.key,
        );
        let server = serve(folder.path(), &text);
        Self {
            client: client(&certificates, Mechanism::Psk),
            server,
            certificates,
            _upstream: upstream,
            _folder: folder,
        }
    }

    async fn connect(&self) -> EstablishedConnection {
        connect(&self.client, &self.server).await
    }

    /// Waits until this many connections are parked.
    fn await_parked(&self, count: u64) -> Metrics {
        self.server
            .await_metrics(|metrics| parked(metrics) == count)
    }

    fn parked(&self) -> u64 {
        parked(&self.server.metrics())
    }

    fn requests(&self) -> u64 {
        self.server.metrics().sum("sessile_requests_total", &[])
    }

    /// Visits the server over a separate connection. The only worker has then handled all that came before.
    async fn visit(&self) {
        let mut other = self.connect().await;
        assert_eq!(ask(&mut other, GET).await, "here");
        other.stream.shutdown().await.unwrap();
        assert_eq!(within(other.closed()).await, Close::Notify);
    }
}

fn serve(folder: &Path, text: &str) -> Sessile {
    let config = folder.join("sessile.toml");
    fs::write(&config, text).unwrap();
    Sessile::serve_configured(&config, folder)
}

/// A server without an upstream. `keys`: more keys of the configuration.
fn serve_text(certificates: &Certificates, folder: &Path, keys: &str) -> Sessile {
    let text = format!(
        "log.access = \"off\"\n{keys}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n\
         [[site.route]]\npath = \"/here\"\nrespond = \"here\"\n",
        certificates.chain, certificates.key,
    );
    serve(folder, &text)
}

fn client(certificates: &Certificates, mechanism: Mechanism) -> Client {
    let trust = Trust::ca_file(&certificates.ca).unwrap();
    Client::new(mechanism, &trust, PATIENCE).unwrap()
}

async fn connect(client: &Client, server: &Sessile) -> EstablishedConnection {
    let target = Target::new(server.address(), NAME).unwrap();
    client.connect(&target).await.unwrap()
}

fn parked(metrics: &Metrics) -> u64 {
    metrics.sum("sessile_connections_parked", &[])
}

async fn within<T>(end: impl Future<Output = T>) -> T {
    timeout(PATIENCE, end).await.expect("in time")
}

async fn send(connection: &mut EstablishedConnection, bytes: &str) {
    connection.stream.write_all(bytes.as_bytes()).await.unwrap();
    connection.stream.flush().await.unwrap();
}

/// Reads the head of a response.
async fn head(connection: &mut EstablishedConnection) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = within(connection.stream.read_u8()).await;
        head.push(byte.expect("a response"));
    }
    String::from_utf8(head).unwrap()
}

/// Reads one response with a length. Returns its body.
async fn body(connection: &mut EstablishedConnection) -> String {
    String::from_utf8(content(connection).await).unwrap()
}

async fn content(connection: &mut EstablishedConnection) -> Vec<u8> {
    let head = head(connection).await.to_lowercase();
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let (_, length) = head.split_once("content-length: ").expect("a length");
    let length = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    within(connection.stream.read_exact(&mut body))
        .await
        .unwrap();
    body
}

async fn ask(connection: &mut EstablishedConnection, request: &str) -> String {
    send(connection, request).await;
    body(connection).await
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: farm.test\r\n{headers}\r\n{body}")
}

/// A POST whose body has this length.
fn sized(path: &str, length: usize, body: &str) -> String {
    post(path, &format!("Content-Length: {length}\r\n"), body)
}

#[tokio::test]
async fn a_connection_without_an_open_request_is_parked() {
    let setup = Setup::start();
    let mut first = setup.connect().await;
    setup.await_parked(1);
    let second = setup.connect().await;
    setup.await_parked(2);
    assert_eq!(ask(&mut first, GET).await, "here");
    setup.await_parked(2);
    drop(second);
    setup.await_parked(1);
    send(&mut first, &GET[..9]).await;
    setup.await_parked(0);
    assert_eq!(ask(&mut first, &GET[9..]).await, "here");
    setup.await_parked(1);
    // HTTP/2 has state for as long as the connection lives.
    let http2 = setup.client.clone().with_alpn(&[b"h2"]);
    let _http2 = connect(&http2, &setup.server).await;
    let handshakes = |metrics: &Metrics| metrics.handshakes() == 3;
    let metrics = setup.server.await_metrics(handshakes);
    assert_eq!(parked(&metrics), 1, "{metrics}");
}

#[tokio::test]
async fn bodies_of_all_kinds_are_the_same_over_many_parks() {
    const CYCLES: usize = 25;
    let setup = Setup::start();
    let chunked = "Transfer-Encoding: chunked\r\n";
    let long = "0123456789".repeat(3000);
    let kinds = [
        (sized("/count", 0, ""), "0"),
        (sized("/count", 5, "\r\n\r\nx"), "5"),
        (sized("/count", long.len(), &long), "30000"),
        (post("/count", chunked, "0\r\n\r\n"), "0"),
        (
            post("/count", chunked, "4\r\n\r\n\r\n\r\n1;x\r\nx\r\n0\r\n\r\n"),
            "5",
        ),
        (
            post("/count", chunked, "2\r\nab\r\n0\r\nA: b\r\nC: d\r\n\r\n"),
            "2",
        ),
        (GET.to_owned(), "here"),
        (GET.replace("/here", "/count"), "0"),
    ];
    let mut connection = setup.connect().await;
    for cycle in 0..CYCLES {
        for (request, answer) in &kinds {
            // The server gets the request in two parts, which end at another place in each cycle.
            let (begin, end) = request.split_at(request.len() * cycle / CYCLES);
            send(&mut connection, begin).await;
            if cycle % 5 == 1 {
                setup.visit().await;
            }
            assert_eq!(ask(&mut connection, end).await, *answer, "{begin}|{end}");
            if cycle % 5 == 2 {
                setup.await_parked(1);
            }
        }
    }
    setup.await_parked(1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let setup = Setup::start();
    let requests = [
        sized("/count", 3, "\r\n\r"),
        GET.to_owned(),
        format!("\r\n{GET}"),
        post(
            "/count",
            "Transfer-Encoding: chunked\r\n",
            "1\r\nx\r\n0\r\n\r\n",
        ),
        GET.to_owned(),
    ];
    let answers = ["3", "here", "here", "1", "here"];
    let all = requests.concat();
    let mut connection = setup.connect().await;
    for at in (0..all.len()).step_by(3) {
        send(&mut connection, &all[..at]).await;
        if at % 4 == 0 {
            // All complete requests are answered, and the connection is parked if they end here.
            setup.visit().await;
        }
        send(&mut connection, &all[at..]).await;
        for answer in answers {
            assert_eq!(body(&mut connection).await, answer, "split at {at}");
        }
    }
    setup.await_parked(1);
}

#[tokio::test]
async fn a_response_that_is_read_late_arrives_whole() {
    // More bytes than the sockets between the server and the client can hold.
    const LENGTH: usize = 24 << 20;
    let setup = Setup::start();
    let mut connection = setup.connect().await;
    for _ in 0..2 {
        let request = GET.replace("/here", &format!("/sized?{LENGTH}"));
        send(&mut connection, &request).await;
        setup.visit().await;
        // The other connection can be open for a moment.
        setup.await_parked(0);
        assert_eq!(content(&mut connection).await.len(), LENGTH);
        setup.await_parked(1);
        assert_eq!(ask(&mut connection, GET).await, "here");
    }
}

#[tokio::test]
async fn the_rest_of_a_body_is_never_answered_as_a_request() {
    let setup = Setup::start();
    for kind in ["sized", "chunked"] {
        let (begin, rest) = if kind == "sized" {
            let length = "begin".len() + SMUGGLED.len();
            (sized("/answer_first", length, "begin"), SMUGGLED.to_owned())
        } else {
            let chunk = format!("{:x}\r\n", SMUGGLED.len());
            let headers = "Transfer-Encoding: chunked\r\n";
            let begin = post("/answer_first", headers, &format!("5\r\nbegin\r\n{chunk}"));
            (begin, format!("{SMUGGLED}\r\n0\r\n\r\n"))
        };
        let mut connection = setup.connect().await;
        let before = setup.requests();
        // The upstream answers, and the server waits for the rest of the body.
        assert_eq!(ask(&mut connection, &begin).await, "answered", "{kind}");
        setup.visit().await;
        assert_eq!(setup.parked(), 0, "{kind}");
        send(&mut connection, &rest).await;
        setup.await_parked(1);
        assert_eq!(ask(&mut connection, GET).await, "here", "{kind}");
        // The third request is the visit.
        assert_eq!(setup.requests(), before + 3, "{kind}");
    }
}

/// Here hyper does not read on, so the connection is not parked either.
#[tokio::test]
async fn the_body_of_a_request_that_needs_none_is_never_answered_as_a_request() {
    let setup = Setup::start();
    let request = sized("/here", SMUGGLED.len(), "");
    let expecting = request.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    for head in [request, expecting] {
        // If the body comes later, the server closes the connection.
        let mut connection = setup.connect().await;
        let before = setup.requests();
        assert_eq!(ask(&mut connection, &head).await, "here");
        // The server may have closed the connection.
        let _ = connection.stream.write_all(SMUGGLED.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = within(connection.stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        assert_eq!(setup.requests(), before + 1);

        // If the body is there, the server skips it.
        let mut connection = setup.connect().await;
        let whole = format!("{head}{SMUGGLED}");
        assert_eq!(ask(&mut connection, &whole).await, "here");
        assert_eq!(ask(&mut connection, GET).await, "here");
        assert_eq!(setup.requests(), before + 3);
    }
}

#[tokio::test]
async fn a_head_that_has_begun_when_the_response_ends_prevents_parking() {
    let setup = Setup::start();
    for begun in ["\r", "\r\n", "G", &GET[..GET.len() - 1]] {
        let mut connection = setup.connect().await;
        assert_eq!(ask(&mut connection, &format!("{GET}{begun}")).await, "here");
        setup.visit().await;
        assert_eq!(setup.parked(), 0, "{begun:?}");
        let rest = GET.strip_prefix(begun).unwrap_or(GET);
        let rest = if begun == "\r" {
            "\n".to_owned() + GET
        } else {
            rest.to_owned()
        };
        assert_eq!(ask(&mut connection, &rest).await, "here", "{begun:?}");
        setup.await_parked(1);
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_on_a_parked_connection() {
    let setup = Setup::start();
    let mut connection = setup.connect().await;
    for _ in 0..3 {
        setup.await_parked(1);
        let headers = "Content-Length: 4\r\nExpect: 100-continue\r\n";
        send(&mut connection, &post("/count", headers, "")).await;
        let interim = head(&mut connection).await;
        assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(ask(&mut connection, "body").await, "4");
    }
}

#[tokio::test]
async fn a_parked_connection_closes_when_the_client_closes_its_side() {
    let setup = Setup::start();
    for (at, asks) in [false, true].into_iter().enumerate() {
        let mut connection = setup.connect().await;
        if asks {
            assert_eq!(ask(&mut connection, GET).await, "here");
        }
        setup.await_parked(1);
        connection.stream.shutdown().await.unwrap();
        assert_eq!(within(connection.closed()).await, Close::Notify, "{at}");
        drop(connection);
        let open = "sessile_connections_open";
        let closed = |metrics: &Metrics| metrics.sum(open, &[]) == 0;
        assert_eq!(parked(&setup.server.await_metrics(closed)), 0);
    }
}

#[tokio::test]
async fn a_request_that_comes_together_with_close_notify_is_answered_without_an_upstream() {
    let (certificates, folder) = (Certificates::new(), tempfile::tempdir().unwrap());
    let server = serve_text(&certificates, folder.path(), "");
    let client = client(&certificates, Mechanism::Psk);
    let mut connection = connect(&client, &server).await;
    server.await_metrics(|metrics| parked(metrics) == 1);
    connection.stream.write_all(GET.as_bytes()).await.unwrap();
    connection.stream.shutdown().await.unwrap();
    assert_eq!(body(&mut connection).await, "here");
    assert_eq!(within(connection.closed()).await, Close::Notify);
}

#[tokio::test]
async fn a_drain_closes_parked_connections_with_close_notify() {
    let mut setup = Setup::start();
    let mut silent = setup.connect().await;
    let mut idle = setup.connect().await;
    assert_eq!(ask(&mut idle, GET).await, "here");
    let mut late = setup.connect().await;
    setup.await_parked(3);
    setup.server.terminate();
    setup.server.await_line("draining");
    // The first request of a connection may be on its way when the drain begins.
    send(&mut late, GET).await;
    assert_eq!(body(&mut late).await, "here");
    for connection in [&mut silent, &mut idle, &mut late] {
        assert_eq!(within(connection.closed()).await, Close::Notify);
    }
    drop((silent, idle, late));
    assert_eq!(setup.server.ended().code(), Some(0));
}

#[tokio::test]
async fn a_parked_connection_gives_way_to_a_source_with_fewer_connections() {
    let (certificates, folder) = (Certificates::new(), tempfile::tempdir().unwrap());
    let server = serve_text(&certificates, folder.path(), "connection.max = 2");
    let client = client(&certificates, Mechanism::Psk);
    let mut first = connect(&client, &server).await;
    let mut second = connect(&client, &server).await;
    assert_eq!(ask(&mut first, GET).await, "here");
    server.await_metrics(|metrics| parked(metrics) == 2);
    let from_other = ["--http1.1", "--interface", "127.0.7.9"];
    let mut command = curl(&server, &certificates, "/here", &from_other);
    let answer = run("curl", &mut command, "").succeeded().stdout;
    assert!(answer.ends_with("here"), "{answer}");
    tokio::select! {
        end = within(first.closed()) => assert_eq!(end, Close::Notify),
        end = within(second.closed()) => assert_eq!(end, Close::Notify),
    }
    let displaced = "sessile_connections_displaced_total";
    assert_eq!(server.metrics().sum(displaced, &[]), 1);
}

#[tokio::test]
async fn a_head_that_has_begun_ends_with_close_notify_at_the_idle_timeout() {
    let setup = Setup::with("connection.idle-timeout = \"500ms\"");
    let mut connection = setup.connect().await;
    assert_eq!(ask(&mut connection, GET).await, "here");
    send(&mut connection, &GET[..9]).await;
    assert_eq!(within(connection.closed()).await, Close::Notify);
    let reclaimed = "sessile_connections_reclaimed_total";
    let reclaims = |metrics: &Metrics| metrics.sum(reclaimed, &[]) == 1;
    assert_eq!(parked(&setup.server.await_metrics(reclaims)), 0);
}

/// Sends single bytes to a connection after a request, until the server closes the connection.
const DRIP: &str = r#"
import socket, ssl, sys, time

port, ca, what, pause = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
context = ssl.create_default_context(cafile=ca)
tcp = socket.create_connection(("127.0.0.1", port))
coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = context.wrap_bio(coming, going, server_hostname="farm.test")

def complete(step):
    while True:
        try:
            return step()
        except ssl.SSLWantReadError:
            tcp.sendall(going.read())
            coming.write(tcp.recv(65536))

complete(tls.do_handshake)
request = b"GET /here HTTP/1.1\r\nHost: farm.test\r\n"
tls.write(request + b"\r\n")
tcp.sendall(going.read())
assert complete(lambda: tls.read(65536)).startswith(b"HTTP/1.1 200 ")

def records():
    if what == "record":
        # One record that is never complete.
        tls.write(request + b"X: " + b"x" * 1000)
        for byte in going.read()[:-1]:
            yield bytes([byte])
    else:
        # A head that is never complete, with one byte in each record.
        for byte in request + b"X: " + b"x" * 1000:
            tls.write(bytes([byte]))
            yield going.read()

tcp.settimeout(pause)
for part in records():
    try:
        tcp.sendall(part)
        if not tcp.recv(65536):
            break
        # The server's close_notify.
    except TimeoutError:
        continue
    except ConnectionError:
        break
else:
    sys.exit("the server kept the connection open")
"#;

#[test]
fn a_client_that_sends_single_bytes_does_not_defeat_the_idle_timeout() {
    let setup = Setup::with("connection.idle-timeout = \"1s\"");
    let drip = |what: &str, pause: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", DRIP, &setup.server.address().port().to_string()]);
        command.arg(&setup.certificates.ca).args([what, pause]);
        run("python3", &mut command, "").succeeded();
    };
    let reclaimed = "sessile_connections_reclaimed_total";
    // Parts of a record do not wake a parked connection. So the server reclaims the connection long before the
    // deadline of a head.
    drip("record", "0.02");
    assert_eq!(setup.server.metrics().sum(reclaimed, &[]), 1);
    // Bytes of a head end at the deadline of the head.
    drip("head", "0.2");
    assert_eq!(setup.server.metrics().sum(reclaimed, &[]), 1);
}

/// All clients ask at the same time, each over a new connection. Returns the connections.
async fn visits(server: &Sessile, clients: &[Client]) -> Vec<EstablishedConnection> {
    let mut visits = JoinSet::new();
    for client in clients {
        let client = client.clone();
        let target = Target::new(server.address(), NAME).unwrap();
        visits.spawn(async move {
            let mut connection = client.connect(&target).await.unwrap();
            send(&mut connection, GET).await;
            let (mut answer, mut len) = ([0; 1024], 0);
            while !answer[..len].ends_with(b"here") {
                let read = within(connection.stream.read(&mut answer[len..])).await;
                let read = read.expect("a response");
                assert_ne!(read, 0, "the end of the connection");
                len += read;
            }
            connection
        });
    }
    visits.join_all().await
}

#[test]
fn ten_thousand_parked_connections_are_reclaimed_and_their_sessions_resume() {
    /// Most connections resume, because 10,000 full handshakes take longer than the idle timeout.
    const SESSIONS: usize = 100;
    const CONNECTIONS: usize = 10_000;
    let _files = reserve_files();
    let (certificates, folder) = (Certificates::new(), tempfile::tempdir().unwrap());
    // Without an upstream, the limit on open files allows twice as many connections.
    let keys = "connection.idle-timeout = \"40s\"";
    let server = serve_text(&certificates, folder.path(), keys);
    let client = client(&certificates, Mechanism::Ticket);
    let clients = [(); SESSIONS].map(|()| client.with_empty_sessions());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let mut open = Vec::new();
        while open.len() < CONNECTIONS {
            open.extend(visits(&server, &clients).await);
        }
        server.await_metrics(|metrics| parked(metrics) == CONNECTIONS as u64);
        for mut connection in open {
            assert_eq!(connection.closed().await, Close::Notify);
        }
        let metrics = server.await_metrics(|metrics| parked(metrics) == 0);
        let reclaimed = metrics.sum("sessile_connections_reclaimed_total", &[]);
        assert_eq!(reclaimed, CONNECTIONS as u64, "{metrics}");
        for connection in visits(&server, &clients).await {
            assert_eq!(connection.outcome.kind, Kind::Resumed(How::Ticket));
        }
    });
}
