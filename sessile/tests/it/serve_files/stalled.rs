//! Files of a FUSE file system that does not answer.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::cached::{USABLE, keep_in_memory};
use super::{Site, TEXT, VERSIONS, configuration, files};
use crate::peers::{Certificates, Sessile, run};

/// A number of requests that is larger than the number of threads of a folder or a worker.
const REQUESTS: usize = 40;

/// A site with the FUSE file system at `/stalled`, files from a disk at `/`, and a text at `/text`.
fn site() -> Site {
    assert!(
        fs::exists("/dev/fuse").unwrap(),
        "this test needs the kernel module fuse and user namespaces"
    );
    let (certificates, files) = (Certificates::new(), files());
    let path = |name: &str| files.path().join(name);
    fs::create_dir(path("mount")).unwrap();
    let routes = "[[site.route]]\npath = \"/\"\nfiles = \"www\"\n\
                  [[site.route]]\npath = \"/stalled\"\nfiles = \"mount\"\n\
                  [[site.route]]\npath = \"/text\"\nrespond = \"text\"\n";
    let (config, state) = configuration(&certificates, &files, routes);
    let mut starter = Command::new("unshare");
    starter.args(["--user", "--map-root-user", "--mount", "python3"]);
    let script = "/tests/it/serve_files/stalled_fs.py";
    starter.arg(format!("{}{script}", env!("CARGO_MANIFEST_DIR")));
    starter.arg(path("mount")).arg(path("pid"));
    let sessile = Sessile::serve_by(starter, &config, &state);
    Site {
        certificates,
        files,
        sessile,
    }
}

impl Site {
    fn failures(&self, cause: &str) -> u64 {
        let metrics = self.sessile.metrics();
        metrics.sum("sessile_file_failures_total", &[("cause", cause)])
    }

    /// Makes the file system answer again.
    fn end_stall(&self) {
        self.signal("-USR1");
    }

    /// Stops the answers to opens of `/page`.
    fn stall_page(&self) {
        self.signal("-USR2");
    }

    fn signal(&self, signal: &str) {
        let pid = fs::read_to_string(self.path("pid")).unwrap();
        run("procps", Command::new("kill").args([signal, &pid]), "").succeeded();
    }
}

#[test]
fn a_stalled_file_system_costs_its_own_route_only() {
    let site = site();
    let numbered = format!("/stalled/open?[1-{REQUESTS}]");
    let arguments = [
        "--parallel",
        "--parallel-max",
        "40",
        "--http1.1",
        "--max-time",
        "30",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}\n",
    ];
    let mut stalled = site.curl(&numbered, &arguments);
    stalled.stdout(Stdio::piped()).stderr(Stdio::null());
    let stalled = stalled.spawn().unwrap();
    site.sessile
        .await_metrics(|metrics| metrics.sum("sessile_requests_total", &[]) >= REQUESTS as u64);
    for (version, _) in VERSIONS {
        let get = |path: &str| site.get(path, &[version, "--max-time", "20"]).body;
        assert_eq!(get("/text.txt"), TEXT);
        assert_eq!(get("/text"), "text");
    }
    let output = stalled.wait_with_output().unwrap();
    let statuses = String::from_utf8(output.stdout).unwrap();
    assert_eq!(statuses, "503\n".repeat(REQUESTS));
    assert_eq!(site.failures("timeout"), REQUESTS as u64);
    site.sessile
        .await_line("the file system did not answer in time");

    site.end_stall();
    for (version, _) in VERSIONS {
        let response = site.get("/stalled/open", &[version, "--max-time", "20"]);
        assert_eq!((response.status, response.body.len()), (200, 2 << 20));
    }
}

#[test]
fn a_response_whose_file_system_stalls_ends_with_an_error() {
    let site = site();
    for ((version, _), path) in VERSIONS
        .into_iter()
        .zip(["/stalled/read1", "/stalled/read2"])
    {
        let whole = site.get("/stalled/good", &[version]);
        assert_eq!((whole.status, whole.body.len()), (200, 2 << 20));
        let arguments = [version, "--max-time", "30", "--output", "/dev/null"];
        let cut = run("curl", &mut site.curl(path, &arguments), "");
        // The exit status of curl is 18 for a partial file, and 92 for a reset stream.
        assert!(matches!(cut.status.code(), Some(18 | 92)), "{}", cut.stderr);
    }
    assert_eq!(site.failures("cut"), 2);
}

#[test]
fn a_file_in_memory_is_served_for_two_seconds_while_its_file_system_stalls() {
    let site = site();
    let page = "x".repeat(3000);
    keep_in_memory(&site, "/stalled/page", &page);
    site.stall_page();
    let stalled = Instant::now();
    let mut served = 0;
    loop {
        let sent = Instant::now();
        let response = site.get("/stalled/page", &["--max-time", "20"]);
        if response.status == 503 {
            break;
        }
        assert_eq!((response.status, &response.body), (200, &page));
        // No check that began after the stall has a result.
        assert!(sent <= stalled + USABLE, "200 after two seconds");
        served += 1;
    }
    assert!(served > 0);
    assert!(site.failures("timeout") >= 1);
    site.end_stall();
    keep_in_memory(&site, "/stalled/page", &page);
}
