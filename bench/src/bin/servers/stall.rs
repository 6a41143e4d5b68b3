//! A network between servers and their store that fails: a proxy which does things to answers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::Result;

/// How late answers are.
pub(super) const DELAY: Duration = Duration::from_millis(50);

/// What becomes of answers.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    Pass,
    /// They arrive late.
    Delay,
    /// They do not arrive until it is another mode.
    Stall,
    /// Half of one arrives, then the connection ends.
    Cut,
}

/// Runs until the benchmark ends.
pub(super) struct Network {
    pub(super) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    mode: Mutex<Mode>,
    changed: Condvar,
}

impl Network {
    pub(super) fn before(store: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(std::io::Result::ok) {
                let Ok(server) = TcpStream::connect(store) else {
                    continue;
                };
                // A failure here ends the connection, which the server then makes anew.
                let _ = join(client, server, &shared);
            }
        });
        Ok(Self { address, state })
    }

    pub(super) fn set(&self, mode: Mode) {
        *self
            .state
            .mode
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = mode;
        self.state.changed.notify_all();
    }
}

impl State {
    /// How many of an answer's bytes are passed on; after fewer than all the connection ends.
    fn passed(&self, len: usize) -> usize {
        let mode = self.mode.lock().unwrap_or_else(PoisonError::into_inner);
        match *mode {
            Mode::Pass => {}
            Mode::Delay => {
                drop(mode);
                thread::sleep(DELAY);
            }
            Mode::Stall => {
                let stalled = |mode: &mut Mode| *mode == Mode::Stall;
                drop(self.changed.wait_while(mode, stalled));
            }
            Mode::Cut => return len / 2,
        }
        len
    }
}

fn join(client: TcpStream, server: TcpStream, state: &Arc<State>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let state = Arc::clone(state);
    thread::spawn(move || copy(&from, &to, |len| len));
    thread::spawn(move || copy(&server, &client, |len| state.passed(len)));
    Ok(())
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
