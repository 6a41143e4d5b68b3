//! Asks a server in clear for TLS, by the protocol of the server. It reads exactly the server's replies, because TLS
//! begins with the next byte.

use std::io;
use std::net::{IpAddr, SocketAddr};

use sessile_proto::clear_replies::{self, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::postgres::request_tls;

/// A protocol that begins in clear and changes to TLS on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, strum::Display)]
pub enum StartTls {
    /// Mail between servers, and from users (RFC 3207)
    #[strum(to_string = "SMTP")]
    Smtp,
    /// Mailboxes (RFC 9051)
    #[strum(to_string = "IMAP")]
    Imap,
    /// Mailboxes (RFC 2595)
    #[strum(to_string = "POP3")]
    Pop3,
    /// File transfer (RFC 4217)
    #[strum(to_string = "FTP")]
    Ftp,
    /// PostgreSQL's `SSLRequest`
    #[strum(to_string = "PostgreSQL")]
    Postgres,
    /// Directories (RFC 4511)
    #[strum(to_string = "LDAP")]
    Ldap,
}

/// Why a dialogue in clear ended before TLS.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The first printable characters of the answer.
    #[error("the answer was {0:?}")]
    Answer(String),
    /// The answer has more bytes than the client reads.
    #[error("the answer is longer than {MAX_REPLY} bytes")]
    TooLong,
    /// The connection ended before the answer was complete.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Maximum length of one reply in bytes.
const MAX_REPLY: usize = 16 * 1024;

/// `ExtendedRequest` number 1 with the name of StartTLS (RFC 4511, 4.14.1).
const LDAP_REQUEST: &[u8] = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";

impl StartTls {
    /// The port of the protocol in clear.
    #[must_use]
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Smtp => 25,
            Self::Imap => 143,
            Self::Pop3 => 110,
            Self::Ftp => 21,
            Self::Postgres => 5432,
            Self::Ldap => 389,
        }
    }

    /// Sends `preface`, then asks for TLS. After that, the ClientHello comes next.
    pub(super) async fn start(self, tcp: &mut TcpStream, preface: &[u8]) -> Result<(), Refusal> {
        if self == Self::Postgres {
            let asked = request_tls(tcp, preface).await;
            return asked.map_err(|error| Refusal::Io(error.into()));
        }
        tcp.write_all(preface).await?;
        match self {
            Self::Smtp => {
                expect(tcp, |reply| clear_replies::numeric(reply, "220")).await?;
                let hello = format!("EHLO {}\r\n", address_literal(tcp.local_addr()?));
                tcp.write_all(hello.as_bytes()).await?;
                expect(tcp, |reply| clear_replies::numeric(reply, "250")).await?;
                tcp.write_all(b"STARTTLS\r\n").await?;
                expect(tcp, |reply| clear_replies::numeric(reply, "220")).await
            }
            Self::Imap => {
                expect(tcp, clear_replies::imap_greeting).await?;
                tcp.write_all(b"a STARTTLS\r\n").await?;
                expect(tcp, clear_replies::imap_tagged).await
            }
            Self::Pop3 => {
                expect(tcp, clear_replies::pop3).await?;
                tcp.write_all(b"STLS\r\n").await?;
                expect(tcp, clear_replies::pop3).await
            }
            Self::Ftp => {
                expect(tcp, clear_replies::ftp_greeting).await?;
                tcp.write_all(b"AUTH TLS\r\n").await?;
                expect(tcp, |reply| clear_replies::numeric(reply, "234")).await
            }
            Self::Ldap => {
                tcp.write_all(LDAP_REQUEST).await?;
                expect(tcp, clear_replies::ldap).await
            }
            Self::Postgres => unreachable!("PostgreSQL has returned above"),
        }
    }
}

/// Asks an HTTP proxy for a connection to `address` (RFC 9110, 9.3.6).
pub(super) async fn open_tunnel(tcp: &mut TcpStream, address: SocketAddr) -> Result<(), Refusal> {
    let request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    expect(tcp, clear_replies::connect).await
}

/// Reads exactly one reply, byte by byte, and fails unless the reply is positive.
async fn expect(tcp: &mut TcpStream, parse: impl Fn(&[u8]) -> Reply) -> Result<(), Refusal> {
    let mut reply = Vec::new();
    while reply.len() < MAX_REPLY {
        reply.push(tcp.read_u8().await?);
        match parse(&reply) {
            Reply::Incomplete => {}
            Reply::Positive => return Ok(()),
            Reply::Negative(answer) => return Err(Refusal::Answer(answer)),
        }
    }
    Err(Refusal::TooLong)
}

/// The address as the name of a client without a host name (RFC 5321, 4.1.3).
fn address_literal(address: SocketAddr) -> String {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => format!("[{ip}]"),
        IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
    }
}
