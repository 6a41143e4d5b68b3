//! Events in the life of a server, from the answers to a client that returns again and again: lost sessions, other
//! ticket keys, other certificates, times without an answer.

use std::time::Duration;

use crate::Time;
use crate::key_names::KeyName;

/// Something that happened to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// The server did not finish a handshake.
    Down,
    /// The server finished a handshake after it was down.
    Up,
    /// The server has another certificate.
    OtherCertificate,
}

/// Something that happened to the sessions of one mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// The server refused a session that it had just given.
    Lost {
        /// The names of the key before and after, if the key changed at the same time.
        keys: Option<[KeyName; 2]>,
    },
    /// The server seals tickets with another key, and still accepts those of the key before.
    OtherKey {
        /// The names of the key before and after.
        keys: [KeyName; 2],
    },
}

/// Watches whether a server answers, and with which certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerWatch {
    is_down: bool,
    certificate: Option<[u8; 32]>,
}

impl ServerWatch {
    /// Takes the result of a handshake: the digest of the certificate, or `None` if the handshake was not finished.
    pub fn reach(&mut self, certificate: Option<[u8; 32]>) -> Option<ServerEvent> {
        let was_down = std::mem::replace(&mut self.is_down, certificate.is_none());
        let before = self.certificate;
        self.certificate = certificate.or(before);
        if self.is_down {
            return (!was_down).then_some(ServerEvent::Down);
        }
        if was_down {
            return Some(ServerEvent::Up);
        }
        (before.is_some() && before != self.certificate).then_some(ServerEvent::OtherCertificate)
    }
}

/// Watches the sessions of one mechanism at one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionWatch {
    /// The first bytes of the newest ticket.
    newest: Option<KeyName>,
    /// The time of the first ticket with these bytes.
    since: Time,
    /// True if two tickets in a row had the same first bytes. Such bytes are key names; random bytes never repeat.
    has_names: bool,
}

impl SessionWatch {
    /// Takes the answer to a session that the server gave just before: whether it resumed, or `None` if there was no
    /// answer. `ticket` is a new ticket of a full handshake after it.
    pub fn answer(
        &mut self,
        resumed: Option<bool>,
        ticket: Option<&[u8]>,
        now: Time,
    ) -> Option<SessionEvent> {
        let keys = ticket.and_then(|ticket| self.take_ticket(ticket, now));
        match (resumed, keys) {
            (Some(false), keys) => Some(SessionEvent::Lost { keys }),
            (Some(true), Some(keys)) => Some(SessionEvent::OtherKey { keys }),
            (Some(true) | None, None) => None,
            // Without an answer, the server may have kept the key before.
            (None, Some(_)) => None,
        }
    }

    /// Returns the names of the key before and after, if the ticket has another key.
    fn take_ticket(&mut self, ticket: &[u8], now: Time) -> Option<[KeyName; 2]> {
        let name = *ticket.first_chunk()?;
        let before = self.newest.replace(name);
        if before == Some(name) {
            self.has_names = true;
            return None;
        }
        self.since = now;
        before
            .filter(|_| self.has_names)
            .map(|before| [before, name])
    }

    /// For how long the server has sealed tickets with the same key. `None` if its tickets name no key.
    #[must_use]
    pub fn key_age(&self, now: Time) -> Option<Duration> {
        self.has_names.then(|| now.since(self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: KeyName = [1; 16];
    const NEW: KeyName = [2; 16];

    fn at(secs: u64) -> Time {
        Time::from_unix_millis(secs * 1000)
    }

    /// A watch that has seen two tickets of the old key, at 0 s and 30 s.
    fn watch() -> SessionWatch {
        let mut watch = SessionWatch::default();
        assert_eq!(watch.answer(None, Some(&OLD), at(0)), None);
        assert_eq!(watch.answer(Some(true), Some(&OLD), at(30)), None);
        watch
    }

    #[test]
    fn a_key_that_changes_while_sessions_live_is_no_loss() {
        let mut watch = watch();
        let event = watch.answer(Some(true), Some(&NEW), at(60));
        assert_eq!(event, Some(SessionEvent::OtherKey { keys: [OLD, NEW] }));
        assert_eq!(watch.answer(Some(true), Some(&NEW), at(90)), None);
    }

    #[test]
    fn a_loss_names_the_keys_if_they_changed_at_the_same_time() {
        let event = watch().answer(Some(false), Some(&NEW), at(60));
        let keys = Some([OLD, NEW]);
        assert_eq!(event, Some(SessionEvent::Lost { keys }));
        let event = watch().answer(Some(false), Some(&OLD), at(60));
        assert_eq!(event, Some(SessionEvent::Lost { keys: None }));
        let event = watch().answer(Some(false), None, at(60));
        assert_eq!(event, Some(SessionEvent::Lost { keys: None }));
    }

    #[test]
    fn random_first_bytes_are_no_key_names() {
        let mut watch = SessionWatch::default();
        for (secs, byte) in (0..5).zip([1, 2, 3, 1, 2]) {
            assert_eq!(watch.answer(Some(true), Some(&[byte; 40]), at(secs)), None);
            assert_eq!(watch.key_age(at(9)), None);
        }
        assert_eq!(watch.answer(Some(true), Some(&[9; 4]), at(5)), None);
    }

    #[test]
    fn the_age_of_a_key_counts_from_its_first_ticket() {
        let mut watch = watch();
        assert_eq!(watch.key_age(at(86_430)), Some(Duration::from_secs(86_430)));
        watch.answer(Some(true), Some(&NEW), at(100));
        assert_eq!(watch.key_age(at(120)), Some(Duration::from_secs(20)));
    }

    #[test]
    fn no_answer_is_no_loss() {
        let mut watch = watch();
        assert_eq!(watch.answer(None, None, at(60)), None);
        assert_eq!(watch.answer(None, Some(&NEW), at(90)), None);
        assert_eq!(watch.answer(Some(true), Some(&NEW), at(120)), None);
    }

    #[test]
    fn a_server_is_down_once_and_up_once() {
        let mut watch = ServerWatch::default();
        let [one, other] = [Some([1; 32]), Some([2; 32])];
        let events = [one, None, None, one, one, other, other, None, one]
            .map(|certificate| watch.reach(certificate));
        let expected = [
            None,
            Some(ServerEvent::Down),
            None,
            Some(ServerEvent::Up),
            None,
            Some(ServerEvent::OtherCertificate),
            None,
            Some(ServerEvent::Down),
            Some(ServerEvent::Up),
        ];
        assert_eq!(events, expected);
    }
}
