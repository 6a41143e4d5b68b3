//! `sessile lab` with the real binary.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal};

fn lab() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.arg("lab");
    command
}

#[test]
fn all_observations_are_as_the_article_says() {
    let output = lab().arg("kb937687").output().expect("the program");
    let table = String::from_utf8(output.stdout).expect("text");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{table}{said}");
    assert!(said.is_empty(), "progress without a terminal: {said}");
    // Ignore the line breaks of the table.
    let words = table.split_whitespace().collect::<Vec<_>>().join(" ");
    for seen in [
        "EnableKernelSSL=0 on each of three servers",
        "full/purged",
        "full/nothing-offered",
        "routed by session-id",
        "routed by policy",
        "8 of 8 clients: resumed/session-id",
        "4 of 4 clients: full/purged",
        "full/evicted",
        "full/expired",
        "full/cache-disabled",
        "10,000 entries",
        "all 17 observations are as the article says",
    ] {
        assert!(words.contains(seen), "{seen:?} is not in\n{table}");
    }
    assert!(!table.contains("differs"), "{table}");
    let widest = table.lines().map(|line| line.chars().count()).max();
    assert!(widest.is_some_and(|widest| widest <= 120), "{table}");
}

#[test]
fn an_interrupt_stops_the_experiment_at_once() {
    let mut child = lab()
        .args(["kb937687", "--scale", "101"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    // Wait for the warning. From then on, the program handles signals.
    let mut warning = String::new();
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    stderr.read_line(&mut warning).expect("a line");
    assert!(warning.contains("too slow"), "{warning}");
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).expect("it is running");
    let output = child.wait_with_output().expect("its end");
    assert_eq!(output.status.code(), Some(130));
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        &["kb937687", "--scale", "0"][..],
        &["kb937687", "--scale", "301"],
        &["kb1"],
        &[],
    ] {
        let output = lab().args(arguments).output().expect("the program");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
