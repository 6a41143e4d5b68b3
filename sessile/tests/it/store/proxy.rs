//! A TCP proxy that delays, stalls or cuts connections, as networks and failing machines do.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// How the proxy treats answers and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    Pass,
    /// Answers arrive 50 ms later.
    Delay,
    /// Answers do not arrive until the mode changes.
    Stall,
    /// Half of an answer arrives, then the connection ends.
    Cut,
    /// Requests do not arrive until the mode changes.
    Hold,
}

const MODES: [Mode; 5] = [Mode::Pass, Mode::Delay, Mode::Stall, Mode::Cut, Mode::Hold];

/// The proxy, whose threads run until the test process ends.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    mode: AtomicU8,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Shared {
    fn mode(&self) -> Mode {
        MODES[usize::from(self.mode.load(Ordering::SeqCst))]
    }

    fn wait_while(&self, mode: Mode) {
        let lock = self.lock.lock().unwrap();
        drop(self.changed.wait_while(lock, |()| self.mode() == mode));
    }
}

impl Proxy {
    pub(crate) fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            mode: AtomicU8::new(Mode::Pass as u8),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        });
        let state = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(to)) else {
                    continue;
                };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                let other = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let requests = Arc::clone(&state);
                thread::spawn(move || {
                    copy(&other.0, &other.1, |len| {
                        requests.wait_while(Mode::Hold);
                        len
                    });
                });
                let state = Arc::clone(&state);
                thread::spawn(move || copy(&server, &client, |len| answer(&state, len)));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn set(&self, mode: Mode) {
        let _lock = self.shared.lock.lock().unwrap();
        self.shared.mode.store(mode as u8, Ordering::SeqCst);
        self.shared.changed.notify_all();
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

/// The number of bytes to forward of an answer of `len` bytes. If this is less than `len`, the
/// connection ends.
fn answer(shared: &Shared, len: usize) -> usize {
    match shared.mode() {
        Mode::Pass | Mode::Hold => {}
        Mode::Delay => thread::sleep(Duration::from_millis(50)),
        Mode::Stall => shared.wait_while(Mode::Stall),
        Mode::Cut => return len / 2,
    }
    len
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, passed: impl Fn(usize) -> usize) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let passed = passed(read);
        if to.write_all(&buffer[..passed]).is_err() || passed < read {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
