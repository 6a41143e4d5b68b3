//! `sessile key export`: real nginx and HAProxy resume each other's tickets with the exported keys.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use crate::peers::{
    Certificates, Peer, eventually, haproxy, nginx, s_client, set_clock, stopped_clock,
};

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];

/// Runs `sessile key` on a file, with a clock for faketime.
fn key(file: &Path, clock: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.arg("key").args(arguments).arg("--file").arg(file);
    if let Some(clock) = clock {
        set_clock(&mut command, clock);
    }
    command.output().unwrap()
}

fn make_key(certificates: &Certificates, name: &str, terms: &[&str]) -> PathBuf {
    let file = certificates.folder().join(name);
    let output = key(&file, None, &[&["new"], terms].concat());
    assert!(output.status.success(), "{output:?}");
    file
}

fn export(file: &Path, clock: Option<&str>, format: &str, output: &Path) -> String {
    let output = output.to_str().unwrap();
    let exported = key(
        file,
        clock,
        &["export", "--format", format, "--output", output],
    );
    assert!(exported.status.success(), "{exported:?}");
    String::from_utf8(exported.stdout).unwrap()
}

/// The names of the files in an export for nginx, the sealing key first.
fn nginx_files(folder: &Path) -> Vec<String> {
    let list = fs::read_to_string(folder.join("tickets.conf")).unwrap();
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let paths = lines.map(|line| line.split('"').nth(1).unwrap().to_owned());
    paths
        .map(|path| path.rsplit('/').next().unwrap().to_owned())
        .collect()
}

/// True if a session of the server `from` resumes at the server `to`.
fn resumes(certificates: &Certificates, from: SocketAddr, to: SocketAddr, version: &str) -> bool {
    let session = certificates.folder().join("session");
    let session = session.to_str().unwrap();
    s_client(from, None, &[version, "-sess_out", session]);
    let said = s_client(to, None, &[version, "-sess_in", session]);
    let (new, reused) = (
        said.contains("\nNew, TLSv1"),
        said.contains("\nReused, TLSv1"),
    );
    assert!(new != reused, "{said}");
    reused
}

#[test]
fn nginx_servers_resume_tickets_of_their_own_farm_only() {
    let certificates = Certificates::new();
    let folder = certificates.folder();
    let ours = make_key(&certificates, "farm.key", &["--scope", "shop"]);
    // The second server has a copy of the key that was rotated later.
    let copy = folder.join("copy.key");
    fs::copy(&ours, &copy).unwrap();
    assert!(key(&copy, None, &["rotate"]).status.success());
    let theirs = make_key(&certificates, "other.key", &["--scope", "shop"]);
    let servers = [&ours, &copy, &theirs].map(|file| {
        let output = file.with_extension("tickets");
        let said = export(file, None, "nginx", &output);
        let include = format!("include {}/tickets.conf;", output.display());
        assert!(said.contains(&include), "{said}");
        nginx(&certificates, &include)
    });
    let [one, other, third] = servers.each_ref().map(|server| server.address());
    for version in VERSIONS {
        assert!(resumes(&certificates, one, other, version), "{version}");
        assert!(resumes(&certificates, other, one, version), "{version}");
        assert!(!resumes(&certificates, one, third, version), "{version}");
    }
}

/// Fails unless the tickets of each server resume at each server.
fn assert_all_resume(certificates: &Certificates, servers: &[Peer]) {
    for version in VERSIONS {
        for (from, to) in servers
            .iter()
            .flat_map(|from| servers.iter().map(move |to| (from, to)))
        {
            assert!(
                resumes(certificates, from.address(), to.address(), version),
                "{version}"
            );
        }
    }
}

/// When the exports of three servers are made. The second server is an epoch ahead.
const EXPORTS: [(&str, Option<&str>); 3] = [("one", None), ("two", Some("+1h")), ("three", None)];

#[test]
fn three_nginx_resume_each_others_tickets_across_two_epochs() {
    let certificates = Certificates::new();
    let file = make_key(&certificates, "farm.key", &[]);
    let servers = EXPORTS.map(|(name, clock)| {
        let output = certificates.folder().join(name);
        export(&file, clock, "nginx", &output);
        nginx(
            &certificates,
            &format!("include {}/tickets.conf;", output.display()),
        )
    });
    assert_all_resume(&certificates, &servers);
}

#[test]
fn three_haproxies_resume_each_others_tickets_across_two_epochs_and_no_others() {
    let certificates = Certificates::new();
    let file = make_key(&certificates, "farm.key", &[]);
    let other_farm = make_key(&certificates, "other.key", &[]);
    let start = |file: &Path, name: &str, clock| {
        let output = certificates.folder().join(name);
        export(file, clock, "haproxy", &output);
        haproxy(
            &certificates,
            &format!("tls-ticket-keys {}", output.display()),
        )
    };
    let servers = EXPORTS.map(|(name, clock)| start(&file, name, clock));
    assert_all_resume(&certificates, &servers);
    let stranger = start(&other_farm, "stranger", None);
    for version in VERSIONS {
        assert!(!resumes(
            &certificates,
            servers[0].address(),
            stranger.address(),
            version
        ));
    }
}

#[test]
fn exports_have_the_required_sizes_and_are_equal_for_copies_of_a_key() {
    let certificates = Certificates::new();
    let folder = certificates.folder();
    let file = make_key(&certificates, "farm.key", &[]);
    let copy = folder.join("copy.key");
    fs::copy(&file, &copy).unwrap();
    // The clock is stopped, so that all exports have the same epoch. By tomorrow, the key has all
    // epochs of a lifetime.
    let tomorrow = stopped_clock(SystemTime::now() + Duration::from_secs(24 * 60 * 60));
    let outputs = [(&file, "one"), (&copy, "other")].map(|(file, name)| {
        let at = |format: &str| folder.join(format!("{name}.{format}"));
        for format in ["nginx", "haproxy", "apache"] {
            // Export twice: the second export replaces the first.
            export(file, Some(&tomorrow), format, &at(format));
            export(file, Some(&tomorrow), format, &at(format));
        }
        let keys = nginx_files(&at("nginx")).into_iter();
        let keys: Vec<Vec<u8>> = keys
            .map(|key| {
                let path = at("nginx").join(key);
                let mode = fs::metadata(&path).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600);
                fs::read(path).unwrap()
            })
            .collect();
        assert!(keys.iter().all(|key| key.len() == 80));
        let lines = fs::read_to_string(at("haproxy")).unwrap();
        assert_eq!(lines.lines().count(), keys.len());
        assert!(lines.lines().all(|line| line.len() == 108));
        let apache = fs::read(at("apache")).unwrap();
        assert_eq!(apache.len(), 48);
        (keys, lines, apache)
    });
    assert_eq!(outputs[0], outputs[1]);
    // An export has keys for the current epoch, the next epoch, and each epoch of a live ticket.
    assert_eq!(outputs[0].0.len(), 13);
}

#[test]
fn an_export_removes_only_expired_keys() {
    let certificates = Certificates::new();
    let terms = ["--rotate", "1s", "--max-lifetime", "2s"];
    let file = make_key(&certificates, "farm.key", &terms);
    let output = certificates.folder().join("tickets");
    export(&file, None, "nginx", &output);
    let first = nginx_files(&output);
    fs::write(output.join("mine.key"), "mine").unwrap();
    eventually("every key of the first export is over", || {
        export(&file, None, "nginx", &output);
        let now = nginx_files(&output);
        first.iter().all(|name| !now.contains(name))
    });
    for name in &first {
        assert!(!output.join(name).exists(), "{name}");
    }
    assert!(output.join("mine.key").exists());
}

#[test]
fn an_export_never_overwrites_a_farm_key() {
    let certificates = Certificates::new();
    let file = make_key(&certificates, "farm.key", &[]);
    let before = fs::read(&file).unwrap();
    let output = file.to_str().unwrap();
    for what in [&["--route"][..], &["--format", "apache"]] {
        let refused = key(
            &file,
            None,
            &[&["export", "--output", output], what].concat(),
        );
        assert_eq!(refused.status.code(), Some(2));
        assert_eq!(fs::read(&file).unwrap(), before);
    }
    let neither = key(&file, None, &["export", "--output", output]);
    assert!(!neither.status.success());
}

/// The epoch at which the ticket chain in a key file begins.
fn first_epoch(file: &Path) -> u64 {
    let shown = key(file, None, &["show", "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    shown["generations"][0]["ticket"]["stands_at"]
        .as_u64()
        .unwrap()
}

#[test]
fn exports_remove_expired_keys_from_the_key_file() {
    let certificates = Certificates::new();
    let terms = ["--rotate", "1s", "--max-lifetime", "2s"];
    let file = make_key(&certificates, "farm.key", &terms);
    let first = first_epoch(&file);
    for (format, output) in [("apache", "apache.key"), ("envoy", "envoy.yaml")] {
        let before = first_epoch(&file);
        eventually("an export moves the file", || {
            export(&file, None, format, &certificates.folder().join(output));
            first_epoch(&file) > before
        });
    }
    assert!(first_epoch(&file) > first);
}

#[test]
fn an_export_with_a_clock_that_has_jumped_removes_no_key() {
    let certificates = Certificates::new();
    let file = make_key(&certificates, "farm.key", &["--max-lifetime", "1h"]);
    let first = first_epoch(&file);
    let output = certificates.folder().join("apache.key");
    let arguments = [
        "export",
        "--format",
        "apache",
        "--output",
        output.to_str().unwrap(),
    ];
    for _ in 0..2 {
        let exported = key(&file, Some("+3d"), &arguments);
        assert!(exported.status.success(), "{exported:?}");
        let warning = String::from_utf8(exported.stderr).unwrap();
        assert!(
            warning.contains("expired ticket keys stay in the file"),
            "{warning}"
        );
    }
    assert_eq!(first_epoch(&file), first);
}

/// Runs `sessile key` on a file, with a clock of faketime that the monotonic clock follows.
fn key_at(file: &Path, clock: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.arg("key").args(arguments).arg("--file").arg(file);
    set_clock(&mut command, clock);
    command.env_remove("DONT_FAKE_MONOTONIC");
    command.output().unwrap()
}

#[test]
fn an_export_after_three_days_removes_the_keys_of_these_days() {
    let certificates = Certificates::new();
    let file = certificates.folder().join("farm.key");
    assert!(key_at(&file, "+1s", &["new"]).status.success());
    let first = first_epoch(&file);
    let output = certificates.folder().join("apache.key");
    let output = output.to_str().unwrap();
    let exported = key_at(
        &file,
        "+3d",
        &["export", "--format", "apache", "--output", output],
    );
    assert!(
        exported.status.success() && exported.stderr.is_empty(),
        "{exported:?}"
    );
    assert!(first_epoch(&file) >= first + 72);
}
