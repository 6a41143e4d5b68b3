//! Warnings about a key file that can be used.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use sessile_proto::Time;
use sessile_proto::keys::FarmKey;
use sessile_proto::keys::clock_trust::Skew;

use super::file;

/// The warnings about a usable key that was read from `path`.
#[must_use]
pub fn warnings(path: &Path, key: &FarmKey, now: Time) -> Vec<String> {
    let mut warnings = Vec::new();
    // These warnings are for servers only, because a balancer never moves its part of the key
    // forward.
    if !key.is_route_part() {
        if let Some(reason) = file::read_only_reason(path) {
            warnings.push(format!(
                "no forward secrecy: the key cannot be moved forward, because {reason}; a thief of the file can \
                 decrypt everything sealed since the key was made"
            ));
        }
        // A key that was just made may need some time to reach the servers.
        let lag = key.lag(now);
        if lag > key.max_lifetime.max(key.rotate) {
            warnings.push(format!(
                "the key can open tickets from {} before the oldest live session: its servers were down, or the file \
                 is an old copy; replace it by a server's copy",
                in_words(lag)
            ));
        }
    }
    let lead = key.lead(now);
    if !lead.is_zero() {
        warnings.push(format!(
            "the key begins {} in the future, and no ticket is sealed until then: this clock is wrong, or the \
             clock that made the key was",
            in_words(lead)
        ));
    } else if let Some(span) = key.clock_behind(now) {
        warnings.push(format!(
            "the key was made, or moved forward, by a clock that is {} ahead of this one: one of them is wrong",
            in_words(span)
        ));
    }
    warnings
}

/// Why a key has no ticket key for this time, and what to do.
pub(super) fn misfit_in_words(key: &FarmKey, now: Time) -> String {
    let lead = key.lead(now);
    if lead.is_zero() {
        "the clock is too far ahead of the key. Set the clock right, or replace the key by a copy from another server"
            .to_owned()
    } else {
        format!(
            "the key begins {} later. Set the clock right; if it is right, replace the key by a copy from another \
             server",
            in_words(lead)
        )
    }
}

/// A span of time for people, to the second.
pub(super) fn in_words(span: Duration) -> impl fmt::Display {
    humantime::format_duration(Duration::from_secs(span.as_secs()))
}

/// Part of a sentence that goes on with another clock: `2h ahead of` or `1day behind`.
pub(super) fn skew_in_words(skew: Skew) -> String {
    match skew {
        Skew::Ahead(span) => format!("{} ahead of", in_words(span)),
        Skew::Behind(span) => format!("{} behind", in_words(span)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skew_reads_as_part_of_a_sentence() {
        let span = Duration::from_millis(7_200_900);
        assert_eq!(skew_in_words(Skew::Ahead(span)), "2h ahead of");
        assert_eq!(skew_in_words(Skew::Behind(span)), "2h behind");
    }
}
