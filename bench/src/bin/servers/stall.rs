//! A network between a server and its store that becomes slow: a proxy whose answers arrive late.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::Result;

/// How late answers are.
pub(super) const DELAY: Duration = Duration::from_millis(50);

/// Runs until the benchmark ends.
pub(super) struct Stall {
    pub(super) address: SocketAddr,
    slow: Arc<AtomicBool>,
}

impl Stall {
    pub(super) fn before(store: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let slow = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&slow);
        thread::spawn(move || {
            for client in listener.incoming().map_while(std::io::Result::ok) {
                let Ok(server) = TcpStream::connect(store) else {
                    continue;
                };
                // A failure here ends the connection, which the server then makes anew.
                let _ = join(client, server, &shared);
            }
        });
        Ok(Self { address, slow })
    }

    pub(super) fn set(&self, slow: bool) {
        self.slow.store(slow, Ordering::Relaxed);
    }
}

fn join(client: TcpStream, server: TcpStream, slow: &Arc<AtomicBool>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let slow = Arc::clone(slow);
    thread::spawn(move || copy(&from, &to, || {}));
    thread::spawn(move || {
        copy(&server, &client, || {
            if slow.load(Ordering::Relaxed) {
                thread::sleep(DELAY);
            }
        });
    });
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, wait: impl Fn()) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        wait();
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
