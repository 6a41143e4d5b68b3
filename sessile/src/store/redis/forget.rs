//! Forget marks in the shared store: all of a farm's marks under one name, sealed under the farm key
//! for that name alone. `sessile forget` adds to them; every server reads them again and again, and puts
//! back what the store has lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use redis::{Cmd, RedisResult, Value};
use sessile_proto::Time;
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::sealed;
use sessile_proto::ticket::{ForgetRules, ForgetScope};
use sessile_proto::verdict::Reason;
use tokio::time::{Instant, timeout};

use super::connect::{CONNECT_DEADLINE, Dialer, StoreError};
use super::link::HEARTBEAT;
use crate::clock;
use crate::config::Server;
use crate::config::store::Redis;
use crate::key::Keyring;
use crate::locks::locked;
use crate::store::forget_rules::{ForgetRulesFile, KnownForgetRules};

/// Sets the marks if they are still what was read: another command may have added one since.
const REPLACE: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1";

/// How often that is tried, while others are quicker.
const TRIES: usize = 32;

fn name(scope: &str) -> String {
    format!("sessile:{scope}:forget")
}

/// The farm's marks as the servers of one process follow them: what they have learned once stays known,
/// is kept for the next start, and goes back to a store that lost it.
pub(super) struct SharedForgetRules {
    name: String,
    keys: Arc<Keyring>,
    known: Arc<KnownForgetRules>,
    file: Option<Arc<ForgetRulesFile>>,
    /// The server's name.
    server: String,
    farm: Mutex<Farm>,
    /// Whether it was said that what lies in the store does not open.
    said: AtomicBool,
}

struct Farm {
    /// Every mark that came from the store, now or before this start.
    rules: ForgetRules,
    /// What was read last, as it lies in the store.
    read: Option<Vec<u8>>,
    /// Whether some of the marks were not in it.
    is_lacking: bool,
    /// When the store may be given them again: one worker's turn.
    due: Instant,
}

impl SharedForgetRules {
    /// With the marks of the last run, if there was one.
    pub(super) fn new(keys: &Arc<Keyring>, known: &Arc<KnownForgetRules>, server: &Server) -> Self {
        let file = ForgetRulesFile::new(server, keys);
        let schedule = keys.schedule(clock::now());
        let mut rules = ForgetRules::default();
        if let Some(file) = &file {
            rules = file.read(&schedule);
            drop_the_dead(&mut rules, &schedule);
        }
        let shared = Self {
            name: name(keys.scope()),
            keys: Arc::clone(keys),
            known: Arc::clone(known),
            file: file.map(Arc::new),
            server: server.name.clone(),
            farm: Mutex::new(Farm {
                rules: rules.clone(),
                read: None,
                is_lacking: false,
                due: Instant::now(),
            }),
            said: AtomicBool::new(false),
        };
        shared.heed(&rules);
        shared
    }

    /// Asks for the marks.
    pub(super) fn command(&self) -> Cmd {
        get(&self.name)
    }

    /// Takes the marks over. What does not open is passed by: the known ones stay.
    pub(super) fn learn(&self, answer: &Value) {
        let value = match answer {
            Value::BulkString(value) => value.as_slice(),
            _ => &[],
        };
        let mut farm = locked(&self.farm);
        if farm.read.as_deref() == Some(value) {
            return;
        }
        let schedule = self.keys.schedule(clock::now());
        let rules = match value {
            [] => Ok(ForgetRules::default()),
            value => open(&schedule, &self.name, value),
        };
        match rules {
            Ok(rules) => {
                farm.rules.merge(&rules);
                drop_the_dead(&mut farm.rules, &schedule);
                farm.is_lacking = !rules.covers(&farm.rules);
                farm.read = Some(value.to_vec());
                self.said.store(false, Ordering::Relaxed);
                self.heed(&rules);
                self.keep(schedule, rules);
            }
            Err(reason) if !self.said.swap(true, Ordering::Relaxed) => tracing::warn!(
                server = self.server,
                name = self.name,
                reason = reason.as_str(),
                "what the store has to say on forgotten sessions does not open under this server's farm key"
            ),
            Err(_) => {}
        }
    }

    /// What gives the store the marks that it lacked when it was last asked: it evicted them, restarted
    /// empty or was restored. Merging is safe in any order, whoever does it first.
    pub(super) fn put_back(&self) -> Option<Cmd> {
        let mut farm = locked(&self.farm);
        let now = Instant::now();
        if !farm.is_lacking || now < farm.due {
            return None;
        }
        farm.due = now + HEARTBEAT;
        let read = farm.read.as_deref().unwrap_or_default();
        let schedule = self.keys.schedule(clock::now());
        replace(&schedule, &self.name, read, &farm.rules).ok()
    }

    /// From now on sessions are compared with these marks, too.
    fn heed(&self, rules: &ForgetRules) {
        if self.known.learn(rules) {
            let server = &self.server;
            tracing::info!(server, "the farm forgets sessions on request: full/revoked");
        }
    }

    /// Handshakes of this thread do not wait for the disk.
    fn keep(&self, schedule: Arc<Schedule>, rules: ForgetRules) {
        if let Some(file) = self.file.clone() {
            tokio::task::spawn_blocking(move || file.keep(&schedule, &rules));
        }
    }
}

/// Marks that are older than any session are of no use, and would take the place of others.
fn drop_the_dead(rules: &mut ForgetRules, schedule: &Schedule) {
    rules.drop_before(clock::now().minus(schedule.max_lifetime()));
}

/// Why a mark is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the session store cannot be used: {0}")]
    Refused(#[from] redis::RedisError),
    #[error("the session store does not answer within {}s", CONNECT_DEADLINE.as_secs())]
    Timeout,
    #[error(
        "the marks in the session store ({name}) do not open under this key file ({reason}): use the key file that \
         the servers use; if the key was replaced since (rotate --compromised), delete {name} from the store",
        reason = .reason.as_str()
    )]
    Closed { name: String, reason: Reason },
    #[error("the clock and the farm key do not agree, so that nothing can be sealed")]
    NoKey,
    #[error("the system gives no random bytes")]
    Random,
    #[error("others write marks all the time; try again")]
    Busy,
}

/// Adds a mark to those of the farm, and returns all of them as they stand in the store now.
///
/// # Errors
/// Where the store, or what lies in it, does not allow it; nothing is changed then.
pub async fn forget(
    redis: &Redis,
    (scope, schedule): (&str, &Schedule),
    forget_scope: ForgetScope,
    not_before: Time,
) -> Result<ForgetRules, ForgetError> {
    let name = name(scope);
    let mut connection = in_time(Dialer::new(redis)?.dial()).await?.connection;
    for _ in 0..TRIES {
        let read = match in_time(connection.ask(&get(&name))).await? {
            Value::BulkString(value) => value,
            _ => Vec::new(),
        };
        let mut rules = match read.as_slice() {
            [] => ForgetRules::default(),
            value => open(schedule, &name, value).map_err(|reason| {
                let name = name.clone();
                ForgetError::Closed { name, reason }
            })?,
        };
        rules.add(forget_scope, not_before);
        let command = replace(schedule, &name, &read, &rules)?;
        let answer = in_time(connection.ask(&command)).await?;
        if matches!(answer, Value::Okay | Value::Int(1)) {
            return Ok(rules);
        }
    }
    Err(ForgetError::Busy)
}

/// The command that puts these marks in the place of what was `read`, if it is that still; where it was
/// nothing, one that needs no permission for scripts.
fn replace(
    schedule: &Schedule,
    name: &str,
    read: &[u8],
    rules: &ForgetRules,
) -> Result<Cmd, ForgetError> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| ForgetError::Random)?;
    let clear = rules.encode();
    let sealed = sealed::seal(schedule, Purpose::Store, salt, name.as_bytes(), &clear)
        .ok_or(ForgetError::NoKey)?;
    // No session lives longer than that, nor does the key that opens this.
    let life = schedule.max_lifetime().as_millis();
    let life = u64::try_from(life).unwrap_or(u64::MAX);
    if read.is_empty() {
        let mut command = redis::cmd("SET");
        command.arg(name).arg(sealed).arg("NX").arg("PX").arg(life);
        return Ok(command);
    }
    let mut command = redis::cmd("EVAL");
    command.arg(REPLACE).arg(1).arg(name);
    command.arg(read).arg(sealed).arg(life);
    Ok(command)
}

async fn in_time<T>(answer: impl Future<Output = RedisResult<T>>) -> Result<T, ForgetError> {
    let answer = timeout(CONNECT_DEADLINE, answer).await;
    Ok(answer.map_err(|_| ForgetError::Timeout)??)
}

fn get(name: &str) -> Cmd {
    let mut command = redis::cmd("GET");
    command.arg(name);
    command
}

fn open(schedule: &Schedule, name: &str, value: &[u8]) -> Result<ForgetRules, Reason> {
    let clear = sealed::open(schedule, Purpose::Store, name.as_bytes(), value)?;
    ForgetRules::decode(&clear).ok_or(Reason::OldFormat)
}
