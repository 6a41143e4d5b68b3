//! `sessile probe --watch`: the events in the life of a server.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::peers::{Certificates, NAME, Peer, assert_follows_schema, nginx, ticket_key};

/// Watches the tickets of a server for an hour.
fn start_watch(certificates: &Certificates, server: SocketAddr) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sessile"))
        .args([
            "probe",
            NAME,
            "--json",
            "--rate",
            "0",
            "--mechanism",
            "ticket",
        ])
        .args(["--address", &server.to_string(), "--ca"])
        .arg(&certificates.ca)
        .args(["--watch", "1h", "--interval", "100ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Starts nginx again on the same port.
fn restart(certificates: &Certificates, server: Peer) -> Peer {
    let port = server.address().port();
    drop(server);
    let folder = certificates.folder().join(format!("nginx-{port}"));
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c", "nginx.conf", "-p"]);
    command.arg(&folder);
    Peer::start_on(port, "nginx", command).expect("nginx starts again")
}

#[test]
fn key_rotations_lost_keys_and_a_stop_are_events() {
    let certificates = Certificates::new();
    let [newest, before] =
        ["newest.key", "before.key"].map(|name| certificates.folder().join(name));
    let write = |keys: [u8; 2]| {
        fs::write(&newest, ticket_key(keys[0])).unwrap();
        fs::write(&before, ticket_key(keys[1])).unwrap();
    };
    write([1, 1]);
    let directives = format!(
        "ssl_session_cache off; ssl_session_ticket_key {}; ssl_session_ticket_key {};",
        newest.display(),
        before.display()
    );
    let server = nginx(&certificates, &directives);
    let mut watch = start_watch(&certificates, server.address());
    let mut lines = BufReader::new(watch.stderr.take().unwrap()).lines();
    let mut wait_for = |words: &str| {
        let line = lines.find(|line| line.as_ref().unwrap().contains(words));
        assert!(line.is_some(), "no line with {words:?}");
    };
    wait_for("watching 1 server");
    // The key before stays valid.
    write([2, 1]);
    let server = restart(&certificates, server);
    wait_for("accepts those of the key before");
    // The key before is gone.
    write([3, 3]);
    let server = restart(&certificates, server);
    wait_for("refused a session that it had just given; key");
    drop(server);
    wait_for("does not answer");
    rustix::process::kill_process(Pid::from_child(&watch), Signal::INT).unwrap();
    let output = watch.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_follows_schema(&output.stdout);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let events = report["watched"]["events"].as_array().unwrap();
    assert_eq!(events.last().unwrap()["event"], "down", "{events:#?}");
    assert_eq!(events.last().unwrap()["mechanism"], Value::Null);
    // A restart can be seen as a time without an answer, too.
    let is_of_sessions = |event: &&Value| event["mechanism"] == "ticket";
    let events: Vec<&Value> = events.iter().filter(is_of_sessions).collect();
    let words: Vec<&Value> = events.iter().map(|event| &event["event"]).collect();
    assert_eq!(words, ["other-key", "lost"], "{events:#?}");
    let name = |number| {
        let bytes = &ticket_key(number)[..16];
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    assert_eq!(events[0]["key_before"], json!(name(1)));
    assert_eq!(events[1]["key_before"], json!(name(2)));
    assert_eq!(events[1]["key_after"], json!(name(3)));
    let codes: Vec<&Value> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| &finding["code"])
        .collect();
    assert_eq!(codes, ["lost-while-watched"]);
}

#[test]
fn a_full_disk_for_the_events_does_not_end_the_watch() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache off;");
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sessile"))
        .args([
            "probe",
            NAME,
            "--insecure",
            "--json",
            "--rate",
            "0",
            "--mechanism",
            "ticket",
        ])
        .args(["--address", &server.address().to_string()])
        .args(["--watch", "300ms", "--interval", "100ms"])
        .stderr(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["watched"]["events"], json!([]));
}
