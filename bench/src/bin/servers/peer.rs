//! The servers that are compared: their equivalent configurations, and their processes.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use sessile_bench::{Program, Result, free_address};

use super::model::Software;
use super::options::Options;

impl Software {
    /// The versions of the program and of its TLS library, as the program prints them.
    pub(super) fn version(self, options: &Options) -> String {
        let (program, argument) = match self {
            Self::Sessile => (options.sessile.as_path(), "--version"),
            Self::Nginx => (Path::new("nginx"), "-V"),
            Self::Haproxy => (Path::new("haproxy"), "-vv"),
            Self::Redis => (Path::new("redis-server"), "--version"),
            Self::Bare => return String::new(),
        };
        let Ok(output) = Command::new(program).arg(argument).output() else {
            return self.to_string();
        };
        // nginx prints its version on the standard error stream.
        let bytes = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&bytes);
        let library = text.lines().find_map(|line| {
            let (_, version) = line.split_once("unning ")?.1.rsplit_once("OpenSSL ")?;
            Some(format!(", OpenSSL {}", version.split(' ').next()?))
        });
        let line = text.lines().next().unwrap_or_default();
        let version = line
            .trim_start_matches("nginx version: ")
            .split(" - ")
            .flat_map(|part| part.split(" sha="))
            .next()
            .unwrap_or_default();
        format!("{version}{}", library.unwrap_or_default())
    }
}

/// The self-signed P-256 certificate that all servers share.
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
        // HAProxy reads certificate and key from one file.
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

/// A running server. Dropping it stops the server.
pub(super) struct Peer {
    pub(super) software: Software,
    pub(super) address: SocketAddr,
    program: Program,
}

impl Peer {
    pub(super) fn start(
        software: Software,
        options: &Options,
        certificate: &Certificate,
        folder: &Path,
    ) -> Result<Self> {
        Self::start_at(free_address()?, software, options, certificate, folder)
    }

    /// Starts a server on a given address.
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

    /// Starts `sessile serve` with a name and with lines of `[session]`.
    pub(super) fn sessile(
        name: &str,
        session: &str,
        options: &Options,
        certificate: &Certificate,
        folder: &Path,
    ) -> Result<Self> {
        let address = free_address()?;
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
        // The store runs on the client's processor, so that no other program runs on the servers'
        // processor.
        let cpu = match software {
            Software::Redis => options.client_cpu,
            _ => options.server_cpu,
        };
        // Run the program alone first, because taskset hides that a program is missing.
        match Command::new(&program).arg("-v").output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(format!("{software} is missing: {}", software.remedy()).into());
            }
            _ => {}
        }
        let mut command = Command::new("taskset");
        command
            .args(["-c", &cpu.to_string()])
            .arg(program)
            .args(arguments);
        Ok(Self {
            software,
            address,
            program: Program::start(&software.to_string(), &mut command, address)?,
        })
    }

    /// Sends a signal by name.
    pub(super) fn signal(&self, name: &str) -> Result<()> {
        self.program.signal(name)
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
