//! Farms of real servers, each with the facts that a probe should find.

mod clients;
mod nginx;
mod others;
mod sessile;
mod shared;
mod start_tls;

pub(crate) use clients::*;
pub(crate) use nginx::*;
pub(crate) use others::*;
pub(crate) use sessile::*;
pub(crate) use shared::*;
pub(crate) use start_tls::*;

use std::net::SocketAddr;
use std::process::Command;

use crate::peers::{Certificates, Faulty, Peer, Sessile, run};
use crate::postgres::Database;

/// A running server, which stops when dropped.
pub(crate) enum Server {
    Peer(Peer),
    Sessile(Sessile),
    Faulty(Faulty),
    Database(Database),
}

impl Server {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Peer(peer) => peer.address(),
            Self::Sessile(sessile) => sessile.address(),
            Self::Faulty(faulty) => faulty.address(),
            Self::Database(database) => database.peer.address(),
        }
    }
}

/// How the servers of a farm handle the sessions of one mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// No server gives a session.
    NotOffered,
    /// The servers of a group resume the sessions of each other. The numbers are indexes of addresses.
    Groups(&'static [&'static [usize]]),
    /// The servers give sessions, and refuse their own sessions.
    Never,
    /// The servers end connections that offer a session.
    Ends,
    /// The servers end connections without a client certificate.
    NeedsCertificate,
}

/// What is true of a farm.
pub(crate) struct Expected {
    pub(crate) session_id: Sharing,
    pub(crate) ticket: Sharing,
    pub(crate) psk: Sharing,
    /// The codes of the findings that the farm should cause.
    pub(crate) codes: &'static [&'static str],
}

/// Running servers, and what is true of them.
pub(crate) struct Farm {
    pub(crate) name: &'static str,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) expected: Expected,
    pub(crate) certificates: Certificates,
    /// More arguments of the probe.
    pub(crate) arguments: &'static [&'static str],
    /// True if the probe has a client certificate that the servers accept.
    pub(crate) has_client_certificate: bool,
    servers: Vec<Server>,
}

impl Farm {
    fn new(
        name: &'static str,
        certificates: Certificates,
        servers: Vec<Server>,
        expected: Expected,
    ) -> Self {
        Self {
            name,
            addresses: servers.iter().map(Server::address).collect(),
            expected,
            certificates,
            arguments: &[],
            has_client_certificate: false,
            servers,
        }
    }

    /// Sets more arguments of the probe.
    const fn probed_with(mut self, arguments: &'static [&'static str]) -> Self {
        self.arguments = arguments;
        self
    }

    /// Gives the probe a client certificate that the servers accept.
    fn with_client_certificate(mut self, name: &'static str) -> Self {
        self.name = name;
        self.has_client_certificate = true;
        self
    }

    /// Keeps a server running that clients do not connect to.
    fn keep(&mut self, server: Server) {
        self.servers.push(server);
    }
}

/// The groups of a farm of one server that resumes its own sessions.
const ONE: Sharing = Sharing::Groups(&[&[0]]);

/// The findings about Caddy servers that resume all tickets.
fn caddy_codes() -> &'static [&'static str] {
    if minor_version("caddy", "version", "2.") >= 11 {
        // Caddy is built with a newer Go, whose TLS 1.2 servers give a new ticket in each resumed handshake.
        &["renews-tls12-ticket"]
    } else {
        &[]
    }
}

/// The second number in the version that a program prints, after the `major` number.
fn minor_version(program: &str, argument: &str, major: &str) -> u32 {
    let ran = run(program, Command::new(program).arg(argument), "");
    let printed = ran.stdout + &ran.stderr;
    let rest = printed.split_once(major).expect("the major version").1;
    let end = rest.find('.').expect("a third number");
    rest[..end].parse().expect("a number")
}
