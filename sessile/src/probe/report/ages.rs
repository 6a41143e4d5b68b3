//! What a report says about the ages of sessions.

use std::net::SocketAddr;
use std::time::Duration;

use sessile_proto::age_search::FoundAge;
use sessile_proto::verdict::How;

use super::ProbeReport;
use crate::probe::after_gap::SessionAge;
use crate::probe::plan::FirstConnection;

impl ProbeReport {
    /// The shortest lifetime of the server's tickets. `None` if the server promises none.
    pub(in crate::probe) fn promised_lifetime(
        &self,
        how: How,
        server: SocketAddr,
    ) -> Option<Duration> {
        let tested = self.mechanisms.iter().find(|tested| tested.how == how)?;
        let lifetimes = tested.tickets_of(server).map(|(_, ticket)| ticket.lifetime);
        let promised = lifetimes.filter(|lifetime| *lifetime > 0);
        promised
            .min()
            .map(|lifetime| Duration::from_secs(lifetime.into()))
    }

    /// True if sessions with an idle first connection are gone at an age at which others are not.
    pub(in crate::probe) fn is_lost_when_idle(&self, age: &SessionAge) -> bool {
        let is_older = |other: &&SessionAge| {
            (other.how, other.address) == (age.how, age.address)
                && other.first_connection == FirstConnection::CloseNotify
                && other.kept() >= age.refused()
        };
        age.first_connection == FirstConnection::Idle
            && age.refused().is_some()
            && self.session_ages.iter().any(|other| is_older(&other))
    }

    /// True if sessions are gone before the end of their lifetime, or without a rule.
    pub(super) fn is_lost_early(&self, age: &SessionAge) -> bool {
        let promised = || self.promised_lifetime(age.how, age.address);
        let is_before_lifetime = || {
            age.refused()
                .is_some_and(|refused| promised().is_some_and(|promised| refused < promised))
        };
        matches!(age.found, Some(FoundAge::Contradictory { .. }))
            || self.is_lost_when_idle(age)
            || is_before_lifetime()
    }
}
