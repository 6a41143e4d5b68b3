//! Sample reports for the tests of this module.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rustls::AlertDescription;
use sessile_proto::hello::TLS_1_2;
use sessile_proto::session_events::{ServerEvent, SessionEvent};
use sessile_proto::verdict::How;
use sessile_proto::watch::Kind;

use super::events::{Event, KeyAge, ProbeEvent, WatchLimits, Watched};
use super::{
    Attempt, EarlyDataFindings, FailedHandshake, FinishedHandshake, MechanismFindings, ProbeReport,
};
use crate::client::{Error, GivenTicket, HandshakeTimes, Offer};

pub(super) fn address(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 443).into()
}

/// A finished handshake that gave a new session unless it resumed.
pub(super) fn seen(how: How, kind: Kind) -> FinishedHandshake {
    let offered = match kind {
        Kind::NotOffered | Kind::Failed => None,
        Kind::Resumed(_) | Kind::Refused => Some(Offer {
            how,
            bytes: vec![7; 32],
        }),
    };
    FinishedHandshake {
        offered,
        kind,
        given: !matches!(kind, Kind::Resumed(_)),
        version: TLS_1_2,
        cipher_suite: 0xc02f,
        times: HandshakeTimes {
            connect: Duration::from_micros(200),
            first_byte: Duration::from_micros(900),
            handshake: Duration::from_micros(1500),
        },
        tickets: Vec::new(),
        certificate_left: None,
        certificate: None,
        certificate_requested: false,
        status: None,
        server: None,
        verdict: None,
    }
}

/// A ticket of 200 bytes under a key name of repeated bytes, for an hour. No two serial numbers give the same ticket.
pub(super) fn given_ticket(key: u8, serial: u8) -> GivenTicket {
    let mut bytes = vec![key; 16];
    bytes.resize(200, serial);
    GivenTicket {
        bytes,
        lifetime: 3600,
        max_early_data: None,
    }
}

pub(super) fn attempt(last: u8, result: Result<FinishedHandshake, FailedHandshake>) -> Attempt {
    let offered = match &result {
        Ok(seen) => seen.offered.is_some(),
        Err(failed) => failed.offered.is_some(),
    };
    Attempt {
        address: address(last),
        origin: offered.then(|| address(1)),
        result,
    }
}

/// A failed handshake that offered no session.
pub(super) fn failed(last: u8, error: Error) -> Attempt {
    let failed = FailedHandshake {
        error,
        offered: None,
        certificate_requested: false,
        without_session: None,
    };
    attempt(last, Err(failed))
}

/// Session IDs resume at one of two servers, tickets are not offered, and TLS 1.3 resumes.
pub(super) fn report() -> ProbeReport {
    let id = |kind| seen(How::SessionId, kind);
    let refused = FinishedHandshake {
        server: Some("web2".to_owned()),
        verdict: Some("full/unknown".to_owned()),
        ..id(Kind::Refused)
    };
    let without_ticket = || FinishedHandshake {
        given: false,
        ..seen(How::Ticket, Kind::NotOffered)
    };
    let resumed = Kind::Resumed(How::Psk);
    ProbeReport {
        target: "farm.test".to_owned(),
        error: None,
        server_name: "farm.test".to_owned(),
        addresses: vec![address(1), address(2)],
        left_out: Vec::new(),
        has_client_certificate: false,
        complete: true,
        delayed: Vec::new(),
        session_ages: Vec::new(),
        watched: None,
        other_names: Vec::new(),
        usable_twice: Vec::new(),
        early_data: EarlyDataFindings::default(),
        mechanisms: vec![
            MechanismFindings {
                how: How::SessionId,
                attempts: vec![
                    attempt(1, Ok(id(Kind::NotOffered))),
                    attempt(1, Ok(id(Kind::Resumed(How::SessionId)))),
                    attempt(2, Ok(refused)),
                    failed(1, Error::NotTls),
                ],
            },
            MechanismFindings {
                how: How::Ticket,
                attempts: (1..=2)
                    .map(|last| attempt(last, Ok(without_ticket())))
                    .collect(),
            },
            MechanismFindings {
                how: How::Psk,
                attempts: vec![
                    attempt(1, Ok(seen(How::Psk, Kind::NotOffered))),
                    attempt(2, Ok(seen(How::Psk, resumed))),
                ],
            },
        ],
    }
}

/// A return that the server ended with an alert, and the result of the comparison.
pub(super) fn ended(how: How, without_session: Result<(), Error>) -> Attempt {
    let failed = FailedHandshake {
        error: Error::Alert(AlertDescription::InternalError),
        offered: Some(Offer {
            how,
            bytes: vec![7; 32],
        }),
        certificate_requested: false,
        without_session: Some(without_session),
    };
    attempt(1, Err(failed))
}

/// The report about a server that ends every handshake that offers its own session.
pub(super) fn faulty() -> ProbeReport {
    let mut report = report();
    report.addresses.truncate(1);
    let full = attempt(1, Ok(seen(How::Psk, Kind::NotOffered)));
    let psk = MechanismFindings {
        how: How::Psk,
        attempts: vec![full, ended(How::Psk, Ok(())), ended(How::Psk, Ok(()))],
    };
    report.mechanisms = vec![psk];
    report
}

/// The events of two hours: the server was down, and then it had lost its sessions and its ticket key.
pub(super) fn watched() -> Watched {
    let event = |secs, how, event| ProbeEvent {
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(secs),
        address: address(1),
        how,
        event,
    };
    let keys = Some([[1; 16], [2; 16]]);
    Watched {
        limits: WatchLimits {
            duration: Duration::from_secs(7200),
            interval: Duration::from_secs(30),
        },
        events: vec![
            event(1, None, Event::Server(ServerEvent::Down)),
            event(2, None, Event::Server(ServerEvent::Up)),
            event(
                3,
                Some(How::Ticket),
                Event::Session(SessionEvent::Lost { keys }),
            ),
        ],
        key_ages: vec![KeyAge {
            how: How::Ticket,
            address: address(1),
            age: Duration::from_secs(24 * 60 * 60),
        }],
    }
}
