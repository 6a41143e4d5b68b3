//! sessile and Redis: their configurations and their processes.

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
    /// The version of the program, as the program prints it.
    pub(super) fn version(self, options: &Options) -> String {
        let (program, argument) = match self {
            Self::Sessile => (options.sessile.as_path(), "--version"),
            Self::Redis => (Path::new("redis-server"), "--version"),
        };
        let Ok(output) = Command::new(program).arg(argument).output() else {
            return self.to_string();
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().next().unwrap_or_default();
        line.split(" sha=").next().unwrap_or_default().to_owned()
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
        Ok(Self {
            der: certificate.der().clone(),
            chain,
            key,
        })
    }
}

/// A running server. Dropping it stops the server.
pub(super) struct Peer {
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
            Software::Redis => redis(address, folder),
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
            Software::Redis => "redis-server".into(),
        };
        let arguments: &[&str] = match software {
            Software::Sessile => &["serve", "--config", &file],
            Software::Redis => &[&file],
        };
        // The store runs on the client's processor, so that no other program runs on the servers'
        // processor.
        let cpu = match software {
            Software::Redis => options.client_cpu,
            Software::Sessile => options.server_cpu,
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
}

impl Software {
    const fn remedy(self) -> &'static str {
        match self {
            Self::Sessile => "build it with cargo build --release",
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

fn redis(address: SocketAddr, folder: &Path) -> String {
    format!(
        "bind {}\nport {}\nsave \"\"\nappendonly no\nlogfile /dev/null\ndir {}\n",
        address.ip(),
        address.port(),
        folder.display(),
    )
}
