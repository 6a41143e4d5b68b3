//! The lines of the access log: whole lines in the combined log format, and brief lines for people at a terminal.

use std::fmt::Display;
use std::net::IpAddr;

use http::header::{CONTENT_LENGTH, HeaderName, REFERER, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response};
use hyper::body::Body;
use sessile_proto::verdict::Verdict;

use crate::tls::Handshake;

/// Most bytes of one quoted field in a line.
const MAX_QUOTED: usize = 2048;

/// Most characters of a brief line.
const BRIEF_WIDTH: usize = 80;

/// The part of a log line that the request fills.
pub(super) struct Entry {
    /// The request line, escaped.
    request_line: String,
    /// `Referer` and `User-Agent`, each in quotes.
    referer_and_agent: String,
}

/// The part of a log line about a request and its response. A missing part is `-`.
pub(super) struct Exchange {
    /// The request line, escaped.
    request_line: String,
    status: String,
    bytes: String,
    /// `Referer` and `User-Agent`, each in quotes.
    referer_and_agent: String,
}

impl Entry {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let path = request.uri().path_and_query();
        let referer = header_text(request.headers(), REFERER);
        let user_agent = header_text(request.headers(), USER_AGENT);
        Self {
            request_line: format!(
                "{} {} {:?}",
                request.method(),
                quoted(path.map_or("-", PathAndQuery::as_str)),
                request.version()
            ),
            referer_and_agent: format!("\"{}\" \"{}\"", quoted(referer), quoted(user_agent)),
        }
    }

    pub(super) fn finish<B: Body>(self, response: &Response<B>) -> Exchange {
        let bytes = match response.body().size_hint().exact() {
            Some(bytes) => bytes.to_string(),
            // The body may be a stream of unknown length while the header has the length.
            None => header_text(response.headers(), CONTENT_LENGTH).to_owned(),
        };
        Exchange {
            request_line: self.request_line,
            status: response.status().as_str().to_owned(),
            bytes,
            referer_and_agent: self.referer_and_agent,
        }
    }
}

impl Exchange {
    /// For a connection without requests.
    pub(super) fn none() -> Self {
        Self {
            request_line: "-".to_owned(),
            status: "-".to_owned(),
            bytes: "-".to_owned(),
            referer_and_agent: "\"-\" \"-\"".to_owned(),
        }
    }
}

/// A line in the combined log format, with more fields at the end.
///
/// The fields are server, protocol, verdict, early data, and the client certificate if there is one.
pub(super) fn whole_line(
    server: &str,
    client: IpAddr,
    handshake: &Handshake,
    exchange: &Exchange,
) -> String {
    let Exchange {
        request_line,
        status,
        bytes,
        referer_and_agent,
    } = exchange;
    let certificate = match &handshake.client_certificate {
        Some(subject) => format!(" \"{}\"", quoted(subject)),
        None => String::new(),
    };
    format!(
        "{client} - - [{}] \"{request_line}\" {status} {bytes} {referer_and_agent} {server} {} {} {}{certificate}",
        humantime::format_rfc3339_millis(std::time::SystemTime::now()),
        handshake.version,
        handshake.verdict,
        handshake.early_data,
    )
}

/// A line for people at a terminal: server, protocol, verdict, status and request line.
pub(super) fn brief_line(
    server: &str,
    protocol: &str,
    verdict: Verdict,
    exchange: &Exchange,
) -> String {
    let (status, request_line) = (&exchange.status, &exchange.request_line);
    let verdict = verdict.to_string();
    let line = format!("{server:<5}  {protocol}  {verdict:<23}  {status:<3}  {request_line}");
    line.chars().take(BRIEF_WIDTH).collect()
}

/// The value of a header; `-` if the header is missing or not text.
fn header_text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("-")
}

/// Escapes text from a client for double quotes, and cuts long text.
fn quoted(text: &str) -> impl Display {
    text[..text.floor_char_boundary(MAX_QUOTED)].escape_debug()
}

#[cfg(test)]
mod tests {
    use sessile_proto::Word as _;
    use sessile_proto::verdict::Reason;

    use super::*;

    #[test]
    fn brief_lines_are_columns_that_fit_a_terminal() {
        let request = Request::get(format!("/{}", "a".repeat(90)));
        let entry = Entry::of(&request.body(()).unwrap());
        let exchange = entry.finish(&Response::new(String::new()));
        for reason in Reason::all() {
            let line = brief_line("web1", "TLSv1.3", Verdict::Full(reason), &exchange);
            assert_eq!(line.find("200  GET /a"), Some(41), "{line}");
            assert_eq!(line.chars().count(), BRIEF_WIDTH, "{line}");
        }
        let none = Exchange::none();
        let line = brief_line("web1", "TLSv1.2", Verdict::Full(Reason::Expired), &none);
        assert_eq!(line, "web1   TLSv1.2  full/expired             -    -");
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        let text = quoted("/\" 200\nevil").to_string();
        assert_eq!(text, "/\\\" 200\\nevil");
    }
}
