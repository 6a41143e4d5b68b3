//! The forget rules of a farm in the store. They are one value, which is sealed under the farm key and opens
//! only with its Redis key.
//!
//! `sessile forget` adds rules. Every server reads them repeatedly, and restores rules that the store lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use redis::{Cmd, Value};
use sessile_proto::Time;
use sessile_proto::Word;
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::sealed;
use sessile_proto::ticket::{ForgetRules, ForgetScope};
use sessile_proto::verdict::Reason;
use tokio::time::Instant;

use super::connect::{Connector, HEARTBEAT, within};
use super::error::{RequestError, StoreError};
use super::transport::CONNECT_DEADLINE;
use crate::clock;
use crate::config::Server;
use crate::config::store::Redis;
use crate::key::Keyring;
use crate::locks::locked;
use crate::store::forget_rules::{ForgetRulesFile, KnownForgetRules};

/// Replaces the rules if no other command has changed them since they were read.
const REPLACE: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1";

/// How many times `sessile forget` tries to add a rule while other commands add rules.
const MAX_ATTEMPTS: usize = 32;

fn key(scope: &str) -> String {
    format!("sessile:{scope}:forget")
}

/// The farm's rules, as one server follows them.
///
/// A server remembers each rule and saves it for the next start. If the store loses a rule, the
/// server restores it.
pub(super) struct SharedForgetRules {
    /// The key of the rules in the store.
    key: String,
    keys: Arc<Keyring>,
    known: Arc<KnownForgetRules>,
    file: Option<Arc<ForgetRulesFile>>,
    /// The server's name.
    server: String,
    farm: Mutex<FarmRules>,
    /// True if the log already says that the rules in the store do not open.
    unopened_logged: AtomicBool,
}

struct FarmRules {
    /// Every rule that the store had at any time, also before this start. Expired rules are dropped.
    rules: ForgetRules,
    /// The sealed value that was last read.
    last_read: Option<Vec<u8>>,
    /// True if `last_read` lacks some of `rules`.
    is_incomplete: bool,
    /// The earliest time of the next attempt to restore lost rules.
    next_restore: Instant,
}

impl SharedForgetRules {
    /// Begins with the rules that the last run saved.
    pub(super) fn new(keys: &Arc<Keyring>, known: &Arc<KnownForgetRules>, server: &Server) -> Self {
        let file = ForgetRulesFile::new(server, keys);
        let schedule = keys.schedule(clock::now());
        let mut rules = ForgetRules::default();
        if let Some(file) = &file {
            rules = file.read(&schedule);
            drop_expired(&mut rules, &schedule);
        }
        let shared = Self {
            key: key(keys.scope()),
            keys: Arc::clone(keys),
            known: Arc::clone(known),
            file: file.map(Arc::new),
            server: server.name.clone(),
            farm: Mutex::new(FarmRules {
                rules: rules.clone(),
                last_read: None,
                is_incomplete: false,
                next_restore: Instant::now(),
            }),
            unopened_logged: AtomicBool::new(false),
        };
        shared.apply(&rules);
        shared
    }

    /// The command that reads the rules.
    pub(super) fn read(&self) -> Cmd {
        get(&self.key)
    }

    /// Learns the rules in the store's answer to [`Self::read`]. A value that does not open changes nothing.
    pub(super) fn learn(&self, answer: &Value) {
        let value = match answer {
            Value::BulkString(value) => value.as_slice(),
            _ => &[],
        };
        let mut farm = locked(&self.farm);
        if farm.last_read.as_deref() == Some(value) {
            return;
        }
        let schedule = self.keys.schedule(clock::now());
        match open(&schedule, &self.key, value) {
            Ok(rules) => {
                farm.rules.merge(&rules);
                drop_expired(&mut farm.rules, &schedule);
                farm.is_incomplete = !rules.covers(&farm.rules);
                farm.last_read = Some(value.to_vec());
                self.unopened_logged.store(false, Ordering::Relaxed);
                self.apply(&rules);
                self.save(schedule, rules);
            }
            Err(reason) if !self.unopened_logged.swap(true, Ordering::Relaxed) => tracing::warn!(
                server = self.server,
                name = self.key,
                reason = reason.as_str(),
                "this server's farm key cannot open the forget rules in the store, so new ones do not \
                 apply here; give all servers of the farm the same key"
            ),
            Err(_) => {}
        }
    }

    /// The command that restores the rules that were missing in the last value from the store.
    ///
    /// A store loses rules if it evicts them, restarts empty or is restored from a backup.
    pub(super) fn restore(&self) -> Option<Cmd> {
        let mut farm = locked(&self.farm);
        let now = Instant::now();
        if !farm.is_incomplete || now < farm.next_restore {
            return None;
        }
        farm.next_restore = now + HEARTBEAT;
        let last_read = farm.last_read.as_deref().unwrap_or_default();
        let schedule = self.keys.schedule(clock::now());
        replace(&schedule, &self.key, last_read, &farm.rules).ok()
    }

    /// Applies the rules to the sessions of this server.
    fn apply(&self, rules: &ForgetRules) {
        if self.known.learn(rules) {
            let server = &self.server;
            tracing::info!(
                server,
                "new forget rules apply: the sessions that they cover get full/revoked"
            );
        }
    }

    /// Saves the rules for the next start.
    fn save(&self, schedule: Arc<Schedule>, rules: ForgetRules) {
        if let Some(file) = self.file.clone() {
            // This runs on another thread, so that handshakes do not wait for the disk.
            tokio::task::spawn_blocking(move || file.save(&schedule, &rules));
        }
    }
}

/// Drops rules that are older than any live session, because the number of rules is limited.
fn drop_expired(rules: &mut ForgetRules, schedule: &Schedule) {
    rules.drop_before(clock::now().minus(schedule.max_lifetime()));
}

/// Why a rule could not be added to the store.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the session store cannot be used: {0}")]
    Refused(redis::RedisError),
    #[error("the session store did not answer within {}s", CONNECT_DEADLINE.as_secs())]
    Timeout,
    #[error(
        "this key file cannot open the forget marks in the session store ({name}, {reason}); use the \
         key file that the servers use; if the key was replaced since (rotate --compromised), delete \
         {name} from the store",
        reason = .reason.as_str()
    )]
    Closed { name: String, reason: Reason },
    #[error(
        "this machine's clock does not fit the farm key, so nothing can be sealed; correct the clock"
    )]
    NoKey,
    #[error(
        "the operating system's random number generator failed; check that no sandbox blocks getrandom"
    )]
    Random,
    #[error(
        "other commands kept changing the forget marks in the session store; run this command again"
    )]
    Busy,
}

impl From<RequestError> for ForgetError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Timeout => Self::Timeout,
            RequestError::Store(error) => Self::Refused(error),
        }
    }
}

/// Adds a rule to the rules of a farm, and returns all rules that are in the store now.
///
/// # Errors
/// If the store cannot be used or its rules do not open. After a timeout, the rule may have been added all
/// the same.
pub async fn forget(
    redis: &Redis,
    scope: &str,
    schedule: &Schedule,
    forget_scope: ForgetScope,
    not_before: Time,
) -> Result<ForgetRules, ForgetError> {
    let key = key(scope);
    let connector = Connector::new(redis)?;
    let mut connection = within(CONNECT_DEADLINE, connector.connect())
        .await?
        .connection;
    for _ in 0..MAX_ATTEMPTS {
        let read = match connection.query(&get(&key), CONNECT_DEADLINE).await? {
            Value::BulkString(value) => value,
            _ => Vec::new(),
        };
        let mut rules = open(schedule, &key, &read).map_err(|reason| ForgetError::Closed {
            name: key.clone(),
            reason,
        })?;
        rules.add(forget_scope, not_before);
        let command = replace(schedule, &key, &read, &rules)?;
        let answer = connection.query(&command, CONNECT_DEADLINE).await?;
        if matches!(answer, Value::Okay | Value::Int(1)) {
            return Ok(rules);
        }
    }
    Err(ForgetError::Busy)
}

/// The command that replaces the value `read` with these rules, if the store still has that value.
fn replace(
    schedule: &Schedule,
    key: &str,
    read: &[u8],
    rules: &ForgetRules,
) -> Result<Cmd, ForgetError> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| ForgetError::Random)?;
    let clear = rules.encode();
    let sealed = sealed::seal(schedule, Purpose::Store, salt, key.as_bytes(), &clear)
        .ok_or(ForgetError::NoKey)?;
    // No session lives longer than the farm key's `max-lifetime`, so no rule is needed longer.
    let life = u64::try_from(schedule.max_lifetime().as_millis()).unwrap_or(u64::MAX);
    // The first rule needs no script, so a user of the store who may not run scripts can add it.
    if read.is_empty() {
        let mut command = redis::cmd("SET");
        command.arg(key).arg(sealed).arg("NX").arg("PX").arg(life);
        return Ok(command);
    }
    let mut command = redis::cmd("EVAL");
    command.arg(REPLACE).arg(1).arg(key);
    command.arg(read).arg(sealed).arg(life);
    Ok(command)
}

fn get(key: &str) -> Cmd {
    let mut command = redis::cmd("GET");
    command.arg(key);
    command
}

/// Opens the value of the rules. An empty value has no rules.
fn open(schedule: &Schedule, key: &str, value: &[u8]) -> Result<ForgetRules, Reason> {
    if value.is_empty() {
        return Ok(ForgetRules::default());
    }
    let clear = sealed::open(schedule, Purpose::Store, key.as_bytes(), value)?;
    ForgetRules::decode(&clear).ok_or(Reason::OldFormat)
}
