//! Reads the beginning of a connection, as far as it takes to know what the client wants.

use std::io;
use std::time::Duration;

use sessile_proto::hello::HelloReader;
use sessile_proto::record;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// How long a client may take over its ClientHello, however it trickles in.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// How long a hello that is on its way may still take once the order to stop has come.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Bytes read at once: more than almost any hello has.
const CHUNK: usize = 4096;

/// Why there is no hello.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    #[error("connection closed before a ClientHello")]
    Closed,
    #[error("no ClientHello within the deadline")]
    Deadline,
    #[error("not a ClientHello: {0}")]
    Invalid(record::Error),
    #[error("{0}")]
    Io(io::Error),
}

/// Reads until the ClientHello is whole: at most `limit` bytes of it, within
/// [`HELLO_DEADLINE`], and soon where the order to stop comes.
///
/// # Errors
/// Where there is none.
pub async fn read(
    io: &mut TcpStream,
    limit: usize,
    stop: &CancellationToken,
) -> Result<HelloReader, DetectError> {
    let hello = async {
        let mut reader = HelloReader::new(limit);
        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            chunk.clear();
            let len = io
                .read_buf(&mut chunk)
                .await
                .map_err(|error| match error.kind() {
                    io::ErrorKind::ConnectionReset => DetectError::Closed,
                    _ => DetectError::Io(error),
                })?;
            if len == 0 {
                return Err(DetectError::Closed);
            }
            if reader.push(&chunk).map_err(DetectError::Invalid)? {
                return Ok(reader);
            }
        }
    };
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        biased;
        read = tokio::time::timeout(HELLO_DEADLINE, hello) => {
            read.unwrap_or(Err(DetectError::Deadline))
        }
        () = too_late => Err(DetectError::Deadline),
    }
}
