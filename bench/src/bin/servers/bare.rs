//! A server without TLS that reads and writes about as many bytes as the other servers. Its cost is the column
//! "the kernel's part" of the tables. This file also contains the client for this server.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use sessile_bench::Result;

const HELLO: usize = 250;
const FLIGHT: usize = 900;
const FINISHED: usize = 74;
const REQUEST: usize = 80;
const RESPONSE: usize = 600;
const GOODBYE: usize = 24;

/// Serves on the address in the second argument, one connection at a time.
pub(super) fn serve() -> Result<()> {
    let address = std::env::args().nth(2).ok_or("--bare: no address")?;
    let listener = TcpListener::bind(address)?;
    loop {
        // Ignore clients that disconnect early; they report the failure themselves.
        let _ = listener.accept().and_then(|(io, _)| answer(io));
    }
}

fn answer(mut io: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    io.set_nodelay(true)?;
    io.read_exact(&mut buffer[..HELLO])?;
    io.write_all(&buffer[..FLIGHT])?;
    io.read_exact(&mut buffer[..FINISHED + REQUEST])?;
    io.write_all(&buffer[..RESPONSE])?;
    io.read_exact(&mut buffer[..GOODBYE])?;
    io.write_all(&buffer[..GOODBYE])
}

pub(super) fn connect(address: SocketAddr) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut io = TcpStream::connect(address)?;
    io.set_nodelay(true)?;
    io.write_all(&buffer[..HELLO])?;
    io.read_exact(&mut buffer[..FLIGHT])?;
    io.write_all(&buffer[..FINISHED])?;
    io.write_all(&buffer[..REQUEST])?;
    io.read_exact(&mut buffer[..RESPONSE])?;
    io.write_all(&buffer[..GOODBYE])?;
    io.shutdown(Shutdown::Write)?;
    io.read_to_end(&mut Vec::new())?;
    Ok(())
}
