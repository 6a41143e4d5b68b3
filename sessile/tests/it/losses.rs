//! Nothing is lost silently: full disks, few files, and clocks that do not fit the farm key.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::{Certificates, Sessile, run, s_client, send};

const DROPPED: &str = "sessile_access_log_dropped_total";
const SEALS: &str = "sessile_farm_key_seals{server=\"web1\"}";

/// A configuration of one server, with further settings at its beginning.
fn configuration(certificates: &Certificates, settings: &str) -> PathBuf {
    let config = certificates.folder().join("sessile.toml");
    let text = format!(
        "[server]\nname = \"web1\"\nworkers = 1\n{settings}\
         [[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n\
         [[site.route]]\npath = \"/\"\nverdict = true\n",
        certificates.chain, certificates.key
    );
    fs::write(&config, text).unwrap();
    config
}

/// Makes so many requests on one connection.
fn request(server: &Sessile, count: usize) {
    let mut command = Command::new("curl");
    command.args(["--insecure", "--silent", "--fail", "--output", "/dev/null"]);
    command.arg(format!("https://{}/?[1-{count}]", server.address()));
    run("curl", &mut command, "").succeeded();
}

/// The value of a metric without labels, or with exactly these.
fn value(server: &Sessile, series: &str) -> usize {
    let text = server.metrics_text();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {series}: {text}"))
}

#[test]
fn a_full_disk_loses_whole_lines_which_are_counted_and_logged() {
    const PAGE: usize = 4096;
    let certificates = Certificates::new();
    let disk = certificates.folder().join("disk");
    fs::create_dir(&disk).unwrap();
    let log = disk.join("access.log");
    let config = configuration(&certificates, &format!("[log]\naccess = {log:?}\n"));
    let on_disk = format!(
        "mount -t tmpfs -o size=64k tmpfs {} && exec \"$0\" \"$@\"",
        disk.display()
    );
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--map-root-user", "sh", "-c", &on_disk]);
    let server = Sessile::serve_by(shell, &config, certificates.folder());
    // The disk as the server sees it.
    let seen = |path: &Path| {
        let root = format!("/proc/{}/root{}", server.id(), path.display());
        PathBuf::from(root)
    };
    let (filler, log) = (seen(&log.with_file_name("filler")), seen(&log));
    fill(&filler, PAGE);
    assert_eq!(value(&server, DROPPED), 0);

    request(&server, 100);
    server.await_metrics(|_| value(&server, DROPPED) > 0);
    let said = server.await_line("lines of the access log are lost");
    assert!(
        said.contains("ERROR") && said.contains("No space left"),
        "{said}"
    );
    // A part of a line fills the last page.
    assert_eq!(fs::metadata(&log).unwrap().len() as usize, PAGE);
    assert_ne!(fs::read(&log).unwrap().last(), Some(&b'\n'));

    fs::remove_file(&filler).unwrap();
    request(&server, 5);
    let said = server.await_line("the access log is written again");
    let dropped = value(&server, DROPPED);
    assert!(said.contains(&format!("lost={dropped}")), "{said}");
    let text = fs::read_to_string(&log).unwrap();
    assert_eq!(text.lines().count(), 105 - dropped);
    for line in text.lines() {
        let is_whole = line.starts_with("127.0.0.1 - - [") && line.contains(" web1 TLSv1.3 ");
        assert!(is_whole && line.matches("HTTP/2.0").count() == 1, "{line}");
    }
}

/// Makes a file that leaves so many bytes of the disk free.
fn fill(path: &Path, free: usize) {
    let mut file = File::create(path).unwrap();
    while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    let full = file.metadata().unwrap().len();
    file.set_len(full - free as u64).unwrap();
}

/// A shell that limits open files and starts a program.
fn limited(files: u32) -> Command {
    let mut shell = Command::new("sh");
    let limited = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
    shell.args(["-c", &limited]);
    shell
}

#[test]
fn few_files_are_reported_with_the_connections_that_they_allow() {
    let certificates = Certificates::new();
    let limit = "the limit of 100 open files allows ";
    for (max, reason) in [
        (0, " connections at once; raise the limit with LimitNOFILE="),
        (
            5000,
            " connections at once, and connection.max is 5000; raise",
        ),
    ] {
        let config = configuration(&certificates, &format!("[connection]\nmax = {max}\n"));
        let server = Sessile::serve_by(limited(100), &config, certificates.folder());
        let said = server.await_line(limit);
        assert!(said.contains("WARN") && said.contains(reason), "{said}");
        let mut check = limited(100);
        check.arg(env!("CARGO_BIN_EXE_sessile")).arg("check");
        let output = check.arg(&config).output().unwrap();
        let found = String::from_utf8(output.stdout).unwrap();
        assert!(found.contains(limit) && found.contains(reason), "{found}");
    }
    let config = certificates.folder().join("balance.toml");
    let text = "[connection]\nmax = 5000\n\
        [[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n\
        [[balance.server]]\nname = \"a\"\naddress = \"127.0.0.1:9\"\n";
    fs::write(&config, text).unwrap();
    let balancer = Sessile::balance_with_files(1024, &config, certificates.folder());
    balancer.await_line("the limit of 1024 open files allows 448 connections at once, and");
}

/// Changes a clock at once, so no program reads a part of a time.
fn set_clock(clock: &Path, time: &str) {
    let staged = clock.with_extension("new");
    fs::write(&staged, time).unwrap();
    fs::rename(&staged, clock).unwrap();
}

#[test]
fn a_clock_that_does_not_fit_the_key_is_reported_until_it_does() {
    let certificates = Certificates::new();
    let clock = certificates.folder().join("clock");
    let key = certificates.folder().join("farm.key");
    let mut new = Command::new(env!("CARGO_BIN_EXE_sessile"));
    new.args([
        "key",
        "new",
        "--rotate",
        "1s",
        "--max-lifetime",
        "1m",
        "--file",
    ]);
    run("sessile", new.arg(&key), "").succeeded();
    let config = configuration(&certificates, &format!("[key]\nfile = {key:?}\n"));
    set_clock(&clock, "+0");
    let server = Sessile::serve_by_clock(&clock, &config, certificates.folder());
    for (wrong, reported) in [
        ("-1000d", "the key begins 2years"),
        ("+1000d", "too far ahead of the key"),
    ] {
        assert_eq!(value(&server, SEALS), 1);
        set_clock(&clock, wrong);
        let said = server.await_line(reported);
        assert!(
            said.contains("ERROR") && said.contains("no ticket is sealed"),
            "{said}"
        );
        assert_eq!(value(&server, SEALS), 0);
        // Connections go on without tickets.
        let visit = s_client(server.address(), None, &["-tls1_3"]);
        assert!(
            visit.contains("200 OK") && !visit.contains("Post-Handshake New Session"),
            "{visit}"
        );
        let before = server.count_lines("tickets are sealed again");
        set_clock(&clock, "+0");
        server.await_metrics(|_| server.count_lines("tickets are sealed again") > before);
    }
    assert_eq!(server.count_lines("no ticket is sealed, because"), 2);
}

#[test]
fn a_balancer_reports_a_clock_for_which_it_reads_no_labels() {
    /// A hello with a ticket, because other hellos need no key.
    const RETURNING: &[u8] =
        include_bytes!("../../../proto/src/testdata/client-openssl-tls13-resumed.bin");
    let certificates = Certificates::new();
    let clock = certificates.folder().join("clock");
    let key = certificates.folder().join("farm.key");
    let mut new = Command::new(env!("CARGO_BIN_EXE_sessile"));
    run("sessile", new.args(["key", "new", "--file"]).arg(&key), "").succeeded();
    let config = certificates.folder().join("balance.toml");
    let text = format!(
        "[key]\nfile = {key:?}\n[balance]\nhealth = \"off\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n\
         [[balance.server]]\nname = \"a\"\naddress = \"127.0.0.1:9\"\n"
    );
    fs::write(&config, text).unwrap();
    set_clock(&clock, "-1000d");
    let balancer = Sessile::balance_by(&clock, &config, certificates.folder());
    let said = balancer.await_line("no ticket label is read");
    assert!(
        said.contains("ERROR") && said.contains("set the clock right"),
        "{said}"
    );
    set_clock(&clock, "+0");
    send(balancer.address(), RETURNING);
    balancer.await_line("ticket labels are read again");
    set_clock(&clock, "-1000d");
    send(balancer.address(), RETURNING);
    balancer.await_metrics(|_| balancer.count_lines("no ticket label is read") == 2);
}

#[test]
fn a_damaged_snapshot_is_reported_at_the_next_start() {
    let certificates = Certificates::new();
    let config = configuration(&certificates, "");
    let mut server = Sessile::serve_configured(&config, certificates.folder());
    server.terminate();
    assert!(server.ended().success());
    let snapshot = certificates.folder().join("sessile/sessions-web1.snapshot");
    let mut bytes = fs::read(&snapshot).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&snapshot, bytes).unwrap();
    let server = Sessile::serve_configured(&config, certificates.folder());
    let said = server.await_line("the sessions of the last drain are lost");
    assert!(
        said.contains("WARN") && said.contains("sessions-web1.snapshot"),
        "{said}"
    );
    assert!(said.contains("the file was cut or changed"), "{said}");
}
