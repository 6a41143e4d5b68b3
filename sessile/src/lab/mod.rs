//! Experiments that reproduce an article with real servers, a real balancer, clients and sockets.
//! The report compares the observations with the article. Shorter settings compress the time; no
//! clock is faked.

pub mod kb937687;
mod report;
pub mod table;
mod test_farm;

use std::io;

use crate::balance;
use crate::client::{self, SetupError};
use crate::config::file::Problem;
use crate::config::reg::Ignored;
use crate::farm::AuthorityError;
use crate::key::KeyError;
use crate::serve;

pub use report::{Finding, LabReport, LabVisit, Scenario, ServerSettings};

/// The progress of an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabProgress {
    /// Number of finished scenarios.
    pub done: usize,
    /// Number of all scenarios.
    pub of: usize,
}

/// Why an experiment failed.
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
    #[error("cannot connect to {server}: {source}")]
    Connect {
        server: String,
        source: client::Error,
    },
    /// The machine is too slow: a step finished after its deadline.
    #[error(
        "this machine is too busy: {0}; choose a smaller --scale, or wait until the machine is idle"
    )]
    TooSlow(&'static str),
    /// A scenario's registry text cannot be parsed. This is a fault of sessile.
    #[error("the registry text of a scenario is wrong: {0}")]
    Registry(#[from] Problem),
    /// A scenario's registry text has an unknown entry. This is a fault of sessile.
    #[error("the registry text of a scenario is wrong: {0}")]
    Ignored(Ignored),
    /// A server did not state its verdict. This is a fault of sessile.
    #[error("a server sent no verdict header")]
    NoVerdict,
    /// A scenario panicked. This is a fault of sessile.
    #[error("a scenario failed: {0}")]
    Scenario(#[from] tokio::task::JoinError),
}
