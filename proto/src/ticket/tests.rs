use std::sync::LazyLock;
use std::time::Duration;

use super::*;
use crate::Time;
use crate::keys::{FarmKey, Secret};

const HOUR: u64 = 60 * 60;
/// Noon of a day.
const NOON: u64 = 20_000 * 24 * HOUR + 12 * HOUR;
const ISSUER: Issuer = Issuer {
    server: 0x00ab_cdef,
    incarnation: 0x1234,
};

fn at(secs: u64) -> Time {
    Time::from_unix_millis(secs * 1000)
}

fn secret(seed: u8) -> Secret {
    let bytes: Vec<u8> = (0..32).map(|i: u8| i.wrapping_mul(7) ^ seed).collect();
    Secret::new(&bytes).unwrap()
}

fn key_from(seed: u8, now: u64) -> FarmKey {
    FarmKey::new(
        "test".into(),
        Duration::from_secs(HOUR),
        Duration::from_secs(10 * HOUR),
        [secret(seed), secret(seed ^ 0x80)],
        at(now),
    )
    .unwrap()
}

fn envelope(value: &[u8]) -> Envelope<'_> {
    Envelope {
        value_format: 23,
        binding: Binding {
            site: 7,
            server_name: "a.example",
            client_auth: ClientAuth::None,
            version: 0x0304,
            suite: 0x1301,
            extended_master_secret: true,
        },
        server: ISSUER.server,
        established: at(NOON),
        expires: at(NOON + 10 * HOUR),
        value,
    }
}

static NOTHING: LazyLock<ForgetRules> = LazyLock::new(ForgetRules::default);

fn expected() -> Expected<'static> {
    Expected {
        value_format: 23,
        site: 7,
        server_name: "a.example",
        client_auth: ClientAuth::None,
        version: 0x0304,
        lifetime: Duration::from_secs(10 * HOUR),
        extended_master_secret: true,
        forgotten: &NOTHING,
    }
}

fn sealed(key: &FarmKey, now: u64) -> Vec<u8> {
    let schedule = Schedule::derive(key, at(now));
    seal(&schedule, ISSUER, [9; 16], &envelope(b"secret state")).unwrap()
}

fn open(schedule: &Schedule, ticket: &[u8]) -> Result<Vec<u8>, Reason> {
    let (id, label) = read_label(schedule.routes(), ticket).ok_or(Reason::UnknownKey)?;
    super::open(schedule, &id, label, ticket)
}

#[test]
fn opens_what_it_sealed_and_pads_it() {
    let key = key_from(1, NOON);
    let ticket = sealed(&key, NOON);
    assert_eq!(ticket.len() % PAD, 0);
    let opened = open(&Schedule::derive(&key, at(NOON)), &ticket).unwrap();
    assert_eq!(
        Envelope::decode(&opened).unwrap(),
        envelope(b"secret state")
    );
}

#[test]
fn a_balancer_reads_the_label_with_route_keys_only() {
    let key = key_from(1, NOON);
    let ticket = sealed(&key, NOON);
    let (id, label) = read_label(&RouteKeys::derive(&key, at(NOON)), &ticket).unwrap();
    assert_eq!(id, [9; 16]);
    assert_eq!((label.server, label.incarnation), (0x00ab_cdef, 0x1234));
    assert_eq!(label.class, Class::Sealed);
}

#[test]
fn a_flipped_byte_is_an_unknown_key_in_the_label_and_a_bad_ticket_behind_it() {
    let key = key_from(1, NOON);
    let ticket = sealed(&key, NOON);
    let schedule = Schedule::derive(&key, at(NOON));
    for at in 0..ticket.len() {
        let mut flipped = ticket.clone();
        flipped[at] ^= 1;
        let reason = match at {
            0..SRID_LEN => Reason::UnknownKey,
            _ => Reason::BadTicket,
        };
        assert_eq!(open(&schedule, &flipped).unwrap_err(), reason, "byte {at}");
    }
}

#[test]
fn a_cut_or_lengthened_ticket_never_opens() {
    let key = key_from(1, NOON);
    let ticket = sealed(&key, NOON);
    let schedule = Schedule::derive(&key, at(NOON));
    for len in 0..ticket.len() {
        assert!(open(&schedule, &ticket[..len]).is_err(), "{len} bytes");
    }
    let longer = [&ticket[..], &[0]].concat();
    assert_eq!(open(&schedule, &longer).unwrap_err(), Reason::BadTicket);
}

#[test]
fn another_farms_ticket_is_of_an_unknown_key() {
    let ticket = sealed(&key_from(1, NOON), NOON);
    let other = Schedule::derive(&key_from(2, NOON), at(NOON));
    assert_eq!(open(&other, &ticket).unwrap_err(), Reason::UnknownKey);
}

#[test]
fn opens_at_any_time_of_its_life_and_with_clocks_an_epoch_off() {
    let key = key_from(1, NOON);
    let ticket = sealed(&key, NOON);
    for later in [0, 1, 5, 9, 10] {
        let schedule = Schedule::derive(&key, at(NOON + later * HOUR));
        assert!(open(&schedule, &ticket).is_ok(), "{later} hours later");
    }
    // A server that is 59 minutes behind opens a ticket of a server that is 59 minutes ahead.
    let ahead = sealed(&key, NOON + 59 * 60);
    let behind = Schedule::derive(&key, at(NOON - 59 * 60));
    assert!(open(&behind, &ahead).is_ok());
}

#[test]
fn servers_agree_whether_they_moved_their_key_forward_or_not() {
    let mut moved = key_from(1, NOON);
    let later = NOON + 100 * HOUR;
    assert!(moved.move_forward(at(later)));
    let ticket = sealed(&moved, later);
    let stayed = Schedule::derive(&key_from(1, NOON), at(later));
    assert!(open(&stayed, &ticket).is_ok());
}

#[test]
fn a_key_stolen_after_the_lifetime_opens_nothing_recorded_before() {
    let mut key = key_from(1, NOON);
    let ticket = sealed(&key, NOON);
    let stolen_at = NOON + 12 * HOUR;
    key.move_forward(at(stolen_at));
    // The thief can also turn the clock back to the time of the ticket.
    for clock in [NOON, stolen_at] {
        assert!(open(&Schedule::derive(&key, at(clock)), &ticket).is_err());
    }
}

#[test]
fn a_clock_in_2099_derives_ahead_and_loses_nothing() {
    let key = key_from(1, NOON);
    let ticket = sealed(&key, NOON);
    let _ahead = Schedule::derive(&key, at(4_070_908_800));
    assert!(open(&Schedule::derive(&key, at(NOON)), &ticket).is_ok());
}

#[test]
fn a_new_generation_is_accepted_before_it_seals() {
    let mut key = key_from(1, NOON);
    let secrets = [secret(3), secret(4)];
    key.add_generation(secrets, Some(at(NOON + HOUR)), at(NOON))
        .unwrap();
    let label_of = |ticket: &[u8], now| {
        read_label(&RouteKeys::derive(&key, at(now)), ticket)
            .unwrap()
            .1
            .generation
    };
    assert_eq!(label_of(&sealed(&key, NOON), NOON), 0);
    let after = sealed(&key, NOON + HOUR);
    assert_eq!(label_of(&after, NOON + HOUR), 1);
    // A server whose clock is behind also accepts the ticket.
    assert!(open(&Schedule::derive(&key, at(NOON)), &after).is_ok());
}

#[test]
fn a_ticket_of_an_ended_generation_is_revoked_for_as_long_as_it_could_have_lived() {
    let mut key = key_from(1, NOON);
    let ticket = sealed(&key, NOON + HOUR);
    let stored = issue(
        &Schedule::derive(&key, at(NOON)),
        ISSUER,
        Class::Stored,
        [3; 16],
    );
    key.replace([secret(3), secret(4)], at(NOON + 2 * HOUR))
        .unwrap();
    // The ticket is also revoked for a server whose clock is still before the end of the
    // generation.
    for later in [1, 2, 11] {
        let schedule = Schedule::derive(&key, at(NOON + later * HOUR));
        assert_eq!(open(&schedule, &ticket), Err(Reason::Revoked), "{later}");
        let (_, label) = read_label(schedule.routes(), &stored.unwrap()).unwrap();
        assert!(is_revoked(&schedule, label));
    }
    let after = NOON + 12 * HOUR;
    key.move_forward(at(after));
    let schedule = Schedule::derive(&key, at(after));
    assert_eq!(open(&schedule, &ticket), Err(Reason::UnknownKey));
    assert_eq!(key.generations.len(), 1);
}

#[test]
fn what_had_expired_before_its_generation_ended_is_expired() {
    let mut key = key_from(1, NOON);
    let ticket = sealed(&key, NOON);
    let ended = NOON + 13 * HOUR;
    key.replace([secret(3), secret(4)], at(ended)).unwrap();
    let schedule = Schedule::derive(&key, at(ended));
    assert_eq!(open(&schedule, &ticket), Err(Reason::Expired));
}

#[test]
fn what_seals_after_a_replacement_opens_on_servers_whose_clocks_are_behind() {
    let mut key = key_from(1, NOON);
    key.replace([secret(3), secret(4)], at(NOON)).unwrap();
    let ticket = sealed(&key, NOON - 59 * 60);
    for clock in [NOON - 59 * 60, NOON + 59 * 60] {
        assert!(open(&Schedule::derive(&key, at(clock)), &ticket).is_ok());
    }
}

#[test]
fn a_routine_change_of_generations_loses_nothing_at_any_time() {
    let mut key = key_from(1, NOON);
    let secrets = [secret(3), secret(4)];
    key.add_generation(secrets, None, at(NOON)).unwrap();
    let without = key_from(1, NOON);
    let activates = NOON + 5 * HOUR;
    let mut activated = FarmKey {
        scope: key.scope.clone(),
        generations: key.generations.clone(),
        ..key
    };
    activated.activate(at(activates), at(NOON)).unwrap();
    // `activated` has learned the time of activation, and `key` only has the new generation. Both seal
    // tickets within an hour of the activation.
    for made in [activates - HOUR, activates, activates + HOUR] {
        for (maker, opens_without) in [(&key, true), (&activated, made < activates)] {
            let ticket = sealed(maker, made);
            for later in [0, 1, 9, 10] {
                let now = at(made + later * HOUR);
                assert!(open(&Schedule::derive(&key, now), &ticket).is_ok());
                assert!(open(&Schedule::derive(&activated, now), &ticket).is_ok());
                let others = open(&Schedule::derive(&without, now), &ticket);
                assert_eq!(others.is_ok(), opens_without);
            }
        }
    }
}

#[test]
fn a_balancers_part_reads_labels_of_what_is_accepted_and_opens_nothing() {
    let mut key = key_from(1, NOON);
    let before = sealed(&key, NOON);
    key.replace([secret(3), secret(4)], at(NOON)).unwrap();
    let after = sealed(&key, NOON);
    let part = key.route_part(at(NOON));
    assert!(part.is_route_part() && !key.is_route_part());
    let routes = RouteKeys::derive(&part, at(NOON));
    assert!(read_label(&routes, &after).is_some());
    assert_eq!(read_label(&routes, &before), None);
    let schedule = Schedule::derive(&part, at(NOON));
    assert!(open(&schedule, &after).is_err());
    assert_eq!(issue(&schedule, ISSUER, Class::Stored, [3; 16]), None);
}

#[test]
fn a_stored_identifier_is_a_label_and_nothing_more() {
    let key = key_from(1, NOON);
    let schedule = Schedule::derive(&key, at(NOON));
    let srid = issue(&schedule, ISSUER, Class::Stored, [3; 16]).unwrap();
    let (id, label) = read_label(schedule.routes(), &srid).unwrap();
    assert_eq!((id, label.class), ([3; 16], Class::Stored));
    let longer = [&srid[..], b"x"].concat();
    assert_eq!(read_label(schedule.routes(), &longer), None);
}

#[test]
fn an_envelope_cut_anywhere_is_an_old_format() {
    let mut bytes = Vec::new();
    envelope(b"value").encode(&mut bytes);
    assert_eq!(bytes.len(), envelope(b"value").encoded_len());
    for len in 0..bytes.len() {
        assert_eq!(Envelope::decode(&bytes[..len]), Err(Reason::OldFormat));
    }
}

#[test]
fn each_field_of_the_envelope_has_its_own_verdict() {
    type Change = fn(&mut Expected<'static>);
    let session = envelope(b"value");
    let now = at(NOON + HOUR);
    assert_eq!(session.admits(&expected(), now), Ok(()));
    let cases: [(Change, Reason); 7] = [
        (|e| e.value_format = 24, Reason::OldFormat),
        (|e| e.site = 8, Reason::NameMismatch),
        (|e| e.server_name = "b.example", Reason::NameMismatch),
        (|e| e.client_auth = ClientAuth::Required, Reason::ClientAuth),
        (|e| e.version = 0x0303, Reason::VersionMismatch),
        (|e| e.lifetime = Duration::from_secs(HOUR), Reason::Expired),
        (|e| e.extended_master_secret = false, Reason::EmsMismatch),
    ];
    for (change, reason) in cases {
        let mut changed = expected();
        change(&mut changed);
        assert_eq!(session.admits(&changed, now), Err(reason));
    }
    let end = at(NOON + 10 * HOUR);
    assert_eq!(session.admits(&expected(), end), Err(Reason::Expired));
}

#[test]
fn a_forgotten_session_is_revoked_unless_it_has_expired_anyway() {
    let session = envelope(b"value");
    let mut forgotten = ForgetRules::default();
    forgotten.add(ForgetScope::Server(ISSUER.server), at(NOON + 1));
    let expected = Expected {
        forgotten: &forgotten,
        ..expected()
    };
    let now = at(NOON + HOUR);
    assert_eq!(session.admits(&expected, now), Err(Reason::Revoked));
    let end = at(NOON + 10 * HOUR);
    assert_eq!(session.admits(&expected, end), Err(Reason::Expired));
}
