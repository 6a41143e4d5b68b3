//! Servers that end handshakes which offer their own session, and finish all others. Such a server is
//! up: every new client is served. This file keeps what the balancer's own clients saw of it.

use std::collections::HashMap;

use sessile_proto::Time;

use super::health::visit;
use crate::client::{Client, EstablishedConnection, Failure, Mechanism, Target};

/// The fault, in the words of the API and of the log.
pub(super) const FAULT: &str = "the server ended a handshake that offered its own session";

/// Handshakes in a row that a server has to end before it counts as faulty: a restart ends one.
const ENDED: u32 = 2;

/// What a server did with sessions that the balancer's own clients offered, by the kind of client.
#[derive(Debug, Default)]
pub(super) struct Offers(HashMap<Mechanism, Ended>);

/// Handshakes with a session that the server ended, one after another.
#[derive(Debug)]
struct Ended {
    times: u32,
    /// What the last one offered.
    offered: &'static str,
    /// How the last one ended.
    error: String,
    /// When the first one was ended.
    since: Time,
}

/// What the API says of the fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SessionFault {
    /// Kinds of sessions: `session-id`, `ticket`, `psk`.
    pub(super) offered: Vec<&'static str>,
    pub(super) error: String,
    pub(super) since: Time,
}

/// What one handshake has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The server is faulty for sessions of a kind for which it was not before.
    Found,
    /// The server is not faulty any more.
    Gone,
}

impl Offers {
    /// Takes note of a handshake with a session that the server ended, and then finished one without.
    pub(super) fn ended(
        &mut self,
        client: Mechanism,
        failure: &Failure,
        now: Time,
    ) -> Option<Change> {
        let before = self.fault().map_or(Vec::new(), |fault| fault.offered);
        let ended = self.0.entry(client).or_insert(Ended {
            times: 0,
            offered: failure.offered_kind(),
            error: String::new(),
            since: now,
        });
        ended.times += 1;
        (ended.offered, ended.error) = (failure.offered_kind(), failure.error.to_string());
        let is_new = ended.times >= ENDED && !before.contains(&ended.offered);
        is_new.then_some(Change::Found)
    }

    /// Takes note of a handshake with a session that the server finished, or for which the server gave
    /// the client no session.
    pub(super) fn finished(&mut self, client: Mechanism) -> Option<Change> {
        let was_faulty = self.fault().is_some();
        self.0.remove(&client);
        (was_faulty && self.fault().is_none()).then_some(Change::Gone)
    }

    /// The fault, if the server has it.
    pub(super) fn fault(&self) -> Option<SessionFault> {
        let mut faults: Vec<&Ended> = self.0.values().filter(|it| it.times >= ENDED).collect();
        faults.sort_by_key(|ended| ended.since);
        let mut offered: Vec<_> = faults.iter().map(|ended| ended.offered).collect();
        offered.sort_unstable();
        offered.dedup();
        Some(SessionFault {
            offered,
            error: faults.last()?.error.clone(),
            since: faults.first()?.since,
        })
    }

    /// True if sessions of this kind of client were found to be ended.
    pub(super) fn is_faulty_for(&self, client: Mechanism) -> bool {
        let ended = self.0.get(&client);
        ended.is_some_and(|ended| ended.times >= ENDED)
    }
}

/// How a visit went that may have offered a session.
pub(super) enum Visited {
    /// The handshake was finished.
    Finished(EstablishedConnection),
    /// The server ended the handshake that offered a session, and finished this one that did not.
    EndedOffer(Failure, EstablishedConnection),
}

/// Visits a server. Where that fails with a session on offer, visits it again at once without one:
/// only that second visit tells whether the server is there.
pub(super) async fn visit_and_compare(
    client: &Client,
    target: &Target,
) -> Result<Visited, Failure> {
    let failure = match visit(client, target).await {
        Ok(connection) => return Ok(Visited::Finished(connection)),
        Err(failure) => failure,
    };
    if failure.offered.is_none() {
        return Err(failure);
    }
    let connection = visit(&client.with_empty_sessions(), target).await?;
    Ok(Visited::EndedOffer(failure, connection))
}

#[cfg(test)]
mod tests {
    use sessile_proto::verdict::How;

    use super::*;
    use crate::client::{Error, Offer};

    fn ended(how: How) -> Failure {
        let bytes = vec![7; 32];
        Failure {
            error: Error::NotTls,
            offered: Some(Offer { how, bytes }),
        }
    }

    fn at(seconds: u64) -> Time {
        Time::from_unix_millis(seconds * 1000)
    }

    #[test]
    fn one_ended_handshake_is_no_fault_and_two_in_a_row_are() {
        let mut offers = Offers::default();
        let end = |offers: &mut Offers, now| {
            let change = offers.ended(Mechanism::Any, &ended(How::Psk), at(now));
            (change, offers.fault().is_some())
        };
        assert_eq!(end(&mut offers, 1), (None, false));
        assert_eq!(offers.finished(Mechanism::Any), None);
        assert_eq!(end(&mut offers, 2), (None, false));
        assert_eq!(end(&mut offers, 3), (Some(Change::Found), true));
        // Once per change.
        assert_eq!(end(&mut offers, 4), (None, true));
        let fault = SessionFault {
            offered: vec!["psk"],
            error: Error::NotTls.to_string(),
            since: at(2),
        };
        assert_eq!(offers.fault(), Some(fault));
        assert_eq!(offers.finished(Mechanism::Any), Some(Change::Gone));
        assert_eq!(offers.fault(), None);
    }

    #[test]
    fn a_fault_is_gone_once_no_kind_of_session_is_ended() {
        let mut offers = Offers::default();
        for (client, how) in [(Mechanism::Psk, How::Psk), (Mechanism::Ticket, How::Ticket)] {
            let mut end = || offers.ended(client, &ended(how), at(1));
            assert_eq!([end(), end()], [None, Some(Change::Found)]);
        }
        // The same kind of session again, seen by another client, is no news.
        let mut end = || offers.ended(Mechanism::Any, &ended(How::Psk), at(2));
        assert_eq!([end(), end()], [None, None]);
        let fault = offers.fault().expect("a fault");
        assert_eq!(fault.offered, ["psk", "ticket"]);
        let gone = [Mechanism::Any, Mechanism::Psk, Mechanism::Ticket];
        let gone = gone.map(|client| offers.finished(client));
        assert_eq!(gone, [None, None, Some(Change::Gone)]);
    }
}
