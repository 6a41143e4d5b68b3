//! Writes the heads of forwarded requests, and rewrites the heads of responses. Does no I/O.
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
use sessile_proto::response_head::{Field, ResponseHead, content_length};

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

/// The complete names of more such headers.
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

/// Most bytes that a request's head usually has.
const USUAL_HEAD: usize = 1024;

/// The address of a client, and the headers for upstreams that depend only on this address.
pub(in crate::serve) struct ClientAddress {
    pub(super) ip: IpAddr,
    /// The complete lines, and the beginning of the line with `Forwarded`.
    lines: Box<[u8]>,
}

impl ClientAddress {
    pub(in crate::serve) fn new(ip: IpAddr) -> Self {
        // A PROXY header can have an IPv4 address in IPv6 form.
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
    /// `None` if the request has no body.
    pub(super) framing: Option<BodyFraming>,
}

/// How the body of a request is sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyFraming {
    /// The body has this many bytes left.
    Bytes(u64),
    /// The body is sent in chunks, and can have these trailers.
    Chunked(Vec<HeaderName>),
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
    let own = OwnHeaders::of(&head.headers).map_err(|InvalidFraming| StatusCode::BAD_REQUEST)?;
    // An upstream's answer to TRACE would show the client the headers that the proxy added.
    if matches!(head.method, Method::CONNECT | Method::TRACE) || own.wants_websocket {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    let framing = own
        .framing(without_body)
        .map_err(|InvalidFraming| StatusCode::BAD_REQUEST)?;
    let host = Host::of(&head.uri, &head.headers, head.version);
    let host = host.map_err(|_| StatusCode::BAD_REQUEST)?;
    let host = host.map(|host| host.written);

    let mut bytes = Vec::with_capacity(USUAL_HEAD);
    let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    // A URL such as `https://host?query` has no path, but a request must have one (RFC 9112, 3.2.1).
    let root = if target.starts_with(['/', '*']) {
        ""
    } else {
        "/"
    };
    let first_line = [head.method.as_str(), " ", root, target, " HTTP/1.1\r\n"];
    for part in first_line {
        bytes.extend_from_slice(part.as_bytes());
    }
    write_field(&mut bytes, "host", host.unwrap_or_default().as_bytes());
    for (name, value) in &head.headers {
        if is_forwarded(name) && !own.named.has(name.as_str()) {
            write_field(&mut bytes, name.as_str(), value.as_bytes());
        }
    }
    if own.has_cookies && !own.named.has(COOKIE.as_str()) {
        write_cookies(&mut bytes, &head.headers);
    }
    write_framing(
        &mut bytes,
        framing.as_ref(),
        &head.method,
        own.length.is_some(),
    );
    if own.takes_trailers {
        bytes.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
    if own.is_early || head.extensions.get::<SentEarly>().is_some() {
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
    let mut named = NamedHeaders::default();
    for Field { name, value } in head.fields {
        if name.eq_ignore_ascii_case(CONNECTION.as_str()) {
            named.add(value);
        }
    }
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

/// The headers of a request that are about its connection and its body.
#[derive(Default)]
struct OwnHeaders<'h> {
    length: Option<&'h [u8]>,
    coding: Option<&'h [u8]>,
    /// The values of `Trailer`.
    trailers: Vec<&'h [u8]>,
    named: NamedHeaders<'h>,
    wants_websocket: bool,
    takes_trailers: bool,
    has_cookies: bool,
    /// True if the request was early data at another server.
    is_early: bool,
}

impl<'h> OwnHeaders<'h> {
    /// # Errors
    /// The request has several lengths. Two servers could read it in two ways (RFC 9112, 11.2).
    fn of(headers: &'h HeaderMap) -> Result<Self, InvalidFraming> {
        let mut own = Self::default();
        for (name, value) in headers {
            let value = value.as_bytes();
            let earlier = match *name {
                CONTENT_LENGTH => own.length.replace(value),
                TRANSFER_ENCODING => own.coding.replace(value),
                _ => None,
            };
            if earlier.is_some() {
                return Err(InvalidFraming);
            }
            match *name {
                CONNECTION => own.named.add(value),
                COOKIE => own.has_cookies = true,
                TE => own.takes_trailers |= has_token(value, "trailers"),
                TRAILER => own.trailers.push(value),
                // A server may ignore Upgrade (RFC 9110, 7.8), and most clients then continue with HTTP. A
                // WebSocket client cannot continue.
                UPGRADE => own.wants_websocket |= has_token(value, "websocket"),
                _ => own.is_early |= name.as_str() == EARLY_DATA,
            }
        }
        Ok(own)
    }

    /// How the body is sent. `without_body`: the request has no body.
    ///
    /// # Errors
    /// The length of the body is invalid, or the transfer coding is not supported.
    fn framing(&self, without_body: bool) -> Result<Option<BodyFraming>, InvalidFraming> {
        let length = self
            .length
            .map(|length| content_length(length).ok_or(InvalidFraming))
            .transpose()?;
        if let Some(coding) = self.coding
            && !coding.eq_ignore_ascii_case(b"chunked")
        {
            return Err(InvalidFraming);
        }
        if self.coding.is_some() || (length.is_none() && !without_body) {
            let trailers = self.trailers.iter().flat_map(|value| tokens(value));
            let trailers = trailers.filter_map(|name| name.parse().ok());
            let allowed = trailers.filter(is_allowed_in_trailers).collect();
            return Ok(Some(BodyFraming::Chunked(allowed)));
        }
        match length {
            Some(length) if !without_body => Ok(Some(BodyFraming::Bytes(length))),
            None | Some(0) => Ok(None),
            Some(_) => Err(InvalidFraming),
        }
    }
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

/// True if the value of a list header contains `token`, with or without parameters.
fn has_token(value: &[u8], token: &str) -> bool {
    tokens(value)
        .filter_map(|element| element.split([';', '/']).next())
        .any(|found| found.trim().eq_ignore_ascii_case(token))
}

/// The elements of the value of a list header.
fn tokens(value: &[u8]) -> impl Iterator<Item = &str> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    text.split(',').map(str::trim)
}

/// The headers that `Connection` names as hop-by-hop.
#[derive(Default)]
struct NamedHeaders<'h>(Vec<&'h str>);

impl<'h> NamedHeaders<'h> {
    /// Adds the headers that a value of `Connection` names.
    fn add(&mut self, value: &'h [u8]) {
        if is_usual_option(value) {
            return;
        }
        let Self(named) = self;
        named.extend(tokens(value).filter(|name| {
            let is_name = |other: &&str| name.eq_ignore_ascii_case(other);
            !is_usual_option(name.as_bytes()) && !ALWAYS_FORWARDED.iter().any(is_name)
        }));
    }

    fn has(&self, name: &str) -> bool {
        let Self(named) = self;
        named.iter().any(|named| named.eq_ignore_ascii_case(name))
    }
}

/// True for the options of `Connection` that nearly every message has. They name no other header.
fn is_usual_option(option: &[u8]) -> bool {
    option.eq_ignore_ascii_case(b"keep-alive") || option.eq_ignore_ascii_case(b"close")
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
    // Few headers begin with the first letter of a claim.
    if !matches!(name.first(), Some(b'c' | b'f' | b's' | b'x')) {
        return false;
    }
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
    bytes.extend_from_slice(b"cookie: ");
    for (index, cookie) in headers.get_all(COOKIE).iter().enumerate() {
        if index > 0 {
            bytes.extend_from_slice(b"; ");
        }
        bytes.extend_from_slice(cookie.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
}

/// `has_length`: the client's request has a length.
fn write_framing(
    bytes: &mut Vec<u8>,
    framing: Option<&BodyFraming>,
    method: &Method,
    has_length: bool,
) {
    match framing {
        None => {
            let method_expects_body = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
            // Some servers refuse a POST without a length.
            if method_expects_body || has_length {
                bytes.extend_from_slice(b"content-length: 0\r\n");
            }
        }
        Some(BodyFraming::Bytes(length)) => {
            bytes.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
        }
        Some(BodyFraming::Chunked(_)) => {
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
