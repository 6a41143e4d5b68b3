//! What a key file that can be used costs all the same.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use sessile_proto::Time;
use sessile_proto::keys::FarmKey;

use super::file::{self, Fixed};

/// Something that an operator should know of a key file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// It cannot be moved forward where it lies.
    Fixed(Fixed),
    /// It stands further back than any session that can be alive needs.
    Behind(Duration),
    /// It begins after the present time.
    Ahead(Duration),
    /// It was moved forward, or made, by a clock that is this far ahead of the present time.
    ClockBehind(Duration),
}

impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(why) => write!(
                f,
                "no forward secrecy: the key cannot be moved forward, because {why}; whoever \
                 gets at the file opens all that was sealed since it was made"
            ),
            Self::Behind(span) => write!(
                f,
                "the key stands {} further back than any living session needs: the servers that \
                 use this file were away, or it is a first copy that somebody keeps; it opens \
                 what was sealed since",
                in_words(*span)
            ),
            Self::Ahead(span) => write!(
                f,
                "the key begins {} after the present time, and no ticket is sealed until then: \
                 this clock is wrong, or that one was with which the key was made",
                in_words(*span)
            ),
            Self::ClockBehind(span) => write!(
                f,
                "the key was made, or moved forward, by a clock that is {} ahead of this one: one of them is wrong",
                in_words(*span)
            ),
        }
    }
}

/// What there is to say of a key that was read from a file.
#[must_use]
pub fn concerns(path: &Path, key: &FarmKey, now: Time) -> Vec<Concern> {
    // A balancer's part is never moved forward by the balancer.
    let fixed = file::fixed(path).filter(|_| !key.is_route_part());
    // A key that was just made stands as far back as one in use, and may take its time to reach the servers.
    let lag = Some(key.lag(now))
        .filter(|lag| *lag > key.max_lifetime.max(key.rotate) && !key.is_route_part());
    let lead = key.lead(now);
    let clock = match lead.is_zero() {
        true => key.clock_behind(now).map(Concern::ClockBehind),
        false => Some(Concern::Ahead(lead)),
    };
    let fixed = fixed.map(Concern::Fixed).into_iter();
    fixed.chain(lag.map(Concern::Behind)).chain(clock).collect()
}

/// A span of time for people, to the second.
pub(super) fn in_words(span: Duration) -> impl fmt::Display {
    humantime::format_duration(Duration::from_secs(span.as_secs()))
}
