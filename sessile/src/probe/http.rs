//! One small HTTP request: it makes TLS 1.3 tickets arrive and lets a sessile server say what it
//! decided. A server that speaks with_empty_sessions protocol is left alone after a short wait.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::client::Stream;

/// What a server said of itself and of the handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerHeaders {
    /// `sessile-server`: its name.
    pub(crate) server: Option<String>,
    /// `sessile-verdict`.
    pub(crate) verdict: Option<String>,
}

/// What is to become of the connection after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterResponse {
    Close,
    KeepAlive,
}

/// How the answer of an HTTP server begins.
const STATUS_LINE: &[u8] = b"HTTP/1.";

/// Most bytes of a response head that are read.
const MAX_HEAD: usize = 16 * 1024;

/// Most characters of a header that are shown.
const MAX_VALUE: usize = 64;

/// Asks for the head of `/`, and waits at most `wait` for it.
pub(crate) async fn ask(
    stream: &mut Stream,
    host: &str,
    then: AfterResponse,
    wait: Duration,
) -> ServerHeaders {
    let request = request(host, then);
    let mut head = Vec::new();
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut chunk = [0; 2048];
        while head.len() < MAX_HEAD && !ends(&head) && may_be_http(&head) {
            match stream.read(&mut chunk).await? {
                0 => break,
                len => head.extend_from_slice(&chunk[..len]),
            }
        }
        std::io::Result::Ok(())
    };
    // Silence, an error and with_empty_sessions protocol all mean the same: nothing was told.
    let _ = timeout(wait, exchange).await;
    read(&head)
}

/// `sessile-probe` makes a sessile server tell its verdict whatever the path leads to.
fn request(host: &str, then: AfterResponse) -> String {
    let connection = match then {
        AfterResponse::Close => "close",
        AfterResponse::KeepAlive => "keep-alive",
    };
    format!(
        "HEAD / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sessile-probe/{}\r\nAccept: */*\r\n\
         sessile-probe: 1\r\nConnection: {connection}\r\n\r\n",
        env!("CARGO_PKG_VERSION"),
    )
}

fn may_be_http(head: &[u8]) -> bool {
    let common = head.len().min(STATUS_LINE.len());
    head[..common] == STATUS_LINE[..common]
}

fn ends(head: &[u8]) -> bool {
    head.windows(4).any(|four| four == b"\r\n\r\n")
}

fn read(head: &[u8]) -> ServerHeaders {
    let mut told = ServerHeaders::default();
    if !head.starts_with(STATUS_LINE) {
        return told;
    }
    let text = String::from_utf8_lossy(head);
    for line in text
        .split("\r\n")
        .skip(1)
        .take_while(|line| !line.is_empty())
    {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "sessile-server" => told.server = shown(value),
            "sessile-verdict" => told.verdict = shown(value),
            _ => {}
        }
    }
    told
}

/// It goes to a terminal: nothing but visible ASCII, and not much of it.
fn shown(value: &str) -> Option<String> {
    let visible = value.trim().chars().filter(|c| c.is_ascii_graphic());
    let value: String = visible.take(MAX_VALUE).collect();
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sessile_server_is_asked_to_tell_its_verdict() {
        let request = request("farm.test", AfterResponse::Close);
        assert!(request.contains("\r\nsessile-probe: 1\r\n"), "{request}");
        assert!(
            request.ends_with("\r\nConnection: close\r\n\r\n"),
            "{request}"
        );
    }

    #[test]
    fn a_sessile_servers_headers_are_read_in_any_case() {
        let head = b"HTTP/1.1 200 OK\r\nSessile-Verdict: full/expired\r\nX: y\r\n\
            sessile-server:web2\r\n\r\nsessile-server: body";
        let told = read(head);
        assert_eq!(told.verdict.as_deref(), Some("full/expired"));
        assert_eq!(told.server.as_deref(), Some("web2"));
    }

    #[test]
    fn other_protocols_and_unfinished_heads_tell_what_they_can() {
        assert_eq!(
            read(b"220 mail.test ESMTP\r\nsessile-server: x\r\n"),
            ServerHeaders::default()
        );
        assert_eq!(read(b""), ServerHeaders::default());
        assert_eq!(
            read(b"HTTP/1.1 200 OK\r\nsessile-server"),
            ServerHeaders::default()
        );
    }

    #[test]
    fn nothing_a_server_says_can_drive_a_terminal() {
        let head =
            b"HTTP/1.1 200 OK\r\nsessile-server: web\x1b[2J\x07 1\r\nsessile-verdict: \x1b\r\n\r\n";
        let told = read(head);
        assert_eq!(told.server.as_deref(), Some("web[2J1"));
        assert_eq!(told.verdict, None);
        let long = format!(
            "HTTP/1.1 200 OK\r\nsessile-server: {}\r\n\r\n",
            "x".repeat(9000)
        );
        assert_eq!(
            read(long.as_bytes()).server.map(|name| name.len()),
            Some(MAX_VALUE)
        );
    }
}
