//! The shared store: Redis or Valkey, which servers of a farm share. Nothing that it does or fails to
//! do ends a handshake: what it does not say in time is not known, and the handshake is full.

mod backoff;
mod breaker;
mod claim;
mod connect;
mod forget;
mod link;
mod metrics;
mod single_use;
mod time;
mod tls;

pub use connect::StoreError;
pub use forget::{ForgetError, forget};
pub(super) use link::{HEARTBEAT, Link};

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use prometheus::Registry;
use redis::Value;
use sessile_proto::Time;
use sessile_proto::keys::Schedule;
use sessile_proto::resumption::{NewSession, StoreKey};
use sessile_proto::session::Gone;
use sessile_proto::verdict::Reason;

use super::WaitBudget;
use super::entry::{self, Name, Opened};
use super::forget_rules::KnownForgetRules;
use crate::config::Server;
use crate::key::Keyring;
use claim::Claim;
use connect::Dialer;
use forget::SharedForgetRules;
use metrics::{Metrics, Operation, Outcome};
use time::Clock;

/// What the threads of a server share of its store.
pub(super) struct Remote {
    dialer: Dialer,
    /// `session.store-timeout`.
    pub(super) timeout: Duration,
    /// The farm's name.
    scope: String,
    /// The server's name.
    server: String,
    /// The store's address, fit to be shown.
    shown: String,
    metrics: Metrics,
    rules: SharedForgetRules,
    claim: Claim,
    clock: Clock,
    /// What the log was told last; a word comes at every change.
    said: AtomicU8,
    /// Whether the log has a word on a request that the store refused.
    said_refused: AtomicBool,
}

/// What the log says of the store.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Said {
    Nothing,
    /// Every worker's connection is well.
    Well,
    /// One is not: the metrics count the others.
    Unwell,
}

/// What the store says of a session.
pub(super) enum Answer {
    /// The session's envelope.
    Found(Vec<u8>),
    /// A server of the farm has removed it.
    Gone(Gone),
    /// It is not there.
    Missing,
    /// There is none to be had.
    None(Reason),
}

impl Answer {
    fn of(opened: Result<Vec<u8>, Opened>) -> Self {
        match opened {
            Ok(envelope) => Self::Found(envelope),
            Err(Opened::Gone(gone)) => Self::Gone(gone),
            Err(Opened::Bad(reason)) => Self::None(reason),
        }
    }
}

impl Remote {
    pub(super) fn new(
        config: &crate::config::store::Redis,
        timeout: Duration,
        (server, number): (&Server, u32),
        keys: &Arc<Keyring>,
        rules: &Arc<KnownForgetRules>,
        registry: &Registry,
    ) -> Result<Self, StoreError> {
        let name = server.name.as_str();
        Ok(Self {
            dialer: Dialer::new(config)?,
            timeout,
            scope: keys.scope().to_owned(),
            server: name.to_owned(),
            shown: config.to_string(),
            metrics: Metrics::register(registry, name)?,
            rules: SharedForgetRules::new(keys, rules, server),
            claim: Claim::new(keys.scope(), number, name, registry)?,
            clock: Clock::new(keys, name, registry)?,
            said: AtomicU8::new(Said::Nothing as u8),
            said_refused: AtomicBool::new(false),
        })
    }

    /// Whether that is news to the log.
    fn says(&self, what: Said) -> bool {
        self.said.swap(what as u8, Ordering::Relaxed) != what as u8
    }

    /// Gives the server's number up to whoever comes next.
    pub(super) fn resign(&self) {
        self.claim.resign();
    }
}

impl Link {
    /// What the store says of each of these sessions, a handful at most.
    pub(super) async fn fetch(
        &self,
        keys: &[StoreKey],
        schedule: &Schedule,
        budget: &mut WaitBudget,
    ) -> Vec<Answer> {
        let names: Vec<_> = keys
            .iter()
            .map(|key| Name::new(&self.remote.scope, key))
            .collect();
        let mut command = redis::cmd(if names.len() == 1 { "GET" } else { "MGET" });
        for name in &names {
            command.arg(name.as_str());
        }
        let left = budget.left();
        let asked = self.ask(Operation::Fetch, &command, names.len(), left);
        let values = match budget.spend(asked).await {
            Ok(Value::Array(values)) if values.len() == names.len() => values,
            Ok(value) if names.len() == 1 => vec![value],
            Ok(_) => return names.iter().map(|_| self.judged(None)).collect(),
            Err(failure) => {
                let none = |_| Answer::None(failure.reason());
                return names.iter().map(none).collect();
            }
        };
        let named = names.iter().zip(values);
        named
            .map(|(name, value)| match value {
                Value::Nil => self.judged(Some(Answer::Missing)),
                Value::BulkString(value) => {
                    self.judged(Some(Answer::of(entry::open(schedule, name, &value))))
                }
                _ => self.judged(None),
            })
            .collect()
    }

    /// Counts an answer; `None` is one that no store of this kind gives.
    fn judged(&self, answer: Option<Answer>) -> Answer {
        self.judged_as(Operation::Fetch, answer)
    }

    fn judged_as(&self, operation: Operation, answer: Option<Answer>) -> Answer {
        let answer = answer.unwrap_or(Answer::None(Reason::OldFormat));
        let outcome = match answer {
            Answer::Found(_) => Outcome::Ok,
            Answer::Gone(_) => Outcome::Gone,
            Answer::Missing => Outcome::Missing,
            Answer::None(_) => Outcome::Bad,
        };
        self.remote.metrics.count(operation, outcome, 1);
        answer
    }

    /// Stores sessions and removes the one that was `consumed`, all at the same time. Returns when that
    /// is done or the budget is used up. Requests that take longer still go on, and are counted as late.
    pub(super) async fn put(
        self: &Rc<Self>,
        new_sessions: &[NewSession],
        consumed: Option<StoreKey>,
        schedule: &Schedule,
        now: Time,
        budget: &mut WaitBudget,
    ) {
        let mut under_way = tokio::task::JoinSet::new();
        let stored = Rc::new(Cell::new(Outcome::Ok));
        for new in new_sessions {
            let life = new.expires.since(now).as_millis();
            let name = Name::new(&self.remote.scope, &new.key);
            let Some(entry) = entry::seal(schedule, &name, &new.envelope) else {
                self.remote.metrics.count(Operation::Put, Outcome::Bad, 1);
                continue;
            };
            if life == 0 {
                continue;
            }
            let life = u64::try_from(life).unwrap_or(u64::MAX);
            let command = match new.key.is_single_use() {
                true => single_use::put(&name, &entry, life),
                false => {
                    let mut command = redis::cmd("SET");
                    command.arg(name.as_str()).arg(entry).arg("PX").arg(life);
                    command
                }
            };
            let (link, stored) = (Rc::clone(self), Rc::clone(&stored));
            let is_single_use = new.key.is_single_use();
            under_way.spawn_local(async move {
                let timeout = link.remote.timeout;
                match link.ask(Operation::Put, &command, 1, timeout).await {
                    Ok(_) => link.remote.metrics.count(Operation::Put, stored.get(), 1),
                    Err(outcome) if is_single_use => link.note_single_use(outcome),
                    Err(_) => {}
                }
            });
        }
        if let Some(key) = consumed {
            let link = Rc::clone(self);
            under_way.spawn_local(async move { link.remove(&key, Gone::Spent).await });
        }
        let left = budget.left();
        let all = async {
            // Nobody may be kept waiting for longer than was granted; the tasks go on by themselves.
            let all = async { while under_way.join_next().await.is_some() {} };
            if tokio::time::timeout(left, all).await.is_err() {
                stored.set(Outcome::Late);
            }
            under_way.detach_all();
        };
        budget.spend(all).await;
    }

    /// Leaves a tombstone in the place of a session, for as long as the session would have lived:
    /// another server may have it in its own table. Where it is not there, there is nothing to do.
    pub(super) async fn remove(&self, key: &StoreKey, why: Gone) {
        let Some(tombstone) = entry::tombstone(why) else {
            return;
        };
        let name = Name::new(&self.remote.scope, key);
        let mut command = redis::cmd("SET");
        command.arg(name.as_str()).arg(&tombstone[..]);
        command.arg("XX").arg("KEEPTTL");
        let timeout = self.remote.timeout;
        let outcome = match self.ask(Operation::Remove, &command, 1, timeout).await {
            Ok(Value::Nil) => Outcome::Missing,
            Ok(_) => Outcome::Ok,
            Err(_) => return,
        };
        self.remote.metrics.count(Operation::Remove, outcome, 1);
    }
}
