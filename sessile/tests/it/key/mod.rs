//! `sessile key`, and servers with copies of the farm key. All programs are real processes, with
//! correct and wrong clocks.

mod checksum;
mod clock;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::peers::{Certificates, NAME, Peer, eventually, s_client, set_clock, stopped_clock};
use crate::store::setup::client;
use serde_json::Value;
use sessile::client::{Client, Mechanism, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sessile");

fn key(file: &Path, arguments: &[&str]) -> Output {
    key_at(file, None, arguments)
}

/// `sessile key` with a faketime clock.
fn key_at(file: &Path, clock: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = program(clock);
    command.arg("key").args(arguments).arg("--file").arg(file);
    command.output().unwrap()
}

/// The output of a successful `sessile key` command.
fn key_output(file: &Path, arguments: &[&str]) -> String {
    let output = key(file, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The error of a refused `sessile key` command. The file must stay unchanged.
fn refused(file: &Path, arguments: &[&str]) -> String {
    let before = fs::read(file).ok();
    let output = key(file, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    assert_eq!(fs::read(file).ok(), before);
    String::from_utf8(output.stderr).unwrap()
}

fn show(file: &Path) -> Value {
    serde_json::from_str(&key_output(file, &["show", "--json"])).unwrap()
}

/// Numbers and states of the generations in a file.
fn generations(file: &Path) -> Vec<(u64, String)> {
    let shown = show(file);
    let generations = shown["generations"].as_array().unwrap().iter();
    generations
        .map(|generation| {
            let state = generation["state"].as_str().unwrap().to_owned();
            (generation["number"].as_u64().unwrap(), state)
        })
        .collect()
}

/// The ticket epoch of the first generation in a file.
fn ticket_epoch(file: &Path) -> u64 {
    let ticket_epoch = &show(file)["generations"][0]["ticket"]["stands_at"];
    ticket_epoch.as_u64().unwrap()
}

/// The sessile program with a faketime clock. Only the wall clock changes.
fn program(clock: Option<&str>) -> Command {
    let mut command = Command::new(PROGRAM);
    if let Some(clock) = clock {
        set_clock(&mut command, clock);
    }
    command
}

/// The folder of a farm: a certificate, and a key file for each server.
struct Farm {
    certificates: Certificates,
}

impl Farm {
    fn new() -> Self {
        Self {
            certificates: Certificates::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.certificates.folder().join(name)
    }

    /// Makes the first key with these arguments, and copies of it.
    fn keys<const N: usize>(&self, rotate: &str, lifetime: &str) -> [PathBuf; N] {
        let files = std::array::from_fn(|n| self.path(&format!("{n}.key")));
        let terms = ["new", "--rotate", rotate, "--max-lifetime", lifetime];
        key_output(&files[0], &terms);
        for copy in &files[1..] {
            copy_key(&files[0], copy);
        }
        files
    }

    fn serve(&self, key: &Path, clock: Option<&str>) -> Peer {
        Peer::start("sessile", |port| {
            let mut command = program(clock);
            command.arg("serve").arg("--config");
            command.arg(self.configuration(port, key, ""));
            command
        })
    }

    /// Starts a server with further settings.
    fn serve_with(&self, key: &Path, settings: &str) -> Peer {
        Peer::start("sessile", |port| {
            let mut command = program(None);
            command.arg("serve").arg("--config");
            command.arg(self.configuration(port, key, settings));
            command
        })
    }

    /// Writes the configuration of a server.
    fn configuration(&self, port: u16, key: &Path, settings: &str) -> PathBuf {
        let config = self.path(&format!("{port}.toml"));
        let text = format!(
            "[server]\nname = \"{port}\"\nstate-dir = \"state-{port}\"\nworkers = 1\n\
             [key]\nfile = {key:?}\n[log]\naccess = \"off\"\n{settings}\
             [[listener]]\naddress = \"127.0.0.1:{port}\"\nrole = \"serve\"\n\
             [[site]]\ncertificates = [{{ chain = \"chain.pem\", key = \"key.pem\" }}]\n\
             [[site.route]]\npath = \"/\"\nverdict = true\n"
        );
        fs::write(&config, text).unwrap();
        config
    }
}

/// Replaces a key file atomically with a copy, as a roll-out does.
fn copy_key(from: &Path, to: &Path) {
    let staged = to.with_extension("new");
    fs::copy(from, &staged).unwrap();
    fs::rename(&staged, to).unwrap();
}

/// Makes a server reload its key, and waits for the log line about the result.
fn reload(server: &Peer, outcome: &str) {
    let before = server.said().matches(outcome).count();
    server.hang_up();
    eventually(outcome, || server.said().matches(outcome).count() > before);
}

const TICKETS: [Mechanism; 2] = [Mechanism::Ticket, Mechanism::Psk];

/// A client with a ticket and a client with a PSK, both from this server.
async fn clients_of(server: &Peer) -> [Client; 2] {
    let clients = TICKETS.map(client);
    for client in &clients {
        let verdict = verdict(client, server).await;
        assert!(verdict.starts_with("full/nothing-offered"), "{verdict}");
    }
    clients
}

async fn verdict(client: &Client, server: &Peer) -> String {
    let target = Target::new(server.address(), NAME).unwrap();
    let mut connection = client.connect(&target).await.unwrap();
    let stream = &mut connection.stream;
    let request = b"HEAD / HTTP/1.1\r\nhost: farm.test\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(char::from(stream.read_u8().await.unwrap()));
    }
    connection.close(Duration::from_secs(5)).await;
    let mut lines = head.lines();
    let verdict = lines.find_map(|line| line.strip_prefix("sessile-verdict: "));
    verdict.unwrap().to_owned()
}

/// Asserts that new clients of every server resume at every server.
async fn assert_all_resume_everywhere(servers: &[Peer]) {
    for maker in servers {
        for opener in servers {
            for client in clients_of(maker).await {
                let verdict = verdict(&client, opener).await;
                assert!(verdict.starts_with("resumed/"), "{verdict}");
            }
        }
    }
}

async fn assert_all(clients: &[Client], server: &Peer, expected: &str) {
    for client in clients {
        let verdict = verdict(client, server).await;
        assert!(verdict.starts_with(expected), "{verdict}");
    }
}

#[test]
fn a_key_is_created_once_and_shown_without_its_secrets() {
    let farm = Farm::new();
    let file = farm.path("made/farm.key");
    let said_new = key_output(&file, &["new", "--scope", "shop", "--rotate", "2h"]);
    assert!(said_new.contains("the key of farm \"shop\""), "{said_new}");
    assert!(
        refused(&file, &["new"]).contains("the file exists, and sessile never overwrites a key")
    );
    let shown = show(&file);
    assert_eq!(shown["scope"], "shop");
    assert_eq!(shown["rotate_seconds"], 7200);
    assert_eq!(shown["max_lifetime_seconds"], 36_000);
    key_output(&file, &["rotate"]);
    let everything = [
        said_new,
        key_output(&file, &["show"]),
        key_output(&file, &["show", "--json"]),
        key_output(&file, &["check"]),
    ]
    .concat();
    let text = fs::read_to_string(&file).unwrap();
    let secrets: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once("-secret = \""))
        .map(|(_, secret)| &secret[..16])
        .collect();
    assert_eq!(secrets.len(), 4);
    for secret in secrets {
        assert!(!everything.contains(secret), "{everything}");
    }
}

#[test]
fn the_key_file_is_found_by_the_configuration_and_in_the_state_folder() {
    let farm = Farm::new();
    let config = farm.path("sessile.toml");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.arg("key").args(arguments);
        command.env("STATE_DIRECTORY", farm.path("state"));
        command.output().unwrap()
    };
    assert!(run(&["new"]).status.success());
    assert!(farm.path("state/farm.key").exists());
    fs::write(&config, "[key]\nfile = \"here.key\"\n").unwrap();
    let config = config.to_str().unwrap();
    assert!(run(&["new", "--config", config]).status.success());
    assert!(farm.path("here.key").exists());
    fs::write(config, "[key]\nfile = \"none\"\n").unwrap();
    let output = run(&["show", "--config", config]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("in the server's memory only"), "{said}");
}

#[test]
fn check_and_server_refuse_unusable_keys_with_a_reason() {
    let farm = Farm::new();
    let [good] = farm.keys("1h", "10h");
    let text = fs::read_to_string(&good).unwrap();
    let secret_line = text.lines().find(|line| line.starts_with("ticket-secret"));
    let with_secret = |hex: &str| {
        let line = format!("ticket-secret = \"{hex}\"");
        text.replace(secret_line.unwrap(), &line)
    };
    let route = farm.path("route.key");
    key_output(
        &good,
        &["export", "--route", "--output", route.to_str().unwrap()],
    );
    let sequence: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
    let example = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4";
    let cases = [
        (with_secret(&"00".repeat(32)), 0o600, "it is all zero"),
        (with_secret(&"5a".repeat(32)), 0o600, "one byte, repeated"),
        (
            with_secret(&"01020304".repeat(8)),
            0o600,
            "4 bytes, repeated",
        ),
        (with_secret(&sequence), 0o600, "a sequence of bytes"),
        (
            with_secret(example),
            0o600,
            "it is published: NIST SP 800-38A",
        ),
        (with_secret(&"31".repeat(31)), 0o600, "31 bytes where 32"),
        (text.clone(), 0o644, "mode 0644 lets other users read it"),
        (text.replace("scope", "scoop"), 0o600, "unknown field"),
        (
            text.replace("max-lifetime = \"10h\"", "max-lifetime = \"8d\""),
            0o600,
            "7days",
        ),
    ];
    let file = farm.path("bad.key");
    for (text, mode, reason) in cases {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let said = refused(&file, &["check"]);
        assert!(said.contains(reason), "{said}");
        assert!(does_not_serve(&farm, &file).contains(reason));
    }
    assert!(does_not_serve(&farm, &route).contains("this file has the route part only"));
    assert!(key_output(&route, &["check"]).contains("the balancer's part"));
    assert!(refused(&route, &["rotate"]).contains("the route part only"));
    assert!(!fs::read_to_string(&route).unwrap().contains("ticket-"));
}

/// The error output of a server that does not start.
fn does_not_serve(farm: &Farm, key: &Path) -> String {
    let config = farm.path("bad.toml");
    let text = format!(
        "[key]\nfile = {key:?}\n[[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"serve\"\n\
         [[site]]\ncertificates = [{{ chain = \"chain.pem\", key = \"key.pem\" }}]\n"
    );
    fs::write(&config, text).unwrap();
    let output = Command::new(PROGRAM)
        .arg("serve")
        .arg("--config")
        .arg(config)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_rotation_names_its_times_and_refuses_contradictions() {
    let farm = Farm::new();
    let [file] = farm.keys("1h", "10h");
    assert!(refused(&file, &["rotate", "--activate"]).contains("`sessile key rotate` adds one"));
    assert!(
        refused(&file, &["rotate", "--at", "1999-01-01T00:00:00Z"])
            .contains("this time has passed")
    );
    assert!(refused(&file, &["rotate", "--at", "tomorrow"]).contains("2030-01-31T04:00:00Z"));
    let said_plan = key_output(&file, &["rotate", "--at", "2098-01-31T04:00:00Z"]);
    assert!(
        said_plan.contains("from 2098-01-31T04:00:00Z on"),
        "{said_plan}"
    );
    assert!(refused(&file, &["rotate"]).contains("generation 1 is accepted already and waits"));
    let planned = show(&file);
    assert_eq!(planned["generations"][1]["state"], "waiting");
    assert_eq!(
        planned["generations"][1]["activates"],
        "2098-01-31T04:00:00Z"
    );
    assert_eq!(planned["generations"][0]["ends"], "2098-01-31T16:00:00Z");
    // Move the activation forward.
    key_output(&file, &["rotate", "--activate"]);
    let states = [(0, "outgoing".to_owned()), (1, "sealing".to_owned())];
    assert_eq!(generations(&file), states);
    assert!(refused(&file, &["rotate"]).contains("another generation can be added from"));
}

#[test]
fn concurrent_writers_lose_no_generation() {
    let farm = Farm::new();
    let file = farm.path("farm.key");
    // The key is older than its maximum lifetime, so that the file can move forward.
    let terms = ["new", "--rotate", "1s", "--max-lifetime", "30s"];
    assert!(key_at(&file, Some("-60s"), &terms).status.success());
    // This server moves the file forward every second, at the same time as the other writers.
    let server = farm.serve(&file, None);
    let first = ticket_epoch(&file);
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let mut command = Command::new(PROGRAM);
            command
                .args(["key", "rotate", "--compromised", "--file"])
                .arg(&file);
            command.stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    let moved = || show(&file)["generations"][8]["ticket"]["stands_at"].as_u64();
    eventually("the server moved the file", || moved().unwrap() > first + 2);
    let numbers: Vec<u64> = generations(&file).into_iter().map(|(n, _)| n).collect();
    assert_eq!(numbers, (0..=8).collect::<Vec<_>>());
    eventually("the server took the changes over", || {
        server
            .said()
            .contains("was changed on disk; the new content is in use")
    });
}

#[tokio::test(flavor = "current_thread")]
async fn a_partial_roll_out_and_an_activation_lose_no_session() {
    let farm = Farm::new();
    let files: [_; 3] = farm.keys("1s", "1m");
    let servers = [0, 1, 2].map(|n| farm.serve(&files[n], None));
    let before = clients_of(&servers[0]).await;
    // The first server gets the new generation, and the second server gets a copy of the file.
    key_output(&files[0], &["rotate"]);
    copy_key(&files[0], &files[1]);
    for server in &servers[..2] {
        reload(server, "farm key reloaded generations=[0, 1] sealing=0");
    }
    assert_all_resume_everywhere(&servers).await;
    // The third server also gets the new generation. The first server already seals with this
    // generation.
    copy_key(&files[1], &files[2]);
    reload(
        &servers[2],
        "farm key reloaded generations=[0, 1] sealing=0",
    );
    key_output(&files[0], &["rotate", "--activate"]);
    reload(
        &servers[0],
        "farm key reloaded generations=[0, 1] sealing=1",
    );
    assert_all_resume_everywhere(&servers).await;
    // All servers seal with the new generation.
    for (file, server) in files.iter().zip(&servers).skip(1) {
        copy_key(&files[0], file);
        reload(server, "farm key reloaded generations=[0, 1] sealing=1");
    }
    assert_all_resume_everywhere(&servers).await;
    assert_all(&before, &servers[2], "resumed/").await;
}

#[tokio::test(flavor = "current_thread")]
async fn after_a_theft_every_old_ticket_is_revoked() {
    let farm = Farm::new();
    let files: [_; 3] = farm.keys("1s", "1m");
    let servers = [0, 1, 2].map(|n| farm.serve(&files[n], None));
    let mut before = Vec::new();
    for server in &servers {
        before.push(clients_of(server).await);
    }
    key_output(&files[1], &["rotate", "--compromised"]);
    for (n, server) in servers.iter().enumerate() {
        if n != 1 {
            copy_key(&files[1], &files[n]);
        }
        reload(server, "farm key reloaded generations=[0, 1] sealing=1");
    }
    for (n, clients) in before.iter().enumerate() {
        let server = &servers[(n + 1) % servers.len()];
        assert_all(clients, server, "full/revoked").await;
        assert_all(clients, server, "resumed/").await;
    }
    assert_all_resume_everywhere(&servers).await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_invalid_file_at_a_reload_changes_nothing() {
    let farm = Farm::new();
    let [file, stays] = farm.keys("1h", "10h");
    let servers = [&file, &stays].map(|file| farm.serve(file, None));
    let clients = clients_of(&servers[0]).await;
    fs::write(&file, "format = 2").unwrap();
    reload(
        &servers[0],
        "farm key not reloaded: the old one stays in use",
    );
    assert_all(&clients, &servers[0], "resumed/").await;
    assert_all_resume_everywhere(&servers).await;
}

#[test]
fn a_key_stolen_after_a_lifetime_and_two_epochs_opens_no_recorded_ticket() {
    let farm = Farm::new();
    let [file, first_copy] = farm.keys("1s", "3s");
    let server = farm.serve(&file, None);
    let versions = ["-tls1_2", "-tls1_3"];
    for version in versions {
        let session = farm.path(version);
        let session = session.to_str().unwrap();
        s_client(server.address(), None, &[version, "-sess_out", session]);
    }
    let made = SystemTime::now();
    let epoch = made.duration_since(UNIX_EPOCH).unwrap().as_secs();
    eventually("the key moved on", || ticket_epoch(&file) > epoch + 1);
    let stolen = farm.path("stolen.key");
    fs::copy(&file, &stolen).unwrap();
    drop(server);
    // The attacker stops all clocks at the time of the tickets. This attack succeeds only with a
    // key file that has never moved forward.
    let then = stopped_clock(made);
    for (key, expected) in [(&first_copy, "resumed/"), (&stolen, "full/")] {
        let server = farm.serve(key, Some(&then));
        for version in versions {
            let session = farm.path(version);
            let offer = [version, "-sess_in", session.to_str().unwrap()];
            let said = s_client(server.address(), Some(&then), &offer);
            let verdict = said.split_once("sessile-verdict: ").unwrap().1;
            assert!(verdict.starts_with(expected), "{verdict}");
            assert!(!verdict.starts_with("full/nothing-offered"), "{verdict}");
        }
    }
}
