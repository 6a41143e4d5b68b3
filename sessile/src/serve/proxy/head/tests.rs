use super::*;
use http::Request;

fn client() -> ClientAddress {
    ClientAddress::new([192, 0, 2, 7].into())
}

/// The head of a request for `/a?b`, with a Host header and `headers`.
fn request_head(method: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri("/a?b");
    for (name, value) in [("host", "example.org:8443")].iter().chain(headers) {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn forwarded_headers(method: &str, headers: &[(&str, &str)]) -> HeaderMap {
    let head = to_upstream(request_head(method, headers), &client(), true);
    head.expect("it is forwarded").headers
}

fn refusal(head: Parts) -> StatusCode {
    to_upstream(head, &client(), true).expect_err("it is refused")
}

fn values<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h str> {
    headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().expect("text"))
        .collect()
}

#[test]
fn path_query_and_host_are_forwarded_unchanged() {
    let head = to_upstream(request_head("GET", &[]), &client(), true).expect("it is forwarded");
    assert_eq!(head.uri.path_and_query().expect("both"), "/a?b");
    assert_eq!(head.version, Version::HTTP_11);
    assert_eq!(values(&head.headers, "host"), ["example.org:8443"]);
    assert_eq!(values(&head.headers, "via"), ["1.1 sessile"]);
}

#[test]
fn hop_by_hop_headers_are_removed() {
    let headers = forwarded_headers(
        "GET",
        &[
            ("connection", "close, X-Mine"),
            ("connection", "x-also"),
            ("x-mine", "1"),
            ("x-also", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("te", "gzip;q=0.5"),
            ("expect", "100-continue"),
        ],
    );
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "forwarded",
            "host",
            "via",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-other"
        ]
    );
}

#[test]
fn connection_cannot_remove_length_host_and_early_data() {
    let named = "content-length, host, early-data";
    let sent = [
        ("connection", named),
        ("content-length", "5"),
        ("early-data", "1"),
    ];
    let head = to_upstream(request_head("PUT", &sent), &client(), false).expect("it is forwarded");
    for (name, value) in [
        ("content-length", "5"),
        ("host", "example.org:8443"),
        ("early-data", "1"),
    ] {
        assert_eq!(values(&head.headers, name), [value]);
    }
    assert!(!head.headers.contains_key(TRANSFER_ENCODING));
}

#[test]
fn te_is_reduced_to_trailers() {
    let headers = forwarded_headers("GET", &[("te", "gzip, trailers;q=1"), ("connection", "te")]);
    assert_eq!(values(&headers, "te"), ["trailers"]);
    assert_eq!(values(&headers, "connection"), ["te"]);
}

#[test]
fn headers_that_describe_the_client_are_replaced() {
    let claims = [
        ("forwarded", "for=10.0.0.1"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-for", "10.0.0.2"),
        ("x_forwarded_for", "10.0.0.3"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "other"),
        ("x-forwarded-port", "80"),
        ("x-real-ip", "10.0.0.4"),
        ("client-cert", ":MIIB:"),
        ("client_cert_chain", ":MIIB:"),
        ("x-ssl-client-verify", "SUCCESS"),
        ("x-client-cert", "MIIB"),
        ("ssl-client-cert", "MIIB"),
    ];
    let headers = forwarded_headers("GET", &claims);
    for (name, value) in [
        (
            "forwarded",
            "for=192.0.2.7;proto=https;host=\"example.org:8443\"",
        ),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "example.org:8443"),
    ] {
        assert_eq!(values(&headers, name), [value]);
    }
    for (name, claimed) in claims {
        let forwarded = values(&headers, name);
        assert!(!forwarded.contains(&claimed), "{name}: {forwarded:?}");
    }
}

#[test]
fn ipv6_addresses_have_the_form_of_rfc_7239() {
    for (client, node, plain) in [
        ("2001:db8::1", "\"[2001:db8::1]\"", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1"),
    ] {
        let client = client.parse().expect("an address");
        let client = ClientAddress::new(client);
        let head = to_upstream(request_head("GET", &[]), &client, true).expect("it is forwarded");
        let forwarded = values(&head.headers, "forwarded")[0];
        assert!(
            forwarded.starts_with(&format!("for={node};")),
            "{forwarded}"
        );
        assert_eq!(values(&head.headers, "x-forwarded-for"), [plain]);
    }
}

#[test]
fn early_data_is_marked_and_a_received_mark_is_kept() {
    assert!(!forwarded_headers("GET", &[]).contains_key("early-data"));
    let mut early = request_head("GET", &[]);
    early.extensions.insert(SentEarly);
    let head = to_upstream(early, &client(), true).expect("it is forwarded");
    assert_eq!(values(&head.headers, "early-data"), ["1"]);
    // Any other value means the same as 1 (RFC 8470, 5.1).
    for sent in [&["1"][..], &["0"], &["x", "1"]] {
        let sent: Vec<_> = sent.iter().map(|value| ("early-data", *value)).collect();
        assert_eq!(
            values(&forwarded_headers("POST", &sent), "early-data"),
            ["1"]
        );
    }
}

#[test]
fn a_request_has_exactly_one_framing_header() {
    let framing = |method: &str, headers: &[(&str, &str)], without_body| {
        let head = to_upstream(request_head(method, headers), &client(), without_body);
        let headers = head.expect("it is forwarded").headers;
        let value = |name: &str| values(&headers, name).join("|");
        (value("content-length"), value("transfer-encoding"))
    };
    let both = |length: &str, coding: &str| (length.to_owned(), coding.to_owned());
    let chunked = [("transfer-encoding", "Chunked")];
    assert_eq!(framing("GET", &[], true), both("", ""));
    assert_eq!(framing("POST", &[], true), both("0", ""));
    assert_eq!(
        framing("POST", &[("content-length", "5")], false),
        both("5", "")
    );
    assert_eq!(framing("POST", &chunked, false), both("", "chunked"));
    assert_eq!(framing("GET", &chunked, false), both("", "chunked"));
    // An HTTP/2 request can have a body without a length.
    assert_eq!(framing("GET", &[], false), both("", "chunked"));
    let length_too = [chunked[0], ("content-length", "5")];
    assert_eq!(framing("POST", &length_too, false), both("", "chunked"));
}

#[test]
fn http2_cookies_are_joined() {
    let headers = forwarded_headers("GET", &[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
    assert_eq!(values(&headers, "cookie"), ["a=1; b=2; c=3"]);
}

#[test]
fn ambiguous_requests_are_refused() {
    for headers in [
        &[("host", "other.example")][..],
        &[("content-length", "5"), ("content-length", "5")],
        &[("content-length", "5, 5")],
        &[("content-length", "+5")],
        &[("transfer-encoding", "gzip, chunked")],
        &[
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "chunked"),
        ],
    ] {
        assert_eq!(
            refusal(request_head("POST", headers)),
            StatusCode::BAD_REQUEST
        );
    }
    for host in ["a@b", "a b", "a/b", "\"", "a,b", ""] {
        let mut head = request_head("GET", &[]);
        head.headers.insert(HOST, HeaderValue::from_static(host));
        assert_eq!(refusal(head), StatusCode::BAD_REQUEST, "{host}");
    }
}

#[test]
fn a_host_is_required_and_the_target_overrides_the_header() {
    let mut head = request_head("GET", &[]);
    head.uri = "https://Target.example/x".parse().expect("a URI");
    let head = to_upstream(head, &client(), true).expect("it is forwarded");
    assert_eq!(values(&head.headers, "host"), ["Target.example"]);

    let mut without = request_head("GET", &[]);
    without.headers.remove(HOST);
    assert_eq!(refusal(without.clone()), StatusCode::BAD_REQUEST);
    without.version = Version::HTTP_10;
    let head = to_upstream(without, &client(), true).expect("HTTP/1.0 has none");
    assert_eq!(values(&head.headers, "host"), [""]);
    assert!(!head.headers.contains_key("x-forwarded-host"));
}

#[test]
fn connect_trace_and_websocket_are_refused() {
    for head in [
        request_head("CONNECT", &[]),
        request_head("TRACE", &[]),
        request_head(
            "GET",
            &[("connection", "upgrade"), ("upgrade", "WebSocket/13")],
        ),
    ] {
        assert_eq!(refusal(head), StatusCode::NOT_IMPLEMENTED);
    }
}

#[test]
fn hop_by_hop_headers_of_responses_are_removed() {
    let mut response = Response::builder()
        .version(Version::HTTP_10)
        .header("connection", "close, x-mine")
        .header("x-mine", "1")
        .header("keep-alive", "timeout=5")
        .header("transfer-encoding", "chunked")
        .header("content-length", "5")
        .header("set-cookie", "a=1")
        .body(())
        .expect("a response");
    to_client(&mut response).expect("it is forwarded");
    assert_eq!(response.version(), Version::HTTP_11);
    let names: Vec<_> = response.headers().keys().collect();
    assert_eq!(names, ["set-cookie"]);
}

#[test]
fn responses_without_body_lose_their_length_and_ambiguous_ones_are_refused() {
    for status in [204, 304] {
        let mut response = Response::builder().status(status);
        response = response.header("content-length", "5");
        let mut response = response.body(()).expect("a response");
        to_client(&mut response).expect("it is forwarded");
        assert!(response.headers().is_empty());
    }
    for (status, name, value) in [
        (101, "upgrade", "websocket"),
        (200, "transfer-encoding", "gzip"),
        (200, "content-length", "5, 5"),
    ] {
        let response = Response::builder().status(status).header(name, value);
        let mut response = response.body(()).expect("a response");
        assert_eq!(to_client(&mut response), Err(InvalidFraming), "{value}");
    }
}
