use http::Request;
use sessile_proto::response_head::{self, empty_slots};

use super::*;

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

/// The request line and the headers that an upstream gets.
fn forwarded(head: &Parts, client: &ClientAddress, without_body: bool) -> (String, HeaderMap) {
    let head = to_upstream(head, client, without_body).expect("it is forwarded");
    let text = String::from_utf8(head.bytes).expect("text");
    let lines = text.strip_suffix("\r\n\r\n").expect("an end");
    let (first, fields) = lines.split_once("\r\n").expect("fields");
    let fields = fields.split("\r\n").map(|field| {
        let (name, value) = field.split_once(": ").expect("a field");
        let name: HeaderName = name.parse().expect("a name");
        (name, value.parse().expect("a value"))
    });
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(name, value);
    }
    (first.to_owned(), headers)
}

fn forwarded_headers(method: &str, headers: &[(&str, &str)]) -> HeaderMap {
    forwarded(&request_head(method, headers), &client(), true).1
}

fn refusal(head: &Parts) -> StatusCode {
    to_upstream(head, &client(), true).expect_err("it is refused")
}

fn texts<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h str> {
    headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().expect("text"))
        .collect()
}

#[test]
fn path_query_and_host_are_forwarded_unchanged() {
    let (line, headers) = forwarded(&request_head("GET", &[]), &client(), true);
    assert_eq!(line, "GET /a?b HTTP/1.1");
    assert_eq!(texts(&headers, "host"), ["example.org:8443"]);
    assert_eq!(texts(&headers, "via"), ["1.1 sessile"]);
}

#[test]
fn a_target_without_a_path_gets_one() {
    for (version, target, written) in [
        // The absolute form of HTTP/1.1.
        (Version::HTTP_11, "http://example.org:8443?x=1", "/?x=1"),
        (Version::HTTP_11, "http://example.org:8443", "/"),
        // The parts of an HTTP/2 request.
        (Version::HTTP_2, "https://example.org:8443?x=1", "/?x=1"),
        (Version::HTTP_2, "https://example.org:8443/?x=1", "/?x=1"),
        (Version::HTTP_11, "*", "*"),
    ] {
        let mut head = request_head("OPTIONS", &[]);
        head.uri = target.parse().expect("a target");
        head.version = version;
        let (line, _) = forwarded(&head, &client(), true);
        assert_eq!(line, format!("OPTIONS {written} HTTP/1.1"), "{target}");
    }
}

#[test]
fn connection_can_remove_cookies() {
    let sent = [("cookie", "a=1"), ("connection", "Cookie")];
    assert!(!forwarded_headers("GET", &sent).contains_key(COOKIE));
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
    let (_, headers) = forwarded(&request_head("PUT", &sent), &client(), false);
    for (name, value) in [
        ("content-length", "5"),
        ("host", "example.org:8443"),
        ("early-data", "1"),
    ] {
        assert_eq!(texts(&headers, name), [value]);
    }
    assert!(!headers.contains_key(TRANSFER_ENCODING));
}

#[test]
fn te_is_reduced_to_trailers() {
    let headers = forwarded_headers("GET", &[("te", "gzip, trailers;q=1"), ("connection", "te")]);
    assert_eq!(texts(&headers, "te"), ["trailers"]);
    assert_eq!(texts(&headers, "connection"), ["te"]);
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
        assert_eq!(texts(&headers, name), [value]);
    }
    for (name, claimed) in claims {
        let forwarded = texts(&headers, name);
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
        let (_, headers) = forwarded(&request_head("GET", &[]), &client, true);
        let forwarded = texts(&headers, "forwarded")[0];
        assert!(
            forwarded.starts_with(&format!("for={node};")),
            "{forwarded}"
        );
        assert_eq!(texts(&headers, "x-forwarded-for"), [plain]);
    }
}

#[test]
fn early_data_is_marked_and_a_received_mark_is_kept() {
    assert!(!forwarded_headers("GET", &[]).contains_key("early-data"));
    let mut early = request_head("GET", &[]);
    early.extensions.insert(SentEarly);
    let (_, headers) = forwarded(&early, &client(), true);
    assert_eq!(texts(&headers, "early-data"), ["1"]);
    // Any other value means the same as 1 (RFC 8470, 5.1).
    for sent in [&["1"][..], &["0"], &["x", "1"]] {
        let sent: Vec<_> = sent.iter().map(|value| ("early-data", *value)).collect();
        assert_eq!(
            texts(&forwarded_headers("POST", &sent), "early-data"),
            ["1"]
        );
    }
}

#[test]
fn a_request_has_exactly_one_framing_header() {
    let framing = |method: &str, headers: &[(&str, &str)], without_body| {
        let (_, headers) = forwarded(&request_head(method, headers), &client(), without_body);
        let value = |name: &str| texts(&headers, name).join("|");
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
    assert_eq!(texts(&headers, "cookie"), ["a=1; b=2; c=3"]);
}

#[test]
fn ambiguous_requests_are_refused() {
    for headers in [
        &[("host", "other.example")][..],
        &[("content-length", "5"), ("content-length", "5")],
        &[("content-length", "5, 5")],
        &[("content-length", "+5")],
        // The length of a request without a body.
        &[("content-length", "5")],
        &[("transfer-encoding", "gzip, chunked")],
        &[
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "chunked"),
        ],
    ] {
        assert_eq!(
            refusal(&request_head("POST", headers)),
            StatusCode::BAD_REQUEST
        );
    }
    for host in ["a@b", "a b", "a/b", "\"", "a,b", ""] {
        let mut head = request_head("GET", &[]);
        head.headers.insert(HOST, HeaderValue::from_static(host));
        assert_eq!(refusal(&head), StatusCode::BAD_REQUEST, "{host}");
    }
}

#[test]
fn a_host_is_required_and_the_target_overrides_the_header() {
    let mut head = request_head("GET", &[]);
    head.uri = "https://Target.example/x".parse().expect("a URI");
    let (line, headers) = forwarded(&head, &client(), true);
    assert_eq!(line, "GET /x HTTP/1.1");
    assert_eq!(texts(&headers, "host"), ["Target.example"]);

    let mut without = request_head("GET", &[]);
    without.headers.remove(HOST);
    assert_eq!(refusal(&without), StatusCode::BAD_REQUEST);
    // HTTP/1.0 has no host.
    without.version = Version::HTTP_10;
    let (_, headers) = forwarded(&without, &client(), true);
    assert_eq!(texts(&headers, "host"), [""]);
    assert!(!headers.contains_key("x-forwarded-host"));
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
        assert_eq!(refusal(&head), StatusCode::NOT_IMPLEMENTED);
    }
}

/// The response for the client.
fn response(head: &str) -> Response<()> {
    let bytes = Bytes::from(head.to_owned());
    let mut slots = empty_slots();
    let head = response_head::parse(&bytes, false, &mut slots).expect("a head");
    to_client(&head, &bytes).expect("it is forwarded")
}

#[test]
fn hop_by_hop_headers_of_responses_are_removed() {
    let response = response(
        "HTTP/1.1 200 OK\r\nConnection: close, x-mine, content-length\r\nX-Mine: 1\r\n\
         Keep-Alive: timeout=5\r\nContent-Length: 5\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
         Empty:\r\n\r\n",
    );
    let headers: Vec<_> = response
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().expect("text")))
        .collect();
    let expected = [
        ("content-length", "5"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("empty", ""),
    ];
    assert_eq!(headers, expected);
}

#[test]
fn responses_without_body_lose_their_length() {
    for status in ["204 No Content", "304 Not Modified"] {
        let response = response(&format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n"));
        assert!(response.headers().is_empty());
    }
}

#[test]
fn an_unusual_reason_phrase_is_kept() {
    for (line, reason) in [
        ("200 OK", None),
        ("200 Fine", Some(&b"Fine"[..])),
        ("200 ", Some(b"")),
        ("299 Odd", Some(b"Odd")),
    ] {
        let response = response(&format!("HTTP/1.1 {line}\r\n\r\n"));
        let found = response.extensions().get::<ReasonPhrase>();
        assert_eq!(found.map(ReasonPhrase::as_bytes), reason, "{line}");
    }
}

#[test]
fn only_harmless_trailers_are_sent() {
    let trailer = "x-sum, Content-Length, host, x-other,, \u{e4}";
    let headers = [("transfer-encoding", "chunked"), ("trailer", trailer)];
    let head = to_upstream(&request_head("PUT", &headers), &client(), false);
    let trailers = ["x-sum", "x-other"].map(HeaderName::from_static).into();
    let framing = BodyFraming::Chunked(trailers);
    assert_eq!(head.expect("it is forwarded").framing, Some(framing));
}
