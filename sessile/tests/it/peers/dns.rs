//! dnsmasq, a DNS server that knows the names of one file.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::Peer;

/// The Debian package of dnsmasq without its service.
const PACKAGE: &str = "dnsmasq-base";

/// A DNS server for names below `test`. Its answers have a lifetime of zero, unless `--local-ttl` sets another.
pub(crate) struct Dns {
    peer: Peer,
    folder: TempDir,
}

impl Dns {
    /// Starts the server with the lines of a hosts file.
    pub(crate) fn start(hosts: &str) -> Self {
        Self::with(hosts, &[])
    }

    /// Starts the server with the lines of a hosts file and these arguments.
    pub(crate) fn with(hosts: &str, arguments: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_hosts(folder.path(), hosts);
        let peer = Peer::start(PACKAGE, |port| command(port, folder.path(), arguments));
        Self { peer, folder }
    }

    /// Starts the server again on the same port, with other arguments.
    pub(crate) fn restart_with(self, arguments: &[String]) -> Self {
        let Self { peer, folder } = self;
        let port = peer.address().port();
        peer.kill();
        let command = command(port, folder.path(), arguments);
        let peer = Peer::start_on(port, PACKAGE, command).unwrap();
        Self { peer, folder }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.peer.address()
    }

    /// The setting of a balancer that asks this server.
    pub(crate) fn setting(&self) -> String {
        format!("resolver = \"{}\"", self.address())
    }

    /// Replaces the lines of the hosts file.
    pub(crate) fn set_hosts(&self, hosts: &str) {
        write_hosts(self.folder.path(), hosts);
        self.peer.hang_up();
    }
}

fn write_hosts(folder: &Path, hosts: &str) {
    fs::write(folder.join("hosts"), hosts).unwrap();
}

fn command(port: u16, folder: &Path, arguments: &[String]) -> Command {
    let mut command = Command::new("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
    ]);
    command.args(["--no-resolv", "--no-hosts", "--local=/test/", "--user=root"]);
    command.args(["--bind-interfaces", "--log-facility=-"]);
    command.arg(format!("--listen-address={}", Ipv4Addr::LOCALHOST));
    command.arg(format!("--port={port}"));
    let hosts = folder.join("hosts");
    command.arg(format!("--addn-hosts={}", hosts.display()));
    command.args(arguments);
    command
}
