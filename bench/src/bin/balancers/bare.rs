//! A balancer that only makes the necessary system calls. It knows the length of each message, so it reads and
//! forwards messages without parsing. Its cost is the kernel's part of a connection.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use sessile_bench::Result;

use super::model::{AT_ONCE, SHORT};
use super::traffic::{CLOSING, FINISHED, FLIGHT, HELLO, REQUEST};

/// Listens on the address in the second argument. The third argument is the server's address.
pub(super) fn serve() -> Result<()> {
    let mut arguments = std::env::args().skip(2);
    let mut address = || -> Result<SocketAddr> {
        let address = arguments.next().ok_or("--bare: an address is missing")?;
        Ok(address.parse()?)
    };
    let listener = TcpListener::bind(address()?)?;
    let server = address()?;
    for _ in 1..AT_ONCE.into_iter().max().unwrap_or(1) {
        let listener = listener.try_clone()?;
        thread::spawn(move || answer(&listener, server));
    }
    answer(&listener, server);
    Ok(())
}

fn answer(listener: &TcpListener, server: SocketAddr) {
    for io in listener.incoming() {
        // Ignore clients that disconnect early; they report the failure themselves.
        let _ = io.and_then(|io| forward(io, server));
    }
}

fn forward(mut client: TcpStream, server: SocketAddr) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    client.set_nodelay(true)?;
    client.read_exact(&mut buffer[..HELLO.len()])?;
    let mut server = TcpStream::connect(server)?;
    server.set_nodelay(true)?;
    server.write_all(&buffer[..HELLO.len()])?;
    let mut copy = |from: &mut TcpStream, to: &mut TcpStream, len: usize| {
        from.read_exact(&mut buffer[..len])?;
        to.write_all(&buffer[..len])
    };
    copy(&mut server, &mut client, FLIGHT.len())?;
    copy(&mut client, &mut server, FINISHED + REQUEST)?;
    copy(&mut server, &mut client, SHORT)?;
    copy(&mut client, &mut server, CLOSING)?;
    server.shutdown(Shutdown::Write)?;
    copy(&mut server, &mut client, CLOSING)
}
