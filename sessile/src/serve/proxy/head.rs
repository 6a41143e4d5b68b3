//! Rewrites the heads of forwarded requests and responses. No I/O.
//!
//! Hop-by-hop headers are removed (RFC 9110, 7.6.1). Headers in which a client describes itself are
//! replaced by headers that describe its connection.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderName, HeaderValue, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode, Uri, Version};

use crate::serve::request::{Host, SentEarly};

const EARLY_DATA: HeaderName = HeaderName::from_static("early-data");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

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

const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");

/// Headers that belong to one connection, even if `Connection` does not name them.
static HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Most headers that the proxy adds to a request.
const MOST_ADDED: usize = 9;

/// The address of a client, and its forms in the headers for upstreams.
pub(in crate::serve) struct ClientAddress {
    pub(super) ip: IpAddr,
    written: HeaderValue,
    /// The value of `Forwarded` without the host.
    forwarded: Box<str>,
}

impl ClientAddress {
    pub(in crate::serve) fn new(ip: IpAddr) -> Self {
        // A dual-stack socket gives IPv4 clients IPv4-mapped IPv6 addresses.
        let written = ip.to_canonical().to_string();
        let forwarded = match ip.to_canonical() {
            IpAddr::V4(_) => format!("for={written};proto=https"),
            IpAddr::V6(_) => format!("for=\"[{written}]\";proto=https"),
        };
        Self {
            ip,
            written: HeaderValue::try_from(written).expect("an address is a valid header value"),
            forwarded: forwarded.into(),
        }
    }
}

/// The framing of a message is ambiguous or not supported.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidFraming;

/// Rewrites a request's head for an upstream. `without_body`: the request has no body.
///
/// # Errors
/// The status to refuse the request with.
pub(super) fn to_upstream(
    mut head: Parts,
    client: &ClientAddress,
    without_body: bool,
) -> Result<Parts, StatusCode> {
    // An upstream's answer to TRACE would show the client the headers that the proxy added.
    if matches!(head.method, Method::CONNECT | Method::TRACE) || wants_websocket(&head) {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    let chunked = is_chunked(&head.headers).map_err(|InvalidFraming| StatusCode::BAD_REQUEST)?;
    let host = host(&head)?;
    let takes_trailers = has_token(&head.headers, &TE, "trailers");
    let in_early_data =
        head.headers.contains_key(EARLY_DATA) || head.extensions.get::<SentEarly>().is_some();

    head.uri = upstream_uri(&head.uri);
    let via = via(head.version);
    head.version = Version::HTTP_11;
    let headers = &mut head.headers;
    headers.reserve(MOST_ADDED);
    remove_hop_by_hop(headers);
    remove_claims(headers);
    // hyper's server answers `Expect: 100-continue` when the body is read.
    headers.remove(EXPECT);
    join_cookies(headers);
    if chunked {
        headers.remove(CONTENT_LENGTH);
    }
    if !headers.contains_key(CONTENT_LENGTH) {
        let method_expects_body = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        if !without_body {
            // Without this header, hyper drops the body of a GET.
            headers.insert(TRANSFER_ENCODING, CHUNKED);
        } else if method_expects_body {
            // Some servers refuse a POST without a length.
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
    }
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if in_early_data {
        // An intermediary must set the header for early data, and must not remove it (RFC 8470, 5.1). Any
        // other value means the same as 1.
        headers.insert(EARLY_DATA, HeaderValue::from_static("1"));
    }
    headers.append(VIA, via);
    add_client_headers(headers, client, host);
    Ok(head)
}

/// Rewrites an upstream's response for the client.
///
/// # Errors
/// The response has ambiguous framing, or switches protocols.
pub(super) fn to_client<B>(response: &mut Response<B>) -> Result<(), InvalidFraming> {
    if response.status().is_informational() {
        // The status is 101, because hyper handles the other informational responses. The proxy never
        // asks for an upgrade.
        return Err(InvalidFraming);
    }
    let chunked = is_chunked(response.headers())?;
    *response.version_mut() = Version::HTTP_11;
    let has_no_body = matches!(
        response.status(),
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    let headers = response.headers_mut();
    remove_hop_by_hop(headers);
    if chunked || has_no_body {
        // Transfer-Encoding overrides Content-Length (RFC 9112, 6.3), and 204 and 304 have no body.
        headers.remove(CONTENT_LENGTH);
    }
    Ok(())
}

/// True if the body has the chunked transfer coding.
///
/// # Errors
/// The message has another transfer coding, several lengths or an invalid length. Two servers could read
/// such a message in two ways (RFC 9112, 11.2).
fn is_chunked(headers: &HeaderMap) -> Result<bool, InvalidFraming> {
    let only = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(HeaderValue::as_bytes)),
            _ => Err(InvalidFraming),
        }
    };
    if only(CONTENT_LENGTH)?.is_some_and(|length| !length.iter().all(u8::is_ascii_digit)) {
        return Err(InvalidFraming);
    }
    match only(TRANSFER_ENCODING)? {
        None => Ok(false),
        Some(coding) if coding.eq_ignore_ascii_case(b"chunked") => Ok(true),
        Some(_) => Err(InvalidFraming),
    }
}

/// True if the client asks for WebSocket.
///
/// A server may ignore Upgrade (RFC 9110, 7.8), and most clients then continue with HTTP. A WebSocket
/// client cannot continue.
fn wants_websocket(head: &Parts) -> bool {
    has_token(&head.headers, &UPGRADE, "websocket")
}

/// True if a list header contains `token`, with or without parameters.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name)
        .filter_map(|element| element.split([';', '/']).next())
        .any(|found| found.trim().eq_ignore_ascii_case(token))
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(',').map(str::trim))
}

/// The host of the request, with its port.
fn host(head: &Parts) -> Result<Option<HeaderValue>, StatusCode> {
    Host::of(&head.uri, &head.headers, head.version)
        .map_err(|_| StatusCode::BAD_REQUEST)?
        .map(|host| HeaderValue::try_from(host.written))
        .transpose()
        .map_err(|_| StatusCode::BAD_REQUEST)
}

/// The URI at the upstream, with the same path and query. It has no scheme and no authority.
fn upstream_uri(target: &Uri) -> Uri {
    let path = target.path_and_query().cloned();
    path.unwrap_or(PathAndQuery::from_static("/")).into()
}

fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 sessile",
        Version::HTTP_2 => "2.0 sessile",
        _ => "1.1 sessile",
    })
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let mut removed: Vec<HeaderName> = tokens(headers, &CONNECTION)
        // `keep-alive` is hop-by-hop anyway, and nearly every upstream sends it.
        .filter(|name| !name.eq_ignore_ascii_case("keep-alive"))
        .filter_map(|name| name.parse().ok())
        // Without these headers, the upstream would read another request than this server.
        .filter(|name| ![CONTENT_LENGTH, HOST, EARLY_DATA, TRAILER].contains(name))
        .collect();
    removed.extend(
        headers
            .keys()
            .filter(|name| HOP_BY_HOP.contains(name))
            .cloned(),
    );
    for name in removed {
        headers.remove(name);
    }
}

/// Removes the headers in which only a proxy may describe a client.
fn remove_claims(headers: &mut HeaderMap) {
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_claim(name))
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
}

fn is_claim(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
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

/// Joins the cookie headers of HTTP/2 into one header for HTTP/1.1 (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Adds `Forwarded` (RFC 7239), the equivalent `X-Forwarded-` headers, and `Host`.
fn add_client_headers(headers: &mut HeaderMap, client: &ClientAddress, host: Option<HeaderValue>) {
    let forwarded = match host.as_ref().and_then(|host| host.to_str().ok()) {
        Some(host) => [&client.forwarded, ";host=\"", host, "\""].concat(),
        None => client.forwarded.to_string(),
    };
    let added = [
        (FORWARDED, HeaderValue::try_from(forwarded).ok()),
        (X_FORWARDED_FOR, Some(client.written.clone())),
        (X_FORWARDED_PROTO, Some(HeaderValue::from_static("https"))),
        (X_FORWARDED_HOST, host.clone()),
        (HOST, host.or(Some(HeaderValue::from_static("")))),
    ];
    for (name, value) in added {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests;
