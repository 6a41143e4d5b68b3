//! System calls and copied bytes for large files: in user space, and through the kernel.

use std::fs;
use std::process::Command;

use rustls::client::Tls12Resumption;
use rustls::crypto::aws_lc_rs::cipher_suite as suite;

use crate::site::{MIB, Site};

const LENGTH: usize = 16 * MIB;

/// Calls that copy the bytes that they return into or out of the process.
const COPYING: [&str; 6] = ["read", "pread64", "preadv2", "sendto", "sendmsg", "writev"];

/// The server's work for one file.
#[derive(Debug)]
struct Cost {
    calls: usize,
    copied: u64,
}

/// Fetches a file from a server that strace watches.
fn cost(settings: &str) -> Cost {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("strace");
    let mut strace = Command::new("/usr/bin/strace");
    strace
        .args(["--follow-forks", "--quiet=all", "--output"])
        .arg(&log);
    let site = Site::started_by(Some(strace), LENGTH, settings);
    let client = site.client(suite::TLS13_AES_128_GCM_SHA256, Tls12Resumption::Disabled);
    let mut connection = client.connect();
    assert_eq!(connection.get("range: bytes=0-9\r\n").body.len(), 10);
    let before = fs::read_to_string(&log).unwrap().lines().count();
    assert!(connection.get("").body == site.content);
    let text = fs::read_to_string(&log).unwrap();
    // Without close_notify, because the server's part of the end is no part of the file.
    drop(connection);
    let calls: Vec<&str> = text.lines().skip(before).collect();
    let copied = calls.iter().filter_map(|call| copied(call)).sum();
    Cost {
        calls: calls.len(),
        copied,
    }
}

/// The bytes that a call copied, from a line such as `123 sendto(7, "…", 16, 0) = 16`.
fn copied(line: &str) -> Option<u64> {
    let (_, call) = line.split_once(' ')?;
    let call = call.trim_start().trim_start_matches("<... ");
    let name_end = call.find(|character: char| !character.is_ascii_alphanumeric())?;
    if !COPYING.contains(&&call[..name_end]) {
        return None;
    }
    let (_, result) = call.rsplit_once(" = ")?;
    result.split_whitespace().next()?.parse().ok()
}

#[test]
fn the_kernel_copies_almost_nothing() {
    let user_space = cost("tls.kernel = 'off'");
    let kernel = cost("tls.kernel = 'on'");
    let per_gib = (1024 * MIB / LENGTH) as u64;
    for (name, cost) in [("user space", &user_space), ("kernel", &kernel)] {
        println!(
            "ktls-guest: {name}: {} system calls and {} MiB copied per GiB",
            cost.calls as u64 * per_gib,
            cost.copied * per_gib / MIB as u64
        );
    }
    // User space reads and sends each byte.
    assert!(user_space.copied >= 2 * LENGTH as u64, "{user_space:?}");
    // The first piece is read together with the opening of the file.
    assert!(kernel.copied < MIB as u64, "{kernel:?}");
    assert!(kernel.calls < user_space.calls, "{kernel:?} {user_space:?}");
}
