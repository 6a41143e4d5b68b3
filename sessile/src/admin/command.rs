//! Commands from the API to a role. A command travels on a channel and carries the sender for the
//! answer.

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::config::ServerRequest;

/// Maximum number of commands that wait in the channel.
const QUEUE: usize = 16;

/// A command to the balancer.
#[derive(Debug)]
pub enum Command {
    /// Report the balancer's pools and servers.
    Balancer(oneshot::Sender<Value>),
    /// Report whether each pool has a server that takes connections.
    Readiness(oneshot::Sender<Result<(), NoServerUp>>),
    /// Change, add or remove one server.
    Server {
        name: String,
        command: ServerCommand,
        answer: oneshot::Sender<Result<Value, ServerError>>,
    },
}

/// A command about one server.
#[derive(Debug)]
pub enum ServerCommand {
    /// Change a server.
    Change(ServerChange),
    /// Add a server, or replace the settings of the server.
    Put(ServerRequest),
    /// Remove a server.
    Remove,
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

/// Why a command about a server is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// No server has this name.
    #[error("no server is named {name:?}; the servers are {}", .known.join(", "))]
    Unknown { name: String, known: Vec<String> },
    /// The settings are not valid. The text is that of a problem of a configuration file.
    #[error("{0}")]
    Invalid(String),
    /// The server is one address of a DNS name.
    #[error(
        "DNS gave the server {name:?}, so only `drain` and `weight` can be changed; change or remove the server \
         {entry:?}, which has the DNS name"
    )]
    Found { name: String, entry: String },
    /// Another server has the same number.
    #[error("{0}")]
    SameNumber(String),
}

/// A bounded channel for commands.
#[must_use]
pub fn channel() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(QUEUE)
}
