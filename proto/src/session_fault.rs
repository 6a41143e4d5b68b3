//! Finds servers that end a handshake if the client offers a session of the same server. Such servers finish
//! all other handshakes.
//!
//! Such a server is up, because it serves every new client. The balancer's own clients find the fault. If the
//! server ends a handshake that offers a session, they connect again without a session.

use std::collections::BTreeMap;

use crate::verdict::How;
use crate::{Time, Word};

/// A server is faulty after this many ended handshakes in a row. A restart can end one handshake.
const MIN_ENDED: u32 = 2;

/// A client of the balancer that offers sessions to servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckClient {
    /// The client of routine checks: any version, and any kind of session.
    Routine,
    /// TLS 1.3 only, with PSKs.
    Psk,
    /// TLS 1.2 only, with tickets.
    Ticket,
}

/// The answers of a server to sessions that the balancer's own clients offered.
#[derive(Debug, Default)]
pub struct SessionOffers {
    ended: BTreeMap<CheckClient, EndedOffers>,
}

/// Handshakes in a row that offered a session and that the server ended.
#[derive(Debug)]
struct EndedOffers {
    count: u32,
    /// The kind of session that the last handshake offered.
    offered: How,
    /// The error of the last handshake.
    error: String,
    /// The time of the first handshake.
    since: Time,
}

/// The fault of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFault {
    /// The kinds of sessions, in the order of their words.
    pub offered: Vec<How>,
    /// The error of a handshake that the server ended.
    pub error: String,
    /// The time of the first handshake that the server ended.
    pub since: Time,
}

/// The effect of one handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultChange {
    /// The server is faulty for a kind of session for which it was not faulty before.
    Found,
    /// The server is not faulty any more.
    Gone,
}

impl SessionOffers {
    /// Records a handshake that offered a session and that the server ended. The server then finished a
    /// handshake without a session.
    pub fn record_ended(
        &mut self,
        client: CheckClient,
        offered: How,
        error: String,
        now: Time,
    ) -> Option<FaultChange> {
        let was_known = self
            .fault()
            .is_some_and(|fault| fault.offered.contains(&offered));
        let ended = self.ended.entry(client).or_insert(EndedOffers {
            count: 0,
            offered,
            error: String::new(),
            since: now,
        });
        ended.count += 1;
        ended.offered = offered;
        ended.error = error;
        (ended.count >= MIN_ENDED && !was_known).then_some(FaultChange::Found)
    }

    /// Records a handshake that the server finished. The handshake offered a session, or the client had no
    /// session to offer.
    pub fn record_finished(&mut self, client: CheckClient) -> Option<FaultChange> {
        let was_faulty = self.fault().is_some();
        self.ended.remove(&client);
        (was_faulty && self.fault().is_none()).then_some(FaultChange::Gone)
    }

    /// The fault. `None` if the server is not faulty.
    #[must_use]
    pub fn fault(&self) -> Option<SessionFault> {
        let all = self.ended.values();
        let mut faults: Vec<_> = all.filter(|ended| ended.count >= MIN_ENDED).collect();
        faults.sort_by_key(|ended| ended.since);
        let mut offered: Vec<How> = faults.iter().map(|ended| ended.offered).collect();
        offered.sort_unstable_by_key(|how| how.as_str());
        offered.dedup();
        Some(SessionFault {
            offered,
            error: faults.last()?.error.clone(),
            since: faults.first()?.since,
        })
    }

    /// True if the server is faulty for the sessions of this client.
    #[must_use]
    pub fn is_faulty_for(&self, client: CheckClient) -> bool {
        let ended = self.ended.get(&client);
        ended.is_some_and(|ended| ended.count >= MIN_ENDED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR: &str = "the server ended the handshake";

    fn at(seconds: u64) -> Time {
        Time::from_unix_millis(seconds * 1000)
    }

    fn end(
        offers: &mut SessionOffers,
        client: CheckClient,
        offered: How,
        second: u64,
    ) -> Option<FaultChange> {
        offers.record_ended(client, offered, ERROR.to_owned(), at(second))
    }

    #[test]
    fn one_ended_handshake_is_no_fault_and_two_in_a_row_are() {
        let client = CheckClient::Routine;
        let mut offers = SessionOffers::default();
        assert_eq!(end(&mut offers, client, How::Psk, 1), None);
        assert_eq!(offers.record_finished(client), None);
        assert_eq!(end(&mut offers, client, How::Psk, 2), None);
        assert_eq!(offers.fault(), None);
        let found = end(&mut offers, client, How::Psk, 3);
        assert_eq!(found, Some(FaultChange::Found));
        // The same fault is reported once.
        assert_eq!(end(&mut offers, client, How::Psk, 4), None);
        let fault = SessionFault {
            offered: vec![How::Psk],
            error: ERROR.to_owned(),
            since: at(2),
        };
        assert_eq!(offers.fault(), Some(fault));
        assert_eq!(offers.record_finished(client), Some(FaultChange::Gone));
        assert_eq!(offers.fault(), None);
    }

    #[test]
    fn a_fault_is_gone_when_the_server_ends_no_kind_of_session() {
        let mut offers = SessionOffers::default();
        for (client, offered) in [
            (CheckClient::Psk, How::Psk),
            (CheckClient::Ticket, How::Ticket),
        ] {
            assert_eq!(end(&mut offers, client, offered, 1), None);
            let found = end(&mut offers, client, offered, 1);
            assert_eq!(found, Some(FaultChange::Found));
            assert!(offers.is_faulty_for(client));
        }
        // The fault is known, although another client sees it now.
        for _ in 0..2 {
            let change = end(&mut offers, CheckClient::Routine, How::Psk, 2);
            assert_eq!(change, None);
        }
        let fault = offers.fault().expect("two kinds were ended twice");
        assert_eq!(fault.offered, [How::Psk, How::Ticket]);
        let clients = [CheckClient::Routine, CheckClient::Psk, CheckClient::Ticket];
        let changes = clients.map(|client| offers.record_finished(client));
        assert_eq!(changes, [None, None, Some(FaultChange::Gone)]);
    }
}
