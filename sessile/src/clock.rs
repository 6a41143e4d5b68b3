//! The wall clock, read in one place, and points in time as people write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sessile_proto::Time;

/// The present time. A clock before 1970 reads as 1970.
#[must_use]
pub fn now() -> Time {
    at(SystemTime::now())
}

/// A time of the standard library's. What was before 1970 reads as 1970.
#[must_use]
pub fn at(time: SystemTime) -> Time {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_unix_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A point in time for people and programs, to the second: `2026-11-24T10:00:00Z`.
#[must_use]
pub fn rfc3339(time: Time) -> String {
    // The year 9999 is as far as the form goes; a plan that lies beyond is none.
    const FAR: Time = Time::from_unix_millis(253_402_300_799_000);
    let since = Duration::from_millis(time.min(FAR).unix_millis());
    let time: SystemTime = UNIX_EPOCH + since;
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Reads that form; only UTC.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<Time> {
    humantime::parse_rfc3339(text).ok().map(at)
}
