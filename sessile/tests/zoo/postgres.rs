//! PostgreSQL behind `sessile balance`: psql asks for TLS before its ClientHello.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::peers::{Certificates, NAME, Peer, Ran, Sessile, eventually, nginx, run};

/// The Debian package of the server and the client.
const PACKAGE: &str = "postgresql";

const PATIENCE: Duration = Duration::from_secs(15);

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

const HELLO: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");

/// A PostgreSQL server with TLS and a name.
pub(crate) struct Database {
    pub(crate) peer: Peer,
    _folder: TempDir,
}

impl Database {
    pub(crate) fn start(certificates: &Certificates, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        for (file, copy) in [
            (&certificates.chain, "chain.pem"),
            (&certificates.key, "key.pem"),
        ] {
            fs::copy(file, folder.path().join(copy)).unwrap();
        }
        let key = folder.path().join("key.pem");
        run("coreutils", Command::new("chmod").arg("600").arg(&key), "").succeeded();
        if is_root() {
            let mut own = Command::new("chown");
            own.args(["-R", "postgres:"]).arg(folder.path());
            run("coreutils", &mut own, "").succeeded();
        }
        let mut initdb = as_user(&program("initdb"));
        initdb.args(["-U", "postgres", "-A", "trust", "--no-sync", "-D"]);
        run(PACKAGE, initdb.arg(&data), "").succeeded();
        let peer = Peer::start(PACKAGE, |port| {
            let mut server = as_user(&program("postgres"));
            server.arg("-D").arg(&data).current_dir(&data);
            for setting in [
                format!("cluster_name={name}"),
                format!("port={port}"),
                "listen_addresses=127.0.0.1".to_owned(),
                "unix_socket_directories=".to_owned(),
                "ssl=on".to_owned(),
                format!(
                    "ssl_cert_file={}",
                    folder.path().join("chain.pem").display()
                ),
                format!("ssl_key_file={}", key.display()),
            ] {
                server.arg("-c").arg(setting);
            }
            server
        });
        eventually("the database accepts clients", || {
            psql(peer.address().port(), certificates, "")
                .status
                .success()
        });
        Self {
            peer,
            _folder: folder,
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program of the newest installed PostgreSQL. Debian does not put the server into the path.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let programs = versions.map(|version| version.unwrap().path().join("bin").join(name));
    let newest = programs.filter(|program| program.exists()).max();
    newest.unwrap_or_else(|| panic!("{name} is missing: install the package {PACKAGE}"))
}

/// PostgreSQL refuses to run as root.
fn as_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    command.arg(program);
    command
}

/// psql asks for the name of the server, and whether the connection is encrypted.
fn psql(port: u16, certificates: &Certificates, settings: &str) -> Ran {
    let ca = certificates.ca.display();
    let target = format!(
        "host={NAME} hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=10 \
         sslmode=verify-full sslrootcert={ca} {settings}"
    );
    let mut command = Command::new("psql");
    command.args(["-XAtq", "-d", &target, "-c"]);
    command.arg(
        "select current_setting('cluster_name'), ssl from pg_stat_ssl where pid = pg_backend_pid()",
    );
    run("postgresql-client", &mut command, "")
}

/// HAProxy that requires PROXY headers, in front of a database.
fn behind_haproxy(certificates: &Certificates, database: &Database) -> Peer {
    Peer::start("haproxy", |port| {
        let config = certificates.folder().join(format!("haproxy-{port}.cfg"));
        let text = format!(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 9s\n  timeout server 9s\n\
             listen database\n  bind 127.0.0.1:{port} accept-proxy\n  server one {}\n",
            database.peer.address()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&config);
        command
    })
}

#[test]
fn psql_reaches_the_databases_of_its_pool() {
    let certificates = Certificates::new();
    let databases = ["one", "two"].map(|name| Database::start(&certificates, name));
    let proxy = behind_haproxy(&certificates, &databases[1]);
    let web = nginx(&certificates, "");
    let mut text =
        "[key]\nfile = \"none\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nrole = \"balance\"\n\
         [balance]\npolicy = \"round-robin\"\nhealth-interval = \"100ms\"\n\
         [[balance.pool]]\nname = \"database\"\nalpn = \"postgresql\"\n"
            .to_owned();
    for (name, address, more) in [
        ("one", databases[0].peer.address(), "pool = \"database\""),
        (
            "two",
            proxy.address(),
            "pool = \"database\"\nproxy-protocol = \"v2\"",
        ),
        ("no-database", web.address(), "pool = \"database\""),
        ("web", web.address(), ""),
    ] {
        text +=
            &format!("[[balance.server]]\nname = \"{name}\"\naddress = \"{address}\"\n{more}\n");
    }
    let file = certificates.folder().join("balance.toml");
    fs::write(&file, text).unwrap();
    let balancer = Sessile::balance_configured(&file, certificates.folder());

    // Checks ask each server of the pool for TLS as psql does.
    let other = balancer.await_server("no-database", |server| server["state"] == "down");
    let error = other["check_failed"]["error"].as_str().unwrap();
    assert!(
        error.contains("answered PostgreSQL's SSLRequest with"),
        "{error}"
    );
    for name in ["one", "two", "web"] {
        let server = balancer.await_server(name, |server| server["state"] == "up");
        assert_eq!(server["check_failed"], Value::Null, "{server}");
    }

    let port = balancer.address().port();
    let mut reached: Vec<String> = (0..4)
        .map(|_| psql(port, &certificates, "").succeeded().stdout)
        .collect();
    reached.sort();
    assert_eq!(reached, ["one|t\n", "one|t\n", "two|t\n", "two|t\n"]);

    // A client without TLS is turned away.
    let plain = psql(port, &certificates, "sslmode=disable");
    assert!(!plain.status.success());
    balancer.await_metrics(|metrics| metrics.turned_away("bad-hello") == 1);
    assert_eq!(server_hello_after_requests(&balancer), 22);
}

/// Asks for GSSAPI and then for TLS, as a client with Kerberos credentials does. Every byte comes alone. Returns
/// the content type of the server's first record.
fn server_hello_after_requests(balancer: &Sessile) -> u8 {
    let mut io = TcpStream::connect(balancer.address()).unwrap();
    io.set_nodelay(true).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut first = [0];
    for (request, answer) in [(GSSENC_REQUEST, b'N'), (SSL_REQUEST, b'S')] {
        for byte in request {
            io.write_all(&[byte]).unwrap();
        }
        io.read_exact(&mut first).unwrap();
        assert_eq!(first, [answer]);
    }
    io.write_all(HELLO).unwrap();
    io.read_exact(&mut first).unwrap();
    first[0]
}
