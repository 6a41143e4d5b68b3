//! The traffic: the recorded bytes of a resumed TLS 1.3 handshake, then a response of any length. For a
//! balancer that does not decrypt, the traffic is the same as between real peers. The cost of the client and
//! the server is low and not measured.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use sessile_bench::Result;

pub(super) const HELLO: &[u8] =
    include_bytes!("../../../../proto/src/testdata/client-openssl-tls13-resumed.bin");
pub(super) const FLIGHT: &[u8] =
    include_bytes!("../../../../proto/src/testdata/server-openssl-tls13-resumed.bin");

/// Lengths of the client's Finished, the request, and the last message.
pub(super) const FINISHED: usize = 74;
pub(super) const REQUEST: usize = 120;
pub(super) const CLOSING: usize = 24;

/// Bytes that a server writes at once.
const CHUNK: usize = 64 * 1024;

/// Threads of the server, each with one connection.
const THREADS: usize = 16;

/// Starts a server whose answer has as many bytes as the request asks for. The server runs until the process
/// ends.
pub(super) fn serve() -> Result<SocketAddr> {
    let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    let address = listener.local_addr()?;
    for _ in 0..THREADS {
        let listener = Arc::clone(&listener);
        thread::spawn(move || {
            let mut chunk = vec![0x17; CHUNK];
            loop {
                // Ignore clients that disconnect early; they report the failure themselves.
                let _ = listener.accept().map(|(io, _)| answer(io, &mut chunk));
            }
        });
    }
    Ok(address)
}

fn answer(mut io: TcpStream, chunk: &mut [u8]) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    io.set_nodelay(true)?;
    io.read_exact(&mut buffer[..HELLO.len()])?;
    io.write_all(FLIGHT)?;
    io.read_exact(&mut buffer[..FINISHED + REQUEST])?;
    let wanted = buffer[FINISHED..]
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let mut left = usize::try_from(wanted).unwrap_or(usize::MAX);
    while left > 0 {
        let len = left.min(chunk.len());
        io.write_all(&chunk[..len])?;
        left -= len;
    }
    io.read_exact(&mut buffer[..CLOSING])?;
    io.write_all(&buffer[..CLOSING])
}

/// Makes one connection with a response of this length.
pub(super) fn connect(address: SocketAddr, response: usize, chunk: &mut [u8]) -> Result<()> {
    let mut io = TcpStream::connect(address)?;
    io.set_nodelay(true)?;
    io.write_all(HELLO)?;
    io.read_exact(&mut chunk[..FLIGHT.len()])?;
    let mut request = [0; FINISHED + REQUEST];
    request[FINISHED..][..8].copy_from_slice(&(response as u64).to_be_bytes());
    io.write_all(&request)?;
    let mut left = response;
    while left > 0 {
        let len = left.min(chunk.len());
        io.read_exact(&mut chunk[..len])?;
        left -= len;
    }
    io.write_all(&[0; CLOSING])?;
    io.shutdown(Shutdown::Write)?;
    let mut last = Vec::new();
    io.read_to_end(&mut last)?;
    match last.len() {
        CLOSING => Ok(()),
        other => Err(format!("{other} bytes for a goodbye").into()),
    }
}

/// Starts a server that answers ClientHellos and keeps the connections. The server runs until the process ends.
pub(super) fn serve_idle() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        let mut kept = Vec::new();
        for io in listener.incoming() {
            let mut hello = [0; HELLO.len()];
            let answered = io.and_then(|mut io| {
                io.read_exact(&mut hello)?;
                io.write_all(FLIGHT)?;
                Ok(io)
            });
            kept.extend(answered);
        }
    });
    Ok(address)
}

/// Makes a connection, receives the server's first flight, and returns the open connection.
pub(super) fn open(address: SocketAddr) -> Result<TcpStream> {
    let mut io = TcpStream::connect(address)?;
    io.write_all(HELLO)?;
    io.read_exact(&mut [0; FLIGHT.len()])?;
    Ok(io)
}

/// Makes `connections` connections, `at_once` at a time.
pub(super) fn run(
    address: SocketAddr,
    connections: usize,
    at_once: usize,
    response: usize,
) -> Result<()> {
    thread::scope(|scope| {
        let client = || -> Result<()> {
            let mut chunk = vec![0; CHUNK];
            (0..connections / at_once).try_for_each(|_| connect(address, response, &mut chunk))
        };
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(client)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a client panicked")?)
    })
}
