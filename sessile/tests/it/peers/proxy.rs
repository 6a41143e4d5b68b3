//! A proxy that forwards a client's bytes to the program. The proxy keeps a copy of the first
//! record, and can cut the record into pieces.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// The form in which a client's first record is forwarded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// Unchanged.
    Whole,
    /// Each byte in a separate TCP segment.
    Segments,
    /// Each byte of the message in a separate TLS record and TCP segment.
    Records,
}

/// A TCP proxy. Its threads end with their connections or with the process.
pub(crate) struct Proxy {
    address: SocketAddr,
    hellos: Receiver<Vec<u8>>,
}

impl Proxy {
    pub(crate) fn start(upstream: SocketAddr, cut: Cut) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (sender, hellos) = channel();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                // Ignore errors, because the client sees how its connection ends.
                thread::spawn(move || pass(&client, upstream, cut, &sender));
            }
        });
        Self { address, hellos }
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The first record of the next client, unchanged.
    pub(crate) fn hello(&self) -> Vec<u8> {
        self.hellos.recv().expect("it listens")
    }
}

fn pass(
    client: &TcpStream,
    upstream: SocketAddr,
    cut: Cut,
    hellos: &Sender<Vec<u8>>,
) -> io::Result<()> {
    let server = TcpStream::connect(upstream)?;
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let hello = record(client)?;
    let cut_hello = match cut {
        Cut::Records => in_records_of_one_byte(&hello),
        Cut::Whole | Cut::Segments => hello.clone(),
    };
    let piece = match cut {
        Cut::Whole => hello.len(),
        Cut::Segments | Cut::Records => 1,
    };
    // Ignore the error if the test has dropped the proxy.
    let _ = hellos.send(hello);
    let (mut to_server, mut to_client) = (&server, client);
    for piece in cut_hello.chunks(piece) {
        to_server.write_all(piece)?;
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &server, &mut to_client);
            client.shutdown(Shutdown::Write)
        });
        let _ = io::copy(&mut &*client, &mut to_server);
        server.shutdown(Shutdown::Write)
    })
}

/// Reads one TLS record.
pub(crate) fn record(mut stream: impl Read) -> io::Result<Vec<u8>> {
    let mut record = vec![0; 5];
    stream.read_exact(&mut record)?;
    let length = u16::from_be_bytes([record[3], record[4]]);
    record.resize(5 + usize::from(length), 0);
    stream.read_exact(&mut record[5..])?;
    Ok(record)
}

fn in_records_of_one_byte(record: &[u8]) -> Vec<u8> {
    let (header, message) = record.split_at(5);
    let records = message.iter();
    records
        .flat_map(|byte| [header[0], header[1], header[2], 0, 1, *byte])
        .collect()
}
