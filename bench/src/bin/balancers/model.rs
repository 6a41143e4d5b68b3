//! The command line, the balancers that are compared, and the numbers that all measurements share.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use sessile_bench::Result;

/// Connections before the measurement.
pub(super) const WARM_UP: usize = 200;

/// Connections at once.
pub(super) const AT_ONCE: [usize; 2] = [1, 8];

/// Bytes of a short response.
pub(super) const SHORT: usize = 600;

/// Bytes of a long response.
pub(super) const LONG: usize = 256 << 20;

/// Idle connections whose memory is measured.
pub(super) const IDLE: usize = 2000;

/// Pause before a thread's processor time is read. The kernel updates this time when the thread
/// sleeps.
pub(super) const SETTLE: Duration = Duration::from_millis(50);

const USAGE: &str = "usage: balancers --sessile PATH [--rounds N] [--connections N] [--workers N] \
[--balancer-cpu N] [--client-cpu N] [--write FILE]";

pub(super) struct Options {
    pub(super) sessile: PathBuf,
    pub(super) rounds: usize,
    pub(super) connections: usize,
    pub(super) workers: usize,
    pub(super) balancer_cpu: usize,
    pub(super) client_cpu: usize,
    /// Markdown file in which the results replace a section.
    pub(super) write: Option<PathBuf>,
}

impl Options {
    pub(super) fn from_args() -> Result<Self> {
        let mut options = Self {
            sessile: PathBuf::new(),
            rounds: 5,
            connections: 4000,
            workers: 1,
            balancer_cpu: 0,
            client_cpu: 1,
            write: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let value = args.next().ok_or(USAGE)?;
            match name.as_str() {
                "--sessile" => options.sessile = value.into(),
                "--rounds" => options.rounds = value.parse()?,
                "--connections" => options.connections = value.parse()?,
                "--workers" => options.workers = value.parse()?,
                "--balancer-cpu" => options.balancer_cpu = value.parse()?,
                "--client-cpu" => options.client_cpu = value.parse()?,
                "--write" => options.write = Some(value.into()),
                _ => return Err(USAGE.into()),
            }
        }
        if options.sessile.as_os_str().is_empty() {
            return Err(USAGE.into());
        }
        Ok(options)
    }
}

/// The balancers that are compared.
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

    /// The other balancers, with which sessile is compared.
    pub(super) fn others() -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(|software| !matches!(software, Self::Sessile | Self::Bare))
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
