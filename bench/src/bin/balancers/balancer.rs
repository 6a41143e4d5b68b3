//! The balancers that are compared: how each is configured, started and asked what it cost.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Options, Result};

/// How long one may take to start.
const START: Duration = Duration::from_secs(10);

/// Where Debian's package puts nginx's module for TCP.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Software {
    Sessile,
    Haproxy,
    HaproxySplice,
    HaproxyTable,
    Nginx,
    /// See [`super::bare`].
    Bare,
}

impl Software {
    pub(super) const ALL: [Self; 6] = [
        Self::Sessile,
        Self::Haproxy,
        Self::HaproxySplice,
        Self::HaproxyTable,
        Self::Nginx,
        Self::Bare,
    ];

    /// What sessile is compared with.
    pub(super) fn others() -> impl Iterator<Item = Self> {
        let others = Self::ALL.into_iter();
        others.filter(|it| !matches!(it, Self::Sessile | Self::Bare))
    }
}

impl fmt::Display for Software {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sessile => "sessile",
            Self::Haproxy => "HAProxy",
            Self::HaproxySplice => "HAProxy, splice-auto",
            Self::HaproxyTable => "HAProxy, session-ID table",
            Self::Nginx => "nginx stream",
            Self::Bare => "the kernel's part",
        })
    }
}

/// A running balancer; dropping it stops it.
pub(super) struct Balancer {
    pub(super) software: Software,
    pub(super) address: SocketAddr,
    process: Child,
}

impl Balancer {
    pub(super) fn start(
        software: Software,
        options: &Options,
        servers: &[SocketAddr],
        folder: &Path,
    ) -> Result<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let workers = options.workers;
        let config = match software {
            Software::Sessile => sessile(address, servers, workers),
            Software::Nginx => nginx(address, servers, workers, folder),
            Software::Bare => String::new(),
            _ => haproxy(software, address, servers, workers),
        };
        let file = folder.join(format!("{}.conf", address.port()));
        fs::write(&file, config)?;
        let file = file.display().to_string();
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
        // One worker has a processor of its own; several have what there is.
        let mut command = match workers {
            1 => {
                let mut command = Command::new("taskset");
                command
                    .args(["-c", &options.balancer_cpu.to_string()])
                    .arg(program);
                command
            }
            _ => Command::new(program),
        };
        let process = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mut balancer = Self {
            software,
            address,
            process,
        };
        balancer.wait()?;
        Ok(balancer)
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("{} does not start: {status}", self.software).into());
            }
            if Instant::now() > deadline {
                return Err(format!("{} does not listen", self.software).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Processor time of all its threads so far, to the nanosecond.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for process in self.processes()? {
            for thread in fs::read_dir(format!("/proc/{process}/task"))? {
                let times = fs::read_to_string(thread?.path().join("schedstat"))?;
                let spent = times.split(' ').next().ok_or("schedstat is empty")?;
                nanoseconds += spent.parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Bytes of memory of all its processes, what they share counted once (PSS).
    pub(super) fn memory(&self) -> Result<u64> {
        let mut bytes = 0;
        for process in self.processes()? {
            let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
            let pss = pss.ok_or("smaps_rollup has no Pss")?.trim();
            bytes += pss.trim_end_matches(" kB").parse::<u64>()? * 1024;
        }
        Ok(bytes)
    }

    /// The process and its children: nginx has workers.
    fn processes(&self) -> Result<Vec<u32>> {
        let parent = self.process.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        let children = children.split_whitespace().map(str::parse);
        Ok([Ok(parent)]
            .into_iter()
            .chain(children)
            .collect::<std::result::Result<_, _>>()?)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // By signal and not by kill(): nginx takes its workers along only when it is asked to end.
        let asked = Command::new("kill")
            .arg(self.process.id().to_string())
            .status();
        if !asked.is_ok_and(|status| status.success()) {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
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
    let servers: String = servers.iter().map(|it| format!("server {it};")).collect();
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
        // The recipe that its manual gives for session IDs.
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
