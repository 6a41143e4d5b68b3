//! Where sessions live: the session table of this process, and behind it, where one is configured, a
//! store that servers share. A handshake waits for the store under a deadline and never blocks its
//! thread; without a shared store it does not wait at all.

mod entry;
mod forget_rules;
pub mod memory;
mod redis;
pub mod snapshot;

pub use self::redis::{ForgetError, StoreError, forget};

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use sessile_proto::Time;
use sessile_proto::keys::Schedule;
use sessile_proto::session::{Gone, Inserted, Limits, Lookup};
use sessile_proto::ticket::{Envelope, ForgetRules};
use sessile_proto::verdict::Reason;
use tokio::time::Instant;

use self::redis::{Answer, HEARTBEAT, Link, Remote};
use crate::config::{Config, StoreUrl};
use crate::key::Keyring;
use forget_rules::KnownForgetRules;
use memory::Memory;
use snapshot::Snapshot;

/// How long servers take to hear of a mark in the store, at most, while they reach it and its answers
/// are quick.
pub const FORGETS_WITHIN: Duration = HEARTBEAT.saturating_mul(2);

/// A session's key: what the client presents, set apart by protocol version, so that a TLS 1.2
/// session ID that was seen on the wire means nothing as a TLS 1.3 identity.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl Key {
    const MAX: usize = 33;

    const SINGLE_USE: u8 = 0x30;

    /// A TLS 1.2 session ID; `None` where it is empty or over 32 bytes.
    #[must_use]
    pub fn session_id(id: &[u8]) -> Option<Self> {
        (1..Self::MAX)
            .contains(&id.len())
            .then(|| Self::new(0x12, id))
    }

    /// The identifier of a stored TLS 1.2 ticket or TLS 1.3 identity.
    #[must_use]
    pub fn stored(id: &sessile_proto::ticket::Id) -> Self {
        Self::new(0x13, id)
    }

    /// The identity of a TLS 1.3 session that may bring early data once; `None` where it is not 32 bytes.
    #[must_use]
    pub fn single_use(id: &[u8]) -> Option<Self> {
        (id.len() + 1 == Self::MAX).then(|| Self::new(Self::SINGLE_USE, id))
    }

    /// Whether the session may be used once only. One authority has to decide that, and it is the shared
    /// store: such a session is in no table and no snapshot.
    #[must_use]
    pub const fn is_single_use(&self) -> bool {
        self.bytes[0] == Self::SINGLE_USE
    }

    fn new(kind: u8, id: &[u8]) -> Self {
        let mut bytes = [0; Self::MAX];
        bytes[0] = kind;
        bytes[1..=id.len()].copy_from_slice(id);
        Self {
            bytes,
            len: id.len() as u8 + 1,
        }
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A session ID is no secret, and in full it is noise in a log.
        let [kind, a, b, c, d, ..] = self.bytes;
        write!(f, "Key({kind:02x}:{a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

/// A session that has to be in the store before the flight that announces it leaves.
pub struct Put {
    pub key: Key,
    pub envelope: Vec<u8>,
    /// When its full handshake was.
    pub established: Time,
    /// When its life ends.
    pub expires: Time,
}

/// What came of spending a session for single use.
pub struct Spent {
    /// Its envelope, or why there is none to be had.
    pub session: Result<Vec<u8>, Reason>,
    /// The node that gave it out is the one that took it, and has been the master without a break: only
    /// then is it sure that nobody else was given it, for replication is asynchronous, and a node that was
    /// promoted, restarted or restored may have missed that it was spent. And it did not take it after a
    /// hello that may be this one had asked for it, and was refused.
    pub is_sure: bool,
}

impl Spent {
    const fn refused(reason: Reason) -> Self {
        Self {
            session: Err(reason),
            is_sure: false,
        }
    }
}

/// How long one handshake may still wait for the store, all in all.
#[derive(Debug)]
pub struct Patience(Duration);

impl Patience {
    const fn left(&self) -> Duration {
        self.0
    }

    async fn spend<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let done = wait.await;
        self.0 = self.0.saturating_sub(begin.elapsed());
        done
    }
}

/// The session store of one server, shared by its threads.
#[derive(Clone)]
pub struct Store {
    memory: Arc<Memory>,
    remote: Option<Arc<Remote>>,
    rules: Arc<KnownForgetRules>,
    /// Sessions may be removed by another server: the shared store is asked even for those that
    /// are at hand.
    removable: bool,
}

impl Store {
    /// The store that a configuration names, for the server of that number. `seed` has to be
    /// unpredictable.
    ///
    /// # Errors
    /// Where a shared store cannot be used as it is configured. One that cannot be reached can.
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
            // A server that keeps no sessions hears from it what its tickets are not good for.
            StoreUrl::Redis(redis) if !limits.lifetime.is_zero() => {
                let timeout = config.session.store_timeout;
                let server = (&config.server, number);
                let remote = Remote::new(redis, timeout, server, keys, &rules, registry)?;
                Some(Arc::new(remote))
            }
            StoreUrl::Memory | StoreUrl::Redis(_) => None,
        };
        Ok(Self {
            memory: Arc::new(Memory::new(limits, seed)),
            remote,
            rules,
            removable: config.sessions_are_removable(),
        })
    }

    /// This store as one thread uses it. It may be made anywhere; connections are made by
    /// [`Local::connect`].
    #[must_use]
    pub fn local(&self) -> Local {
        let link = |remote: &Arc<Remote>| Rc::new(Link::new(Arc::clone(remote)));
        Local {
            memory: Arc::clone(&self.memory),
            link: self.remote.as_ref().map(link),
            rules: Arc::clone(&self.rules),
            removable: self.removable,
        }
    }

    /// Forgets these sessions from now on, whatever is known of the store. A mark that was learned
    /// stays until the process ends.
    pub fn forget(&self, rules: &ForgetRules) {
        self.rules.learn(rules);
    }

    /// The server drains: another process may have its number.
    pub fn resign(&self) {
        if let Some(remote) = &self.remote {
            remote.resign();
        }
    }

    /// Clears the table where the farm key's generations ended before their time. Whoever looks something up does
    /// so too; this is for a table that nobody asks.
    pub fn follow(&self, schedule: &Schedule) {
        self.memory.follow(schedule.revocations());
    }

    /// What is in the table, and that these were its server's sessions.
    #[must_use]
    pub fn snapshot(&self, incarnation: u16, schedule: &Schedule) -> Snapshot {
        self.follow(schedule);
        Snapshot {
            incarnation,
            entries: self.memory.snapshot(),
        }
    }

    /// Puts back what a snapshot holds, but for what is too old, and returns how much that is.
    pub fn restore(&self, snapshot: &Snapshot, now: Time) -> usize {
        let entries = snapshot.entries.iter();
        let stored = entries.filter(|entry| {
            let (key, value) = (&entry.key, &entry.value);
            let inserted = self.memory.insert(key, value, entry.established, now);
            matches!(inserted, Inserted::Stored { .. })
        });
        stored.count()
    }

    /// The table in front, for its figures.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}

/// A worker thread's way to the store.
#[derive(Clone)]
pub struct Local {
    memory: Arc<Memory>,
    link: Option<Rc<Link>>,
    rules: Arc<KnownForgetRules>,
    removable: bool,
}

impl Local {
    /// Connects to the shared store, if there is one, and keeps that connection up from then on. Waits
    /// for it a moment, not for ever. Has to run in a `LocalSet`, whose tasks it joins.
    pub async fn connect(&self) {
        if let Some(link) = &self.link {
            link.start().await;
        }
    }

    /// Whether sessions are kept at all.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.memory.disabled()
    }

    /// Whether there is a store behind the table that other servers look into.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.link.is_some() && self.is_enabled()
    }

    /// Which sessions are forgotten on request, as far as this server knows.
    #[must_use]
    pub fn forgotten(&self) -> Arc<ForgetRules> {
        self.rules.known()
    }

    /// How long a handshake that begins now may wait for the store.
    #[must_use]
    pub fn patience(&self) -> Patience {
        let timeout = self.link.as_ref().map(|link| link.timeout());
        Patience(timeout.unwrap_or_default())
    }

    /// Looks sessions up and leaves them where they are: their envelopes, or why there is none.
    pub async fn find(
        &self,
        keys: Vec<Key>,
        schedule: &Schedule,
        now: Time,
        patience: &mut Patience,
    ) -> Vec<(Key, Result<Vec<u8>, Reason>)> {
        self.memory.follow(schedule.revocations());
        let near = |key: &Key| match self.memory.get(key.as_bytes(), now) {
            _ if key.is_single_use() => Err(Reason::Unknown),
            Lookup::Found(envelope) => Ok(envelope),
            Lookup::Gone(gone) => Err(gone.into()),
            Lookup::Unknown => Err(Reason::Unknown),
            Lookup::Disabled => Err(Reason::CacheDisabled),
        };
        let keys = keys.into_iter();
        let mut found: Vec<_> = keys.map(|key| (key, near(&key))).collect();
        if let Some(link) = &self.link {
            self.ask_the_store(link, &mut found, schedule, now, patience)
                .await;
        }
        found
    }

    /// Asks the shared store for what the table does not know for certain.
    async fn ask_the_store(
        &self,
        link: &Link,
        found: &mut [(Key, Result<Vec<u8>, Reason>)],
        schedule: &Schedule,
        now: Time,
        patience: &mut Patience,
    ) {
        let uncertain = |near: &Result<Vec<u8>, Reason>| match near {
            Ok(_) => self.removable,
            // What left this table may be in the store.
            Err(reason) => matches!(reason, Reason::Unknown | Reason::Evicted),
        };
        let asked: Vec<Key> = found
            .iter()
            .filter(|(_, near)| uncertain(near))
            .map(|(key, _)| *key)
            .collect();
        if asked.is_empty() {
            return;
        }
        let answers = link.fetch(&asked, schedule, patience).await;
        let uncertain = found.iter_mut().filter(|(_, near)| uncertain(near));
        for ((key, near), answer) in uncertain.zip(answers) {
            match answer {
                Answer::Found(envelope) => *near = self.adopt(key, envelope, schedule, now),
                Answer::Gone(gone) => {
                    self.remove_here(key, gone);
                    *near = Err(gone.into());
                }
                // Then what the table says holds: the entry may never have reached the store.
                Answer::Missing => {}
                Answer::None(reason) => *near = Err(reason),
            }
        }
    }

    /// Takes a session from the store over into the table, unless another server may remove it.
    fn adopt(
        &self,
        key: &Key,
        envelope: Vec<u8>,
        schedule: &Schedule,
        now: Time,
    ) -> Result<Vec<u8>, Reason> {
        let Envelope {
            established,
            expires,
            ..
        } = Envelope::decode(&envelope)?;
        // The store's clock is another, and it counts from when the entry came.
        if now >= expires {
            return Err(Reason::Expired);
        }
        if !self.removable && !key.is_single_use() {
            self.keep_here(key, (&envelope, established), schedule, now);
        }
        Ok(envelope)
    }

    /// Puts a session into the table, unless the key that it came under has been revoked since.
    fn keep_here(
        &self,
        key: &Key,
        (envelope, established): (&[u8], Time),
        schedule: &Schedule,
        now: Time,
    ) {
        self.memory
            .insert(key.as_bytes(), envelope, established, now);
        // Asked afterwards, so that no moment is left in which it could come to stay.
        if !self.memory.follow(schedule.revocations()) {
            self.remove_here(key, Gone::Revoked);
        }
    }

    /// Whether sessions for single use can be stored now, as far as is known.
    #[must_use]
    pub fn keeps_single_use(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.keeps_single_use())
    }

    /// Takes a session for single use out of the store, so that no server gets it again.
    pub async fn spend(
        &self,
        key: &Key,
        schedule: &Schedule,
        now: Time,
        patience: &mut Patience,
    ) -> Spent {
        let Some(link) = &self.link else {
            return Spent::refused(Reason::CacheDisabled);
        };
        let (answer, is_sure) = link.spend(key, schedule, patience).await;
        let session = match answer {
            Answer::Found(envelope) => self.adopt(key, envelope, schedule, now),
            Answer::Gone(gone) => Err(gone.into()),
            Answer::Missing => Err(Reason::Unknown),
            Answer::None(reason) => Err(reason),
        };
        Spent { session, is_sure }
    }

    /// Stores new sessions, and lets the one that they follow be `spent` if it was for single use. Returns
    /// when they are where the next connection looks for them, or patience has ended.
    pub async fn put(
        &self,
        puts: Vec<Put>,
        spent: Option<Key>,
        schedule: &Schedule,
        now: Time,
        patience: &mut Patience,
    ) {
        for put in puts.iter().filter(|put| !put.key.is_single_use()) {
            let session = (put.envelope.as_slice(), put.established);
            self.keep_here(&put.key, session, schedule, now);
        }
        let nothing = puts.is_empty() && spent.is_none();
        if let Some(link) = self.link.as_ref().filter(|_| !nothing) {
            link.put(&puts, spent, schedule, now, patience).await;
        }
    }

    /// Removes a session from the table alone.
    pub fn remove_here(&self, key: &Key, why: Gone) {
        if !key.is_single_use() {
            self.memory.remove(key.as_bytes(), why);
        }
    }

    /// Removes a session, to be remembered as gone for that reason.
    pub async fn remove(&self, key: &Key, why: Gone) {
        self.remove_here(key, why);
        if let Some(link) = &self.link {
            link.remove(key, why).await;
        }
    }
}
