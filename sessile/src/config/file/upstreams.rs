//! `[[upstream]]`: the servers behind routes with `proxy`.

use std::sync::Arc;

use http::Uri;
use toml::Spanned;

use super::raw;
use super::reader::{Reader, Table, Unique};
use crate::config::settings::types::POSITIVE_DURATION;
use crate::config::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_RESPONSE_TIMEOUT, Upstream};

/// The port of an `http` URL that names no port.
const HTTP_PORT: u16 = 80;

/// Reads all upstreams. Routes can refer to an upstream that has a name, even if the upstream has other
/// problems.
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
    let table = Table::new("[[upstream]]", &written);
    let upstream = written.into_inner();
    let written_name = reader.required(upstream.name, &table, "name", "\"app\"");
    let name = reader.unique_name(names, written_name);
    let first_server = upstream.servers.first();
    let example = "[\"http://10.0.0.1:8080\"]";
    reader.required(first_server, &table, "servers", example);
    let mut seen = Unique::new("server");
    let mut servers = Vec::new();
    for written in upstream.servers {
        servers.extend(reader.parse_unique(&mut seen, written, server));
    }
    let mut timeout = |key, written| reader.value(&POSITIVE_DURATION, key, written);
    let connect_timeout = timeout("connect-timeout", upstream.connect_timeout);
    let response_timeout = timeout("response-timeout", upstream.response_timeout);
    Some(Upstream {
        name: name?,
        servers,
        connect_timeout: connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT),
        response_timeout: response_timeout.unwrap_or(DEFAULT_RESPONSE_TIMEOUT),
    })
}

/// The host and port of a server's URL.
fn server(value: String) -> Result<String, String> {
    let url = value.parse::<Uri>().ok();
    let address = match url.as_ref().and_then(Uri::scheme_str) {
        Some("https") => {
            return Err(format!(
                "{value:?} needs TLS, which this version does not speak to an upstream; write \"http://\" and use a \
                 network that you trust"
            ));
        }
        Some("http") => url.as_ref().and_then(host_and_port),
        _ => None,
    };
    address.ok_or_else(|| {
        format!(
            "{value:?} is not the server of an upstream; write \"http://\", a host and a port: \
             \"http://10.0.0.1:8080\" (the path of a request is passed on unchanged)"
        )
    })
}

/// The host and port of a URL. `None`: the URL has a path or a query, or lacks the host.
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
