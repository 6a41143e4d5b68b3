//! What is forgotten on request, as one server knows it: from its configuration and from the shared
//! store. Marks are only added while it runs, so that a store that is gone, or came back empty, brings
//! nothing back; those of the farm are in the state folder, too, for a start without the store.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::sealed;
use sessile_proto::ticket::Forgotten;
use sessile_proto::verdict::Reason;

use crate::config::Server;
use crate::key::{Keyring, Origin};
use crate::state_file::{self, TakeError};

/// Most bytes of the file; as many marks as there can be take less than 5 KiB.
const MAX_FILE: u64 = 64 << 10;

#[derive(Default)]
pub(super) struct Marks(RwLock<Arc<Forgotten>>);

impl Marks {
    /// Every mark, as a handshake compares sessions with them.
    pub(super) fn known(&self) -> Arc<Forgotten> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds marks, and says whether any was new.
    pub(super) fn learn(&self, marks: &Forgotten) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut all = Forgotten::clone(&known);
        all.merge(marks);
        let is_news = all != **known;
        if is_news {
            *known = Arc::new(all);
        }
        is_news
    }
}

/// The farm's marks, as far as one server knows them, sealed under the farm key in its state folder.
/// Reading leaves the file there: marks are good for more than one start.
pub(super) struct MarksFile {
    path: PathBuf,
    /// What it is sealed as: this server's, so that no other file can be put in its place.
    bound: String,
    /// What is in it.
    kept: Mutex<Forgotten>,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Unread(#[from] TakeError),
    #[error("it cannot be written: {0}")]
    Io(#[from] io::Error),
    #[error("it does not open under this server's farm key ({})", .0.as_str())]
    Closed(Reason),
    #[error("the clock and the farm key do not agree, so that nothing can be sealed")]
    NoKey,
    #[error("the system gives no random bytes")]
    Random,
}

impl MarksFile {
    /// `None` where the key is gone at a restart: there is nothing left to forget then.
    pub(super) fn new(server: &Server, keys: &Keyring) -> Option<Self> {
        let Server {
            name, state_dir, ..
        } = server;
        (*keys.origin() != Origin::Ephemeral).then(|| Self {
            path: state_file::path(state_dir, "forget", name),
            bound: format!("sessile:{}:forget:{name}", keys.scope()),
            kept: Mutex::default(),
        })
    }

    /// What the server knew when it ran last. A file that cannot be used is said and passed by.
    pub(super) fn read(&self, schedule: &Schedule) -> Forgotten {
        let read = self.open(schedule).unwrap_or_else(|error| {
            tracing::warn!(
                file = %self.path.display(), %error,
                "what was forgotten on request before this start is known from the store and session.forget alone"
            );
            Forgotten::default()
        });
        self.kept().clone_from(&read);
        read
    }

    fn open(&self, schedule: &Schedule) -> Result<Forgotten, Unusable> {
        let Some(bytes) = state_file::read(&self.path, MAX_FILE)? else {
            return Ok(Forgotten::default());
        };
        let bound = self.bound.as_bytes();
        match sealed::open(schedule, Purpose::Snapshot, bound, &bytes) {
            Ok(clear) => Forgotten::decode(&clear).ok_or(Unusable::Closed(Reason::OldFormat)),
            // Then so are the sessions from before those marks.
            Err(Reason::Expired) => Ok(Forgotten::default()),
            Err(reason) => Err(Unusable::Closed(reason)),
        }
    }

    /// Adds marks to the file, if they are not in it. Waits for the disk.
    pub(super) fn keep(&self, schedule: &Schedule, marks: &Forgotten) {
        let mut kept = self.kept();
        if kept.covers(marks) {
            return;
        }
        let mut all = kept.clone();
        all.merge(marks);
        match self.write(schedule, &all) {
            Ok(()) => *kept = all,
            Err(error) => tracing::warn!(
                file = %self.path.display(), %error,
                "what is forgotten on request cannot be kept for the next start, which then needs the store to know it"
            ),
        }
    }

    fn write(&self, schedule: &Schedule, marks: &Forgotten) -> Result<(), Unusable> {
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| Unusable::Random)?;
        let (bound, clear) = (self.bound.as_bytes(), marks.encode());
        let sealed = sealed::seal(schedule, Purpose::Snapshot, salt, bound, &clear)
            .ok_or(Unusable::NoKey)?;
        state_file::replace(&self.path, |file| Ok(file.write_all(&sealed)?))
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Forgotten> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use sessile_proto::ticket::Extent;

    use super::*;
    use crate::clock;

    fn file(folder: &std::path::Path, name: &str) -> MarksFile {
        MarksFile {
            path: state_file::path(folder, "forget", "web1"),
            bound: format!("sessile:farm:forget:{name}"),
            kept: Mutex::default(),
        }
    }

    fn schedule() -> Arc<Schedule> {
        let keys = Keyring::ephemeral(Duration::from_secs(3600)).unwrap();
        keys.schedule(clock::now())
    }

    fn mark(extent: Extent) -> Forgotten {
        let mut marks = Forgotten::default();
        marks.mark(extent, clock::now());
        marks
    }

    #[test]
    fn the_file_has_every_mark_that_was_kept_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let schedule = schedule();
        let mut all = Forgotten::default();
        for extent in [Extent::Site(1), Extent::Server(2)] {
            let marks = mark(extent);
            all.merge(&marks);
            // As of a process that knows of this one only.
            let file = file(folder.path(), "web1");
            file.read(&schedule);
            file.keep(&schedule, &marks);
            for _ in 0..2 {
                assert_eq!(file.read(&schedule), all);
            }
        }
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_server_or_farm_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (mine, theirs) = (file(folder.path(), "web1"), file(folder.path(), "web2"));
        let schedule = schedule();
        mine.keep(&schedule, &mark(Extent::Everything));
        assert_eq!(theirs.read(&schedule), Forgotten::default());
        assert_eq!(mine.read(&self::schedule()), Forgotten::default());
        let whole = fs::read(&mine.path).unwrap();
        for end in 0..whole.len() {
            fs::write(&mine.path, &whole[..end]).unwrap();
            assert_eq!(mine.read(&schedule), Forgotten::default());
        }
        fs::write(&mine.path, vec![0; MAX_FILE as usize + 1]).unwrap();
        assert_eq!(mine.read(&schedule), Forgotten::default());
        // It is replaced with the next mark.
        let marks = mark(Extent::Everything);
        mine.keep(&schedule, &marks);
        assert_eq!(mine.read(&schedule), marks);
    }
}
