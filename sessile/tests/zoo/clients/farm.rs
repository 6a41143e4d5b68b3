//! The servers to which a client returns.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::peers::{Certificates, NAME, Peer, Sessile};

/// Two `sessile serve` processes with one key file and one Redis, behind a TCP balancer that
/// alternates.
pub(super) struct Farm {
    certificates: Certificates,
    balancer: Peer,
    servers: [Sessile; 2],
    _redis: Peer,
}

impl Farm {
    /// Starts a farm; `settings` are lines of TOML that follow `[session]`.
    pub(super) fn start(settings: &str) -> Self {
        let certificates = Certificates::new();
        let folder = certificates.folder();
        let redis = Peer::start("redis-server", |port| {
            let mut command = Command::new("redis-server");
            command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
            command.args(["--save", "", "--appendonly", "no"]);
            command
        });
        let servers = ["one", "two"].map(|name| {
            let text = format!(
                "[server]\nname = \"{name}\"\n[key]\nfile = \"farm.key\"\n[log]\naccess = \"off\"\n\
                 [session]\nstore = \"redis://{redis}\"\nstore-timeout = \"3s\"\n{settings}\n\
                 [[listener]]\naddress = \"127.0.0.1:0\"\n\
                 [[site]]\nnames = [\"{NAME}\"]\ncertificates = [{{ chain = {chain:?}, key = {key:?} }}]\n\
                 [[site.route]]\npath = \"/\"\nverdict = true\n",
                redis = redis.address(),
                chain = certificates.chain,
                key = certificates.key,
            );
            let config = folder.join(format!("{name}.toml"));
            fs::write(&config, text).unwrap();
            Sessile::serve_configured(&config, folder)
        });
        let balancer = alternate(folder, &servers);
        Self {
            certificates,
            balancer,
            servers,
            _redis: redis,
        }
    }

    /// The port to which clients connect.
    pub(super) fn port(&self) -> u16 {
        self.balancer.address().port()
    }

    pub(super) const fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// A temporary folder for files of the client.
    pub(super) fn folder(&self) -> &Path {
        self.certificates.folder()
    }

    /// Waits until no client has a connection.
    pub(super) fn await_no_connections(&self) {
        for server in &self.servers {
            server.await_metrics(|metrics| metrics.sum("sessile_connections_open", &[]) == 0);
        }
    }
}

/// HAProxy in TCP mode, which alternates between the two servers.
fn alternate(folder: &Path, servers: &[Sessile; 2]) -> Peer {
    Peer::start("haproxy", |port| {
        let config = folder.join(format!("balancer-{port}.cfg"));
        let text = format!(
            "global\n  nbthread 1\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
             listen farm\n  bind 127.0.0.1:{port}\n  balance roundrobin\n  \
             server one {}\n  server two {}\n",
            servers[0].address(),
            servers[1].address(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&config);
        command
    })
}
