//! Long downloads. A file changes while the server sends it, or one client has many downloads.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::{Site, TEXT, VERSIONS, configuration, files};
use crate::peers::{Certificates, Sessile, eventually};

/// The size of a file that the buffers between curl and the server cannot hold.
const LENGTH: u64 = 96 << 20;

/// A download that has received its first bytes. curl stops reading until the test reads on.
struct Download(Child);

impl Download {
    fn start(site: &Site, version: &str) -> Self {
        Self::try_start(site, &[version]).expect("a first byte")
    }

    /// `None` if the response has an error status.
    fn try_start(site: &Site, arguments: &[&str]) -> Option<Self> {
        let mut command = site.curl("/large", arguments);
        command.args(["--fail", "--max-time", "60"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn().expect("curl is missing: install curl");
        let mut download = Self(child);
        let mut first = [1];
        let stdout = download.0.stdout.as_mut().expect("a pipe");
        stdout.read_exact(&mut first).ok()?;
        assert_eq!(first, [0]);
        Some(download)
    }

    /// The number of all bytes that arrive, and the exit status of curl. All bytes must be zero.
    fn finish(mut self) -> (u64, ExitStatus) {
        let mut stdout = self.0.stdout.take().expect("a pipe");
        let mut received = 1;
        let mut piece = vec![1; 1 << 16];
        loop {
            let length = stdout.read(&mut piece).expect("a pipe");
            if length == 0 {
                break;
            }
            assert!(piece[..length].iter().all(|&byte| byte == 0));
            received += length as u64;
        }
        (received, self.0.wait().expect("a child"))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn make_large_file(site: &Site) {
    let file = File::create(site.path("www/large")).unwrap();
    file.set_len(LENGTH).unwrap();
}

#[test]
fn a_file_that_becomes_shorter_ends_its_response_with_an_error() {
    let site = Site::start();
    for (version, _) in VERSIONS {
        make_large_file(&site);
        let download = Download::start(&site, version);
        let file = File::options().write(true).open(site.path("www/large"));
        file.unwrap().set_len(1000).unwrap();
        let (received, status) = download.finish();
        assert!(received < LENGTH, "{received}");
        // The exit status of curl is 18 for a partial file, and 92 for a reset stream.
        assert!(matches!(status.code(), Some(18 | 92)), "{status}");
    }
    let cut = [("cause", "cut")];
    let metrics = site.sessile.metrics();
    assert_eq!(metrics.sum("sessile_file_failures_total", &cut), 2);
    site.sessile
        .await_line("the file became shorter while it was sent");
}

#[test]
fn a_file_that_is_replaced_is_sent_to_its_end() {
    for (version, _) in VERSIONS {
        // A new server has no file in memory.
        let site = Site::start();
        make_large_file(&site);
        let download = Download::start(&site, version);
        fs::write(site.path("www/new"), "new").unwrap();
        fs::rename(site.path("www/new"), site.path("www/large")).unwrap();
        let (received, status) = download.finish();
        assert_eq!((received, status.success()), (LENGTH, true));
        assert_eq!(site.get("/large", &[version]).body, "new");
    }
}

/// Of the files that the process may open, an eighth is for responses.
const OPEN_FILES: usize = 20;

/// Places of downloads. The other files are for displaced downloads that are not closed yet.
const PLACES: usize = 17;

/// A server that may open so few files that some downloads take them all.
fn site_with_few_open_files() -> Site {
    let (certificates, files) = (Certificates::new(), files());
    let routes = "[[site.route]]\npath = \"/\"\nfiles = \"www\"\n";
    let (config, state) = configuration(&certificates, &files, routes);
    let mut starter = Command::new("sh");
    let limit = OPEN_FILES * 8;
    starter.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]);
    let sessile = Sessile::serve_by(starter, &config, &state);
    let site = Site {
        certificates,
        files,
        sessile,
    };
    make_large_file(&site);
    site
}

impl Site {
    fn failures_by(&self, cause: &str) -> u64 {
        let metrics = self.sessile.metrics();
        metrics.sum("sessile_file_failures_total", &[("cause", cause)])
    }
}

#[test]
fn a_source_with_many_slow_downloads_leaves_files_for_others() {
    let site = site_with_few_open_files();
    let start = |version| Download::try_start(&site, &[version]);
    let versions = VERSIONS.into_iter().map(|(version, _)| version).cycle();
    let mut downloads: Vec<Download> = versions.take(PLACES).map_while(start).collect();
    assert_eq!(downloads.len(), PLACES, "a single source may use all");
    assert!(start("--http1.1").is_none());
    assert_eq!(site.failures_by("overloaded"), 1);
    // The server closes a small file before it sends the response, or a part of the file.
    assert_eq!(site.get("/text.txt", &[]).body, TEXT);
    assert_eq!(site.get("/text.txt", &["-r", "0-4"]).body, TEXT[..5]);

    let mut others = Vec::new();
    for number in 1..PLACES as u64 {
        let address = format!("127.0.{number}.1");
        let arguments = ["--http1.1", "--interface", &address];
        let other = Download::try_start(&site, &arguments);
        others.push(other.expect("a file for each source"));
        eventually("a download ended", || {
            site.failures_by("displaced") == number
        });
    }
    // The oldest downloads were cut. Each source has one now.
    let last = downloads.split_off(PLACES - 1);
    for download in downloads {
        let (received, status) = download.finish();
        assert!(received < LENGTH, "{received}");
        // curl: 18 is a partial file, 56 a connection that ended without a close_notify, 92 a reset stream.
        assert!(matches!(status.code(), Some(18 | 56 | 92)), "{status}");
    }
    for download in last.into_iter().chain(others) {
        let (received, status) = download.finish();
        assert_eq!((received, status.success()), (LENGTH, true));
    }
    assert_eq!(site.failures_by("cut"), 0);
    site.sessile
        .await_metrics(|metrics| metrics.sum("sessile_connections_open", &[]) == 0);
    drop(start("--http1.1").expect("a file after the end of the others"));
}
