//! A balancer that does nothing but what the kernel has to be asked for: it knows how much comes from
//! which side, waits for that and hands it on. What it costs is the kernel's part of every connection.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use super::Result;
use super::traffic::{FINISHED, FLIGHT, GOODBYE, HELLO, REQUEST};
use super::{AT_ONCE, SHORT};

/// Serves on the address in the second argument for the server in the third.
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
        // A client that goes away in the middle is the client's affair.
        let _ = io.and_then(|io| hand_on(io, server));
    }
}

fn hand_on(mut client: TcpStream, server: SocketAddr) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    client.set_nodelay(true)?;
    client.read_exact(&mut buffer[..HELLO.len()])?;
    let mut server = TcpStream::connect(server)?;
    server.set_nodelay(true)?;
    server.write_all(&buffer[..HELLO.len()])?;
    let mut turn = |from: &mut TcpStream, to: &mut TcpStream, len: usize| {
        from.read_exact(&mut buffer[..len])?;
        to.write_all(&buffer[..len])
    };
    turn(&mut server, &mut client, FLIGHT.len())?;
    turn(&mut client, &mut server, FINISHED + REQUEST)?;
    turn(&mut server, &mut client, SHORT)?;
    turn(&mut client, &mut server, GOODBYE)?;
    server.shutdown(Shutdown::Write)?;
    turn(&mut server, &mut client, GOODBYE)
}
