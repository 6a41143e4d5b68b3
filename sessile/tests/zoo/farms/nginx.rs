//! Farms of nginx.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use super::{Expected, Farm, ONE, Server, Sharing};
use crate::peers::{Certificates, free_port, nginx, nginx_with, ticket_key};

const APART: Sharing = Sharing::Groups(&[&[0], &[1], &[2]]);
const TOGETHER: Sharing = Sharing::Groups(&[&[0, 1, 2]]);

/// Writes a key file, and returns its directive.
fn key(folder: &Path, number: u8) -> String {
    let path = folder.join(format!("ticket-{number}.key"));
    fs::write(&path, ticket_key(number)).unwrap();
    format!("ssl_session_ticket_key {};", path.display())
}

/// Servers without a cache, one for each list of key files. The first key of a server seals its tickets.
fn with_keys(name: &'static str, keys: &[&[u8]], expected: Expected) -> Farm {
    let certificates = Certificates::new();
    let start = |bytes: &&[u8]| {
        let keys = bytes.iter().map(|byte| key(certificates.folder(), *byte));
        let directives = keys.collect::<String>() + "ssl_session_cache off;";
        Server::Peer(nginx(&certificates, &directives))
    };
    let servers = keys.iter().map(start).collect();
    Farm::new(name, certificates, servers, expected)
}

/// Three servers, each with a cache and ticket keys of its own.
pub(crate) fn nginx_sharing_nothing() -> Farm {
    let certificates = Certificates::new();
    let start = |_| Server::Peer(nginx(&certificates, "ssl_session_cache shared:s:1m;"));
    let servers = (0..3).map(start).collect();
    let expected = Expected {
        session_id: APART,
        ticket: APART,
        psk: APART,
        // Each server makes its own random ticket keys at its start.
        codes: &["no-shared-ticket-keys", "no-shared-cache"],
    };
    Farm::new("nginx that shares nothing", certificates, servers, expected)
}

/// One nginx that listens on three ports, with one cache.
pub(crate) fn nginx_sharing_a_cache() -> Farm {
    let certificates = Certificates::new();
    let others = Mutex::new([0; 2]);
    let server = nginx_with(certificates.folder(), |port| {
        let [second, third] = [free_port(), free_port()];
        *others.lock().unwrap() = [second, third];
        let pair = certificates.nginx_directives();
        let listen = [port, second, third].map(|port| format!("listen 127.0.0.1:{port} ssl;\n"));
        format!(
            "{} {pair} ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:1m;\n\
             location / {{ return 204; }}\n",
            listen.concat()
        )
    });
    let expected = Expected {
        session_id: TOGETHER,
        ticket: TOGETHER,
        psk: TOGETHER,
        // The ports belong to one process.
        codes: &[],
    };
    let servers = vec![Server::Peer(server)];
    let mut farm = Farm::new("nginx on three ports", certificates, servers, expected);
    let others = others.into_inner().unwrap();
    let others = others.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    farm.addresses.extend(others);
    farm
}

/// Three servers with the same key file.
pub(crate) fn nginx_sharing_keys() -> Farm {
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: TOGETHER,
        psk: TOGETHER,
        codes: &[],
    };
    with_keys("nginx with shared keys", &[&[1], &[1], &[1]], expected)
}

/// Two servers with the same key file and different certificates.
pub(crate) fn nginx_with_other_certificates() -> Farm {
    let certificates = Certificates::new();
    let other = Certificates::new();
    let directives = key(certificates.folder(), 1) + "ssl_session_cache off;";
    let start = |own: &Certificates| Server::Peer(nginx(own, &directives));
    let servers = vec![start(&certificates), start(&other)];
    let authorities = [&certificates, &other].map(|own| fs::read(&own.ca).unwrap());
    fs::write(&certificates.ca, authorities.concat()).unwrap();
    let groups = Sharing::Groups(&[&[0], &[1]]);
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: groups,
        psk: groups,
        // nginx compares the context of a session, which depends on the certificate.
        codes: &["refuses-shared-keys"],
    };
    Farm::new(
        "nginx with other certificates",
        certificates,
        servers,
        expected,
    )
}

/// Three servers, of which the first one already seals tickets with the next key.
pub(crate) fn nginx_rotated_on_one() -> Farm {
    let groups = Sharing::Groups(&[&[0], &[1, 2]]);
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: groups,
        psk: groups,
        // The first server accepts the old key, and the other servers do not know the new key.
        // nginx renews tickets of an old key.
        codes: &["one-way-keys", "renews-tls12-ticket"],
    };
    with_keys(
        "nginx with one rotated key",
        &[&[2, 1], &[1], &[1]],
        expected,
    )
}

/// Four servers, of which two have one key and two have another key.
pub(crate) fn nginx_in_two_key_groups() -> Farm {
    let groups = Sharing::Groups(&[&[0, 1], &[2, 3]]);
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: groups,
        psk: groups,
        // The two groups have no common key.
        codes: &["no-shared-ticket-keys"],
    };
    with_keys("nginx in two groups", &[&[1], &[1], &[2], &[2]], expected)
}

/// Two servers with the same key file that accept early data.
pub(crate) fn nginx_with_early_data() -> Farm {
    let certificates = Certificates::new();
    let key = key(certificates.folder(), 1);
    let directives = key + "ssl_session_cache off; ssl_early_data on;";
    let start = |_| Server::Peer(nginx(&certificates, &directives));
    let servers = (0..2).map(start).collect();
    let groups = Sharing::Groups(&[&[0, 1]]);
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: groups,
        psk: groups,
        // nginx turns the protection of OpenSSL against replays off.
        codes: &["early-data-replayed"],
    };
    Farm::new("nginx with early data", certificates, servers, expected)
}

/// A server whose ticket key consists of zeros.
pub(crate) fn nginx_with_a_zero_key() -> Farm {
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: ONE,
        psk: ONE,
        // Everyone can decrypt tickets under a key that consists of zeros.
        codes: &["weak-ticket-key"],
    };
    with_keys("nginx with a zero key", &[&[0]], expected)
}

/// A server that gives session IDs and stores no session.
pub(crate) fn nginx_without_a_cache() -> Farm {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache none;");
    let expected = Expected {
        session_id: Sharing::Never,
        ticket: ONE,
        psk: ONE,
        // `none` gives session IDs that the server never accepts.
        codes: &["unusable-session-ids"],
    };
    let servers = vec![Server::Peer(server)];
    Farm::new("nginx without a cache", certificates, servers, expected)
}

/// A server that forgets its sessions after half a minute.
pub(crate) fn nginx_with_a_short_timeout() -> Farm {
    let certificates = Certificates::new();
    let directives = "ssl_session_cache shared:s:1m; ssl_session_timeout 30s;";
    let server = nginx(&certificates, directives);
    let expected = Expected {
        session_id: ONE,
        ticket: ONE,
        psk: ONE,
        // The announced lifetime of tickets is the timeout, so they do not expire early.
        codes: &[],
    };
    let servers = vec![Server::Peer(server)];
    Farm::new(
        "nginx with a short timeout",
        certificates,
        servers,
        expected,
    )
}
