//! The store's clock, which all servers of a farm can read ([`Keyring::record_shared_time`]).
//!
//! A server whose clock differs too much must not seal, and must not delete old keys.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{Opts, Registry};
use redis::{Cmd, Value};
use sessile_proto::Time;
use tokio::time::Instant;

use super::connect::is_refusal;
use super::error::RequestError;
use crate::key::Keyring;
use crate::live_gauge;
use crate::locks::locked;

/// How often the clocks are compared.
const INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct StoreClock {
    keys: Arc<Keyring>,
    /// The server's name.
    server: String,
    next_read: Mutex<Instant>,
    /// True if the log already says that the store does not give its time.
    refusal_logged: AtomicBool,
}

impl StoreClock {
    pub(super) fn new(
        keys: &Arc<Keyring>,
        server: &str,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let opts = Opts::new(
            "sessile_clock_astray",
            "1 if this machine's clock differs from the store's by more than an epoch of the farm key, else 0.",
        );
        let compared = Arc::clone(keys);
        live_gauge::register(registry, opts.const_label("server", server), move || {
            usize::from(compared.skew().is_some())
        })?;
        Ok(Self {
            keys: Arc::clone(keys),
            server: server.to_owned(),
            next_read: Mutex::new(Instant::now()),
            refusal_logged: AtomicBool::new(false),
        })
    }

    /// The command that reads the clock, if a comparison is due. Only one worker gets the command.
    pub(super) fn next_read(&self) -> Option<Cmd> {
        let now = Instant::now();
        let mut next_read = locked(&self.next_read);
        if now < *next_read {
            return None;
        }
        *next_read = now + INTERVAL;
        Some(redis::cmd("TIME"))
    }

    /// Compares the clocks, or logs once that the store does not give its time.
    pub(super) fn record(&self, answer: Result<Value, RequestError>) {
        match answer {
            Ok(value) => {
                if let Some(shared_time) = parse(&value) {
                    self.keys.record_shared_time(shared_time);
                }
            }
            // Access rules (ACL) that were written for an older version of sessile may not allow
            // TIME.
            Err(RequestError::Store(error))
                if is_refusal(&error) && !self.refusal_logged.swap(true, Ordering::Relaxed) =>
            {
                tracing::warn!(
                    server = self.server,
                    %error,
                    "the session store refuses TIME, so this machine's clock cannot be compared with \
                     the store's: give the store's user +time"
                );
            }
            Err(_) => {}
        }
    }
}

/// Reads the answer to TIME: the seconds since the Unix epoch, and microseconds, each in decimal.
fn parse(answer: &Value) -> Option<Time> {
    let Value::Array(parts) = answer else {
        return None;
    };
    let [secs, micros] = parts.as_slice() else {
        return None;
    };
    let whole_secs = number(secs)?.checked_mul(1000)?;
    let millis = whole_secs.checked_add(number(micros)? / 1000)?;
    Some(Time::from_unix_millis(millis))
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(parts: &[&str]) -> Value {
        let bulk = |part: &&str| Value::BulkString(part.as_bytes().to_vec());
        Value::Array(parts.iter().map(bulk).collect())
    }

    #[test]
    fn reads_the_time_of_a_store() {
        let time = parse(&answer(&["1700000000", "123456"]));
        assert_eq!(time, Some(Time::from_unix_millis(1_700_000_000_123)));
    }

    #[test]
    fn refuses_malformed_times() {
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
