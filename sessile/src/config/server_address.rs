//! The address of a `[[balance.server]]`: an IP address, a host name, or the name of SRV records.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use rustls_pki_types::DnsName;

use super::network::parse_port;

/// Where a server is, or the DNS name that says where servers are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerAddress {
    /// One server.
    Socket(SocketAddr),
    /// The name of a host, in lower case. Each of its addresses is a server with this port.
    Host { name: String, port: u16 },
    /// The name of SRV records (RFC 2782), in lower case. The records name hosts, ports and weights.
    Service(String),
}

/// The text is not the address of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAServerAddress {
    #[error(
        "which has no port; write for example \"web.shop.example:443\", or an SRV name such as \
         \"_tls._tcp.web.shop.example\""
    )]
    NoPort,
    #[error("whose port is not a number from 1 to 65535")]
    Port,
    #[error("an SRV name, whose port comes from the record; remove the port")]
    ServiceWithPort,
    #[error(
        "which is not an SRV name; write the service, the protocol and a name, such as \
         \"_tls._tcp.web.shop.example\""
    )]
    Service,
    #[error(
        "which is neither an IP address with a port nor a DNS name with a port; write for example \
         \"10.0.0.1:443\", \"[2001:db8::1]:443\" or \"web.shop.example:443\""
    )]
    Name,
}

impl ServerAddress {
    /// The address of one server. `None` for a name.
    #[must_use]
    pub const fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            Self::Host { .. } | Self::Service(_) => None,
        }
    }

    /// True if the address is a DNS name.
    #[must_use]
    pub const fn is_name(&self) -> bool {
        self.socket().is_none()
    }
}

impl FromStr for ServerAddress {
    type Err = NotAServerAddress;

    fn from_str(text: &str) -> Result<Self, NotAServerAddress> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Socket(address));
        }
        if text.starts_with('_') {
            return service(text);
        }
        let Some((name, port)) = text.rsplit_once(':') else {
            return Err(if is_dns_name(text) {
                NotAServerAddress::NoPort
            } else {
                NotAServerAddress::Name
            });
        };
        if !is_dns_name(name) {
            return Err(NotAServerAddress::Name);
        }
        let port = parse_port(port).filter(|port| *port > 0);
        Ok(Self::Host {
            name: name.to_ascii_lowercase(),
            port: port.ok_or(NotAServerAddress::Port)?,
        })
    }
}

fn service(text: &str) -> Result<ServerAddress, NotAServerAddress> {
    if text.contains(':') {
        return Err(NotAServerAddress::ServiceWithPort);
    }
    let mut labels = text.split('.');
    let prefixes = labels.by_ref().take(2);
    let has_prefixes = prefixes.filter(|label| label.starts_with('_')).count() == 2;
    let has_name = labels.next().is_some_and(|label| !label.is_empty());
    if !has_prefixes || !has_name || !is_dns_name(text) {
        return Err(NotAServerAddress::Service);
    }
    Ok(ServerAddress::Service(text.to_ascii_lowercase()))
}

/// True for a name in ASCII form. Container names have underscores, which are allowed.
fn is_dns_name(text: &str) -> bool {
    DnsName::try_from(text).is_ok()
}

impl From<SocketAddr> for ServerAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Socket(address)
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
            Self::Service(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, port: u16) -> ServerAddress {
        let name = name.to_owned();
        ServerAddress::Host { name, port }
    }

    #[test]
    fn addresses_hosts_and_services_are_told_apart() {
        let service = |name: &str| ServerAddress::Service(name.to_owned());
        for (text, expected) in [
            (
                "10.0.0.1:443",
                ServerAddress::Socket(([10, 0, 0, 1], 443).into()),
            ),
            (
                "[::1]:443",
                ServerAddress::Socket("[::1]:443".parse().unwrap()),
            ),
            ("Web.Shop.example:443", host("web.shop.example", 443)),
            ("web:8443", host("web", 8443)),
            ("web_1:1", host("web_1", 1)),
            ("web.shop.example.:65535", host("web.shop.example.", 65535)),
            (
                "_tls._tcp.Web.shop.example",
                service("_tls._tcp.web.shop.example"),
            ),
            ("_https._tcp.web", service("_https._tcp.web")),
        ] {
            let parsed: ServerAddress = text.parse().expect(text);
            assert_eq!(parsed, expected);
            assert_eq!(parsed.to_string(), text.to_ascii_lowercase());
            assert_eq!(parsed.is_name(), parsed.socket().is_none());
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        use NotAServerAddress::{Name, NoPort, Port, Service, ServiceWithPort};
        for (text, expected) in [
            ("", Name),
            ("10.0.0.1", Name),
            ("::1", Name),
            ("10.0.0.300:443", Name),
            ("1.2.3:443", Name),
            (":443", Name),
            ("web..shop:443", Name),
            ("web shop:443", Name),
            ("https://web.shop.example:443", Name),
            ("b\u{fc}cher.example:443", Name),
            ("*.shop.example:443", Name),
            ("web.shop.example", NoPort),
            ("web.shop.example:", Port),
            ("web.shop.example:0", Port),
            ("web.shop.example:65536", Port),
            ("web.shop.example:+443", Port),
            ("_tls._tcp.web.shop.example:443", ServiceWithPort),
            ("_tls.web.shop.example", Service),
            ("_tls._tcp", Service),
            ("_tls._tcp.", Service),
            ("_tls._tcp..web", Service),
        ] {
            assert_eq!(text.parse::<ServerAddress>(), Err(expected), "{text}");
        }
    }
}
