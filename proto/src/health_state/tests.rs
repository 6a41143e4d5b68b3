//! The health states one by one, and arbitrary sequences of checks, cut connections and times.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

/// A moment, counted from the same start in all tests of the process.
fn at(seconds: u64) -> Instant {
    #[allow(
        clippy::disallowed_methods,
        reason = "an Instant can be made in no other way"
    )]
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    *START + Duration::from_secs(seconds)
}

fn source(n: u8) -> IpAddr {
    IpAddr::from([10, 0, n, 1])
}

#[test]
fn two_failed_checks_take_a_server_down_and_two_passed_checks_bring_it_back() {
    let mut health = HealthState::default();
    let mut check = |passed, second| health.record_check(passed, at(second));
    let nothing = CheckEffect::default();
    let in_doubt = CheckEffect {
        in_doubt: true,
        ..nothing
    };
    let changed = |change| CheckEffect {
        change: Some(change),
        ..nothing
    };
    assert_eq!(check(false, 1), in_doubt);
    assert_eq!(check(true, 2), nothing);
    assert_eq!(check(false, 3), in_doubt);
    assert_eq!(check(false, 4), changed(HealthChange::WentDown));
    assert_eq!(check(true, 5), in_doubt);
    assert_eq!(check(false, 6), nothing);
    assert_eq!(check(true, 7), in_doubt);
    assert_eq!(check(true, 8), changed(HealthChange::CameUp));
    assert_eq!(health.availability(at(8)), Availability::Up);
}

#[test]
fn a_server_that_awaits_its_first_check_is_down_until_the_check_decides() {
    for (passed, change, availability) in [
        (true, HealthChange::CameUp, Availability::Up),
        (false, HealthChange::WentDown, Availability::Down),
    ] {
        let mut health = HealthState::awaiting_check();
        assert_eq!(health.availability(at(0)), Availability::Down);
        assert_eq!(health.rank(false, at(0)), PlacementRank::Down);
        let effect = health.record_check(passed, at(1));
        assert_eq!(effect.change, Some(change));
        assert_eq!(health.availability(at(1)), availability);
        assert_eq!(health.is_starting(Duration::from_secs(9), at(2)), passed);
        // From now on, one check changes nothing.
        assert!(health.record_check(!passed, at(2)).in_doubt);
    }
    let mut unchecked = HealthState::awaiting_check();
    unchecked.forget_checks();
    assert_eq!(unchecked.availability(at(0)), Availability::Up);
}

#[test]
fn each_ejection_lasts_longer_until_the_server_answers() {
    let mut health = HealthState::default();
    let mut lengths = Vec::new();
    let mut now = at(0);
    for _ in 0..6 {
        let length = health.record_failure(now).expect("the server was up");
        assert_eq!(health.availability(now), Availability::Ejected);
        // A second failure during the ejection changes nothing.
        assert_eq!(health.record_failure(now), None);
        lengths.push(length.as_secs());
        now += length;
        assert_eq!(health.availability(now), Availability::Up);
    }
    assert_eq!(lengths, [5, 10, 20, 40, 60, 60]);
    assert!(health.record_answer(now));
    assert_eq!(health.record_failure(now), Some(FIRST_EJECTION));
    assert!(health.record_check(true, now).ended_ejection);
    assert_eq!(health.availability(now), Availability::Up);
}

#[test]
fn one_source_cannot_eject_a_server() {
    let mut health = HealthState::default();
    for _ in 0..100 {
        assert_eq!(health.record_cut(source(1), at(0)), None);
    }
    assert_eq!(health.record_cut(source(2), at(0)), None);
    health.record_answer(at(0));
    assert_eq!(health.record_cut(source(3), at(0)), None);
    assert_eq!(health.record_cut(source(1), at(0)), None);
    assert_eq!(health.record_cut(source(2), at(0)), Some(FIRST_EJECTION));
}

#[test]
fn no_number_of_sources_ejects_a_server_that_is_checked() {
    let mut health = HealthState::default();
    health.record_check(true, at(0));
    for n in 0..100 {
        assert_eq!(health.record_cut(source(n), at(0)), None);
    }
    health.forget_checks();
    let ejected = [1, 2, 3].map(|n| health.record_cut(source(n), at(0)).is_some());
    assert_eq!(ejected, [false, false, true]);
}

#[test]
fn a_server_that_came_up_gets_its_share_step_by_step() {
    let slow_start = Duration::from_secs(100);
    let mut health = HealthState::default();
    assert_eq!(health.share_percent(slow_start, at(0)), 100);
    health.record_failure(at(0));
    health.record_answer(at(10));
    let shares = [10, 15, 60, 109, 110].map(|now| health.share_percent(slow_start, at(now)));
    assert_eq!(shares, [10, 10, 50, 99, 100]);
    assert_eq!(health.share_percent(Duration::ZERO, at(10)), 100);
    assert!(HealthState::added_at(at(0)).is_starting(slow_start, at(99)));
}

#[test]
fn users_see_a_drain_first_and_a_slow_start_last() {
    let slow_start = Duration::from_secs(100);
    let mut health = HealthState::added_at(at(0));
    let state = |health: &HealthState, drain| health.server_state(drain, slow_start, at(1));
    assert_eq!(state(&health, false), ServerState::SlowStart);
    health.record_failure(at(1));
    assert_eq!(state(&health, false), ServerState::Ejected);
    health.record_check(false, at(1));
    health.record_check(false, at(1));
    assert_eq!(state(&health, false), ServerState::Down);
    assert_eq!(state(&health, true), ServerState::Draining);
    assert_eq!(health.rank(true, at(1)), PlacementRank::Draining);
    let up = HealthState::default();
    assert_eq!(state(&up, false), ServerState::Up);
}

/// One event in the life of a server.
#[derive(Clone, Debug)]
enum Event {
    Check(bool),
    ForgetChecks,
    Failure,
    Cut(u8),
    Answer,
    Wait(Duration),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<bool>().prop_map(Event::Check),
        Just(Event::ForgetChecks),
        Just(Event::Failure),
        (0..5_u8).prop_map(Event::Cut),
        Just(Event::Answer),
        (0..100_000_u64).prop_map(|millis| Event::Wait(Duration::from_millis(millis))),
    ]
}

/// The rules of [`HealthState`] in a different form: each rule looks at the whole history.
#[derive(Default)]
struct History {
    /// The results of all checks since the last `ForgetChecks`.
    checks: Vec<bool>,
    /// The sources of the cut connections since the last answer or ejection.
    cut_sources: Vec<u8>,
    /// True if the server was ejected and has not answered since then.
    has_ejection: bool,
}

impl History {
    /// True if the most recent pair of equal results in a row was a pair of failures.
    fn is_down(&self) -> bool {
        let pairs = self.checks.windows(2).rev();
        let decided = pairs.filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        decided.take(1).any(|passed| !passed)
    }

    fn has_enough_cut_sources(&self) -> bool {
        let mut sources = self.cut_sources.clone();
        sources.sort_unstable();
        sources.dedup();
        sources.len() >= MIN_CUT_SOURCES
    }
}

proptest! {
    #[test]
    fn health_follows_its_rules_in_every_sequence(
        events in prop::collection::vec(event(), 0..60),
        slow_start in (0..100_u64).prop_map(Duration::from_secs),
    ) {
        let mut health = HealthState::default();
        let mut history = History::default();
        let mut now = at(0);
        for event in events {
            let before = health.availability(now);
            let was_down = history.is_down();
            let mut ejected = None;
            match event {
                Event::Check(passed) => {
                    history.checks.push(passed);
                    let effect = health.record_check(passed, now);
                    let ended_ejection = passed && history.has_ejection;
                    prop_assert_eq!(effect.ended_ejection, ended_ejection);
                    if ended_ejection {
                        history.has_ejection = false;
                        history.cut_sources.clear();
                    }
                    let is_down = history.is_down();
                    let change = match (was_down, is_down) {
                        (false, true) => Some(HealthChange::WentDown),
                        (true, false) => Some(HealthChange::CameUp),
                        _ => None,
                    };
                    prop_assert_eq!(effect.change, change);
                    prop_assert_eq!(effect.in_doubt, passed == is_down);
                }
                Event::ForgetChecks => {
                    history.checks.clear();
                    health.forget_checks();
                }
                Event::Failure => ejected = Some(health.record_failure(now)),
                Event::Cut(n) => {
                    history.cut_sources.push(n);
                    let length = health.record_cut(source(n), now);
                    if !history.checks.is_empty() {
                        history.cut_sources.pop();
                        prop_assert_eq!(length, None);
                    } else if history.has_enough_cut_sources() {
                        history.cut_sources.clear();
                        ejected = Some(length);
                    } else {
                        prop_assert_eq!(length, None);
                    }
                }
                Event::Answer => {
                    history.cut_sources.clear();
                    let ended_ejection = std::mem::take(&mut history.has_ejection);
                    prop_assert_eq!(health.record_answer(now), ended_ejection);
                    prop_assert_ne!(health.availability(now), Availability::Ejected);
                }
                Event::Wait(duration) => now += duration,
            }
            prop_assert_eq!(health.availability(now) == Availability::Down, history.is_down());
            if let Some(length) = ejected {
                history.has_ejection = true;
                prop_assert_eq!(length.is_some(), before == Availability::Up);
                prop_assert_ne!(health.availability(now), Availability::Up);
                let allowed = FIRST_EJECTION..=MAX_EJECTION;
                prop_assert!(length.is_none_or(|length| allowed.contains(&length)));
            }
            prop_assert_ne!(health.availability(now + MAX_EJECTION), Availability::Ejected);
            let share = health.share_percent(slow_start, now);
            prop_assert!((FIRST_SHARE..=100).contains(&share));
            let later = health.share_percent(slow_start, now + Duration::from_secs(1));
            prop_assert!(share <= later);
            prop_assert_eq!(health.share_percent(slow_start, now + slow_start), 100);
        }
    }
}
