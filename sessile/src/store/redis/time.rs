//! The store's clock, which all servers of a farm can read: one of them whose own differs too much must not
//! seal, nor forget keys ([`Keyring::record_shared_time`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{Opts, Registry};
use redis::{Cmd, Value};
use sessile_proto::Time;
use tokio::time::Instant;

use super::connect::is_refusal;
use crate::key::Keyring;
use crate::live_gauge;
use crate::locks::locked;

/// How often the clocks are compared.
const EVERY: Duration = Duration::from_secs(10);

pub(super) struct Clock {
    keys: Arc<Keyring>,
    /// The server's name.
    server: String,
    /// When it is asked next: one worker's turn.
    due: Mutex<Instant>,
    /// Whether it was said that the store does not tell.
    said: AtomicBool,
}

impl Clock {
    pub(super) fn new(
        keys: &Arc<Keyring>,
        server: &str,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let opts = Opts::new(
            "sessile_clock_astray",
            "1 where this machine's clock is more than an epoch of the farm key off the store's, else 0.",
        );
        let read = Arc::clone(keys);
        live_gauge::register(registry, opts.const_label("server", server), move || {
            usize::from(read.skew().is_some())
        })?;
        Ok(Self {
            keys: Arc::clone(keys),
            server: server.to_owned(),
            due: Mutex::new(Instant::now()),
            said: AtomicBool::new(false),
        })
    }

    /// What to ask the store, where it is due.
    pub(super) fn look(&self) -> Option<Cmd> {
        let now = Instant::now();
        let mut due = locked(&self.due);
        if now < *due {
            return None;
        }
        *due = now + EVERY;
        Some(redis::cmd("TIME"))
    }

    pub(super) fn answer(&self, answer: Result<Value, redis::RedisError>) {
        match answer {
            Ok(value) => {
                if let Some(shared_time) = parse(&value) {
                    self.keys.record_shared_time(shared_time);
                }
            }
            // A store whose access rules are older than this question serves as well as before.
            Err(error) if is_refusal(&error) && !self.said.swap(true, Ordering::Relaxed) => {
                tracing::warn!(
                    server = self.server,
                    %error,
                    "the session store does not tell its time, with which this machine's clock would be compared: give its \
                     user +time"
                );
            }
            Err(_) => {}
        }
    }
}

/// Seconds since the Unix epoch and microseconds, each in decimal.
fn parse(answer: &Value) -> Option<Time> {
    let Value::Array(parts) = answer else {
        return None;
    };
    let [secs, micros] = parts.as_slice() else {
        return None;
    };
    let number = |value: &Value| match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    let millis = number(secs)?.checked_mul(1000)?;
    Some(Time::from_unix_millis(
        millis.checked_add(number(micros)? / 1000)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(parts: &[&str]) -> Value {
        let parts = parts.iter();
        Value::Array(
            parts
                .map(|part| Value::BulkString(part.as_bytes().to_vec()))
                .collect(),
        )
    }

    #[test]
    fn the_time_is_read_as_the_store_writes_it() {
        let time = parse(&answer(&["1700000000", "123456"]));
        assert_eq!(time, Some(Time::from_unix_millis(1_700_000_000_123)));
    }

    #[test]
    fn what_is_no_time_says_nothing() {
        let most = u64::MAX.to_string();
        for parts in [
            &[][..],
            &["1"],
            &["1", "2", "3"],
            &["", "1"],
            &["-1", "1"],
            &["x", "1"],
            &[&most, "1"],
        ] {
            assert_eq!(parse(&answer(parts)), None, "{parts:?}");
        }
        assert_eq!(parse(&Value::Nil), None);
    }
}
