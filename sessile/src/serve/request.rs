//! Facts of a request: the host that it asks for, and whether it came as early data.
//!
//! An upstream that reads the host in another way would serve another site. So there is one way to read
//! it, and a request whose host can be read in two ways is refused.

use std::net::Ipv6Addr;

use http::header::{HOST, HeaderMap};
use http::{Uri, Version};

/// Marks a request that came as TLS early data: somebody can have recorded it and can send it again.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentEarly;

/// The host of a request is missing, or can be read in two ways.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unclear;

/// The host of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Host<'r> {
    /// With its port, as the client wrote it.
    pub(super) written: &'r str,
    /// Without port, and without the dot that ends a name.
    pub(super) name: &'r str,
}

impl<'r> Host<'r> {
    /// The host of a request with this target and these headers; only HTTP/1.0 has requests without one.
    pub(super) fn of(
        target: &'r Uri,
        headers: &'r HeaderMap,
        version: Version,
    ) -> Result<Option<Self>, Unclear> {
        let mut named = headers.get_all(HOST).iter();
        let (first, second) = (named.next(), named.next());
        if second.is_some() {
            return Err(Unclear);
        }
        // RFC 9112, 3.2.2 and RFC 9113, 8.3.1: the one in the target counts.
        match (target.authority(), first) {
            (Some(authority), _) => Self::read(authority.as_str()).map(Some),
            (None, Some(host)) => Self::read(host.to_str().map_err(|_| Unclear)?).map(Some),
            (None, None) if version == Version::HTTP_10 => Ok(None),
            (None, None) => Err(Unclear),
        }
    }

    /// RFC 9110, 7.2: an address or a name, and a port. Names are those that hosts have, no other text
    /// that would be allowed in a URI.
    fn read(written: &'r str) -> Result<Self, Unclear> {
        let (name, port) = match written.strip_prefix('[') {
            Some(address) => {
                let (address, port) = address.split_once(']').ok_or(Unclear)?;
                address.parse::<Ipv6Addr>().map_err(|_| Unclear)?;
                (&written[..address.len() + 2], port)
            }
            None => {
                let (name, port) = written.split_at(written.find(':').unwrap_or(written.len()));
                let name = name.strip_suffix('.').unwrap_or(name);
                if !name.split('.').all(is_label) {
                    return Err(Unclear);
                }
                (name, port)
            }
        };
        let digits = match port {
            "" => "",
            port => port.strip_prefix(':').ok_or(Unclear)?,
        };
        let is_port = digits.bytes().all(|digit| digit.is_ascii_digit());
        if !is_port || (!digits.is_empty() && digits.parse::<u16>().is_err()) {
            return Err(Unclear);
        }
        Ok(Self { written, name })
    }
}

fn is_label(label: &str) -> bool {
    let mut bytes = label.bytes();
    !label.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn name(written: &str) -> Result<&str, Unclear> {
        Host::read(written).map(|host| host.name)
    }

    #[test]
    fn port_and_last_dot_are_no_part_of_the_name() {
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
    fn what_is_no_host_is_none() {
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
            assert_eq!(name(written), Err(Unclear), "{written}");
        }
    }

    #[test]
    fn one_host_is_needed_and_the_targets_counts() {
        let here = Uri::from_static("/a");
        let whole = Uri::from_static("https://Target.example/a");
        let mut headers = HeaderMap::new();
        let none = |version| Host::of(&here, &HeaderMap::new(), version).map(|host| host.is_some());
        assert_eq!(none(Version::HTTP_10), Ok(false));
        assert_eq!(none(Version::HTTP_11), Err(Unclear));
        assert_eq!(none(Version::HTTP_2), Err(Unclear));
        headers.append(HOST, HeaderValue::from_static("a.example"));
        let written = |target: &Uri, headers: &HeaderMap| {
            let host = Host::of(target, headers, Version::HTTP_11)?;
            Ok(host.map(|host| host.written.to_owned()))
        };
        assert_eq!(written(&here, &headers), Ok(Some("a.example".to_owned())));
        let target = written(&whole, &headers);
        assert_eq!(target, Ok(Some("Target.example".to_owned())));
        headers.append(HOST, HeaderValue::from_static("a.example"));
        assert_eq!(written(&here, &headers), Err(Unclear));
    }
}
