//! The wall clock as a [`Time`], and the text form of times.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sessile_proto::Time;

/// The present time. A clock before 1970 reads as 1970.
#[must_use]
pub fn now() -> Time {
    at(SystemTime::now())
}

/// Converts the standard library's time. A time before 1970 becomes 1970.
#[must_use]
pub fn at(time: SystemTime) -> Time {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_unix_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Formats a time to the second: `2026-11-24T10:00:00Z`.
#[must_use]
pub fn rfc3339(time: Time) -> String {
    /// The end of the year 9999, the last time that RFC 3339 can express.
    const LAST: Time = Time::from_unix_millis(253_402_300_799_000);
    let since_epoch = Duration::from_millis(time.min(LAST).unix_millis());
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since_epoch).to_string()
}

/// Parses the form that [`rfc3339`] writes, in UTC only.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<Time> {
    humantime::parse_rfc3339(text).ok().map(at)
}
