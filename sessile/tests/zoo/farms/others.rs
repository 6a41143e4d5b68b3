//! Farms of other servers than nginx.

use std::fs;
use std::process::Command;

use super::{Expected, Farm, ONE, Server, Sharing, caddy_codes};
use crate::peers::{By, Certificates, End, Fault, Faulty, Peer, Resumption, Web, haproxy, openssl};

const APART: Sharing = Sharing::Groups(&[&[0], &[1]]);
const TOGETHER: Sharing = Sharing::Groups(&[&[0, 1]]);

/// A Node server as a beginner writes it.
const NODE: &str = "const [port, key, cert] = process.argv.slice(1); const fs = require('fs'); \
    require('https').createServer({ key: fs.readFileSync(key), cert: fs.readFileSync(cert) }, \
    (request, response) => response.end()).listen(port, '127.0.0.1');";

/// A Node server that speaks HTTP/2 only.
const NODE_H2: &str = "const [port, key, cert] = process.argv.slice(1); const fs = require('fs'); \
    require('http2').createSecureServer({ key: fs.readFileSync(key), cert: fs.readFileSync(cert) }, \
    (request, response) => response.end()).listen(port, '127.0.0.1');";

/// A farm of one server.
fn alone(name: &'static str, certificates: Certificates, server: Peer, expected: Expected) -> Farm {
    Farm::new(name, certificates, vec![Server::Peer(server)], expected)
}

/// HAProxy with TLS 1.2 and a cache.
pub(crate) fn haproxy_without_tickets() -> Farm {
    let certificates = Certificates::new();
    let server = Web::Haproxy.start(&certificates, Resumption::SessionId);
    let expected = Expected {
        session_id: ONE,
        ticket: Sharing::NotOffered,
        psk: Sharing::NotOffered,
        // Session IDs work, so the absence of tickets is no fault.
        codes: &[],
    };
    alone("HAProxy without tickets", certificates, server, expected)
}

/// Two HAProxy servers with one file of `tls-ticket-keys`, without a cache.
pub(crate) fn haproxy_sharing_keys() -> Farm {
    let certificates = Certificates::new();
    let file = certificates.folder().join("tickets.keys");
    // HAProxy needs three keys of 48 or 80 bytes in Base64.
    let keys = [
        "1BdP1N3wf1otEUtjmLSVvT4IjvPnumECq7YJqAbzYL5OzBulvDr9ADNZbsGlndXz",
        "Pmc0ggcJlpm7EpGR2HKxYC9v6wVVYNSzCH5d7Xzq9YeSy6zOMRmxlcJySEW4YVjF",
        "gvkFYU649+72YoZaxK9xbdNCUYhcEAEQoLTQbSfBhMGt71gSwwTmMBPDA3Tvd30x",
    ];
    fs::write(&file, keys.join("\n") + "\n").unwrap();
    let bind = format!("tls-ticket-keys {}", file.display());
    let start = |_| Server::Peer(haproxy(&certificates, &bind));
    let servers = (0..2).map(start).collect();
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: TOGETHER,
        psk: TOGETHER,
        // HAProxy gives no TLS 1.3 ticket in a resumed handshake.
        codes: &["tickets-in-full-handshakes-only"],
    };
    Farm::new("HAProxy with shared keys", certificates, servers, expected)
}

/// Two Apache servers, each with a cache and ticket keys of its own.
pub(crate) fn apache_sharing_nothing() -> Farm {
    let certificates = Certificates::new();
    let start = |_| Server::Peer(Web::Apache.start(&certificates, Resumption::Psk));
    let servers = (0..2).map(start).collect();
    let expected = Expected {
        session_id: APART,
        ticket: APART,
        psk: APART,
        // `shmcb` is a cache of one machine, and the ticket keys are random.
        codes: &["no-shared-ticket-keys", "no-shared-cache"],
    };
    Farm::new(
        "Apache that shares nothing",
        certificates,
        servers,
        expected,
    )
}

/// One Caddy server.
pub(crate) fn caddy_alone() -> Farm {
    let certificates = Certificates::new();
    let server = Web::Caddy.start(&certificates, Resumption::Psk);
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: ONE,
        psk: ONE,
        // Tickets work, so the absence of session IDs is no fault.
        codes: caddy_codes(),
    };
    alone("Caddy", certificates, server, expected)
}

/// `openssl s_server`, which stores its sessions, also those of TLS 1.3.
pub(crate) fn openssl_stateful() -> Farm {
    let certificates = Certificates::new();
    let server = openssl(&certificates, &["-www", "-no_ticket"]);
    let expected = Expected {
        session_id: ONE,
        ticket: Sharing::NotOffered,
        psk: ONE,
        // In TLS 1.3, the ticket is the key of an entry in the cache.
        codes: &[],
    };
    alone("openssl with a cache", certificates, server, expected)
}

/// `openssl s_server` with tickets and without a cache.
pub(crate) fn openssl_stateless() -> Farm {
    let certificates = Certificates::new();
    let server = openssl(&certificates, &["-www", "-no_cache"]);
    let expected = Expected {
        session_id: Sharing::NotOffered,
        ticket: ONE,
        psk: ONE,
        // Tickets work without a cache.
        codes: &[],
    };
    alone("openssl with tickets", certificates, server, expected)
}

/// The server of GnuTLS.
pub(crate) fn gnutls_alone() -> Farm {
    let certificates = Certificates::new();
    let server = Peer::start("gnutls-bin", |port| {
        let mut command = Command::new("gnutls-serv");
        command.args(["--http", "--quiet", "--port", &port.to_string()]);
        command.arg("--x509certfile").arg(&certificates.chain);
        command.arg("--x509keyfile").arg(&certificates.key);
        command
    });
    let expected = Expected {
        session_id: ONE,
        ticket: ONE,
        psk: ONE,
        // The server has a cache and tickets by default.
        // gnutls-serv requests a certificate by default.
        codes: &["client-certificate-requested"],
    };
    alone("gnutls-serv", certificates, server, expected)
}

/// A Node server with the default settings.
pub(crate) fn node_alone() -> Farm {
    node(NODE)
}

fn node(program: &str) -> Farm {
    let certificates = Certificates::new();
    let server = Peer::start("nodejs", |port| {
        let mut command = Command::new("node");
        command.args(["-e", program, &port.to_string()]);
        command.arg(&certificates.key).arg(&certificates.chain);
        command
    });
    let expected = Expected {
        session_id: Sharing::Never,
        ticket: ONE,
        psk: ONE,
        // Node gives session IDs, but stores sessions only if the program handles an event.
        codes: &["unusable-session-ids", "tickets-in-full-handshakes-only"],
    };
    alone("Node", certificates, server, expected)
}

/// A Node server that speaks HTTP/2 only, and refuses the probe's first offer of ALPN.
pub(crate) fn node_with_h2_only() -> Farm {
    let mut farm = node(NODE_H2);
    farm.name = "Node with HTTP/2";
    farm
}

/// A server that ends handshakes which offer a session of the server.
fn ends(name: &'static str, by: By, end: End, expected: Expected) -> Farm {
    let certificates = Certificates::new();
    let server = Server::Faulty(Faulty::start(&certificates, by, Fault::Offers(end)));
    Farm::new(name, certificates, vec![server], expected)
}

/// Handshakes without a session succeed.
const ENDS: Expected = Expected {
    session_id: Sharing::NotOffered,
    ticket: Sharing::NotOffered,
    psk: Sharing::NotOffered,
    codes: &["ends-resumption"],
};

/// A server of TLS 1.3 that sends an alert.
pub(crate) fn ends_tls13_resumption() -> Farm {
    let expected = Expected {
        psk: Sharing::Ends,
        ..ENDS
    };
    ends(
        "a server that ends resumption",
        By::Psk,
        End::Alert,
        expected,
    )
}

/// A server of TLS 1.2 that resets the connection after a ticket.
pub(crate) fn resets_after_a_ticket() -> Farm {
    let expected = Expected {
        ticket: Sharing::Ends,
        ..ENDS
    };
    ends(
        "a server that resets after a ticket",
        By::Ticket,
        End::Reset,
        expected,
    )
}

/// A server of TLS 1.2 that does not answer a ClientHello with a session ID of the server.
pub(crate) fn hangs_after_a_session_id() -> Farm {
    let expected = Expected {
        session_id: Sharing::Ends,
        ..ENDS
    };
    ends(
        "a server that hangs after a session ID",
        By::SessionId,
        End::Hang,
        expected,
    )
    .probed_with(&["--attempts", "2", "--timeout", "2s"])
}
