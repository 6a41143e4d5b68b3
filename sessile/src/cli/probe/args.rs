//! The arguments of `sessile probe`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, ValueHint};
use sessile_proto::verdict::How;

use crate::cli::endpoint::{Endpoint, Endpoints};
use crate::client::StartTls;
use crate::probe::{AgeLimits, FirstConnection, Request};

/// Find out whether, how and across which servers a farm resumes TLS sessions.
///
/// Each address counts as one server. For each of TLS 1.2 session ID, TLS 1.2 ticket and TLS 1.3 PSK, the probe
/// makes a full handshake with each server. Then it offers sessions of each server to each server.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
#[command(group(ArgGroup::new("gaps").args(["after", "find_age"]).multiple(true)))]
pub(in crate::cli) struct Args {
    /// Host name or IP address, and port (443 if none is given); or an https:// URL, whose path is ignored
    #[arg(
        value_name = "HOST:PORT",
        value_hint = ValueHint::Hostname,
        required_unless_present = "targets_from"
    )]
    pub(super) targets: Vec<Endpoint>,

    /// Also probe the targets in this file, one a line; # begins a comment, and - is the standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) targets_from: Option<PathBuf>,

    /// How many targets the probe tests at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) parallel: u16,

    /// Server name (SNI) to send, if it is not HOST
    #[arg(long, value_name = "NAME", value_hint = ValueHint::Hostname)]
    pub(super) sni: Option<String>,

    /// Trust only the authorities in this PEM file
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub(super) ca: Option<PathBuf>,

    /// Accept any certificate
    #[arg(long)]
    pub(super) insecure: bool,

    /// The servers of the farm, instead of the addresses of HOST; a name stands for all its addresses
    #[arg(long = "address", value_name = "HOST:PORT", value_hint = ValueHint::Hostname)]
    pub(super) addresses: Vec<Endpoints>,

    /// Sessions of each server that each server gets, for each mechanism [default: 5 with one address, else 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) attempts: Option<u16>,

    /// Also offer the sessions to this name of the same servers; they must not resume for a name with client certificates
    #[arg(long = "other-name", value_name = "NAME", value_delimiter = ',', value_hint = ValueHint::Hostname)]
    pub(super) other_names: Vec<String>,

    /// Also return after these gaps, such as 1s,1m,6m
    #[arg(long, value_name = "DURATION", value_delimiter = ',', value_parser = duration)]
    pub(super) after: Vec<Duration>,

    /// The first connection in the gap: open and idle, or ended [default: idle,close-notify]
    #[arg(
        long = "first-connection",
        value_name = "FATE",
        value_delimiter = ',',
        requires = "gaps"
    )]
    pub(super) first_connections: Vec<FirstConnection>,

    /// Also search for the age at which each server refuses its sessions, up to this age
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) find_age: Option<Duration>,

    /// End this search when the age is known to this bound [default: a twentieth of the age]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "find_age")]
    pub(super) within: Option<Duration>,

    /// After the tests, return to each server for this time, and say when it loses sessions or changes keys
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) watch: Option<Duration>,

    /// The time between two returns of --watch
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration, requires = "watch")]
    pub(super) interval: Duration,

    /// Test only these mechanisms
    #[arg(long = "mechanism", value_name = "MECHANISM", value_delimiter = ',')]
    pub(super) mechanisms: Vec<MechanismName>,

    /// What to send after the handshake
    #[arg(long, value_name = "REQUEST", value_enum, default_value_t)]
    pub(super) request: Request,

    /// Ask for TLS by this protocol, on its own default port, and send no HTTP request
    #[arg(
        long = "starttls",
        value_name = "PROTOCOL",
        value_enum,
        conflicts_with = "request"
    )]
    pub(super) start_tls: Option<StartTls>,

    /// Connect through this HTTP proxy (http://HOST:PORT), by CONNECT
    #[arg(long, value_name = "URL", value_parser = proxy_url, value_hint = ValueHint::Url)]
    pub(super) proxy: Option<Endpoint>,

    /// Application protocols to offer, such as h2 or mqtt [default: that of the request]
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',')]
    pub(super) alpn: Option<Vec<String>>,

    /// Certificate chain (PEM) for servers that request a client certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(super) cert: Option<PathBuf>,

    /// Private key (PEM) of the client certificate
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(super) key: Option<PathBuf>,

    /// Longest time for a connection, and for a handshake
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(super) timeout: Duration,

    /// Most connections to one address in a second; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(super) rate: u32,

    /// Say how many connections the probe makes in what time, and make none
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Exit with 1 only if less than this share of the offered sessions resumed, such as 99%
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(super) fail_under: Option<f64>,

    /// Show a row for each attempt, also with several addresses
    #[arg(long, short)]
    pub(super) verbose: bool,

    /// Write JSON for programs instead of tables
    #[arg(long)]
    pub(super) json: bool,

    /// Also write the report as an HTML page into this file
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,

    /// Write metrics in the text format of Prometheus instead of tables
    #[arg(long, conflicts_with = "json")]
    pub(super) prometheus: bool,
}

impl Args {
    pub(super) fn age_limits(&self) -> Option<AgeLimits> {
        let max = self.find_age?;
        let within = self.within.unwrap_or(max / DEFAULT_AGE_STEPS);
        Some(AgeLimits { max, within })
    }

    pub(super) fn first_connections(&self) -> Vec<FirstConnection> {
        if self.first_connections.is_empty() {
            vec![FirstConnection::Idle, FirstConnection::CloseNotify]
        } else {
            self.first_connections.clone()
        }
    }
}

/// The name of a mechanism on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum MechanismName {
    /// TLS 1.2 session ID
    SessionId,
    /// TLS 1.2 ticket
    Ticket,
    /// TLS 1.3 PSK
    Psk,
}

impl From<MechanismName> for How {
    fn from(name: MechanismName) -> Self {
        match name {
            MechanismName::SessionId => Self::SessionId,
            MechanismName::Ticket => Self::Ticket,
            MechanismName::Psk => Self::Psk,
        }
    }
}

const AFTER_HELP: &str = "\
Examples:
  sessile probe https://www.example.org/
  sessile probe farm.example.org --address 192.0.2.1,192.0.2.2
  sessile probe 127.0.0.1:8443 --sni farm.test --ca ca.pem --json
  sessile probe farm.example.org --mechanism psk --fail-under 99%
  sessile probe --targets-from names.txt --prometheus

Exit status: 0 every mechanism that the server offers resumes; 1 one does not;
2 wrong usage or no connection; 130 \
interrupted.";

/// The number of bounds in the largest age of a search.
const DEFAULT_AGE_STEPS: u32 = 20;

fn percent(text: &str) -> Result<f64, &'static str> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("expected a percentage from 0% to 100%, such as 99%"),
    }
}

/// The host and port of `http://HOST:PORT/`.
fn proxy_url(text: &str) -> Result<Endpoint, &'static str> {
    let rest = text.strip_prefix("http://");
    let authority = rest.ok_or("give the proxy as http://HOST:PORT")?;
    authority.strip_suffix('/').unwrap_or(authority).parse()
}

/// The longest duration. Later times are no use, and the clock cannot count to all of them.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("the duration must be longer than 0s".to_owned()),
        Ok(duration) if duration > LONGEST => {
            Err("the duration must be at most 365days".to_owned())
        }
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}
