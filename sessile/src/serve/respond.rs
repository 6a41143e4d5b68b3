//! Answers requests by the routes of their site. The built-in page shows the verdict of the connection's
//! handshake.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, REFERER};
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, USER_AGENT};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body as _, Incoming};
use serde::Serialize;
use tokio::time::Instant;

use super::Worker;
use super::access_log::quoted;
use super::files::{Answer, Content, Folder};
use super::pending_upstreams::PendingUpstreams;
use super::request::{self, Host, SentEarly};
use super::routes;
use super::sites::{Handler, Site, Sites};
use crate::clock;
use crate::tls::{Completion, Handshake, Status};

/// A request with this header gets the verdict of its connection in the response headers.
const PROBE: HeaderName = HeaderName::from_static("sessile-probe");
const VERDICT: HeaderName = HeaderName::from_static("sessile-verdict");
const EARLY_DATA: HeaderName = HeaderName::from_static("sessile-early-data");
const SERVER: HeaderName = HeaderName::from_static("sessile-server");

/// Most bytes that are read of the content of a refused request.
const MAX_DISCARDED: usize = 64 * 1024;

/// How long a refused request may take to send its content.
const DISCARD_DEADLINE: Duration = Duration::from_millis(500);

pub(super) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>;

/// An accepted connection, which its requests share.
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) handshake: Handshake,
    pub(super) status: Rc<Status>,
    /// True if the handshake is counted. Requests in early data are answered before their handshake is
    /// counted.
    pub(super) counted: Cell<bool>,
    pub(super) site: Rc<Site>,
    /// The sites at the time of the handshake. A reload must not lead requests to another site.
    pub(super) sites: Rc<Sites>,
    pub(super) requests: Cell<u64>,
    /// In HTTP/1, when the last response ended. In HTTP/2, when a frame with a request, a response or data last
    /// passed.
    pub(super) last_work: Cell<Instant>,
    pub(super) pending_upstreams: PendingUpstreams,
    pub(super) worker: Rc<Worker>,
}

/// The contents of the built-in page; also its JSON form.
#[derive(Serialize)]
struct VerdictPage<'a> {
    server: &'a str,
    verdict: String,
    resumed: bool,
    early_data: String,
    protocol: &'a str,
    cipher_suite: &'a str,
    http: &'a str,
    server_name: Option<&'a str>,
    client: SocketAddr,
    /// The subject of the client's certificate.
    client_certificate: Option<&'a str>,
    /// Seconds since the full handshake of the session.
    session_age_seconds: u64,
    /// The number of this request on its connection, from 1.
    request: u64,
}

pub(super) async fn answer(
    connection: Rc<Connection>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if connection.is_in_early_data() {
        request.extensions_mut().insert(SentEarly);
    }
    connection.requests.set(connection.requests.get() + 1);
    connection.worker.shared.metrics.count_request();
    let is_logged = connection.worker.shared.env.access_log.is_on();
    let entry = is_logged.then(|| Entry::of(&request));
    let is_probe = request.headers().contains_key(PROBE);
    let is_http2 = request.version() == Version::HTTP_2;
    let is_last = request::is_last(&request);
    let is_head = request.method() == Method::HEAD;
    let mut response = route(&connection, request)
        .await
        .unwrap_or_else(|code| refusal(code, is_http2));
    if is_head && !response.body().is_end_stream() {
        response = without_content(response);
    }
    if is_probe {
        connection.add_verdict_headers(response.headers_mut());
    }
    if let Some(entry) = entry {
        connection.log(&entry.finish(&response));
    }
    if is_last && matches!(response.body(), Either::Left(_)) {
        connection.status.announce_last_response();
    }
    Ok(response)
}

/// Answers a request by its route.
///
/// # Errors
/// The status for a refused request, or for an upstream that did not answer.
async fn route(
    connection: &Connection,
    request: Request<Incoming>,
) -> Result<Response<Body>, StatusCode> {
    if *request.method() == Method::CONNECT {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    if request::has_two_lengths(request.headers()) {
        return Err(StatusCode::BAD_REQUEST);
    }
    connection.check_host(&request)?;
    if is_too_early(&request) {
        return Err(StatusCode::TOO_EARLY);
    }
    let path = request.uri().path();
    let (handler, below) = connection
        .site
        .routes
        .find(path)
        .map_err(|routes::AmbiguousPath| StatusCode::BAD_REQUEST)?
        .ok_or(StatusCode::NOT_FOUND)?;
    if matches!(handler, Handler::Files(_) | Handler::Verdict)
        && !matches!(*request.method(), Method::GET | Method::HEAD)
    {
        let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        if request.version() == Version::HTTP_2 {
            discard_content(request.into_body()).await;
        }
        return Ok(response);
    }
    let above = &path[..path.len() - below.len()];
    Ok(match handler {
        Handler::Files(folder) => {
            let above = above.len();
            let (head, _) = request.into_parts();
            files(folder, &head, above, connection.peer.ip()).await?
        }
        Handler::Proxy(upstream) => {
            let client = connection.peer.ip();
            let response = upstream
                .forward(client, &connection.pending_upstreams, request)
                .await?;
            response.map(|body| Either::Right(body.boxed_unsync()))
        }
        Handler::Redirect(to) => redirect(to, below, request.uri().query()),
        Handler::Respond { status, body } => {
            let mut response = text(body.clone());
            *response.status_mut() = StatusCode::from_u16(*status).unwrap_or_default();
            response
        }
        Handler::Verdict => connection.verdict_page(above, below, request.headers()),
    })
}

/// Reads the content of a refused request.
///
/// A client that frames the content wrongly gets an error of its stream (RFC 9113, 8.1.1). If the response left
/// first, the client would not get this error.
async fn discard_content(mut content: Incoming) {
    let discard = async {
        let mut left = MAX_DISCARDED;
        while let Some(Ok(frame)) = content.frame().await
            && let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len))
        {
            left = rest;
        }
    };
    // A client may wait for the response before it sends the content.
    let _ = tokio::time::timeout(DISCARD_DEADLINE, discard).await;
}

fn refusal(code: StatusCode, is_http2: bool) -> Response<Body> {
    let mut response = status(code);
    let has_unclear_end = matches!(
        code,
        StatusCode::BAD_REQUEST | StatusCode::REQUEST_TIMEOUT | StatusCode::NOT_IMPLEMENTED
    );
    if has_unclear_end && !is_http2 {
        // The end of this request is unclear, so the next request of the connection cannot be found.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

/// Removes the content of a response to HEAD, and keeps its length (RFC 9110, 9.3.2).
///
/// hyper removes the content over HTTP/1.1 only.
fn without_content(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(CONTENT_LENGTH, length.into());
    }
    Response::from_parts(head, Either::Left(Full::default()))
}

/// True if the client must send the request again after the handshake (RFC 8470, 5.2).
///
/// Early data can be a replay, so only safe methods are answered.
fn is_too_early<B>(request: &Request<B>) -> bool {
    request.extensions().get::<SentEarly>().is_some() && !request.method().is_safe()
}

/// Answers with a file. `above` is the length of the part of the path that the route matched.
async fn files(
    folder: &Folder,
    head: &Parts,
    above: usize,
    client: IpAddr,
) -> Result<Response<Body>, StatusCode> {
    let (above, below) = head.uri.path().split_at(above);
    if below.is_empty() {
        // The relative links of an index page need a path that ends with a slash.
        return Ok(redirect(above, "/", head.uri.query()));
    }
    match folder.answer(head, below, client).await? {
        Answer::Response(response) => Ok(response.map(|content| match content {
            Content::InMemory(bytes) => Either::Left(Full::new(bytes)),
            Content::Stream(stream) => Either::Right(stream.boxed_unsync()),
        })),
        Answer::MissingSlash => {
            let below = below.trim_start_matches('/');
            let mut response = redirect(above, &format!("/{below}/"), head.uri.query());
            // The redirect is temporary, because a file can replace the folder later.
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            Ok(response)
        }
    }
}

fn redirect(to: &str, below: &str, query: Option<&str>) -> Response<Body> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut target = format!("{to}{below}{query}");
    if target.starts_with('/') {
        // After two slashes, browsers read a host name. They treat a backslash as a slash.
        target = format!("/{}", target.trim_start_matches(['/', '\\']));
    }
    let Ok(location) = HeaderValue::try_from(target) else {
        return status(StatusCode::BAD_REQUEST);
    };
    let mut response = status(StatusCode::PERMANENT_REDIRECT);
    response.headers_mut().insert(LOCATION, location);
    response
}

/// A response whose body is the text of its status.
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
    /// True if the client's Finished is missing, so that all requests can be replays (RFC 8470, 3).
    fn is_in_early_data(&self) -> bool {
        self.status.completion() == Completion::UnderWay
    }

    /// Adds the verdict, the result for early data and the server's name to the headers of a response.
    fn add_verdict_headers(&self, headers: &mut HeaderMap) {
        let verdict = HeaderValue::try_from(self.handshake.verdict.to_string());
        let early_data = HeaderValue::try_from(self.handshake.early_data.to_string());
        let server = HeaderValue::try_from(self.server());
        for (name, value) in [
            (VERDICT, verdict),
            (EARLY_DATA, early_data),
            (SERVER, server),
        ] {
            if let Ok(value) = value {
                // An upstream may have sent a header of this name. This server's header replaces that
                // header.
                headers.insert(name, value);
            }
        }
    }

    /// The built-in page. The path of the route gives HTML or text, as the client prefers.
    ///
    /// `/verdict.json` below that path gives JSON.
    fn verdict_page(&self, above: &str, below: &str, headers: &HeaderMap) -> Response<Body> {
        let page = self.page_contents();
        let mut response = match below {
            "" | "/" => {
                let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
                if accept.is_some_and(|accept| accept.contains("text/html")) {
                    typed("text/html; charset=utf-8", page.html(above).into())
                } else {
                    text(page.text().into())
                }
            }
            "/verdict.json" => {
                let mut json = serde_json::to_vec(&page).unwrap_or_default();
                json.push(b'\n');
                typed("application/json", json.into())
            }
            _ => return status(StatusCode::NOT_FOUND),
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.add_verdict_headers(headers);
        response
    }

    fn page_contents(&self) -> VerdictPage<'_> {
        let handshake = &self.handshake;
        VerdictPage {
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

    /// Refuses a request for another site than the site of the handshake (RFC 9110, 7.4).
    ///
    /// Browsers reuse a connection for all names of its certificate, but the other site may require client
    /// certificates. A host without a site is refused too, because an upstream could serve any site for
    /// that host.
    fn check_host<B>(&self, request: &Request<B>) -> Result<(), StatusCode> {
        let Some(host) = Host::of(request.uri(), request.headers(), request.version())
            .map_err(|request::InvalidHost| StatusCode::BAD_REQUEST)?
        else {
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

    /// Writes a log line for a connection without requests, because its handshake has a verdict.
    pub(super) fn log_if_silent(&self) {
        if self.requests.get() == 0 && self.worker.shared.env.access_log.is_on() {
            self.log("\"-\" - - \"-\" \"-\"");
        }
    }

    /// Writes a log line in the combined log format, with more fields at the end.
    ///
    /// The fields are server, protocol, verdict, early data, and the client certificate if there is one.
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

impl VerdictPage<'_> {
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

    /// `above`: the path of the route.
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

/// The part of a log line that the request and the response fill.
struct Entry {
    /// The request line, in quotes.
    request_line: String,
    /// `Referer` and `User-Agent`, each in quotes.
    referer_and_agent: String,
}

impl Entry {
    fn of(request: &Request<Incoming>) -> Self {
        let path = request.uri().path_and_query();
        let referer = header_text(request.headers(), REFERER);
        let user_agent = header_text(request.headers(), USER_AGENT);
        Self {
            request_line: format!(
                "\"{} {} {:?}\"",
                request.method(),
                quoted(path.map_or("-", PathAndQuery::as_str)),
                request.version()
            ),
            referer_and_agent: format!("\"{}\" \"{}\"", quoted(referer), quoted(user_agent)),
        }
    }

    fn finish(self, response: &Response<Body>) -> String {
        let bytes = match response.body().size_hint().exact() {
            Some(bytes) => bytes.to_string(),
            // The body may be a stream of unknown length while the header has the length.
            None => header_text(response.headers(), CONTENT_LENGTH).to_owned(),
        };
        let code = response.status().as_u16();
        format!(
            "{} {code} {bytes} {}",
            self.request_line, self.referer_and_agent
        )
    }
}

/// The value of a header; `-` if the header is missing or not text.
fn header_text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_to_a_path_names_no_other_host() {
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
    fn early_data_is_answered_for_safe_methods_only() {
        for (method, is_safe) in [
            ("GET", true),
            ("HEAD", true),
            ("OPTIONS", true),
            ("POST", false),
            ("PUT", false),
            ("DELETE", false),
            ("BREW", false),
        ] {
            let mut request = Request::builder()
                .method(method)
                .body(())
                .expect("a request");
            assert!(!is_too_early(&request));
            request.extensions_mut().insert(SentEarly);
            assert_eq!(is_too_early(&request), !is_safe, "{method}");
        }
    }
}
