//! Finds out at the start which TLS connections the kernel can encrypt. A real socket pair is used, because
//! `tcp_available_ulp` lists `tls` only after the module is loaded, and names no ciphers.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::{ProtocolVersion, SupportedCipherSuite};
use strum::VariantArray;

use super::keys::{Cipher, CryptoInfo, Direction, Version};
use super::socket;

/// How long the kernel may take to move one record over the loopback interface.
const PATIENCE: Duration = Duration::from_secs(1);

/// The connections that the kernel can encrypt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSupport {
    suites: Vec<(Version, Cipher)>,
    can_rekey: bool,
}

/// Why the kernel encrypts no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error(
        "the kernel has no TLS: run `modprobe tls`, and write `tls` to /etc/modules-load.d/tls.conf to load the \
         module at each start; without this module, the kernel needs CONFIG_TLS"
    )]
    NoModule,
    #[error("the kernel's TLS has none of the ciphers of this server; use a newer kernel")]
    NoCipher,
    #[error(
        "the kernel's TLS cannot be tried over 127.0.0.1: {0}; bring the loopback interface up"
    )]
    Loopback(#[source] io::Error),
    #[error("the kernel refuses TLS on a socket: {0}; check sandboxes and security modules")]
    Refused(#[source] io::Error),
}

impl KernelSupport {
    /// The result of the probe, which runs once in a process and logs its result.
    ///
    /// # Errors
    /// As [`Self::probe`].
    pub fn of_this_system() -> Result<&'static Arc<Self>, &'static Unavailable> {
        static SUPPORT: OnceLock<Result<Arc<KernelSupport>, Unavailable>> = OnceLock::new();
        let support = SUPPORT.get_or_init(|| {
            let support = Self::probe();
            match &support {
                Ok(support) => tracing::info!(
                    %support,
                    "large files go out through kernel TLS, on HTTP/1.1 connections"
                ),
                Err(cause) => tracing::info!(%cause, "kernel TLS is not used"),
            }
            support.map(Arc::new)
        });
        support.as_ref()
    }

    /// Tries each version and cipher with a pair of sockets.
    ///
    /// # Errors
    /// If the kernel can encrypt no connection.
    pub fn probe() -> Result<Self, Unavailable> {
        let (one, _other) = pair().map_err(Unavailable::Loopback)?;
        match socket::attach(one.as_fd()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Err(Unavailable::NoModule);
            }
            Err(error) => return Err(Unavailable::Refused(error)),
        }
        let mut support = Self {
            suites: Vec::new(),
            can_rekey: false,
        };
        for &version in Version::VARIANTS {
            for &cipher in Cipher::VARIANTS {
                match try_suite(version, cipher) {
                    Ok(can_rekey) => {
                        support.suites.push((version, cipher));
                        support.can_rekey |= can_rekey;
                    }
                    Err(error) => {
                        tracing::debug!(
                            version = version.name(), cipher = cipher.name(), %error,
                            "the kernel cannot encrypt these connections"
                        );
                    }
                }
            }
        }
        if support.suites.is_empty() {
            return Err(Unavailable::NoCipher);
        }
        Ok(support)
    }

    /// True if the kernel can encrypt a connection.
    pub(in crate::tls) fn includes(
        &self,
        version: ProtocolVersion,
        suite: SupportedCipherSuite,
    ) -> bool {
        match (Version::of(version), Cipher::of(suite)) {
            (Some(version), Some(cipher)) => self.suites.contains(&(version, cipher)),
            _ => false,
        }
    }

    /// True if the kernel can take the next key of a connection (Linux 6.14).
    pub(super) const fn can_rekey(&self) -> bool {
        self.can_rekey
    }
}

impl fmt::Display for KernelSupport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &version in Version::VARIANTS {
            let mut suites = self.suites.iter().filter(|(of, _)| *of == version);
            if let Some((_, first)) = suites.next() {
                write!(f, "{} {}", version.name(), first.name())?;
                for (_, cipher) in suites {
                    write!(f, ", {}", cipher.name())?;
                }
                write!(f, "; ")?;
            }
        }
        f.write_str(if self.can_rekey {
            "with key updates"
        } else {
            "without key updates"
        })
    }
}

/// Sends a byte from one socket to the other. Returns true if the sockets also take new keys.
fn try_suite(version: Version, cipher: Cipher) -> io::Result<bool> {
    let keys = |fill| {
        CryptoInfo::new(
            version,
            cipher,
            &[fill; 32][..cipher.key_len()],
            &[fill; 12],
            0,
        )
    };
    let (mut sender, mut receiver) = pair()?;
    socket::attach(sender.as_fd())?;
    socket::attach(receiver.as_fd())?;
    // A server needs both directions on each socket.
    for (socket, received, sent) in [(&sender, 1, 2), (&receiver, 2, 1)] {
        socket::set_keys(socket.as_fd(), Direction::Transmit, &keys(sent))?;
        socket::set_keys(socket.as_fd(), Direction::Receive, &keys(received))?;
    }
    let mut byte = [0];
    sender.write_all(&[42])?;
    receiver.read_exact(&mut byte)?;
    if byte != [42] {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // TLS 1.2 has no key updates.
    Ok(version == Version::Tls13
        && socket::set_keys(sender.as_fd(), Direction::Transmit, &keys(3)).is_ok())
}

/// Two ends of a TCP connection.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    for socket in [&one, &other] {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((one, other))
}
