//! Asks a PostgreSQL server for TLS.

use std::io;

use sessile_proto::postgres::{ACCEPTED, SSL_REQUEST};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends `preface` and SSLRequest in one write, and waits for the server's consent. The ClientHello comes next.
pub(crate) async fn request_tls(io: &mut TcpStream, preface: &[u8]) -> io::Result<()> {
    io.write_all(&[preface, &SSL_REQUEST].concat()).await?;
    // Read one byte only, because TLS begins with the next byte.
    match io.read_u8().await? {
        ACCEPTED => Ok(()),
        answer => Err(io::Error::other(format!(
            "the server answered PostgreSQL's SSLRequest with {:?}; check that it is PostgreSQL and that ssl is on",
            char::from(answer)
        ))),
    }
}
