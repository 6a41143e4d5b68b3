//! Forgetting on request: a rule refuses the sessions whose full handshake was before a time.
//!
//! Rules also reach sealed tickets, which only clients hold.

use std::collections::BTreeMap;

use super::envelope::{Envelope, take};
use crate::Time;

/// Most rules, without the rule for everything.
///
/// One more rule turns the oldest rule into a rule for everything. Then more sessions are forgotten than was
/// asked for, and never fewer. An old rule covers few sessions that are still alive.
pub const MAX_FORGET_RULES: usize = 256;

/// Version of the encoding.
const FORMAT: u8 = 1;

/// The sessions that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForgetScope {
    /// Every session of the farm.
    Everything,
    /// The sessions of the site with this number.
    Site(u64),
    /// The sessions whose full handshake was with the server of this number.
    Server(u32),
}

/// For each scope, a time. Sessions whose full handshake was before this time are forgotten.
///
/// A later time replaces an earlier time. So servers that learn the same rules in different orders agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForgetRules {
    rules: BTreeMap<ForgetScope, Time>,
}

impl ForgetRules {
    /// Adds a rule: sessions in `scope` that were established before `not_before` are forgotten.
    pub fn add(&mut self, scope: ForgetScope, not_before: Time) {
        let all = self.rules.get(&ForgetScope::Everything);
        if all.is_some_and(|all| not_before <= *all) {
            return;
        }
        let known = self.rules.entry(scope).or_insert(not_before);
        *known = not_before.max(*known);
        if self.narrow_rules().count() > MAX_FORGET_RULES {
            let oldest = self.narrow_rules().min().unwrap_or_default();
            self.rules.insert(ForgetScope::Everything, oldest);
        }
        if let Some(&all) = self.rules.get(&ForgetScope::Everything) {
            self.rules
                .retain(|&scope, &mut time| scope == ForgetScope::Everything || time > all);
        }
    }

    /// Adds the rules of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (scope, not_before) in other.iter() {
            self.add(scope, not_before);
        }
    }

    /// True if every session that `other` forgets is forgotten here too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let mut merged = self.clone();
        merged.merge(other);
        merged == *self
    }

    /// Drops the rules from before `time`, because no session that they cover is alive.
    pub fn drop_before(&mut self, time: Time) {
        self.rules.retain(|_, not_before| *not_before >= time);
    }

    /// True if the session is forgotten.
    #[must_use]
    pub fn reaches(&self, envelope: &Envelope<'_>) -> bool {
        [
            ForgetScope::Everything,
            ForgetScope::Site(envelope.binding.site),
            ForgetScope::Server(envelope.server),
        ]
        .iter()
        .filter_map(|scope| self.rules.get(scope))
        .any(|not_before| envelope.established < *not_before)
    }

    /// Every rule.
    pub fn iter(&self) -> impl Iterator<Item = (ForgetScope, Time)> + '_ {
        self.rules.iter().map(|(scope, time)| (*scope, *time))
    }

    /// The times of the rules that are not for everything.
    fn narrow_rules(&self) -> impl Iterator<Item = Time> + '_ {
        self.iter()
            .filter(|(scope, _)| *scope != ForgetScope::Everything)
            .map(|(_, time)| time)
    }

    /// `version | count 2 | (kind | number 8 | not before 8)…`
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&(self.rules.len() as u16).to_be_bytes());
        for (scope, not_before) in self.iter() {
            let (kind, number) = match scope {
                ForgetScope::Everything => (0, 0),
                ForgetScope::Site(site) => (1, site),
                ForgetScope::Server(server) => (2, server.into()),
            };
            out.push(kind);
            out.extend_from_slice(&number.to_be_bytes());
            out.extend_from_slice(&not_before.unix_millis().to_be_bytes());
        }
        out
    }

    /// Reads the encoding of [`Self::encode`]. `None` if the bytes are not such an encoding.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        if take::<1>(&mut rest)? != [FORMAT] {
            return None;
        }
        let count = u16::from_be_bytes(take(&mut rest)?);
        if usize::from(count) > MAX_FORGET_RULES + 1 {
            return None;
        }
        let mut rules = Self::default();
        for _ in 0..count {
            let [kind] = take(&mut rest)?;
            let number = u64::from_be_bytes(take(&mut rest)?);
            let scope = match kind {
                0 => ForgetScope::Everything,
                1 => ForgetScope::Site(number),
                2 => ForgetScope::Server(u32::try_from(number).ok()?),
                _ => return None,
            };
            let not_before = Time::from_unix_millis(u64::from_be_bytes(take(&mut rest)?));
            rules.add(scope, not_before);
        }
        rest.is_empty().then_some(rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket::{Binding, ClientAuth};
    use proptest::prelude::*;

    const T: u64 = 1_800_000_000_000;

    fn at(millis: u64) -> Time {
        Time::from_unix_millis(millis)
    }

    fn session(site: u64, server: u32, established: u64) -> Envelope<'static> {
        Envelope {
            value_format: 23,
            binding: Binding {
                site,
                server_name: "a.example",
                client_auth: ClientAuth::None,
                version: 0x0304,
                suite: 0x1301,
                extended_master_secret: true,
            },
            server,
            established: at(established),
            expires: at(established + 1000),
            value: b"",
        }
    }

    fn forgotten(rules: &[(ForgetScope, u64)]) -> ForgetRules {
        let mut forgotten = ForgetRules::default();
        for (scope, not_before) in rules {
            forgotten.add(*scope, at(*not_before));
        }
        forgotten
    }

    #[test]
    fn a_rule_reaches_earlier_sessions_in_its_scope_only() {
        let reached = |scope, session| forgotten(&[(scope, T)]).reaches(&session);
        assert!(reached(ForgetScope::Everything, session(1, 2, T - 1)));
        assert!(!reached(ForgetScope::Everything, session(1, 2, T)));
        assert!(reached(ForgetScope::Site(1), session(1, 2, T - 1)));
        assert!(!reached(ForgetScope::Site(2), session(1, 2, T - 1)));
        assert!(reached(ForgetScope::Server(2), session(1, 2, T - 1)));
        assert!(!reached(ForgetScope::Server(1), session(1, 2, T - 1)));
        assert!(!ForgetRules::default().reaches(&session(1, 2, 0)));
    }

    #[test]
    fn the_latest_rule_of_a_scope_counts() {
        let rules = forgotten(&[(ForgetScope::Site(1), T), (ForgetScope::Site(1), T - 9)]);
        assert_eq!(rules, forgotten(&[(ForgetScope::Site(1), T)]));
    }

    #[test]
    fn a_rule_for_everything_replaces_earlier_rules() {
        let later = (ForgetScope::Site(1), T + 1);
        let everything = (ForgetScope::Everything, T);
        let rules = forgotten(&[(ForgetScope::Server(2), T), later, everything]);
        assert_eq!(rules, forgotten(&[everything, later]));
        assert_eq!(rules.iter().count(), 2);
    }

    #[test]
    fn one_rule_too_many_forgets_more_and_never_less() {
        let sites = 1..=MAX_FORGET_RULES as u64;
        let rules: Vec<_> = sites.map(|n| (ForgetScope::Site(n), T + n)).collect();
        let mut full = forgotten(&rules);
        assert_eq!(full.narrow_rules().count(), MAX_FORGET_RULES);
        full.add(ForgetScope::Server(7), at(T + 5000));
        assert!(full.narrow_rules().count() <= MAX_FORGET_RULES);
        // The oldest rule was for site 1.
        assert!(full.reaches(&session(1, 0, T)));
        assert!(full.reaches(&session(9999, 0, T)));
        assert!(!full.reaches(&session(9999, 0, T + 1)));
        assert!(full.reaches(&session(9999, 7, T + 4999)));
        for n in 0..10 {
            full.add(ForgetScope::Server(100 + n), at(T + 6000));
            assert!(full.narrow_rules().count() <= MAX_FORGET_RULES);
        }
    }

    #[test]
    fn an_old_rule_too_many_changes_nothing() {
        let sites = 1..=MAX_FORGET_RULES as u64;
        let mut rules: Vec<_> = sites.map(|n| (ForgetScope::Site(n), T + n)).collect();
        rules.push((ForgetScope::Everything, T));
        let full = forgotten(&rules);
        let mut more = full.clone();
        more.add(ForgetScope::Server(7), at(T - 5000));
        assert_eq!(more, full);
        assert!(full.covers(&forgotten(&[(ForgetScope::Server(7), T - 5000)])));
        assert!(!full.covers(&forgotten(&[(ForgetScope::Server(7), T + 1)])));
    }

    #[test]
    fn rules_that_are_too_old_to_matter_are_dropped() {
        let mut rules = forgotten(&[(ForgetScope::Everything, T - 1), (ForgetScope::Site(1), T)]);
        rules.drop_before(at(T));
        assert_eq!(rules, forgotten(&[(ForgetScope::Site(1), T)]));
    }

    #[test]
    fn every_prefix_and_every_longer_text_is_refused() {
        let encoded = forgotten(&[(ForgetScope::Site(1), T), (ForgetScope::Server(2), T)]).encode();
        for end in 0..encoded.len() {
            assert_eq!(ForgetRules::decode(&encoded[..end]), None, "{end}");
        }
        let longer = [&encoded[..], &[0]].concat();
        assert_eq!(ForgetRules::decode(&longer), None);
        assert_eq!(ForgetRules::decode(&[2, 0, 0]), None);
        let too_many = [&[FORMAT, 0xff, 0xff][..], &[0; 17 * 300]].concat();
        assert_eq!(ForgetRules::decode(&too_many), None);
    }

    fn scopes() -> impl Strategy<Value = ForgetScope> {
        prop_oneof![
            Just(ForgetScope::Everything),
            any::<u64>().prop_map(ForgetScope::Site),
            any::<u32>().prop_map(ForgetScope::Server),
        ]
    }

    fn sets() -> impl Strategy<Value = ForgetRules> {
        let rules = proptest::collection::vec((scopes(), any::<u64>()), 0..20);
        rules.prop_map(|rules| forgotten(&rules))
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(rules in sets()) {
            prop_assert_eq!(ForgetRules::decode(&rules.encode()), Some(rules));
        }

        #[test]
        fn the_order_of_merging_does_not_matter(a in sets(), b in sets()) {
            let (mut ab, mut ba) = (a.clone(), b.clone());
            ab.merge(&b);
            ba.merge(&a);
            prop_assert_eq!(&ab, &ba);
            ab.merge(&a);
            prop_assert_eq!(ab, ba);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = ForgetRules::decode(&bytes);
        }
    }
}
