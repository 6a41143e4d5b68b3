//! Where sessions live: the session table of this process and, if configured, a store that servers share.
//!
//! A handshake waits only a limited time for the shared store, and never blocks its thread. The modules below
//! import nothing from here; `redis` imports `context` and `forget_rules`.

mod context;
mod forget_rules;
mod redis;
pub mod snapshot;

pub use self::context::StoreContext;
pub use self::redis::{ForgetError, StoreError, forget};

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use sessile_proto::Time;
use sessile_proto::keys::Schedule;
use sessile_proto::resumption::{NewSession, StoreKey};
use sessile_proto::session::{Gone, Inserted, Limits, Lookup, ShardedTable};
use sessile_proto::ticket::{Envelope, ForgetRules};
use sessile_proto::verdict::Reason;

use self::forget_rules::KnownForgetRules;
use self::redis::{HEARTBEAT, RemoteStore, StoreLookup, WorkerConnection};
use self::snapshot::Snapshot;
use crate::config::{Config, StoreUrl};
use crate::key::Keyring;

/// The longest time until servers learn a new forget rule from a store that answers quickly.
pub const FORGETS_WITHIN: Duration = HEARTBEAT.saturating_mul(2);

/// The answer of the store after it consumed a single-use session.
pub struct Consumed {
    /// The session's envelope, or why there is none.
    pub session: Result<Vec<u8>, Reason>,
    /// True if no server can have been given the session before.
    ///
    /// Replication is asynchronous: a node that was promoted, restarted or restored may not know that the
    /// session was consumed. So the node that returns the session must have stored it, and must have been the
    /// master since then. The session must have been in the store before any ClientHello asked for it.
    pub is_certain: bool,
}

/// The session store of one server, shared by its threads.
#[derive(Clone)]
pub struct Store {
    table: Arc<ShardedTable>,
    remote: Option<Arc<RemoteStore>>,
    rules: Arc<KnownForgetRules>,
    /// True if another server may remove a session, so that the shared store must always be asked.
    others_may_remove: bool,
}

impl Store {
    /// The configured store, for the server with the number `number`. `seed` must be unpredictable.
    ///
    /// # Errors
    /// If a shared store cannot be used as it is configured. A store that cannot be reached is no error.
    pub fn new(
        config: &Config,
        keys: &Arc<Keyring>,
        number: u32,
        registry: &Registry,
        seed: u64,
    ) -> Result<Self, StoreError> {
        let limits = Limits {
            max_entries: config.session.max_entries,
            lifetime: config.session.lifetime,
        };
        let rules = Arc::new(KnownForgetRules::default());
        let remote = match &config.session.store {
            // Even a server that stores no sessions needs the shared store, for the forget rules.
            StoreUrl::Redis(redis) if !limits.lifetime.is_zero() => {
                let timeout = config.session.store_timeout;
                let server = &config.server;
                let remote =
                    RemoteStore::new(redis, timeout, server, number, keys, &rules, registry)?;
                Some(Arc::new(remote))
            }
            StoreUrl::Memory | StoreUrl::Redis(_) => None,
        };
        Ok(Self {
            table: Arc::new(ShardedTable::new(limits, seed)),
            remote,
            rules,
            others_may_remove: config.sessions_are_removable(),
        })
    }

    /// The store for one worker thread. It has no connection before [`WorkerStore::connect`].
    #[must_use]
    pub fn worker(&self) -> WorkerStore {
        let connect = |remote: &Arc<RemoteStore>| Rc::new(WorkerConnection::new(remote.clone()));
        WorkerStore {
            store: self.clone(),
            connection: self.remote.as_ref().map(connect),
        }
    }

    /// Forgets the sessions that these rules cover, until the process ends.
    pub fn forget(&self, rules: &ForgetRules) {
        self.rules.learn(rules);
    }

    /// Releases the server's number for another process, because this server drains.
    pub fn release_number(&self) {
        if let Some(remote) = &self.remote {
            remote.release_number();
        }
    }

    /// Clears the table if generations of the farm key were revoked.
    ///
    /// Look-ups do this too; a table without look-ups needs this call.
    pub fn apply_revocations(&self, schedule: &Schedule) {
        self.table.apply_revocations(schedule.revocations());
    }

    /// Copies the table for the next start of the server.
    #[must_use]
    pub fn snapshot(&self, incarnation: u16, schedule: &Schedule) -> Snapshot {
        self.apply_revocations(schedule);
        Snapshot {
            incarnation,
            entries: self.table.snapshot(),
        }
    }

    /// Inserts the entries of a snapshot that have not expired, and returns their number.
    pub fn restore(&self, snapshot: &Snapshot, now: Time) -> usize {
        let entries = snapshot.entries.iter();
        let stored = entries.filter(|entry| {
            let (key, value) = (&entry.key, &entry.value);
            let inserted = self.table.insert(key, value, entry.established, now);
            matches!(inserted, Inserted::Stored { .. })
        });
        stored.count()
    }

    /// The session table of this process.
    #[must_use]
    pub fn table(&self) -> &ShardedTable {
        &self.table
    }
}

/// The session store of one worker thread.
#[derive(Clone)]
pub struct WorkerStore {
    store: Store,
    connection: Option<Rc<WorkerConnection>>,
}

impl WorkerStore {
    /// Connects to the shared store, if there is one, and waits a moment for the connection.
    ///
    /// Must run in a local runtime or a `LocalSet`, because a local task keeps the connection up.
    pub async fn connect(&self) {
        if let Some(connection) = &self.connection {
            connection.start().await;
        }
    }

    /// True if sessions can be stored.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.store.table.disabled()
    }

    /// True if sessions are stored for other servers too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.connection.is_some() && self.is_enabled()
    }

    /// The forget rules that this server knows.
    #[must_use]
    pub fn forget_rules(&self) -> Arc<ForgetRules> {
        self.store.rules.known()
    }

    /// The context of a handshake that begins at `now`.
    #[must_use]
    pub fn context(&self, schedule: Arc<Schedule>, now: Time) -> StoreContext {
        let connection = self.connection.as_ref();
        StoreContext {
            schedule,
            now,
            budget: connection.map_or(Duration::ZERO, |connection| connection.timeout()),
        }
    }

    /// Looks up sessions and leaves them in the store. Returns an envelope for each session, or the reason why
    /// there is none.
    pub async fn find(
        &self,
        keys: Vec<StoreKey>,
        context: &mut StoreContext,
    ) -> Vec<(StoreKey, Result<Vec<u8>, Reason>)> {
        self.store
            .table
            .apply_revocations(context.schedule.revocations());
        let mut found: Vec<_> = keys
            .into_iter()
            .map(|key| (key, self.find_in_table(&key, context.now)))
            .collect();
        if let Some(connection) = &self.connection {
            self.find_in_store(connection, &mut found, context).await;
        }
        found
    }

    fn find_in_table(&self, key: &StoreKey, now: Time) -> Result<Vec<u8>, Reason> {
        if key.is_single_use() {
            return Err(Reason::Unknown);
        }
        match self.store.table.get(key.as_bytes(), now) {
            Lookup::Found(envelope) => Ok(envelope),
            Lookup::Gone(gone) => Err(gone.into()),
            Lookup::Unknown => Err(Reason::Unknown),
            Lookup::Disabled => Err(Reason::CacheDisabled),
        }
    }

    /// Asks the shared store about each session for which the answer of the table is not final.
    async fn find_in_store(
        &self,
        connection: &WorkerConnection,
        found: &mut [(StoreKey, Result<Vec<u8>, Reason>)],
        context: &mut StoreContext,
    ) {
        let (keys, results): (Vec<StoreKey>, Vec<_>) = found
            .iter_mut()
            .filter(|(_, result)| self.must_ask_store(result))
            .map(|(key, result)| (*key, result))
            .unzip();
        if keys.is_empty() {
            return;
        }
        let lookups = connection.fetch(&keys, context).await;
        for ((key, result), lookup) in keys.iter().zip(results).zip(lookups) {
            match lookup {
                StoreLookup::Found(envelope) => {
                    *result = self.accept_from_store(key, envelope, context);
                }
                StoreLookup::Removed(gone) => {
                    self.remove_from_table(key, gone);
                    *result = Err(gone.into());
                }
                // The session may never have reached the store, so the answer of the table stands.
                StoreLookup::Missing => {}
                StoreLookup::Unusable(reason) => *result = Err(reason),
            }
        }
    }

    fn must_ask_store(&self, table_result: &Result<Vec<u8>, Reason>) -> bool {
        match table_result {
            Ok(_) => self.store.others_may_remove,
            Err(reason) => matches!(reason, Reason::Unknown | Reason::Evicted),
        }
    }

    /// Checks that a session from the store has not expired. The session is also inserted into the table,
    /// unless it is for a single use or another server may remove it.
    fn accept_from_store(
        &self,
        key: &StoreKey,
        envelope: Vec<u8>,
        context: &StoreContext,
    ) -> Result<Vec<u8>, Reason> {
        let session = Envelope::decode(&envelope)?;
        // The store expires sessions by its own clock, counted from the moment when the store got the session.
        if context.now >= session.expires {
            return Err(Reason::Expired);
        }
        if !self.store.others_may_remove && !key.is_single_use() {
            self.insert_into_table(key, &envelope, session.established, context);
        }
        Ok(envelope)
    }

    /// Inserts a session into the table, unless its key has been revoked meanwhile.
    fn insert_into_table(
        &self,
        key: &StoreKey,
        envelope: &[u8],
        established: Time,
        context: &StoreContext,
    ) {
        self.store
            .table
            .insert(key.as_bytes(), envelope, established, context.now);
        // This check follows the insertion, so that a revocation at the same time cannot miss the session.
        if !self
            .store
            .table
            .apply_revocations(context.schedule.revocations())
        {
            self.remove_from_table(key, Gone::Revoked);
        }
    }

    /// True if single-use sessions can probably be stored now.
    #[must_use]
    pub fn can_store_single_use(&self) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|connection| connection.can_store_single_use())
    }

    /// Takes a single-use session out of the store, so that no server gets it again.
    pub async fn consume(&self, key: &StoreKey, context: &mut StoreContext) -> Consumed {
        let Some(connection) = &self.connection else {
            return Consumed {
                session: Err(Reason::CacheDisabled),
                is_certain: false,
            };
        };
        let consumed = connection.consume(key, context).await;
        let session = match consumed.lookup {
            StoreLookup::Found(envelope) => self.accept_from_store(key, envelope, context),
            StoreLookup::Removed(gone) => Err(gone.into()),
            StoreLookup::Missing => Err(Reason::Unknown),
            StoreLookup::Unusable(reason) => Err(reason),
        };
        Consumed {
            session,
            is_certain: consumed.is_certain,
        }
    }

    /// Stores new sessions, and removes the single-use session `consumed`.
    ///
    /// Returns when the client's next connection can find the new sessions, or when the budget is used up.
    pub async fn put(
        &self,
        new_sessions: Vec<NewSession>,
        consumed: Option<StoreKey>,
        context: &mut StoreContext,
    ) {
        for new in new_sessions.iter().filter(|new| !new.key.is_single_use()) {
            self.insert_into_table(&new.key, &new.envelope, new.established, context);
        }
        if new_sessions.is_empty() && consumed.is_none() {
            return;
        }
        if let Some(connection) = &self.connection {
            connection.put(&new_sessions, consumed, context).await;
        }
    }

    /// Removes a session from the table of this process only.
    pub fn remove_from_table(&self, key: &StoreKey, why: Gone) {
        if !key.is_single_use() {
            self.store.table.remove(key.as_bytes(), why);
        }
    }

    /// Removes a session from the table and from the shared store. Both remember the reason.
    pub async fn remove(&self, key: &StoreKey, why: Gone) {
        self.remove_from_table(key, why);
        if let Some(connection) = &self.connection {
            connection.remove(key, why).await;
        }
    }
}
