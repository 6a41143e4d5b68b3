//! Small files in memory, for all folders of a process.
//!
//! - A file enters at its second request. It must not have changed while it was read, and its modification time
//!   must be at least two seconds old.
//! - A check opens the path again, from the folder on, and compares the identity of the file.
//! - For one second after a check, a file is served without a new check. In the next second, a request starts a
//!   check and does not wait for the result. Later requests wait.
//! - The cache does not remember that a path has no file.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use sessile_proto::affinity::Source;
use tokio::sync::Mutex as AsyncMutex;

use super::content::{FileError, Opened};
use super::pool::{DEADLINE, Pool, Unavailable};
use super::resolve::{self, Found, Identity, RegularFile};
use crate::config::{self, Symlinks};
use crate::locks::locked;

/// How long a file is served without a check.
const FRESH: Duration = Duration::from_secs(1);

/// How long a file is served while a check runs.
const USABLE: Duration = Duration::from_secs(2);

/// A file that changed more recently may change again and keep the same modification time.
const SETTLED: Duration = Duration::from_secs(2);

/// How many first requests the cache remembers, by a hash of the path.
const FIRST_REQUESTS: usize = 4096;

/// Bytes that an entry takes beside its path and content.
const ENTRY: u64 = 256;

/// The files in memory.
pub(in crate::serve) struct FileCache {
    files: Cache<Key, Arc<CachedFile>, Weights>,
    /// The hashes of paths that were requested once. A new hash overwrites the old hash in its place.
    first_requests: Box<[AtomicU64]>,
    /// Files that a thread is reading into the cache.
    filling: Mutex<HashSet<Key>>,
    max_file: u64,
    hasher: RandomState,
    started: Instant,
}

/// A path below a folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) folder: Arc<Path>,
    pub(super) symlinks: Symlinks,
    pub(super) path: PathBuf,
}

/// A file in memory.
pub(super) struct CachedFile {
    identity: Identity,
    content: Bytes,
    /// The time of the last check, in milliseconds from the start of the cache.
    checked: AtomicU64,
    /// Held during a check.
    checking: AsyncMutex<()>,
    /// True if the path leads to another file, or to another version of the file.
    is_outdated: AtomicBool,
}

/// How much of the limits an entry takes.
#[derive(Clone)]
struct Weights {
    /// The limit on bytes divided by the limit on entries. No entry weighs less than this, so the cache keeps
    /// both limits.
    least: u64,
}

impl Weighter<Key, Arc<CachedFile>> for Weights {
    fn weight(&self, key: &Key, file: &Arc<CachedFile>) -> u64 {
        let bytes = key.path.as_os_str().len() + file.content.len();
        (bytes as u64 + ENTRY).max(self.least)
    }
}

impl FileCache {
    /// `None` if the settings turn the cache off.
    pub(in crate::serve) fn new(settings: &config::Files) -> Option<Arc<Self>> {
        let (bytes, entries) = (settings.cache_size, settings.cache_max_entries);
        if bytes == 0 || entries == 0 || settings.cache_max_file == 0 {
            return None;
        }
        let least = bytes / entries as u64;
        Some(Arc::new(Self {
            files: Cache::with_weighter(entries, bytes, Weights { least }),
            first_requests: (0..FIRST_REQUESTS).map(|_| AtomicU64::new(0)).collect(),
            filling: Mutex::default(),
            max_file: settings.cache_max_file,
            hasher: RandomState::new(),
            started: Instant::now(),
        }))
    }

    /// How many files are in memory.
    pub(in crate::serve) fn entries(&self) -> usize {
        self.files.len()
    }

    /// How many bytes of `files.cache-size` the files in memory take.
    pub(in crate::serve) fn bytes(&self) -> usize {
        usize::try_from(self.files.weight()).unwrap_or(usize::MAX)
    }

    /// The current file of a path, if it is in memory.
    ///
    /// # Errors
    /// The last check is too old, and a new check had no result.
    pub(super) async fn get(
        self: &Arc<Self>,
        key: &Key,
        pool: &Pool,
        source: Source,
    ) -> Result<Option<Arc<CachedFile>>, FileError> {
        let Some(file) = self.files.get(key) else {
            return Ok(None);
        };
        let age = self.age(&file);
        if age > FRESH {
            let check = Check {
                cache: Arc::clone(self),
                key: key.clone(),
                file: Arc::clone(&file),
                pool: pool.clone(),
                source,
            };
            if age > USABLE {
                let checked = tokio::time::timeout(DEADLINE, check.wait()).await;
                checked.map_err(|_| Unavailable::Timeout)??;
            } else {
                check.start();
            }
        }
        Ok((!file.is_outdated.load(Ordering::Acquire)).then_some(file))
    }

    /// Reserves the right to read a file into the cache, at the second request for its path.
    pub(super) fn begin_fill(self: &Arc<Self>, key: &Key) -> Option<Fill> {
        let hash = self.hasher.hash_one(key) | 1;
        let first = &self.first_requests[hash as usize / 2 % FIRST_REQUESTS];
        if first.swap(hash, Ordering::Relaxed) != hash {
            return None;
        }
        locked(&self.filling).insert(key.clone()).then(|| Fill {
            cache: Arc::clone(self),
            key: key.clone(),
        })
    }

    fn age(&self, file: &CachedFile) -> Duration {
        let checked = Duration::from_millis(file.checked.load(Ordering::Acquire));
        self.started.elapsed().saturating_sub(checked)
    }

    fn millis(&self, at: Instant) -> u64 {
        let millis = at.duration_since(self.started).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX)
    }

    /// Removes a file, unless another version has its place already.
    fn remove(&self, key: &Key, file: &Arc<CachedFile>) {
        file.is_outdated.store(true, Ordering::Release);
        self.files.remove_if(key, |held| Arc::ptr_eq(held, file));
    }
}

impl CachedFile {
    /// The file in the form that a response needs.
    pub(super) fn opened(&self) -> Opened {
        Opened {
            length: self.identity.length,
            modified: self.identity.modified,
            start: self.content.clone(),
            file: None,
        }
    }
}

/// The right to read one file into the cache.
pub(super) struct Fill {
    cache: Arc<FileCache>,
    key: Key,
}

impl Fill {
    /// Reads a file into the cache. `None` if the file is too large, or may be changing. This can block.
    ///
    /// # Errors
    /// The file system cannot read the file.
    pub(super) fn read(&self, file: &RegularFile) -> std::io::Result<Option<Opened>> {
        let identity = file.identity;
        if identity.length > self.cache.max_file || !is_settled(&identity) {
            return Ok(None);
        }
        let begun = Instant::now();
        let length = usize::try_from(identity.length).unwrap_or(usize::MAX);
        let content = resolve::read(file.fd.as_fd(), 0, length)?;
        if content.len() != length || resolve::identity(file.fd.as_fd())? != identity {
            return Ok(None);
        }
        let file = CachedFile {
            identity,
            content: content.into(),
            checked: AtomicU64::new(self.cache.millis(begun)),
            checking: AsyncMutex::default(),
            is_outdated: AtomicBool::new(false),
        };
        let opened = file.opened();
        self.cache.files.insert(self.key.clone(), Arc::new(file));
        Ok(Some(opened))
    }
}

/// True if the modification time of a file is long enough ago. Two changes within the resolution of the file
/// system's clock have the same time.
fn is_settled(identity: &Identity) -> bool {
    let settled = SystemTime::now().checked_sub(SETTLED);
    let settled = settled.and_then(|settled| settled.duration_since(UNIX_EPOCH).ok());
    settled.is_some_and(|settled| {
        let modified = identity.modified.seconds;
        u64::try_from(modified).is_ok_and(|modified| modified < settled.as_secs())
    })
}

impl Drop for Fill {
    fn drop(&mut self) {
        locked(&self.cache.filling).remove(&self.key);
    }
}

/// Compares a file in memory with the file that its path names now.
struct Check {
    cache: Arc<FileCache>,
    key: Key,
    file: Arc<CachedFile>,
    pool: Pool,
    source: Source,
}

impl Check {
    /// Starts a check, unless a check of this file is running.
    fn start(self) {
        if self.file.checking.try_lock().is_err() {
            return;
        }
        tokio::task::spawn_local(async move {
            // A failure is reported to the first request that has to wait for a check.
            let _ = self.wait().await;
        });
    }

    /// Waits until a check has ended. If several callers wait, only one makes the check.
    async fn wait(&self) -> Result<(), FileError> {
        let _checking = self.file.checking.lock().await;
        let is_outdated = self.file.is_outdated.load(Ordering::Acquire);
        if is_outdated || self.cache.age(&self.file) <= FRESH {
            return Ok(());
        }
        let begun = Instant::now();
        let Key {
            folder,
            symlinks,
            path,
        } = self.key.clone();
        let find = move || resolve::find(&folder, &path, symlinks);
        match self.pool.run(self.source, find).await?? {
            Found::File(found) if found.identity == self.file.identity => {
                let checked = self.cache.millis(begun);
                self.file.checked.store(checked, Ordering::Release);
            }
            _ => self.cache.remove(&self.key, &self.file),
        }
        Ok(())
    }
}
