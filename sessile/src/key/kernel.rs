//! What the kernel knows of its own clock: whether something (chrony, ntpd, systemd-timesyncd) keeps it right.

#![allow(
    unsafe_code,
    reason = "adjtimex(2) is the only way to ask, and no safe crate that we have wraps it"
)]

use std::time::Duration;

use sessile_proto::Time;

/// What the kernel says of the clock that is read here, and by which it may be another: a program can be
/// given a clock of its own (libfaketime).
pub(super) fn is_synchronised(now: Time, rotate: Duration) -> bool {
    // SAFETY: `timex` is a plain C structure of integers, for which all zeros is a value. With `modes` 0 the
    // call changes nothing in the kernel and writes to the structure that it is given alone, which is
    // ours and as large as the kernel's.
    let (state, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex)
    };
    // Where it may not be asked (a sandbox) the answer is -1.
    if state < 0 || state == libc::TIME_ERROR || timex.status & libc::STA_UNSYNC != 0 {
        return false;
    }
    let secs = u64::try_from(timex.time.tv_sec).unwrap_or_default();
    let theirs = Time::from_unix_millis(secs.saturating_mul(1000));
    now.since(theirs).max(theirs.since(now)) <= rotate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_clock_that_is_not_the_kernels_is_never_synchronised() {
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
        let now = clock::now();
        assert!(!is_synchronised(now.plus(day), hour));
        assert!(!is_synchronised(now.minus(day), hour));
    }
}
