//! Small files that the server keeps in memory. Responses are current, and never mix two versions of a file.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::{Response, Site, VERSIONS, configuration, files};
use crate::peers::{Certificates, Sessile, eventually};

/// For this time after a change, a request may still get the old content.
pub(super) const USABLE: Duration = Duration::from_secs(2);

const CLIENTS: usize = 3;

/// The content of a page. It is small, so that a file system reads the file in one piece.
fn content(letter: char) -> String {
    String::from(letter).repeat(3000)
}

/// Writes a file with an old modification time, so that the server may keep the file in memory.
fn write_settled(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    let settled = SystemTime::now() - Duration::from_secs(60);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(settled)
        .unwrap();
}

fn hits(site: &Site) -> u64 {
    site.sessile
        .metrics()
        .sum("sessile_file_cache_hits_total", &[])
}

/// Requests a path until the server answers from memory.
pub(super) fn keep_in_memory(site: &Site, path: &str, expected: &str) {
    let before = hits(site);
    eventually("the file comes from memory", || {
        site.get(path, &[]).body == expected && hits(site) > before
    });
}

/// One response: when its request was sent, and its status and content.
struct Seen {
    sent: Instant,
    status: u16,
    body: String,
}

/// Changes the file of `path` while clients request it. Each response must be entirely old or entirely new.
/// Responses to requests more than two seconds after the change must be new.
fn change_under_load(
    site: &Site,
    path: &str,
    before: &str,
    after: (u16, &str),
    change: impl FnOnce(),
) {
    keep_in_memory(site, path, before);
    let seen = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let changed = thread::scope(|scope| {
        for (version, _) in VERSIONS.into_iter().cycle().take(CLIENTS) {
            let (seen, stop) = (&seen, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let sent = Instant::now();
                    let response = site.get(path, &[version]);
                    let (status, body) = (response.status, response.body);
                    seen.lock().unwrap().push(Seen { sent, status, body });
                }
            });
        }
        eventually("some responses", || seen.lock().unwrap().len() > CLIENTS);
        change();
        let changed = Instant::now();
        eventually("responses long after the change", || {
            let seen = seen.lock().unwrap();
            let late = seen.iter().filter(|seen| seen.sent > changed + USABLE);
            late.count() > CLIENTS
        });
        stop.store(true, Ordering::Relaxed);
        changed
    });
    for Seen { sent, status, body } in seen.into_inner().unwrap() {
        let is_new = (status, body.as_str()) == after || (status == after.0 && after.0 != 200);
        let is_old = (status, body.as_str()) == (200, before);
        assert!(is_new || is_old, "{path}: {status} {body}");
        assert!(
            is_new || sent <= changed + USABLE,
            "{path}: {status} after two seconds"
        );
    }
}

#[test]
fn a_file_in_memory_follows_every_change_of_its_path() {
    let site = Site::start();
    let page = site.path("www/page");
    let (old, new) = (content('a'), content('b'));
    write_settled(&page, &old);
    change_under_load(&site, "/page", &old, (200, &new), || {
        let file = File::options().write(true).open(&page).unwrap();
        file.write_all_at(new.as_bytes(), 0).unwrap();
    });

    write_settled(&page, &old);
    let other = site.path("www/other");
    write_settled(&other, &new);
    change_under_load(&site, "/page", &old, (200, &new), || {
        fs::rename(&other, &page).unwrap()
    });

    write_settled(&page, &old);
    change_under_load(&site, "/page", &old, (200, "aaa"), || {
        File::options()
            .write(true)
            .open(&page)
            .unwrap()
            .set_len(3)
            .unwrap();
    });

    write_settled(&page, &old);
    change_under_load(&site, "/page", &old, (404, ""), || {
        fs::remove_file(&page).unwrap()
    });

    // The file becomes a link to a file outside of the folder, which the server must not follow.
    write_settled(&page, &old);
    change_under_load(&site, "/page", &old, (404, ""), || {
        fs::rename(&page, &other).unwrap();
        symlink("/etc/hostname", &page).unwrap();
    });
}

#[test]
fn a_file_in_memory_that_becomes_unreadable_is_not_served() {
    let (certificates, files) = (Certificates::new(), files());
    let routes = "[[site.route]]\npath = \"/\"\nfiles = \"www\"\n";
    let (config, state) = configuration(&certificates, &files, routes);
    // In a user namespace without users, also root obeys the mode of a file.
    let mut starter = Command::new("unshare");
    starter.arg("--user");
    let sessile = Sessile::serve_by(starter, &config, &state);
    let site = Site {
        certificates,
        files,
        sessile,
    };
    let page = site.path("www/page");
    let content = content('a');
    write_settled(&page, &content);
    let set_mode = |mode| fs::set_permissions(&page, Permissions::from_mode(mode)).unwrap();
    change_under_load(&site, "/page", &content, (404, ""), || set_mode(0));
    set_mode(0o644);
    keep_in_memory(&site, "/page", &content);
}

#[test]
fn files_in_memory_follow_a_link_that_a_deployment_replaces() {
    let (certificates, files) = (Certificates::new(), files());
    let (old, new) = (content('a'), content('b'));
    for (version, content) in [("v1", &old), ("v2", &new)] {
        let folder = files.path().join(version);
        fs::create_dir(&folder).unwrap();
        write_settled(&folder.join("page"), content);
    }
    let current = files.path().join("current");
    symlink("v1", &current).unwrap();
    let routes = "[[site.route]]\npath = \"/\"\nfiles = \"current\"\n";
    let (config, state) = configuration(&certificates, &files, routes);
    let sessile = Sessile::serve_configured(&config, &state);
    let site = Site {
        certificates,
        files,
        sessile,
    };
    change_under_load(&site, "/page", &old, (200, &new), || {
        let next = site.path("next");
        symlink("v2", &next).unwrap();
        fs::rename(&next, &current).unwrap();
    });
}

#[test]
fn a_response_from_memory_has_the_headers_of_a_response_from_the_file_system() {
    let site = Site::start();
    write_settled(&site.path("www/page.html"), &content('a'));
    let from_memory = || {
        let before = hits(&site);
        let response = site.get("/page.html", &["--http2"]);
        (response, hits(&site) > before)
    };
    let headers = |response: &Response| {
        let is_date = |line: &&str| line.starts_with("date: ");
        let lines = response.head.lines().map(str::trim_end);
        let mut lines: Vec<_> = lines
            .filter(|line| !is_date(line))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    let (first, is_from_memory) = from_memory();
    assert!(!is_from_memory);
    let expected = headers(&first);
    assert_eq!(expected.len(), 6, "{expected:?}");
    keep_in_memory(&site, "/page.html", &content('a'));
    let (response, is_from_memory) = from_memory();
    assert!(is_from_memory);
    assert_eq!(headers(&response), expected);
}

#[test]
fn conditions_and_ranges_are_answered_from_memory() {
    let site = Site::start();
    write_settled(&site.path("www/page"), &content('a'));
    keep_in_memory(&site, "/page", &content('a'));
    let before = hits(&site);
    let whole = site.get("/page", &[]);
    let etag = whole.header("etag").expect("a tag");
    let condition = format!("If-None-Match: {etag}");
    assert_eq!(site.get("/page", &["-H", &condition]).status, 304);
    let part = site.get("/page", &["-r", "10-13"]);
    assert_eq!((part.status, part.body.as_str()), (206, "aaaa"));
    let head = site.get("/page", &["--head"]);
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, Some("3000"))
    );
    assert_eq!(head.header("etag"), Some(etag));
    assert_eq!(hits(&site), before + 4);
}

#[test]
fn files_that_changed_just_now_are_large_or_are_missing_do_not_stay_in_memory() {
    let site = Site::start();
    fs::write(site.path("www/new"), content('a')).unwrap();
    // A modification time in the future counts as a change just now, however slow the test is.
    let future = SystemTime::now() + Duration::from_secs(3600);
    File::options()
        .write(true)
        .open(site.path("www/new"))
        .unwrap()
        .set_modified(future)
        .unwrap();
    write_settled(&site.path("www/large"), &"a".repeat((64 << 10) + 1));
    for _ in 0..4 {
        assert_eq!(site.get("/new", &[]).status, 200);
        assert_eq!(site.get("/large", &[]).status, 200);
        assert_eq!(site.get("/missing", &[]).status, 404);
    }
    let metrics = site.sessile.metrics();
    assert_eq!(
        metrics.sum("sessile_file_cache_hits_total", &[]),
        0,
        "{metrics}"
    );
    assert_eq!(
        metrics.sum("sessile_file_cache_entries", &[]),
        0,
        "{metrics}"
    );
}
