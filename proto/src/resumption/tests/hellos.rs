//! Facts that are read from a ClientHello.

use super::*;
use crate::hello::ClientHello;
use crate::ticket::Class;

/// A ClientHello that is put together byte by byte.
#[derive(Default)]
struct Hello {
    session_id: Vec<u8>,
    extensions: Vec<u8>,
    identities: Vec<u8>,
    binders: Vec<u8>,
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap();
    [&len.to_be_bytes()[..], bytes].concat()
}

impl Hello {
    fn tls12() -> Self {
        Self::default()
    }

    fn tls13() -> Self {
        // supported_versions: TLS 1.3.
        Self::default().extension(43, &[2, 3, 4])
    }

    fn session_id(mut self, id: &[u8]) -> Self {
        self.session_id = id.to_vec();
        self
    }

    fn extension(mut self, kind: u16, body: &[u8]) -> Self {
        self.extensions.extend(kind.to_be_bytes());
        self.extensions.extend(vector16(body));
        self
    }

    fn ticket(self, ticket: &[u8]) -> Self {
        self.extension(35, ticket)
    }

    fn early_data(self) -> Self {
        self.extension(42, &[])
    }

    fn identity(mut self, identity: &[u8]) -> Self {
        self.identities.extend(vector16(identity));
        self.identities.extend(7_u32.to_be_bytes());
        self.binders.push(32);
        self.binders.extend([0; 32]);
        self
    }

    fn read<T>(self, read: impl FnOnce(&ClientHello<'_>) -> T) -> T {
        let mut hello = self;
        if !hello.identities.is_empty() {
            // psk_key_exchange_modes: psk_dhe_ke. pre_shared_key comes last.
            let psks = [vector16(&hello.identities), vector16(&hello.binders)].concat();
            hello = hello.extension(45, &[1, 1]).extension(41, &psks);
        }
        let mut body = vec![3, 3];
        body.extend([9; 32]);
        body.push(u8::try_from(hello.session_id.len()).unwrap());
        body.extend(&hello.session_id);
        // One suite, and no compression.
        body.extend([0, 2, 0x13, 1, 1, 0]);
        body.extend(vector16(&hello.extensions));
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        let message = [&[1, len[1], len[2], len[3]], &body[..]].concat();
        read(&ClientHello::parse(&message).unwrap())
    }

    fn named(self, is_shared: bool) -> Vec<StoreKey> {
        self.read(|hello| stored_sessions(hello, &schedule_at(1, NOON), is_shared))
    }
}

/// The identifier of a stored session, and the key of the session.
fn identifier() -> (Vec<u8>, StoreKey) {
    let id = [8; 16];
    let srid = ticket::issue(&schedule_at(1, NOON), ISSUER, Class::Stored, id).unwrap();
    (srid.to_vec(), StoreKey::stored(&id))
}

fn sealed_ticket() -> Vec<u8> {
    let envelope = envelope(TLS_1_3);
    ticket::seal(&schedule_at(1, NOON), ISSUER, [9; 16], &envelope).unwrap()
}

const RANDOM: [u8; 32] = [0x44; 32];

#[test]
fn a_tls12_hello_names_its_ticket_or_else_its_session_id() {
    let (identifier, key) = identifier();
    let session_id = StoreKey::session_id(&SESSION_ID).unwrap();
    let hello = || Hello::tls12().session_id(&SESSION_ID);
    for is_shared in [false, true] {
        assert_eq!(hello().ticket(&identifier).named(is_shared), [key]);
        assert_eq!(hello().named(is_shared), [session_id]);
        let asks_for_a_ticket = hello().ticket(b"");
        assert_eq!(asks_for_a_ticket.named(is_shared), [session_id]);
        let cut_ticket = sealed_ticket()[..32].to_vec();
        for other in [
            sealed_ticket(),
            cut_ticket,
            RANDOM.to_vec(),
            b"short".to_vec(),
        ] {
            assert_eq!(hello().ticket(&other).named(is_shared), []);
        }
        assert_eq!(Hello::tls12().named(is_shared), []);
    }
}

#[test]
fn a_tls13_hello_names_its_first_four_identities() {
    let (identifier, key) = identifier();
    let single_use = StoreKey::single_use(&RANDOM).unwrap();
    let hello = || Hello::tls13().session_id(&SESSION_ID);
    assert_eq!(hello().named(true), [], "the session ID is noise");
    assert_eq!(hello().ticket(&identifier).named(true), []);
    let mixed = || {
        hello()
            .identity(&RANDOM)
            .identity(&sealed_ticket())
            .identity(b"short")
            .identity(&identifier)
            .identity(&[0x45; 32])
    };
    assert_eq!(mixed().named(true), [single_use, key]);
    assert_eq!(mixed().named(false), [key]);
}

#[test]
fn the_facts_of_a_hello_decide() {
    let plain = Hello::tls12().read(Offers::new);
    assert_eq!(plain.version, TLS_1_2);
    assert!(!plain.is_tls13() && !plain.extended_master_secret && !plain.psk_dhe_ke);
    assert!(!plain.accepts_ticket && !plain.requests_tickets);
    assert_eq!((plain.server_name.as_str(), plain.random), ("", [9; 32]));

    let named = [&[0, 12, 0, 0, 9], &b"A.Example"[..]].concat();
    let full = Hello::tls12()
        .extension(0, &named)
        .extension(23, &[])
        .ticket(b"ticket")
        .extension(58, &[2, 1]);
    let full = full.read(Offers::new);
    assert!(full.extended_master_secret && full.accepts_ticket && full.requests_tickets);
    assert!(!full.offers_tls12_ticket_in_tls13);
    assert_eq!(full.server_name, NAME);

    let tls13 = Hello::tls13().identity(&RANDOM).read(Offers::new);
    assert!(tls13.is_tls13() && tls13.extended_master_secret && tls13.psk_dhe_ke);
    let with_ticket = |ticket: &[u8]| Hello::tls13().ticket(ticket).read(Offers::new);
    assert!(with_ticket(b"ticket").offers_tls12_ticket_in_tls13);
    assert!(!with_ticket(b"").offers_tls12_ticket_in_tls13);
}

#[test]
fn early_data_goes_with_the_first_identity() {
    let single_use = StoreKey::single_use(&RANDOM).unwrap();
    let request = |hello: Hello, stored: &[StoreKey], is_accepted| {
        hello.read(|hello| EarlyDataRequest::new(hello, stored, is_accepted))
    };
    let early = || Hello::tls13().early_data().identity(&RANDOM);
    let consume = EarlyDataRequest::Consume {
        key: single_use,
        obfuscated_age: 7,
    };
    let refused = EarlyDataRequest::Refused;
    assert_eq!(request(early(), &[single_use], true), consume);
    assert_eq!(
        request(early(), &[single_use], false),
        refused(Rejection::Off)
    );
    assert_eq!(request(early(), &[], true), refused(Rejection::Off));
    let stored = StoreKey::stored(&[1; 16]);
    assert_eq!(request(early(), &[stored], true), refused(Rejection::Off));
    let second = || {
        Hello::tls13()
            .early_data()
            .identity(&[0x45; 32])
            .identity(&RANDOM)
    };
    assert_eq!(
        request(second(), &[single_use], true),
        refused(Rejection::NotFirstIdentity)
    );
    let without = Hello::tls13().identity(&RANDOM);
    assert_eq!(
        request(without, &[single_use], true),
        EarlyDataRequest::None
    );
    let without_session = Hello::tls13().early_data();
    assert_eq!(request(without_session, &[], true), refused(Rejection::Off));
}
