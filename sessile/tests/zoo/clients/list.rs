//! The list of all clients: how to run each client, and the mechanisms that its library lacks.

use super::{Mechanism, Visit, others, programs, proxies};

/// Returns of a client after its first connection.
const RETURNS: usize = 10;

/// Returns of a proxy, which makes 20 connections in all.
const PROXY_RETURNS: usize = 19;

/// The reasons why a library lacks a mechanism. [`Lacks::note`] is the number of a reason, from 1.
pub(super) const NOTES: [&str; 4] = [
    "mbedTLS 2.28 speaks TLS 1.2 at most; asked for more, it resumes by ticket.",
    "Go's client keeps tickets only. Its session IDs in TLS 1.2 are random, new each time.",
    "curl with OpenSSL turns TLS 1.2 tickets off, and resumes by session ID.",
    "Apache's mod_proxy keeps no sessions of its upstreams and offers none.",
];

/// A client, and the mechanisms that its library lacks.
pub(super) struct Client {
    pub(super) name: &'static str,
    pub(super) returns: usize,
    program: Program,
    lacks: &'static [Lacks],
}

/// A mechanism that a library does not have.
pub(super) struct Lacks {
    mechanism: Mechanism,
    /// The verdict of the server if the client tries this mechanism.
    pub(super) verdict: &'static str,
    pub(super) note: usize,
}

enum Program {
    /// A file of `programs/` and the interpreter that runs it.
    Script(programs::Script),
    /// A file of `programs/` that the C compiler translates first.
    C(programs::CSource),
    /// A function that starts its own farm. Its second argument is the number of connections.
    Function(fn(Mechanism, usize) -> Visit),
}

impl Client {
    /// Connects to a new farm once, and then returns.
    pub(super) fn visit(&self, mechanism: Mechanism) -> Visit {
        let connections = 1 + self.returns;
        match &self.program {
            Program::Script(script) => script.visit(mechanism, connections),
            Program::C(source) => source.visit(mechanism, connections),
            Program::Function(visit) => visit(mechanism, connections),
        }
    }

    pub(super) fn lacking(&self, mechanism: Mechanism) -> Option<&Lacks> {
        self.lacks.iter().find(|lacks| lacks.mechanism == mechanism)
    }

    const fn script(
        name: &'static str,
        package: &'static str,
        interpreter: &'static [&'static str],
        file: &'static str,
    ) -> Self {
        let script = programs::Script {
            package,
            interpreter,
            file,
        };
        Self::new(name, Program::Script(script))
    }

    const fn c(
        name: &'static str,
        package: &'static str,
        file: &'static str,
        flags: &'static str,
    ) -> Self {
        let source = programs::CSource {
            package,
            file,
            flags,
            arguments: &[],
        };
        Self::new(name, Program::C(source))
    }

    const fn function(name: &'static str, visit: fn(Mechanism, usize) -> Visit) -> Self {
        Self::new(name, Program::Function(visit))
    }

    const fn new(name: &'static str, program: Program) -> Self {
        Self {
            name,
            returns: RETURNS,
            program,
            lacks: &[],
        }
    }

    /// Adds arguments for a program in C.
    const fn with(mut self, arguments: &'static [&'static str]) -> Self {
        if let Program::C(source) = &mut self.program {
            source.arguments = arguments;
        }
        self
    }

    const fn but(mut self, lacks: &'static [Lacks]) -> Self {
        self.lacks = lacks;
        self
    }

    const fn with_returns(mut self, returns: usize) -> Self {
        self.returns = returns;
        self
    }
}

const fn lacks(mechanism: Mechanism, verdict: &'static str, note: usize) -> Lacks {
    Lacks {
        mechanism,
        verdict,
        note,
    }
}

/// The rows of the table.
pub(super) const CLIENTS: [Client; 18] = [
    Client::c(
        "OpenSSL, by callback",
        "libssl-dev",
        "openssl.c",
        "-lssl -lcrypto",
    )
    .with(&["callback"]),
    Client::c(
        "OpenSSL, SSL_get1_session",
        "libssl-dev",
        "openssl.c",
        "-lssl -lcrypto",
    )
    .with(&["get1"]),
    Client::c("GnuTLS", "libgnutls28-dev", "gnutls.c", "-lgnutls"),
    Client::c(
        "NSS",
        "libnss3-dev",
        "nss.c",
        "-I/usr/include/nss -I/usr/include/nspr -lssl3 -lsmime3 -lnss3 -lnspr4",
    ),
    Client::c("wolfSSL", "libwolfssl-dev", "wolfssl.c", "-lwolfssl"),
    Client::c(
        "mbedTLS",
        "libmbedtls-dev",
        "mbedtls.c",
        "-lmbedtls -lmbedx509 -lmbedcrypto",
    )
    .but(&[lacks(Mechanism::Psk, "resumed/ticket", 1)]),
    Client::script(
        "Java, HttpsURLConnection",
        "default-jdk-headless",
        // Java sends only server names with a dot, so the name cannot be `localhost`.
        &["java", "-Djdk.net.hosts.file=hosts"],
        "java.java",
    ),
    Client::script("Go, net/http", "golang-go", &["go", "run"], "go.go").but(&[lacks(
        Mechanism::SessionId,
        "full/unknown",
        2,
    )]),
    Client::script("Node.js, https", "nodejs", &["node"], "node.js"),
    Client::script("Python, ssl", "python3", &["python3"], "python.py"),
    Client::script("Ruby, Net::HTTP", "ruby", &["ruby"], "ruby.rb"),
    Client::script(
        "Perl, IO::Socket::SSL",
        "libio-socket-ssl-perl",
        &["perl"],
        "perl.pl",
    ),
    Client::function("rustls", others::rustls),
    Client::function("curl", others::curl).but(&[lacks(
        Mechanism::Ticket,
        "resumed/session-id",
        3,
    )]),
    Client::function("Chromium", others::chromium),
    Client::function("nginx as a proxy", proxies::nginx).with_returns(PROXY_RETURNS),
    Client::function("HAProxy to its servers", proxies::haproxy).with_returns(PROXY_RETURNS),
    Client::function("Apache as a proxy", proxies::apache)
        .with_returns(PROXY_RETURNS)
        .but(&[
            lacks(Mechanism::SessionId, "full/nothing-offered", 4),
            lacks(Mechanism::Ticket, "full/nothing-offered", 4),
            lacks(Mechanism::Psk, "full/nothing-offered", 4),
        ]),
];
