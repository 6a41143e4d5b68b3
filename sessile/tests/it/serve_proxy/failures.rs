//! Upstreams that are down, silent or broken, and clients that disconnect.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use super::{ProxySetup, VERSIONS, upstream, upstream_on};
use crate::peers::{Peer, eventually, run};

#[test]
fn an_upstream_that_is_down_gives_502_until_it_returns() {
    let app = upstream();
    let port = app.address().port();
    let setup = ProxySetup::start(&[port], "");
    assert_eq!(setup.status("/echo", &[]), 200);
    app.kill();
    for version in VERSIONS {
        let (status, _, body) = setup.get("/echo", &[version]);
        assert_eq!((status, &*body), (502, "502 Bad Gateway\n"));
    }
    assert_eq!(setup.results("unreachable"), 2);
    let line = setup.sessile.await_line("an upstream does not answer");
    assert!(line.contains("upstream=\"app\""), "{line}");
    let _app = Peer::start_on(port, "python3", upstream_on(port)).unwrap();
    assert_eq!(setup.status("/echo", &[]), 200);
    setup.sessile.await_line("an upstream answers again");
}

#[test]
fn a_silent_upstream_gives_504() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "response-timeout = \"1s\"");
    let file = setup.file("upload");
    File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let upload = file.to_str().unwrap();
    for version in VERSIONS {
        let (status, _, body) = setup.get("/stall", &[version]);
        assert_eq!((status, &*body), (504, "504 Gateway Timeout\n"));
    }
    // Use HTTP/1.1: over HTTP/2, curl 7.88 ignores a response that arrives before curl has sent the
    // body.
    let arguments = ["--http1.1", "-HExpect:", "-T", upload];
    assert_eq!(setup.status("/stall-at-body", &arguments), 504);
    assert_eq!(setup.results("timeout"), 3);
    // In the middle of a response, a status can no longer report the timeout.
    for version in VERSIONS {
        let ran = setup.ask("/stall-in-body", &[version]);
        assert!(!ran.status.success());
        assert_eq!(ran.stdout, "a part");
    }
    assert_eq!(setup.results("cut"), 2);
}

/// Bytes for a query.
fn escaped(bytes: &str) -> String {
    bytes.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// Sends half of a body, waits, and sends the rest. Arguments: port, CA file, seconds.
const SLOW: &str = r#"
import socket, ssl, sys, time
port, ca, seconds = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
with socket.create_connection(("127.0.0.1", port), timeout=30) as tcp:
    with context.wrap_socket(tcp, server_hostname="farm.test") as tls:
        tls.sendall(b"PUT /count HTTP/1.1\r\nHost: farm.test\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhalf.")
        time.sleep(float(seconds))
        tls.sendall(b"half.")
        print(b"".join(iter(lambda: tls.recv(4096), b"")).decode())
"#;

#[test]
fn slow_clients_are_served() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "response-timeout = \"1s\"");
    let mut python = Command::new("python3");
    let port = setup.sessile.address().port().to_string();
    // The upload takes longer than `response-timeout`, which does not run while the client sends.
    python.args(["-c", SLOW, &port]);
    python.arg(&setup.certificates.ca).arg("1.5");
    let answer = run("python3", &mut python, "").succeeded().stdout;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.trim_end().ends_with("10"),
        "{answer}"
    );
}

/// The upstream must answer within a second. A connection is idle after 0.3 seconds.
const THINKING: &str = "response-timeout = \"1s\"\n[connection]\nidle-timeout = \"300ms\"";

#[test]
fn a_client_that_waits_for_an_upstream_is_not_idle() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], THINKING);
    for version in VERSIONS {
        assert_eq!(setup.status("/stall", &[version]), 504);
        // The upstream stops within its response. `response-timeout` ends this response, not the
        // client's `idle-timeout`.
        let ran = setup.ask("/stall-in-body", &[version]);
        assert_eq!((ran.status.success(), &*ran.stdout), (false, "a part"));
    }
    assert_eq!((setup.results("timeout"), setup.results("cut")), (2, 2));
}

/// Sends data and reads no answer. Waits until the end of its standard input. Arguments: port, CA
/// file, data.
pub(super) const STUCK: &str = r#"
import socket, ssl, sys
port, ca, request = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
with socket.create_connection(("127.0.0.1", port), timeout=30) as tcp:
    with context.wrap_socket(tcp, server_hostname="farm.test") as tls:
        tls.sendall(request.encode())
        sys.stdin.read()
"#;

#[test]
fn a_client_that_neither_sends_nor_reads_is_idle_during_a_request() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], THINKING);
    let port = setup.sessile.address().port().to_string();
    for (already, request) in [
        "GET /endless HTTP/1.1\r\nHost: farm.test\r\n\r\n",
        "PUT /count HTTP/1.1\r\nHost: farm.test\r\nContent-Length: 10\r\n\r\nhalf.",
    ]
    .into_iter()
    .enumerate()
    {
        let mut python = Command::new("python3");
        python.args(["-c", STUCK, &port]);
        python.arg(&setup.certificates.ca).arg(request);
        let mut client = (python.stdin(Stdio::piped()).stderr(Stdio::null()).spawn()).unwrap();
        eventually("it is reclaimed", || {
            let metrics = setup.sessile.metrics();
            metrics.sum("sessile_connections_reclaimed_total", &[]) == already as u64 + 1
        });
        client.kill().unwrap();
        client.wait().unwrap();
    }
    eventually("they are counted", || setup.results("abandoned") == 2);
}

/// Sends an HTTP/1.0 request and waits for the end. Arguments: port, CA file, path.
const WHOLE: &str = r#"
import socket, ssl, sys
port, ca, path = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
with socket.create_connection(("127.0.0.1", port), timeout=30) as tcp:
    with context.wrap_socket(tcp, server_hostname="farm.test", suppress_ragged_eofs=False) as tls:
        tls.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        print(b"".join(iter(lambda: tls.recv(4096), b"")))
"#;

#[test]
fn a_truncated_response_never_looks_complete() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let paths = ["/cut-sized", "/cut-chunked", "/reset"];
    for version in VERSIONS {
        for path in paths {
            let ran = setup.ask(path, &[version]);
            assert!(!ran.status.success(), "{version} {path}: {}", ran.stdout);
        }
    }
    // Without a length and chunks, the client can only tell from TLS that data is missing.
    for path in paths {
        let mut python = Command::new("python3");
        let port = setup.sessile.address().port().to_string();
        python.args(["-c", WHOLE, &port]);
        python.arg(&setup.certificates.ca).arg(path);
        let ran = run("python3", &mut python, "");
        assert!(ran.stderr.contains("SSLEOFError"), "{path}: {}", ran.stderr);
    }
    assert_eq!(setup.results("cut"), 9);
    assert_eq!(setup.results("ok"), 0);
}

#[test]
fn invalid_responses_give_502() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    for version in VERSIONS {
        for path in ["/garbage", "/websocket", "/hang-up"] {
            assert_eq!(setup.status(path, &[version]), 502, "{path}");
        }
    }
    assert_eq!((setup.results("invalid"), setup.results("closed")), (4, 2));
    // A request is not sent again if its connection was new.
    assert_eq!(app.said().matches("hung up").count(), 2);
}

#[test]
fn responses_that_two_servers_read_in_two_ways_give_502() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let heads = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 200 OK\r\nContent-Length : 2",
        "HTTP/1.1 200 OK\r\nA: b\r\n Content-Length: 2",
        "HTTP/1.1 200 OK\nContent-Length: 2",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 2",
    ];
    for head in heads {
        let answer = escaped(&format!("{head}\r\n\r\nok"));
        assert_eq!(setup.status(&format!("/raw?{answer}"), &[]), 502, "{head}");
    }
    assert_eq!(setup.results("invalid"), heads.len() as u64);
    // Each informational response is valid, but no client waits for so many.
    let informational = escaped(&"HTTP/1.1 102 Processing\r\n\r\n".repeat(101));
    assert_eq!(setup.status(&format!("/raw?{informational}"), &[]), 502);
}

#[test]
fn bytes_behind_a_response_never_answer_another_request() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let secret = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret";
    for first in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    ] {
        let answer = escaped(&format!("{first}{secret}"));
        let (_, _, body) = setup.get(&format!("/raw?{answer}"), &[]);
        assert!(!body.contains("secret"), "{body}");
        assert_eq!(setup.get("/count", &[]).2, "0", "{first}");
    }
}

#[test]
fn a_response_in_single_bytes_is_complete() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
                  HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                  8;x=y\r\nin bytes\r\n1 \r\n!\r\n0\r\nX-Sum: 9\r\n\r\n";
    for version in VERSIONS {
        let path = format!("/in-bytes?{}", escaped(answer));
        let (status, head, body) = setup.get(&path, &[version, "-HTE: trailers"]);
        // curl prints trailers behind the body.
        assert_eq!(
            (status, body.trim_end()),
            (200, "in bytes!x-sum: 9"),
            "{head}"
        );
    }
    // The connection can take another request.
    assert_eq!(setup.get("/count", &[]).2, "0");
    assert_eq!(setup.results("ok"), 3);
}

#[test]
fn an_answer_before_the_end_of_a_body_reaches_the_client() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let file = setup.file("upload");
    File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let upload = ["--http1.1", "-HExpect:", "-T", file.to_str().unwrap()];
    assert_eq!(setup.status("/refuse-body", &upload), 413);
    assert_eq!((setup.results("ok"), setup.results("closed")), (1, 0));
}

/// Sends a complete request before it reads the response. Prints the length of the response's body.
/// Arguments: port, CA file, length of both bodies.
const SENDS_FIRST: &str = r#"
import socket, ssl, sys
port, ca, length = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
with socket.create_connection(("127.0.0.1", port), timeout=30) as tcp:
    with context.wrap_socket(tcp, server_hostname="farm.test") as tls:
        head = f"PUT /both-ways?{length} HTTP/1.1\r\nHost: farm.test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        tls.sendall(head.encode() + bytes(int(length)))
        answer = b"".join(iter(lambda: tls.recv(65536), b""))
        print(len(answer.partition(b"\r\n\r\n")[2]))
"#;

#[test]
fn a_client_that_reads_the_answer_last_can_send_all_of_its_body() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let mut python = Command::new("python3");
    let port = setup.sessile.address().port().to_string();
    // The buffers between the upstream and the client have no room for the answer.
    let length = (64 << 20).to_string();
    python.args(["-c", SENDS_FIRST, &port]);
    python.arg(&setup.certificates.ca).arg(&length);
    let said = run("python3", &mut python, "").succeeded().stdout;
    assert_eq!(said.trim_end(), length);
    assert!(app.said().contains("body complete"));
    assert_eq!(setup.results("ok"), 1);
}

#[test]
fn response_timeout_also_limits_the_time_to_connect() {
    // The backlog of this socket is full, so connections to it hang.
    let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    deaf.bind(&any.into()).unwrap();
    deaf.listen(0).unwrap();
    let address = deaf.local_addr().unwrap().as_socket().unwrap();
    let _queued = TcpStream::connect(address).unwrap();
    let keys = "connect-timeout = \"10m\"\nresponse-timeout = \"1s\"";
    let setup = ProxySetup::start(&[address.port()], keys);
    assert_eq!(setup.status("/", &["--max-time", "60"]), 504);
    assert_eq!(setup.results("timeout"), 1);
}

#[test]
fn retries_idempotent_requests_on_a_closing_connection() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let path = "/hang-up-once";
    assert_eq!(setup.status(path, &[]), 200);
    assert_eq!(setup.status(path, &[]), 200);
    assert_eq!(app.said().matches("asked").count(), 3);
    // This POST uses the connection that the second request left open. The server must not send the
    // POST again.
    assert_eq!(setup.status(path, &["--data", "once only"]), 502);
    assert_eq!(app.said().matches("asked").count(), 4);
    assert_eq!((setup.results("ok"), setup.results("closed")), (2, 1));
}

#[test]
fn a_client_that_disconnects_ends_its_request_at_the_upstream() {
    let app = upstream();
    let setup = ProxySetup::start(&[app.address().port()], "");
    let file = setup.file("upload");
    File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let upload = ["-HExpect:", "-T", file.to_str().unwrap()];
    let mut gone = 0;
    for version in VERSIONS {
        for (path, more) in [
            ("/stall", &[][..]),
            ("/endless", &["--limit-rate", "100k"][..]),
            ("/count", &[&upload[..], &["--limit-rate", "100k"]].concat()),
        ] {
            let arguments = [&[version], more].concat();
            let mut command = setup.curl(path, &arguments);
            let mut client: Child = (command.stdout(Stdio::null()).spawn())
                .expect("curl is missing: install the package curl");
            eventually("it asks", || {
                app.said().matches("asked").count() as u64 == gone + 1
            });
            client.kill().unwrap();
            client.wait().unwrap();
            gone += 1;
            eventually("it is counted", || setup.results("abandoned") == gone);
        }
    }
    let said = || app.said();
    let ended = || said().matches("client gone").count() + said().matches("body cut").count();
    eventually("the upstream is told", || ended() == 6);
}
