//! Writes the heads of forwarded requests, and rewrites the heads of responses. No I/O.
//!
//! Hop-by-hop headers are removed (RFC 9110, 7.6.1). Headers in which a client describes itself are
//! replaced by headers that describe its connection.

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode, Version};
use hyper::ext::ReasonPhrase;
use sessile_proto::response_head::{Field, ResponseHead};

use crate::serve::request::{Host, SentEarly};

const EARLY_DATA: &str = "early-data";

/// The prefixes of headers in which proxies describe a client: its address and its certificate.
///
/// Upstreams trust these headers, so they are removed from the requests of clients.
const CLIENT_CLAIM_PREFIXES: [&str; 5] = [
    "x-forwarded-",
    "client-cert",
    "x-client-cert",
    "x-ssl-client-",
    "ssl-client-",
];

/// As [`CLIENT_CLAIM_PREFIXES`], complete names.
const CLIENT_CLAIMS: [&str; 2] = ["forwarded", "x-real-ip"];

/// Headers that belong to one connection, even if `Connection` does not name them.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Headers that `Connection` cannot remove. Without them, the next server would read another message.
const ALWAYS_FORWARDED: [&str; 4] = ["content-length", "host", EARLY_DATA, "trailer"];

/// Options of `Connection` that nearly every message has, and that name no other header.
const USUAL_OPTIONS: [&str; 2] = ["keep-alive", "close"];

/// Most bytes that a request's head usually has.
const USUAL_HEAD: usize = 1024;

/// The address of a client, and the headers for upstreams that depend only on this address.
pub(in crate::serve) struct ClientAddress {
    pub(super) ip: IpAddr,
    /// Complete lines, then the beginning of the line with `Forwarded`.
    lines: Box<[u8]>,
}

impl ClientAddress {
    pub(in crate::serve) fn new(ip: IpAddr) -> Self {
        // A dual-stack socket gives IPv4 clients IPv4-mapped IPv6 addresses.
        let address = ip.to_canonical();
        let node = match address {
            IpAddr::V4(_) => address.to_string(),
            IpAddr::V6(_) => format!("\"[{address}]\""),
        };
        let lines = format!(
            "x-forwarded-for: {address}\r\nx-forwarded-proto: https\r\n\
             forwarded: for={node};proto=https"
        );
        Self {
            ip,
            lines: lines.into_bytes().into(),
        }
    }
}

/// The head of a request, as it is sent.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) bytes: Vec<u8>,
    pub(super) framing: RequestFraming,
}

/// How the body of a request is sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RequestFraming {
    NoBody,
    /// The body has this length.
    Bytes(u64),
    /// In chunks, and with these trailers.
    Chunked {
        trailers: Vec<HeaderName>,
    },
}

/// The length of a message is ambiguous or not supported.
#[derive(Debug, PartialEq, Eq)]
struct InvalidFraming;

/// Writes a request's head for an upstream. `without_body`: the request has no body.
///
/// # Errors
/// The status to refuse the request with.
pub(super) fn to_upstream(
    head: &Parts,
    client: &ClientAddress,
    without_body: bool,
) -> Result<RequestHead, StatusCode> {
    let headers = &head.headers;
    // An upstream's answer to TRACE would show the client the headers that the proxy added.
    if matches!(head.method, Method::CONNECT | Method::TRACE) || wants_websocket(headers) {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    let framing =
        framing(headers, without_body).map_err(|InvalidFraming| StatusCode::BAD_REQUEST)?;
    let host = Host::of(&head.uri, headers, head.version).map_err(|_| StatusCode::BAD_REQUEST)?;
    let host = host.map(|host| host.written);

    let mut bytes = Vec::with_capacity(USUAL_HEAD);
    let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    for part in [head.method.as_str(), " ", path, " HTTP/1.1\r\n"] {
        bytes.extend_from_slice(part.as_bytes());
    }
    write_field(
        &mut bytes,
        HOST.as_str(),
        host.unwrap_or_default().as_bytes(),
    );
    let named = NamedHeaders::of(values(headers, &CONNECTION));
    for (name, value) in headers {
        if is_forwarded(name) && !named.has(name.as_str()) {
            write_field(&mut bytes, name.as_str(), value.as_bytes());
        }
    }
    write_cookies(&mut bytes, headers);
    write_framing(&mut bytes, &framing, head);
    if has_token(headers, &TE, "trailers") {
        bytes.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
    if headers.contains_key(EARLY_DATA) || head.extensions.get::<SentEarly>().is_some() {
        // An intermediary must set the header for early data, and must not remove it (RFC 8470, 5.1). Any
        // other value means the same as 1.
        bytes.extend_from_slice(b"early-data: 1\r\n");
    }
    write_field(&mut bytes, "via", via(head.version));
    write_client(&mut bytes, client, host);
    bytes.extend_from_slice(b"\r\n");
    Ok(RequestHead { bytes, framing })
}

/// Makes a response for the client from an upstream's head. `bytes`: the bytes that `head` was parsed from.
///
/// `None` if a name or value is not valid.
pub(super) fn to_client(head: &ResponseHead<'_, '_>, bytes: &Bytes) -> Option<Response<()>> {
    let status = StatusCode::from_u16(head.status).ok()?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    if status.canonical_reason() != Some(head.reason) {
        let reason = bytes.slice_ref(head.reason.as_bytes());
        response
            .extensions_mut()
            .insert(ReasonPhrase::try_from(reason).ok()?);
    }
    // A response in chunks has no length, and 204 and 304 have no body.
    let loses_length = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let named = NamedHeaders::of(head.fields.iter().filter_map(connection_value));
    let headers = response.headers_mut();
    headers.reserve(head.fields.len());
    for Field { name, value } in head.fields {
        let is_removed = is_hop_by_hop(name)
            || (loses_length && name.eq_ignore_ascii_case(CONTENT_LENGTH.as_str()))
            || named.has(name);
        if !is_removed {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(value)).ok()?;
            headers.append(name, value);
        }
    }
    Some(response)
}

/// How the body of a request is sent. `without_body`: the request has no body.
///
/// # Errors
/// The length of the body is ambiguous. Two servers could read such a request in two ways (RFC 9112, 11.2).
fn framing(headers: &HeaderMap, without_body: bool) -> Result<RequestFraming, InvalidFraming> {
    let length = only(headers, &CONTENT_LENGTH)?.map(decimal).transpose()?;
    let coding = only(headers, &TRANSFER_ENCODING)?;
    if coding.is_some_and(|coding| !coding.eq_ignore_ascii_case(b"chunked")) {
        return Err(InvalidFraming);
    }
    if coding.is_some() || (length.is_none() && !without_body) {
        let trailers = tokens(values(headers, &TRAILER));
        let trailers = trailers.filter_map(|name| name.parse().ok());
        return Ok(RequestFraming::Chunked {
            trailers: trailers.filter(is_allowed_in_trailers).collect(),
        });
    }
    match length {
        Some(length) if !without_body => Ok(RequestFraming::Bytes(length)),
        None | Some(0) => Ok(RequestFraming::NoBody),
        Some(_) => Err(InvalidFraming),
    }
}

/// The value of a header that a message has at most once.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h [u8]>, InvalidFraming> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(HeaderValue::as_bytes)),
        _ => Err(InvalidFraming),
    }
}

fn decimal(digits: &[u8]) -> Result<u64, InvalidFraming> {
    let digits = std::str::from_utf8(digits).map_err(|_| InvalidFraming)?;
    // `parse` would accept a sign.
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(InvalidFraming);
    }
    digits.parse().map_err(|_| InvalidFraming)
}

/// True if a trailer with this name cannot change how the message is read (RFC 9110, 6.5.1).
fn is_allowed_in_trailers(name: &HeaderName) -> bool {
    use http::header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, MAX_FORWARDS,
        SET_COOKIE,
    };
    !matches!(
        *name,
        AUTHORIZATION
            | CACHE_CONTROL
            | CONTENT_ENCODING
            | CONTENT_LENGTH
            | CONTENT_RANGE
            | CONTENT_TYPE
            | HOST
            | MAX_FORWARDS
            | SET_COOKIE
            | TE
            | TRAILER
            | TRANSFER_ENCODING
    )
}

/// True if the client asks for WebSocket.
///
/// A server may ignore Upgrade (RFC 9110, 7.8), and most clients then continue with HTTP. A WebSocket
/// client cannot continue.
fn wants_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, &UPGRADE, "websocket")
}

/// True if a list header contains `token`, with or without parameters.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(values(headers, name))
        .filter_map(|element| element.split([';', '/']).next())
        .any(|found| found.trim().eq_ignore_ascii_case(token))
}

/// The values of a header.
fn values<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes)
}

/// The elements of the values of a list header.
fn tokens<'h>(values: impl Iterator<Item = &'h [u8]>) -> impl Iterator<Item = &'h str> {
    values
        .filter_map(|value| std::str::from_utf8(value).ok())
        .flat_map(|text| text.split(',').map(str::trim))
}

/// The headers that `Connection` names as hop-by-hop.
struct NamedHeaders<'h>(Vec<&'h str>);

impl<'h> NamedHeaders<'h> {
    /// `values`: the values of `Connection`.
    fn of(values: impl Iterator<Item = &'h [u8]>) -> Self {
        let named = tokens(values).filter(|name| {
            let is_name = |other: &&str| name.eq_ignore_ascii_case(other);
            !USUAL_OPTIONS.iter().any(is_name) && !ALWAYS_FORWARDED.iter().any(is_name)
        });
        Self(named.collect())
    }

    fn has(&self, name: &str) -> bool {
        let Self(named) = self;
        named.iter().any(|named| named.eq_ignore_ascii_case(name))
    }
}

/// The value of a field with the name `Connection`.
fn connection_value<'b>(field: &Field<'b>) -> Option<&'b [u8]> {
    let is_connection = field.name.eq_ignore_ascii_case(CONNECTION.as_str());
    is_connection.then_some(field.value)
}

fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP
        .iter()
        .any(|other| name.eq_ignore_ascii_case(other))
}

/// True if an upstream gets this header of a client unchanged.
fn is_forwarded(name: &HeaderName) -> bool {
    let is_rewritten = matches!(*name, HOST | CONTENT_LENGTH | COOKIE | EXPECT);
    let name = name.as_str();
    !is_rewritten && name != EARLY_DATA && !is_hop_by_hop(name) && !is_claim(name.as_bytes())
}

/// True for a header in which only a proxy may describe a client.
fn is_claim(name: &[u8]) -> bool {
    CLIENT_CLAIMS.iter().any(|claim| is_same_name(name, claim))
        || CLIENT_CLAIM_PREFIXES.iter().any(|claim| {
            name.get(..claim.len())
                .is_some_and(|start| is_same_name(start, claim))
        })
}

/// Compares a header's name with a name in lower case. CGI and similar interfaces map both `_` and `-` to `_`.
fn is_same_name(name: &[u8], other: &str) -> bool {
    let is_same_byte = |(byte, other)| byte == other || (byte == b'_' && other == b'-');
    name.len() == other.len() && name.iter().copied().zip(other.bytes()).all(is_same_byte)
}

pub(super) fn write_field(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}

/// Joins the cookie headers of HTTP/2 into one header for HTTP/1.1 (RFC 9113, 8.2.3).
fn write_cookies(bytes: &mut Vec<u8>, headers: &HeaderMap) {
    let mut cookies = values(headers, &COOKIE);
    if let Some(first) = cookies.next() {
        bytes.extend_from_slice(b"cookie: ");
        bytes.extend_from_slice(first);
        for cookie in cookies {
            bytes.extend_from_slice(b"; ");
            bytes.extend_from_slice(cookie);
        }
        bytes.extend_from_slice(b"\r\n");
    }
}

fn write_framing(bytes: &mut Vec<u8>, framing: &RequestFraming, head: &Parts) {
    match framing {
        RequestFraming::NoBody => {
            let method_expects_body =
                matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
            // Some servers refuse a POST without a length.
            if method_expects_body || head.headers.contains_key(CONTENT_LENGTH) {
                bytes.extend_from_slice(b"content-length: 0\r\n");
            }
        }
        RequestFraming::Bytes(length) => {
            bytes.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
        }
        RequestFraming::Chunked { .. } => {
            bytes.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
    }
}

const fn via(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_10 => b"1.0 sessile",
        Version::HTTP_2 => b"2.0 sessile",
        _ => b"1.1 sessile",
    }
}

/// Writes `Forwarded` (RFC 7239) and the equivalent `X-Forwarded-` headers.
fn write_client(bytes: &mut Vec<u8>, client: &ClientAddress, host: Option<&str>) {
    bytes.extend_from_slice(&client.lines);
    if let Some(host) = host {
        for part in [";host=\"", host, "\"\r\nx-forwarded-host: ", host] {
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    bytes.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
