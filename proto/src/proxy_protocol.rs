//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`): a header with the addresses of the
//! client's connection. The caller decides which senders it trusts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header, in bytes. The fixed part and IPv6 addresses take 52 bytes. The fields that proxies add
/// take a few hundred bytes.
pub const MAX_LEN: usize = 4096;

/// Longest header of version 1, in bytes, with the end of line.
const V1_MAX_LEN: usize = 107;

const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of the fixed part of version 2: start, version and command, family, length.
const V2_FIXED_LEN: usize = 16;

mod command {
    pub(super) const LOCAL: u8 = 0x20;
    pub(super) const PROXY: u8 = 0x21;
}

mod family {
    pub(super) const TCP4: u8 = 0x11;
    pub(super) const TCP6: u8 = 0x21;
}

/// Types of the fields after the addresses. A field is a type, two bytes of length and a value.
mod tlv {
    pub(super) const ALPN: u8 = 0x01;
    pub(super) const AUTHORITY: u8 = 0x02;
    pub(super) const CRC32C: u8 = 0x03;
}

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary, with the server name and the application protocol of the client's hello.
    V2,
}

/// The two ends of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client's address.
    pub source: SocketAddr,
    /// The address that the client connected to.
    pub destination: SocketAddr,
}

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The length of the header. The client's bytes follow.
    pub len: usize,
    /// `None` for the proxy's own connections, such as health checks, and for connections without IP.
    pub addresses: Option<Addresses>,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are correct so far, but more are needed.
    #[error("more bytes are needed")]
    Incomplete,
    /// The bytes do not begin like a header.
    #[error("no PROXY header")]
    Missing,
    /// The header is longer than [`MAX_LEN`], or its line of version 1 is too long.
    #[error("the PROXY header is too long")]
    TooLong,
    /// The bytes begin like a header, and this part of the header is wrong.
    #[error("PROXY header: malformed {0}")]
    Malformed(&'static str),
    /// The checksum does not match the header.
    #[error("PROXY header: wrong checksum")]
    Checksum,
}

/// Reads the header at the start of a connection.
///
/// # Errors
///
/// [`Error::Incomplete`] for the beginning of a correct header. Any other error as soon as the bytes show it.
pub fn parse(bytes: &[u8]) -> Result<Header, Error> {
    if begins_with(bytes, V2_START)? {
        return parse_v2(bytes);
    }
    if begins_with(bytes, V1_START)? {
        return parse_v1(bytes);
    }
    Err(Error::Missing)
}

/// True if the bytes begin with `start`. Incomplete if there are too few bytes to tell.
fn begins_with(bytes: &[u8], start: &[u8]) -> Result<bool, Error> {
    if bytes.starts_with(start) {
        Ok(true)
    } else if start.starts_with(bytes) {
        Err(Error::Incomplete)
    } else {
        Ok(false)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Header, Error> {
    let window = &bytes[..bytes.len().min(V1_MAX_LEN)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return Err(if window.len() == V1_MAX_LEN {
            Error::TooLong
        } else {
            Error::Incomplete
        });
    };
    let line = window[V1_START.len()..end]
        .strip_suffix(b"\r")
        .and_then(|line| std::str::from_utf8(line).ok())
        .ok_or(Error::Malformed("line"))?;
    let mut words = line.split(' ');
    let protocol = words.next().unwrap_or_default();
    let addresses = match protocol {
        // The specification says to ignore the rest of the line.
        "UNKNOWN" => None,
        "TCP4" => Some(v1_addresses::<Ipv4Addr>(words)?),
        "TCP6" => Some(v1_addresses::<Ipv6Addr>(words)?),
        _ => return Err(Error::Malformed("protocol")),
    };
    let len = end + 1;
    Ok(Header { len, addresses })
}

fn v1_addresses<'a, A>(words: impl Iterator<Item = &'a str>) -> Result<Addresses, Error>
where
    A: std::str::FromStr + Into<IpAddr>,
{
    let words: Vec<&str> = words.take(5).collect();
    let [source, destination, source_port, destination_port] = words[..] else {
        return Err(Error::Malformed("line"));
    };
    Ok(Addresses {
        source: v1_socket::<A>(source, source_port)?,
        destination: v1_socket::<A>(destination, destination_port)?,
    })
}

fn v1_socket<A>(address: &str, port: &str) -> Result<SocketAddr, Error>
where
    A: std::str::FromStr + Into<IpAddr>,
{
    let address: A = address.parse().map_err(|_| Error::Malformed("address"))?;
    // The standard library also parses a port with a plus sign.
    if port.len() > 5 || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::Malformed("port"));
    }
    let port = port.parse().map_err(|_| Error::Malformed("port"))?;
    Ok(SocketAddr::new(address.into(), port))
}

fn parse_v2(bytes: &[u8]) -> Result<Header, Error> {
    let Some((&[command, family, high, low], _)) = bytes[V2_START.len()..].split_first_chunk()
    else {
        // Report a wrong command as soon as its byte is there.
        return match bytes.get(V2_START.len()) {
            Some(&command) => v2_command(command).and(Err(Error::Incomplete)),
            None => Err(Error::Incomplete),
        };
    };
    let is_local = v2_command(command)?;
    let len = V2_FIXED_LEN + usize::from(u16::from_be_bytes([high, low]));
    if len > MAX_LEN {
        return Err(Error::TooLong);
    }
    let header = bytes.get(..len).ok_or(Error::Incomplete)?;
    let body = &header[V2_FIXED_LEN..];
    let (addresses, fields) = match family {
        // The specification says to ignore the addresses of a local connection.
        _ if is_local => (None, &[][..]),
        family::TCP4 => v2_addresses::<4>(body)?,
        family::TCP6 => v2_addresses::<16>(body)?,
        // Unix sockets, datagrams and unspecified families give no addresses of a TCP connection.
        _ => (None, &[][..]),
    };
    check(header, fields)?;
    Ok(Header { len, addresses })
}

/// True if the connection is the proxy's own.
const fn v2_command(byte: u8) -> Result<bool, Error> {
    match byte {
        command::LOCAL => Ok(true),
        command::PROXY => Ok(false),
        _ => Err(Error::Malformed("version or command")),
    }
}

/// Two addresses of `N` bytes and their ports, and the rest of the header.
fn v2_addresses<const N: usize>(body: &[u8]) -> Result<(Option<Addresses>, &[u8]), Error>
where
    IpAddr: From<[u8; N]>,
{
    let cut = || {
        let (source, rest) = body.split_first_chunk::<N>()?;
        let (destination, rest) = rest.split_first_chunk::<N>()?;
        let (source_port, rest) = rest.split_first_chunk()?;
        let (destination_port, rest) = rest.split_first_chunk()?;
        let end = |ip: &[u8; N], port: &[u8; 2]| {
            SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes(*port))
        };
        let addresses = Addresses {
            source: end(source, source_port),
            destination: end(destination, destination_port),
        };
        Some((Some(addresses), rest))
    };
    cut().ok_or(Error::Malformed("length"))
}

/// Verifies the checksum, if one of the fields has it.
fn check(header: &[u8], mut fields: &[u8]) -> Result<(), Error> {
    while let [kind, high, low, rest @ ..] = fields {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest.get(..len).ok_or(Error::Malformed("field"))?;
        if *kind == tlv::CRC32C {
            let sum = <[u8; 4]>::try_from(value).map_err(|_| Error::Malformed("checksum"))?;
            let start = header.len() - rest.len();
            // The checksum covers the header, with zeros in place of the checksum.
            let whole = [&header[..start], &[0; 4], &header[start + 4..]];
            let right = crc32c(whole.into_iter().flatten());
            if u32::from_be_bytes(sum) != right {
                return Err(Error::Checksum);
            }
            return Ok(());
        }
        fields = &rest[len..];
    }
    if !fields.is_empty() {
        return Err(Error::Malformed("field"));
    }
    Ok(())
}

/// CRC-32C ([RFC 9260, appendix A](https://www.rfc-editor.org/rfc/rfc9260#appendix-A)), bit by bit.
///
/// Headers are short, so a table is not worth its memory.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let crc = bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    });
    !crc
}

/// The header for sessile's own connections, such as health checks.
#[must_use]
pub const fn local_header(version: Version) -> &'static [u8] {
    match version {
        Version::V1 => b"PROXY UNKNOWN\r\n",
        Version::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    }
}

/// Writes the header for a client's connection. Version 2 also has the server name and the protocol.
#[must_use]
pub fn encode(
    version: Version,
    addresses: Addresses,
    server_name: Option<&str>,
    alpn: Option<&[u8]>,
) -> Vec<u8> {
    let Addresses {
        source,
        destination,
    } = in_one_family(addresses);
    match version {
        Version::V1 => {
            let protocol = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            let (source, destination) = (source.port(), destination.port());
            format!("PROXY {protocol} {from} {to} {source} {destination}\r\n").into_bytes()
        }
        Version::V2 => {
            let mut body = Vec::new();
            for ip in [source.ip(), destination.ip()] {
                match ip {
                    IpAddr::V4(ip) => body.extend(ip.octets()),
                    IpAddr::V6(ip) => body.extend(ip.octets()),
                }
            }
            for port in [source.port(), destination.port()] {
                body.extend(port.to_be_bytes());
            }
            push_field(&mut body, tlv::ALPN, alpn);
            push_field(&mut body, tlv::AUTHORITY, server_name.map(str::as_bytes));
            let family = match source {
                SocketAddr::V4(_) => family::TCP4,
                SocketAddr::V6(_) => family::TCP6,
            };
            let mut header = V2_START.to_vec();
            header.extend([command::PROXY, family]);
            // At most 36 + 3 + 255 + 3 + 255 bytes: addresses, name, protocol.
            header.extend((body.len() as u16).to_be_bytes());
            header.extend(body);
            header
        }
    }
}

/// Appends a field, if the value has a length of 1 to 255 bytes.
fn push_field(body: &mut Vec<u8>, kind: u8, value: Option<&[u8]>) {
    if let Some(value) = value
        && let Ok(len) = u8::try_from(value.len())
        && len > 0
    {
        body.extend([kind, 0, len]);
        body.extend(value);
    }
}

/// Turns two IPv4-mapped IPv6 addresses into IPv4, and a mixed pair into IPv6.
fn in_one_family(addresses: Addresses) -> Addresses {
    let Addresses {
        source,
        destination,
    } = addresses;
    let [from, to] = [source.ip(), destination.ip()].map(|ip| ip.to_canonical());
    let [from, to] = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => [from, to],
        _ => [from, to].map(|ip| match ip {
            IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
            IpAddr::V6(_) => ip,
        }),
    };
    Addresses {
        source: SocketAddr::new(from, source.port()),
        destination: SocketAddr::new(to, destination.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses(source: &str, destination: &str) -> Addresses {
        Addresses {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        }
    }

    /// A header with two fields, of which the last is the checksum.
    fn with_checksum() -> Vec<u8> {
        let ends = addresses("192.0.2.1:1234", "192.0.2.2:443");
        let mut header = encode(Version::V2, ends, Some("farm.test"), None);
        header.extend([tlv::CRC32C, 0, 4, 0, 0, 0, 0]);
        let len = (header.len() - V2_FIXED_LEN) as u16;
        header[14..16].copy_from_slice(&len.to_be_bytes());
        let sum = crc32c(header.iter());
        let place = header.len() - 4;
        header[place..].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn samples() -> Vec<Vec<u8>> {
        let v4 = addresses("192.0.2.1:1234", "192.0.2.2:443");
        let v6 = addresses("[2001:db8::1]:65535", "[2001:db8::2]:443");
        let local = [V2_START, &[command::LOCAL, 0, 0, 0]].concat();
        vec![
            encode(Version::V1, v4, None, None),
            encode(Version::V1, v6, None, None),
            encode(Version::V2, v4, Some("farm.test"), Some(b"h2")),
            encode(Version::V2, v6, None, None),
            b"PROXY UNKNOWN\r\n".to_vec(),
            b"PROXY UNKNOWN ffff:f...f:ffff whatever\r\n".to_vec(),
            local,
            with_checksum(),
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        for ends in [
            addresses("192.0.2.1:1234", "192.0.2.2:443"),
            addresses("[2001:db8::1]:65535", "[2001:db8::2]:443"),
        ] {
            for version in [Version::V1, Version::V2] {
                let header = encode(version, ends, Some("farm.test"), Some(b"h2"));
                let read = parse(&[&header, &b"more"[..]].concat()).expect("a header");
                assert_eq!((read.len, read.addresses), (header.len(), Some(ends)));
            }
        }
    }

    #[test]
    fn the_text_of_version_1_is_the_specifications() {
        let ends = addresses("192.168.0.1:56324", "192.168.0.11:443");
        let line = encode(Version::V1, ends, Some("not said"), None);
        assert_eq!(line, b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
    }

    #[test]
    fn version_2_says_which_name_and_protocol_the_client_asked_for() {
        let ends = addresses("192.0.2.1:1234", "192.0.2.2:443");
        let header = encode(Version::V2, ends, Some("a.test"), Some(b"h2"));
        assert_eq!(
            &header[V2_FIXED_LEN + 12..],
            [&[1, 0, 2][..], b"h2", &[2, 0, 6], b"a.test"].concat()
        );
    }

    #[test]
    fn every_beginning_is_incomplete() {
        for header in samples() {
            for end in 0..header.len() {
                assert_eq!(parse(&header[..end]), Err(Error::Incomplete), "{end}");
            }
            assert_eq!(parse(&header).expect("a header").len, header.len());
        }
    }

    #[test]
    fn the_proxys_own_connections_have_no_addresses() {
        let ends = addresses("192.0.2.1:1234", "192.0.2.2:443");
        let mut local = encode(Version::V2, ends, None, None);
        local[12] = command::LOCAL;
        let unix = [V2_START, &[command::PROXY, 0x31, 0, 216], &[7; 216]].concat();
        let [own1, own2] = [Version::V1, Version::V2].map(|version| local_header(version).to_vec());
        for header in [local, unix, own1, own2] {
            assert_eq!(parse(&header).expect("a header").addresses, None);
        }
    }

    #[test]
    fn what_is_no_header_is_told_from_a_wrong_one() {
        let hello: &[u8] = include_bytes!("testdata/client-openssl-tls13-full.bin");
        assert_eq!(parse(hello), Err(Error::Missing));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(Error::Missing));
        let long = [V2_START, &[command::PROXY, family::TCP4, 0xff, 0xff]].concat();
        assert_eq!(parse(&long), Err(Error::TooLong));
        assert_eq!(
            parse(&[V1_START, &[b'a'; 200]].concat()),
            Err(Error::TooLong)
        );
        for wrong in [
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 +2\r\n",
            "PROXY TCP4 ::1 ::2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        ] {
            let error = parse(wrong.as_bytes()).expect_err(wrong);
            assert!(matches!(error, Error::Malformed(_)), "{wrong}: {error}");
        }
        let short = [V2_START, &[command::PROXY, family::TCP4, 0, 3, 1, 2, 3]].concat();
        assert_eq!(parse(&short), Err(Error::Malformed("length")));
        let version = [V2_START, &[0x31]].concat();
        assert_eq!(parse(&version), Err(Error::Malformed("version or command")));
    }

    #[test]
    fn a_checksum_that_is_there_has_to_be_right() {
        // The well-known check value of CRC-32C.
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
        let header = with_checksum();
        parse(&header).expect("a header");
        let sum = header.len() - 4..header.len();
        for at in (V2_FIXED_LEN..V2_FIXED_LEN + 12).chain(sum) {
            let mut changed = header.clone();
            changed[at] ^= 1;
            assert_eq!(parse(&changed), Err(Error::Checksum), "{at}");
        }
    }

    #[test]
    fn mapped_addresses_are_written_as_what_they_are() {
        let ends = addresses("[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:2");
        let line = encode(Version::V1, ends, None, None);
        assert_eq!(line, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
        let ends = addresses("192.0.2.1:1", "[2001:db8::2]:2");
        let line = encode(Version::V1, ends, None, None);
        assert_eq!(line, b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(start in 0..3usize, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let start = [&b""[..], V1_START, V2_START][start];
            let bytes = [start, &bytes].concat();
            if let Ok(header) = parse(&bytes) {
                prop_assert!(header.len <= bytes.len());
                for end in 0..header.len {
                    prop_assert_eq!(parse(&bytes[..end]), Err(Error::Incomplete));
                }
            }
        }
    }
}
