//! The wall clock, read in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use sessile_proto::Time;

/// The present time. A clock before 1970 reads as 1970.
#[must_use]
pub fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time::from_unix_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
