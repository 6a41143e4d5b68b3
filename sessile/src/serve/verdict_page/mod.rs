//! The contents of the built-in page, which shows the verdict of the connection's handshake.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response};
use serde::{Serialize, Serializer};
use sessile_proto::verdict::{Reason, Verdict};

use crate::page::{self, Page, escaped};

/// Below the path of the route: the page as JSON.
pub(super) const JSON_PATH: &str = "/verdict.json";

/// Below the path of the route: closes the connection and leads back to the page.
pub(super) const RETURN_PATH: &str = "/new-connection";

/// The query of a client that comes back.
pub(super) const RETURNED: &str = "returned";

/// Browsers say in this header which site caused a request.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The contents of the built-in page; also its JSON form.
#[derive(Serialize)]
pub(super) struct VerdictPage<'a> {
    pub(super) server: &'a str,
    #[serde(serialize_with = "in_words")]
    pub(super) verdict: Verdict,
    pub(super) resumed: bool,
    pub(super) early_data: String,
    pub(super) protocol: &'a str,
    pub(super) cipher_suite: &'a str,
    pub(super) http: &'a str,
    pub(super) server_name: Option<&'a str>,
    pub(super) client: SocketAddr,
    /// The subject of the client's certificate.
    pub(super) client_certificate: Option<&'a str>,
    /// Seconds since the full handshake of the session.
    pub(super) session_age_seconds: u64,
    /// The number of this request on its connection, from 1.
    pub(super) request: u64,
}

impl VerdictPage<'_> {
    /// The page as HTML or text, as the client prefers. `above`: the path of the route, empty for `/`.
    pub(super) fn response(&self, above: &str, request: &HeaderMap) -> Response<Bytes> {
        if page::accepts_html(request) {
            self.html(above)
        } else {
            let mut response = typed("text/plain; charset=utf-8", self.text());
            page::mark_as_negotiated(response.headers_mut());
            response
        }
    }

    /// True if the browser may have opened the connection before the client came back.
    ///
    /// Browsers open a second connection together with the first one, before they have a session.
    pub(super) fn may_be_on_spare_connection(&self) -> bool {
        self.request == 1 && self.verdict == Verdict::Full(Reason::NothingOffered)
    }

    /// The page as JSON.
    pub(super) fn json(&self) -> Response<Bytes> {
        let json = serde_json::to_string(self).unwrap_or_default();
        typed("application/json", json + "\n")
    }

    /// The page as plain text.
    fn text(&self) -> String {
        let name = self.server_name.unwrap_or("-");
        let client = match self.client_certificate {
            Some(subject) => format!("client    {subject}\n"),
            None => String::new(),
        };
        format!(
            "{}\n{}\n\nserver    {}\nprotocol  {} {} {}\nname      {name}\n{client}session   {} s old\nearly     {}\nrequest   {} of this connection\n",
            self.verdict,
            self.verdict.meaning(),
            self.server,
            self.protocol,
            self.cipher_suite,
            self.http,
            self.session_age_seconds,
            self.early_data,
            self.request
        )
    }

    fn html(&self, above: &str) -> Response<Bytes> {
        let (tone, icon, outcome) = match self.verdict {
            Verdict::Resumed(_) => ("good", "#1a7f37", "Resumed"),
            Verdict::Full(_) => ("warn", "#9a6700", "Full handshake"),
        };
        let (verdict, server) = (self.verdict, escaped(self.server));
        let body = format!(
            "<section id=visit class=\"headline is-{tone}\" data-server=\"{server}\" data-verdict=\"{verdict}\" \
             data-request=\"{request}\">\n\
             <p class=quiet>server {server}</p>\n<h1 class={tone}>{outcome}</h1>\n\
             <p><code>{verdict}</code></p>\n<p id=meaning>{meaning}</p>\n\
             <form action=\"{above}{RETURN_PATH}\"><button>Come back on a new connection</button></form>\n\
             <p class=quiet>The button makes the server close this connection. Your browser then opens another one. \
             A reload stays on this connection, and shows the same verdict.</p>\n</section>\n\
             <section id=visits hidden>\n<h2>Your last visits in this tab</h2>\n<div class=scroll><table>\n\
             <thead><tr><th scope=col>time<th scope=col>server<th scope=col>verdict\
             <th scope=col class=wide>connection</thead>\n<tbody id=visits-rows></tbody>\n</table></div>\n\
             </section>\n\
             <section>\n<h2>This connection</h2>\n<dl>{details}</dl>\n\
             <p class=quiet>For programs: <a href=\"{above}{JSON_PATH}\">{above}{JSON_PATH}</a></p>\n</section>\n",
            request = self.request,
            meaning = verdict.meaning(),
            above = escaped(&local_path(above)),
            details = self.details(),
        );
        let page = Page {
            title: &format!("{verdict} · {}", self.server),
            icon,
            body: &body,
            script: include_str!("visits.js"),
        };
        page.response()
    }

    /// The properties of the connection, as terms and descriptions.
    fn details(&self) -> String {
        let request = format!("{} of this connection", self.request);
        let session = format!("{} s old", self.session_age_seconds);
        let rows = [
            ("protocol", Some(self.protocol)),
            ("HTTP", Some(self.http)),
            ("cipher suite", Some(self.cipher_suite)),
            ("server name", self.server_name),
            ("client certificate", self.client_certificate),
            ("session", Some(&session)),
            ("early data", Some(&self.early_data)),
            ("request", Some(&request)),
        ];
        rows.into_iter()
            .filter_map(|(term, text)| Some(format!("<dt>{term}<dd>{}", escaped(text?))))
            .collect()
    }
}

fn typed(content_type: &'static str, body: String) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// True if a browser says that a page of another site caused the request. Such a page must not close connections.
pub(super) fn is_from_other_site(headers: &HeaderMap) -> bool {
    let site = headers.get(FETCH_SITE).map(HeaderValue::as_bytes);
    site.is_some_and(|site| !matches!(site, b"same-origin" | b"none"))
}

/// Writes a verdict as its text.
fn in_words<S: Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(verdict)
}

/// The path without slashes that a browser would take for the beginning of a host name.
fn local_path(path: &str) -> String {
    match path.trim_start_matches(['/', '\\']) {
        "" => String::new(),
        rest => format!("/{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKUP: &str = "<script>\"&";

    /// The page with a text in each field that has a free text.
    fn page(text: &str) -> VerdictPage<'_> {
        VerdictPage {
            server: text,
            verdict: Verdict::Full(Reason::NothingOffered),
            resumed: false,
            early_data: text.to_owned(),
            protocol: text,
            cipher_suite: text,
            http: text,
            server_name: Some(text),
            client: SocketAddr::from(([127, 0, 0, 1], 1)),
            client_certificate: Some(text),
            session_age_seconds: 0,
            request: 1,
        }
    }

    fn html(text: &str, above: &str) -> String {
        let body = page(text).html(above).into_body();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[test]
    fn no_text_of_the_page_is_markup() {
        let html = html(MARKUP, &format!("/a{MARKUP}"));
        assert_eq!(html.matches("<script").count(), 1, "{html}");
        let escaped = "&lt;script>&quot;&amp;";
        // The title, the heading and its data, the form, the link and its text, and six properties.
        assert_eq!(html.matches(escaped).count(), 12, "{html}");
    }

    #[test]
    fn the_links_of_the_page_name_no_other_host() {
        for above in ["//v", "/\\v", "/v"] {
            let html = html("a", above);
            assert!(html.contains("action=\"/v/new-connection\""), "{html}");
            assert!(html.contains("href=\"/v/verdict.json\""), "{html}");
        }
        assert!(html("a", "").contains("action=\"/new-connection\""));
    }

    #[test]
    fn only_pages_of_the_same_site_close_the_connection() {
        assert!(!is_from_other_site(&HeaderMap::new()));
        for (site, is_other) in [
            ("same-origin", false),
            ("none", false),
            ("same-site", true),
            ("cross-site", true),
        ] {
            let headers = HeaderMap::from_iter([(FETCH_SITE, HeaderValue::from_static(site))]);
            assert_eq!(is_from_other_site(&headers), is_other, "{site}");
        }
    }
}
