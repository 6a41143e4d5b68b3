//! The configurations and processes of the balancers that are compared.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sessile_bench::{Program, Result, free_address};

use super::model::{Options, Software};

/// The path of nginx's TCP module in Debian's package.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A running balancer. Dropping it stops the balancer.
pub(super) struct Balancer {
    pub(super) software: Software,
    pub(super) address: SocketAddr,
    program: Program,
}

impl Balancer {
    pub(super) fn start(
        software: Software,
        options: &Options,
        servers: &[SocketAddr],
        folder: &Path,
    ) -> Result<Self> {
        let address = free_address()?;
        let workers = options.workers;
        let config = match software {
            Software::Sessile => sessile(address, servers, workers),
            Software::Nginx => nginx(address, servers, workers, folder),
            Software::Bare => String::new(),
            _ => haproxy(software, address, servers, workers),
        };
        let path = folder.join(format!("{}.conf", address.port()));
        fs::write(&path, config)?;
        let file = path.display().to_string();
        let itself = std::env::current_exe()?;
        let ends = [address, servers[0]].map(|address| address.to_string());
        let (program, arguments, remedy) = match software {
            Software::Bare => (
                itself.as_path(),
                vec!["--bare", &ends[0], &ends[1]],
                "build it with cargo build --release",
            ),
            Software::Sessile => (
                options.sessile.as_path(),
                vec!["balance", "--config", &file],
                "build it with cargo build --release",
            ),
            Software::Nginx => (
                Path::new("nginx"),
                vec!["-e", "stderr", "-c", &file],
                "install Debian's nginx and libnginx-mod-stream",
            ),
            _ => (
                Path::new("haproxy"),
                vec!["-db", "-f", &file],
                "install Debian's haproxy",
            ),
        };
        if let Err(error) = Command::new(program).arg("-v").output()
            && error.kind() == ErrorKind::NotFound
        {
            return Err(format!("{software} is missing: {remedy}").into());
        }
        // One worker gets its own processor. Several workers share all processors.
        let mut command = if workers == 1 {
            let mut command = Command::new("taskset");
            command
                .args(["-c", &options.balancer_cpu.to_string()])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command.args(arguments);
        Ok(Self {
            software,
            address,
            program: Program::start(&software.to_string(), &mut command, address)?,
        })
    }

    /// See [`Program::cpu_time`].
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        self.program.cpu_time()
    }

    /// See [`Program::memory`].
    pub(super) fn memory(&self) -> Result<u64> {
        self.program.memory()
    }
}

fn sessile(address: SocketAddr, servers: &[SocketAddr], workers: usize) -> String {
    let mut config = format!(
        r#"key.file = "none"
[server]
workers = {workers}
[log]
level = "error"
[[listener]]
address = "{address}"
role = "balance"
[balance]
policy = "round-robin"
"#
    );
    for (at, server) in servers.iter().enumerate() {
        config += &format!("[[balance.server]]\nname = \"s{at}\"\naddress = \"{server}\"\n");
    }
    config
}

fn nginx(address: SocketAddr, servers: &[SocketAddr], workers: usize, folder: &Path) -> String {
    let servers: String = servers
        .iter()
        .map(|server| format!("server {server};"))
        .collect();
    format!(
        r#"load_module {STREAM_MODULE};
daemon off;
worker_processes {workers};
error_log stderr crit;
pid {folder}/nginx.pid;
events {{ worker_connections 16384; }}
stream {{
  upstream farm {{ {servers} }}
  server {{
    listen {address} reuseport;
    ssl_preread on;
    proxy_pass farm;
    proxy_timeout 1h;
    proxy_half_close on;
  }}
}}
"#,
        folder = folder.display(),
    )
}

fn haproxy(
    software: Software,
    address: SocketAddr,
    servers: &[SocketAddr],
    workers: usize,
) -> String {
    let more = match software {
        Software::HaproxySplice => "  option splice-auto\n",
        // The recipe for session IDs in HAProxy's manual.
        Software::HaproxyTable => {
            "  stick-table type binary len 32 size 30k expire 30m\n\
             \x20 acl clienthello req.ssl_hello_type 1\n\
             \x20 acl serverhello res.ssl_hello_type 2\n\
             \x20 tcp-request inspect-delay 5s\n\
             \x20 tcp-request content accept if clienthello\n\
             \x20 tcp-response inspect-delay 5s\n\
             \x20 tcp-response content accept if serverhello\n\
             \x20 stick on payload_lv(43,1) if clienthello\n\
             \x20 stick store-response payload_lv(43,1) if serverhello\n"
        }
        _ => "",
    };
    let mut config = format!(
        "global\n  nbthread {workers}\n  maxconn 4096\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         frontend in\n  bind {address}\n  default_backend farm\n\
         backend farm\n  balance roundrobin\n{more}"
    );
    for (at, server) in servers.iter().enumerate() {
        config += &format!("  server s{at} {server}\n");
    }
    config
}
