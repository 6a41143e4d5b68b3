//! Decides whether a TLS 1.3 handshake is complete on both sides, from the lengths of encrypted records.
//!
//! The Finished messages of TLS 1.3 are encrypted. But a server that has refused the client's Finished sends an
//! alert, which is shorter than every ticket and almost every answer.

use crate::record::{ContentType, Error, HEADER_LEN, Header};

/// Bytes of an encrypted alert: level, description, content type, and the longest tag of an AEAD.
const ALERT: usize = 2 + 1 + 16;

/// Most bytes of each side that are read. Handshakes are much shorter.
const LIMIT: usize = 64 * 1024;

/// Follows the record headers of both sides.
#[derive(Clone, Debug)]
pub struct CompletionWatch {
    client: Records,
    server: Records,
    awaited: AwaitedRecord,
}

/// Whether both sides have finished the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// More bytes may show it.
    Pending,
    /// The server has answered the client's Finished with more than an alert.
    Complete,
    /// The bytes are not TLS records, or too many came without a result.
    Unknown,
}

/// The encrypted record that is awaited next.
#[derive(Clone, Copy, Debug)]
enum AwaitedRecord {
    ServerFlight,
    /// A record after the server's flight began, and longer than an alert. Early data comes before.
    ClientFinished,
    ServerAnswer,
    Nothing(Completion),
}

impl CompletionWatch {
    /// `client_bytes`: all bytes from the start of the client's first hello.
    #[must_use]
    pub fn new(client_bytes: &[u8]) -> Self {
        let mut watch = Self {
            client: Records::default(),
            server: Records::default(),
            awaited: AwaitedRecord::ServerFlight,
        };
        watch.push_client(client_bytes);
        watch
    }

    /// True if the client's next bytes can change the result.
    #[must_use]
    pub const fn awaits_client(&self) -> bool {
        matches!(
            self.awaited,
            AwaitedRecord::ServerFlight | AwaitedRecord::ClientFinished
        )
    }

    /// Takes the next bytes of the client.
    pub fn push_client(&mut self, bytes: &[u8]) {
        let mut input = bytes;
        while self.awaits_client() {
            match self.client.next(&mut input) {
                Ok(header) => {
                    // A client that refuses the server's flight may send an encrypted alert.
                    let may_be_finished =
                        header.content == ContentType::ApplicationData && header.len > ALERT;
                    if may_be_finished && matches!(self.awaited, AwaitedRecord::ClientFinished) {
                        self.awaited = AwaitedRecord::ServerAnswer;
                    }
                }
                Err(Error::Incomplete) => break,
                Err(_) => self.awaited = AwaitedRecord::Nothing(Completion::Unknown),
            }
        }
    }

    /// Takes the next bytes of the server.
    pub fn push_server(&mut self, bytes: &[u8]) {
        let mut input = bytes;
        while matches!(self.result(), Completion::Pending) {
            match self.server.next(&mut input) {
                Ok(header) if header.content == ContentType::ApplicationData => {
                    self.awaited = match self.awaited {
                        AwaitedRecord::ServerFlight => AwaitedRecord::ClientFinished,
                        AwaitedRecord::ServerAnswer if header.len > ALERT => {
                            AwaitedRecord::Nothing(Completion::Complete)
                        }
                        awaited => awaited,
                    };
                }
                Ok(_) => {}
                Err(Error::Incomplete) => break,
                Err(_) => self.awaited = AwaitedRecord::Nothing(Completion::Unknown),
            }
        }
    }

    /// Whether the handshake is complete, from the bytes so far.
    #[must_use]
    pub const fn result(&self) -> Completion {
        match self.awaited {
            AwaitedRecord::Nothing(completion) => completion,
            _ => Completion::Pending,
        }
    }
}

/// Finds the headers of records, and skips the records themselves.
#[derive(Clone, Debug, Default)]
struct Records {
    header: [u8; HEADER_LEN],
    header_len: usize,
    /// Bytes of the current record that are still to come.
    left: usize,
    read: usize,
}

impl Records {
    /// The next header. Its bytes, and the bytes of the record before, are removed from the front of `input`.
    fn next(&mut self, input: &mut &[u8]) -> Result<Header, Error> {
        loop {
            let count = input.len().min(self.left);
            *input = &input[count..];
            self.left -= count;
            self.read += count;
            if self.read > LIMIT {
                return Err(Error::OverLimit(LIMIT));
            }
            let Some((&byte, rest)) = input.split_first() else {
                return Err(Error::Incomplete);
            };
            *input = rest;
            self.header[self.header_len] = byte;
            self.header_len += 1;
            match Header::parse(&self.header[..self.header_len]) {
                Ok(header) => {
                    self.header_len = 0;
                    self.left = header.len;
                    return Ok(header);
                }
                Err(Error::Incomplete) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata::exchange;

    const CHANGE_CIPHER_SPEC: [u8; 6] = [20, 3, 3, 0, 1, 1];

    fn encrypted(len: usize) -> Vec<u8> {
        let [high, low] = u16::try_from(len).expect("a record").to_be_bytes();
        [vec![23, 3, 3, high, low], vec![9; len]].concat()
    }

    /// A side and its bytes.
    enum Sent {
        Client(Vec<u8>),
        Server(Vec<u8>),
    }
    use Sent::{Client, Server};

    /// The result after the server's first flight and these bytes, in segments of this size.
    fn after(sent: &[Sent], segment: usize) -> Completion {
        let mut watch = CompletionWatch::new(exchange("openssl-tls13-full").client);
        let clear = exchange("openssl-tls13-full").server;
        let flight = [clear, &CHANGE_CIPHER_SPEC, &encrypted(900)].concat();
        watch.push_server(&flight);
        for sent in sent {
            let (Client(bytes) | Server(bytes)) = sent;
            for part in bytes.chunks(segment) {
                match sent {
                    Client(_) => watch.push_client(part),
                    Server(_) => watch.push_server(part),
                }
            }
        }
        watch.result()
    }

    fn finished() -> Sent {
        Client([&CHANGE_CIPHER_SPEC[..], &encrypted(53)].concat())
    }

    #[test]
    fn an_answer_to_the_clients_finished_completes_the_handshake() {
        for segment in [1, 7, 10_000] {
            let of = |sent: &[Sent]| after(sent, segment);
            assert_eq!(of(&[]), Completion::Pending);
            assert_eq!(of(&[finished()]), Completion::Pending);
            let ticket = || Server(encrypted(60));
            assert_eq!(of(&[finished(), ticket()]), Completion::Complete);
            let more = || Server(encrypted(2000));
            assert_eq!(of(&[more(), finished(), ticket()]), Completion::Complete);
            assert_eq!(of(&[finished(), ticket(), more()]), Completion::Complete);
        }
    }

    #[test]
    fn alerts_and_one_sided_handshakes_complete_nothing() {
        let pending = |sent: &[Sent]| assert_eq!(after(sent, 11), Completion::Pending);
        pending(&[Server(encrypted(5000))]);
        pending(&[finished(), Server(encrypted(ALERT))]);
        pending(&[finished(), Server(CHANGE_CIPHER_SPEC.to_vec())]);
        pending(&[Client(CHANGE_CIPHER_SPEC.to_vec()), Server(encrypted(500))]);
        // The client refuses the flight with an encrypted alert before the flight is complete.
        pending(&[Client(encrypted(ALERT)), Server(encrypted(500))]);
        // The client refuses the certificate in clear, or without a word.
        pending(&[Client(vec![21, 3, 3, 0, 2, 2, 42]), Server(encrypted(500))]);
    }

    #[test]
    fn early_data_is_no_finished() {
        let early = [exchange("openssl-tls13-full").client, &encrypted(500)].concat();
        let mut watch = CompletionWatch::new(&early);
        watch.push_client(&encrypted(500));
        let flight = [exchange("openssl-tls13-full").server, &encrypted(900)].concat();
        watch.push_server(&flight);
        watch.push_server(&encrypted(900));
        assert_eq!(watch.result(), Completion::Pending);
        watch.push_client(&encrypted(53));
        watch.push_server(&encrypted(60));
        assert_eq!(watch.result(), Completion::Complete);
    }

    #[test]
    fn bytes_without_an_end_and_bytes_that_are_no_records_give_no_result() {
        let unknown = |sent: &[Sent]| assert_eq!(after(sent, 1000), Completion::Unknown);
        let many = || encrypted(16_000).repeat(5);
        unknown(&[Server(many())]);
        unknown(&[Server(vec![0]), finished()]);
        unknown(&[Client(vec![22, 9, 9]), Server(encrypted(500))]);
        let handshake = [&[22, 3, 3, 0x3e, 0x80][..], &[1; 16_000]].concat();
        unknown(&[Client(handshake.repeat(5)), Server(encrypted(500))]);
    }
}
