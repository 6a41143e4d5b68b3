//! `[[site]]`: names, certificates, client certificates and routes.

use std::ops::Range;
use std::sync::Arc;

use rustls_pki_types::DnsName;
use toml::Spanned;

use super::problem::hint;
use super::raw;
use super::reader::{Reader, Table, Unique};
use crate::config::settings::types::{Count, OneOf, PATH, Size};
use crate::config::{
    Action, Certificate, ClientAuth, ClientAuthMode, Folder, MAX_EARLY_DATA, Site, SiteRoute,
    Symlinks, Upstream,
};

const CLIENT_AUTH_MODES: [(&str, ClientAuthMode); 2] = [
    ("required", ClientAuthMode::Required),
    ("optional", ClientAuthMode::Optional),
];

const SYMLINKS: [(&str, Symlinks); 2] =
    [("inside", Symlinks::Inside), ("follow", Symlinks::Follow)];

/// Reads all sites. A name belongs to one site, and at most one site has no names. `early_data` is
/// `session.early-data`: the default of each site, and the maximum.
pub(super) fn read(
    reader: &mut Reader<'_>,
    written: Vec<Spanned<raw::Site>>,
    upstreams: &[Arc<Upstream>],
    early_data: u32,
) -> Vec<Site> {
    let mut names = Unique::new("site for the name");
    let mut defaults = Unique::new("site");
    let mut sites = Vec::new();
    for site in written {
        let span = site.span();
        let site = site.into_inner();
        if site.names.is_empty() {
            reader.unique(&mut defaults, "without names", &span);
        }
        if site.certificates.is_empty() {
            reader.note(
                span,
                "the site has no certificate; add certificates = [{ chain = \"cert.pem\", key = \"key.pem\" }]",
            );
        }
        let max_early_data = site.client_auth.is_none().then_some(early_data);
        let mut paths = Unique::new("route for the path");
        let mut routes: Vec<SiteRoute> = Vec::new();
        for written in site.route {
            routes.extend(route(reader, written, &mut paths, upstreams));
        }
        // The sort is stable: routes of the same length stay in the order of the file.
        routes.sort_by_key(|route| std::cmp::Reverse(route.path.len()));
        sites.push(Site {
            names: (site.names.into_iter())
                .filter_map(|name| reader.parse_unique(&mut names, name, server_name))
                .collect(),
            certificates: (site.certificates.into_iter())
                .filter_map(|pair| certificate(reader, pair))
                .collect(),
            client_auth: (site.client_auth)
                .and_then(|client_auth| self::client_auth(reader, client_auth)),
            early_data: self::early_data(reader, site.early_data, max_early_data),
            routes,
        });
    }
    sites
}

/// The early data of a site. `most` is `session.early-data`, or `None` if the site asks for client
/// certificates.
fn early_data(reader: &mut Reader<'_>, written: raw::Bytes, most: Option<u32>) -> u32 {
    let Some(span) = written.as_ref().map(Spanned::span) else {
        return most.unwrap_or_default();
    };
    let size = reader.value(&Size(0..=MAX_EARLY_DATA), "early-data", written);
    let value = size.unwrap_or_default();
    match most {
        None if value > 0 => reader.note(
            span,
            "`early-data` is on at a site with `client-auth`: a replayed request would be served as that of an \
             authenticated client; write early-data = 0, or remove it",
        ),
        Some(most) if value > most => {
            let what = format!(
                "`early-data` of the site is {value} bytes, and session.early-data is {most}: a site may allow less, \
                 not more; raise session.early-data and set a lower value at the other sites"
            );
            reader.note_reference("session", span, what);
        }
        _ => {}
    }
    value
}

/// A server name (SNI) or a wildcard, in lower case.
pub(super) fn server_name(written: String) -> Result<String, String> {
    let name = written.to_ascii_lowercase();
    let below = name.strip_prefix("*.").unwrap_or(&name);
    if below.ends_with('.') || DnsName::try_from(below).is_err() {
        return Err(format!(
            "{written:?} is not a server name; write a DNS name (in ASCII form), or \"*.\" and a DNS name; omit \
             `names` for the site that takes every other name"
        ));
    }
    Ok(name)
}

fn certificate(reader: &mut Reader<'_>, written: Spanned<raw::Certificate>) -> Option<Certificate> {
    let table = Table::new("a certificate", &written);
    let pair = written.into_inner();
    let chain = reader.required_value(&PATH, pair.chain, &table, "chain", "\"cert.pem\"");
    let key = reader.required_value(&PATH, pair.key, &table, "key", "\"key.pem\"");
    Some(Certificate {
        chain: chain?,
        key: key?,
    })
}

fn client_auth(reader: &mut Reader<'_>, written: Spanned<raw::ClientAuth>) -> Option<ClientAuth> {
    let table = Table::new("client-auth", &written);
    let written = written.into_inner();
    let mode = reader.value(&OneOf(&CLIENT_AUTH_MODES), "mode", written.mode);
    let ca = reader.required_value(&PATH, written.ca, &table, "ca", "\"clients.pem\"");
    let crl = reader.value(&PATH, "crl", written.crl);
    Some(ClientAuth {
        mode: mode.unwrap_or(ClientAuthMode::Required),
        ca: ca?,
        crl,
    })
}

fn route(
    reader: &mut Reader<'_>,
    written: Spanned<raw::Route>,
    paths: &mut Unique<String>,
    upstreams: &[Arc<Upstream>],
) -> Option<SiteRoute> {
    let table = Table::new("[[site.route]]", &written);
    let mut route = written.into_inner();
    let path = reader
        .required(route.path.take(), &table, "path", "\"/\"")
        .and_then(|path| reader.parse_unique(paths, path, route_path));
    let action = action(reader, route, table.span, upstreams);
    Some(SiteRoute {
        path: path?,
        action: action?,
    })
}

/// A route's path without trailing slashes, or `/`.
fn route_path(written: String) -> Result<String, String> {
    let path = match written.trim_end_matches('/') {
        "" if written.starts_with('/') => "/",
        path => path,
    };
    let mut parts = path.strip_prefix('/').unwrap_or("..").split('/');
    let is_refused =
        |c: char| c.is_control() || c.is_whitespace() || matches!(c, '?' | '#' | ';' | '\\');
    if path.contains(is_refused)
        || (path != "/" && parts.any(|part| matches!(part, "" | "." | "..")))
        || !path.starts_with('/')
    {
        return Err(format!(
            "`path` is {written:?}; write a path that begins with a slash, without query, fragment, semicolon, `..` or \
             empty part"
        ));
    }
    Ok(path.to_owned())
}

fn action(
    reader: &mut Reader<'_>,
    route: raw::Route,
    span: Range<usize>,
    upstreams: &[Arc<Upstream>],
) -> Option<Action> {
    let verdict = route.verdict.unwrap_or(false);
    let actions = [
        route.files.is_some(),
        route.proxy.is_some(),
        route.redirect.is_some(),
        route.respond.is_some(),
        verdict,
    ];
    let found = actions.into_iter().filter(|&is_set| is_set).count();
    if let (Some(status), None) = (&route.status, &route.respond) {
        let what = "`status` needs `respond`, which this route does not have; remove `status`";
        reader.note(status.span(), what);
    }
    if let (Some(symlinks), None) = (&route.symlinks, &route.files) {
        let what = "`symlinks` needs `files`, which this route does not have; remove `symlinks`";
        reader.note(symlinks.span(), what);
    }
    let symlinks = reader.value(&OneOf(&SYMLINKS), "symlinks", route.symlinks);
    let status = reader.value(&Count(200..=599), "status", route.status);
    if found != 1 {
        let what = format!(
            "the route has {found} of `files`, `proxy`, `redirect`, `respond` and `verdict = true`; it needs exactly \
             one"
        );
        reader.note(span, what);
        return None;
    }
    if let Some(url) = route.redirect {
        return reader.parse(url, redirect);
    }
    if let Some(body) = route.respond {
        return Some(Action::Respond {
            status: status.unwrap_or(200),
            body: body.into_inner(),
        });
    }
    if let Some(name) = route.proxy {
        let is_known = upstreams.iter().any(|it| it.name == *name.get_ref());
        if !is_known && !reader.is_complete("upstream") {
            return None;
        }
        return reader.parse(name, |name| proxy(name, upstreams));
    }
    if verdict {
        return Some(Action::Verdict);
    }
    Some(Action::Files(Folder {
        path: reader.value(&PATH, "files", route.files)?,
        symlinks: symlinks.unwrap_or(Symlinks::Inside),
    }))
}

fn proxy(value: String, upstreams: &[Arc<Upstream>]) -> Result<Action, String> {
    if let Some(upstream) = upstreams.iter().find(|upstream| upstream.name == value) {
        return Ok(Action::Proxy(Arc::clone(upstream)));
    }
    if upstreams.is_empty() {
        return Err(format!(
            "`proxy` is {value:?}, but there is no [[upstream]]; add one with name = {value:?} and \
             servers = [\"http://10.0.0.1:8080\"]"
        ));
    }
    let known = upstreams.iter().map(|upstream| upstream.name.as_str());
    Err(format!("`proxy` is {value:?}; {}", hint(&value, known)))
}

fn redirect(url: String) -> Result<Action, String> {
    let usable = match url.parse::<http::Uri>() {
        Ok(uri) => match uri.scheme_str() {
            Some(scheme) => matches!(scheme, "http" | "https") && uri.host().is_some(),
            // "//host" is the address of another host, without a scheme.
            None => url.starts_with('/') && !url.starts_with("//"),
        },
        Err(_) => false,
    };
    if usable {
        Ok(Action::Redirect(url))
    } else {
        Err(format!(
            "`redirect` is {url:?}; write \"https://host/path\", or a path that begins with a slash"
        ))
    }
}
