//! The text forms of addresses to listen on, and of networks (`proxy-trusted`). No name is looked up.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Parses an address to listen on: `IP:PORT`, `localhost:PORT` (127.0.0.1), or `:PORT`.
///
/// `:PORT` is `[::]:PORT`, which on Linux takes IPv4 clients too.
#[must_use]
pub fn parse_listen_address(text: &str) -> Option<SocketAddr> {
    match text.rsplit_once(':')? {
        ("", port) => Some((Ipv6Addr::UNSPECIFIED, parse_port(port)?).into()),
        ("localhost", port) => Some((Ipv4Addr::LOCALHOST, parse_port(port)?).into()),
        _ => text.parse().ok(),
    }
}

/// Parses a port: digits only.
#[must_use]
pub fn parse_port(text: &str) -> Option<u16> {
    // The parser of the standard library takes a plus sign too.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// True if two addresses to listen on have clients in common, so that only one of them can be bound.
#[must_use]
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |ip: IpAddr, other: IpAddr| match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => other.is_ipv4(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
        ip => ip == other,
    };
    let (one_ip, other_ip) = (one.ip(), other.ip());
    one.port() == other.port() && (covers(one_ip, other_ip) || covers(other_ip, one_ip))
}

/// A network, or one address: `10.0.0.0/8`, `2001:db8::/32`, `192.0.2.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// All bits after the prefix are zero.
    address: IpAddr,
    prefix: u8,
}

/// The text is not a network.
#[derive(Debug, PartialEq, Eq)]
pub struct NotANetwork;

impl Network {
    /// True if the address is in the network. An IPv4 address in IPv6 form, which a PROXY header can have, counts
    /// as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address.to_canonical(), self.prefix) == Some(self.address)
    }
}

/// The address with zeroes after the prefix. `None`: the address has fewer bits than the prefix.
fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let rest = 32u32.checked_sub(prefix.into())?;
            let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
            Some(IpAddr::V4((address.to_bits() & mask).into()))
        }
        IpAddr::V6(address) => {
            let rest = 128u32.checked_sub(prefix.into())?;
            let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
            Some(IpAddr::V6((address.to_bits() & mask).into()))
        }
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| NotANetwork)?,
            None if address.is_ipv4() => 32,
            None => 128,
        };
        // If a bit after the prefix is set, either the address or the prefix is a mistake.
        match masked(address, prefix) {
            Some(same) if same == address => Ok(Self { address, prefix }),
            _ => Err(NotANetwork),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_can_have_a_port_alone_or_localhost() {
        for (text, address) in [
            (":8443", Some("[::]:8443")),
            ("localhost:8443", Some("127.0.0.1:8443")),
            ("0.0.0.0:443", Some("0.0.0.0:443")),
            ("[::1]:0", Some("[::1]:0")),
            ("8443", None),
            ("localhost", None),
            ("localhost:", None),
            (":65536", None),
            (":+8443", None),
            ("localhost:+8443", None),
            ("farm.test:443", None),
            ("::1", None),
        ] {
            let expected = address.map(|address| address.parse().expect("an address"));
            assert_eq!(parse_listen_address(text), expected, "{text}");
        }
    }

    #[test]
    fn an_unspecified_address_overlaps_the_addresses_of_its_family() {
        for (one, other, expected) in [
            ("0.0.0.0:443", "[::]:443", true),
            ("[::]:443", "[::1]:443", true),
            ("[::]:443", "192.0.2.1:443", true),
            ("127.0.0.1:443", "0.0.0.0:443", true),
            ("0.0.0.0:443", "[::1]:443", false),
            ("192.0.2.1:443", "192.0.2.2:443", false),
            ("[::]:443", "[::]:444", false),
        ] {
            let [first, second] = [one, other].map(|text| text.parse().expect("an address"));
            assert_eq!(overlap(first, second), expected, "{one} {other}");
            assert_eq!(overlap(second, first), expected, "{other} {one}");
        }
    }

    #[test]
    fn a_network_contains_the_addresses_with_its_prefix() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "::2"),
        ] {
            let parsed: Network = network.parse().expect(network);
            let contains = |ip: &str| parsed.contains(ip.parse().expect("an address"));
            assert!(contains(inside) && !contains(outside), "{network}");
        }
    }

    #[test]
    fn ambiguous_networks_are_refused() {
        for text in [
            "",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "::/129",
            "10.0.0/8",
            "farm.test",
            "/8",
            "10.0.0.0/-1",
            "10.0.0.0/8 ",
        ] {
            assert_eq!(text.parse::<Network>(), Err(NotANetwork), "{text}");
        }
    }
}
