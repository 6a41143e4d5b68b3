//! A proxy that notes the lengths of the records that a server sends.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use sessile_proto::record::{ContentType, HEADER_LEN, Header};

/// A TCP proxy. Its threads end with their connections or with the process.
pub(super) struct Wire {
    address: SocketAddr,
    sent: Receiver<Vec<u8>>,
}

impl Wire {
    pub(super) fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, sent) = channel();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                thread::spawn(move || pass(&client, server, &sender));
            }
        });
        Self { address, sent }
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until a connection has ended. Returns the lengths of the server's largest records.
    pub(super) fn records(&self) -> Records {
        Records::parse(&self.sent.recv().unwrap())
    }
}

fn pass(client: &TcpStream, server: SocketAddr, sent: &Sender<Vec<u8>>) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let mut bytes = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &*client, &mut &server);
            // The server may still send bytes after the end of the client's bytes.
            let _ = server.shutdown(Shutdown::Write);
        });
        let mut buffer = [0; 1 << 14];
        while let Ok(read @ 1..) = (&server).read(&mut buffer) {
            bytes.extend_from_slice(&buffer[..read]);
            // Ignore errors, because the client may disconnect before the last record.
            let _ = (&*client).write_all(&buffer[..read]);
        }
        let _ = client.shutdown(Shutdown::Both);
    });
    // Ignore the error if the test has dropped the proxy.
    let _ = sent.send(bytes);
    Ok(())
}

/// Lengths of the largest records of one connection, without headers.
#[derive(Debug)]
pub(super) struct Records {
    /// The largest record before the change of keys.
    pub(super) clear: usize,
    /// The largest record after the change of keys.
    pub(super) encrypted: usize,
}

impl Records {
    fn parse(mut bytes: &[u8]) -> Self {
        let mut records = Self {
            clear: 0,
            encrypted: 0,
        };
        let mut keys_changed = false;
        while !bytes.is_empty() {
            let header = Header::parse(bytes);
            // Read the length directly, because `parse` may refuse an encrypted alert for its
            // length.
            let len = usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
            keys_changed |= header.is_ok_and(|it| it.content == ContentType::ChangeCipherSpec);
            let largest = if keys_changed {
                &mut records.encrypted
            } else {
                &mut records.clear
            };
            *largest = len.max(*largest);
            bytes = &bytes[HEADER_LEN + len..];
        }
        records
    }

    /// Checks that the largest record has exactly `limit` bytes of content.
    pub(super) fn assert_limit(&self, limit: usize, tls13: bool, what: &str) {
        // With AES-GCM, TLS 1.2 adds a nonce and a tag. TLS 1.3 adds a content type and a tag.
        let overhead = if tls13 { 1 + 16 } else { 8 + 16 };
        assert!(self.clear <= limit, "{what}: {self:?}");
        assert_eq!(self.encrypted, limit + overhead, "{what}: {self:?}");
    }
}
