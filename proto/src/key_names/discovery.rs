//! Decides when to discover the key names of a server: at intervals, and when a check shows another ticket
//! key.

use std::time::{Duration, Instant};

use super::{KeyName, TicketFingerprint};
use crate::watch::Kind;

/// The time between two discoveries if no check requests one.
pub const INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The shortest time between two discoveries that checks request.
pub const MIN_INTERVAL: Duration = Duration::from_secs(60);

/// The schedule of one server's discoveries, fed with the handshakes of its routine checks.
#[derive(Debug)]
pub struct DiscoverySchedule {
    /// The time of the next discovery if no check requests one.
    due: Instant,
    /// True if a check showed another key.
    is_requested: bool,
    /// A request waits until this time.
    not_before: Instant,
    /// The ticket of the last check, if the server accepted it.
    last_accepted: Option<TicketFingerprint>,
    /// The unknown name that the last request was for.
    ///
    /// If a discovery did not prove this name, a discovery a minute later would also not prove the name.
    last_requested: Option<KeyName>,
}

impl DiscoverySchedule {
    /// A schedule whose first discovery is due now.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self {
            due: now,
            is_requested: false,
            not_before: now,
            last_accepted: None,
            last_requested: None,
        }
    }

    /// Records the server's answer to the ticket that a check offered.
    ///
    /// `is_known` tells whether a name is known for this server. Returns the name of a lost key. The server
    /// accepted a ticket with this name in the last check, and refuses one with the same name now.
    pub fn record_check(
        &mut self,
        kind: Kind,
        offered: Option<TicketFingerprint>,
        is_known: impl Fn(&KeyName) -> bool,
    ) -> Option<KeyName> {
        match kind {
            Kind::Resumed(_) => {
                self.record_accepted(offered, is_known);
                None
            }
            Kind::Refused => {
                let accepted = self.last_accepted.take()?.name;
                self.is_requested = true;
                offered
                    .map(|ticket| ticket.name)
                    .filter(|name| *name == accepted)
            }
            Kind::NotOffered | Kind::Failed => None,
        }
    }

    /// Two accepted tickets in a row with the same unknown first bytes request a discovery.
    fn record_accepted(
        &mut self,
        offered: Option<TicketFingerprint>,
        is_known: impl Fn(&KeyName) -> bool,
    ) {
        let last = std::mem::replace(&mut self.last_accepted, offered);
        let (Some(last), Some(ticket)) = (last, offered) else {
            return;
        };
        // One ticket alone is no evidence: the tickets of many servers begin with random bytes.
        let have_the_same_name = last != ticket && last.name == ticket.name;
        let was_requested = self.last_requested == Some(ticket.name);
        if have_the_same_name && !was_requested && !is_known(&ticket.name) {
            self.last_requested = Some(ticket.name);
            self.is_requested = true;
        }
    }

    /// Records that the server came up after it was down. It may have another key.
    pub const fn record_recovery(&mut self, now: Instant) {
        self.due = now;
    }

    /// True if a discovery must start now. The schedule then counts the discovery as started.
    pub fn start(&mut self, now: Instant) -> bool {
        let is_due = now >= self.due;
        let is_requested = self.is_requested && now >= self.not_before;
        if !is_due && !is_requested {
            return false;
        }
        if !is_due {
            self.not_before = now + MIN_INTERVAL;
        }
        self.due = now + INTERVAL;
        self.is_requested = false;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::verdict::How;

    const KNOWN: u8 = 1;
    const RESUMED: Kind = Kind::Resumed(How::Psk);

    fn at(seconds: u64) -> Instant {
        #[allow(
            clippy::disallowed_methods,
            reason = "an Instant can be made in no other way"
        )]
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        *START + Duration::from_secs(seconds)
    }

    fn ticket(name: u8, n: u8) -> Option<TicketFingerprint> {
        let mut bytes = [name; 64];
        bytes[63] = n;
        TicketFingerprint::new(&bytes)
    }

    /// Whether each of these checks requests a discovery.
    fn requests<const N: usize>(checks: [(Kind, Option<TicketFingerprint>); N]) -> [bool; N] {
        let mut schedule = DiscoverySchedule::new(at(0));
        checks.map(|(kind, ticket)| {
            schedule.record_check(kind, ticket, |name| name[0] == KNOWN);
            std::mem::take(&mut schedule.is_requested)
        })
    }

    #[test]
    fn a_refused_ticket_after_an_accepted_one_requests_a_discovery() {
        let checks = [
            (Kind::NotOffered, None),
            (RESUMED, ticket(KNOWN, 1)),
            (RESUMED, ticket(KNOWN, 2)),
            (Kind::Refused, ticket(KNOWN, 3)),
            // A server that never resumes does not cause a discovery at every check.
            (Kind::Refused, ticket(KNOWN, 4)),
        ];
        assert_eq!(requests(checks), [false, false, false, true, false]);
    }

    #[test]
    fn a_key_is_lost_when_the_server_refuses_a_ticket_with_the_name_it_accepted_last() {
        let mut schedule = DiscoverySchedule::new(at(0));
        let mut check = |kind, ticket| schedule.record_check(kind, ticket, |_| true);
        assert_eq!(check(Kind::Refused, ticket(KNOWN, 1)), None);
        for other in [None, ticket(2, 2)] {
            assert_eq!(check(RESUMED, ticket(KNOWN, 1)), None);
            assert_eq!(check(Kind::Refused, other), None);
        }
        assert_eq!(check(RESUMED, ticket(KNOWN, 1)), None);
        let lost = check(Kind::Refused, ticket(KNOWN, 2));
        assert_eq!(lost, Some([KNOWN; 16]));
    }

    #[test]
    fn accepted_tickets_with_the_same_unknown_name_request_one_discovery() {
        let checks = [
            (RESUMED, ticket(KNOWN, 1)),
            (RESUMED, ticket(2, 1)),
            (RESUMED, ticket(2, 2)),
            (RESUMED, ticket(2, 3)),
        ];
        assert_eq!(requests(checks), [false, false, true, false]);
    }

    #[test]
    fn tickets_with_random_first_bytes_and_a_repeated_ticket_request_none() {
        let checks = [2, 3, 4, 4].map(|name| (RESUMED, ticket(name, 1)));
        assert_eq!(requests(checks), [false; 4]);
    }

    #[test]
    fn discoveries_start_every_ten_minutes_and_at_once_after_a_recovery() {
        let mut schedule = DiscoverySchedule::new(at(0));
        let started = [0, 1, 599, 600, 601].map(|second| schedule.start(at(second)));
        assert_eq!(started, [true, false, false, true, false]);
        schedule.record_recovery(at(602));
        assert!(schedule.start(at(602)));
        assert!(!schedule.start(at(603)));
    }

    proptest! {
        #[test]
        fn discoveries_that_checks_request_keep_their_distance(
            checks in prop::collection::vec((any::<bool>(), 0..4_u8, 0..40_u64), 0..200),
        ) {
            let mut schedule = DiscoverySchedule::new(at(0));
            let mut now = at(0);
            let mut starts = Vec::new();
            for (n, (accepts, name, pause)) in checks.into_iter().enumerate() {
                now += Duration::from_secs(pause);
                let kind = if accepts { RESUMED } else { Kind::Refused };
                schedule.record_check(kind, ticket(name, n as u8), |name| name[0] == KNOWN);
                let is_due = now >= schedule.due;
                if schedule.start(now) && !is_due {
                    starts.push(now);
                }
            }
            for pair in starts.windows(2) {
                prop_assert!(pair[1] - pair[0] >= MIN_INTERVAL);
            }
        }
    }
}
