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
use sessile_proto::resumption::{NewSession, StoreKey};
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

/// What the store said when a session for single use was consumed.
pub struct Consumed {
    /// The session's envelope, or why there is none.
    pub session: Result<Vec<u8>, Reason>,
    /// True if no server can have been given the session before.
    ///
    /// Replication is asynchronous: a node that was promoted, restarted or restored can have missed
    /// that the session was consumed. So the node that gave the session out must be the one that
    /// stored it, and must have been the master since. It must also have stored the session before
    /// any hello asked for it in vain.
    pub is_certain: bool,
}

impl Consumed {
    const fn refused(reason: Reason) -> Self {
        Self {
            session: Err(reason),
            is_certain: false,
        }
    }
}

/// How long one handshake may still wait for the store, in all of its requests together.
#[derive(Debug)]
pub struct WaitBudget(Duration);

impl WaitBudget {
    const fn left(&self) -> Duration {
        self.0
    }

    /// Waits, and takes the time that this took off the budget.
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
    pub fn wait_budget(&self) -> WaitBudget {
        let timeout = self.link.as_ref().map(|link| link.timeout());
        WaitBudget(timeout.unwrap_or_default())
    }

    /// Looks sessions up and leaves them where they are: their envelopes, or why there is none.
    pub async fn find(
        &self,
        keys: Vec<StoreKey>,
        schedule: &Schedule,
        now: Time,
        budget: &mut WaitBudget,
    ) -> Vec<(StoreKey, Result<Vec<u8>, Reason>)> {
        self.memory.follow(schedule.revocations());
        let near = |key: &StoreKey| match self.memory.get(key.as_bytes(), now) {
            _ if key.is_single_use() => Err(Reason::Unknown),
            Lookup::Found(envelope) => Ok(envelope),
            Lookup::Gone(gone) => Err(gone.into()),
            Lookup::Unknown => Err(Reason::Unknown),
            Lookup::Disabled => Err(Reason::CacheDisabled),
        };
        let keys = keys.into_iter();
        let mut found: Vec<_> = keys.map(|key| (key, near(&key))).collect();
        if let Some(link) = &self.link {
            self.ask_the_store(link, &mut found, schedule, now, budget)
                .await;
        }
        found
    }

    /// Asks the shared store for what the table does not know for certain.
    async fn ask_the_store(
        &self,
        link: &Link,
        found: &mut [(StoreKey, Result<Vec<u8>, Reason>)],
        schedule: &Schedule,
        now: Time,
        budget: &mut WaitBudget,
    ) {
        let uncertain = |near: &Result<Vec<u8>, Reason>| match near {
            Ok(_) => self.removable,
            // What left this table may be in the store.
            Err(reason) => matches!(reason, Reason::Unknown | Reason::Evicted),
        };
        let asked: Vec<StoreKey> = found
            .iter()
            .filter(|(_, near)| uncertain(near))
            .map(|(key, _)| *key)
            .collect();
        if asked.is_empty() {
            return;
        }
        let answers = link.fetch(&asked, schedule, budget).await;
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
        key: &StoreKey,
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
        key: &StoreKey,
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
    pub async fn consume(
        &self,
        key: &StoreKey,
        schedule: &Schedule,
        now: Time,
        budget: &mut WaitBudget,
    ) -> Consumed {
        let Some(link) = &self.link else {
            return Consumed::refused(Reason::CacheDisabled);
        };
        let (answer, is_certain) = link.consume(key, schedule, budget).await;
        let session = match answer {
            Answer::Found(envelope) => self.adopt(key, envelope, schedule, now),
            Answer::Gone(gone) => Err(gone.into()),
            Answer::Missing => Err(Reason::Unknown),
            Answer::None(reason) => Err(reason),
        };
        Consumed {
            session,
            is_certain,
        }
    }

    /// Stores new sessions, and removes the session for single use that was `consumed`. Returns when the
    /// next connection finds them, or when the budget is used up.
    pub async fn put(
        &self,
        new_sessions: Vec<NewSession>,
        consumed: Option<StoreKey>,
        schedule: &Schedule,
        now: Time,
        budget: &mut WaitBudget,
    ) {
        for new in new_sessions.iter().filter(|new| !new.key.is_single_use()) {
            let session = (new.envelope.as_slice(), new.established);
            self.keep_here(&new.key, session, schedule, now);
        }
        let nothing = new_sessions.is_empty() && consumed.is_none();
        if let Some(link) = self.link.as_ref().filter(|_| !nothing) {
            link.put(&new_sessions, consumed, schedule, now, budget)
                .await;
        }
    }

    /// Removes a session from the table alone.
    pub fn remove_here(&self, key: &StoreKey, why: Gone) {
        if !key.is_single_use() {
            self.memory.remove(key.as_bytes(), why);
        }
    }

    /// Removes a session, to be remembered as gone for that reason.
    pub async fn remove(&self, key: &StoreKey, why: Gone) {
        self.remove_here(key, why);
        if let Some(link) = &self.link {
            link.remove(key, why).await;
        }
    }
}
