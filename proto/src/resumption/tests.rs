use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::Time;
use crate::hello::{TLS_1_2, TLS_1_3};
use crate::keys::{FarmKey, Schedule, Secret};
use crate::ticket::{self, Binding, ClientAuth, Envelope, ForgetRules, ForgetScope, Issuer};
use crate::verdict::{EarlyData, How, Reason, Rejection, Verdict};

mod early;
mod given;
mod hellos;
mod properties;
mod reasons;

const HOUR: Duration = Duration::from_secs(60 * 60);
const LIFETIME: Duration = Duration::from_secs(10 * 60 * 60);
/// Some day at noon.
const NOON: Time = Time::from_unix_millis((20_000 * 24 + 12) * 60 * 60 * 1000);
const FORMAT: u16 = 23;
const SITE: u64 = 7;
const NAME: &str = "a.example";
const SUITE: u16 = 0x1301;
const SESSION: &[u8] = b"session in the encoding of the library";
const SESSION_ID: [u8; 32] = [0x51; 32];
const ISSUER: Issuer = Issuer {
    server: 0x00ab_cdef,
    incarnation: 0x1234,
};

fn secrets(seed: u8) -> [Secret; 2] {
    [seed, seed ^ 0x80].map(|seed| {
        let bytes: Vec<u8> = (0..32).map(|i: u8| i.wrapping_mul(7) ^ seed).collect();
        Secret::new(&bytes).unwrap()
    })
}

fn farm_key(seed: u8) -> FarmKey {
    FarmKey::new("test".into(), HOUR, LIFETIME, secrets(seed), NOON).unwrap()
}

fn schedule_at(seed: u8, now: Time) -> Arc<Schedule> {
    Arc::new(Schedule::derive(&farm_key(seed), now))
}

fn policy() -> Policy {
    Policy {
        site: SITE,
        issuer: ISSUER,
        client_auth: ClientAuth::None,
        lifetime: LIFETIME,
        tickets_enabled: true,
        sessions_are_removable: false,
        cache: Cache::Local,
        early_data: 0,
        session_format: FORMAT,
    }
}

fn offers(version: u16) -> Offers {
    Offers {
        version,
        server_name: NAME.to_owned(),
        extended_master_secret: true,
        psk_dhe_ke: true,
        accepts_ticket: true,
        requests_tickets: false,
        offers_tls12_ticket_in_tls13: false,
        random: [3; 32],
    }
}

fn inputs(version: u16) -> Inputs {
    Inputs {
        policy: policy(),
        offers: offers(version),
        fetched: Vec::new(),
        early_data: EarlyDataPlan::NotOffered,
        consumed: None,
        can_store_single_use: false,
        schedule: schedule_at(1, NOON),
        forgotten: Arc::default(),
        now: NOON,
    }
}

/// The usual inputs with a change.
fn with(version: u16, change: impl FnOnce(&mut Inputs)) -> Inputs {
    let mut inputs = inputs(version);
    change(&mut inputs);
    inputs
}

/// Random bytes for a ticket, different ones at each call.
fn random() -> [u8; 32] {
    thread_local!(static CALLS: Cell<u8> = const { Cell::new(0) });
    CALLS.set(CALLS.get().wrapping_add(1));
    [CALLS.get(); 32]
}

/// Lets the library run a full handshake up to the client's Finished.
fn full(resumption: &mut Resumption) {
    if resumption.inputs.offers.version == TLS_1_2 {
        resumption.full_tls12_chosen();
    }
    resumption.observe(Progress::Full, Some(SUITE));
}

/// A ticket from a full handshake, and the sessions that have to be stored for it.
fn ticket(inputs: Inputs) -> (Vec<u8>, Fetched) {
    let mut resumption = Resumption::new(inputs);
    full(&mut resumption);
    let ticket = resumption.add_ticket(SESSION, random()).unwrap();
    (ticket, stored(&mut resumption))
}

/// The answer of a store for the new sessions of a handshake.
fn stored(resumption: &mut Resumption) -> Fetched {
    let new_sessions = resumption.take_new_sessions().into_iter();
    new_sessions
        .map(|new| (new.key, Ok(new.envelope)))
        .collect()
}

/// The store's answer for a TLS 1.2 session ID of a full handshake.
fn session_id(inputs: Inputs) -> Fetched {
    let mut resumption = Resumption::new(Inputs {
        offers: Offers {
            accepts_ticket: false,
            ..inputs.offers
        },
        ..inputs
    });
    full(&mut resumption);
    assert!(resumption.add_session(&SESSION_ID, SESSION));
    stored(&mut resumption)
}

/// The verdict on a client that returns with a token. The library resumes every session that it gets.
fn verdict(inputs: Inputs, token: &[u8]) -> Verdict {
    let mut resumption = Resumption::new(inputs);
    let decision = resumption.offer_token(token);
    finish(&mut resumption, decision)
}

/// The verdict on a client that returns with [`SESSION_ID`].
fn verdict_by_id(inputs: Inputs) -> Verdict {
    let mut resumption = Resumption::new(inputs);
    let decision = resumption.offer_session_id(&SESSION_ID);
    finish(&mut resumption, decision)
}

fn finish(resumption: &mut Resumption, decision: Decision) -> Verdict {
    match decision {
        Decision::Admit(session) => {
            assert_eq!(session, SESSION);
            resumption.observe(Progress::Resumed, Some(SUITE));
        }
        Decision::Refuse => full(resumption),
        Decision::VerifyClient(_) => panic!("the site asks for no certificate"),
    }
    resumption.verdict().0
}

/// An envelope that [`inputs`] admit.
fn envelope(version: u16) -> Envelope<'static> {
    Envelope {
        value_format: FORMAT,
        binding: Binding {
            site: SITE,
            server_name: NAME,
            client_auth: ClientAuth::None,
            version,
            suite: SUITE,
            extended_master_secret: true,
        },
        server: ISSUER.server,
        established: NOON,
        expires: NOON.plus(LIFETIME),
        value: SESSION,
    }
}

fn encoded(envelope: &Envelope<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    envelope.encode(&mut bytes);
    bytes
}
