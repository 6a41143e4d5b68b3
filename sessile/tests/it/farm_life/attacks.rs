//! Attacks with sessions: changed tickets, tickets of another site, and tickets that pass from
//! server to server to live longer.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use sessile_proto::hello::{DEFAULT_LIMIT, HelloReader, ServerHello, TLS_1_3};

use super::clients::{HOW, How, openssl};
use super::{Farm, Setup, travel};
use crate::peers::{Cut, Peer, Proxy, record};

const PATIENCE: Duration = Duration::from_secs(15);

/// Content types of records.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// Types of handshake messages.
const SERVER_HELLO: u8 = 2;
const SERVER_HELLO_DONE: u8 = 14;

/// Length of the label at the start of an identifier, in bytes.
const LABEL: usize = 32;

/// A server's first answer to a ClientHello.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The server accepted the offered session.
    Resumes,
    /// The server made a full handshake. The value has the types of its messages in clear.
    Full(Vec<u8>),
    Alert,
}

/// Sends the ClientHello and reads the answer.
fn answer(server: SocketAddr, hello: &[u8]) -> Answer {
    let mut io = TcpStream::connect(server).unwrap();
    io.set_read_timeout(Some(PATIENCE)).unwrap();
    io.write_all(hello).unwrap();
    let mut messages = Vec::new();
    let mut is_tls13 = false;
    loop {
        let record = record(&io).unwrap();
        match record[0] {
            ALERT => return Answer::Alert,
            HANDSHAKE => {}
            // The rest is encrypted. In TLS 1.2, this record precedes ServerHelloDone only if the
            // session resumes.
            _ if is_tls13 => return Answer::Full(messages),
            _ => return Answer::Resumes,
        }
        let mut rest = &record[5..];
        while let [kind, a, b, c, ..] = *rest {
            let len = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
            messages.push(kind);
            if kind == SERVER_HELLO {
                let hello = ServerHello::parse(&rest[..len]).unwrap();
                is_tls13 = hello.version() == TLS_1_3;
                if hello.selected_identity.is_some() {
                    return Answer::Resumes;
                }
            }
            if kind == SERVER_HELLO_DONE {
                return Answer::Full(messages);
            }
            rest = &rest[len..];
        }
    }
}

/// A ClientHello, and the position of its ticket or PSK identity.
struct Offer {
    how: How,
    hello: Vec<u8>,
    at: usize,
    len: usize,
}

impl Offer {
    /// Records the ClientHello of a returning OpenSSL client.
    fn record(farm: &Farm, server: &Peer, how: How) -> Self {
        let session = farm.path(&format!("offer-{how:?}.pem"));
        let first = openssl(how, &farm.root(), &session, server.address(), None);
        assert_eq!(first, "full/nothing-offered");
        let proxy = Proxy::start(server.address(), Cut::Whole);
        let again = openssl(how, &farm.root(), &session, proxy.address(), None);
        assert_eq!(again, how.verdict());
        let bytes = proxy.hello();
        let mut reader = HelloReader::new(DEFAULT_LIMIT);
        assert!(reader.push(&bytes).unwrap());
        let hello = reader.hello().unwrap();
        let offered = match how {
            How::Psk => {
                hello
                    .pre_shared_key
                    .unwrap()
                    .identities()
                    .next()
                    .unwrap()
                    .identity
            }
            How::Ticket => hello.session_ticket.unwrap(),
            How::SessionId => hello.session_id,
        };
        let mut windows = bytes.windows(offered.len());
        let at = windows.position(|it| it == offered).unwrap();
        let len = offered.len();
        Self {
            how,
            hello: bytes,
            at,
            len,
        }
    }

    /// The ClientHello with one changed byte in the offer.
    fn flipped(&self, byte: usize) -> Vec<u8> {
        let mut hello = self.hello.clone();
        hello[self.at + byte] ^= 1;
        hello
    }

    /// The ClientHello with another offer. All lengths are adjusted.
    fn with(&self, offer: &[u8]) -> Vec<u8> {
        let (before, rest) = self.hello.split_at(self.at);
        let mut hello = [before, offer, &rest[self.len..]].concat();
        let mut add = |at: usize| {
            let length = u16::from_be_bytes([hello[at], hello[at + 1]]);
            let length = usize::from(length) + offer.len() - self.len;
            hello[at..at + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        };
        // The lengths of the record, of the message (three bytes), and of the extensions.
        add(3);
        add(5 + 2);
        add(self.extensions());
        // The length of the extension. TLS 1.3 also has lengths of the list and of the identity.
        let inner = if matches!(self.how, How::Psk) { 3 } else { 1 };
        (1..=inner).for_each(|n| add(self.at - 2 * n));
        hello
    }

    /// The position of the extensions' length. It follows the version, random, session ID, cipher
    /// suites and compression methods.
    fn extensions(&self) -> usize {
        let session_id = 5 + 4 + 2 + 32;
        let suites = session_id + 1 + usize::from(self.hello[session_id]);
        let len = u16::from_be_bytes([self.hello[suites], self.hello[suites + 1]]);
        let compression = suites + 2 + usize::from(len);
        compression + 1 + usize::from(self.hello[compression])
    }
}

#[test]
fn changed_cut_and_padded_tickets_get_the_same_answer_as_no_ticket() {
    let farm = Farm::new("1h", "10h", None);
    let server = farm.serve("web1");
    for how in [How::Ticket, How::Psk] {
        let offer = Offer::record(&farm, &server, how);
        let answer = |hello: &[u8]| answer(server.address(), hello);
        assert_eq!(answer(&offer.hello), Answer::Resumes);
        let bytes = offer.hello[offer.at..][..offer.len].to_vec();
        let nobodys = answer(&offer.with(&vec![0x5a; offer.len]));
        assert!(matches!(nobodys, Answer::Full(_)), "{nobodys:?}");
        if matches!(how, How::Ticket) {
            assert_eq!(answer(&offer.with(&[])), nobodys);
        }
        // Change every byte of the label, and some bytes of the ciphertext.
        for byte in (0..LABEL).chain((LABEL..offer.len).step_by(7)) {
            assert_eq!(answer(&offer.flipped(byte)), nobodys, "{how:?} {byte}");
        }
        for len in [
            1,
            LABEL - 1,
            LABEL,
            LABEL + 1,
            offer.len - 64,
            offer.len - 1,
        ] {
            assert_eq!(answer(&offer.with(&bytes[..len])), nobodys, "{how:?} {len}");
        }
        for more in [1, 64, 4096] {
            let padded = [&bytes[..], &vec![0; more]].concat();
            assert_eq!(answer(&offer.with(&padded)), nobodys, "{how:?} +{more}");
        }
        // The attacks did not remove the honest client's session.
        assert_eq!(answer(&offer.hello), Answer::Resumes);
    }
}

#[test]
fn a_valid_identity_with_a_wrong_binder_ends_the_handshake() {
    let farm = Farm::new("1h", "10h", None);
    let server = farm.serve("web1");
    let mut offer = Offer::record(&farm, &server, How::Psk);
    // The binders are at the end of the ClientHello.
    *offer.hello.last_mut().unwrap() ^= 1;
    assert_eq!(answer(server.address(), &offer.hello), Answer::Alert);
}

/// A second site of the farm, for the server name that clients send.
const OTHER_SITE: &str = "names = [\"localhost\"]";

#[test]
fn sessions_of_one_site_do_not_resume_at_another() {
    let farm = Farm::new("1h", "10h", None);
    let one = farm.serve("web1");
    let other = farm.serve_as(
        "web2",
        &Setup {
            site: OTHER_SITE,
            ..Setup::default()
        },
    );
    for how in HOW {
        assert_eq!(
            travel(&farm, how, &[&one, &other]),
            ["full/nothing-offered", "full/name-mismatch"]
        );
    }
}

/// Three servers with clocks six hours apart. The error of each clock is less than an epoch.
pub(super) fn six_hours_apart(farm: &Farm, sites: [&str; 3]) -> [Peer; 3] {
    let setup = |clock, site| Setup {
        clock,
        site,
        ..Setup::default()
    };
    [
        farm.serve_as("web1", &setup(Some("-6h"), sites[0])),
        farm.serve_as("web2", &setup(None, sites[1])),
        farm.serve_as("web3", &setup(Some("+6h"), sites[2])),
    ]
}

#[test]
fn resuming_does_not_extend_the_lifetime_of_a_session() {
    let farm = Farm::new("10h", "10h", None);
    let [then, now, later] = six_hours_apart(&farm, [""; 3]);
    for how in HOW {
        let resumed = how.verdict();
        assert_eq!(
            travel(&farm, how, &[&then, &now, &now, &later]),
            ["full/nothing-offered", resumed, resumed, "full/expired"]
        );
    }
}

#[test]
fn a_session_after_a_refused_offer_starts_with_age_zero() {
    let farm = Farm::new("10h", "10h", None);
    let [then, now, later] = six_hours_apart(&farm, ["", OTHER_SITE, OTHER_SITE]);
    for how in HOW {
        let verdicts = travel(&farm, how, &[&then, &now, &later]);
        let refused = "full/name-mismatch";
        assert_eq!(verdicts, ["full/nothing-offered", refused, how.verdict()]);
    }
}
