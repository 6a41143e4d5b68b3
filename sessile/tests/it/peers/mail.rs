//! A mail server that starts TLS on request.

use std::process::Command;

use super::{Certificates, Peer};

/// A mail server. Its arguments are the port, and a certificate chain with its key for STARTTLS.
const SMTP_SERVER: &str = "\
import signal, ssl, sys
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
context = None
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
Controller(Sink(), hostname='127.0.0.1', port=int(sys.argv[1]), tls_context=context).start()
signal.pause()
";

/// The Python of the system, because Debian installs its Python packages for it only.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// Starts a mail server, which has STARTTLS if there are certificates.
pub(crate) fn smtp_server(certificates: Option<&Certificates>) -> Peer {
    Peer::start("python3-aiosmtpd", |port| {
        let mut command = Command::new(PYTHON);
        command.args(["-c", SMTP_SERVER, &port.to_string()]);
        if let Some(certificates) = certificates {
            command.args([&certificates.chain, &certificates.key]);
        }
        command
    })
}
