//! Asks the kernel for its clocks, and whether NTP (chrony, ntpd, systemd-timesyncd) keeps the wall clock right.

#![allow(
    unsafe_code,
    reason = "adjtimex(2) is the only way to ask for NTP, and libfaketime changes only the C library's clock_gettime"
)]

use std::time::Duration;

use sessile_proto::Time;

/// The kernel's wall clock, if the kernel says that it is synchronised.
///
/// A library such as libfaketime can give this process another clock; [`ClockTrust`] compares the two clocks.
///
/// [`ClockTrust`]: sessile_proto::keys::clock_trust::ClockTrust
pub(super) fn ntp_time() -> Option<Time> {
    // SAFETY: `timex` is a plain C structure of integers, for which all zeros is a valid value. With `modes` 0
    // the call changes nothing in the kernel. The call writes only to `timex`, which has the size that the
    // kernel expects.
    let (state, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex)
    };
    // In a sandbox that forbids the call, the result is -1.
    if state < 0 || state == libc::TIME_ERROR || timex.status & libc::STA_UNSYNC != 0 {
        return None;
    }
    let secs = u64::try_from(timex.time.tv_sec).unwrap_or_default();
    Some(Time::from_unix_millis(secs.saturating_mul(1000)))
}

/// The time since the system was started, without the time that it slept.
pub(super) fn since_boot() -> Duration {
    // SAFETY: `timespec` is a plain C structure of integers, for which all zeros is a valid value. The call writes
    // only to `time`, which has the size that the kernel expects.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time);
        time
    };
    let secs = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(secs, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_synchronised_kernel_tells_no_other_time_than_this_process() {
        let minute = Duration::from_secs(60);
        let agrees = |kernel: Time| {
            let now = clock::now();
            now.since(kernel) < minute && kernel.since(now) < minute
        };
        assert!(ntp_time().is_none_or(agrees));
    }
}
