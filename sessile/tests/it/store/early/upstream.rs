//! Requests in early data that are handed on: the upstream is told, and may want them again.

use super::visitor::{Visit, Visitor};
use super::{ON, accepted};
use crate::serve_proxy::upstream;
use crate::store::setup::{Farm, Redis};

fn request(method: &str, path: &str, more: &str) -> Vec<u8> {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nsessile-probe: 1\r\n");
    format!("{head}{more}content-length: 0\r\n\r\n").into_bytes()
}

#[test]
fn an_upstream_is_told_of_early_data_and_may_want_it_again() {
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
    let asked = || {
        let metrics = server.metrics();
        metrics.sum("sessile_upstream_requests_total", &[("result", "ok")])
    };

    // Its answer is that of a server that takes no risk; a client asks again when it has finished.
    visitor.visit(server.address());
    let wary = request("GET", "/app/early", "");
    let mut visit = Visit::to(server.address(), visitor.early(&wary));
    visit.hear(b"too early");
    visit.send(&request("GET", "/app/early", "connection: close\r\n"));
    let answer = visit.answer();
    assert!(answer.text.starts_with("HTTP/1.1 425 "), "{}", answer.text);
    assert_eq!(answer.text.matches("HTTP/1.1 200 ").count(), 1);
    assert_eq!(answer.outcome(), "resumed/psk accepted");
    assert_eq!((accepted(&[&server]), asked()), (1, 2));

    // It sees the mark where the client has not finished, and not where it has.
    visitor.visit(server.address());
    let mut visit = Visit::to(
        server.address(),
        visitor.early(&request("GET", "/app/echo", "")),
    );
    visit.hear(b"[\"early-data\", \"1\"]");
    visit.send(&request("GET", "/app/echo", "connection: close\r\n"));
    let answer = visit.answer();
    assert_eq!(answer.text.matches("HTTP/1.1 200 ").count(), 2);
    assert_eq!(answer.text.matches("\"early-data\"").count(), 1);

    // What may do harm does not get there at all.
    let before = asked();
    visitor.visit(server.address());
    let harmful = request("POST", "/app/echo", "connection: close\r\n");
    let mut visit = Visit::to(server.address(), visitor.early(&harmful));
    visit.hear(b"\r\n\r\n");
    assert_eq!(visit.answer().status(), "425");
    assert_eq!(asked(), before);
}
