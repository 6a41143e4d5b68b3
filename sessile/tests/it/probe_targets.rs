//! `sessile probe` with several targets.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::peers::{Certificates, assert_follows_schema, nginx};

/// Runs a probe that accepts any certificate, with this text as its standard input.
fn probe(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sessile"))
        .args(["probe", "--insecure", "--rate", "0"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sessile runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A probe that does not read its input may have ended.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("the probe ends")
}

#[test]
fn each_target_has_a_report_and_one_that_fails_does_not_stop_the_others() {
    let certificates = Certificates::new();
    let first = nginx(&certificates, "ssl_session_cache shared:s:1m;");
    let second = nginx(&certificates, "ssl_session_tickets off;");
    let [first, second] = [first.address(), second.address()].map(|address| address.to_string());
    let list = certificates.folder().join("targets.txt");
    let text = format!("# the farm\n{second} # no tickets\n\nno-such-name.invalid\n{first}\n");
    fs::write(&list, text).unwrap();
    let list = list.to_str().unwrap();
    let page = certificates.folder().join("page.html");
    let html = page.to_str().unwrap();

    let output = probe(
        &[&first, "--targets-from", list, "--json", "--html", html],
        "",
    );
    assert_eq!(output.status.code(), Some(2));
    let reports: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let targets: Vec<&Value> = reports.iter().map(|report| &report["target"]).collect();
    assert_eq!(targets, [&first, &second, "no-such-name.invalid"]);
    for report in &reports {
        assert_follows_schema(report.to_string().as_bytes());
    }
    assert_eq!(reports[0]["all_resume"], true);
    assert_eq!(reports[0]["error"], Value::Null);
    let error = reports[2]["error"].as_str().unwrap();
    assert!(error.contains("cannot find the address"), "{error}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no-such-name.invalid"), "{said}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("sessile probe: 3 targets") && page.contains(&second));

    let output = probe(&["--targets-from", "-"], &format!("{first}\n{second}\n"));
    let text = String::from_utf8(output.stdout).unwrap();
    let row = format!("\n{first:30}  resumes     resumes     resumes\n");
    assert!(text.contains(&row), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );

    let output = probe(&[&first, &second, "--prometheus"], "");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        text.matches("# TYPE sessile_probe_success gauge").count(),
        1
    );
    assert_eq!(text.matches("sessile_probe_success{").count(), 2);
}

#[test]
fn sessions_of_targets_with_a_common_address_are_offered_to_each_other() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache shared:s:1m;");
    let port = server.address().port();
    let targets = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    let [first, second] = targets.each_ref().map(String::as_str);
    let output = probe(&[first, second, "--mechanism", "ticket", "--json"], "");
    let reports: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    for (report, other) in reports.iter().zip(["localhost", "127.0.0.1"]) {
        assert_eq!(report["other_names"][0]["name"], other, "{report:#}");
    }
}

#[test]
fn wrong_lists_of_targets_are_refused_with_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("targets.txt");
    fs::write(&list, "a.example\n\nb.example:99999\n").unwrap();
    let list = list.to_str().unwrap();
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, "# nothing\n").unwrap();
    for (arguments, words) in [
        (
            &["--targets-from", list][..],
            "targets.txt, line 3: \"b.example:99999\"",
        ),
        (&["--targets-from", empty.to_str().unwrap()], "no target"),
        (
            &["--targets-from", "no-such-file"],
            "cannot read the targets from no-such-file",
        ),
        (
            &["a.example", "b.example", "--sni", "c.example"],
            "--sni needs a single target",
        ),
        (
            &["a.example", "b.example", "--address", "192.0.2.1"],
            "--address needs a single",
        ),
        (&[], "required"),
    ] {
        let output = probe(arguments, "");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(words), "{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
