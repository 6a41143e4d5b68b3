//! Which servers a hello leads to, rule by rule, and what is remembered for the next one.

use std::iter;
use std::net::IpAddr;
use std::sync::PoisonError;

use sessile_proto::Time;
use sessile_proto::affinity::AffinityKey;
use sessile_proto::hello::ClientHello;
use sessile_proto::route::RoutedBy;
use sessile_proto::ticket::Class;
use sessile_proto::watch::Learned;

use super::Shared;

/// A server, by its place, and the rule that leads to it.
pub(super) type Choice = (RoutedBy, usize);

impl Shared {
    /// The servers to try for a hello, in order: those that can resume what it offers, then as
    /// policy has them. What is not asked for is not looked up, and policy gives nobody a turn.
    /// A server may stand there twice.
    pub(super) fn choices<'a>(
        &'a self,
        hello: &'a ClientHello<'_>,
        source: IpAddr,
        now: Time,
    ) -> impl Iterator<Item = Choice> + 'a {
        let label = iter::once_with(move || self.labelled(hello, now)).flatten();
        let learned = iter::once_with(move || self.learned(hello, now)).flatten();
        let policy = iter::once_with(move || self.servers.place(source, now)).flatten();
        let policy = policy.map(|at| (RoutedBy::Policy, at));
        label.chain(learned).chain(policy)
    }

    /// By label. A ticket can be resumed elsewhere too, and its owner can come with it as often as
    /// he likes: a server that has more than its share is spared. A stored session is there alone.
    fn labelled(&self, hello: &ClientHello<'_>, now: Time) -> Option<Choice> {
        let label = self.labels.as_ref()?.read(hello, now)?;
        let at = self.servers.with_number(label.server)?;
        let usable = match label.class {
            Class::Stored => !self.servers[at].has_failed(now),
            Class::Sealed => self.servers.has_room(at, now),
        };
        usable.then_some((RoutedBy::Label, at))
    }

    /// By what was learned. A TLS 1.3 client's random session ID cannot match: none is ever learned.
    fn learned(&self, hello: &ClientHello<'_>, now: Time) -> Option<Choice> {
        let ticket = AffinityKey::ticket(hello.session_ticket.unwrap_or_default());
        let id = AffinityKey::session_id(hello.session_id);
        let offers = [(RoutedBy::Ticket, ticket), (RoutedBy::SessionId, id)];
        let affinity = self.affinity.lock().unwrap_or_else(PoisonError::into_inner);
        let (by, at) = offers.into_iter().find_map(|(by, key)| {
            let server = affinity.lookup(key?, now)?;
            Some((by, self.servers.position(server)?))
        })?;
        // A server that failed just now is not worth the wait while others are there.
        (!self.servers[at].has_failed(now)).then_some((by, at))
    }

    /// Remembers which server made a session.
    pub(super) fn learn(&self, learned: &[Learned], server: usize, source: IpAddr, now: Time) {
        let id = self.servers[server].id();
        let mut affinity = self.affinity.lock().unwrap_or_else(PoisonError::into_inner);
        for learned in learned {
            let key = match learned {
                Learned::SessionId(id) => AffinityKey::session_id(id),
                Learned::Ticket(ticket) => AffinityKey::ticket(ticket),
            };
            if let Some(key) = key {
                let lesson = affinity.learn(key, id, source, now);
                tracing::trace!(?lesson, server = self.servers[server].name(), "learned");
            }
        }
    }
}
