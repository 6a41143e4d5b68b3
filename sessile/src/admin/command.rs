//! What an operator can ask of a role over the API. A command goes over a channel to whoever can
//! obey it, with a place for the answer.

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait to be obeyed.
const QUEUE: usize = 16;

/// A command to the balancer.
#[derive(Debug)]
pub enum Command {
    /// Say what there is and how it stands.
    Balancer(oneshot::Sender<Value>),
    /// Say whether every client can be led to a server.
    Readiness(oneshot::Sender<Result<(), NoServerUp>>),
    /// Change a server, until the configuration is read again.
    ChangeServer {
        name: String,
        change: ServerChange,
        answer: oneshot::Sender<Result<Value, UnknownServer>>,
    },
}

/// What of a server is to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerChange {
    pub drain: Option<bool>,
    pub weight: Option<std::num::NonZeroU16>,
}

/// There are pools without a server that takes connections.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no server is up in {}", .pools.join(", "))]
pub struct NoServerUp {
    pub pools: Vec<String>,
}

/// No server has that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no server is named {name:?}; there are {}", .known.join(", "))]
pub struct UnknownServer {
    pub name: String,
    pub known: Vec<String>,
}

/// A channel for commands.
#[must_use]
pub fn channel() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(QUEUE)
}
