//! The end of a connection: how many segments it takes.

use std::process::Command;

use crate::peers::{Certificates, NAME, Sessile, run};

/// Sends one request, and prints in how many TCP segments with data the answer came, up to the end.
const CLIENT: &str = r#"
import socket, ssl, struct, sys

port, ca, version, close = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "close"

def data_segments(sock):
    # The field tcpi_data_segs_in of struct tcp_info (linux/tcp.h).
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return struct.unpack_from("I", info, 152)[0]

context = ssl.create_default_context(cafile=ca)
context.maximum_version = getattr(ssl.TLSVersion, version)
head = "GET / HTTP/1.1\r\nHost: " + sys.argv[5] + "\r\n"
with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname=sys.argv[5]) as tls:
    # The tickets of TLS 1.3 leave with the first response, or a few milliseconds after the handshake.
    for last in [False, True]:
        before = data_segments(tls)
        tls.sendall((head + ("Connection: close\r\n" if close and last else "") + "\r\n").encode())
        answer = tls.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
    while close and tls.recv(65536):
        pass
    print(data_segments(tls) - before)
"#;

fn segments(server: &Sessile, certificates: &Certificates, version: &str, end: &str) -> u32 {
    let mut command = Command::new("python3");
    command.args(["-c", CLIENT, &server.address().port().to_string()]);
    command.arg(&certificates.ca).args([version, end, NAME]);
    let printed = run("python3", &mut command, "").succeeded().stdout;
    printed.trim().parse().expect("a number")
}

#[test]
fn the_last_response_leaves_together_with_close_notify() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("index.html"), "hello").unwrap();
    let server = Sessile::serve(&certificates, folder.path(), folder.path());
    for version in ["TLSv1_2", "TLSv1_3"] {
        assert_eq!(
            segments(&server, &certificates, version, "close"),
            1,
            "{version}"
        );
        assert_eq!(
            segments(&server, &certificates, version, "stay"),
            1,
            "{version}"
        );
    }
}
