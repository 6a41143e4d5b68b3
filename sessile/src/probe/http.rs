//! One small HTTP request. It lets tickets of servers arrive that send them with their first data, and asks a sessile server for its
//! verdict. After a short wait, the probe gives up on servers that speak another protocol.

use std::io;
use std::time::Duration;

use rustls::AlertDescription;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::client::{Close, Stream};

/// The status, and the headers in which a sessile server states its name and its verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerHeaders {
    /// The status code.
    pub(crate) status: Option<u16>,
    /// The value of `sessile-server`.
    pub(crate) server: Option<String>,
    /// The value of `sessile-verdict`.
    pub(crate) verdict: Option<String>,
}

/// The answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) headers: ServerHeaders,
    /// The alert that the server sent instead of an answer.
    pub(crate) alert: Option<AlertDescription>,
}

/// The value of the request's `Connection` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterResponse {
    Close,
    KeepAlive,
}

/// The first bytes of an HTTP response.
const STATUS_LINE: &[u8] = b"HTTP/1.";

/// The client's connection preface with an empty SETTINGS frame (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Maximum number of bytes read of a response head.
const MAX_HEAD: usize = 16 * 1024;

/// Maximum number of characters kept of a header value.
const MAX_VALUE: usize = 64;

/// Sends a HEAD request for `/` and waits at most `wait` for the response head.
pub(crate) async fn request_head(
    stream: &mut Stream,
    host: &str,
    then: AfterResponse,
    wait: Duration,
) -> Exchange {
    let request = request(host, then);
    let send = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await
    };
    match timeout(wait, send).await {
        Ok(Ok(())) => read_head(stream, wait).await,
        Ok(Err(error)) => Exchange {
            headers: ServerHeaders::default(),
            alert: alert_of(error),
        },
        Err(_) => Exchange::default(),
    }
}

/// The request as early data. The connection stays open, because some servers otherwise close it before they have
/// read the rest of the handshake.
pub(crate) fn early_request(host: &str) -> String {
    request(host, AfterResponse::KeepAlive)
}

/// Waits at most `wait` for the response head.
pub(crate) async fn read_head(stream: &mut Stream, wait: Duration) -> Exchange {
    let mut head = Vec::new();
    let read = async {
        let mut chunk = [0; 2048];
        while head.len() < MAX_HEAD && !is_complete(&head) && may_be_http(&head) {
            match stream.read(&mut chunk).await? {
                0 => break,
                len => head.extend_from_slice(&chunk[..len]),
            }
        }
        io::Result::Ok(())
    };
    // Use the bytes that arrived before a timeout or an error, because they may contain the headers.
    let result = timeout(wait, read).await.unwrap_or(Ok(()));
    Exchange {
        headers: parse_headers(&head),
        alert: result.err().and_then(alert_of),
    }
}

/// Begins HTTP/2 and waits at most `wait` for the first bytes of the server. No request follows, so there are no
/// headers.
pub(crate) async fn http2_preface(stream: &mut Stream, wait: Duration) -> Exchange {
    let exchange = async {
        stream.write_all(HTTP2_PREFACE).await?;
        stream.flush().await?;
        stream.read(&mut [0; 512]).await
    };
    let result = timeout(wait, exchange).await.unwrap_or(Ok(0));
    Exchange {
        headers: ServerHeaders::default(),
        alert: result.err().and_then(alert_of),
    }
}

fn alert_of(error: io::Error) -> Option<AlertDescription> {
    match Close::from(&error) {
        Close::Alert(alert) => Some(alert),
        _ => None,
    }
}

fn request(host: &str, then: AfterResponse) -> String {
    let connection = match then {
        AfterResponse::Close => "close",
        AfterResponse::KeepAlive => "keep-alive",
    };
    // With the header `sessile-probe`, a sessile server states its verdict for every path.
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

fn is_complete(head: &[u8]) -> bool {
    head.windows(4).any(|four| four == b"\r\n\r\n")
}

fn parse_headers(head: &[u8]) -> ServerHeaders {
    let mut headers = ServerHeaders::default();
    if !head.starts_with(STATUS_LINE) {
        return headers;
    }
    let text = String::from_utf8_lossy(head);
    headers.status = text
        .split(' ')
        .nth(1)
        .and_then(|code| code.get(..3))
        .and_then(|code| code.parse().ok());
    for line in text
        .split("\r\n")
        .skip(1)
        .take_while(|line| !line.is_empty())
    {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "sessile-server" => headers.server = sanitize(value),
            "sessile-verdict" => headers.verdict = sanitize(value),
            _ => {}
        }
    }
    headers
}

/// Keeps the visible ASCII characters of a value, because the value is printed on a terminal.
fn sanitize(value: &str) -> Option<String> {
    let visible: String = value
        .chars()
        .filter(char::is_ascii_graphic)
        .take(MAX_VALUE)
        .collect();
    (!visible.is_empty()).then_some(visible)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_asks_a_sessile_server_for_its_verdict() {
        let request = request("farm.test", AfterResponse::Close);
        assert!(request.contains("\r\nsessile-probe: 1\r\n"), "{request}");
        assert!(
            request.ends_with("\r\nConnection: close\r\n\r\n"),
            "{request}"
        );
    }

    #[test]
    fn header_names_are_case_insensitive() {
        let head = b"HTTP/1.1 200 OK\r\nSessile-Verdict: full/expired\r\nX: y\r\n\
            sessile-server:web2\r\n\r\nsessile-server: body";
        let headers = parse_headers(head);
        assert_eq!(headers.verdict.as_deref(), Some("full/expired"));
        assert_eq!(headers.server.as_deref(), Some("web2"));
        assert_eq!(headers.status, Some(200));
    }

    #[test]
    fn other_protocols_and_incomplete_heads_give_no_headers() {
        assert_eq!(
            parse_headers(b"220 mail.test ESMTP\r\nsessile-server: x\r\n"),
            ServerHeaders::default()
        );
        assert_eq!(parse_headers(b""), ServerHeaders::default());
        assert_eq!(parse_headers(b"HTTP/1.1 20"), ServerHeaders::default());
    }

    #[test]
    fn header_values_contain_no_control_characters_and_are_bounded() {
        let head =
            b"HTTP/1.1 200 OK\r\nsessile-server: web\x1b[2J\x07 1\r\nsessile-verdict: \x1b\r\n\r\n";
        let headers = parse_headers(head);
        assert_eq!(headers.server.as_deref(), Some("web[2J1"));
        assert_eq!(headers.verdict, None);
        let long = format!(
            "HTTP/1.1 200 OK\r\nsessile-server: {}\r\n\r\n",
            "x".repeat(9000)
        );
        assert_eq!(
            parse_headers(long.as_bytes()).server.map(|name| name.len()),
            Some(MAX_VALUE)
        );
    }
}
