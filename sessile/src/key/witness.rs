//! What bears the wall clock out. Keys are forgotten for good on its word, and a clock can be wrong for days;
//! so its word alone is not enough, and what another clock contradicts is not believed at all.

use std::fmt;
use std::time::{Duration, Instant};

use sessile_proto::Time;

use super::health::in_words;

/// How long another clock's word is good for: the monotonic clock, by which it is carried on, stands still
/// while a machine sleeps.
const GOOD_FOR: Duration = Duration::from_secs(60 * 60);

/// How long the kernel's word alone does not count after the start: a clock that the farm shares may contradict it,
/// and takes a moment to be heard.
const HEARING: Duration = Duration::from_secs(10);

/// Epochs that may be forgotten for each that the monotonic clock has measured. A file that was left behind
/// catches up, and a clock that is wrong takes as long to do harm as its error is large.
const PACE: u32 = 2;

/// The present moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) monotonic: Instant,
    pub(super) wall: Time,
}

impl Moment {
    pub(super) fn at(wall: Time) -> Self {
        Self {
            monotonic: Instant::now(),
            wall,
        }
    }
}

/// How far the wall clock may be followed where keys are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Another clock contradicts it, or too little is known.
    No,
    /// By so many epochs and no more.
    Epochs(u64),
    /// Another clock says the same.
    Whole,
}

/// What is known of the wall clock.
#[derive(Debug)]
pub(super) struct Witnesses {
    started: Instant,
    /// Since when the wall clock and the monotonic clock have agreed.
    anchor: Moment,
    /// Until when what the monotonic clock measured was used up by forgetting.
    spent: Instant,
    /// What a clock that the farm shares has said.
    shared: Option<Moment>,
}

/// By how much the wall clock differs from the shared one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Astray {
    Ahead(Duration),
    Behind(Duration),
}

impl fmt::Display for Astray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ahead(span) => write!(f, "{} ahead of", in_words(*span)),
            Self::Behind(span) => write!(f, "{} behind", in_words(*span)),
        }
    }
}

impl Witnesses {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            started: now.monotonic,
            anchor: now,
            spent: now.monotonic,
            shared: None,
        }
    }

    /// A clock that the servers of the farm share says `theirs`. True where none had, not long ago.
    pub(super) fn hear(&mut self, theirs: Moment) -> bool {
        let is_first = self.shared_now(theirs).is_none();
        self.shared = Some(theirs);
        is_first
    }

    /// Whether the wall clock is further from the shared clock than keys allow for: more than an epoch.
    pub(super) fn astray(&self, now: Moment, rotate: Duration) -> Option<Astray> {
        let theirs = self.shared_now(now)?;
        let (ahead, behind) = (now.wall.since(theirs), theirs.since(now.wall));
        if ahead > rotate {
            Some(Astray::Ahead(ahead))
        } else {
            (behind > rotate).then_some(Astray::Behind(behind))
        }
    }

    /// How far the wall clock may be followed now. `synchronised`: the kernel says that its clock, which
    /// this is, is kept right by others.
    pub(super) fn trust(&mut self, now: Moment, rotate: Duration, synchronised: bool) -> Trust {
        let measured = self.measured(now, rotate);
        if self.astray(now, rotate).is_some() {
            // Nor does time that was measured meanwhile speak for it, once nobody contradicts it any more.
            self.spend(now);
            return Trust::No;
        }
        let was_heard = self.shared_now(now).is_some();
        let is_heard_by_now = now.monotonic.saturating_duration_since(self.started) >= HEARING;
        if was_heard || (synchronised && is_heard_by_now) {
            return Trust::Whole;
        }
        match measured {
            0 => Trust::No,
            epochs => Trust::Epochs(epochs * u64::from(PACE)),
        }
    }

    /// Keys were forgotten.
    pub(super) fn spend(&mut self, now: Moment) {
        self.spent = now.monotonic;
    }

    /// Epochs that both clocks have measured, and that were not used up yet.
    fn measured(&mut self, now: Moment, rotate: Duration) -> u64 {
        let elapsed = now
            .monotonic
            .saturating_duration_since(self.anchor.monotonic);
        let by_the_wall = now.wall.since(self.anchor.wall);
        if now.wall < self.anchor.wall || by_the_wall.abs_diff(elapsed) >= rotate {
            // The wall clock jumped; it has to earn trust from here on.
            self.anchor = now;
            self.spent = now.monotonic;
        }
        let unspent = now.monotonic.saturating_duration_since(self.spent);
        unspent.as_secs() / rotate.as_secs().max(1)
    }

    fn shared_now(&self, now: Moment) -> Option<Time> {
        let heard = self.shared?;
        let since = now.monotonic.saturating_duration_since(heard.monotonic);
        (since <= GOOD_FOR).then(|| heard.wall.plus(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Duration = Duration::from_secs(3600);
    const START: Time = Time::from_unix_millis(1_700_000_000_000);

    /// A moment: so much later by the monotonic clock, so many seconds off by the wall clock.
    fn moment(begin: Instant, later: Duration, off: i64) -> Moment {
        let wall = START.plus(later);
        let off_by = Duration::from_secs(off.unsigned_abs());
        Moment {
            monotonic: begin + later,
            wall: if off < 0 {
                wall.minus(off_by)
            } else {
                wall.plus(off_by)
            },
        }
    }

    #[test]
    fn alone_the_wall_clock_is_followed_at_twice_its_pace_and_not_in_the_first_epoch() {
        let begin = Instant::now();
        let mut witnesses = Witnesses::new(moment(begin, Duration::ZERO, 0));
        let mut trust = |later, spend| {
            let now = moment(begin, later, 0);
            let trust = witnesses.trust(now, EPOCH, false);
            if spend {
                witnesses.spend(now);
            }
            trust
        };
        assert_eq!(trust(EPOCH / 2, false), Trust::No);
        assert_eq!(trust(EPOCH, true), Trust::Epochs(2));
        assert_eq!(trust(EPOCH * 3 / 2, false), Trust::No);
        assert_eq!(trust(EPOCH * 4, true), Trust::Epochs(6));
    }

    #[test]
    fn a_clock_that_jumps_begins_anew() {
        let begin = Instant::now();
        for off in [86_400, -86_400] {
            let mut witnesses = Witnesses::new(moment(begin, Duration::ZERO, 0));
            assert_eq!(
                witnesses.trust(moment(begin, EPOCH, 0), EPOCH, false),
                Trust::Epochs(2)
            );
            assert_eq!(
                witnesses.trust(moment(begin, EPOCH, off), EPOCH, false),
                Trust::No
            );
            let later = moment(begin, EPOCH * 2, off);
            assert_eq!(witnesses.trust(later, EPOCH, false), Trust::Epochs(2));
        }
    }

    #[test]
    fn another_clock_that_agrees_is_believed_at_once_and_one_that_differs_for_good() {
        let begin = Instant::now();
        let right = moment(begin, Duration::ZERO, 0);
        let mut witnesses = Witnesses::new(right);
        // Not before a clock that the farm shares could be heard.
        assert_eq!(witnesses.trust(right, EPOCH, true), Trust::No);
        let soon = moment(begin, HEARING, 0);
        assert_eq!(witnesses.trust(soon, EPOCH, true), Trust::Whole);
        witnesses.hear(right);
        assert_eq!(witnesses.trust(right, EPOCH, false), Trust::Whole);
        for (off, astray) in [
            (7200, Astray::Ahead(EPOCH * 2)),
            (-7200, Astray::Behind(EPOCH * 2)),
        ] {
            let wrong = moment(begin, EPOCH / 2, off);
            assert_eq!(witnesses.astray(wrong, EPOCH), Some(astray));
            // Whatever the kernel says, and however long it stays so.
            assert_eq!(witnesses.trust(wrong, EPOCH, true), Trust::No);
            let later = moment(begin, EPOCH, off);
            assert_eq!(witnesses.trust(later, EPOCH, true), Trust::No);
        }
        // Up to an epoch apart is what keys allow for.
        assert_eq!(
            witnesses.astray(moment(begin, EPOCH / 2, 3600), EPOCH),
            None
        );
    }

    #[test]
    fn what_another_clock_said_long_ago_counts_no_more() {
        let begin = Instant::now();
        let mut witnesses = Witnesses::new(moment(begin, Duration::ZERO, 0));
        witnesses.hear(moment(begin, Duration::ZERO, 86_400));
        assert!(
            witnesses
                .astray(moment(begin, GOOD_FOR, 0), EPOCH)
                .is_some()
        );
        let later = moment(begin, GOOD_FOR * 2, 0);
        assert_eq!(witnesses.astray(later, EPOCH), None);
        assert_eq!(witnesses.trust(later, EPOCH, false), Trust::Epochs(4));
    }

    #[test]
    fn time_in_which_a_clock_was_contradicted_speaks_for_it_no_more_than_before() {
        let begin = Instant::now();
        let off = 20 * 3600;
        let mut witnesses = Witnesses::new(moment(begin, Duration::ZERO, off));
        for hours in 0..24 {
            witnesses.hear(moment(begin, EPOCH * hours, 0));
            let wrong = moment(begin, EPOCH * hours, off);
            assert_eq!(witnesses.trust(wrong, EPOCH, false), Trust::No);
        }
        // The other clock is silent from here on.
        let trust = |witnesses: &mut Witnesses, later| {
            let wrong = moment(begin, EPOCH * 23 + later, off);
            witnesses.trust(wrong, EPOCH, false)
        };
        let last = trust(&mut witnesses, GOOD_FOR);
        assert_eq!(last, Trust::No);
        let silent = GOOD_FOR + Duration::from_secs(60);
        assert_eq!(trust(&mut witnesses, silent), Trust::No);
        assert_eq!(trust(&mut witnesses, GOOD_FOR + EPOCH), Trust::Epochs(2));
    }
}
