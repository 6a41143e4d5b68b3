//! Asks sentinels for the master of a service, and connects to it.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use redis::{AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisError, RedisResult, Role};
use tokio_util::task::AbortOnDropHandle;

use super::transport::{NodeConnection, Transport};
use crate::config::store::Node;

/// How long one sentinel may take, with the connection to the master that it names.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(1);

/// Everything that a look-up needs.
#[derive(Clone)]
pub(super) struct MasterLookup {
    pub(super) transport: Transport,
    /// The name of the master.
    pub(super) service: String,
    pub(super) sentinel_login: RedisConnectionInfo,
    pub(super) login: RedisConnectionInfo,
    pub(super) settings: AsyncConnectionConfig,
}

impl MasterLookup {
    /// Asks all sentinels at the same time. The first in the list that names a master decides.
    pub(super) async fn connect(&self, sentinels: &[Node]) -> RedisResult<NodeConnection> {
        let lookups: Vec<_> = sentinels
            .iter()
            .map(|sentinel| tokio::spawn(self.clone().ask_in_time(sentinel.clone())))
            .map(AbortOnDropHandle::new)
            .collect();
        let mut error = not_found();
        for lookup in lookups {
            match lookup.await.map_err(io::Error::from)? {
                Ok(master) => return Ok(master),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }

    async fn ask_in_time(self, sentinel: Node) -> RedisResult<NodeConnection> {
        let asked = tokio::time::timeout(LOOKUP_DEADLINE, self.ask(&sentinel));
        asked.await.map_err(io::Error::from)?
    }

    async fn ask(&self, Node { host, port }: &Node) -> RedisResult<NodeConnection> {
        let login = &self.sentinel_login;
        let connection = self
            .transport
            .connect(host, *port, login, self.settings.clone());
        let mut sentinel = connection.await?;
        let role: Role = redis::cmd("ROLE").query_async(&mut sentinel).await?;
        if !matches!(role, Role::Sentinel { .. }) {
            let problem = (
                ErrorKind::InvalidClientConfig,
                "this address is no sentinel",
            );
            return Err(RedisError::from(problem));
        }
        let mut masters = redis::cmd("SENTINEL");
        masters.arg("MASTERS");
        let masters: Vec<HashMap<String, String>> = masters.query_async(&mut sentinel).await?;
        for (host, port) in masters.iter().filter_map(|master| self.address(master)) {
            let settings = self.settings.clone();
            let connection = self.transport.connect(host, port, &self.login, settings);
            let mut master = connection.await?;
            if is_master(&mut master).await? {
                return Ok(master);
            }
        }
        Err(not_found())
    }

    /// The address of a master in the answer to SENTINEL MASTERS, if it is the right one and up.
    fn address<'a>(&self, master: &'a HashMap<String, String>) -> Option<(&'a str, u16)> {
        let flags = master.get("flags")?;
        let is_up = flags.contains("master") && !flags.contains("_down");
        if !is_up || *master.get("name")? != self.service {
            return None;
        }
        Some((master.get("ip")?, master.get("port")?.parse().ok()?))
    }
}

/// Asks a node itself. A sentinel may not know yet that the node became a replica.
async fn is_master(node: &mut NodeConnection) -> RedisResult<bool> {
    let role: RedisResult<Role> = redis::cmd("ROLE").query_async(node).await;
    let Err(error) = role else {
        return Ok(matches!(role, Ok(Role::Primary { .. })));
    };
    // The store's access rules may allow only one of the two commands.
    let mut info = redis::cmd("INFO");
    info.arg("REPLICATION");
    let text: String = info.query_async(node).await.map_err(|_| error)?;
    Ok(text.lines().any(|line| line == "role:master"))
}

fn not_found() -> RedisError {
    let problem = "the sentinels know no master of this name that is up";
    RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, problem))
}
