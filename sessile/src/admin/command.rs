//! Commands from the API to a role. A command travels on a channel and carries the sender for the
//! answer.

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

/// Maximum number of commands that wait in the channel.
const QUEUE: usize = 16;

/// A command to the balancer.
#[derive(Debug)]
pub enum Command {
    /// Report the balancer's pools and servers.
    Balancer(oneshot::Sender<Value>),
    /// Report whether each pool has a server that takes connections.
    Readiness(oneshot::Sender<Result<(), NoServerUp>>),
    /// Change a server until the next reload of the configuration.
    ChangeServer {
        name: String,
        change: ServerChange,
        answer: oneshot::Sender<Result<Value, UnknownServer>>,
    },
}

/// The changes to a server; `None` leaves a value as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerChange {
    pub drain: Option<bool>,
    pub weight: Option<std::num::NonZeroU16>,
}

/// Some pools have no server that takes connections.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no server is up in {}", .pools.join(", "))]
pub struct NoServerUp {
    pub pools: Vec<String>,
}

/// No server has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no server is named {name:?}; the servers are {}", .known.join(", "))]
pub struct UnknownServer {
    pub name: String,
    pub known: Vec<String>,
}

/// A bounded channel for commands.
#[must_use]
pub fn channel() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(QUEUE)
}
