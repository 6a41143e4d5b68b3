//! A failing network between servers and their store: a proxy that delays, stops or cuts answers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use sessile_bench::Result;

/// The delay of answers.
pub(super) const DELAY: Duration = Duration::from_millis(50);

/// The treatment of answers.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    Pass,
    /// Answers arrive late.
    Delay,
    /// Answers wait until the mode changes.
    Stall,
    /// Half of an answer arrives, then the connection ends.
    Cut,
}

/// The proxy. It runs until the benchmark ends.
pub(super) struct Network {
    pub(super) address: SocketAddr,
    state: Arc<NetworkState>,
}

#[derive(Default)]
struct NetworkState {
    mode: Mutex<Mode>,
    changed: Condvar,
}

impl Network {
    pub(super) fn in_front_of(store: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = Arc::<NetworkState>::default();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(std::io::Result::ok) {
                let Ok(server) = TcpStream::connect(store) else {
                    continue;
                };
                // A failure closes the connection, and the server then reconnects.
                let _ = forward_both_ways(client, server, &shared);
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

impl NetworkState {
    /// The number of bytes to forward of an answer of `len` bytes. If this is less than `len`, the
    /// connection ends.
    fn bytes_to_forward(&self, len: usize) -> usize {
        let mode = self.mode.lock().unwrap_or_else(PoisonError::into_inner);
        match *mode {
            Mode::Pass => {}
            Mode::Delay => {
                drop(mode);
                thread::sleep(DELAY);
            }
            Mode::Stall => {
                drop(self.changed.wait_while(mode, |mode| *mode == Mode::Stall));
            }
            Mode::Cut => return len / 2,
        }
        len
    }
}

fn forward_both_ways(
    client: TcpStream,
    server: TcpStream,
    state: &Arc<NetworkState>,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let state = Arc::clone(state);
    thread::spawn(move || copy(&from, &to, |len| len));
    thread::spawn(move || copy(&server, &client, |len| state.bytes_to_forward(len)));
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, bytes_to_forward: impl Fn(usize) -> usize) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let bytes_to_forward = bytes_to_forward(read);
        if to.write_all(&buffer[..bytes_to_forward]).is_err() || bytes_to_forward < read {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
