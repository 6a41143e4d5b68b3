//! Events in the life of servers that a probe watched.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use sessile_proto::key_names::KeyName;
use sessile_proto::session_events::{ServerEvent, SessionEvent};
use sessile_proto::verdict::How;

use super::ticket_bytes::short;
use crate::client::hex;

/// For how long, and how often, a probe returns to each server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchLimits {
    pub duration: Duration,
    pub interval: Duration,
}

/// What a probe saw while it watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub limits: WatchLimits,
    pub events: Vec<ProbeEvent>,
    /// For how long servers have sealed tickets with the same key.
    pub key_ages: Vec<KeyAge>,
}

/// Something that happened to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeEvent {
    pub at: SystemTime,
    pub address: SocketAddr,
    /// `None` if it does not depend on a mechanism.
    pub how: Option<How>,
    pub event: Event,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Server(ServerEvent),
    Session(SessionEvent),
}

/// For how long a server has sealed tickets with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyAge {
    pub how: How,
    pub address: SocketAddr,
    pub age: Duration,
}

impl Watched {
    pub(super) const fn new(limits: WatchLimits) -> Self {
        Self {
            limits,
            events: Vec::new(),
            key_ages: Vec::new(),
        }
    }

    /// Keeps the largest age for each server and mechanism.
    pub(super) fn take_key_age(&mut self, age: KeyAge) {
        let same = |known: &&mut KeyAge| (known.how, known.address) == (age.how, age.address);
        match self.key_ages.iter_mut().find(same) {
            Some(known) => known.age = known.age.max(age.age),
            None => self.key_ages.push(age),
        }
    }

    /// The times at which the sessions of a server and mechanism were lost.
    pub(super) fn losses(&self) -> impl Iterator<Item = &ProbeEvent> {
        self.events
            .iter()
            .filter(|event| matches!(event.event, Event::Session(SessionEvent::Lost { .. })))
    }
}

impl Event {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server(ServerEvent::Down) => "down",
            Self::Server(ServerEvent::Up) => "up",
            Self::Server(ServerEvent::OtherCertificate) => "other-certificate",
            Self::Session(SessionEvent::Lost { .. }) => "lost",
            Self::Session(SessionEvent::OtherKey { .. }) => "other-key",
        }
    }

    /// The names of the ticket key before and after, if it changed.
    #[must_use]
    pub const fn keys(self) -> Option<[KeyName; 2]> {
        match self {
            Self::Session(SessionEvent::Lost { keys }) => keys,
            Self::Session(SessionEvent::OtherKey { keys }) => Some(keys),
            Self::Server(_) => None,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server(ServerEvent::Down) => "does not answer",
            Self::Server(ServerEvent::Up) => "answers again",
            Self::Server(ServerEvent::OtherCertificate) => "has another certificate",
            Self::Session(SessionEvent::Lost { .. }) => "refused a session that it had just given",
            Self::Session(SessionEvent::OtherKey { .. }) => {
                "seals tickets with another key, and accepts those of the key before"
            }
        })?;
        match self.keys() {
            Some(keys) => {
                let [before, after] = keys.map(|name| short(&hex(&name)));
                write!(f, "; key {before} before, {after} now")
            }
            None => Ok(()),
        }
    }
}
