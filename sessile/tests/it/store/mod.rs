//! The shared session store, with a real Redis behind real servers.

mod bodies;
mod cluster;
mod early;
mod failures;
mod farm;
mod forget;
mod hostile;
mod number;
mod proxy;
mod secured;
pub(crate) mod setup;
mod snapshot;
mod stolen;
