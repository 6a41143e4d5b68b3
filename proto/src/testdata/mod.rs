//! Captured handshakes and HTTP responses. `client-*.bin`: the first ClientHello in a record. `server-*.bin`: the server's answer up
//! to the first encrypted record. `ticket-*.bin`: a NewSessionTicket message of TLS 1.2. `records-*.bin`: all bytes of a
//! TLS 1.3 server. `weak-*.bin`: a ticket under a key of zeros. `weak-sequence-*.bin`: a ticket under
//! the key 00 01 02 and so on.
//!
//! Captured on loopback from OpenSSL 3.0 (`openssl-*`, `nginx-*`, `curl-*`, `python-*`), GnuTLS 3.7,
//! Go 1.19 and Chromium 156 as clients. `openssl s_server` answered `openssl-*`, a server of Go answered `go-*`,
//! and nginx 1.22 answered all other clients.
//! `handmade-*` are forms that current clients do not send.
//!
//! `response-*.bin`: the answer to `GET / HTTP/1.1`, from nginx 1.22, Node.js 20 and Python 3.11 on loopback.

/// A ClientHello and the server's answer.
pub(crate) struct Exchange {
    pub(crate) name: &'static str,
    pub(crate) client: &'static [u8],
    pub(crate) server: &'static [u8],
}

macro_rules! exchanges {
    ($($name:literal)*) => {
        &[$(Exchange {
            name: $name,
            client: include_bytes!(concat!("client-", $name, ".bin")),
            server: include_bytes!(concat!("server-", $name, ".bin")),
        }),*]
    };
}

pub(crate) const EXCHANGES: &[Exchange] = exchanges![
    "chromium-full"
    "chromium-resumed"
    "chromium-tls12-full"
    "chromium-tls12-id-full"
    "chromium-tls12-id-resumed"
    "chromium-tls12-resumed"
    "curl-full"
    "curl-resumed"
    "curl-tls12-full"
    "curl-tls12-resumed"
    "gnutls-full"
    "gnutls-resumed"
    "gnutls-tls12-full"
    "gnutls-tls12-resumed"
    "go-full"
    "go-resumed"
    "nginx-tls12-id-full"
    "nginx-tls12-id-resumed"
    "nginx-tls12-ticket-full"
    "nginx-tls12-ticket-resumed"
    "openssl-alert"
    "openssl-tls10-id-full"
    "openssl-tls10-id-resumed"
    "openssl-tls12-id-full"
    "openssl-tls12-id-refused"
    "openssl-tls12-id-resumed"
    "openssl-tls12-ticket-full"
    "openssl-tls12-ticket-refused"
    "openssl-tls12-ticket-resumed"
    "openssl-tls13-full"
    "openssl-tls13-refused"
    "openssl-tls13-resumed"
    "openssl-tls13-retry-full"
    "openssl-tls13-retry-resumed"
    "python-full"
    "python-resumed"
];

pub(crate) const SSL2: &[u8] = include_bytes!("client-handmade-ssl2.bin");
pub(crate) const SSL3: &[u8] = include_bytes!("client-handmade-ssl3.bin");
pub(crate) const TLS10: &[u8] = include_bytes!("client-handmade-tls10.bin");

pub(crate) const TICKETS: [&[u8]; 3] = [
    include_bytes!("ticket-chromium-tls12.bin"),
    include_bytes!("ticket-gnutls-tls12.bin"),
    include_bytes!("ticket-openssl-tls12-ticket.bin"),
];

/// HTTP/1.1 responses with the name of their server.
pub(crate) const RESPONSES: [(&str, &[u8]); 4] = [
    ("nginx", include_bytes!("response-nginx.bin")),
    (
        "nginx-chunked",
        include_bytes!("response-nginx-chunked.bin"),
    ),
    ("node-chunked", include_bytes!("response-node-chunked.bin")),
    ("python", include_bytes!("response-python.bin")),
];

/// The exchange with this name.
pub(crate) fn exchange(name: &str) -> &'static Exchange {
    let found = EXCHANGES.iter().find(|exchange| exchange.name == name);
    found.expect("a fixture of this name")
}

/// Every captured and handmade hello in TLS form, in its record.
pub(crate) fn hellos() -> impl Iterator<Item = &'static [u8]> {
    let captured = EXCHANGES.iter().map(|exchange| exchange.client);
    captured.chain([SSL3, TLS10])
}

/// One or more handshake messages in records of at most `size` bytes.
pub(crate) fn in_records(messages: &[u8], size: usize) -> Vec<u8> {
    let mut records = Vec::new();
    for fragment in messages.chunks(size) {
        let len = u16::try_from(fragment.len()).expect("a size of at most 2^14");
        records.extend([22, 3, 3]);
        records.extend(len.to_be_bytes());
        records.extend(fragment);
    }
    records
}

/// A handshake message of this type.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("a short body");
    let mut message = vec![kind];
    message.extend(&len.to_be_bytes()[1..]);
    message.extend(body);
    message
}

/// A ClientHello message with these extensions and an empty session ID.
pub(crate) fn client_hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    let mut block = Vec::new();
    for (kind, data) in extensions {
        block.extend(kind.to_be_bytes());
        block.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
        block.extend(*data);
    }
    body.extend(u16::try_from(block.len()).expect("short").to_be_bytes());
    body.extend(block);
    message(1, &body)
}
