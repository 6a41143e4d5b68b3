//! The farm key with wrong clocks, and with key files that cannot move forward.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{
    Farm, PROGRAM, assert_all, assert_all_resume_everywhere, clients_of, copy_key, key_at,
    key_output, reload, show, ticket_epoch,
};
use crate::peers::{Peer, eventually};
use crate::store::setup::Redis;

/// A time in 2099, as an argument of faketime.
const IN_2099: &str = "@2099-01-01 12:00:00";

#[tokio::test(flavor = "current_thread")]
async fn servers_with_clocks_one_hour_apart_resume_each_others_sessions() {
    let farm = Farm::new();
    let files: [_; 3] = farm.keys("1h", "10h");
    let servers = [
        farm.serve(&files[0], None),
        farm.serve(&files[1], Some("-59m")),
        farm.serve(&files[2], Some("+59m")),
    ];
    assert_all_resume_everywhere(&servers).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_start_with_the_clock_in_2099_loses_no_key() {
    let farm = Farm::new();
    let [file, other] = farm.keys("1s", "30m");
    let clients = clients_of(&farm.serve(&file, None)).await;
    let before = fs::read_to_string(&file).unwrap();
    let wrong = farm.serve(&file, Some(IN_2099));
    // Wait until the server has refused to move the file forward.
    eventually("it noticed", || {
        wrong
            .said()
            .contains("too far behind this clock to be moved forward")
    });
    // The commands of an operator also lose no key.
    for arguments in [&["check"][..], &["rotate"], &["rotate", "--activate"]] {
        let output = key_at(&file, Some(IN_2099), arguments);
        assert!(output.status.success(), "{output:?}");
    }
    reload(&wrong, "farm key reloaded");
    wrong.kill();
    let secrets = |text: &str| {
        let lines = text.lines().filter(|line| line.contains("-secret"));
        lines.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let after = secrets(&fs::read_to_string(&file).unwrap());
    assert_eq!(after[..2], secrets(&before));
    let servers = [farm.serve(&file, None), farm.serve(&other, None)];
    assert_all(&clients, &servers[0], "resumed/").await;
    assert_all_resume_everywhere(&servers).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_clock_that_is_days_ahead_for_many_epochs_loses_no_session() {
    let farm = Farm::new();
    let [file, other] = farm.keys("1s", "30m");
    let clients = clients_of(&farm.serve(&file, None)).await;
    let first = ticket_epoch(&file);
    let wrong = farm.serve(&file, Some("+2d"));
    eventually("it has moved the file", || ticket_epoch(&file) > first + 6);
    wrong.kill();
    let servers = [farm.serve(&file, None), farm.serve(&other, None)];
    for server in &servers {
        assert_all(&clients, server, "resumed/").await;
    }
    assert_all_resume_everywhere(&servers).await;
}

#[test]
fn warns_about_a_slow_clock_before_it_ends_a_generation_too_early() {
    let farm = Farm::new();
    let [file] = farm.keys("1h", "10h");
    let slow = |arguments: &[&str]| {
        let before = fs::read(&file).unwrap();
        let output = key_at(&file, Some("-13h"), arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(fs::read(&file).unwrap(), before);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("ahead of this machine's"), "{said}");
        assert!(
            said.contains("compare this machine's clock (`date`)"),
            "{said}"
        );
    };
    slow(&["rotate", "--at", "24h"]);
    key_output(&file, &["rotate"]);
    slow(&["rotate", "--activate"]);
    key_output(&file, &["rotate", "--activate"]);
    assert_eq!(show(&file)["generations"][0]["state"], "outgoing");
}

#[test]
fn warns_about_first_copies_and_about_files_that_cannot_move_forward() {
    let farm = Farm::new();
    let [file] = farm.keys("1h", "10h");
    assert!(!key_output(&file, &["check"]).contains("warning:"));
    let check = |clock| String::from_utf8(key_at(&file, Some(clock), &["check"]).stdout).unwrap();
    let later = check("+2d");
    assert!(later.contains("the file is an old copy"), "{later}");
    let earlier = check("-2d");
    assert!(
        earlier.contains("no ticket is sealed until then"),
        "{earlier}"
    );
    let earlier = check("-5h");
    assert!(earlier.contains("one of them is wrong"), "{earlier}");

    // The command must be unable to write to the folder of its key file. A read-only mode does not stop root, so
    // root runs the command as another user.
    let folder = tempfile::tempdir().unwrap();
    let (fixed, program) = (
        folder.path().join("farm.key"),
        folder.path().join("sessile"),
    );
    fs::copy(&file, &fixed).unwrap();
    fs::copy(PROGRAM, &program).unwrap();
    let mut command = Command::new(program);
    if rustix::process::geteuid().is_root() {
        const NOBODY: u32 = 65_534;
        std::os::unix::fs::chown(&fixed, Some(NOBODY), None).unwrap();
        command.uid(NOBODY).gid(NOBODY);
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let result = command
        .args(["key", "check", "--file"])
        .arg(&fixed)
        .output();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let output = result.unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("warning: no forward secrecy"), "{said}");
}

/// Shows a folder to a program as a read-only mount, like a Kubernetes secret.
const ON_A_READ_ONLY_MOUNT: &str =
    r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@""#;

#[tokio::test(flavor = "current_thread")]
async fn a_key_on_a_read_only_mount_works_with_a_warning() {
    let farm = Farm::new();
    let [file] = farm.keys("1s", "1m");
    let secret = farm.path("secret");
    fs::create_dir(&secret).unwrap();
    let mounted = secret.join("farm.key");
    fs::copy(&file, &mounted).unwrap();
    fs::set_permissions(&mounted, fs::Permissions::from_mode(0o644)).unwrap();
    let before = fs::read(&mounted).unwrap();
    let fixed = Peer::start("util-linux", |port| {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--map-root-user",
            "sh",
            "-c",
            ON_A_READ_ONLY_MOUNT,
            "sh",
        ]);
        command
            .arg(&secret)
            .arg(PROGRAM)
            .args(["serve", "--config"]);
        command.arg(farm.configuration(port, &mounted, ""));
        command
    });
    let said = fixed.said();
    assert!(said.contains("no forward secrecy"), "{said}");
    assert!(said.contains("its mode lets other users read it"), "{said}");
    let servers = [fixed, farm.serve(&file, None)];
    let first = ticket_epoch(&file);
    eventually("the other's key has moved on", || {
        ticket_epoch(&file) > first + 2
    });
    assert_all_resume_everywhere(&servers).await;
    reload(&servers[0], "farm key reloaded: it has not changed");
    assert_eq!(fs::read(&mounted).unwrap(), before);
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_was_off_for_a_week_resumes_sessions_at_once() {
    let farm = Farm::new();
    let files = ["running.key", "off.key"].map(|name| farm.path(name));
    let terms = ["new", "--rotate", "1h", "--max-lifetime", "10h"];
    assert!(key_at(&files[0], Some("-7d"), &terms).status.success());
    copy_key(&files[0], &files[1]);
    // The running server may move its file forward, because the clock of Redis confirms the
    // server's clock.
    let first = ticket_epoch(&files[0]);
    let redis = Redis::start();
    let running = farm.serve_with(
        &files[0],
        &format!("[session]\nstore = {:?}\n", redis.url()),
    );
    eventually("it has moved its file", || ticket_epoch(&files[0]) > first);
    let back = farm.serve(&files[1], None);
    let said = back.said();
    assert!(said.contains("before the oldest live session"), "{said}");
    assert!(ticket_epoch(&files[0]) > ticket_epoch(&files[1]) + 160);
    assert_all_resume_everywhere(&[running, back]).await;
}
