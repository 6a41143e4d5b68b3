//! The rules of clock trust one by one, and years of operation with wrong clocks.

use proptest::prelude::*;

use super::*;
use crate::keys::generation::tests::{at, secrets};

const EPOCH: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const START: Time = Time::from_unix_millis(1_700_000_000_000);

/// A moment at this uptime, with a wall clock that is `off` seconds ahead.
fn moment(uptime: Duration, off: i64) -> Moment {
    Moment {
        uptime,
        wall: shifted(START.plus(uptime), off),
    }
}

fn shifted(time: Time, seconds: i64) -> Time {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        time.minus(by)
    } else {
        time.plus(by)
    }
}

/// The trust in a clock that neither NTP nor a shared clock confirms.
fn unconfirmed(trust: &mut ClockTrust, now: Moment) -> Trust {
    trust.permit(Evidence { now, ntp: None }, EPOCH).trust()
}

/// The trust in a clock when the kernel says that NTP keeps its clock right.
fn with_ntp(trust: &mut ClockTrust, now: Moment, kernel: Time) -> Trust {
    let evidence = Evidence {
        now,
        ntp: Some(kernel),
    };
    trust.permit(evidence, EPOCH).trust()
}

#[test]
fn a_jump_of_the_wall_clock_restarts_the_measurement() {
    let mut clock = ClockTrust::new(START);
    let agrees = moment(EPOCH / 2, 0);
    unconfirmed(&mut clock, agrees);
    assert!(!clock.has_jumped(agrees));
    let jumped = moment(EPOCH, 3 * 24 * 3600);
    assert_eq!(unconfirmed(&mut clock, jumped), Trust::Denied);
    assert!(clock.has_jumped(jumped));
    assert!(!clock.has_jumped(moment(EPOCH * 2, 3 * 24 * 3600)));
}

#[test]
fn an_unconfirmed_clock_is_followed_at_twice_its_pace_after_the_first_epoch() {
    let mut clock = ClockTrust::new(START);
    let mut trust = |uptime, moves| {
        let now = moment(uptime, 0);
        let trust = unconfirmed(&mut clock, now);
        if moves {
            clock.key_moved(now);
        }
        trust
    };
    assert_eq!(trust(EPOCH / 2, false), Trust::Denied);
    assert_eq!(trust(EPOCH, true), Trust::Epochs(2));
    assert_eq!(trust(EPOCH * 3 / 2, false), Trust::Denied);
    assert_eq!(trust(EPOCH * 4, true), Trust::Epochs(6));
}

#[test]
fn a_clock_that_jumps_is_measured_anew() {
    for off in [86_400, -86_400] {
        let mut clock = ClockTrust::new(START);
        assert_eq!(unconfirmed(&mut clock, moment(EPOCH, 0)), Trust::Epochs(2));
        assert_eq!(unconfirmed(&mut clock, moment(EPOCH, off)), Trust::Denied);
        let later = moment(EPOCH * 2, off);
        assert_eq!(unconfirmed(&mut clock, later), Trust::Epochs(2));
    }
}

#[test]
fn time_asleep_is_not_measured() {
    let mut clock = ClockTrust::new(START);
    // The monotonic clock stood still for a day.
    let awake = Moment {
        uptime: EPOCH,
        wall: START.plus(EPOCH + DAY),
    };
    assert_eq!(unconfirmed(&mut clock, awake), Trust::Denied);
    let later = Moment {
        uptime: EPOCH * 2,
        wall: awake.wall.plus(EPOCH),
    };
    assert_eq!(unconfirmed(&mut clock, later), Trust::Epochs(2));
}

#[test]
fn ntp_confirms_a_clock_once_the_shared_clock_had_time_to_report() {
    let mut clock = ClockTrust::new(START);
    let early = moment(Duration::ZERO, 0);
    assert_eq!(with_ntp(&mut clock, early, early.wall), Trust::Denied);
    let now = moment(STARTUP_GRACE, 0);
    assert_eq!(with_ntp(&mut clock, now, now.wall), Trust::Confirmed);
}

#[test]
fn ntp_says_nothing_of_a_clock_that_is_not_the_kernels() {
    let now = moment(STARTUP_GRACE, 0);
    for off in [86_400, -86_400] {
        let mut clock = ClockTrust::new(START);
        let kernel = shifted(now.wall, off);
        assert_eq!(with_ntp(&mut clock, now, kernel), Trust::Denied);
    }
    let mut clock = ClockTrust::new(START);
    let kernel = shifted(now.wall, 3600);
    assert_eq!(with_ntp(&mut clock, now, kernel), Trust::Confirmed);
}

#[test]
fn a_shared_clock_that_agrees_confirms_at_once() {
    let mut clock = ClockTrust::new(START);
    let now = moment(Duration::ZERO, 0);
    assert!(clock.record_report(now));
    assert!(!clock.record_report(now));
    assert_eq!(unconfirmed(&mut clock, now), Trust::Confirmed);
}

#[test]
fn a_shared_clock_that_differs_outweighs_ntp_and_measured_time() {
    for (off, skew) in [
        (7200, Skew::Ahead(EPOCH * 2)),
        (-7200, Skew::Behind(EPOCH * 2)),
    ] {
        let mut clock = ClockTrust::new(moment(Duration::ZERO, off).wall);
        clock.record_report(moment(Duration::ZERO, 0));
        for uptime in [EPOCH / 2, EPOCH] {
            let wrong = moment(uptime, off);
            assert_eq!(clock.skew(wrong, EPOCH), Some(skew));
            let trust = with_ntp(&mut clock, wrong, wrong.wall);
            assert_eq!(trust, Trust::Denied);
        }
    }
}

#[test]
fn an_epoch_of_difference_is_no_skew() {
    let mut clock = ClockTrust::new(START);
    clock.record_report(moment(Duration::ZERO, 0));
    for off in [3600, -3600] {
        assert_eq!(clock.skew(moment(EPOCH / 2, off), EPOCH), None);
    }
    assert!(clock.skew(moment(EPOCH / 2, 3601), EPOCH).is_some());
}

#[test]
fn a_report_counts_for_an_hour() {
    let mut clock = ClockTrust::new(START);
    clock.record_report(moment(Duration::ZERO, 86_400));
    let within = moment(REPORT_LIFETIME, 0);
    assert!(clock.skew(within, EPOCH).is_some());
    let later = moment(REPORT_LIFETIME * 2, 0);
    assert_eq!(clock.skew(later, EPOCH), None);
    assert_eq!(unconfirmed(&mut clock, later), Trust::Epochs(4));
    assert!(clock.record_report(later));
}

#[test]
fn time_measured_under_a_contradicted_clock_never_counts() {
    let off = 20 * 3600;
    let mut clock = ClockTrust::new(shifted(START, off));
    for hours in 0..24 {
        clock.record_report(moment(EPOCH * hours, 0));
        let wrong = moment(EPOCH * hours, off);
        assert_eq!(unconfirmed(&mut clock, wrong), Trust::Denied);
    }
    // The shared clock is silent from here on.
    let mut trust = |later| unconfirmed(&mut clock, moment(EPOCH * 23 + later, off));
    assert_eq!(trust(REPORT_LIFETIME), Trust::Denied);
    let silent = REPORT_LIFETIME + Duration::from_secs(60);
    assert_eq!(trust(silent), Trust::Denied);
    assert_eq!(trust(REPORT_LIFETIME + EPOCH), Trust::Epochs(2));
}

#[test]
fn nothing_moves_a_key_by_more_than_31_days() {
    for (days, moves) in [(31, true), (32, false), (36_500, false)] {
        let mut key = made_at(START, EPOCH);
        let now = START.plus(DAY * days);
        let mut clock = ClockTrust::new(now);
        clock.record_report(Moment {
            uptime: Duration::ZERO,
            wall: now,
        });
        let evidence = Evidence {
            now: Moment {
                uptime: Duration::ZERO,
                wall: now,
            },
            ntp: None,
        };
        let permit = clock.permit(evidence, EPOCH);
        assert_eq!(permit.is_out_of_reach(&key), !moves, "{days} days");
        assert_eq!(permit.advance(&mut key), moves, "{days} days");
        assert_eq!(key.lag(now).is_zero(), moves, "{days} days");
    }
}

#[test]
fn an_unconfirmed_clock_over_31_days_ahead_moves_nothing() {
    for (days, moves) in [(31, true), (32, false)] {
        let mut key = made_at(START, EPOCH);
        let mut clock = ClockTrust::new(START.plus(DAY * days).minus(EPOCH));
        let now = moment(EPOCH, i64::from(days) * 86_400 - 3600);
        let permit = clock.permit(Evidence { now, ntp: None }, EPOCH);
        assert_eq!(permit.trust(), Trust::Epochs(2));
        assert_eq!(permit.advance(&mut key), moves, "{days} days");
    }
}

fn made_at(now: Time, rotate: Duration) -> FarmKey {
    FarmKey::new("test".into(), rotate, rotate * 10, secrets(1), now).unwrap()
}

/// One server, its clocks and the true time.
struct Simulation {
    key: FarmKey,
    clock: ClockTrust,
    true_time: Time,
    uptime: Duration,
    /// How far the wall clock is ahead of the true time, in seconds.
    off: i64,
    has_report: bool,
    /// How long the wall clock was ahead while no other clock contradicted the wall clock.
    harmful: Duration,
}

/// A time during which the clocks behave the same way.
#[derive(Clone, Debug)]
struct Phase {
    epochs: u32,
    off: i64,
    ntp: bool,
    store: bool,
    start: Start,
}

#[derive(Clone, Copy, Debug)]
enum Start {
    Running,
    Restart { down: Duration },
    Sleep(Duration),
}

impl Simulation {
    fn new(rotate: Duration) -> Self {
        Self {
            key: made_at(START, rotate),
            clock: ClockTrust::new(START),
            true_time: START,
            uptime: Duration::ZERO,
            off: 0,
            has_report: false,
            harmful: Duration::ZERO,
        }
    }

    fn run(&mut self, phase: &Phase) {
        self.off = phase.off;
        match phase.start {
            Start::Running => {}
            Start::Sleep(asleep) => self.true_time = self.true_time.plus(asleep),
            Start::Restart { down } => {
                self.true_time = self.true_time.plus(down);
                self.uptime = Duration::ZERO;
                self.has_report = false;
                self.clock = ClockTrust::new(self.wall());
            }
        }
        // The server looks three times in each epoch, but never at the start of an epoch.
        let step = self.key.rotate / 3;
        for _ in 0..phase.epochs * 3 {
            self.look(phase);
            self.true_time = self.true_time.plus(step);
            self.uptime += step;
            if self.is_ahead() && !phase.store {
                self.harmful += step;
            }
        }
    }

    /// Looks at the clock as a server does, and checks what must hold every time.
    fn look(&mut self, phase: &Phase) {
        let now = Moment {
            uptime: self.uptime,
            wall: self.wall(),
        };
        if phase.store {
            self.has_report = true;
            self.clock.record_report(Moment {
                wall: self.true_time,
                ..now
            });
        }
        let evidence = Evidence {
            now,
            ntp: phase.ntp.then_some(self.true_time),
        };
        let rotate = self.key.rotate;
        let permit = self.clock.permit(evidence, rotate);
        let before = self.key.stands_at();
        if permit.advance(&mut self.key) {
            self.clock.key_moved(now);
        }
        let moved = self.key.stands_at() - before;
        assert!(rotate * u32::try_from(moved).unwrap() <= MAX_CATCH_UP);
        let oldest = self.key.oldest_epoch(now.wall);
        assert!(moved == 0 || self.key.stands_at() <= oldest);

        let is_right = self.off.unsigned_abs() <= rotate.as_secs();
        if phase.store && !is_right {
            assert_eq!(moved, 0, "the shared clock contradicts the wall clock");
        }
        let is_ntp_enough = phase.ntp && !self.has_report && self.uptime >= STARTUP_GRACE;
        if is_right && (phase.store || is_ntp_enough) {
            assert_eq!(permit.trust(), Trust::Confirmed);
            if permit.is_out_of_reach(&self.key) {
                // The warning tells the operator to replace the key.
                self.key = made_at(now.wall, rotate);
            }
            assert!(self.key.lag(now.wall).is_zero(), "forward secrecy");
        }
    }

    fn wall(&self) -> Time {
        shifted(self.true_time, self.off)
    }

    fn is_ahead(&self) -> bool {
        i64::try_from(self.key.rotate.as_secs()).unwrap() < self.off
    }

    /// Epochs that the key has forgotten although a live session can name them.
    fn lost_epochs(&self) -> u64 {
        // A session lives for ten epochs, and the key keeps one more.
        let oldest_live = self.key.epoch(self.true_time) - 10;
        self.key.stands_at().saturating_sub(oldest_live)
    }
}

/// How far a clock is off, in seconds: right, an epoch off, or wrong by hours, days or decades.
fn offsets(rotate: Duration) -> impl Strategy<Value = i64> {
    let epoch = i64::try_from(rotate.as_secs()).unwrap();
    let wrong = prop_oneof![
        epoch + 1..epoch * 12,
        86_400_i64 * 2..86_400 * 60,
        86_400_i64 * 365..86_400 * 365 * 75,
    ];
    let wrong = (wrong, any::<bool>()).prop_map(|(off, ahead)| if ahead { off } else { -off });
    prop_oneof![2 => Just(0), 1 => -epoch..=epoch, 3 => wrong]
}

fn starts() -> impl Strategy<Value = Start> {
    let days = |days: u32| (0..days * 24).prop_map(|hours| EPOCH * hours);
    prop_oneof![
        3 => Just(Start::Running),
        1 => days(40).prop_map(|down| Start::Restart { down }),
        1 => days(3).prop_map(Start::Sleep),
    ]
}

fn phases(rotate: Duration) -> impl Strategy<Value = Vec<Phase>> {
    let phase = (
        1..800_u32,
        offsets(rotate),
        any::<bool>(),
        any::<bool>(),
        starts(),
    );
    let phase = phase.prop_map(|(epochs, off, ntp, store, start)| Phase {
        epochs,
        off,
        ntp,
        store,
        start,
    });
    proptest::collection::vec(phase, 20..60)
}

fn rotates() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(EPOCH), Just(EPOCH * 6)]
}

fn operation() -> impl Strategy<Value = (Duration, Vec<Phase>)> {
    rotates().prop_flat_map(|rotate| (Just(rotate), phases(rotate)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each wrong clock is contradicted by the shared clock, or is right again after one epoch.
    #[test]
    fn years_of_clocks_that_are_wrong_for_a_while_lose_no_live_key((rotate, phases) in operation()) {
        let mut simulation = Simulation::new(rotate);
        for mut phase in phases {
            if phase.off.unsigned_abs() > rotate.as_secs() && !phase.store {
                phase.epochs = 1;
            }
            simulation.run(&phase);
            prop_assert_eq!(simulation.lost_epochs(), 0);
        }
    }

    /// The key loses at most one live epoch for each epoch during which the clock was wrong.
    #[test]
    fn a_clock_that_nothing_contradicts_does_harm_slowly((rotate, phases) in operation()) {
        let mut simulation = Simulation::new(rotate);
        for phase in phases {
            simulation.run(&phase);
            let harmful = simulation.harmful.as_secs() / rotate.as_secs();
            prop_assert!(simulation.lost_epochs() <= harmful);
        }
    }
}

#[test]
fn ten_years_under_ntp_keep_no_old_key() {
    let mut simulation = Simulation::new(EPOCH);
    let phase = Phase {
        epochs: 10 * 365 * 24,
        off: 0,
        ntp: true,
        store: false,
        start: Start::Running,
    };
    simulation.run(&phase);
    assert_eq!(simulation.lost_epochs(), 0);
    assert!(simulation.key.lag(simulation.true_time) <= EPOCH);
}

#[test]
fn a_year_without_any_other_clock_still_moves_the_key() {
    let mut simulation = Simulation::new(EPOCH);
    simulation.run(&Phase {
        epochs: 365 * 24,
        off: 0,
        ntp: false,
        store: false,
        start: Start::Restart { down: DAY * 20 },
    });
    assert_eq!(simulation.lost_epochs(), 0);
    assert!(simulation.key.lag(simulation.true_time) <= EPOCH * 2);
}

#[test]
fn a_start_in_2099_loses_nothing_if_the_clock_is_right_within_the_hour() {
    let true_time = at(START.unix_secs());
    let mut simulation = Simulation::new(EPOCH);
    let wrong = i64::try_from(4_070_908_800 - true_time.unix_secs()).unwrap();
    for (off, epochs) in [(wrong, 1), (0, 48), (-wrong / 2, 1), (0, 48)] {
        simulation.run(&Phase {
            epochs,
            off,
            ntp: off == 0,
            store: false,
            start: Start::Restart { down: EPOCH },
        });
        assert_eq!(simulation.lost_epochs(), 0);
    }
}
