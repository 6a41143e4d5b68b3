//! `sessile probe` against servers that start TLS on request, and through an HTTP proxy.

use std::fs;
use std::process::{Command, Output};

use crate::peers::{Certificates, NAME, Peer, nginx, smtp_server};

fn tinyproxy(certificates: &Certificates, directives: &str) -> Peer {
    Peer::start("tinyproxy-bin", |port| {
        let file = certificates.folder().join("tinyproxy.conf");
        let text = format!("Listen 127.0.0.1\nPort {port}\nAllow 127.0.0.1\n{directives}\n");
        fs::write(&file, text).expect("a temporary file");
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(file);
        command
    })
}

fn probe(certificates: &Certificates, server: &Peer, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sessile"))
        .args(["probe", NAME, "--rate", "0", "--attempts", "1", "--address"])
        .arg(server.address().to_string())
        .arg("--ca")
        .arg(&certificates.ca)
        .args(arguments)
        .output()
        .expect("the program under test")
}

/// Standard output with single spaces, because its lines are wrapped.
fn in_one_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn sessions_of_a_mail_server_resume_after_starttls() {
    let certificates = Certificates::new();
    let server = smtp_server(Some(&certificates));
    let output = probe(&certificates, &server, &["--starttls", "smtp"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = in_one_line(&output);
    assert!(report.contains("TLS 1.3 PSK: resumed 1 of 1"), "{report}");
}

#[test]
fn a_mail_server_without_tls_is_quoted() {
    let certificates = Certificates::new();
    let server = smtp_server(None);
    let output = probe(&certificates, &server, &["--starttls", "smtp"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let report = in_one_line(&output);
    let quoted = "SMTP did not start TLS: the answer was \"454 TLS not available\"";
    assert!(report.contains(quoted), "{report}");
}

#[test]
fn a_proxy_connects_to_the_server_or_its_refusal_is_quoted() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "ssl_session_cache shared:a:1m;");
    let through = |proxy: &Peer| {
        let url = format!("http://{}", proxy.address());
        probe(&certificates, &server, &["--proxy", &url])
    };
    let output = through(&tinyproxy(&certificates, ""));
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    let output = through(&tinyproxy(&certificates, "ConnectPort 1"));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let report = in_one_line(&output);
    assert!(
        report.contains("opened no connection: the answer was \"HTTP/1."),
        "{report}"
    );
    assert!(report.contains(" 403 "), "{report}");
}
