//! Requests with two lengths behind other requests, through the checks to hyper.

use std::cell::RefCell;
use std::convert::Infallible;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;

/// A request that no server may see: its length is given twice.
const TWICE: &str = "POST /twice HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n\
    0\r\n\r\n";

const CHUNKED: &str = "POST /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A client's stream with the checks of HTTP/1.
struct Checked {
    stream: DuplexStream,
    framing: RequestFraming,
}

impl AsyncRead for Checked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        poll_read_requests(&mut this.framing, Pin::new(&mut this.stream), cx, buf)
    }
}

impl AsyncWrite for Checked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The paths of the requests that hyper reads from these parts of a connection, and its last answer.
fn read(parts: &[&[u8]]) -> (Vec<String>, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        let seen = RefCell::new(Vec::new());
        let (mut client, stream) = tokio::io::duplex(64 * 1024);
        let framing = RequestFraming::new();
        let io = TokioIo::new(Checked { stream, framing });
        let service = service_fn(|request: Request<Incoming>| {
            seen.borrow_mut().push(request.uri().path().to_owned());
            async {
                // A body that cannot be read ends the connection.
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let server = http1::Builder::new()
            .half_close(true)
            .serve_connection(io, service);
        let send = async {
            for part in parts {
                // The server may have closed the connection.
                let _ = client.write_all(part).await;
                tokio::task::yield_now().await;
            }
            let _ = client.shutdown().await;
            let mut answers = String::new();
            let _ = client.read_to_string(&mut answers).await;
            answers
        };
        let (_, answers) = tokio::join!(server, send);
        let last = answers.rfind("HTTP/1.1 ").map_or("", |at| &answers[at..]);
        (seen.take(), last.get(9..12).unwrap_or_default().to_owned())
    })
}

fn paths(bytes: &str) -> Vec<String> {
    read(&[bytes.as_bytes()]).0
}

#[test]
fn hyper_reads_requests_with_one_length() {
    let requests = [
        "\r\n\nGET /lf HTTP/1.1\nHost: a\n\n",
        "POST /sized HTTP/1.1\r\nContent-Length: 3\r\n\r\n\r\n\n",
        "PUT /expect HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        "GET /upgrade HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        CHUNKED,
    ];
    let chunks =
        "1 \t;x=\"y\"\r\na\r\n0A;\r\n\r\n23456\r\n9\r\n00\r\na: b\r\nContent-Length: 1\r\n\r\n";
    let last = "GET /last HTTP/1.1\r\n\r\n";
    let seen = paths(&[&requests.concat(), chunks, last].concat());
    let all = ["/lf", "/sized", "/expect", "/upgrade", "/chunked", "/last"];
    assert_eq!(seen, all);
}

#[test]
fn a_second_length_hides_in_no_body() {
    let bodies = [
        "0\r\na: b\n\r\nX: 1\r\nContent-Length: 9999\r\n\r\n",
        "0\r\na: b\n\nPOST / HTTP/1.1\r\nContent-Length: 9999\r\n\r\n\r\n\r\n",
        "0\r\n\nPOST / HTTP/1.1\r\nContent-Length: 9999\r\n\r\n",
        "0\r\na: b\rc: d\r\n\r\n",
        "1;x\ny\r\na\r\n0\r\n\r\n",
        "1;x\n\r\na\r\n0\r\n\r\n",
        "1;x\ry\r\na\r\n0\r\n\r\n",
        "1\na\n0\n\n",
        "1\r\r\na\r\n0\r\n\r\n",
        "1\r\na\r\r\n0\r\n\r\n",
        "1\r\na\n0\r\n\r\n",
        "1 1\r\na\r\n0\r\n\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "0\r\n\r\n",
    ];
    for body in bodies {
        assert_eq!(
            paths(&format!("{CHUNKED}{body}{TWICE}")),
            ["/chunked"],
            "{body:?}"
        );
    }
    let heads = [
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        " Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\n\n0\r\n\r\n",
        "Content-Length: 5\n\n0\r\n\r\n",
        "Content-Length: 5\r6\r\n\r\n0\r\n\r\n",
        "Content-Length: 5 6\r\n\r\n0\r\n\r\n",
        "Content-Length: 5,5\r\n\r\n0\r\n\r\n",
        "Content-Length: 0x5\r\n\r\n0\r\n\r\n",
        "Content-Length:\r\n\r\n",
        "Content-Length : 5\r\n\r\n0\r\n\r\n",
        "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "X\r\n\r\n",
        "X: y\n\r\n",
        "\r\r\n",
    ];
    for head in heads {
        for line in [
            "POST / HTTP/1.1\r\n",
            "POST / HTTP/1.1\n",
            "POST / HTTP/1.0\r\n",
            "CONNECT a:1 HTTP/1.1\r\n",
            "\r\rPOST / HTTP/1.1\r\n",
            "POST /\r\n",
        ] {
            let seen = paths(&format!("{line}{head}{TWICE}"));
            assert!(!seen.contains(&"/twice".to_owned()), "{line:?}{head:?}");
        }
    }
}

#[test]
fn a_refused_head_gets_400() {
    let (seen, last) = read(&[b"GET /a HTTP/1.1\r\n\r\n", TWICE.as_bytes()]);
    assert_eq!((seen, last.as_str()), (vec!["/a".to_owned()], "400"));
}

/// Each pair of requests, with each line end replaced in each way.
#[test]
fn a_second_length_hides_behind_no_line_end() {
    const REQUESTS: [&str; 6] = [
        "GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /b HTTP/1.1\r\nContent-Length: 9999\r\n\r\n",
        "POST /c HTTP/1.1\r\nX: y\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
        "POST /d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\n\r\n",
        "POST /e HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: b\r\nc: d\r\n\r\n",
        "PUT /f HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nab",
    ];
    let line_ends = [
        "", "\n", "\r", "\r\r\n", "\n\r\n", "\r\n\r\n", "\r\n ", " \r\n", "\0\r\n",
    ];
    for first in REQUESTS {
        for second in REQUESTS {
            let pair = format!("{first}{second}");
            for (at, crlf) in pair.match_indices("\r\n") {
                let (before, behind) = (&pair[..at], &pair[at + crlf.len()..]);
                for line_end in line_ends {
                    let bytes = format!("{before}{line_end}{behind}{TWICE}");
                    assert!(!paths(&bytes).contains(&"/twice".to_owned()), "{bytes:?}");
                }
            }
        }
    }
}

/// Parts of requests, valid and invalid.
fn piece() -> impl Strategy<Value = String> {
    let whole = prop::sample::select(vec![
        TWICE,
        CHUNKED,
        "GET /a HTTP/1.1\r\n\r\n",
        "POST /b HTTP/1.1\r\nContent-Length: 30\r\n\r\n",
        "POST /b HTTP/1.1\r\nContent-Length: 30\n\n",
        "POST /c HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "PUT /d HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n",
    ]);
    let part = prop::sample::select(vec![
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        "0",
        "1",
        "1e",
        "0\r\n",
        "1\r\n",
        "1;a\r\n",
        "0;a\n",
        "a\r\n",
        "a\n",
        "\r\na: b\r\n",
        "a: b\n",
        "a: b\r\n",
        " ",
        "\t",
        ";",
        ":",
        "x",
        "\0",
        "0\r\n\r\n",
        "POST / HTTP/1.1\r\n",
        "Content-Length: 20\r\n",
        "Content-Length: 9999\r\n\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\n",
    ]);
    prop_oneof![1 => whole, 3 => part].prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn hyper_sees_no_request_with_two_lengths(
        first in prop::sample::select(vec!["", CHUNKED]),
        pieces in prop::collection::vec(piece(), 0..14),
        split in any::<prop::sample::Index>(),
    ) {
        let bytes = format!("{first}{}{TWICE}", pieces.concat());
        let (left, right) = bytes.as_bytes().split_at(split.index(bytes.len()));
        for parts in [&[bytes.as_bytes()][..], &[left, right][..]] {
            let (seen, _) = read(parts);
            prop_assert!(!seen.contains(&"/twice".to_owned()), "{:?}", bytes);
        }
    }
}
