//! Where a connection goes.

/// How a client is placed that brings nothing to route by (`balance.policy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Weighted rendezvous hashing of the source address, with bounded load.
    #[default]
    Source,
    /// The server with the fewest open connections for its weight.
    LeastConnections,
    /// Each server in turn.
    RoundRobin,
}
