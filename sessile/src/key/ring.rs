//! The farm key at work: loaded or made at the start, its ticket keys at hand for every handshake,
//! its chains moved forward as time passes. Refuses to move the file on the word of a clock alone.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use sessile_proto::Time;
use sessile_proto::keys::{Chain, FarmKey, Generation, MAX_CATCH_UP, Schedule, Standing};

use super::edit::fresh;
use super::witness::{Astray, Moment, Trust, Witnesses};
use super::{FileError, KeyError, concerns, file, health, kernel};
use crate::clock;
use crate::config;

/// How long the keeper sleeps at most: a clock that was set is noticed no later.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long the keeper sleeps at least, where the clock stands just before a change.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// What a server says of its key when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Read from this file.
    Loaded(PathBuf),
    /// Made now and written to this file.
    Made(PathBuf),
    /// Made now, in memory only, gone at a restart.
    Ephemeral,
}

/// What reading the key file again came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The key is in memory only.
    Ephemeral,
    /// The file says what the server knows.
    Unchanged,
    /// The server has taken over what the file says.
    Changed {
        /// The generations that it knows now.
        generations: Vec<u8>,
        /// The one that seals now.
        sealing: Option<u8>,
        /// Generations that were accepted and are not in the file any more.
        missing: Vec<u8>,
    },
}

/// The farm key as the threads of a server share it.
pub struct Keyring {
    shared: Arc<Shared>,
    /// Wakes the keeper, which ends when this is dropped.
    keeper: mpsc::Sender<()>,
}

struct Shared {
    state: Mutex<State>,
    schedule: RwLock<Arc<Schedule>>,
    /// Held from reading the file until what it says is taken over.
    file: Mutex<()>,
    origin: Origin,
    scope: String,
}

struct State {
    key: FarmKey,
    witnesses: Witnesses,
    /// Whether the clock was astray when the schedule was derived last.
    was_astray: bool,
    /// How often generations ended before their time.
    revocations: u32,
    /// Whether it was said that the clock is too far ahead to be followed.
    said_stranded: bool,
}

impl Keyring {
    /// Opens the key that the configuration names; makes it where the file is not there yet.
    ///
    /// `lifetime` is the longest that a session of this server may live; a key that is made here
    /// allows for it.
    pub fn open(source: &config::Key, lifetime: Duration) -> Result<Self, KeyError> {
        match source {
            config::Key::Ephemeral => Self::ephemeral(lifetime),
            config::Key::File(path) => match file::load(path) {
                Ok(key) => {
                    warn_of(path, &key, clock::now());
                    Self::new(key, Origin::Loaded(path.clone()))
                }
                Err(FileError::Missing { .. }) => Self::make(path, lifetime),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// A key in memory, which nobody else has.
    pub fn ephemeral(lifetime: Duration) -> Result<Self, KeyError> {
        Self::new(fresh(lifetime)?, Origin::Ephemeral)
    }

    fn make(path: &Path, lifetime: Duration) -> Result<Self, KeyError> {
        match file::write_new(path, &fresh(lifetime)?) {
            // Another process may have been first: its key is the one that counts.
            Ok(()) => Self::new(file::load(path)?, Origin::Made(path.to_owned())),
            Err(FileError::Exists { .. }) => {
                Self::new(file::load(path)?, Origin::Loaded(path.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn new(key: FarmKey, origin: Origin) -> Result<Self, KeyError> {
        let shared = Arc::new(Shared::new(key, origin, clock::now()));
        let (keeper, woken) = mpsc::channel();
        let kept = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("farm-key".to_owned())
            .spawn(move || keep(&kept, &woken))
            .map_err(KeyError::Thread)?;
        Ok(Self { shared, keeper })
    }

    /// Where the key came from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.shared.origin
    }

    /// The farm's name, as it stands in the key.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.shared.scope
    }

    /// The keys that are live at `now`. Derives them anew when something has changed since, and
    /// when the clock was set back.
    #[must_use]
    pub fn schedule(&self, now: Time) -> Arc<Schedule> {
        self.shared.schedule(now)
    }

    /// Takes note of what another clock says, which the servers of the farm share. While this machine's is more
    /// than an epoch off, nothing is sealed and no key forgotten.
    pub fn hear(&self, theirs: Time) {
        if self.shared.hear(theirs, Moment::at(clock::now())) {
            // The keeper ends after this.
            let _ = self.keeper.send(());
        }
    }

    /// By how much this machine's clock is off the one that the servers share, where that is too much.
    #[must_use]
    pub fn astray(&self) -> Option<Astray> {
        locked(&self.shared.state).astray(clock::now())
    }

    /// Reads the file again and takes over what it says.
    ///
    /// # Errors
    /// Where the file cannot be used; the key that the server has stays in place then.
    pub fn reload(&self) -> Result<Reloaded, KeyError> {
        let Some(path) = self.shared.path() else {
            return Ok(Reloaded::Ephemeral);
        };
        let _turn = locked(&self.shared.file);
        let now = clock::now();
        let key = file::load(path)?;
        warn_of(path, &key, now);
        self.shared.take_over(path, key, now)
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring")
            .field("origin", &self.shared.origin)
            .field("scope", &self.shared.scope)
            .finish_non_exhaustive()
    }
}

/// Follows time until the keyring is dropped: handshakes may be hours apart, and a key that is
/// not moved forward meanwhile opens what was sealed before.
fn keep(shared: &Shared, woken: &mpsc::Receiver<()>) {
    loop {
        let now = clock::now();
        shared.follow_the_clock(&mut locked(&shared.state), now);
        let schedule = shared.schedule(now);
        shared.move_forward(Moment::at(now));
        let pause = schedule.changes().since(now);
        let pause = pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
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
            state: Mutex::new(State {
                key,
                witnesses: Witnesses::new(Moment::at(now)),
                was_astray: false,
                revocations: 0,
                said_stranded: false,
            }),
            file: Mutex::default(),
            origin,
        }
    }

    fn path(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Loaded(path) | Origin::Made(path) => Some(path),
            Origin::Ephemeral => None,
        }
    }

    fn schedule(&self, now: Time) -> Arc<Schedule> {
        let current = || {
            let published = self.schedule.read().unwrap_or_else(PoisonError::into_inner);
            published.is_current(now).then(|| Arc::clone(&published))
        };
        current().unwrap_or_else(|| {
            let mut state = locked(&self.state);
            // Another thread may have done it while this one waited.
            current().unwrap_or_else(|| self.derive(&mut state, now))
        })
    }

    /// Derives what is live at `now`, to seal with too if the clock is not known to be astray, and has everyone
    /// use it. Says where that has changed.
    fn derive(&self, state: &mut State, now: Time) -> Arc<Schedule> {
        let schedule = Schedule::derive(&state.key, now).after_revocations(state.revocations);
        let astray = state.astray(now);
        let schedule = Arc::new(match astray {
            Some(_) => schedule.without_sealing(),
            None => schedule,
        });
        *self
            .schedule
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::clone(&schedule);
        if astray.is_some() != state.was_astray {
            state.was_astray = astray.is_some();
            match astray {
                Some(astray) => tracing::error!(
                    "this machine's clock is {astray} the session store's: no ticket is sealed, and the farm key is not \
                     moved forward, until they agree"
                ),
                None => tracing::info!(
                    "this machine's clock is not contradicted by the session store's any more: tickets are sealed again"
                ),
            }
        }
        schedule
    }

    /// Derives the schedule anew where it goes by what was known of the clock before; whether it did.
    fn follow_the_clock(&self, state: &mut State, now: Time) -> bool {
        let has_changed = state.astray(now).is_some() != state.was_astray;
        if has_changed {
            self.derive(state, now);
        }
        has_changed
    }

    /// Whether this is news: nobody had told before, or the two did not agree.
    fn hear(&self, theirs: Time, now: Moment) -> bool {
        let mut state = locked(&self.state);
        let is_first = state.witnesses.hear(Moment {
            wall: theirs,
            ..now
        });
        self.follow_the_clock(&mut state, now.wall) || is_first
    }

    /// Forgets what is no longer needed, in memory and in the file, as far as the clock is borne out.
    fn move_forward(&self, moment: Moment) {
        let now = moment.wall;
        let within = {
            let mut state = locked(&self.state);
            let trust = state.trust(moment);
            let within = move |key: &FarmKey| match trust {
                Trust::No => None,
                Trust::Epochs(_) if key.lag(now) > MAX_CATCH_UP => None,
                Trust::Epochs(epochs) => Some(key.within(now, epochs)),
                Trust::Whole => Some(now),
            };
            let stranded = trust != Trust::No && state.key.lag(now) > MAX_CATCH_UP;
            if stranded && !state.said_stranded {
                tracing::warn!(
                    behind = %health::in_words(state.key.lag(now)),
                    "the farm key is too far behind this clock to be moved forward. If the clock \
                     is right, no session of the key is alive: replace the file by a copy from \
                     another server, or by a new one"
                );
            }
            state.said_stranded = stranded;
            if !within(&state.key).is_some_and(|until| state.key.move_forward(until)) {
                return;
            }
            state.witnesses.spend(moment);
            within
        };
        let Some(path) = self.path() else {
            return;
        };
        let _turn = locked(&self.file);
        let forward = |key: &mut FarmKey| within(key).is_some_and(|until| key.move_forward(until));
        let moved = file::update::<KeyError>(path, |key| Ok(forward(key)))
            .and_then(|key| self.take_over(path, key, now));
        match moved {
            Ok(Reloaded::Changed { generations, .. }) => tracing::info!(
                file = %path.display(),
                ?generations,
                "the farm key file was changed since it was read; taken over"
            ),
            Ok(_) => tracing::debug!(file = %path.display(), "moved the farm key forward"),
            Err(error) => tracing::warn!(
                %error,
                "the farm key file could not be moved forward: no forward secrecy until it can"
            ),
        }
    }

    /// Works with `key` from now on.
    fn take_over(&self, path: &Path, key: FarmKey, now: Time) -> Result<Reloaded, KeyError> {
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
        self.derive(&mut state, now);
        let new = &state.key;
        if is_same(&old, new) {
            return Ok(Reloaded::Unchanged);
        }
        let numbers = new.generations.iter().map(|g| g.number);
        let ended = |g: &&Generation| old.standing(g, now) == Standing::Ended;
        let is_sealing = |g: &&Generation| new.standing(g, now) == Standing::Sealing;
        Ok(Reloaded::Changed {
            missing: old
                .generations
                .iter()
                .filter(|generation| !ended(generation))
                .map(|generation| generation.number)
                .filter(|number| numbers.clone().all(|other| other != *number))
                .collect(),
            sealing: new.generations.iter().find(is_sealing).map(|g| g.number),
            generations: numbers.collect(),
        })
    }
}

impl State {
    fn astray(&self, now: Time) -> Option<Astray> {
        self.witnesses.astray(Moment::at(now), self.key.rotate)
    }

    fn trust(&mut self, now: Moment) -> Trust {
        let rotate = self.key.rotate;
        let synchronised = kernel::is_synchronised(now.wall, rotate);
        self.witnesses.trust(now, rotate, synchronised)
    }
}

/// Whether a generation whose tickets were accepted is no more, by what somebody did and not by time. One that
/// is not in the new key at all may have ended so long ago that it was dropped.
fn ended_early(old: &FarmKey, new: &FarmKey, now: Time) -> bool {
    let goes_on = |generation: &Generation| {
        let mut generations = new.generations.iter();
        let same = generations.find(|other| other.number == generation.number);
        same.is_some_and(|other| match (&generation.ticket, &other.ticket) {
            (Some(a), Some(b)) => {
                new.standing(other, now) != Standing::Ended && is_same_chain((old, a), (new, b))
            }
            _ => false,
        })
    };
    let mut accepted = old
        .generations
        .iter()
        .filter(|generation| old.standing(generation, now) != Standing::Ended);
    accepted.any(|generation| !goes_on(generation))
}

/// Whether two chains of two keys are one, wherever they stand.
fn is_same_chain((one, a): (&FarmKey, &Chain), (other, b): (&FarmKey, &Chain)) -> bool {
    let epoch = a.epoch().max(b.epoch());
    one.fingerprint(a, epoch) == other.fingerprint(b, epoch)
}

/// Says what a key file that can be used costs all the same.
fn warn_of(path: &Path, key: &FarmKey, now: Time) {
    for concern in concerns(path, key, now) {
        tracing::warn!(file = %path.display(), "farm key: {concern}");
    }
}

/// Whether two keys say the same, wherever their chains stand.
fn is_same(one: &FarmKey, other: &FarmKey) -> bool {
    let same_chain = |a: &Chain, b: &Chain| is_same_chain((one, a), (other, b));
    let same = |a: &Generation, b: &Generation| {
        (a.number, a.activates, a.ends) == (b.number, b.activates, b.ends)
            && same_chain(&a.route, &b.route)
            && match (&a.ticket, &b.ticket) {
                (Some(a), Some(b)) => same_chain(a, b),
                (a, b) => a.is_none() == b.is_none(),
            }
    };
    let terms = |key: &FarmKey| (key.rotate, key.max_lifetime, key.generations.len());
    let mut pairs = one.generations.iter().zip(&other.generations);
    terms(one) == terms(other) && pairs.all(|(a, b)| same(a, b))
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
