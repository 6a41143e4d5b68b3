//! The two things that systemd and its like do for a service: they pass listening sockets on, which
//! outlive a restart, and listen to what state the service is in.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::sync::{Mutex, PoisonError};

use listenfd::ListenFd;
use rustix::net::sockopt;
use rustix::time::{ClockId, clock_gettime};

/// What was inherited and has no owner yet. A process inherits once, whatever roles it has.
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
        "inherited, and no listener has that address: {0}; make [[listener]] address and ListenStream= the \
         same"
    )]
    Unclaimed(Names),
}

/// Sockets by name and address.
#[derive(Debug)]
pub struct Names(Vec<(String, SocketAddr)>);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, address)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name} ({address})")?;
        }
        Ok(())
    }
}

/// Takes the sockets that were passed on (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`) for whoever
/// is going to listen on these addresses. To be called before there are threads.
///
/// # Errors
/// Where one is no listening TCP socket, or nobody is going to listen there: connections to it would
/// wait for ever.
pub fn inherit(addresses: &[SocketAddr]) -> Result<(), InheritError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut passed = ListenFd::from_env();
    let mut inherited = Vec::new();
    for at in 0..passed.len() {
        let name = match names.next() {
            None | Some("") => format!("number {}", at + 1),
            Some(name) => name.to_owned(),
        };
        let taken = passed.take_tcp_listener(at).and_then(usable);
        match taken {
            Ok(Some((address, listener))) => inherited.push(Inherited {
                name,
                address,
                listener,
            }),
            Ok(None) => {}
            Err(source) => return Err(InheritError::Unusable { name, source }),
        }
    }
    let strange = inherited
        .iter()
        .filter(|it| !addresses.contains(&it.address));
    let strange = strange.map(|it| (it.name.clone(), it.address));
    let strange: Vec<_> = strange.collect();
    if !strange.is_empty() {
        return Err(InheritError::Unclaimed(Names(strange)));
    }
    *INHERITED.lock().unwrap_or_else(PoisonError::into_inner) = inherited;
    Ok(())
}

fn usable(listener: Option<TcpListener>) -> io::Result<Option<(SocketAddr, TcpListener)>> {
    let Some(listener) = listener else {
        return Ok(None);
    };
    if !sockopt::socket_acceptconn(&listener)? {
        return Err(io::Error::other("it does not listen"));
    }
    Ok(Some((listener.local_addr()?, listener)))
}

/// The inherited socket with that address, if there is one.
pub(crate) fn claim(address: SocketAddr) -> Option<TcpListener> {
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    let at = inherited.iter().position(|it| it.address == address)?;
    Some(inherited.swap_remove(at).listener)
}

/// What a service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It takes connections.
    Ready,
    /// It reads its files again; `Ready` follows.
    Reloading,
    /// It drains.
    Stopping,
}

/// Tells whoever started this process, where it wants to know (`NOTIFY_SOCKET`).
pub fn notify(state: State) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
        return;
    };
    let message = match state {
        State::Ready => "READY=1\n".to_owned(),
        State::Reloading => {
            let now = clock_gettime(ClockId::Monotonic);
            let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
            format!("RELOADING=1\nMONOTONIC_USEC={micros}\n")
        }
        State::Stopping => "STOPPING=1\n".to_owned(),
    };
    let sent = (|| {
        let address = match path.as_bytes() {
            [b'@', name @ ..] => UnixAddress::from_abstract_name(name)?,
            _ => UnixAddress::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)
    })();
    if let Err(error) = sent {
        tracing::warn!(%error, ?state, "the service manager cannot be told");
    }
}
