//! The farm key of a running server. This module loads or makes the key, derives keys for handshakes, and
//! moves the chains forward in time. [`ClockTrust`] decides how far the key may move.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use sessile_proto::Time;
use sessile_proto::keys::clock_trust::{ClockTrust, Evidence, Moment, Permit, Skew};
use sessile_proto::keys::{Chain, FarmKey, Generation, GenerationStatus, Schedule};

use super::edit::fresh;
use super::{FileFault, KeyError, file, kernel, warning, warnings};
use crate::clock;
use crate::config;
use crate::locks::{locked, read_locked, write_locked};

/// Longest pause between two looks at the clock. A clock that was set is noticed within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Shortest pause between two looks at the clock, just before a key changes.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// Where a server's key came from at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Read from this file.
    Loaded(PathBuf),
    /// Made at this start and written to this file.
    Made(PathBuf),
    /// Made at this start, in memory only, gone at a restart.
    Ephemeral,
}

/// The result of reading the key file again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The key is in memory only.
    Ephemeral,
    /// The file holds the key that the server uses.
    Unchanged,
    /// The server uses the changed key.
    Changed {
        /// The generations in the file.
        generations: Vec<u8>,
        /// The generation that seals now.
        sealing: Option<u8>,
        /// Generations that were accepted before and are not in the file.
        missing: Vec<u8>,
    },
}

/// The farm key, shared by the threads of a server.
pub struct Keyring {
    shared: Arc<Shared>,
    /// Wakes the thread that moves the key forward. The thread ends when this sender is dropped.
    wake: mpsc::Sender<()>,
}

struct Shared {
    state: Mutex<KeyringState>,
    schedule: RwLock<Arc<Schedule>>,
    /// Held from reading the file until the server uses the key that was read.
    file: Mutex<()>,
    origin: Origin,
    scope: String,
    /// The moment from which [`ClockTrust`] counts the uptime.
    started: Instant,
}

struct KeyringState {
    key: FarmKey,
    clock_trust: ClockTrust,
    /// True if the schedule was derived under a skewed clock, and so does not seal.
    is_skewed: bool,
    /// How many times a changed key ended a generation before its planned end.
    revocations: u32,
    /// True if the log says that the key is too far behind the clock.
    said_out_of_reach: bool,
}

impl Keyring {
    /// Opens the key that the configuration names, and makes it if the file does not exist.
    ///
    /// `lifetime` is the longest life of a session of this server. A new key allows sessions of this
    /// lifetime.
    pub fn open(source: &config::Key, lifetime: Duration) -> Result<Self, KeyError> {
        match source {
            config::Key::Ephemeral => Self::ephemeral(lifetime),
            config::Key::File(path) => match file::load(path) {
                Ok(key) => {
                    log_warnings(path, &key, clock::now());
                    Self::new(key, Origin::Loaded(path.clone()))
                }
                Err(error) if matches!(error.fault, FileFault::Missing) => {
                    Self::make(path, lifetime)
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    /// A new key that only this process has.
    pub fn ephemeral(lifetime: Duration) -> Result<Self, KeyError> {
        Self::new(fresh(lifetime)?, Origin::Ephemeral)
    }

    fn make(path: &Path, lifetime: Duration) -> Result<Self, KeyError> {
        match file::write_new(path, &fresh(lifetime)?) {
            // Read the file again: another process may have replaced it since.
            Ok(()) => Self::new(file::load(path)?, Origin::Made(path.to_owned())),
            Err(error) if matches!(error.fault, FileFault::Exists) => {
                Self::new(file::load(path)?, Origin::Loaded(path.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn new(key: FarmKey, origin: Origin) -> Result<Self, KeyError> {
        let shared = Arc::new(Shared::new(key, origin, clock::now()));
        let (wake, woken) = mpsc::channel();
        let mover = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("farm-key".to_owned())
            .spawn(move || follow_time(&mover, &woken))
            .map_err(KeyError::Thread)?;
        Ok(Self { shared, wake })
    }

    /// Where the key came from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.shared.origin
    }

    /// The farm's name in the key.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.shared.scope
    }

    /// The keys that are live at `now`.
    #[must_use]
    pub fn schedule(&self, now: Time) -> Arc<Schedule> {
        self.shared.schedule(now)
    }

    /// Records the time of the clock that the servers of the farm share.
    ///
    /// While this machine's clock differs by more than an epoch, nothing is sealed and no key moves.
    pub fn record_shared_time(&self, shared_time: Time) {
        let now = self.shared.moment(clock::now());
        if self.shared.record_shared_time(shared_time, now) {
            // The thread ends only after this sender is dropped, so the send does not fail.
            let _ = self.wake.send(());
        }
    }

    /// How far this machine's clock differs from the shared clock, if by more than an epoch.
    #[must_use]
    pub fn skew(&self) -> Option<Skew> {
        let now = self.shared.moment(clock::now());
        locked(&self.shared.state).skew(now)
    }

    /// Reads the file again and uses the key in it.
    ///
    /// # Errors
    /// If the file cannot be used. The server then keeps the key that it has.
    pub fn reload(&self) -> Result<Reloaded, KeyError> {
        let Some(path) = self.shared.path() else {
            return Ok(Reloaded::Ephemeral);
        };
        let _turn = locked(&self.shared.file);
        let now = clock::now();
        let key = file::load(path)?;
        log_warnings(path, &key, now);
        self.shared.replace_key(path, key, now)
    }
}

/// Derives the schedule and moves the key forward until the keyring is dropped.
///
/// Handshakes cannot do this: they may be hours apart, and the old keys would stay readable meanwhile.
fn follow_time(shared: &Shared, woken: &mpsc::Receiver<()>) {
    let mut fits_clock = true;
    loop {
        let now = shared.moment(clock::now());
        shared.update_sealing(&mut locked(&shared.state), now);
        let schedule = shared.schedule(now.wall);
        fits_clock = shared.log_clock_fit(fits_clock, &schedule, now);
        shared.move_forward(now);
        let pause = schedule
            .changes()
            .since(now.wall)
            .clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        if woken.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

impl Shared {
    fn new(key: FarmKey, origin: Origin, now: Time) -> Self {
        Self {
            schedule: RwLock::new(Arc::new(Schedule::derive(&key, now))),
            scope: key.scope.clone(),
            state: Mutex::new(KeyringState {
                key,
                clock_trust: ClockTrust::new(now),
                is_skewed: false,
                revocations: 0,
                said_out_of_reach: false,
            }),
            file: Mutex::default(),
            origin,
            started: Instant::now(),
        }
    }

    fn path(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Loaded(path) | Origin::Made(path) => Some(path),
            Origin::Ephemeral => None,
        }
    }

    /// This moment, by a wall clock that was just read.
    fn moment(&self, wall: Time) -> Moment {
        Moment {
            uptime: self.started.elapsed(),
            wall,
        }
    }

    fn schedule(&self, now: Time) -> Arc<Schedule> {
        if let Some(schedule) = self.current_schedule(now) {
            return schedule;
        }
        let mut state = locked(&self.state);
        // Another thread may have derived the schedule while this one waited for the lock.
        self.current_schedule(now)
            .unwrap_or_else(|| self.derive(&mut state, self.moment(now)))
    }

    fn current_schedule(&self, now: Time) -> Option<Arc<Schedule>> {
        let published = read_locked(&self.schedule);
        published.is_current(now).then(|| Arc::clone(&published))
    }

    /// Derives the keys that are live at `now` and publishes them. While the clock is skewed, these keys
    /// seal nothing.
    ///
    /// Logs when the skew begins and when it ends.
    fn derive(&self, state: &mut KeyringState, now: Moment) -> Arc<Schedule> {
        let skew = state.skew(now);
        let mut derived =
            Schedule::derive(&state.key, now.wall).after_revocations(state.revocations);
        if skew.is_some() {
            derived = derived.without_sealing();
        }
        let schedule = Arc::new(derived);
        *write_locked(&self.schedule) = Arc::clone(&schedule);
        if skew.is_some() != state.is_skewed {
            state.is_skewed = skew.is_some();
            match skew {
                Some(skew) => tracing::error!(
                    "this machine's clock is {} the session store's: no ticket is sealed, and the farm key is not \
                     moved forward, until they agree",
                    warning::skew_in_words(skew)
                ),
                None => tracing::info!(
                    "this machine's clock agrees with the session store's again: tickets are sealed again"
                ),
            }
        }
        schedule
    }

    /// Logs if the clock leaves the time for which the key can seal, or comes back into it.
    ///
    /// Returns whether the clock is in that time.
    fn log_clock_fit(&self, did_fit: bool, schedule: &Schedule, now: Moment) -> bool {
        let state = locked(&self.state);
        // The log has an error about a skewed clock already.
        if state.skew(now).is_some() {
            return did_fit;
        }
        let fits = schedule.can_seal();
        if did_fit && !fits {
            tracing::error!(
                clock = %clock::rfc3339(now.wall),
                "no ticket is sealed, because the farm key has no ticket key for the time of this machine's clock: {}",
                warning::misfit_in_words(&state.key, now.wall)
            );
        } else if fits && !did_fit {
            tracing::info!(
                "the farm key has a ticket key for the time of this machine's clock again: tickets are sealed again"
            );
        }
        fits
    }

    /// Derives the schedule again if the clock became skewed, or is no longer. Returns whether it did.
    fn update_sealing(&self, state: &mut KeyringState, now: Moment) -> bool {
        let has_changed = state.skew(now).is_some() != state.is_skewed;
        if has_changed {
            self.derive(state, now);
        }
        has_changed
    }

    /// True if the report is the first one, or if a skew has begun or ended. The key may then move
    /// differently.
    fn record_shared_time(&self, shared_time: Time, now: Moment) -> bool {
        let mut state = locked(&self.state);
        let is_first = state.clock_trust.record_report(Moment {
            wall: shared_time,
            ..now
        });
        self.update_sealing(&mut state, now) || is_first
    }

    /// Forgets the keys that are no longer needed, in memory and in the file.
    fn move_forward(&self, now: Moment) {
        let Some(permit) = self.move_in_memory(now) else {
            return;
        };
        let Some(path) = self.path() else {
            return;
        };
        let _turn = locked(&self.file);
        let moved = file::update::<KeyError>(path, |key| Ok(permit.advance(key)))
            .and_then(|key| self.replace_key(path, key, now.wall));
        match moved {
            Ok(Reloaded::Changed { generations, .. }) => tracing::info!(
                file = %path.display(),
                ?generations,
                "the farm key file was changed on disk; the new content is in use"
            ),
            Ok(_) => tracing::debug!(file = %path.display(), "moved the farm key forward"),
            Err(error) => tracing::warn!(
                %error,
                "cannot update the farm key file, so old keys stay in it: no forward secrecy until sessile can write it"
            ),
        }
    }

    /// Moves the key in memory. If the key moved, returns the permit, so that the file can be moved too.
    fn move_in_memory(&self, now: Moment) -> Option<Permit> {
        let mut guard = locked(&self.state);
        let state = &mut *guard;
        let evidence = Evidence {
            now,
            ntp: kernel::ntp_time(),
        };
        let permit = state.clock_trust.permit(evidence, state.key.rotate);
        let is_out_of_reach = permit.is_out_of_reach(&state.key);
        if is_out_of_reach && !state.said_out_of_reach {
            tracing::warn!(
                behind = %warning::in_words(state.key.lag(now.wall)),
                "the farm key is too far behind this clock to be moved forward. If the clock \
                 is right, no session of the key is alive: replace the file by a copy from \
                 another server, or by a new one"
            );
        }
        state.said_out_of_reach = is_out_of_reach;
        if !permit.advance(&mut state.key) {
            return None;
        }
        state.clock_trust.key_moved(now);
        Some(permit)
    }

    /// Uses `key` from now on.
    fn replace_key(&self, path: &Path, key: FarmKey, now: Time) -> Result<Reloaded, KeyError> {
        if key.scope != self.scope {
            return Err(KeyError::OtherFarm {
                path: path.to_owned(),
                ours: self.scope.clone(),
                theirs: key.scope,
            });
        }
        let mut state = locked(&self.state);
        let old = std::mem::replace(&mut state.key, key);
        if ended_early(&old, &state.key, now) {
            state.revocations += 1;
        }
        self.derive(&mut state, self.moment(now));
        if is_same_key(&old, &state.key) {
            return Ok(Reloaded::Unchanged);
        }
        Ok(describe_change(&old, &state.key, now))
    }
}

impl KeyringState {
    fn skew(&self, now: Moment) -> Option<Skew> {
        self.clock_trust.skew(now, self.key.rotate)
    }
}

fn describe_change(old: &FarmKey, new: &FarmKey, now: Time) -> Reloaded {
    let generations: Vec<u8> = new.generations.iter().map(|g| g.number).collect();
    let missing = old
        .generations
        .iter()
        .filter(|generation| old.status(generation, now) != GenerationStatus::Ended)
        .map(|generation| generation.number)
        .filter(|number| !generations.contains(number))
        .collect();
    let sealing = new
        .generations
        .iter()
        .find(|generation| new.status(generation, now) == GenerationStatus::Sealing)
        .map(|generation| generation.number);
    Reloaded::Changed {
        generations,
        sealing,
        missing,
    }
}

/// True if a generation was accepted in the old key and has ended in the new one, before its planned end.
///
/// A generation that is missing in the new key counts as ended, because generations that ended long ago are
/// dropped.
fn ended_early(old: &FarmKey, new: &FarmKey, now: Time) -> bool {
    old.generations
        .iter()
        .filter(|generation| old.status(generation, now) != GenerationStatus::Ended)
        .any(|generation| !is_still_accepted(old, generation, new, now))
}

/// True if the new key accepts tickets of a generation of the old key.
fn is_still_accepted(old: &FarmKey, generation: &Generation, new: &FarmKey, now: Time) -> bool {
    let successor = new
        .generations
        .iter()
        .find(|other| other.number == generation.number);
    let Some(successor) = successor else {
        return false;
    };
    let (Some(before), Some(after)) = (&generation.ticket, &successor.ticket) else {
        return false;
    };
    new.status(successor, now) != GenerationStatus::Ended
        && is_same_chain((old, before), (new, after))
}

/// True if two chains come from one secret, even if they stand at different epochs.
fn is_same_chain((one, a): (&FarmKey, &Chain), (other, b): (&FarmKey, &Chain)) -> bool {
    let epoch = a.epoch().max(b.epoch());
    one.fingerprint(a, epoch) == other.fingerprint(b, epoch)
}

/// True if two keys agree in everything but the epochs at which their chains stand.
fn is_same_key(one: &FarmKey, other: &FarmKey) -> bool {
    one.rotate == other.rotate
        && one.max_lifetime == other.max_lifetime
        && one.generations.len() == other.generations.len()
        && one
            .generations
            .iter()
            .zip(&other.generations)
            .all(|(a, b)| is_same_generation((one, a), (other, b)))
}

fn is_same_generation(
    (one, a): (&FarmKey, &Generation),
    (other, b): (&FarmKey, &Generation),
) -> bool {
    let has_same_tickets = match (&a.ticket, &b.ticket) {
        (Some(a), Some(b)) => is_same_chain((one, a), (other, b)),
        (a, b) => a.is_none() == b.is_none(),
    };
    (a.number, a.activates, a.ends) == (b.number, b.activates, b.ends)
        && is_same_chain((one, &a.route), (other, &b.route))
        && has_same_tickets
}

fn log_warnings(path: &Path, key: &FarmKey, now: Time) {
    for warning in warnings(path, key, now) {
        tracing::warn!(file = %path.display(), "farm key: {warning}");
    }
}

#[cfg(test)]
mod tests;
