//! Asks a PostgreSQL server for TLS.

use std::io;

use sessile_proto::postgres::{ACCEPTED, SSL_REQUEST};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Why a server does not speak TLS now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestTlsError {
    #[error(
        "the server answered PostgreSQL's SSLRequest with {0:?}; check that it is PostgreSQL and that ssl is on"
    )]
    Refused(char),
    /// The connection ended before the server answered.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<RequestTlsError> for io::Error {
    fn from(error: RequestTlsError) -> Self {
        match error {
            RequestTlsError::Refused(_) => Self::other(error),
            RequestTlsError::Io(error) => error,
        }
    }
}

/// Sends `preface` and SSLRequest in one write, and waits for the server's consent. The ClientHello comes next.
pub(crate) async fn request_tls(io: &mut TcpStream, preface: &[u8]) -> Result<(), RequestTlsError> {
    io.write_all(&[preface, &SSL_REQUEST].concat()).await?;
    // Read one byte only, because TLS begins with the next byte.
    match io.read_u8().await? {
        ACCEPTED => Ok(()),
        answer => Err(RequestTlsError::Refused(answer.into())),
    }
}
