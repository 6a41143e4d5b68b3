//! The servers: their configurations, as like one another as they can be made, their processes, and
//! what these have used.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;

use super::Result;
use super::options::Options;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Software {
    Sessile,
    Nginx,
    Haproxy,
    Bare,
    Redis,
}

impl Software {
    pub(super) const ALL: [Self; 4] = [Self::Sessile, Self::Nginx, Self::Haproxy, Self::Bare];

    /// What it says of itself, and of the library that does its TLS.
    pub(super) fn version(self, options: &Options) -> String {
        let (program, argument) = match self {
            Self::Sessile => (options.sessile.as_path(), "--version"),
            Self::Nginx => (Path::new("nginx"), "-V"),
            Self::Haproxy => (Path::new("haproxy"), "-vv"),
            Self::Redis => (Path::new("redis-server"), "--version"),
            Self::Bare => return String::new(),
        };
        let Ok(said) = Command::new(program).arg(argument).output() else {
            return self.to_string();
        };
        // nginx says it on its error output.
        let said = [said.stdout, said.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let library = said.lines().find_map(|line| {
            let (_, version) = line.split_once("unning ")?.1.rsplit_once("OpenSSL ")?;
            Some(format!(", OpenSSL {}", version.split(' ').next()?))
        });
        let version = said
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("nginx version: ");
        let version = version.split(" - ").next().unwrap_or_default();
        let version = version.split(" sha=").next().unwrap_or_default();
        format!("{version}{}", library.unwrap_or_default())
    }
}

impl fmt::Display for Software {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sessile => "sessile",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Bare => "bare",
            Self::Redis => "Redis",
        })
    }
}

/// One self-signed P-256 certificate for all of them.
pub(super) struct Certificate {
    pub(super) der: CertificateDer<'static>,
    chain: PathBuf,
    key: PathBuf,
}

impl Certificate {
    pub(super) fn make(folder: &Path) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        let (certificate, key_pair) = (made.cert, made.signing_key);
        let (chain, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        fs::write(&chain, certificate.pem())?;
        fs::write(&key, key_pair.serialize_pem())?;
        // HAProxy takes both from one file.
        fs::write(
            folder.join("both.pem"),
            certificate.pem() + &key_pair.serialize_pem(),
        )?;
        Ok(Self {
            der: certificate.der().clone(),
            chain,
            key,
        })
    }
}

/// A running server; dropping it stops it.
pub(super) struct Peer {
    pub(super) software: Software,
    pub(super) address: SocketAddr,
    process: Child,
}

impl Peer {
    pub(super) fn start(
        software: Software,
        options: &Options,
        certificate: &Certificate,
        folder: &Path,
    ) -> Result<Self> {
        Self::start_at(free()?, software, options, certificate, folder)
    }

    /// Where another one was before.
    pub(super) fn start_at(
        address: SocketAddr,
        software: Software,
        options: &Options,
        certificate: &Certificate,
        folder: &Path,
    ) -> Result<Self> {
        let config = match software {
            Software::Sessile => sessile("bench", address, certificate, folder),
            Software::Nginx => nginx(address, certificate, folder),
            Software::Haproxy => haproxy(address, folder),
            Software::Redis => redis(address, folder),
            Software::Bare => String::new(),
        };
        let file = folder.join(format!("{software}.conf"));
        fs::write(&file, config)?;
        Self::launch(software, options, address, &file)
    }

    /// A `sessile serve` of that name, with these lines of `[session]`.
    pub(super) fn sessile(
        name: &str,
        session: &str,
        options: &Options,
        certificate: &Certificate,
        folder: &Path,
    ) -> Result<Self> {
        let address = free()?;
        let config = sessile(name, address, certificate, folder);
        let file = folder.join(format!("{name}.toml"));
        fs::write(&file, format!("{config}[session]\n{session}\n"))?;
        Self::launch(Software::Sessile, options, address, &file)
    }

    fn launch(
        software: Software,
        options: &Options,
        address: SocketAddr,
        file: &Path,
    ) -> Result<Self> {
        let file = file.display().to_string();
        let program = match software {
            Software::Sessile => options.sessile.clone(),
            Software::Nginx => "nginx".into(),
            Software::Haproxy => "haproxy".into(),
            Software::Redis => "redis-server".into(),
            Software::Bare => std::env::current_exe()?,
        };
        let address_argument = address.to_string();
        let arguments: &[&str] = match software {
            Software::Sessile => &["serve", "--config", &file],
            Software::Nginx => &["-e", "stderr", "-c", &file],
            Software::Haproxy => &["-db", "-f", &file],
            Software::Redis => &[&file],
            Software::Bare => &["--bare", &address_argument],
        };
        // The store is another machine, as far as the servers' processor goes.
        let cpu = match software {
            Software::Redis => options.client_cpu,
            _ => options.server_cpu,
        };
        // Asked for by itself first: behind taskset, one could not tell that it is missing.
        match Command::new(&program).arg("-v").output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(format!("{software} is missing: {}", software.remedy()).into());
            }
            _ => {}
        }
        let process = Command::new("taskset")
            .args(["-c", &cpu.to_string()])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("taskset (Debian's util-linux): {error}"))?;
        let mut peer = Self {
            software,
            address,
            process,
        };
        peer.wait()?;
        Ok(peer)
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

    /// Sends it a signal of that name.
    pub(super) fn signal(&self, name: &str) -> Result<()> {
        let id = self.process.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status()?;
        sent.success()
            .then_some(())
            .ok_or_else(|| format!("no signal {name}").into())
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
            let pss = pss
                .ok_or("smaps_rollup has no Pss")?
                .trim()
                .trim_end_matches(" kB");
            bytes += pss.parse::<u64>()? * 1024;
        }
        Ok(bytes)
    }

    /// The process and its children: nginx has a worker.
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

impl Drop for Peer {
    fn drop(&mut self) {
        // By signal and not by kill(): nginx takes its worker along only when it is asked to end.
        let asked = Command::new("kill")
            .arg(self.process.id().to_string())
            .status();
        if !asked.is_ok_and(|status| status.success()) {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

impl Software {
    const fn remedy(self) -> &'static str {
        match self {
            Self::Sessile | Self::Bare => "build it with cargo build --release",
            Self::Nginx => "install Debian's nginx",
            Self::Haproxy => "install Debian's haproxy",
            Self::Redis => "install Debian's redis-server",
        }
    }
}

/// Keeps a process, threads that it has not started yet included, on one processor.
pub(super) fn pin(process: u32, cpu: usize) -> Result<()> {
    let pinned = Command::new("taskset")
        .args(["-cp", &cpu.to_string(), &process.to_string()])
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("taskset (Debian's util-linux): {error}"))?;
    pinned
        .success()
        .then_some(())
        .ok_or_else(|| format!("there is no processor {cpu}").into())
}

/// An address that was free a moment ago.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn sessile(name: &str, address: SocketAddr, certificate: &Certificate, folder: &Path) -> String {
    format!(
        r#"[server]
name = "{name}"
state-dir = "{folder}"
workers = 1
[log]
level = "error"
access = "off"
[[listener]]
address = "{address}"
role = "serve"
[[site]]
certificates = [{{ chain = "{chain}", key = "{key}" }}]
[[site.route]]
path = "/"
respond = "ok\n"
"#,
        folder = folder.display(),
        chain = certificate.chain.display(),
        key = certificate.key.display(),
    )
}

fn nginx(address: SocketAddr, certificate: &Certificate, folder: &Path) -> String {
    format!(
        r#"daemon off;
worker_processes 1;
error_log stderr crit;
pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder};
  proxy_temp_path {folder};
  fastcgi_temp_path {folder};
  uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  keepalive_timeout 300s;
  server {{
    listen {address} ssl;
    ssl_certificate {chain};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_ecdh_curve X25519:prime256v1;
    ssl_session_cache shared:sessions:10m;
    location / {{
      default_type text/plain;
      return 200 "ok\n";
    }}
  }}
}}
"#,
        folder = folder.display(),
        chain = certificate.chain.display(),
        key = certificate.key.display(),
    )
}

fn redis(address: SocketAddr, folder: &Path) -> String {
    format!(
        "bind {}\nport {}\nsave \"\"\nappendonly no\nlogfile /dev/null\ndir {}\n",
        address.ip(),
        address.port(),
        folder.display(),
    )
}

fn haproxy(address: SocketAddr, folder: &Path) -> String {
    format!(
        r#"global
  nbthread 1
  maxconn 8192
  ssl-default-bind-options ssl-min-ver TLSv1.2
  ssl-default-bind-curves X25519:P-256
defaults
  mode http
  timeout client 300s
  timeout http-keep-alive 300s
  timeout http-request 300s
frontend bench
  bind {address} ssl crt {folder}/both.pem
  http-request return status 200 content-type text/plain string "ok\n"
"#,
        folder = folder.display(),
    )
}
