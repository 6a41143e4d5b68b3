//! Listening sockets that a service manager such as systemd passes on. These sockets outlive a restart of this
//! process.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;

use listenfd::ListenFd;
use rustix::net::sockopt;

use crate::locks::locked;

/// Inherited sockets that no listener has taken. A process takes inherited sockets once, for all of its roles.
static INHERITED: Mutex<Vec<Inherited>> = Mutex::new(Vec::new());

struct Inherited {
    name: String,
    address: SocketAddr,
    listener: TcpListener,
}

/// An inherited socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    #[error(
        "inherited socket {name}: {source}; sessile takes listening TCP sockets (ListenStream=IP:PORT, and \
         Accept= as it is by default)"
    )]
    Unusable { name: String, source: io::Error },
    #[error(
        "inherited sockets whose address no listener has: {0}; set the same address in [[listener]] and ListenStream="
    )]
    Unclaimed(String),
}

/// Takes the sockets that were passed on (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`). `addresses`: the
/// addresses of all listeners. Call this before the process has threads.
///
/// # Errors
/// If an inherited socket is no listening TCP socket, or no listener has its address. Connections to that
/// address would wait for ever.
pub fn inherit(addresses: &[SocketAddr]) -> Result<(), InheritError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut passed = ListenFd::from_env();
    let mut inherited = Vec::new();
    for index in 0..passed.len() {
        let name = match names.next() {
            None | Some("") => format!("number {}", index + 1),
            Some(name) => name.to_owned(),
        };
        match passed.take_tcp_listener(index).and_then(listening_address) {
            Ok(Some((address, listener))) => inherited.push(Inherited {
                name,
                address,
                listener,
            }),
            Ok(None) => {}
            Err(source) => return Err(InheritError::Unusable { name, source }),
        }
    }
    let unclaimed: Vec<_> = inherited
        .iter()
        .filter(|socket| !addresses.contains(&socket.address))
        .map(|socket| format!("{} ({})", socket.name, socket.address))
        .collect();
    if !unclaimed.is_empty() {
        return Err(InheritError::Unclaimed(unclaimed.join(", ")));
    }
    *locked(&INHERITED) = inherited;
    Ok(())
}

fn listening_address(
    listener: Option<TcpListener>,
) -> io::Result<Option<(SocketAddr, TcpListener)>> {
    let Some(listener) = listener else {
        return Ok(None);
    };
    if !sockopt::socket_acceptconn(&listener)? {
        return Err(io::Error::other("it does not listen"));
    }
    Ok(Some((listener.local_addr()?, listener)))
}

/// Takes the inherited socket with this address, if there is one.
pub(super) fn claim(address: SocketAddr) -> Option<TcpListener> {
    let mut inherited = locked(&INHERITED);
    let index = inherited
        .iter()
        .position(|socket| socket.address == address)?;
    Some(inherited.swap_remove(index).listener)
}
