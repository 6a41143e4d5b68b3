use std::time::Duration;

use super::*;
use crate::keys::MAX_CATCH_UP;

const HOUR: u64 = 60 * 60;
/// Some day at noon.
pub(in crate::keys) const NOON: u64 = 20_000 * 24 * HOUR + 12 * HOUR;

pub(in crate::keys) fn at(secs: u64) -> Time {
    Time::from_unix_millis(secs * 1000)
}

pub(in crate::keys) fn secrets(seed: u8) -> [Secret; 2] {
    [seed, seed ^ 0x80].map(|seed| {
        let bytes: Vec<u8> = (0..32).map(|i: u8| i.wrapping_mul(7) ^ seed).collect();
        Secret::new(&bytes).unwrap()
    })
}

pub(in crate::keys) fn key() -> FarmKey {
    let terms = [1, 10].map(|hours| Duration::from_secs(hours * HOUR));
    FarmKey::new("test".into(), terms[0], terms[1], secrets(1), at(NOON)).unwrap()
}

fn statuses(key: &FarmKey, now: u64) -> Vec<(u8, GenerationStatus)> {
    let generations = key.generations.iter();
    generations
        .map(|generation| (generation.number, key.status(generation, at(now))))
        .collect()
}

#[test]
fn a_generation_waits_seals_goes_out_and_ends() {
    let mut key = key();
    assert_eq!(key.add_generation(secrets(2), None, at(NOON)), Ok(1));
    let waits = [
        (0, GenerationStatus::Sealing),
        (1, GenerationStatus::Waiting),
    ];
    assert_eq!(statuses(&key, NOON + 1000 * HOUR), waits);
    assert_eq!(key.activate(at(NOON + HOUR), at(NOON)), Ok(1));
    assert_eq!(statuses(&key, NOON), waits);
    let took_over = [
        (0, GenerationStatus::Outgoing),
        (1, GenerationStatus::Sealing),
    ];
    assert_eq!(statuses(&key, NOON + HOUR), took_over);
    assert_eq!(statuses(&key, NOON + 13 * HOUR - 1), took_over);
    let ended = [(0, GenerationStatus::Ended), (1, GenerationStatus::Sealing)];
    assert_eq!(statuses(&key, NOON + 13 * HOUR), ended);
    assert!(key.move_forward(at(NOON + 13 * HOUR)));
    assert!(key.generations[0].ticket.is_none());
    assert_eq!(statuses(&key, NOON + 13 * HOUR), ended);
    key.move_forward(at(NOON + 23 * HOUR));
    assert_eq!(statuses(&key, NOON + 23 * HOUR), ended[1..]);
}

#[test]
fn a_third_generation_has_to_wait_until_the_first_has_ended() {
    let mut key = key();
    key.add_generation(secrets(2), None, at(NOON)).unwrap();
    let again = key.add_generation(secrets(3), None, at(NOON));
    assert_eq!(again, Err(CannotRotate::Waiting(1)));
    key.activate(at(NOON), at(NOON)).unwrap();
    let ends = NOON + 12 * HOUR;
    let again = key.add_generation(secrets(3), None, at(NOON));
    assert_eq!(again, Err(CannotRotate::Outgoing(0, ends)));
    assert_eq!(key.add_generation(secrets(3), None, at(ends)), Ok(2));
}

#[test]
fn only_what_waits_can_be_activated() {
    let mut key = key();
    let nothing = Err(CannotRotate::NothingWaits);
    assert_eq!(key.activate(at(NOON), at(NOON)), nothing);
    let planned = Some(at(NOON + HOUR));
    key.add_generation(secrets(2), planned, at(NOON)).unwrap();
    // The activation was planned for later, and now comes early.
    assert_eq!(key.activate(at(NOON), at(NOON)), Ok(1));
    assert_eq!(key.generations[0].ends, Some(NOON + 12 * HOUR));
    assert_eq!(key.activate(at(NOON), at(NOON)), nothing);
}

#[test]
fn a_replacement_leaves_nothing_of_the_others_to_steal() {
    let mut key = key();
    key.add_generation(secrets(2), None, at(NOON)).unwrap();
    assert_eq!(key.replace(secrets(3), at(NOON)), Ok(2));
    assert!(key.generations[..2].iter().all(|g| g.ticket.is_none()));
    // The others have ended even for a server whose clock is an hour behind.
    for now in [NOON - HOUR, NOON, NOON + HOUR] {
        let ended = GenerationStatus::Ended;
        assert_eq!(
            statuses(&key, now),
            [(0, ended), (1, ended), (2, GenerationStatus::Sealing)]
        );
    }
    assert_eq!(key.check_terms(), Ok(()));
}

#[test]
fn numbers_go_round_and_are_used_again_only_when_free() {
    let mut key = key();
    for number in 1..16 {
        assert_eq!(key.replace(secrets(number), at(NOON)), Ok(number));
    }
    assert_eq!(key.replace(secrets(16), at(NOON)), Err(CannotRotate::Full));
    assert_eq!(key.generations.len(), MAX_GENERATIONS);
    let later = NOON + 11 * HOUR;
    key.move_forward(at(later));
    assert_eq!(key.replace(secrets(16), at(later)), Ok(0));
    assert_eq!(key.replace(secrets(17), at(later)), Ok(1));
}

#[test]
fn a_clock_in_2099_drops_no_generation_and_begins_none_out_of_reach() {
    const IN_2099: u64 = 4_070_908_800;
    let mut key = key();
    key.add_generation(secrets(2), Some(at(NOON)), at(NOON - 1))
        .unwrap();
    let before = statuses(&key, NOON);
    assert_eq!(key.add_generation(secrets(3), None, at(IN_2099)), Ok(2));
    assert_eq!(statuses(&key, NOON)[..2], before);
    assert_eq!(statuses(&key, NOON)[2], (2, GenerationStatus::Waiting));
    key.activate(at(NOON + HOUR), at(NOON)).unwrap();
    assert_eq!(
        statuses(&key, NOON + HOUR)[2],
        (2, GenerationStatus::Sealing)
    );
    let chain = key.generations[2].ticket.as_ref().unwrap();
    assert!(chain.epoch() <= NOON / HOUR);

    assert!(!key.move_forward(at(IN_2099)));
    let month = MAX_CATCH_UP.as_secs();
    assert!(!key.move_forward(at(NOON + month + 24 * HOUR)));
    assert!(key.move_forward(at(NOON + month)));
}

#[test]
fn says_how_far_behind_and_ahead_of_the_clock_it_stands() {
    let mut key = key();
    let hours = |n: u64| Duration::from_secs(n * HOUR);
    assert_eq!(key.lag(at(NOON)), hours(0));
    assert_eq!(key.lag(at(NOON + 20 * HOUR)), hours(20));
    assert_eq!(key.lead(at(NOON + 20 * HOUR)), hours(0));
    assert_eq!(key.lead(at(NOON - 24 * HOUR)), hours(13));
    key.move_forward(at(NOON + 20 * HOUR));
    assert_eq!(key.lag(at(NOON + 20 * HOUR)), hours(0));
}

#[test]
fn says_what_time_it_was_when_it_was_made_or_moved_and_forgets_no_more_than_it_may() {
    let mut key = key();
    assert_eq!(key.as_of(), at(NOON));
    assert_eq!(key.within(at(NOON + HOUR), 2), at(NOON + HOUR));
    // A clock that is a day ahead.
    let wrong = at(NOON + 24 * HOUR);
    assert_eq!(key.within(wrong, 2), at(NOON + 2 * HOUR));
    assert!(key.move_forward(key.within(wrong, 2)));
    assert_eq!(key.as_of(), at(NOON + 2 * HOUR));
    assert!(!key.move_forward(key.within(wrong, 0)));
}

#[test]
fn a_clock_that_is_behind_ends_no_generation_before_its_time() {
    let mut key = key();
    let slow = at(NOON - 3 * HOUR);
    let behind = Err(CannotRotate::ClockBehind(Duration::from_secs(3 * HOUR)));
    assert_eq!(
        self::key().add_generation(secrets(2), Some(slow), slow),
        behind
    );
    key.add_generation(secrets(2), None, slow).unwrap();
    assert_eq!(key.activate(slow, slow), behind);
    // The clocks of two servers may differ by this much.
    let slow = at(NOON - 2 * HOUR);
    assert_eq!(key.activate(slow, slow), Ok(1));
}

#[test]
fn fingerprints_agree_wherever_the_chains_stand_and_differ_between_keys() {
    let (mut moved, stayed) = (key(), key());
    let now = at(NOON + 20 * HOUR);
    moved.move_forward(now);
    let print = |key: &FarmKey, epoch| {
        let chain = key.generations[0].ticket.as_ref().unwrap();
        key.fingerprint(chain, epoch)
    };
    let epoch = moved.epoch(now);
    assert!(print(&moved, epoch).is_some());
    assert_eq!(print(&moved, epoch), print(&stayed, epoch));
    assert_ne!(print(&moved, epoch), print(&moved, epoch + 1));
    assert_eq!(print(&moved, NOON / HOUR), None);
    let renamed = FarmKey {
        scope: "other".into(),
        ..key()
    };
    assert_ne!(print(&renamed, epoch), print(&moved, epoch));
}
