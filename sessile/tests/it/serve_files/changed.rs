//! Files that change while they are sent.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Child, ExitStatus, Stdio};

use super::{Site, VERSIONS};

/// More than the buffers between curl and the server can have.
const LENGTH: u64 = 96 << 20;

/// A download that has received its first bytes. curl stops reading until the test reads on.
struct Download(Child);

impl Download {
    fn start(site: &Site, version: &str) -> Self {
        let mut command = site.curl("/large", &[version, "--max-time", "60"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("curl is missing: install curl");
        let mut first = [1];
        let stdout = child.stdout.as_mut().expect("a pipe");
        stdout.read_exact(&mut first).expect("a first byte");
        assert_eq!(first, [0]);
        Self(child)
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
        // curl: 18 is a partial file, 92 a reset stream.
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
    let site = Site::start();
    for (version, _) in VERSIONS {
        make_large_file(&site);
        let download = Download::start(&site, version);
        fs::write(site.path("www/new"), "new").unwrap();
        fs::rename(site.path("www/new"), site.path("www/large")).unwrap();
        let (received, status) = download.finish();
        assert_eq!((received, status.success()), (LENGTH, true));
        assert_eq!(site.get("/large", &[version]).body, "new");
    }
}
