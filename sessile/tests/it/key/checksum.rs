//! Key files with a changed digit: programs refuse them, and running programs keep their key.

use std::fs;
use std::path::Path;

use super::{Farm, assert_all, clients_of, key, key_output, reload};
use crate::peers::{Certificates, Sessile, run};

const REFUSED: &str = "do not match the file's checksum";

/// Changes the last digit of the last secret in a file, so the file is still TOML.
fn damage(file: &Path) {
    let mut text = fs::read_to_string(file).unwrap();
    let last = text.rfind("\"\n").unwrap() - 1;
    let digit = if text.as_bytes()[last] == b'7' {
        "8"
    } else {
        "7"
    };
    text.replace_range(last..=last, digit);
    fs::write(file, text).unwrap();
}

#[test]
fn every_command_refuses_a_damaged_file_and_leaves_it_alone() {
    let farm = Farm::new();
    let [file] = farm.keys("1h", "10h");
    key_output(&file, &["check"]);
    damage(&file);
    let before = fs::read(&file).unwrap();
    let export = farm.path("export");
    let export = export.to_str().unwrap();
    for arguments in [
        &["check"][..],
        &["show"],
        &["rotate"],
        &["rotate", "--activate"],
        &["export", "--route", "--output", export],
    ] {
        let output = key(&file, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains(file.to_str().unwrap()) && said.contains(REFUSED),
            "{said}"
        );
        assert!(
            said.contains("restore a backup, or copy the key from a server"),
            "{said}"
        );
    }
    assert_eq!(fs::read(&file).unwrap(), before);
    assert!(!Path::new(export).exists());
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_refuses_a_damaged_file_at_its_start_and_keeps_its_key_at_a_reload() {
    let farm = Farm::new();
    let [file] = farm.keys("1h", "10h");
    let server = farm.serve(&file, None);
    let clients = clients_of(&server).await;
    damage(&file);
    reload(&server, "farm key not reloaded: the old one stays in use");
    assert!(server.said().contains(REFUSED), "{}", server.said());
    assert_all(&clients, &server, "resumed/").await;

    let config = farm.configuration(0, &file, "");
    let mut start = super::program(None);
    let ran = run("sessile", start.args(["serve", "--config"]).arg(config), "");
    assert_eq!(ran.status.code(), Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains(REFUSED), "{}", ran.stderr);
}

#[test]
fn a_balancer_refuses_a_damaged_route_part_and_keeps_its_key_at_a_reload() {
    let farm = Farm::new();
    let [file] = farm.keys("1h", "10h");
    let part = farm.path("route.key");
    key_output(
        &file,
        &["export", "--route", "--output", part.to_str().unwrap()],
    );
    let certificates = Certificates::new();
    let server = "127.0.0.1:9".parse().unwrap();
    let balancer = Sessile::balance(&[server], &["--key", part.to_str().unwrap()]);
    balancer.await_line("the route key is loaded");
    damage(&part);
    let said = balancer.reload();
    assert!(
        said.contains("route.key") && said.contains(REFUSED),
        "{said}"
    );
    assert!(said.contains("configuration not reloaded"), "{said}");

    let mut start = super::program(None);
    start.args([
        "balance",
        "--listen",
        "127.0.0.1:0",
        "--server",
        "a=127.0.0.1:9",
        "--key",
    ]);
    start.env("XDG_STATE_HOME", certificates.folder());
    let ran = run("sessile", start.arg(&part), "");
    assert_eq!(ran.status.code(), Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains(REFUSED), "{}", ran.stderr);
}
