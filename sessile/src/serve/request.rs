//! Reads the host of a request and the content of a refused request, finds the last request of a connection,
//! and marks requests from early data.
//!
//! If an upstream read another host than this server, the upstream would serve another site. Requests with
//! an ambiguous host are therefore refused.

use std::net::Ipv6Addr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap};
use http::{Request, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use crate::config::parse_port;

/// Most bytes that are read of the content of a refused request.
const MAX_DISCARDED: usize = 64 * 1024;

/// How long a refused request may take to send its content.
const DISCARD_DEADLINE: Duration = Duration::from_millis(500);

/// Marks a request that came as TLS early data, which an attacker can replay.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentEarly;

/// True if an HTTP/2 request gives its length more than once. In HTTP/1, `guarded_stream` finds the second
/// length.
pub(super) fn has_two_lengths(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some()
}

/// The host of a request is missing, invalid or ambiguous.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidHost;

/// The host of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Host<'r> {
    /// The host with its port, as the client wrote it.
    pub(super) written: &'r str,
    /// The host without its port and without a final dot.
    pub(super) name: &'r str,
}

impl<'r> Host<'r> {
    /// Reads the host from the request target or the `Host` header.
    ///
    /// `None` if an HTTP/1.0 request has no host.
    ///
    /// # Errors
    /// The host is missing, invalid or ambiguous.
    pub(super) fn of(
        target: &'r Uri,
        headers: &'r HeaderMap,
        version: Version,
    ) -> Result<Option<Self>, InvalidHost> {
        let written = Self::find(target, headers, version)?;
        written.map(Self::read).transpose()
    }

    /// The host as the client wrote it. It may be invalid.
    ///
    /// `None` if an HTTP/1.0 request has no host.
    ///
    /// # Errors
    /// The host is missing or ambiguous.
    pub(super) fn find(
        target: &'r Uri,
        headers: &'r HeaderMap,
        version: Version,
    ) -> Result<Option<&'r str>, InvalidHost> {
        let mut host_headers = headers.get_all(HOST).iter();
        let host_header = host_headers.next();
        if host_headers.next().is_some() {
            return Err(InvalidHost);
        }
        // The target overrides the header (RFC 9112, 3.2.2, and RFC 9113, 8.3.1).
        match (target.authority(), host_header) {
            (Some(authority), _) => Ok(Some(authority.as_str())),
            (None, Some(host)) => host.to_str().map(Some).map_err(|_| InvalidHost),
            (None, None) if version == Version::HTTP_10 => Ok(None),
            (None, None) => Err(InvalidHost),
        }
    }

    /// Parses an address or a name, with an optional port (RFC 9110, 7.2).
    ///
    /// A URI allows more characters in a name than DNS has. A name with these characters is refused.
    pub(super) fn read(written: &'r str) -> Result<Self, InvalidHost> {
        let (name, port) = match written.strip_prefix('[') {
            Some(address) => {
                let (address, port) = address.split_once(']').ok_or(InvalidHost)?;
                address.parse::<Ipv6Addr>().map_err(|_| InvalidHost)?;
                (&written[..address.len() + 2], port)
            }
            None => {
                let (name, port) = written.split_at(written.find(':').unwrap_or(written.len()));
                let name = name.strip_suffix('.').unwrap_or(name);
                if !is_name(name) {
                    return Err(InvalidHost);
                }
                (name, port)
            }
        };
        if !is_end_of_host(port) {
            return Err(InvalidHost);
        }
        Ok(Self { written, name })
    }
}

/// True if the host is a known valid name, with or without a port. A name in another case is not found.
pub(super) fn is_host_named(written: &str, name: &str) -> bool {
    written.strip_prefix(name).is_some_and(is_end_of_host)
}

/// True for the part of a host behind its name: nothing, or a colon and a port. The port may be empty.
fn is_end_of_host(port: &str) -> bool {
    let Some(digits) = port.strip_prefix(':') else {
        return port.is_empty();
    };
    digits.is_empty() || parse_port(digits).is_some()
}

/// True for labels with dots between them. No label is empty.
fn is_name(name: &str) -> bool {
    let mut previous = b'.';
    name.bytes().all(|byte| {
        let is_allowed = match byte {
            b'.' => previous != b'.',
            b'-' | b'_' => true,
            _ => byte.is_ascii_alphanumeric(),
        };
        previous = byte;
        is_allowed
    }) && previous != b'.'
}

/// True if the client asked to close the connection after this request, and the request has no content.
pub(super) fn is_last<B: Body>(request: &Request<B>) -> bool {
    let asks = |option: &str| {
        let values = request.headers().get_all(CONNECTION).iter();
        let mut options = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        options.any(|written| written.trim().eq_ignore_ascii_case(option))
    };
    let ends = match request.version() {
        Version::HTTP_11 => asks("close"),
        Version::HTTP_10 => !asks("keep-alive"),
        _ => false,
    };
    ends && request.body().is_end_stream()
}

/// Reads the content of a refused request.
///
/// A client that frames the content wrongly gets an error of its stream (RFC 9113, 8.1.1). If the response left
/// first, the client would not get this error.
pub(super) async fn discard_content(mut content: Incoming) {
    let discard = async {
        let mut left = MAX_DISCARDED;
        while let Some(Ok(frame)) = content.frame().await
            && let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len))
        {
            left = rest;
        }
    };
    // A client may wait for the response before it sends the content.
    let _ = tokio::time::timeout(DISCARD_DEADLINE, discard).await;
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;
    use http::HeaderValue;

    fn name(written: &str) -> Result<&str, InvalidHost> {
        Host::read(written).map(|host| host.name)
    }

    #[test]
    fn port_and_final_dot_are_removed_from_the_name() {
        for (written, expected) in [
            ("a.example", "a.example"),
            ("A.example", "A.example"),
            ("a.example.", "a.example"),
            ("a.example.:443", "a.example"),
            ("a.example:8443", "a.example"),
            ("a.example:", "a.example"),
            ("a_b-c.example", "a_b-c.example"),
            ("192.0.2.1:443", "192.0.2.1"),
            ("[2001:db8::1]:443", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(name(written), Ok(expected), "{written}");
        }
    }

    #[test]
    fn a_known_name_is_found_with_and_without_a_port() {
        for (written, is_found) in [
            ("a.example", true),
            ("a.example:", true),
            ("a.example:8443", true),
            ("a.example:65536", false),
            ("a.example:+1", false),
            ("a.example.", false),
            ("a.examples", false),
            ("a.example@b", false),
            ("b.a.example", false),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(is_host_named(written, "a.example"), is_found, "{written}");
        }
    }

    #[test]
    fn invalid_hosts_are_refused() {
        for written in [
            "",
            ".",
            ":443",
            "a..",
            "a..b",
            ".a",
            "a:b",
            "a:1:2",
            "a:65536",
            "a:+1",
            "[a]",
            "[::1",
            "[::1]a",
            "[::1].",
            "[::1%25lo]",
            "::1",
            "a;",
            "a b",
            "a@b",
            "a/b",
            "a,b",
            "%61",
            "*.a",
            "a\\b",
            "a\"",
        ] {
            assert_eq!(name(written), Err(InvalidHost), "{written}");
        }
    }

    #[test]
    fn a_host_is_required_and_the_target_overrides_the_header() {
        let relative = Uri::from_static("/a");
        let absolute = Uri::from_static("https://Target.example/a");
        let mut headers = HeaderMap::new();
        let no_headers = HeaderMap::new();
        let without_header = |version| Host::of(&relative, &no_headers, version);
        assert_eq!(without_header(Version::HTTP_10), Ok(None));
        assert_eq!(without_header(Version::HTTP_11), Err(InvalidHost));
        assert_eq!(without_header(Version::HTTP_2), Err(InvalidHost));
        headers.append(HOST, HeaderValue::from_static("a.example"));
        let written = |target: &Uri, headers: &HeaderMap| {
            let host = Host::of(target, headers, Version::HTTP_11)?;
            Ok(host.map(|host| host.written.to_owned()))
        };
        assert_eq!(
            written(&relative, &headers),
            Ok(Some("a.example".to_owned()))
        );
        assert_eq!(
            written(&absolute, &headers),
            Ok(Some("Target.example".to_owned()))
        );
        headers.append(HOST, HeaderValue::from_static("a.example"));
        assert_eq!(written(&relative, &headers), Err(InvalidHost));
    }

    #[test]
    fn a_request_is_the_last_if_it_asks_to_close_and_has_no_content() {
        let is_last_of = |version, connection: &str, content: &'static str| {
            let request = Request::builder()
                .version(version)
                .header(CONNECTION, connection);
            is_last(&request.body(Full::<Bytes>::from(content)).expect("valid"))
        };
        assert!(is_last_of(Version::HTTP_11, "close", ""));
        assert!(is_last_of(Version::HTTP_11, "TE, Close", ""));
        assert!(is_last_of(Version::HTTP_10, "te", ""));
        assert!(!is_last_of(Version::HTTP_11, "keep-alive", ""));
        assert!(!is_last_of(Version::HTTP_10, "Keep-Alive", ""));
        assert!(!is_last_of(Version::HTTP_2, "close", ""));
        assert!(!is_last_of(Version::HTTP_11, "close", "content"));
    }
}
