//! The farm key at work: loaded or made at the start, its ticket keys at hand for every handshake,
//! its chains moved forward as time passes. Refuses to move the file on the word of a clock alone.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sessile_proto::Time;
use sessile_proto::keys::{Chain, FarmKey, Generation, MAX_CATCH_UP, Schedule, Standing};

use super::edit::fresh;
use super::{FileError, KeyError, concerns, file, health};
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
    /// The keeper ends when this is dropped.
    _keeper: mpsc::Sender<()>,
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
    /// When the wall clock and the monotonic clock were last known to agree.
    anchor: (Instant, Time),
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
        let now = clock::now();
        let shared = Arc::new(Shared {
            schedule: RwLock::new(Arc::new(Schedule::derive(&key, now))),
            scope: key.scope.clone(),
            state: Mutex::new(State {
                key,
                anchor: (Instant::now(), now),
                said_stranded: false,
            }),
            file: Mutex::default(),
            origin,
        });
        let (keeper, stopped) = mpsc::channel();
        let kept = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("farm-key".to_owned())
            .spawn(move || keep(&kept, &stopped))
            .map_err(KeyError::Thread)?;
        Ok(Self {
            shared,
            _keeper: keeper,
        })
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
fn keep(shared: &Shared, stopped: &mpsc::Receiver<()>) {
    loop {
        let now = clock::now();
        let schedule = shared.schedule(now);
        shared.move_forward(now);
        let pause = schedule.changes().since(now);
        let pause = pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

impl Shared {
    fn path(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Loaded(path) | Origin::Made(path) => Some(path),
            Origin::Ephemeral => None,
        }
    }

    fn schedule(&self, now: Time) -> Arc<Schedule> {
        let current = Arc::clone(&self.schedule.read().unwrap_or_else(PoisonError::into_inner));
        if current.is_current(now) {
            return current;
        }
        let state = locked(&self.state);
        let mut schedule = self
            .schedule
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Another thread may have done it while this one waited.
        if !schedule.is_current(now) {
            *schedule = Arc::new(Schedule::derive(&state.key, now));
        }
        Arc::clone(&schedule)
    }

    /// Forgets what is no longer needed, in memory and in the file, where the clock is borne out.
    fn move_forward(&self, now: Time) {
        {
            let mut state = locked(&self.state);
            if !state.corroborates(now) {
                return;
            }
            let stranded = state.key.lag(now) > MAX_CATCH_UP;
            if stranded && !state.said_stranded {
                tracing::warn!(
                    behind = %health::in_words(state.key.lag(now)),
                    "the farm key is too far behind this clock to be moved forward. If the clock \
                     is right, no session of the key is alive: replace the file by a copy from \
                     another server, or by a new one"
                );
            }
            state.said_stranded = stranded;
            if !state.key.move_forward(now) {
                return;
            }
        }
        let Some(path) = self.path() else {
            return;
        };
        let _turn = locked(&self.file);
        let moved = file::update::<KeyError>(path, |key| Ok(key.move_forward(now)))
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
        let schedule = Arc::new(Schedule::derive(&key, now));
        let mut state = locked(&self.state);
        let old = std::mem::replace(&mut state.key, key);
        *self
            .schedule
            .write()
            .unwrap_or_else(PoisonError::into_inner) = schedule;
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
    /// Whether the monotonic clock bears the wall clock out: a whole epoch has passed on both
    /// since they were last compared. A clock that jumped must not destroy keys.
    fn corroborates(&mut self, now: Time) -> bool {
        let (then, wall_then) = self.anchor;
        let elapsed = then.elapsed();
        let wall_elapsed = now.since(wall_then);
        let rotate = self.key.rotate;
        let agrees = wall_elapsed.abs_diff(elapsed) < rotate && now >= wall_then;
        if !agrees {
            // The wall clock jumped; it has to earn trust from here on.
            self.anchor = (Instant::now(), now);
        }
        agrees && elapsed >= rotate
    }
}

/// Says what a key file that can be used costs all the same.
fn warn_of(path: &Path, key: &FarmKey, now: Time) {
    for concern in concerns(path, key, now) {
        tracing::warn!(file = %path.display(), "farm key: {concern}");
    }
}

/// Whether two keys say the same, wherever their chains stand.
fn is_same(one: &FarmKey, other: &FarmKey) -> bool {
    let same_chain = |a: &Chain, b: &Chain| {
        let epoch = a.epoch().max(b.epoch());
        one.fingerprint(a, epoch) == other.fingerprint(b, epoch)
    };
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
