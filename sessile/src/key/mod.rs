//! The farm key at work: loaded or made at the start, its ticket keys at hand for every handshake,
//! its chains moved forward as time passes. Refuses to move the file on the word of a clock alone.

mod file;

pub use file::FileError;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sessile_proto::Time;
use sessile_proto::keys::{BadTerms, FarmKey, Schedule, Secret};

use crate::clock;
use crate::config;

/// How often ticket keys change in a key that is made without being asked about it.
pub const DEFAULT_ROTATE: Duration = Duration::from_secs(60 * 60);

/// Longest life of a session in a key that is made without being asked about it.
pub const DEFAULT_MAX_LIFETIME: Duration = Duration::from_secs(10 * 60 * 60);

/// Why there is no farm key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot make a farm key: {0}")]
    Terms(#[from] BadTerms),
    #[error("the system gives no random bytes")]
    Random,
}

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

/// The farm key as the threads of a server share it.
pub struct Keyring {
    state: Mutex<State>,
    schedule: RwLock<Arc<Schedule>>,
    origin: Origin,
    scope: String,
}

struct State {
    key: FarmKey,
    /// When the wall clock and the monotonic clock were last known to agree.
    anchor: (Instant, Time),
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
                Ok(key) => Ok(Self::new(key, Origin::Loaded(path.clone()))),
                Err(FileError::Missing { .. }) => Self::make(path, lifetime),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// A key in memory, which nobody else has.
    pub fn ephemeral(lifetime: Duration) -> Result<Self, KeyError> {
        Ok(Self::new(fresh(lifetime)?, Origin::Ephemeral))
    }

    fn make(path: &Path, lifetime: Duration) -> Result<Self, KeyError> {
        match file::write_new(path, &fresh(lifetime)?) {
            // Another process may have been first: its key is the one that counts.
            Ok(()) => Ok(Self::new(file::load(path)?, Origin::Made(path.to_owned()))),
            Err(FileError::Exists { .. }) => Ok(Self::new(
                file::load(path)?,
                Origin::Loaded(path.to_owned()),
            )),
            Err(error) => Err(error.into()),
        }
    }

    fn new(key: FarmKey, origin: Origin) -> Self {
        let now = clock::now();
        Self {
            schedule: RwLock::new(Arc::new(Schedule::derive(&key, now))),
            scope: key.scope.clone(),
            state: Mutex::new(State {
                key,
                anchor: (Instant::now(), now),
            }),
            origin,
        }
    }

    /// Where the key came from.
    #[must_use]
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The farm's name, as it stands in the key.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The keys that are live at `now`. Derives them anew when an epoch has passed, or when the
    /// clock was set back.
    #[must_use]
    pub fn schedule(&self, now: Time) -> Arc<Schedule> {
        let current = Arc::clone(&self.schedule.read().unwrap_or_else(PoisonError::into_inner));
        if current.is_current(now) {
            return current;
        }
        self.derive_anew(now)
    }

    fn derive_anew(&self, now: Time) -> Arc<Schedule> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut schedule = self
            .schedule
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Another thread may have done it while this one waited.
        if !schedule.is_current(now) {
            *schedule = Arc::new(Schedule::derive(&state.key, now));
            if state.corroborates(now) && state.key.move_forward(now) {
                self.move_file(now);
            }
        }
        Arc::clone(&schedule)
    }

    /// Rewrites the file in a thread of its own: a handshake must not wait for a disk.
    fn move_file(&self, now: Time) {
        let (Origin::Loaded(path) | Origin::Made(path)) = &self.origin else {
            return;
        };
        let path = path.clone();
        std::thread::spawn(move || match file::move_forward(&path, now) {
            Ok(()) => tracing::debug!(file = %path.display(), "moved the farm key forward"),
            Err(error) => tracing::warn!(
                %error,
                "the farm key file could not be moved forward: no forward secrecy until it can"
            ),
        });
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring")
            .field("origin", &self.origin)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
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

/// A new key with the default terms, made to allow for sessions that live that long.
fn fresh(lifetime: Duration) -> Result<FarmKey, KeyError> {
    let mut name = [0; 4];
    random(&mut name)?;
    let max_lifetime = lifetime.clamp(DEFAULT_MAX_LIFETIME, sessile_proto::keys::MAX_LIFETIME);
    // Whole seconds: what the file can say.
    let max_lifetime = Duration::from_secs(max_lifetime.as_secs());
    Ok(FarmKey::new(
        format!("farm-{:08x}", u32::from_be_bytes(name)),
        DEFAULT_ROTATE,
        max_lifetime,
        [random_secret()?, random_secret()?],
        clock::now(),
    )?)
}

fn random_secret() -> Result<Secret, KeyError> {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    random(&mut *bytes)?;
    Secret::new(&*bytes).map_err(|_| KeyError::Random)
}

fn random(bytes: &mut [u8]) -> Result<(), KeyError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| KeyError::Random)
}

/// A server's number where none is set: 24 bits of SHA-256 of the farm's and the server's name.
#[must_use]
pub fn server_number(scope: &str, name: &str) -> u32 {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    hash.update(scope.as_bytes());
    hash.update(&[0]);
    hash.update(name.as_bytes());
    let digest = hash.finish();
    let mut word = [0; 4];
    word[1..].copy_from_slice(&digest.as_ref()[..3]);
    u32::from_be_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_HOURS: Duration = DEFAULT_MAX_LIFETIME;

    #[test]
    fn the_first_start_makes_a_key_file_and_the_next_one_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/farm.key");
        let source = config::Key::File(path.clone());
        let first = Keyring::open(&source, TEN_HOURS).unwrap();
        assert_eq!(first.origin(), &Origin::Made(path.clone()));
        let second = Keyring::open(&source, TEN_HOURS).unwrap();
        assert_eq!(second.origin(), &Origin::Loaded(path));
        assert_eq!(first.scope(), second.scope());
    }

    #[test]
    fn two_ephemeral_keys_have_nothing_in_common() {
        let (one, other) = (
            Keyring::ephemeral(TEN_HOURS).unwrap(),
            Keyring::ephemeral(TEN_HOURS).unwrap(),
        );
        assert_ne!(one.scope(), other.scope());
    }

    #[test]
    fn a_jump_of_the_clock_does_not_move_the_key() {
        let ring = Keyring::ephemeral(TEN_HOURS).unwrap();
        let mut state = ring.state.lock().unwrap();
        let now = clock::now();
        assert!(!state.corroborates(now.plus(Duration::from_secs(86_400))));
        assert!(!state.corroborates(now));
    }

    #[test]
    fn the_schedule_follows_the_clock_both_ways() {
        let ring = Keyring::ephemeral(TEN_HOURS).unwrap();
        let now = clock::now();
        let today = ring.schedule(now);
        let tomorrow = ring.schedule(now.plus(Duration::from_secs(86_400)));
        assert!(!Arc::ptr_eq(&today, &tomorrow));
        assert!(ring.schedule(now).is_current(now));
    }

    #[test]
    fn server_numbers_are_stable_and_24_bits() {
        let number = server_number("farm", "web1");
        assert_eq!(number, server_number("farm", "web1"));
        assert_ne!(number, server_number("farm", "web2"));
        assert!(number < 1 << 24);
    }
}
