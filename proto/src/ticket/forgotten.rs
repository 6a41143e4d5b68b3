//! Forgetting on request: sessions whose full handshake was before a mark do not resume any more,
//! wherever their state is kept; sealed tickets, which nobody can collect, included.

use std::collections::BTreeMap;

use super::envelope::{Envelope, take};
use crate::Time;

/// Most marks that are kept beside the one for everything. One more makes the oldest a mark for everything: that
/// forgets more than was asked for, and never less; and what was asked for long ago has no session left to
/// reach, so that marks need no other end.
pub const MAX_MARKS: usize = 256;

/// Version of the encoding.
const FORMAT: u8 = 1;

/// Which sessions a mark is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// Every session of the farm.
    Everything,
    /// Those of the site with this number.
    Site(u64),
    /// Those whose full handshake was with the server of this number.
    Server(u32),
}

/// What is forgotten: for each extent the time before which a full handshake does not count.
///
/// Marks are only ever added, later ones replacing earlier ones, so that servers which hear of them in
/// another order come to the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    marks: BTreeMap<Extent, Time>,
}

impl Forgotten {
    /// Forgets what was established in that extent before that time.
    pub fn mark(&mut self, extent: Extent, not_before: Time) {
        let all = self.marks.get(&Extent::Everything);
        if all.is_some_and(|all| not_before <= *all) {
            return;
        }
        let known = self.marks.entry(extent).or_insert(not_before);
        *known = not_before.max(*known);
        if self.apart().count() > MAX_MARKS {
            let oldest = self.apart().min().unwrap_or_default();
            self.marks.insert(Extent::Everything, oldest);
        }
        if let Some(&all) = self.marks.get(&Extent::Everything) {
            self.marks
                .retain(|&extent, &mut time| extent == Extent::Everything || time > all);
        }
    }

    /// Forgets what `other` forgets too.
    pub fn merge(&mut self, other: &Self) {
        for (extent, not_before) in other.marks() {
            self.mark(extent, not_before);
        }
    }

    /// Whether it forgets all that `other` forgets.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let mut both = self.clone();
        both.merge(other);
        both == *self
    }

    /// Leaves out the marks from before that time: those that have no session left to reach.
    pub fn drop_before(&mut self, time: Time) {
        self.marks.retain(|_, not_before| *not_before >= time);
    }

    /// Whether a session is forgotten.
    #[must_use]
    pub fn reaches(&self, envelope: &Envelope<'_>) -> bool {
        let extents = [
            Extent::Everything,
            Extent::Site(envelope.binding.site),
            Extent::Server(envelope.server),
        ];
        extents
            .iter()
            .filter_map(|extent| self.marks.get(extent))
            .any(|not_before| envelope.established < *not_before)
    }

    /// Every mark.
    pub fn marks(&self) -> impl Iterator<Item = (Extent, Time)> + '_ {
        self.marks.iter().map(|(extent, time)| (*extent, *time))
    }

    /// The times of the marks that are not for everything.
    fn apart(&self) -> impl Iterator<Item = Time> + '_ {
        let apart = |(extent, _): &(Extent, Time)| *extent != Extent::Everything;
        self.marks().filter(apart).map(|(_, time)| time)
    }

    /// `version | count 2 | (kind | number 8 | not before 8)…`
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&(self.marks.len() as u16).to_be_bytes());
        for (extent, not_before) in self.marks() {
            let (kind, number) = match extent {
                Extent::Everything => (0, 0),
                Extent::Site(site) => (1, site),
                Extent::Server(server) => (2, server.into()),
            };
            out.push(kind);
            out.extend_from_slice(&number.to_be_bytes());
            out.extend_from_slice(&not_before.unix_millis().to_be_bytes());
        }
        out
    }

    /// Reads what [`Self::encode`] wrote, and nothing else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        if take::<1>(&mut rest)? != [FORMAT] {
            return None;
        }
        let count = u16::from_be_bytes(take(&mut rest)?);
        if usize::from(count) > MAX_MARKS + 1 {
            return None;
        }
        let mut forgotten = Self::default();
        for _ in 0..count {
            let [kind] = take(&mut rest)?;
            let number = u64::from_be_bytes(take(&mut rest)?);
            let extent = match kind {
                0 => Extent::Everything,
                1 => Extent::Site(number),
                2 => Extent::Server(u32::try_from(number).ok()?),
                _ => return None,
            };
            let not_before = Time::from_unix_millis(u64::from_be_bytes(take(&mut rest)?));
            forgotten.mark(extent, not_before);
        }
        rest.is_empty().then_some(forgotten)
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

    fn forgotten(marks: &[(Extent, u64)]) -> Forgotten {
        let mut forgotten = Forgotten::default();
        for (extent, not_before) in marks {
            forgotten.mark(*extent, at(*not_before));
        }
        forgotten
    }

    #[test]
    fn a_mark_reaches_what_was_established_before_it_in_its_extent_only() {
        let reached = |extent, session| forgotten(&[(extent, T)]).reaches(&session);
        assert!(reached(Extent::Everything, session(1, 2, T - 1)));
        assert!(!reached(Extent::Everything, session(1, 2, T)));
        assert!(reached(Extent::Site(1), session(1, 2, T - 1)));
        assert!(!reached(Extent::Site(2), session(1, 2, T - 1)));
        assert!(reached(Extent::Server(2), session(1, 2, T - 1)));
        assert!(!reached(Extent::Server(1), session(1, 2, T - 1)));
        assert!(!Forgotten::default().reaches(&session(1, 2, 0)));
    }

    #[test]
    fn the_latest_mark_of_an_extent_counts() {
        let marks = forgotten(&[(Extent::Site(1), T), (Extent::Site(1), T - 9)]);
        assert_eq!(marks, forgotten(&[(Extent::Site(1), T)]));
    }

    #[test]
    fn a_mark_for_everything_takes_the_place_of_earlier_ones() {
        let later = (Extent::Site(1), T + 1);
        let everything = (Extent::Everything, T);
        let marks = forgotten(&[(Extent::Server(2), T), later, everything]);
        assert_eq!(marks, forgotten(&[everything, later]));
        assert_eq!(marks.marks().count(), 2);
    }

    #[test]
    fn one_mark_too_many_forgets_more_and_never_less() {
        let sites = 1..=MAX_MARKS as u64;
        let marks: Vec<_> = sites.map(|n| (Extent::Site(n), T + n)).collect();
        let mut full = forgotten(&marks);
        assert_eq!(full.apart().count(), MAX_MARKS);
        full.mark(Extent::Server(7), at(T + 5000));
        assert!(full.apart().count() <= MAX_MARKS);
        // The oldest stood for site 1.
        assert!(full.reaches(&session(1, 0, T)));
        assert!(full.reaches(&session(9999, 0, T)));
        assert!(!full.reaches(&session(9999, 0, T + 1)));
        assert!(full.reaches(&session(9999, 7, T + 4999)));
        for n in 0..10 {
            full.mark(Extent::Server(100 + n), at(T + 6000));
            assert!(full.apart().count() <= MAX_MARKS);
        }
    }

    #[test]
    fn an_old_mark_too_many_takes_nothing_back() {
        let sites = 1..=MAX_MARKS as u64;
        let mut marks: Vec<_> = sites.map(|n| (Extent::Site(n), T + n)).collect();
        marks.push((Extent::Everything, T));
        let full = forgotten(&marks);
        let mut more = full.clone();
        more.mark(Extent::Server(7), at(T - 5000));
        assert_eq!(more, full);
        assert!(full.covers(&forgotten(&[(Extent::Server(7), T - 5000)])));
        assert!(!full.covers(&forgotten(&[(Extent::Server(7), T + 1)])));
    }

    #[test]
    fn marks_that_are_too_old_to_matter_are_left_out() {
        let mut marks = forgotten(&[(Extent::Everything, T - 1), (Extent::Site(1), T)]);
        marks.drop_before(at(T));
        assert_eq!(marks, forgotten(&[(Extent::Site(1), T)]));
    }

    #[test]
    fn every_prefix_and_every_longer_text_is_refused() {
        let encoded = forgotten(&[(Extent::Site(1), T), (Extent::Server(2), T)]).encode();
        for end in 0..encoded.len() {
            assert_eq!(Forgotten::decode(&encoded[..end]), None, "{end}");
        }
        let longer = [&encoded[..], &[0]].concat();
        assert_eq!(Forgotten::decode(&longer), None);
        assert_eq!(Forgotten::decode(&[2, 0, 0]), None);
        let too_many = [&[FORMAT, 0xff, 0xff][..], &[0; 17 * 300]].concat();
        assert_eq!(Forgotten::decode(&too_many), None);
    }

    fn extents() -> impl Strategy<Value = Extent> {
        prop_oneof![
            Just(Extent::Everything),
            any::<u64>().prop_map(Extent::Site),
            any::<u32>().prop_map(Extent::Server),
        ]
    }

    fn sets() -> impl Strategy<Value = Forgotten> {
        let marks = proptest::collection::vec((extents(), any::<u64>()), 0..20);
        marks.prop_map(|marks| forgotten(&marks))
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(marks in sets()) {
            prop_assert_eq!(Forgotten::decode(&marks.encode()), Some(marks));
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
            let _ = Forgotten::decode(&bytes);
        }
    }
}
