//! The frame and the look of the HTML pages that sessile makes itself: the built-in page of a server, and the
//! page of the admin listener. The pages load nothing else.

use aws_lc_rs::rand;
use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, VARY,
};
use http::{HeaderMap, Response};

const STYLE: &str = include_str!("style.css");

/// The contents of a page. The texts in `body` are escaped.
pub(crate) struct Page<'a> {
    pub(crate) title: &'a str,
    /// The colour of the icon, as in CSS.
    pub(crate) icon: &'a str,
    pub(crate) body: &'a str,
    /// JavaScript that runs at the end of the body. Empty: none.
    pub(crate) script: &'a str,
}

impl Page<'_> {
    /// The response with the page. The browser uses no other style and script than those of the page.
    pub(crate) fn response(&self) -> Response<Bytes> {
        let nonce = nonce();
        let mut response = Response::new(self.html(&nonce).into());
        let policy = format!(
            "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        );
        let headers = response.headers_mut();
        if let Ok(policy) = HeaderValue::try_from(policy) {
            headers.insert(CONTENT_SECURITY_POLICY, policy);
        }
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        headers.insert(CONTENT_TYPE, html);
        mark_as_negotiated(headers);
        response
    }

    /// The page as a file.
    pub(crate) fn document(&self) -> String {
        self.html(&nonce())
    }

    fn html(&self, nonce: &str) -> String {
        let title = escaped(self.title);
        let icon = self.icon.replace('#', "%23");
        let script = if self.script.is_empty() {
            String::new()
        } else {
            format!("<script nonce={nonce}>\n{}</script>\n", self.script)
        };
        format!(
            "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n\
             <meta name=viewport content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <link rel=icon href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' \
             viewBox='0 0 16 16'><circle cx='8' cy='8' r='7' fill='{icon}'/></svg>\">\n\
             <style nonce={nonce}>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}</main>\n{script}</body>\n</html>\n",
            self.body,
        )
    }
}

/// True if a client names HTML in its `Accept` headers. Browsers do, and most other clients do not.
pub(crate) fn accepts_html(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(is_html)
}

/// True if a media range is HTML with a weight above 0 (RFC 9110, 12.5.1).
fn is_html(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let is_html = parts
        .next()
        .is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
    let is_refused = |parameter: &str| {
        let weight = parameter.strip_prefix(['q', 'Q']);
        let weight = weight.and_then(|rest| rest.trim_start().strip_prefix('='));
        weight.is_some_and(|weight| weight.trim().parse() == Ok(0.0))
    };
    is_html && !parts.any(is_refused)
}

/// Marks a response that is HTML for some clients and text for others. No cache may keep it.
pub(crate) fn mark_as_negotiated(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
}

/// Text for HTML, also for an attribute in double quotes.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

/// A random value for one response, in hexadecimal.
fn nonce() -> String {
    let mut bytes = [0; 16];
    // A failure is harmless, because all texts of the pages are escaped.
    let _ = rand::fill(&mut bytes);
    format!("{:032x}", u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_allows_its_own_style_and_script_only() {
        let page = Page {
            title: "a < b",
            icon: "#1a7f37",
            body: "<p>text</p>\n",
            script: "done();\n",
        };
        let response = page.response();
        let policy = response.headers()[CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap();
        let nonce = policy.split('\'').nth(3).unwrap();
        assert!(
            policy.contains(&format!("script-src '{nonce}'")),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        let html = String::from_utf8(response.body().to_vec()).unwrap();
        assert!(html.contains("<title>a &lt; b</title>"), "{html}");
        let mark = nonce.replace("nonce-", "nonce=");
        assert_eq!(html.matches(&mark).count(), 2, "{html}");
        assert_ne!(page.response().headers()[CONTENT_SECURITY_POLICY], policy);
    }

    #[test]
    fn html_is_for_clients_that_ask_for_it() {
        for (accept, expected) in [
            (&["text/html,application/xhtml+xml,*/*;q=0.8"][..], true),
            (&["application/json", "Text/HTML ; q=0.5"], true),
            (&["text/plain, text/html;level=1;q=0.1"], true),
            (&["text/html;q=0"], false),
            (&["text/plain, text/html; Q = 0.000"], false),
            (&["text/html+x"], false),
            (&["*/*"], false),
            (&[], false),
        ] {
            let mut headers = HeaderMap::new();
            for text in accept {
                headers.append(ACCEPT, HeaderValue::from_static(text));
            }
            assert_eq!(accepts_html(&headers), expected, "{accept:?}");
        }
    }
}
