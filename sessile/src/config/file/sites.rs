//! `[[site]]`: names, certificates, client certificates and routes.

use std::ops::Range;
use std::sync::Arc;

use rustls_pki_types::DnsName;
use toml::Spanned;

use super::problem::{Hint, What};
use super::raw;
use super::reader::{Reader, Unique};
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
            reader.note(span, What::NoCertificate);
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
                .filter_map(|name| server_name(reader, name, &mut names))
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

/// The early data of a site. `most` is `session.early-data`, or `None` if clients show certificates.
fn early_data(reader: &mut Reader<'_>, written: raw::Bytes, most: Option<u32>) -> u32 {
    let Some(span) = written.as_ref().map(Spanned::span) else {
        return most.unwrap_or_default();
    };
    let size = reader.size("early-data", written, 0..=MAX_EARLY_DATA);
    let value = size.unwrap_or_default();
    match most {
        None if value > 0 => reader.note(span, What::EarlyDataOfClients),
        Some(most) if value > most => reader.note(span, What::EarlyDataWidens { value, most }),
        _ => {}
    }
    value
}

/// A server name (SNI), whole or a wildcard, in lower case.
pub(super) fn server_name(
    reader: &mut Reader<'_>,
    written: Spanned<String>,
    names: &mut Unique<String>,
) -> Option<String> {
    let name = written.get_ref().to_ascii_lowercase();
    let below = name.strip_prefix("*.").unwrap_or(&name);
    if below.ends_with('.') || DnsName::try_from(below).is_err() {
        let value = written.get_ref().clone();
        reader.note(written.span(), What::NotAServerName { value });
        return None;
    }
    reader.unique(names, name.clone(), &written.span());
    Some(name)
}

fn certificate(reader: &mut Reader<'_>, written: Spanned<raw::Certificate>) -> Option<Certificate> {
    let span = written.span();
    let pair = written.into_inner();
    let missing = |key, example| What::missing("a certificate", key, example);
    let written_chain = reader.required(pair.chain, span.clone(), missing("chain", "\"cert.pem\""));
    let written_key = reader.required(pair.key, span, missing("key", "\"key.pem\""));
    let chain = reader.path("chain", written_chain);
    let key = reader.path("key", written_key);
    Some(Certificate {
        chain: chain?,
        key: key?,
    })
}

fn client_auth(reader: &mut Reader<'_>, written: Spanned<raw::ClientAuth>) -> Option<ClientAuth> {
    let span = written.span();
    let written = written.into_inner();
    let mode = reader.one_of("mode", written.mode, &CLIENT_AUTH_MODES);
    let missing = What::missing("client-auth", "ca", "\"clients.pem\"");
    let written_ca = reader.required(written.ca, span, missing);
    let ca = reader.path("ca", written_ca);
    let crl = reader.path("crl", written.crl);
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
    let span = written.span();
    let mut route = written.into_inner();
    let missing = What::missing("[[site.route]]", "path", "\"/\"");
    let path = reader
        .required(route.path.take(), span.clone(), missing)
        .and_then(|path| route_path(reader, path, paths));
    let action = action(reader, route, span, upstreams);
    Some(SiteRoute {
        path: path?,
        action: action?,
    })
}

/// A route's path without trailing slashes, or `/`.
fn route_path(
    reader: &mut Reader<'_>,
    written: Spanned<String>,
    paths: &mut Unique<String>,
) -> Option<String> {
    let path = match written.get_ref().trim_end_matches('/') {
        "" if written.get_ref().starts_with('/') => "/",
        path => path,
    };
    let mut parts = path.strip_prefix('/').unwrap_or("..").split('/');
    let is_refused =
        |c: char| c.is_control() || c.is_whitespace() || matches!(c, '?' | '#' | ';' | '\\');
    if path.contains(is_refused)
        || (path != "/" && parts.any(|part| matches!(part, "" | "." | "..")))
        || !path.starts_with('/')
    {
        let value = written.get_ref().clone();
        reader.note(written.span(), What::NotAPath { value });
        return None;
    }
    reader.unique(paths, path.to_owned(), &written.span());
    Some(path.to_owned())
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
        reader.note(status.span(), What::StatusAlone);
    }
    let status = reader.number("status", route.status, 200, 599);
    if let (Some(symlinks), None) = (&route.symlinks, &route.files) {
        reader.note(symlinks.span(), What::SymlinksAlone);
    }
    let symlinks = reader.one_of("symlinks", route.symlinks, &SYMLINKS);
    if found != 1 {
        reader.note(span, What::ActionCount { found });
        return None;
    }
    if let Some(url) = route.redirect {
        return redirect(reader, url);
    }
    if let Some(body) = route.respond {
        return Some(Action::Respond {
            status: status.unwrap_or(200),
            body: body.into_inner(),
        });
    }
    if let Some(name) = route.proxy {
        return proxy(reader, &name, upstreams);
    }
    if verdict {
        return Some(Action::Verdict);
    }
    Some(Action::Files(Folder {
        path: reader.path("files", route.files)?,
        symlinks: symlinks.unwrap_or(Symlinks::Inside),
    }))
}

fn proxy(
    reader: &mut Reader<'_>,
    written: &Spanned<String>,
    upstreams: &[Arc<Upstream>],
) -> Option<Action> {
    let value = written.get_ref();
    if let Some(upstream) = upstreams.iter().find(|upstream| upstream.name == *value) {
        return Some(Action::Proxy(Arc::clone(upstream)));
    }
    let known = upstreams.iter().map(|upstream| upstream.name.clone());
    let hint = Hint::new(value, known.collect());
    let value = value.clone();
    let what = if upstreams.is_empty() {
        What::NoUpstream { value }
    } else {
        What::NotOneOf {
            key: "proxy",
            value,
            hint,
        }
    };
    reader.note(written.span(), what);
    None
}

fn redirect(reader: &mut Reader<'_>, written: Spanned<String>) -> Option<Action> {
    let url = written.get_ref();
    let usable = match url.parse::<http::Uri>() {
        Ok(uri) => match uri.scheme_str() {
            Some(scheme) => matches!(scheme, "http" | "https") && uri.host().is_some(),
            // "//host" is the address of another host, without a scheme.
            None => url.starts_with('/') && !url.starts_with("//"),
        },
        Err(_) => false,
    };
    if !usable {
        let value = url.clone();
        reader.note(written.span(), What::NotARedirect { value });
        return None;
    }
    Some(Action::Redirect(written.into_inner()))
}
