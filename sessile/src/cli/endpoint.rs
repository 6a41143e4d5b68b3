//! The addresses on the command line of a probe.

use std::net::IpAddr;

use crate::config::parse_port;

/// `HOST`, `HOST:PORT`, `IP`, `[IPv6]` or `[IPv6]:PORT`; or a URL with one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// The host without brackets.
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

impl std::str::FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => {
                rest.split(['/', '?', '#']).next().unwrap_or_default()
            }
            Some(_) => return Err("the probe tests TLS: give an https:// URL, or HOST:PORT"),
            None => text,
        };
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (host, port) = match bracketed {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (
                host,
                Some(rest.strip_prefix(':').ok_or("expected [IPv6]:PORT")?),
            ),
            // An IPv6 address without brackets.
            None if text.parse::<IpAddr>().is_ok() => (text, None),
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let is_ip = host.parse::<IpAddr>().is_ok();
        if host.is_empty() || (host.contains(['/', '[', ']', ':', '@']) && !is_ip) {
            return Err("expected HOST:PORT or https://HOST:PORT/");
        }
        let port = match port.map(parse_port) {
            None => None,
            Some(Some(0) | None) => return Err("the port is a number from 1 to 65535"),
            Some(port) => port,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// One endpoint, or several with commas between them. A URL is one endpoint, because its path may have commas.
#[derive(Clone, Debug)]
pub(super) struct Endpoints(pub(super) Vec<Endpoint>);

impl std::str::FromStr for Endpoints {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let endpoints = if text.contains("://") {
            vec![text.parse()?]
        } else {
            text.split(',').map(str::parse).collect::<Result<_, _>>()?
        };
        Ok(Self(endpoints))
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_parsed_and_displayed_in_every_form() {
        for (text, host, port) in [
            ("farm.test:8443", "farm.test", Some(8443)),
            ("farm.test", "farm.test", None),
            ("192.0.2.1", "192.0.2.1", None),
            ("[2001:db8::1]:443", "2001:db8::1", Some(443)),
            ("[2001:db8::1]", "2001:db8::1", None),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, port));
            assert_eq!(endpoint.to_string(), text);
        }
        for (text, displayed) in [
            ("2001:db8::1", "[2001:db8::1]"),
            ("https://farm.test", "farm.test"),
            ("HTTPS://farm.test:8443/a?b#c", "farm.test:8443"),
            ("https://[::1]:8443/https://other.test/", "[::1]:8443"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), displayed, "{text}");
        }
    }

    #[test]
    fn invalid_endpoints_are_refused() {
        for text in [
            "",
            ":443",
            "h:",
            "h:0",
            "h:65536",
            "h:+1",
            "https://",
            "https:///path",
            "https://user@h/",
            "http://h/",
            "h/path",
            "[::1]443",
            "[::1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn commas_separate_endpoints_but_not_the_parts_of_a_url() {
        let count = |text: &str| text.parse::<Endpoints>().map(|endpoints| endpoints.0.len());
        assert_eq!(count("192.0.2.1,farm.test:8443"), Ok(2));
        assert_eq!(count("https://farm.test/a,b"), Ok(1));
        assert!(count("192.0.2.1,").is_err());
    }
}
