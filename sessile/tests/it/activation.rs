//! A service manager starts the program and holds the listening socket, so a restart refuses no
//! connection.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::peers::{Certificates, NAME, Peer, Sessile, inheriting, nginx, run};

const PATIENCE: Duration = Duration::from_secs(15);

/// A listening socket that outlives the program, and a socket for the program's state messages.
struct Manager {
    listener: TcpListener,
    heard: UnixDatagram,
    notify: PathBuf,
    config: PathBuf,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new(config: impl Fn(u16) -> String) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let notify = folder.path().join("notify");
        let heard = UnixDatagram::bind(&notify).unwrap();
        heard.set_read_timeout(Some(PATIENCE)).unwrap();
        let file = folder.path().join("sessile.toml");
        let port = listener.local_addr().unwrap().port();
        fs::write(&file, config(port)).unwrap();
        Self {
            listener,
            heard,
            notify,
            config: file,
            folder,
        }
    }

    fn balancer(server: &Peer) -> Self {
        let server = server.address();
        Self::new(|port| {
            format!(
                "key.file = 'none'\nserver.workers = 2\n\
                 [[listener]]\naddress = '127.0.0.1:{port}'\nrole = 'balance'\n\
                 [[balance.server]]\nname = 'a'\naddress = '{server}'\n"
            )
        })
    }

    fn start(&self, role: &str) -> Sessile {
        let state = self.folder.path();
        Sessile::inheriting(role, &self.config, state, &self.listener, &self.notify)
    }

    /// Receives the next state message.
    fn hears(&self) -> String {
        let mut message = [0; 200];
        let len = self.heard.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..len]).into_owned()
    }
}

fn visit(port: u16, certificates: &Certificates) -> bool {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-servername", NAME, "-verify_return_error"]);
    command.arg("-connect").arg(format!("127.0.0.1:{port}"));
    command.arg("-CAfile").arg(&certificates.ca);
    run("openssl", &mut command, "").status.success()
}

#[test]
fn a_restart_under_load_refuses_no_connection() {
    const RESTARTS: usize = 3;
    let certificates = Certificates::new();
    let server = nginx(&certificates, "");
    let manager = Manager::balancer(&server);
    let port = manager.listener.local_addr().unwrap().port();
    let mut running = manager.start("balance");
    assert_eq!(manager.hears(), "READY=1\n");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut visits = 0;
                    while !over.load(Ordering::Relaxed) {
                        assert!(visit(port, &certificates), "after {visits}");
                        visits += 1;
                    }
                    visits
                })
            })
            .collect();
        for _ in 0..RESTARTS {
            // Wait until the current process has served connections.
            running.await_metrics(|metrics| metrics.all_routed() >= 3);
            running.terminate();
            assert_eq!(manager.hears(), "STOPPING=1\n");
            assert_eq!(running.ended().code(), Some(0));
            running = manager.start("balance");
            assert_eq!(manager.hears(), "READY=1\n");
        }
        running.await_metrics(|metrics| metrics.all_routed() >= 3);
        over.store(true, Ordering::Relaxed);
        for client in clients {
            assert!(client.join().unwrap() > 0);
        }
    });
}

#[test]
fn a_server_takes_its_inherited_socket_and_notifies_about_reloads() {
    let certificates = Certificates::new();
    let manager = Manager::new(|port| {
        format!(
            "[[listener]]\naddress = '127.0.0.1:{port}'\n\
             [[site]]\ncertificates = [{{ chain = '{}', key = '{}' }}]\n",
            certificates.chain.display(),
            certificates.key.display(),
        )
    });
    let port = manager.listener.local_addr().unwrap().port();
    let server = manager.start("serve");
    assert_eq!(server.address().port(), port);
    assert_eq!(manager.hears(), "READY=1\n");
    assert!(visit(port, &certificates));
    server.hang_up();
    let reloading = manager.hears();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(manager.hears(), "READY=1\n");
}

#[test]
fn connections_that_wait_during_a_restart_are_served() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "");
    let manager = Manager::balancer(&server);
    let address = manager.listener.local_addr().unwrap();
    let mut early = TcpStream::connect(address).unwrap();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    let hello: &[u8] = include_bytes!("../../../proto/src/testdata/client-openssl-tls13-full.bin");
    early.write_all(hello).unwrap();
    let _balancer = manager.start("balance");
    let mut kind = [0];
    early.read_exact(&mut kind).unwrap();
    assert_eq!(kind, [22], "a record of the handshake");
}

#[test]
fn an_inherited_socket_without_a_listener_is_a_named_error() {
    let certificates = Certificates::new();
    let server = nginx(&certificates, "");
    let manager = Manager::balancer(&server);
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = other.local_addr().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_sessile"));
    program.args(["balance", "--config"]).arg(&manager.config);
    let mut command = inheriting(&program, &other, Path::new("/nonexistent"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("web ({address})")), "{said}");
}
