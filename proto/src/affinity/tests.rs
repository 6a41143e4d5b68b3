use std::time::Duration;

use proptest::prelude::*;

use super::*;

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const LIFETIME: u64 = 1000;

const fn at(millis: u64) -> Time {
    Time::from_unix_millis(millis)
}

fn affinity(max_entries: usize) -> Affinity {
    let lifetime = Duration::from_millis(LIFETIME);
    Affinity::new(
        Limits {
            max_entries,
            lifetime,
        },
        1,
    )
}

/// The server of a key.
fn server(affinity: &Affinity, key: AffinityKey, now: Time) -> Option<u32> {
    Some(affinity.lookup(key, now)?.server)
}

fn id(n: u32) -> AffinityKey {
    AffinityKey::session_id(&n.to_be_bytes()).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_learned_session_leads_to_its_server_until_its_lifetime_is_over() {
    let mut affinity = affinity(10);
    assert_eq!(affinity.learn(id(1), 7, A, at(0), at(0)), LearnResult::New);
    assert_eq!(
        affinity.learn(id(1), 7, A, at(500), at(500)),
        LearnResult::Known
    );
    assert_eq!(server(&affinity, id(1), at(999)), Some(7));
    assert_eq!(server(&affinity, id(1), at(1000)), None);
    assert_eq!(server(&affinity, id(2), at(0)), None);
}

#[test]
fn a_use_is_recorded_and_prolongs_no_entry() {
    let mut affinity = affinity(10);
    affinity.learn(id(1), 7, A, at(3), at(10));
    affinity.used(id(1), at(400));
    affinity.used(id(1), at(300));
    affinity.used(id(2), at(400));
    let recalled = LearnedSession {
        server: 7,
        source: Source::of(A),
        established: at(3),
        used: at(400),
    };
    assert_eq!(affinity.lookup(id(1), at(1009)), Some(recalled));
    assert_eq!(affinity.lookup(id(1), at(1010)), None);
}

#[test]
fn an_export_is_imported_into_another_table() {
    let mut first = affinity(10);
    for n in 0..4_u32 {
        let net = address(&format!("192.0.{n}.1"));
        first.learn(id(n), n, net, at(u64::from(n)), at(u64::from(n) * 100));
    }
    first.used(id(3), at(800));
    let bytes = first.export();
    let mut second = affinity(2);
    // Session 0 is too old, and session 1 was displaced.
    assert_eq!(second.import(&bytes, at(1050)), Some(2));
    let found = [0, 1, 2, 3].map(|n| second.lookup(id(n), at(1050)));
    assert_eq!(
        found,
        [
            None,
            None,
            first.lookup(id(2), at(1050)),
            first.lookup(id(3), at(1050))
        ]
    );
    assert_eq!(second.sources.values().sum::<u32>(), 2);
    assert_eq!(second.import(&bytes, at(1050)), Some(2));
    assert_eq!(second.import(&[], at(1050)), Some(2));
}

#[test]
fn bytes_that_are_no_export_are_refused_as_a_whole() {
    let mut first = affinity(10);
    first.learn(id(1), 7, A, at(0), at(0));
    first.learn(id(2), 7, A, at(0), at(0));
    let bytes = first.export();
    let one = bytes.len() / 2;
    for end in (0..bytes.len()).filter(|end| end % one != 0) {
        let mut second = affinity(10);
        assert_eq!(second.import(&bytes[..end], at(1)), None, "{end}");
        assert_eq!(second.entries(), 0);
    }
    let mut longer = bytes;
    longer[8] = 200;
    assert_eq!(affinity(10).import(&longer, at(1)), None);
}

#[test]
fn no_server_overwrites_the_entry_of_another() {
    let mut affinity = affinity(10);
    affinity.learn(id(1), 7, A, at(0), at(0));
    assert_eq!(
        affinity.learn(id(1), 8, A, at(1), at(1)),
        LearnResult::Conflict(7)
    );
    assert_eq!(server(&affinity, id(1), at(1)), Some(7));
    assert_eq!(
        affinity.learn(id(1), 8, A, at(1000), at(1000)),
        LearnResult::New
    );
    assert_eq!(server(&affinity, id(1), at(1000)), Some(8));
}

#[test]
fn kinds_of_keys_do_not_match_each_other() {
    let hash = digest::digest(&digest::SHA256, b"ticket");
    let as_id = AffinityKey::session_id(&hash.as_ref()[..TICKET_HASH]);
    assert_ne!(AffinityKey::ticket(b"ticket"), as_id);
    assert_ne!(
        AffinityKey::ticket(b"ticket"),
        AffinityKey::ticket(b"ticket ")
    );
    assert_ne!(
        AffinityKey::session_id(&[0]),
        AffinityKey::session_id(&[0, 0])
    );
    assert_eq!(AffinityKey::session_id(&[]), None);
    assert_eq!(AffinityKey::session_id(&[0; 33]), None);
    assert!(AffinityKey::session_id(&[0; 32]).is_some());
    assert_eq!(AffinityKey::ticket(&[]), None);
}

#[test]
fn the_oldest_entry_leaves_first() {
    let mut affinity = affinity(2);
    for n in 0..3 {
        affinity.learn(id(n), n, A, at(0), at(0));
    }
    assert_eq!(
        [0, 1, 2].map(|n| server(&affinity, id(n), at(0))),
        [None, Some(1), Some(2)]
    );
}

#[test]
fn a_server_that_lost_its_state_is_forgotten_and_the_others_are_not() {
    let mut affinity = affinity(1000);
    for n in 0..240 {
        affinity.learn(id(n), n % 3, A, at(0), at(0));
    }
    assert_eq!(affinity.forget_servers(|server| server == 1), 80);
    assert_eq!(affinity.entries(), 160);
    assert_eq!(server(&affinity, id(1), at(0)), None);
    assert_eq!(server(&affinity, id(2), at(0)), Some(2));
}

#[test]
fn a_source_above_its_quota_displaces_its_own_entries() {
    let mut affinity = affinity(10_000);
    let other = address("192.0.3.1");
    affinity.learn(id(9999), 7, other, at(0), at(0));
    for n in 0..1000 {
        let near = address(&format!("192.0.2.{}", n % 256));
        assert_eq!(
            affinity.learn(id(n), 7, near, at(0), at(0)),
            LearnResult::New
        );
    }
    let mapped = address("::ffff:192.0.2.77");
    for n in 5000..7000 {
        let learned = affinity.learn(id(n), 7, mapped, at(1), at(1));
        assert_eq!(learned, LearnResult::Displacing);
    }
    let known = |n: &u32| affinity.lookup(id(*n), at(1)).is_some();
    assert!(!(0..1000).chain(5000..6000).any(|n| known(&n)));
    assert!((6000..7000).all(|n| known(&n)));
    assert!(known(&9999), "the table has room: nobody else's leaves");
    assert_eq!(affinity.entries(), 1001);
    let again = affinity.learn(id(6000), 7, A, at(1), at(1));
    assert_eq!(again, LearnResult::Known);
}

#[test]
fn a_source_whose_entries_expired_displaces_none() {
    let mut affinity = affinity(300);
    for n in 0..256 {
        affinity.learn(id(n), 7, A, at(0), at(0));
    }
    let learned = affinity.learn(id(256), 7, A, at(LIFETIME), at(LIFETIME));
    assert_eq!(learned, LearnResult::New);
}

#[test]
fn a_small_table_gives_every_source_the_least_quota() {
    let mut affinity = affinity(300);
    let learned: Vec<_> = (0..257)
        .map(|n| affinity.learn(id(n), 7, A, at(0), at(0)))
        .collect();
    let displacing = |&learned: &LearnResult| learned == LearnResult::Displacing;
    assert_eq!(learned.iter().position(displacing), Some(MIN_QUOTA));
}

#[test]
fn an_import_keeps_the_quotas() {
    let mut first = affinity(10_000);
    for n in 0..1000 {
        first.learn(id(n), 7, A, at(0), at(0));
    }
    first.learn(id(5000), 7, address("192.0.3.1"), at(0), at(0));
    let mut second = affinity(5000);
    assert_eq!(second.import(&first.export(), at(1)), Some(501));
    let known = |n| second.lookup(id(n), at(1)).is_some();
    assert_eq!([499, 500, 999, 5000].map(known), [false, true, true, true]);
}

#[test]
fn sources_are_told_apart_by_prefix() {
    let of = |text| Source::of(address(text));
    assert_eq!(of("2001:db8:0:100::1"), of("2001:db8:0:1ff:ffff::"));
    assert_ne!(of("2001:db8:0:100::1"), of("2001:db8:0:200::1"));
    assert_ne!(of("::"), of("0.0.0.0"));
    assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.255"));
}

#[test]
fn a_disabled_table_learns_nothing() {
    let mut affinity = affinity(0);
    assert_eq!(
        affinity.learn(id(1), 7, A, at(0), at(0)),
        LearnResult::Disabled
    );
    assert_eq!(server(&affinity, id(1), at(0)), None);
    assert!(affinity.sources.is_empty());
}

proptest! {
    /// The counts always match the entries.
    #[test]
    fn counts_of_sources_stay_right(
        max_entries in 0..40_usize,
        steps in prop::collection::vec((0..60_u32, 0..4_u32, 0..5_u8, -20..200_i64), 0..300),
    ) {
        let mut affinity = affinity(max_entries);
        let mut now = at(10_000);
        for (n, server, net, by) in steps {
            now = at(now.unix_millis().saturating_add_signed(by));
            match n {
                0 => { affinity.forget_servers(|it| it == server); }
                _ => { affinity.learn(id(n), server, address(&format!("10.0.{net}.1")), now, now); }
            }
            let mut counts = BTreeMap::new();
            let mut arrivals = BTreeMap::new();
            for entry in affinity.table.iter() {
                let source = LearnedSession::of(&entry).source;
                *counts.entry(source).or_default() += 1;
                arrivals.insert((source, entry.sequence), affinity.table.hashed(entry.key).hash);
            }
            prop_assert_eq!(&counts, &affinity.sources);
            prop_assert_eq!(&arrivals, &affinity.arrivals);
            prop_assert!(affinity.table.len() <= max_entries);
        }
    }

    /// In a table with room, each source keeps its newest entries, up to its quota.
    #[test]
    fn each_source_keeps_its_newest(
        steps in prop::collection::vec((0..3_u8, 1..200_u32), 0..12),
    ) {
        let mut affinity = affinity(2600);
        let mut learned: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
        let mut next = 0;
        for (net, count) in steps {
            for n in next..next + count {
                affinity.learn(id(n), 7, address(&format!("10.0.{net}.1")), at(0), at(0));
                learned.entry(net).or_default().push(n);
            }
            next += count;
        }
        for all in learned.values() {
            let newest = all.len().saturating_sub(260);
            for (place, &n) in all.iter().enumerate() {
                prop_assert_eq!(affinity.lookup(id(n), at(0)).is_some(), place >= newest);
            }
        }
    }
}
