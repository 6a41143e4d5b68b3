//! Forget marks in the shared store: all of a farm's marks under one name, sealed under the farm key
//! for that name alone. `sessile forget` adds to them; every server reads them again and again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redis::{Cmd, RedisResult, Value};
use sessile_proto::Time;
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::sealed;
use sessile_proto::ticket::{Extent, Forgotten};
use sessile_proto::verdict::Reason;
use tokio::time::timeout;

use super::connect::{CONNECT_DEADLINE, Connection, Dialer, StoreError};
use crate::clock;
use crate::config::store::Redis;
use crate::key::Keyring;
use crate::store::marks::Marks;

/// Sets the marks if they are still what was read: another command may have added one since.
const REPLACE: &str = "if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1";

/// How often that is tried, while others are quicker.
const TRIES: usize = 32;

fn name(scope: &str) -> String {
    format!("sessile:{scope}:forget")
}

/// The farm's marks as the servers of one process follow them.
pub(super) struct SharedMarks {
    name: String,
    keys: Arc<Keyring>,
    known: Arc<Marks>,
    /// The server's name.
    server: String,
    /// What was read last, as it lies in the store.
    read: Mutex<Vec<u8>>,
    /// Whether it was said that what lies there does not open.
    said: AtomicBool,
}

impl SharedMarks {
    pub(super) fn new(keys: &Arc<Keyring>, known: &Arc<Marks>, server: &str) -> Self {
        Self {
            name: name(keys.scope()),
            keys: Arc::clone(keys),
            known: Arc::clone(known),
            server: server.to_owned(),
            read: Mutex::default(),
            said: AtomicBool::new(false),
        }
    }

    /// Asks for the marks.
    pub(super) fn command(&self) -> Cmd {
        get(&self.name)
    }

    /// Takes the marks over. What does not open is passed by: the known ones stay.
    pub(super) fn learn(&self, answer: &Value) {
        let Value::BulkString(value) = answer else {
            return;
        };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if *read == *value {
            return;
        }
        let schedule = self.keys.schedule(clock::now());
        match open(&schedule, &self.name, value) {
            Ok(marks) => {
                read.clone_from(value);
                self.said.store(false, Ordering::Relaxed);
                if self.known.learn(&marks) {
                    let server = &self.server;
                    tracing::info!(server, "the farm forgets sessions on request: full/revoked");
                }
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
    extent: Extent,
    not_before: Time,
) -> Result<Forgotten, ForgetError> {
    let name = name(scope);
    let mut connection = in_time(Dialer::new(redis)?.dial()).await?;
    for _ in 0..TRIES {
        let read = match in_time(connection.ask(&get(&name))).await? {
            Value::BulkString(value) => value,
            _ => Vec::new(),
        };
        let mut marks = match read.as_slice() {
            [] => Forgotten::default(),
            value => open(schedule, &name, value).map_err(|reason| {
                let name = name.clone();
                ForgetError::Closed { name, reason }
            })?,
        };
        marks.mark(extent, not_before);
        if replace(&mut connection, schedule, &name, &read, &marks).await? {
            return Ok(marks);
        }
    }
    Err(ForgetError::Busy)
}

/// Whether the marks were still what was read, and are now these.
async fn replace(
    connection: &mut Connection,
    schedule: &Schedule,
    name: &str,
    read: &[u8],
    marks: &Forgotten,
) -> Result<bool, ForgetError> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| ForgetError::Random)?;
    let clear = marks.encode();
    let sealed = sealed::seal(schedule, Purpose::Store, salt, name.as_bytes(), &clear)
        .ok_or(ForgetError::NoKey)?;
    // No session lives longer than that, nor does the key that opens this.
    let life = schedule.max_lifetime().as_millis();
    let mut command = redis::cmd("EVAL");
    command.arg(REPLACE).arg(1).arg(name);
    command
        .arg(read)
        .arg(sealed)
        .arg(u64::try_from(life).unwrap_or(u64::MAX));
    let answer = in_time(connection.ask(&command)).await?;
    Ok(answer == Value::Int(1))
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

fn open(schedule: &Schedule, name: &str, value: &[u8]) -> Result<Forgotten, Reason> {
    let clear = sealed::open(schedule, Purpose::Store, name.as_bytes(), value)?;
    Forgotten::decode(&clear).ok_or(Reason::OldFormat)
}
