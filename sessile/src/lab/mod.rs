//! Experiments: real servers, a real balancer, clients and sockets, set up as an article describes
//! them, and what the clients saw beside what the article says. Time is compressed by shorter
//! settings; no clock is faked.

pub mod kb937687;
mod report;
pub mod table;
mod test_farm;

use std::io;

use crate::balance;
use crate::client::{self, SetupError};
use crate::config::reg::{Ignored, RegError};
use crate::farm::AuthorityError;
use crate::key::KeyError;
use crate::serve;

pub use report::{Finding, LabReport, LabVisit, Scenario, ServerSettings};

/// How far an experiment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabProgress {
    /// Scenarios that are finished.
    pub done: usize,
    pub of: usize,
}

/// Why an experiment has no result.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("cannot make a temporary folder: {0}")]
    Folder(#[source] io::Error),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Client(#[from] SetupError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("server: {0}")]
    Server(#[from] Box<serve::StartError>),
    #[error("balancer: {0}")]
    Balancer(#[from] balance::StartError),
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    #[error("no connection to {server}: {source}")]
    Connect {
        server: String,
        source: client::Error,
    },
    /// The machine's part: what was to be seen has been overtaken by the clock.
    #[error("this machine is too busy: {0}; choose a smaller --scale, or wait until it is idle")]
    TooSlow(&'static str),
    /// Ours: a scenario's settings cannot be read.
    #[error("a scenario's registry text, {0}")]
    Registry(#[from] RegError),
    /// Ours: a scenario sets what nothing here knows.
    #[error("a scenario's registry text, {0}")]
    Ignored(Ignored),
    /// Ours: a server did not say what its handshake came to.
    #[error("a server did not tell its verdict")]
    NoVerdict,
    /// Ours: a scenario panicked.
    #[error("a scenario failed: {0}")]
    Scenario(#[from] tokio::task::JoinError),
}
