//! Static files of a folder. [`Folder::open`] is the only way to a file.
//!
//! - `cache` has small files in memory.
//! - `resolve` finds and opens files. `pool` has the threads for these operations, and `queue` has the
//!   operations that wait.
//! - `content` reads a file while the response is sent, with `page_cache` if the bytes are in memory.
//!   `open_files` limits how many files are open.
//! - `validators` and `range` read the headers of a request and decide; `respond` makes the response.

mod cache;
mod content;
mod open_files;
mod page_cache;
mod pool;
mod queue;
mod range;
mod resolve;
mod respond;
mod validators;

pub(super) use cache::FileCache;
pub(super) use content::{Content, FileStream};

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{Request, Response, StatusCode, Version};
use sessile_proto::affinity::Source;

use super::metrics::FileMetrics;
use super::request_task::RequestEnd;
use crate::config::{self, Action, Config, Symlinks};
use cache::{Key, KeyRef};
use content::{Access, FileError, Opened, Wanted};
use open_files::OpenFiles;
use pool::{Pool, Pools, Unavailable};
use resolve::Found;

/// Most bytes that are read at once.
const PIECE: usize = 128 * 1024;

/// Most files that responses may have open, even if the process may open more.
const MAX_OPEN_FILES: u16 = 16_384;

/// As [`PIECE`], over HTTP/2. Each stream of a connection can have a piece in memory.
const HTTP2_PIECE: usize = 64 * 1024;

/// The most files that responses may have open, if the process may open `limit` files.
pub(super) fn max_open_files(limit: u64) -> u16 {
    u16::try_from(limit / 8).map_or(MAX_OPEN_FILES, |files| files.min(MAX_OPEN_FILES))
}

/// The threads, open files and files in memory of all folders of a process. A reload keeps them.
pub(super) struct FileResources {
    pools: Pools,
    cache: Option<Arc<FileCache>>,
}

impl FileResources {
    /// `max_open_files`: how many files the responses of all folders may have open.
    pub(super) fn new(max_open_files: usize, settings: &config::Files) -> Self {
        Self {
            pools: Pools::new(max_open_files),
            cache: FileCache::new(settings),
        }
    }

    /// Reads a number of the files in memory. The number is 0 if no file stays in memory.
    pub(super) fn gauge(
        &self,
        read: fn(&FileCache) -> usize,
    ) -> impl Fn() -> usize + Send + Sync + 'static {
        let cache = self.cache.clone();
        move || cache.as_deref().map_or(0, read)
    }
}

/// The folder of a route.
pub(super) struct Folder {
    path: Arc<Path>,
    symlinks: Symlinks,
    pool: Pool,
    open_files: OpenFiles,
    cache: Option<Arc<FileCache>>,
    metrics: Arc<FileMetrics>,
}

/// The answer to a request.
pub(super) enum Answer {
    Response(Response<Content>),
    /// The path names a folder. The relative links of an index page need a path that ends with a slash.
    MissingSlash,
}

/// The target of a path, ready for the response.
enum Target {
    File(Opened),
    Folder,
    Nothing,
}

impl Folder {
    pub(super) fn new(
        config: &config::Folder,
        resources: &FileResources,
        metrics: Arc<FileMetrics>,
    ) -> Self {
        Self {
            path: config.path.as_path().into(),
            symlinks: config.symlinks,
            pool: resources.pools.of(&config.path),
            open_files: resources.pools.open_files.clone(),
            cache: resources.cache.clone(),
            metrics,
        }
    }

    /// Answers a request for a whole file that is in memory and was checked recently.
    pub(super) fn answer_at_once<B>(
        &self,
        request: &Request<B>,
        below: &str,
    ) -> Option<Response<Content>> {
        let key = KeyRef {
            folder: &self.path,
            symlinks: self.symlinks,
            path: &resolve::relative_path(below)?,
        };
        let file = self.cache.as_ref()?.get_fresh(&key)?;
        let is_whole = respond::wanted(request.method(), request.headers()) == Wanted::Content;
        is_whole.then(|| {
            self.metrics.from_memory.inc();
            file.whole()
        })
    }

    /// Answers a GET or HEAD request. `below` is the part of the request's path below the route.
    ///
    /// # Errors
    /// 404 if there is no file, 503 if the file system fails.
    pub(super) async fn answer(
        &self,
        request: &Parts,
        below: &str,
        client: IpAddr,
        end: RequestEnd,
    ) -> Result<Answer, StatusCode> {
        let key = Key {
            folder: Arc::clone(&self.path),
            symlinks: self.symlinks,
            path: resolve::relative_path(below)
                .ok_or(StatusCode::NOT_FOUND)?
                .into_owned(),
        };
        match self.open(&key, request, Source::of(client), end).await {
            Ok(Target::File(opened)) => {
                let response = respond::respond(request, &key.path, opened);
                Ok(Answer::Response(response))
            }
            Ok(Target::Folder) => Ok(Answer::MissingSlash),
            Ok(Target::Nothing) => Err(StatusCode::NOT_FOUND),
            Err(error) => Err(self.refuse(&key.path, &error)),
        }
    }

    /// Opens the file of a path below the folder, or finds it in memory.
    async fn open(
        &self,
        key: &Key,
        request: &Parts,
        source: Source,
        end: RequestEnd,
    ) -> Result<Target, FileError> {
        let mut fill = None;
        if let Some(cache) = &self.cache {
            if let Some(file) = cache.get(key, &self.pool, source).await? {
                self.metrics.from_memory.inc();
                return Ok(Target::File(file.opened()));
            }
            fill = cache.begin_fill(key);
        }
        let access = self.access(request.version, source, end);
        let wanted = respond::wanted(&request.method, &request.headers);
        let key = key.clone();
        let open = move || {
            let begun = Instant::now();
            Ok(match resolve::find(&key.folder, &key.path, key.symlinks)? {
                Found::File(file) => {
                    let in_memory = match fill {
                        Some(fill) => fill.read(&file, begun)?,
                        None => None,
                    };
                    Target::File(match in_memory {
                        Some(opened) => opened,
                        None => access.prepare(key.path, file, wanted)?,
                    })
                }
                Found::Folder => Target::Folder,
                Found::Nothing => Target::Nothing,
            })
        };
        self.pool.run(source, open).await?
    }

    fn access(&self, version: Version, source: Source, end: RequestEnd) -> Access {
        Access {
            pool: self.pool.clone(),
            open_files: self.open_files.clone(),
            metrics: Arc::clone(&self.metrics),
            source,
            end,
            piece: match version {
                Version::HTTP_2 => HTTP2_PIECE,
                _ => PIECE,
            },
        }
    }

    /// Counts and logs why a file cannot be served, and returns the status for the client.
    fn refuse(&self, path: &Path, error: &FileError) -> StatusCode {
        let metrics = &self.metrics;
        let counter = match error {
            FileError::Unavailable(Unavailable::Timeout) => &metrics.timeout,
            FileError::Unavailable(Unavailable::Overloaded) | FileError::TooManyOpen => {
                &metrics.overloaded
            }
            FileError::Displaced => &metrics.displaced,
            FileError::Io(_) | FileError::Truncated => &metrics.error,
        };
        counter.inc();
        self.pool.log(path, error);
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Warns about folders in which no symbolic link is followed, because the system cannot check links.
pub(super) fn warn_of_unusable_links(config: &Config) {
    if resolve::has_openat2() {
        return;
    }
    for route in config.sites.iter().flat_map(|site| &site.routes) {
        if let Action::Files(folder) = &route.action
            && folder.symlinks == Symlinks::Inside
        {
            tracing::warn!(
                folder = %folder.path.display(),
                "no symbolic link is followed, because the kernel or a sandbox refuses openat2; use Linux 5.6, \
                 or write symlinks = \"follow\" if you control all links in the folder"
            );
        }
    }
}
