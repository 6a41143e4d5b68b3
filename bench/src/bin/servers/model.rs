//! The software and the kinds of connections that are compared, and the numbers that all
//! measurements share.

use std::fmt;
use std::time::Duration;

/// Connections of each round before the measurement. They warm the caches and make sessions.
pub(super) const WARM_UP: usize = 200;

/// Connections at once. The load generator has one thread for each of them.
pub(super) const CONCURRENCY: [usize; 2] = [1, 8];

/// Idle connections whose memory is measured.
pub(super) const IDLE: usize = 2000;

/// Pause before a thread's processor time is read. The kernel updates this time when the thread
/// sleeps.
pub(super) const SETTLE: Duration = Duration::from_millis(50);

/// The programs that the benchmarks start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Software {
    Sessile,
    Nginx,
    Haproxy,
    /// See [`super::bare`].
    Bare,
    Redis,
}

impl Software {
    /// The servers that are compared.
    pub(super) const ALL: [Self; 4] = [Self::Sessile, Self::Nginx, Self::Haproxy, Self::Bare];
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

/// The kinds of connections that are measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ConnectionKind {
    Full,
    Psk,
    SessionId,
    Ticket,
}

impl ConnectionKind {
    pub(super) const ALL: [Self; 4] = [Self::Full, Self::Psk, Self::SessionId, Self::Ticket];

    /// The name on the command line.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Psk => "psk",
            Self::SessionId => "session-id",
            Self::Ticket => "ticket",
        }
    }
}

impl fmt::Display for ConnectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "TLS 1.3, full handshake",
            Self::Psk => "TLS 1.3, resumed (PSK)",
            Self::SessionId => "TLS 1.2, resumed by session ID",
            Self::Ticket => "TLS 1.2, resumed by ticket",
        })
    }
}
