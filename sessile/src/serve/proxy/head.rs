//! What goes on of a message's head: all but what belongs to one connection (RFC 9110, 7.6.1), and in
//! place of what a client says about itself what is known about it. No I/O.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderName, HeaderValue, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Response, StatusCode, Uri, Version};

use crate::serve::request::{Host, SentEarly};

const EARLY_DATA: HeaderName = HeaderName::from_static("early-data");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// How headers begin by which proxies say who a client is: where it is, and whose certificate it has shown.
const CLAIMS: [&str; 5] = [
    "x-forwarded-",
    "client-cert",
    "x-client-cert",
    "x-ssl-client-",
    "ssl-client-",
];

const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");

/// Belong to one connection, whether `Connection` names them or not.
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Names the one upstream of a client's pool; never sent, never looked up.
const POOL: Authority = Authority::from_static("upstream.invalid");

/// A response that cannot be handed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfit;

/// A request as the upstream gets it, or the status it is refused with.
pub(super) fn to_upstream(
    mut head: Parts,
    client: IpAddr,
    without_body: bool,
) -> Result<Parts, StatusCode> {
    // TRACE would show a client what is said to the upstream about it.
    if matches!(head.method, Method::CONNECT | Method::TRACE) || wants_websocket(&head) {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    let chunked = is_chunked(&head.headers).map_err(|Unfit| StatusCode::BAD_REQUEST)?;
    let host = host(&head)?;
    let takes_trailers = has_token(&head.headers, &TE, "trailers");
    let in_early_data =
        head.headers.contains_key(EARLY_DATA) || head.extensions.get::<SentEarly>().is_some();

    head.uri = uri(&head.uri)?;
    let via = via(head.version);
    head.version = Version::HTTP_11;
    let headers = &mut head.headers;
    remove_hop_by_hop(headers);
    remove_claims(headers);
    // This server has answered it itself, or will when the body is asked for.
    headers.remove(EXPECT);
    join_cookies(headers);
    if chunked {
        headers.remove(CONTENT_LENGTH);
    }
    if !headers.contains_key(CONTENT_LENGTH) {
        // Said outright: the client library takes a GET whose length is not given for one without a
        // body, and some servers want a length of what has one as a rule.
        match head.method {
            _ if !without_body => {
                headers.insert(TRANSFER_ENCODING, CHUNKED);
            }
            Method::POST | Method::PUT | Method::PATCH => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            _ => {}
        }
    }
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if in_early_data {
        // RFC 8470, 5.1: set for what came in early data, never taken off, and whatever it says, 1.
        headers.insert(EARLY_DATA, HeaderValue::from_static("1"));
    }
    headers.append(VIA, via);
    say_who(headers, client, host);
    Ok(head)
}

/// Makes of an upstream's response one that goes to the client.
pub(super) fn to_client<B>(response: &mut Response<B>) -> Result<(), Unfit> {
    if response.status().is_informational() {
        // A change of protocols that nobody asked for.
        return Err(Unfit);
    }
    let chunked = is_chunked(response.headers())?;
    *response.version_mut() = Version::HTTP_11;
    let empty = matches!(
        response.status(),
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    let headers = response.headers_mut();
    remove_hop_by_hop(headers);
    if chunked || empty {
        // The chunks' length counts (RFC 9112, 6.3); and where there is no body, none.
        headers.remove(CONTENT_LENGTH);
    }
    Ok(())
}

/// Whether a body comes in chunks. Any other transfer coding would have to be taken off, and a length
/// that is said twice may be read in two ways.
fn is_chunked(headers: &HeaderMap) -> Result<bool, Unfit> {
    let only = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(HeaderValue::as_bytes)),
            _ => Err(Unfit),
        }
    };
    if only(CONTENT_LENGTH)?.is_some_and(|length| !length.iter().all(u8::is_ascii_digit)) {
        return Err(Unfit);
    }
    match only(TRANSFER_ENCODING)? {
        None => Ok(false),
        Some(coding) if coding.eq_ignore_ascii_case(b"chunked") => Ok(true),
        Some(_) => Err(Unfit),
    }
}

/// A client that asks for another protocol can do without it, but for this one (RFC 9110, 7.8).
fn wants_websocket(head: &Parts) -> bool {
    has_token(&head.headers, &UPGRADE, "websocket")
}

/// Whether a header, which is a list, has this in it, with or without parameters.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|its| {
        let its = its.split([';', '/']).next().unwrap_or(its);
        its.trim().eq_ignore_ascii_case(token)
    })
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(name).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',').map(str::trim))
}

/// The host that is asked for, with its port.
fn host(head: &Parts) -> Result<Option<HeaderValue>, StatusCode> {
    let host = Host::of(&head.uri, &head.headers, head.version);
    let host = host.map_err(|_| StatusCode::BAD_REQUEST)?;
    let value = host.map(|host| HeaderValue::try_from(host.written));
    value.transpose().map_err(|_| StatusCode::BAD_REQUEST)
}

/// The same path and query, at the upstream.
fn uri(asked: &Uri) -> Result<Uri, StatusCode> {
    let path = asked.path_and_query().cloned();
    Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(POOL)
        .path_and_query(path.unwrap_or(PathAndQuery::from_static("/")))
        .build()
        .map_err(|_| StatusCode::BAD_REQUEST)
}

fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 sessile",
        Version::HTTP_2 => "2.0 sessile",
        _ => "1.1 sessile",
    })
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|name| name.parse().ok())
        // What says how long a message is, whose it is and that it may be a replay goes on: a client
        // that could take it out would have the upstream read another request than this one.
        .filter(|name| ![CONTENT_LENGTH, HOST, EARLY_DATA, TRAILER].contains(name))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Removes what a client says about itself and only a proxy may say.
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
    // Behind CGI and its likes, `_` and `-` are the same.
    let name = name.as_str().replace('_', "-");
    matches!(&*name, "forwarded" | "x-real-ip")
        || CLAIMS.iter().any(|claim| name.starts_with(claim))
}

/// HTTP/2 clients may send one cookie in each line; HTTP/1.1 has them in one (RFC 9113, 8.2.3).
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

/// Says whose request it is: `Forwarded` (RFC 7239), and the same as most programs know it.
fn say_who(headers: &mut HeaderMap, client: IpAddr, host: Option<HeaderValue>) {
    // A socket for both families has clients of IPv4 in the form of IPv6.
    let client = client.to_canonical();
    let node = match client {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    let mut forwarded = format!("for={node};proto=https");
    if let Some(host) = host.as_ref().and_then(|host| host.to_str().ok()) {
        forwarded += &format!(";host=\"{host}\"");
    }
    let said = [
        (FORWARDED, HeaderValue::try_from(forwarded).ok()),
        (
            X_FORWARDED_FOR,
            HeaderValue::try_from(client.to_string()).ok(),
        ),
        (X_FORWARDED_PROTO, Some(HeaderValue::from_static("https"))),
        (X_FORWARDED_HOST, host.clone()),
        (HOST, host.or(Some(HeaderValue::from_static("")))),
    ];
    for (name, value) in said {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests;
