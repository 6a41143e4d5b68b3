//! From a request to its response: the site's routes, and the built-in page that shows what the
//! connection's handshake came to.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, REFERER};
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body as _, Incoming};
use serde::Serialize;
use tower::Service;
use tower_http::services::ServeDir;

use super::Worker;
use super::access_log::quoted;
use super::pending_upstreams::PendingUpstreams;
use super::request::{self, Host, SentEarly};
use super::routes;
use super::sites::{Handler, Site, Sites};
use crate::clock;
use crate::tls::{Completion, Handshake, Status};

/// A request that bears it is told its connection's verdict, whatever it asks for.
const PROBE: HeaderName = HeaderName::from_static("sessile-probe");
const VERDICT: HeaderName = HeaderName::from_static("sessile-verdict");
const EARLY_DATA: HeaderName = HeaderName::from_static("sessile-early-data");
const SERVER: HeaderName = HeaderName::from_static("sessile-server");

pub(super) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>;

/// What the requests of a connection share.
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) handshake: Handshake,
    pub(super) status: Rc<Status>,
    /// Whether the handshake is counted: it may go on while requests are answered.
    pub(super) counted: Cell<bool>,
    pub(super) site: Rc<Site>,
    /// As they were when it came: a reload does not make its requests another site's.
    pub(super) sites: Rc<Sites>,
    pub(super) requests: Cell<u64>,
    pub(super) pending_upstreams: PendingUpstreams,
    pub(super) worker: Rc<Worker>,
}

/// What the built-in page shows.
#[derive(Serialize)]
struct Shown<'a> {
    server: &'a str,
    verdict: String,
    resumed: bool,
    early_data: String,
    protocol: &'a str,
    cipher_suite: &'a str,
    http: &'a str,
    server_name: Option<&'a str>,
    client: SocketAddr,
    /// Subject of the certificate that the client has shown.
    client_certificate: Option<&'a str>,
    /// Seconds since the session's full handshake.
    session_age_seconds: u64,
    /// Which request of this connection this is, from 1.
    request: u64,
}

pub(super) async fn answer(
    connection: Rc<Connection>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if connection.is_early() {
        request.extensions_mut().insert(SentEarly);
    }
    connection.requests.set(connection.requests.get() + 1);
    connection.worker.shared.metrics.count_request();
    let log = connection.worker.shared.env.access_log.is_on();
    let entry = log.then(|| Entry::of(&request));
    let asked = request.headers().contains_key(PROBE);
    let has_streams = request.version() == Version::HTTP_2;
    let routed = route(&connection, request).await;
    let mut response = routed.unwrap_or_else(|code| refusal(code, has_streams));
    if asked {
        connection.tell(response.headers_mut());
    }
    if let Some(entry) = entry {
        connection.log(&entry.finish(&response));
    }
    Ok(response)
}

/// The error is the status of a request that nothing was done about.
async fn route(
    connection: &Connection,
    request: Request<Incoming>,
) -> Result<Response<Body>, StatusCode> {
    connection.check_host(&request)?;
    if is_too_early(&request) {
        return Err(StatusCode::TOO_EARLY);
    }
    let path = request.uri().path();
    let found = connection.site.routes.find(path);
    let found = found.map_err(|routes::Unclear| StatusCode::BAD_REQUEST)?;
    let (handler, below) = found.ok_or(StatusCode::NOT_FOUND)?;
    if matches!(handler, Handler::Files(_) | Handler::Verdict)
        && !matches!(*request.method(), Method::GET | Method::HEAD)
    {
        let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    Ok(match handler {
        Handler::Files(folder) => {
            let below = below.to_owned();
            files(folder.clone(), request, &below).await
        }
        Handler::Proxy(upstream) => {
            let client = connection.peer.ip();
            let forwarded = upstream.forward(client, &connection.pending_upstreams, request);
            forwarded
                .await?
                .map(|body| Either::Right(body.boxed_unsync()))
        }
        Handler::Redirect(to) => redirect(to, below, request.uri().query()),
        Handler::Respond { status, body } => {
            let mut response = text(body.clone());
            *response.status_mut() = StatusCode::from_u16(*status).unwrap_or_default();
            response
        }
        Handler::Verdict => {
            let above = &path[..path.len() - below.len()];
            connection.verdict_page(above, below, request.headers())
        }
    })
}

fn refusal(code: StatusCode, has_streams: bool) -> Response<Body> {
    let mut response = status(code);
    if code == StatusCode::BAD_REQUEST && !has_streams {
        // Where a request is doubtful, so is where the next one begins.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

/// Whether a request has to be sent again once the client's handshake is done: it may be a replay, and
/// does something (RFC 8470, 5.2).
fn is_too_early<B>(request: &Request<B>) -> bool {
    request.extensions().get::<SentEarly>().is_some() && !request.method().is_safe()
}

/// Ranges, validators, types and the refusal to leave the folder are tower-http's.
async fn files(mut folder: ServeDir, request: Request<Incoming>, below: &str) -> Response<Body> {
    let (mut head, _) = request.into_parts();
    if below.is_empty() {
        // The links of the folder's index are relative to the folder.
        return redirect(head.uri.path(), "/", head.uri.query());
    }
    // Several slashes are one: in a redirect they would make the name that follows a host's.
    let path = below.trim_start_matches('/');
    let path = match head.uri.query() {
        Some(query) => format!("/{path}?{query}"),
        None => format!("/{path}"),
    };
    let Ok(path) = path.parse::<PathAndQuery>() else {
        return status(StatusCode::BAD_REQUEST);
    };
    head.uri = Uri::from(path);
    let empty = Full::<Bytes>::default();
    let Ok(response) = folder.call(Request::from_parts(head, empty)).await;
    response.map(|body| Either::Right(body.boxed_unsync()))
}

fn redirect(to: &str, below: &str, query: Option<&str>) -> Response<Body> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut target = format!("{to}{below}{query}");
    if target.starts_with('/') {
        // Two slashes, and to browsers a backslash is one, would make the name behind them a host's.
        target = format!("/{}", target.trim_start_matches(['/', '\\']));
    }
    let Ok(location) = HeaderValue::try_from(target) else {
        return status(StatusCode::BAD_REQUEST);
    };
    let mut response = status(StatusCode::PERMANENT_REDIRECT);
    response.headers_mut().insert(LOCATION, location);
    response
}

/// A response whose body is its own status line.
fn status(code: StatusCode) -> Response<Body> {
    let mut response = text(format!("{code}\n").into());
    *response.status_mut() = code;
    response
}

fn text(body: Bytes) -> Response<Body> {
    typed("text/plain; charset=utf-8", body)
}

fn typed(content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

impl Connection {
    /// Whether all that has come from the client may have been played back (RFC 8470, 3): it was early
    /// data, and the client has not finished the handshake.
    fn is_early(&self) -> bool {
        self.status.completion() == Completion::UnderWay
    }

    /// Adds the verdict, what became of early data, and the server's name to a response's headers.
    fn tell(&self, headers: &mut HeaderMap) {
        let verdict = HeaderValue::try_from(self.handshake.verdict.to_string());
        let early_data = HeaderValue::try_from(self.handshake.early_data.to_string());
        let server = HeaderValue::try_from(self.server());
        headers.extend(
            [
                (VERDICT, verdict),
                (EARLY_DATA, early_data),
                (SERVER, server),
            ]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.ok()?))),
        );
    }

    /// The route itself as HTML or text, as the client prefers, and `/verdict.json` below it.
    fn verdict_page(&self, above: &str, below: &str, headers: &HeaderMap) -> Response<Body> {
        let shown = self.shown();
        let mut response = match below {
            "" | "/" => {
                let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
                if accept.is_some_and(|accept| accept.contains("text/html")) {
                    typed("text/html; charset=utf-8", shown.html(above).into())
                } else {
                    text(shown.text().into())
                }
            }
            "/verdict.json" => {
                let mut json = serde_json::to_vec(&shown).unwrap_or_default();
                json.push(b'\n');
                typed("application/json", json.into())
            }
            _ => return status(StatusCode::NOT_FOUND),
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.tell(headers);
        response
    }

    fn shown(&self) -> Shown<'_> {
        let handshake = &self.handshake;
        Shown {
            server: self.server(),
            verdict: handshake.verdict.to_string(),
            resumed: handshake.verdict.outcome() == "resumed",
            early_data: handshake.early_data.to_string(),
            protocol: handshake.version,
            cipher_suite: &handshake.suite,
            http: if handshake.http2 {
                "HTTP/2"
            } else {
                "HTTP/1.1"
            },
            server_name: handshake.server_name.as_deref(),
            client: self.peer,
            client_certificate: handshake.client_certificate.as_deref(),
            session_age_seconds: clock::now().since(handshake.established).as_secs(),
            request: self.requests.get(),
        }
    }

    /// Refuses a request for another site than the handshake was: browsers use a connection for every
    /// name that its certificate covers (RFC 9110, 7.4), and the other site may ask its clients for
    /// certificates. So it does one for no site at all, which an upstream may take for anybody's.
    fn check_host<B>(&self, request: &Request<B>) -> Result<(), StatusCode> {
        let host = Host::of(request.uri(), request.headers(), request.version());
        let Some(host) = host.map_err(|request::Unclear| StatusCode::BAD_REQUEST)? else {
            return Ok(());
        };
        match self.sites.find(Some(host.name)) {
            Some(site) if Rc::ptr_eq(site, &self.site) => Ok(()),
            _ => Err(StatusCode::MISDIRECTED_REQUEST),
        }
    }

    fn server(&self) -> &str {
        &self.worker.shared.config.server.name
    }

    /// Writes the line of a connection that made no request: its handshake had a verdict too.
    pub(super) fn log_if_silent(&self) {
        if self.requests.get() == 0 && self.worker.shared.env.access_log.is_on() {
            self.log("\"-\" - - \"-\" \"-\"");
        }
    }

    /// The combined log format, with server, protocol, verdict and early data behind it, and whose certificate the
    /// client has shown, if any.
    fn log(&self, request: &str) {
        let now = std::time::SystemTime::now();
        let client = match &self.handshake.client_certificate {
            Some(subject) => format!(" \"{}\"", quoted(subject)),
            None => String::new(),
        };
        self.worker.shared.env.access_log.line(format!(
            "{} - - [{}] {request} {} {} {} {}{client}",
            self.peer.ip(),
            humantime::format_rfc3339_millis(now),
            self.server(),
            self.handshake.version,
            self.handshake.verdict,
            self.handshake.early_data,
        ));
    }
}

impl Shown<'_> {
    fn text(&self) -> String {
        let name = self.server_name.unwrap_or("-");
        let client = match self.client_certificate {
            Some(subject) => format!("client    {subject}\n"),
            None => String::new(),
        };
        format!(
            "{}\n\nserver    {}\nprotocol  {} {} {}\nname      {name}\n{client}session   {} s old\nearly     {}\nrequest   {} of this connection\n",
            self.verdict,
            self.server,
            self.protocol,
            self.cipher_suite,
            self.http,
            self.session_age_seconds,
            self.early_data,
            self.request
        )
    }

    /// `above`: the path of the route that leads here.
    fn html(&self, above: &str) -> String {
        let colour = if self.resumed { "#1a7f37" } else { "#9a6700" };
        let name = escaped(self.server_name.unwrap_or("–"));
        let server = escaped(self.server);
        let client = match self.client_certificate {
            Some(subject) => format!("<dt>client<dd>{}", escaped(subject)),
            None => String::new(),
        };
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8>\
             <meta name=viewport content=\"width=device-width\"><title>{verdict} · {server}</title>\
             <style>body{{font:1rem/1.5 system-ui,sans-serif;margin:10vh auto;max-width:36rem;padding:0 1rem;\
             color:#1f2328;background:#fff}}h1{{font:600 2rem ui-monospace,monospace;color:{colour}}}\
             dl{{display:grid;grid-template-columns:8rem 1fr;gap:.25rem 1rem}}dt{{color:#59636e}}dd{{margin:0}}\
             p{{color:#59636e}}</style>\
             <h1>{verdict}</h1><dl><dt>server<dd>{server}<dt>protocol<dd>{protocol}, {http}\
             <dt>cipher suite<dd>{suite}<dt>name<dd>{name}{client}<dt>session<dd>{age} s old\
             <dt>early data<dd>{early_data}<dt>request<dd>{request} of this connection</dl>\
             <p>Come back on a new connection (close this one, wait, restart a server) and see what the \
             handshake came to. As JSON: <a href=\"{above}/verdict.json\">{above}/verdict.json</a></p></html>\n",
            above = escaped(above),
            verdict = self.verdict,
            protocol = self.protocol,
            http = self.http,
            suite = self.cipher_suite,
            age = self.session_age_seconds,
            early_data = self.early_data,
            request = self.request,
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

/// The request's part of a log line.
struct Entry {
    head: String,
    tail: String,
}

impl Entry {
    fn of(request: &Request<Incoming>) -> Self {
        let header = |name| {
            let value = request.headers().get(name);
            quoted(value.and_then(|value| value.to_str().ok()).unwrap_or("-")).to_string()
        };
        let path = request.uri().path_and_query();
        let path = quoted(path.map_or("-", PathAndQuery::as_str));
        Self {
            head: format!("\"{} {path} {:?}\"", request.method(), request.version()),
            tail: format!("\"{}\" \"{}\"", header(REFERER), header(USER_AGENT)),
        }
    }

    fn finish(self, response: &Response<Body>) -> String {
        let bytes = match response.body().size_hint().exact() {
            Some(bytes) => bytes.to_string(),
            // Files are read as they are sent, but their length is known.
            None => {
                let length = response.headers().get(CONTENT_LENGTH);
                let length = length.and_then(|length| length.to_str().ok());
                length.unwrap_or("-").to_owned()
            }
        };
        let code = response.status().as_u16();
        format!("{} {code} {bytes} {}", self.head, self.tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_within_the_server_leads_to_no_other() {
        for (to, below, location) in [
            ("", "//other.example", "/other.example"),
            ("", "/\\other.example", "/other.example"),
            ("/new", "//a", "/new//a"),
            ("https://new.example", "//a", "https://new.example//a"),
            ("https://new.example", "", "https://new.example"),
        ] {
            let response = redirect(to, below, None);
            assert_eq!(response.headers()[LOCATION], location);
        }
    }

    #[test]
    fn only_what_is_safe_is_answered_from_early_data() {
        let asked = |method: &str| {
            Request::builder()
                .method(method)
                .body(())
                .expect("a request")
        };
        for (method, safe) in [
            ("GET", true),
            ("HEAD", true),
            ("OPTIONS", true),
            ("POST", false),
            ("PUT", false),
            ("DELETE", false),
            ("BREW", false),
        ] {
            let mut request = asked(method);
            assert!(!is_too_early(&request));
            request.extensions_mut().insert(SentEarly);
            assert_eq!(is_too_early(&request), !safe, "{method}");
        }
    }
}
