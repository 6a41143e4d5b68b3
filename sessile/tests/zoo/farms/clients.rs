//! Servers that require client certificates.

use std::process::Command;

use super::{Expected, Farm, ONE, Server, Sharing, minor_version};
use crate::peers::{Certificates, Peer, haproxy, nginx, nginx_with};

/// A server of asyncio that requires client certificates, and answers no request.
const ASYNCIO: &str = "\
import asyncio, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
context.load_verify_locations(sys.argv[4])
context.verify_mode = ssl.CERT_REQUIRED
async def answer(reader, writer):
    await reader.read()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, '127.0.0.1', int(sys.argv[1]), ssl=context)
    await server.serve_forever()
asyncio.run(main())
";

/// The server ends each handshake without a client certificate.
pub(super) const WITHHELD: Expected = Expected {
    session_id: Sharing::NeedsCertificate,
    ticket: Sharing::NeedsCertificate,
    psk: Sharing::NeedsCertificate,
    // The server asks for a certificate, and ends the handshake after an empty answer.
    codes: &["client-certificate-required"],
};

/// No handshake lacks a client certificate that the server requires, so all sessions resume.
const ACCEPTED: Expected = Expected {
    session_id: ONE,
    ticket: ONE,
    psk: ONE,
    codes: &[],
};

fn alone(name: &'static str, certificates: Certificates, server: Peer, found: Expected) -> Farm {
    Farm::new(name, certificates, vec![Server::Peer(server)], found)
}

/// HAProxy that requires a certificate.
pub(crate) fn haproxy_with_client_certificates() -> Farm {
    let certificates = Certificates::new();
    let bind = format!("verify required ca-file {}", certificates.ca.display());
    let server = haproxy(&certificates, &bind);
    alone(
        "HAProxy with client certificates",
        certificates,
        server,
        WITHHELD,
    )
}

/// HAProxy that requires a certificate and gets it.
pub(crate) fn haproxy_with_accepted_clients() -> Farm {
    let mut farm = haproxy_with_client_certificates();
    farm.expected = Expected {
        // The fixture has no cache.
        session_id: Sharing::NotOffered,
        ..ACCEPTED
    };
    farm.with_client_certificate("HAProxy with accepted clients")
}

/// nginx that requires a certificate and gets it.
pub(crate) fn nginx_with_accepted_clients() -> Farm {
    let mut farm = nginx_with_client_certificates();
    farm.expected = ACCEPTED;
    farm.with_client_certificate("nginx with accepted clients")
}

/// sessile that requires a certificate and gets it.
pub(crate) fn sessile_with_accepted_clients() -> Farm {
    let mut farm = super::sessile_with_client_certificates();
    farm.expected = ACCEPTED;
    farm.with_client_certificate("sessile with accepted clients")
}

/// nginx that requires a certificate. nginx finishes the handshake, and then answers with status 400.
pub(crate) fn nginx_with_client_certificates() -> Farm {
    let certificates = Certificates::new();
    let directives = format!(
        "ssl_session_cache shared:s:1m; ssl_verify_client on; ssl_client_certificate {};",
        certificates.ca.display()
    );
    let server = nginx(&certificates, &directives);
    let expected = Expected {
        // nginx removes the session from its cache when it answers with status 400.
        session_id: Sharing::Never,
        ticket: ONE,
        psk: ONE,
        // nginx finishes the handshake. It accepts session IDs of clients with a certificate.
        codes: &["client-certificate-requested"],
    };
    alone(
        "nginx with client certificates",
        certificates,
        server,
        expected,
    )
}

/// A server with asyncio, which closes the connection before it has sent its alert.
pub(crate) fn asyncio_with_client_certificates() -> Farm {
    let certificates = Certificates::new();
    let server = Peer::start("python3", |port| {
        let mut command = Command::new("python3");
        command.args(["-c", ASYNCIO, &port.to_string()]);
        command.args([&certificates.chain, &certificates.key, &certificates.ca]);
        command
    });
    alone(
        "asyncio with client certificates",
        certificates,
        server,
        WITHHELD,
    )
}

/// nginx with an open name, and with the name `private.farm.test` that requires a certificate.
pub(crate) fn nginx_with_a_private_name() -> Farm {
    let certificates = Certificates::new();
    let server = nginx_with(certificates.folder(), |port| {
        let pair = certificates.nginx_directives();
        let ca = certificates.ca.display();
        let common = format!(
            "listen 127.0.0.1:{port} ssl; {pair} ssl_protocols TLSv1.2 TLSv1.3;\n\
             ssl_session_cache shared:s:1m; location / {{ return 204; }}\n"
        );
        format!(
            "server_name farm.test; {common}}}\nserver {{\nserver_name private.farm.test; {common}\
             ssl_verify_client on; ssl_client_certificate {ca};\n"
        )
    });
    let codes: &[_] = if minor_version("nginx", "-v", "nginx/1.") >= 28 {
        // nginx makes a full handshake for a name with client certificates.
        &[]
    } else {
        // Debian's nginx 1.22 ends such handshakes with TLS 1.3, and refuses the request with TLS 1.2.
        &["resumes-for-other-name"]
    };
    let expected = Expected { codes, ..ACCEPTED };
    alone("nginx with a private name", certificates, server, expected)
        .probed_with(&["--other-name", "private.farm.test"])
}
