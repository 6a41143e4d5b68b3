//! The requests for sessions: fetch, put, remove and consume.

use std::cell::Cell;
use std::rc::Rc;

use redis::{Cmd, Value};
use sessile_proto::keys::Schedule;
use sessile_proto::resumption::{NewSession, StoreKey};
use sessile_proto::session::Gone;
use sessile_proto::verdict::Reason;
use tokio::task::JoinSet;

use super::entry::{self, RedisKey, StoreLookup};
use super::metrics::{StoreOperation, StoreOutcome};
use super::single_use::{self, ConsumedEntry};
use super::worker_connection::WorkerConnection;
use crate::store::context::StoreContext;

impl WorkerConnection {
    /// Looks up a few sessions. The results are in the order of `keys`.
    pub(in crate::store) async fn fetch(
        &self,
        keys: &[StoreKey],
        context: &mut StoreContext,
    ) -> Vec<StoreLookup> {
        let keys: Vec<_> = keys.iter().map(|key| self.redis_key(key)).collect();
        let mut command = redis::cmd(if keys.len() == 1 { "GET" } else { "MGET" });
        for key in &keys {
            command.arg(key.as_str());
        }
        let answer = self
            .request_within(context, StoreOperation::Fetch, &command, keys.len())
            .await;
        let lookups: Vec<_> = match answer {
            Ok(Value::Array(values)) if values.len() == keys.len() => keys
                .iter()
                .zip(&values)
                .map(|(key, value)| read(&context.schedule, key, value))
                .collect(),
            Ok(value) => keys
                .iter()
                .map(|key| read(&context.schedule, key, &value))
                .collect(),
            Err(outcome) => return vec![StoreLookup::Unusable(outcome.reason()); keys.len()],
        };
        for lookup in &lookups {
            self.count_lookup(StoreOperation::Fetch, lookup);
        }
        lookups
    }

    fn redis_key(&self, key: &StoreKey) -> RedisKey {
        RedisKey::new(&self.remote.scope, key)
    }

    fn count(&self, operation: StoreOperation, outcome: StoreOutcome) {
        self.remote.metrics.count(operation, outcome, 1);
    }

    fn count_lookup(&self, operation: StoreOperation, lookup: &StoreLookup) {
        let outcome = match lookup {
            StoreLookup::Found(_) => StoreOutcome::Ok,
            StoreLookup::Removed(_) => StoreOutcome::Gone,
            StoreLookup::Missing => StoreOutcome::Missing,
            StoreLookup::Unusable(_) => StoreOutcome::Bad,
        };
        self.count(operation, outcome);
    }

    /// Stores sessions and removes the `consumed` session, at the same time.
    ///
    /// Returns when this is done or the budget is used up. Slower requests go on, and are counted as late.
    pub(in crate::store) async fn put(
        self: &Rc<Self>,
        new_sessions: &[NewSession],
        consumed: Option<StoreKey>,
        context: &mut StoreContext,
    ) {
        let mut requests = JoinSet::new();
        let stored = Rc::new(Cell::new(StoreOutcome::Ok));
        for new in new_sessions {
            let Some(command) = self.put_command(new, context) else {
                continue;
            };
            let (connection, stored) = (Rc::clone(self), Rc::clone(&stored));
            let is_single_use = new.key.is_single_use();
            requests.spawn_local(async move {
                let limit = connection.remote.timeout;
                let request = connection.request(StoreOperation::Put, &command, 1, limit);
                match request.await {
                    Ok(_) => connection.count(StoreOperation::Put, stored.get()),
                    Err(outcome) if is_single_use => connection.record_single_use_failure(outcome),
                    Err(_) => {}
                }
            });
        }
        if let Some(key) = consumed {
            let connection = Rc::clone(self);
            requests.spawn_local(async move { connection.remove(&key, Gone::Spent).await });
        }
        let left = context.budget;
        let all_done = async { while requests.join_next().await.is_some() {} };
        let in_time = context.wait_for(tokio::time::timeout(left, all_done)).await;
        if in_time.is_err() {
            stored.set(StoreOutcome::Late);
        }
        requests.detach_all();
    }

    /// The command that stores a session. `None` if the session cannot be sealed or has expired.
    fn put_command(&self, new: &NewSession, context: &StoreContext) -> Option<Cmd> {
        let key = self.redis_key(&new.key);
        let Some(entry) = entry::seal(&context.schedule, &key, &new.envelope) else {
            self.count(StoreOperation::Put, StoreOutcome::Bad);
            return None;
        };
        let life = u64::try_from(new.expires.since(context.now).as_millis()).unwrap_or(u64::MAX);
        if life == 0 {
            return None;
        }
        if new.key.is_single_use() {
            return Some(single_use::put(&key, &entry, life));
        }
        let mut command = redis::cmd("SET");
        command.arg(key.as_str()).arg(entry).arg("PX").arg(life);
        Some(command)
    }

    /// Replaces a session with a tombstone, which keeps the expiry time of the session.
    ///
    /// The tombstone is for servers that have the session in their own table.
    pub(in crate::store) async fn remove(&self, key: &StoreKey, why: Gone) {
        let Some(tombstone) = entry::tombstone(why) else {
            return;
        };
        let mut command = redis::cmd("SET");
        command.arg(self.redis_key(key).as_str());
        command.arg(&tombstone[..]).arg("XX").arg("KEEPTTL");
        let limit = self.remote.timeout;
        let request = self.request(StoreOperation::Remove, &command, 1, limit);
        match request.await {
            Ok(Value::Nil) => self.count(StoreOperation::Remove, StoreOutcome::Missing),
            Ok(_) => self.count(StoreOperation::Remove, StoreOutcome::Ok),
            Err(_) => {}
        }
    }

    /// Takes a single-use session out of the store.
    pub(in crate::store) async fn consume(
        &self,
        key: &StoreKey,
        context: &mut StoreContext,
    ) -> ConsumedEntry {
        let key = self.redis_key(key);
        let command = single_use::consume(&key);
        let answer = self
            .request_within(context, StoreOperation::Consume, &command, 1)
            .await;
        match answer {
            Ok(answer) => {
                let consumed = ConsumedEntry::read(&context.schedule, &key, &answer);
                self.count_lookup(StoreOperation::Consume, &consumed.lookup);
                consumed
            }
            Err(outcome) => {
                self.record_single_use_failure(outcome);
                ConsumedEntry::unusable(outcome.reason())
            }
        }
    }
}

fn read(schedule: &Schedule, key: &RedisKey, value: &Value) -> StoreLookup {
    match value {
        Value::Nil => StoreLookup::Missing,
        Value::BulkString(value) => entry::open(schedule, key, value),
        _ => StoreLookup::Unusable(Reason::OldFormat),
    }
}
