//! `[[upstream]]`: the servers behind routes with `proxy`.

use std::sync::Arc;

use http::Uri;
use toml::Spanned;

use super::problem::What;
use super::raw;
use super::reader::{POSITIVE_DURATION, Reader, Unique};
use crate::config::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_RESPONSE_TIMEOUT, Upstream};

/// The port of an `http` URL without one.
const HTTP_PORT: u16 = 80;

/// Reads all upstreams. Routes can refer to an upstream that has a name, even if it has other problems.
pub(super) fn read(
    reader: &mut Reader<'_>,
    written: Vec<Spanned<raw::Upstream>>,
) -> Vec<Arc<Upstream>> {
    let mut names = Unique::new("upstream");
    written
        .into_iter()
        .filter_map(|written| upstream(reader, written, &mut names).map(Arc::new))
        .collect()
}

fn upstream(
    reader: &mut Reader<'_>,
    written: Spanned<raw::Upstream>,
    names: &mut Unique<String>,
) -> Option<Upstream> {
    let span = written.span();
    let upstream = written.into_inner();
    let missing = |key, example| What::missing("[[upstream]]", key, example);
    let written_name = reader.required(upstream.name, span.clone(), missing("name", "\"app\""));
    let name = reader.unique_name(written_name, names);
    if upstream.servers.is_empty() {
        reader.note(span, missing("servers", "[\"http://10.0.0.1:8080\"]"));
    }
    let mut seen = Unique::new("server");
    let mut servers = Vec::new();
    for written in upstream.servers {
        servers.extend(server(reader, &written, &mut seen));
    }
    let connect_timeout = reader.duration(
        "connect-timeout",
        upstream.connect_timeout,
        POSITIVE_DURATION,
    );
    let response_timeout = reader.duration(
        "response-timeout",
        upstream.response_timeout,
        POSITIVE_DURATION,
    );
    Some(Upstream {
        name: name?,
        servers,
        connect_timeout: connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT),
        response_timeout: response_timeout.unwrap_or(DEFAULT_RESPONSE_TIMEOUT),
    })
}

/// The host and port of a server's URL.
fn server(
    reader: &mut Reader<'_>,
    written: &Spanned<String>,
    seen: &mut Unique<String>,
) -> Option<String> {
    let value = written.get_ref().clone();
    let url = value.parse::<Uri>().ok();
    let scheme = url.as_ref().and_then(Uri::scheme_str);
    let address = match scheme {
        Some("https") => {
            reader.note(written.span(), What::UpstreamTls { value });
            return None;
        }
        Some("http") => url.as_ref().and_then(host_and_port),
        _ => None,
    };
    match &address {
        Some(address) => reader.unique(seen, address.clone(), &written.span()),
        None => reader.note(written.span(), What::NotAnUpstreamServer { value }),
    }
    address
}

/// `None`: the URL has other parts, or lacks the host.
fn host_and_port(url: &Uri) -> Option<String> {
    let authority = url.authority()?;
    let host = authority.host();
    let port = match authority.as_str().strip_prefix(host)? {
        "" => HTTP_PORT,
        // No server can have port 0.
        port => port
            .strip_prefix(':')?
            .parse()
            .ok()
            .filter(|&port| port > 0)?,
    };
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && !host.is_empty();
    is_bare.then(|| format!("{}:{port}", host.to_ascii_lowercase()))
}
