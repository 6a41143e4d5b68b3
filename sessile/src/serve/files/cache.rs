//! Small files in memory, for all folders of a process.
//!
//! - A file enters at its second request. It must not have changed while it was read, and its modification time
//!   must be at least two seconds old.
//! - A check opens the path again, from the folder on, and compares the identity of the file.
//! - For one second after a check, a file is served without a new check. In the next second, a request starts a
//!   check and does not wait for the result. Later requests wait.
//! - The cache does not remember that a path has no file.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Response};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, Weighter};
use sessile_proto::affinity::Source;
use tokio::sync::Mutex as AsyncMutex;

use super::content::{Content, FileError, Opened};
use super::pool::{DEADLINE, Pool, Unavailable};
use super::resolve::{self, Found, Identity, RegularFile};
use super::respond;
use super::validators::Validators;
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

/// How many of the largest files one part of the cache has room for, at least.
///
/// The cache is split into parts with a lock each. A part refuses an entry that fills nearly all of it.
const FILES_IN_PART: u64 = 8;

/// Most parts of the cache.
const MAX_PARTS: u64 = 64;

/// Bytes that an entry takes beside its path and content.
const ENTRY: u64 = 1280;

/// The files in memory.
pub(in crate::serve) struct FileCache {
    files: Cache<Key, Arc<CachedFile>, Weights>,
    /// The hashes of paths that were requested once. A new hash overwrites the old hash in its place.
    first_requests: Box<[AtomicU64]>,
    /// Files that a thread is reading into the cache.
    filling: Mutex<HashSet<Key>>,
    max_file: u64,
    weights: Weights,
    hasher: RandomState,
    started: Instant,
}

/// A path below a folder.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) folder: Arc<Path>,
    pub(super) symlinks: Symlinks,
    pub(super) path: PathBuf,
}

/// A [`Key`] whose parts belong to a folder and a request.
#[derive(Clone, Copy)]
pub(super) struct KeyRef<'a> {
    pub(super) folder: &'a Path,
    pub(super) symlinks: Symlinks,
    pub(super) path: &'a Path,
}

impl Key {
    fn by_ref(&self) -> KeyRef<'_> {
        KeyRef {
            folder: &self.folder,
            symlinks: self.symlinks,
            path: &self.path,
        }
    }
}

impl KeyRef<'_> {
    /// The bytes of the key. To compare paths by their names takes longer.
    fn parts(&self) -> (&OsStr, Symlinks, &OsStr) {
        (
            self.folder.as_os_str(),
            self.symlinks,
            self.path.as_os_str(),
        )
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.parts() == key.by_ref().parts()
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.by_ref().hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.by_ref().equivalent(other)
    }
}

impl Eq for Key {}

/// A file in memory.
pub(super) struct CachedFile {
    identity: Identity,
    content: Bytes,
    /// The headers of a response with the whole file.
    headers: HeaderMap,
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
        self.of(key, file.content.len() as u64)
    }
}

impl Weights {
    fn of(&self, key: &Key, length: u64) -> u64 {
        let path = key.path.as_os_str().len() as u64;
        length.saturating_add(path + ENTRY).max(self.least)
    }
}

impl FileCache {
    /// `None` if the settings turn the cache off.
    pub(in crate::serve) fn new(settings: &config::Files) -> Option<Arc<Self>> {
        let (bytes, entries) = (settings.cache_size, settings.cache_max_entries);
        if bytes == 0 || entries == 0 || settings.cache_max_file == 0 {
            return None;
        }
        let weights = Weights {
            least: bytes / entries as u64,
        };
        let parts = bytes / FILES_IN_PART / (settings.cache_max_file + ENTRY);
        let parts = parts.clamp(1, MAX_PARTS);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(entries)
            .weight_capacity(bytes)
            .shards(usize::try_from(parts).unwrap_or(1))
            .build()
            .expect("both capacities are given");
        let hasher = DefaultHashBuilder::default();
        let lifecycle = DefaultLifecycle::default();
        Some(Arc::new(Self {
            files: Cache::with_options(options, weights.clone(), hasher, lifecycle),
            weights,
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

    /// The file of a path, if it is in memory and was checked at most a second ago.
    pub(super) fn get_fresh(&self, key: &KeyRef<'_>) -> Option<Arc<CachedFile>> {
        let file = self.files.get(key)?;
        let is_outdated = file.is_outdated.load(Ordering::Acquire);
        (self.age(&file) <= FRESH && !is_outdated).then_some(file)
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
                let asked = self.started.elapsed();
                let checked = tokio::time::timeout(DEADLINE, check.wait(asked)).await;
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
        file.age_at(self.started.elapsed())
    }

    /// False for a file that the cache would not keep.
    fn has_room(&self, key: &Key, length: u64) -> bool {
        let part = self.files.shard_capacity();
        length <= self.max_file && self.weights.of(key, length) <= part / 2
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
    /// The time since the last check. `now` counts from the start of the cache.
    fn age_at(&self, now: Duration) -> Duration {
        let checked = Duration::from_millis(self.checked.load(Ordering::Acquire));
        now.saturating_sub(checked)
    }

    /// The file in the form that a response needs.
    pub(super) fn opened(&self) -> Opened {
        Opened {
            length: self.identity.length,
            modified: self.identity.modified,
            start: self.content.clone(),
            file: None,
        }
    }

    /// A response with the whole file.
    pub(super) fn whole(&self) -> Response<Content> {
        let mut response = Response::new(Content::InMemory(self.content.clone()));
        let headers = response.headers_mut();
        // A clone would have no room for the date.
        headers.reserve(respond::MAX_HEADERS);
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        response
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
    /// `begun`: a time before the file was looked up.
    ///
    /// # Errors
    /// The file system cannot read the file.
    pub(super) fn read(
        &self,
        file: &RegularFile,
        begun: Instant,
    ) -> std::io::Result<Option<Opened>> {
        let identity = file.identity;
        if !self.cache.has_room(&self.key, identity.length) || !is_settled(&identity) {
            return Ok(None);
        }
        let length = usize::try_from(identity.length).unwrap_or(usize::MAX);
        let content = resolve::read(file.fd.as_fd(), 0, length)?;
        if content.len() != length || resolve::identity(file.fd.as_fd())? != identity {
            return Ok(None);
        }
        let validators = Validators::new(identity.length, identity.modified, SystemTime::now());
        let headers = respond::headers(&self.key.path, identity.length, &validators);
        let file = CachedFile {
            identity,
            content: content.into(),
            headers,
            checked: AtomicU64::new(self.cache.millis(begun)),
            checking: AsyncMutex::default(),
            is_outdated: AtomicBool::new(false),
        };
        let opened = file.opened();
        self.cache.files.insert(self.key.clone(), Arc::new(file));
        Ok(Some(opened))
    }
}

/// True if the last change of a file is long enough ago. Two changes within the resolution of the file system's
/// clock have the same time. A program can set the time of modification, but not the time of change.
fn is_settled(identity: &Identity) -> bool {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let settled = since_epoch.unwrap_or_default().saturating_sub(SETTLED);
    [identity.modified.seconds, identity.changed.0]
        .into_iter()
        .all(|last| u64::try_from(last).is_ok_and(|last| last < settled.as_secs()))
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
            let asked = self.cache.started.elapsed();
            let _ = self.wait(asked).await;
        });
    }

    /// Waits until a check has ended. If several callers wait, only one makes the check.
    ///
    /// `asked`: when the caller needed the check, from the start of the cache. A check can take longer than its
    /// result stays fresh, so the time of its end does not count.
    async fn wait(&self, asked: Duration) -> Result<(), FileError> {
        let _checking = self.file.checking.lock().await;
        let is_outdated = self.file.is_outdated.load(Ordering::Acquire);
        if is_outdated || self.file.age_at(asked) <= FRESH {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::files::pool::Pools;
    use std::fs::File;
    use std::net::{IpAddr, Ipv4Addr};

    /// A file that was written before this test was built. Nobody can set the time of change of a file.
    const SETTLED_FILE: &str = "Cargo.toml";

    fn key(path: &str) -> Key {
        Key {
            folder: Path::new(env!("CARGO_MANIFEST_DIR")).into(),
            symlinks: Symlinks::Inside,
            path: path.into(),
        }
    }

    /// A cache that was started 20 s ago.
    fn cache(cache_size: u64) -> Arc<FileCache> {
        let settings = config::Files {
            cache_size,
            ..config::Files::default()
        };
        let mut cache = FileCache::new(&settings).expect("a cache");
        let started = Instant::now().checked_sub(Duration::from_secs(20));
        Arc::get_mut(&mut cache).expect("one owner").started = started.expect("a time");
        cache
    }

    fn fill(cache: &Arc<FileCache>, begun: Instant) -> Option<Opened> {
        let key = key(SETTLED_FILE);
        let file = File::open(key.folder.join(&key.path)).expect("a file");
        let file = RegularFile {
            identity: resolve::identity(file.as_fd()).expect("an answer"),
            fd: file.into(),
        };
        assert!(cache.begin_fill(&key).is_none(), "the first request");
        let fill = cache.begin_fill(&key).expect("the second request");
        fill.read(&file, begun).expect("no error")
    }

    #[test]
    fn one_request_reads_a_file_into_the_cache() {
        let cache = cache(1 << 20);
        let key = key("page");
        assert!(cache.begin_fill(&key).is_none());
        let fill = cache.begin_fill(&key).expect("the second request");
        assert!(cache.begin_fill(&key).is_none());
        drop(fill);
        assert!(cache.begin_fill(&key).is_some());
    }

    #[test]
    fn a_file_that_the_cache_would_not_keep_is_not_read_whole() {
        let file = std::fs::metadata(key(SETTLED_FILE).folder.join(SETTLED_FILE));
        let length = file.expect("a file").len();
        for (cache_size, entries) in [(length + 512, 0), (4 * (length + 512), 1)] {
            let cache = cache(cache_size);
            let opened = fill(&cache, Instant::now());
            assert_eq!(opened.is_some(), entries == 1, "{cache_size}");
            assert_eq!(cache.entries(), entries, "{cache_size}");
        }
    }

    #[test]
    fn the_largest_files_fit_into_a_large_cache() {
        for max_file in [1 << 10, 64 << 10, 1 << 20] {
            let settings = config::Files {
                cache_max_file: max_file,
                ..config::Files::default()
            };
            let cache = FileCache::new(&settings).expect("a cache");
            assert!(cache.has_room(&key("page"), max_file), "{max_file}");
            assert!(!cache.has_room(&key("page"), max_file + 1), "{max_file}");
        }
    }

    #[test]
    fn a_file_in_memory_is_as_old_as_the_search_for_it() {
        let cache = cache(1 << 20);
        let begun = cache.started + Duration::from_secs(5);
        fill(&cache, begun).expect("it stays in memory");
        let file = cache.files.get(&key(SETTLED_FILE)).expect("a file");
        assert_eq!(file.checked.load(Ordering::Relaxed), 5_000);
    }

    #[test]
    fn only_a_file_that_was_checked_within_a_second_is_fresh() {
        let cache = cache(1 << 20);
        let key = key(SETTLED_FILE);
        let is_fresh = || cache.get_fresh(&key.by_ref()).is_some();
        assert!(!is_fresh(), "not in memory");
        fill(&cache, cache.started).expect("it stays in memory");
        assert!(!is_fresh(), "checked 20 s ago");
        let file = cache.files.get(&key).expect("a file");
        file.checked.store(u64::MAX, Ordering::Relaxed);
        assert!(is_fresh());
        file.is_outdated.store(true, Ordering::Relaxed);
        assert!(!is_fresh(), "outdated");
    }

    #[test]
    fn an_old_modification_time_does_not_hide_a_change_of_just_now() {
        let file = tempfile::tempfile().expect("a file");
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        file.set_modified(long_ago).expect("a time");
        let identity = resolve::identity(file.as_fd()).expect("an answer");
        assert!(!is_settled(&identity));
    }

    #[tokio::test]
    async fn a_slow_check_is_enough_for_all_requests_that_waited_for_it() {
        let cache = cache(1 << 20);
        fill(&cache, cache.started).expect("it stays in memory");
        let file = cache.files.get(&key(SETTLED_FILE)).expect("a file");
        let check = Check {
            cache: Arc::clone(&cache),
            // A check of this path finds nothing.
            key: key("missing"),
            file: Arc::clone(&file),
            pool: Pools::new(1).of(Path::new("/")),
            source: Source::of(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        };
        // A check began at 10 s and took 10 s. Its result is no longer fresh.
        file.checked.store(10_000, Ordering::Relaxed);
        assert!(cache.age(&file) > USABLE);
        for (asked, is_outdated) in [(9, false), (10, false), (11, false), (12, true)] {
            let waited = check.wait(Duration::from_secs(asked)).await;
            waited.expect("an answer");
            let found = file.is_outdated.load(Ordering::Relaxed);
            assert_eq!(found, is_outdated, "{asked}");
        }
    }
}
