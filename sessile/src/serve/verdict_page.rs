//! The contents of the built-in page, which shows the verdict of the connection's handshake.

use std::net::SocketAddr;

use serde::Serialize;

/// The contents of the built-in page; also its JSON form.
#[derive(Serialize)]
pub(super) struct VerdictPage<'a> {
    pub(super) server: &'a str,
    pub(super) verdict: String,
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
    /// The page as plain text.
    pub(super) fn text(&self) -> String {
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

    /// The page as HTML. `above`: the path of the route.
    pub(super) fn html(&self, above: &str) -> String {
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
