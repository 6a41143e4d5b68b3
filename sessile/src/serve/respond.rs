//! Answers requests by the routes of their site. The built-in page shows the verdict of the connection's
//! handshake.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;

use super::Worker;
use super::files::{Answer, Content, FileStream, Folder};
use super::large_file::{self, LargeFile};
use super::pending_upstreams::PendingUpstreams;
use super::proxy::{ClientAddress, Download, Upstream};
use super::request::{self, Host, SentEarly};
use super::request_log::{self, Entry, Exchange};
use super::request_task::RequestEnd;
use super::routes;
use super::sites::{Handler, Site, Sites};
use super::verdict_page::{self, JSON_PATH, RETURN_PATH, RETURNED, VerdictPage};
use crate::clock;
use crate::tls::{Completion, Handshake, Status};

/// A request with this header gets the verdict of its connection in the response headers.
const PROBE: HeaderName = HeaderName::from_static("sessile-probe");
const VERDICT: HeaderName = HeaderName::from_static("sessile-verdict");
const EARLY_DATA: HeaderName = HeaderName::from_static("sessile-early-data");
const SERVER: HeaderName = HeaderName::from_static("sessile-server");

/// A body in memory, from a file, or from an upstream.
pub(super) type Body = Either<Full<Bytes>, Either<FileStream, Pin<Box<Download>>>>;

/// An accepted connection, which its requests share.
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    /// The peer's address for upstreams. The first proxied request sets it.
    pub(super) client_address: OnceCell<Box<ClientAddress>>,
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
    /// True if a response is the last one of an HTTP/2 connection, and GOAWAY is not sent yet.
    pub(super) is_ending: Cell<bool>,
    pub(super) pending_upstreams: PendingUpstreams,
    /// A large file that is the answer to the present request. hyper does not send it.
    pub(super) large_file: RefCell<Option<Box<LargeFile>>>,
    /// True if the connection is counted among those with large files.
    pub(super) has_sent_large_file: Cell<bool>,
    pub(super) worker: Rc<Worker>,
}

/// The reply to a request.
pub(super) enum Reply {
    Ready(Response<Body>),
    Waiting(Waiting),
}

/// A request whose response has to wait.
pub(super) struct Waiting {
    connection: Rc<Connection>,
    request: Request<Incoming>,
    pub(super) summary: Summary,
    wait: Wait,
}

/// The reason why a response has to wait.
enum Wait {
    /// The file system. `above`: the length of the part of the path that the route matched.
    Files {
        folder: Rc<Folder>,
        above: usize,
    },
    Upstream(Rc<Upstream>),
    /// The content of a request whose method is refused.
    Content,
}

/// The next step for a request.
enum Step {
    Respond(Response<Body>),
    Wait(Wait),
}

/// The properties of a request that its response depends on.
pub(super) struct Summary {
    /// The log entry, if the access log is enabled.
    entry: Option<Entry>,
    is_probe: bool,
    is_http2: bool,
    pub(super) is_last: bool,
    is_head: bool,
}

/// Begins to answer a request. The response is ready if all its parts are in memory.
pub(super) fn answer(connection: &Rc<Connection>, mut request: Request<Incoming>) -> Reply {
    if connection.is_in_early_data() {
        request.extensions_mut().insert(SentEarly);
    }
    connection.requests.set(connection.requests.get() + 1);
    connection.worker.shared.metrics.count_request();
    let is_logged = connection.worker.shared.env.access_log.is_on();
    let summary = Summary {
        entry: is_logged.then(|| Entry::of(&request)),
        is_probe: request.headers().keys().any(|name| *name == PROBE),
        is_http2: request.version() == Version::HTTP_2,
        is_last: request::is_last(&request),
        is_head: *request.method() == Method::HEAD,
    };
    match connection.route(&request) {
        Ok(Step::Wait(wait)) => Reply::Waiting(Waiting {
            connection: Rc::clone(connection),
            request,
            summary,
            wait,
        }),
        Ok(Step::Respond(response)) => Reply::Ready(summary.finish(connection, Ok(response))),
        Err(code) => Reply::Ready(summary.finish(connection, Err(code))),
    }
}

impl Waiting {
    /// True if a large file may be sent without hyper.
    pub(super) fn may_leave_hyper(&self) -> bool {
        large_file::may_answer(&self.request, &self.connection.handshake)
    }

    /// Waits for the response. `end` can end the wait early.
    pub(super) async fn answer(self, end: RequestEnd) -> Response<Body> {
        let Self {
            connection,
            request,
            summary,
            wait,
        } = self;
        let client = connection.peer.ip();
        let result = match wait {
            Wait::Files { folder, above } => {
                let (head, _) = request.into_parts();
                files(&folder, &head, above, client, end).await
            }
            Wait::Upstream(upstream) => {
                upstream
                    .forward(
                        connection.client_address(),
                        &connection.pending_upstreams,
                        request,
                        end,
                    )
                    .await
            }
            Wait::Content => {
                request::discard_content(request.into_body()).await;
                Ok(method_not_allowed())
            }
        };
        summary.finish(&connection, result)
    }
}

impl Summary {
    /// Completes a response.
    fn finish(
        self,
        connection: &Connection,
        result: Result<Response<Body>, StatusCode>,
    ) -> Response<Body> {
        let mut response = result.unwrap_or_else(|code| refusal(code, self.is_http2));
        if self.is_head && !response.body().is_end_stream() {
            response = without_content(response);
        }
        if self.is_probe {
            connection.add_verdict_headers(response.headers_mut());
        }
        if let Some(entry) = self.entry {
            connection.log(&entry.finish(&response));
        }
        if self.is_last && matches!(response.body(), Either::Left(_)) {
            connection.status.announce_last_response();
        }
        response
    }
}

impl Connection {
    /// Finds the next step for a request.
    ///
    /// # Errors
    /// The status for a refused request.
    fn route(&self, request: &Request<Incoming>) -> Result<Step, StatusCode> {
        let is_http2 = request.version() == Version::HTTP_2;
        if *request.method() == Method::CONNECT {
            return Err(StatusCode::NOT_IMPLEMENTED);
        }
        if is_http2 && request::has_two_lengths(request.headers()) {
            return Err(StatusCode::BAD_REQUEST);
        }
        self.check_host(request)?;
        if is_too_early(request) {
            return Err(StatusCode::TOO_EARLY);
        }
        let path = request.uri().path();
        let (handler, below) = self
            .site
            .routes
            .find(path)
            .map_err(|routes::AmbiguousPath| StatusCode::BAD_REQUEST)?
            .ok_or(StatusCode::NOT_FOUND)?;
        if matches!(handler, Handler::Files(_) | Handler::Verdict)
            && !matches!(*request.method(), Method::GET | Method::HEAD)
        {
            return Ok(if is_http2 {
                Step::Wait(Wait::Content)
            } else {
                Step::Respond(method_not_allowed())
            });
        }
        let above = &path[..path.len() - below.len()];
        Ok(match handler {
            Handler::Files(folder) => match folder.answer_at_once(request, below) {
                Some(response) => Step::Respond(response.map(body_of)),
                None => Step::Wait(Wait::Files {
                    folder: Rc::clone(folder),
                    above: above.len(),
                }),
            },
            Handler::Proxy(upstream) => Step::Wait(Wait::Upstream(Rc::clone(upstream))),
            Handler::Redirect(to) => Step::Respond(redirect(to, below, request.uri().query())),
            Handler::Respond { status, body } => {
                let mut response = text(body.clone());
                *response.status_mut() = StatusCode::from_u16(*status).unwrap_or_default();
                Step::Respond(response)
            }
            Handler::Verdict => Step::Respond(self.verdict_page(above, below, request)),
        })
    }
}

fn method_not_allowed() -> Response<Body> {
    let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
    let allow = HeaderValue::from_static("GET, HEAD");
    response.headers_mut().insert(ALLOW, allow);
    response
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
    end: RequestEnd,
) -> Result<Response<Body>, StatusCode> {
    let (above, below) = head.uri.path().split_at(above);
    if below.is_empty() {
        // The relative links of an index page need a path that ends with a slash.
        return Ok(redirect(above, "/", head.uri.query()));
    }
    match folder.answer(head, below, client, end).await? {
        Answer::Response(response) => Ok(response.map(body_of)),
        Answer::MissingSlash => {
            let below = below.trim_start_matches('/');
            let mut response = redirect(above, &format!("/{below}/"), head.uri.query());
            // The redirect is temporary, because a file can replace the folder later.
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            Ok(response)
        }
    }
}

fn body_of(content: Content) -> Body {
    match content {
        Content::InMemory(bytes) => Either::Left(Full::new(bytes)),
        Content::Stream(stream) => Either::Right(Either::Left(stream)),
    }
}

fn redirect(to: &str, below: &str, query: Option<&str>) -> Response<Body> {
    redirect_as(StatusCode::PERMANENT_REDIRECT, to, below, query)
}

fn redirect_as(code: StatusCode, to: &str, below: &str, query: Option<&str>) -> Response<Body> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut target = format!("{to}{below}{query}");
    if target.starts_with('/') {
        // After two slashes, browsers read a host name. They treat a backslash as a slash.
        target = format!("/{}", target.trim_start_matches(['/', '\\']));
    }
    let Ok(location) = HeaderValue::try_from(target) else {
        return status(StatusCode::BAD_REQUEST);
    };
    let mut response = status(code);
    response.headers_mut().insert(LOCATION, location);
    response
}

/// Leads to the built-in page of a route.
fn see_other(above: &str, query: Option<&str>) -> Response<Body> {
    redirect_as(StatusCode::SEE_OTHER, above, "/", query)
}

/// A response whose body is the text of its status.
fn status(code: StatusCode) -> Response<Body> {
    let mut response = text(format!("{code}\n").into());
    *response.status_mut() = code;
    response
}

fn text(body: Bytes) -> Response<Body> {
    let mut response = in_memory(Response::new(body));
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn in_memory(response: Response<Bytes>) -> Response<Body> {
    response.map(|body| Either::Left(Full::new(body)))
}

impl Connection {
    fn client_address(&self) -> &ClientAddress {
        self.client_address
            .get_or_init(|| Box::new(ClientAddress::new(self.peer.ip())))
    }

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
    /// Below that path, [`JSON_PATH`] gives JSON, and [`RETURN_PATH`] leads to the page on a new connection.
    fn verdict_page<B>(&self, above: &str, below: &str, request: &Request<B>) -> Response<Body> {
        let page = self.page_contents();
        let has_returned = request.uri().query() == Some(RETURNED);
        let may_close = !verdict_page::is_from_other_site(request.headers());
        let mut response = match below {
            "" | "/" if has_returned && may_close && page.may_be_on_spare_connection() => {
                self.return_on_new_connection(above, None)
            }
            "" | "/" => in_memory(page.response(above, request.headers())),
            JSON_PATH => in_memory(page.json()),
            RETURN_PATH if may_close => self.return_on_new_connection(above, Some(RETURNED)),
            RETURN_PATH => see_other(above, None),
            _ => return status(StatusCode::NOT_FOUND),
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.add_verdict_headers(headers);
        response
    }

    /// Leads back to the page. The connection ends after this response, so the browser opens another one.
    fn return_on_new_connection(&self, above: &str, query: Option<&str>) -> Response<Body> {
        let mut response = see_other(above, query);
        if self.handshake.http2 {
            // GOAWAY leaves before this response, so the browser does not follow the redirect on this connection.
            self.is_ending.set(true);
        } else {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    }

    fn page_contents(&self) -> VerdictPage<'_> {
        let handshake = &self.handshake;
        VerdictPage {
            server: self.server(),
            verdict: handshake.verdict,
            resumed: handshake.verdict.outcome() == "resumed",
            early_data: handshake.early_data.to_string(),
            protocol: handshake.version,
            cipher_suite: handshake.suite,
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
        let invalid = |request::InvalidHost| StatusCode::BAD_REQUEST;
        let Some(written) =
            Host::find(request.uri(), request.headers(), request.version()).map_err(invalid)?
        else {
            return Ok(());
        };
        if let Some(name) = &self.handshake.server_name
            && request::is_host_named(written, name)
        {
            debug_assert!(self.is_of_this_site(name), "the site was found by its name");
            return Ok(());
        }
        let host = Host::read(written).map_err(invalid)?;
        if self.is_of_this_site(host.name) {
            Ok(())
        } else {
            Err(StatusCode::MISDIRECTED_REQUEST)
        }
    }

    /// True if a name leads to the site of the handshake.
    fn is_of_this_site(&self, name: &str) -> bool {
        let site = self.sites.find(Some(name));
        site.is_some_and(|site| Rc::ptr_eq(site, &self.site))
    }

    fn server(&self) -> &str {
        &self.worker.shared.config.server.name
    }

    /// Writes a log line for a connection without requests, because its handshake has a verdict.
    pub(super) fn log_if_silent(&self) {
        if self.requests.get() == 0 && self.worker.shared.env.access_log.is_on() {
            self.log(&Exchange::none());
        }
    }

    fn log(&self, exchange: &Exchange) {
        let access_log = &self.worker.shared.env.access_log;
        let (server, handshake) = (self.server(), &self.handshake);
        let line = if access_log.is_brief() {
            request_log::brief_line(server, handshake.version, handshake.verdict, exchange)
        } else {
            request_log::whole_line(server, self.peer.ip(), handshake, exchange)
        };
        access_log.line(line);
    }
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
