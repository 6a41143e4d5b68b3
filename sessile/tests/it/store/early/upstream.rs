//! The server adds an `Early-Data` header to requests that it forwards from early data. The
//! upstream can answer 425.

use super::visitor::{Visit, Visitor};
use super::{ON, accepted};
use crate::serve_proxy::upstream;
use crate::store::setup::{Farm, Redis};

fn request(method: &str, path: &str, more: &str) -> Vec<u8> {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nsessile-probe: 1\r\n");
    format!("{head}{more}content-length: 0\r\n\r\n").into_bytes()
}

#[test]
fn requests_in_early_data_reach_the_upstream_with_an_early_data_header() {
    let redis = Redis::start();
    let app = upstream();
    let farm = Farm::sharing(
        &redis.url(),
        &format!(
            "{ON}[[upstream]]\nname = \"app\"\nservers = [\"http://{}\"]\n\
             [[site.route]]\npath = \"/app\"\nproxy = \"app\"\n",
            app.address()
        ),
    );
    let server = farm.serve("web1");
    let visitor = Visitor::new(&farm);
    let upstream_requests = || {
        let metrics = server.metrics();
        metrics.sum("sessile_upstream_requests_total", &[("result", "ok")])
    };

    // The upstream answers 425 (Too Early), and the client repeats the request after the handshake.
    visitor.visit(server.address());
    let get = request("GET", "/app/early", "");
    let mut visit = Visit::to(server.address(), visitor.early(&get));
    visit.read_until(b"too early");
    visit.send(&request("GET", "/app/early", "connection: close\r\n"));
    let answer = visit.answer();
    assert!(answer.text.starts_with("HTTP/1.1 425 "), "{}", answer.text);
    assert_eq!(answer.text.matches("HTTP/1.1 200 ").count(), 1);
    assert_eq!(answer.outcome(), "resumed/psk accepted");
    assert_eq!((accepted(&[&server]), upstream_requests()), (1, 2));

    // Only the request before the end of the handshake has the header.
    visitor.visit(server.address());
    let mut visit = Visit::to(
        server.address(),
        visitor.early(&request("GET", "/app/echo", "")),
    );
    visit.read_until(b"[\"early-data\", \"1\"]");
    visit.send(&request("GET", "/app/echo", "connection: close\r\n"));
    let answer = visit.answer();
    assert_eq!(answer.text.matches("HTTP/1.1 200 ").count(), 2);
    assert_eq!(answer.text.matches("\"early-data\"").count(), 1);

    // An unsafe request in early data does not reach the upstream.
    let before = upstream_requests();
    visitor.visit(server.address());
    let post = request("POST", "/app/echo", "connection: close\r\n");
    let mut visit = Visit::to(server.address(), visitor.early(&post));
    visit.read_until(b"\r\n\r\n");
    assert_eq!(visit.answer().status(), "425");
    assert_eq!(upstream_requests(), before);
}
