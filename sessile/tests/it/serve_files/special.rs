//! Paths that do not name a regular file inside the served folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;

use super::{SECRET, Site, TEXT, VERSIONS, configuration, files};
use crate::peers::{Certificates, Sessile, run};

#[test]
fn a_fifo_is_not_found_however_often_it_is_requested() {
    let site = Site::start();
    let fifo = site.path("www/fifo");
    run("coreutils", Command::new("mkfifo").arg(&fifo), "").succeeded();
    // Make more requests than a worker has threads, because an open of the FIFO would block a
    // thread.
    let arguments = [
        "--parallel",
        "--parallel-max",
        "40",
        "--http1.1",
        "--max-time",
        "20",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}\n",
    ];
    let ran = run("curl", &mut site.curl("/fifo?[1-40]", &arguments), "");
    assert_eq!(ran.succeeded().count("404"), 40);
    let _socket = UnixListener::bind(site.path("www/socket")).unwrap();
    for (version, _) in VERSIONS {
        assert_eq!(site.get("/socket", &[version]).status, 404);
        assert_eq!(site.get("/text.txt", &[version]).body, TEXT);
    }
}

#[test]
fn a_name_that_is_too_long_is_not_found() {
    let site = Site::start();
    let path = format!("/{}", "a".repeat(256));
    let deep = "/a".repeat(3000);
    for (version, _) in VERSIONS {
        assert_eq!(site.get(&path, &[version]).status, 404);
        assert_eq!(site.get(&deep, &[version]).status, 404);
    }
}

#[test]
fn links_lead_out_of_the_folder_only_where_the_route_allows_that() {
    let (certificates, files) = (Certificates::new(), files());
    let path = |name: &str| files.path().join(name);
    symlink("text.txt", path("www/inside")).unwrap();
    symlink("../secret.txt", path("www/outside")).unwrap();
    symlink("..", path("www/parent")).unwrap();
    symlink(path("www"), path("current")).unwrap();
    fs::create_dir(path("next")).unwrap();
    fs::write(path("next/text.txt"), "next").unwrap();
    let routes = "[[site.route]]\npath = \"/\"\nfiles = \"current\"\n\
                  [[site.route]]\npath = \"/follow\"\nfiles = \"current\"\nsymlinks = \"follow\"\n";
    let (config, state) = configuration(&certificates, &files, routes);
    let sessile = Sessile::serve_configured(&config, &state);
    let site = Site {
        certificates,
        files,
        sessile,
    };
    for (version, _) in VERSIONS {
        let get = |path: &str| {
            let response = site.get(path, &[version]);
            (response.status, response.body)
        };
        for prefix in ["", "/follow"] {
            assert_eq!(get(&format!("{prefix}/inside")), (200, TEXT.to_owned()));
        }
        for name in ["/outside", "/parent/secret.txt"] {
            assert_eq!(get(name).0, 404, "{name}");
            let followed = get(&format!("/follow{name}"));
            assert_eq!(followed, (200, SECRET.to_owned()), "{name}");
        }
        assert_eq!(get("/parent").0, 404);
    }
    // A deployment replaces the link to the folder.
    symlink("next", site.path("replacement")).unwrap();
    fs::rename(site.path("replacement"), site.path("current")).unwrap();
    for path in ["/text.txt", "/follow/text.txt"] {
        assert_eq!(site.get(path, &[]).body, "next", "{path}");
    }
}

#[test]
fn without_openat2_no_link_is_followed_and_the_log_says_so() {
    // An old kernel returns ENOSYS, and an old sandbox returns EPERM.
    for errno in ["38", "1"] {
        let (certificates, files) = (Certificates::new(), files());
        symlink("text.txt", files.path().join("www/inside")).unwrap();
        symlink("../secret.txt", files.path().join("www/outside")).unwrap();
        let routes = "[[site.route]]\npath = \"/\"\nfiles = \"www\"\n";
        let (config, state) = configuration(&certificates, &files, routes);
        let mut starter = Command::new("python3");
        let script = "/tests/it/serve_files/without_openat2.py";
        starter.arg(format!("{}{script}", env!("CARGO_MANIFEST_DIR")));
        starter.arg(errno);
        let sessile = Sessile::serve_by(starter, &config, &state);
        sessile.await_line("the kernel or a sandbox refuses openat2");
        let site = Site {
            certificates,
            files,
            sessile,
        };
        for (path, status) in [
            ("/text.txt", 200),
            ("/sub/", 200),
            ("/inside", 404),
            ("/outside", 404),
        ] {
            assert_eq!(site.get(path, &[]).status, status, "{path}");
        }
    }
}
