use std::time::Duration;

use rustls::AlertDescription;

use super::*;
use crate::client::{Error, Offer};
use crate::probe::attempt::FinishedHandshake;
use crate::probe::finding::Severity;
use crate::probe::report::{EarlyDataOutcome, EarlyDataReplay};
use crate::probe::samples::{address, failed, faulty, given_ticket, report, seen, watched};

/// A report of TLS 1.2 tickets from rows of `+` (resumed), `-` (refused) and space (not offered), one row for
/// each server that gave sessions.
fn tickets(rows: &[&str]) -> ProbeReport {
    let server = |index: usize| address(u8::try_from(index).unwrap() + 1);
    let mut report = report();
    report.addresses = (0..rows.len()).map(server).collect();
    let full = |index| Attempt {
        address: server(index),
        origin: None,
        result: Ok(seen(How::Ticket, Kind::NotOffered)),
    };
    let mut attempts: Vec<Attempt> = (0..rows.len()).map(full).collect();
    for (from, row) in rows.iter().enumerate() {
        for (to, mark) in row.chars().enumerate() {
            let kind = match mark {
                '+' => Kind::Resumed(How::Ticket),
                '-' => Kind::Refused,
                _ => continue,
            };
            let mut result = seen(How::Ticket, kind);
            result.offered = Some(ticket(&[u8::try_from(from).unwrap(); 16]));
            attempts.push(Attempt {
                address: server(to),
                origin: Some(server(from)),
                result: Ok(result),
            });
        }
    }
    report.mechanisms = vec![MechanismFindings {
        how: How::Ticket,
        attempts,
    }];
    report
}

/// A ticket of 200 bytes that begins with a key name.
fn ticket(key_name: &[u8]) -> Offer {
    let mut bytes = key_name.to_vec();
    bytes.resize(200, 9);
    Offer {
        how: How::Ticket,
        bytes,
    }
}

fn codes(report: &ProbeReport) -> Vec<Code> {
    of(report).iter().map(|finding| finding.code).collect()
}

#[test]
fn a_farm_that_shares_its_key_has_no_finding() {
    assert_eq!(of(&tickets(&["+++", "+++", "+++"])), []);
}

#[test]
fn the_groups_of_two_keys_are_the_same_in_every_order() {
    let groups = |rows: &[&str]| {
        let found = of(&tickets(rows));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].code, Code::NoSharedTicketKeys);
        found[0].text.clone()
    };
    let in_order = groups(&["++--", "++--", "--++", "--++"]);
    assert!(
        in_order.ends_with(
            "sessions: 192.0.2.1:443 and 192.0.2.2:443; 192.0.2.3:443 and 192.0.2.4:443."
        ),
        "{in_order}"
    );
    let mixed = groups(&["+-+-", "-+-+", "+-+-", "-+-+"]);
    assert!(
        mixed.ends_with(
            "sessions: 192.0.2.1:443 and 192.0.2.3:443; 192.0.2.2:443 and 192.0.2.4:443."
        ),
        "{mixed}"
    );
}

#[test]
fn a_chain_of_servers_that_share_only_with_their_neighbours_is_one_finding() {
    for (rows, end) in [
        (
            &["++-", "+++", "-++"][..],
            "192.0.2.1:443 and 192.0.2.3:443 refuse each other's sessions.",
        ),
        (
            &["++--", "+++-", "-+++", "--++"],
            "192.0.2.1:443 and 192.0.2.3:443 refuse each other's sessions, and so do 2 more pairs.",
        ),
    ] {
        let found = of(&tickets(rows));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].code, Code::NoSharedTicketKeys);
        let text = &found[0].text;
        assert!(text.starts_with("No ticket key is on all of the servers 192.0.2.1:443, "));
        assert!(text.ends_with(end), "{text}");
    }
}

#[test]
fn a_key_that_was_rotated_on_one_server_is_one_finding_for_each_pair() {
    let found = of(&tickets(&["+++", "+++", "--+"]));
    let codes: Vec<Code> = found.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::OneWayKeys; 2]);
    assert!(found[0].text.contains(
        "192.0.2.3:443 resumes the sessions of 192.0.2.1:443, but 192.0.2.1:443 does not"
    ));
}

#[test]
fn an_address_whose_tickets_have_several_key_names_stands_for_several_servers() {
    let mut report = tickets(&["-"]);
    let attempts = &mut report.mechanisms[0].attempts;
    for (key, serial) in [(1, 1), (2, 2), (1, 3), (2, 4)] {
        let mut refused = seen(How::Ticket, Kind::Refused);
        refused.offered = Some(ticket(&[key; 16]));
        refused.tickets = vec![given_ticket(key, serial)];
        attempts.push(Attempt {
            address: address(1),
            origin: Some(address(1)),
            result: Ok(refused),
        });
    }
    let found = of(&report);
    assert_eq!(found[0].code, Code::SeveralServersAtAddress);
    assert!(found[0].text.contains("sealed by 2 keys"), "{found:#?}");
}

#[test]
fn a_required_certificate_is_named_instead_of_the_alert() {
    let mut report = tickets(&[""]);
    let mut refused = failed(1, Error::Alert(AlertDescription::HandshakeFailure));
    if let Err(failed) = &mut refused.result {
        failed.certificate_requested = true;
    }
    report.mechanisms[0].attempts = vec![refused];
    assert_eq!(codes(&report), [Code::ClientCertificateRequired]);
    assert_eq!(report.mechanisms[0].status(), Status::Failed);
}

#[test]
fn ended_handshakes_are_critical_and_come_first() {
    let found = of(&faulty());
    assert_eq!(found[0].code, Code::EndsResumption);
    assert_eq!(found[0].severity(), Severity::Critical);
}

#[test]
fn session_ids_that_are_never_accepted_are_no_failure_if_tickets_resume() {
    let mut report = tickets(&["+"]);
    let refused = |kind| Attempt {
        address: address(1),
        origin: (kind == Kind::Refused).then(|| address(1)),
        result: Ok(seen(How::SessionId, kind)),
    };
    report.mechanisms.push(MechanismFindings {
        how: How::SessionId,
        attempts: vec![refused(Kind::NotOffered), refused(Kind::Refused)],
    });
    assert_eq!(codes(&report), [Code::UnusableSessionIds]);
    assert!(report.all_resume());
    report.mechanisms.remove(0);
    assert_eq!(codes(&report), [Code::ForgetsOwnSessions]);
    assert!(!report.all_resume());
}

#[test]
fn servers_that_give_no_session_of_any_kind_are_named() {
    let mut report = tickets(&["", ""]);
    let without = || {
        let mut without = seen(How::Ticket, Kind::NotOffered);
        without.given = false;
        Attempt {
            address: address(1),
            origin: None,
            result: Ok(without),
        }
    };
    report.mechanisms[0].attempts = vec![without(), without()];
    assert_eq!(codes(&report), [Code::NoMechanism]);
    report.mechanisms[0].attempts = vec![without(), without()];
    let mut other = seen(How::Ticket, Kind::NotOffered);
    other.given = true;
    report.mechanisms[0].attempts.push(Attempt {
        address: address(2),
        origin: None,
        result: Ok(other),
    });
    assert_eq!(codes(&report), [Code::NotOfferedByAll]);
}

/// The finding about two servers that resume only their own tickets. Each server has tickets of these keys, and a
/// certificate with this fingerprint.
fn of_two_groups(servers: [(&[u8], u8); 2]) -> Finding {
    let mut report = tickets(&["+-", "-+"]);
    for (attempt, (keys, certificate)) in report.mechanisms[0].attempts.iter_mut().zip(servers) {
        let seen = attempt.result.as_mut().unwrap();
        let serials = 0..2;
        let given = serials.flat_map(|serial| {
            keys.iter()
                .map(move |key| given_ticket(*key, 10 * certificate + serial))
        });
        seen.tickets = given.collect();
        seen.certificate = Some([certificate; 32]);
    }
    let mut found = of(&report);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

#[test]
fn key_names_tell_other_keys_from_refused_keys() {
    let differ = of_two_groups([(&[1], 1), (&[2], 1)]);
    assert_eq!(differ.code, Code::NoSharedTicketKeys);
    let names = "Their tickets name different keys: 01010101…; 02020202….";
    assert!(differ.text.ends_with(names), "{}", differ.text);

    let without_names = of_two_groups([(&[], 1), (&[2], 1)]);
    assert_eq!(without_names.code, Code::NoSharedTicketKeys);
    assert!(!without_names.text.contains("name different keys"));

    let same = of_two_groups([(&[1, 2], 1), (&[2, 3], 2)]);
    assert_eq!(same.code, Code::RefusesSharedKeys);
    assert!(
        same.text.contains("the same key (02020202…)"),
        "{}",
        same.text
    );
    assert!(same.text.ends_with("different certificates."));
    let same_certificate = of_two_groups([(&[1], 1), (&[1], 1)]);
    assert_eq!(same_certificate.code, Code::RefusesSharedKeys);
    assert!(!same_certificate.text.contains("certificates"));
}

/// The findings about a server that resumes, and gave this ticket in a full handshake.
fn of_ticket(change: impl FnOnce(&mut FinishedHandshake)) -> Vec<Code> {
    let mut report = tickets(&["+"]);
    let full = report.mechanisms[0].attempts[0].result.as_mut().unwrap();
    full.tickets = vec![given_ticket(1, 1)];
    full.certificate_left = Some(Duration::from_secs(24 * 3600));
    change(full);
    codes(&report)
}

#[test]
fn a_lifetime_over_seven_days_or_over_the_certificates_end_is_found() {
    let week = 7 * 24 * 3600;
    let lifetime = |lifetime| {
        of_ticket(|full| {
            full.tickets[0].lifetime = lifetime;
            full.certificate_left = None;
        })
    };
    assert_eq!(lifetime(0), []);
    assert_eq!(lifetime(week), []);
    assert_eq!(lifetime(week + 1), [Code::LifetimeOverSevenDays]);
    assert_eq!(of_ticket(|_| {}), []);
    let left = |left| of_ticket(|full| full.certificate_left = Some(Duration::from_secs(left)));
    assert_eq!(left(3600), []);
    assert_eq!(left(3599), [Code::OutlivesCertificate]);
    // Only clients that accept any certificate connect to such a server.
    assert_eq!(left(0), []);
}

#[test]
fn a_weak_key_is_critical() {
    // nginx sealed this ticket with a key of zeros.
    let ticket = include_bytes!("../../../../proto/src/testdata/weak-nginx-tls12.bin");
    let found = of_ticket(|full| full.tickets[0].bytes = ticket.to_vec());
    assert_eq!(found, [Code::WeakTicketKey]);
}

#[test]
fn a_tls13_ticket_that_is_given_twice_is_found() {
    let mut report = tickets(&["+"]);
    let tested = &mut report.mechanisms[0];
    tested.how = How::Psk;
    for attempt in &mut tested.attempts {
        let seen = attempt.result.as_mut().unwrap();
        seen.given = true;
        seen.tickets = vec![given_ticket(1, 1)];
    }
    assert_eq!(codes(&report), [Code::RepeatsTickets]);
}

#[test]
fn servers_that_did_the_same_with_the_same_mechanisms_are_one_finding() {
    let gives = |last, how, lifetime| {
        let mut full = seen(how, Kind::NotOffered);
        full.tickets = vec![given_ticket(last, 1)];
        full.tickets[0].lifetime = lifetime;
        Attempt {
            address: address(last),
            origin: None,
            result: Ok(full),
        }
    };
    let tested = |how, attempts| MechanismFindings { how, attempts };
    let mut report = tickets(&["", "", ""]);
    let [long, longer] = [700_000, 800_000];
    let of_mechanism = |how| {
        let third = gives(3, how, if how == How::Psk { long } else { longer });
        tested(how, vec![gives(1, how, long), gives(2, how, long), third])
    };
    report.mechanisms = vec![of_mechanism(How::Ticket), of_mechanism(How::Psk)];
    let found: Vec<(Vec<How>, usize)> = of(&report)
        .into_iter()
        .filter(|finding| finding.code == Code::LifetimeOverSevenDays)
        .map(|finding| (finding.mechanisms, finding.servers.len()))
        .collect();
    let expected = [
        (vec![How::Ticket, How::Psk], 2),
        (vec![How::Ticket], 1),
        (vec![How::Psk], 1),
    ];
    assert_eq!(found, expected);
}

#[test]
fn sessions_that_were_lost_while_the_probe_watched_are_one_finding() {
    let mut report = tickets(&["+"]);
    report.watched = Some(watched());
    let found = of(&report);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].code, Code::LostWhileWatched);
    assert_eq!(found[0].mechanisms, [How::Ticket]);
    let text = "192.0.2.1:443 lost its sessions once while the probe watched, first at 1970-01-01T00:00:03Z. The \
                ticket key changed at the same time";
    assert!(found[0].text.starts_with(text), "{}", found[0].text);
    assert!(!report.all_resume());
}

#[test]
fn a_key_of_tls12_tickets_is_old_after_a_day() {
    let mut report = tickets(&["+"]);
    let mut quiet = watched();
    quiet.events.clear();
    let mut codes_with = |how, secs| {
        let mut watched = quiet.clone();
        watched.key_ages[0].how = how;
        watched.key_ages[0].age = Duration::from_secs(secs);
        report.watched = Some(watched);
        (codes(&report), report.all_resume())
    };
    let day = 24 * 60 * 60;
    assert_eq!(codes_with(How::Ticket, day), (vec![], true));
    assert_eq!(
        codes_with(How::Ticket, day + 1),
        (vec![Code::OldTicketKey], true)
    );
    assert_eq!(codes_with(How::Psk, day + 1), (vec![], true));
}

/// Accepted early data that was accepted again, from rows of origin, address and HTTP status.
fn replayed(rows: &[(u8, u8, Option<u16>)]) -> Vec<Finding> {
    let mut report = tickets(&["++", "++"]);
    let replay = |&(origin, last, status): &(u8, u8, Option<u16>)| EarlyDataReplay {
        origin: address(origin),
        address: address(last),
        outcome: EarlyDataOutcome::Accepted,
        status,
        error: None,
    };
    report.early_data.replays = rows.iter().map(replay).collect();
    of(&report)
}

#[test]
fn early_data_that_is_answered_twice_is_one_warning_for_all_servers() {
    let answered = Some(200);
    let all = [
        (1, 1, answered),
        (1, 2, answered),
        (2, 2, answered),
        (2, 1, answered),
    ];
    let found = replayed(&all);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].code, Code::EarlyDataReplayed);
    assert_eq!(found[0].severity(), Severity::Warning);
    assert_eq!(found[0].servers, [address(1), address(2)]);
    let found = replayed(&[(1, 2, answered)]);
    assert!(
        found[0]
            .text
            .contains("that 192.0.2.1:443 had accepted before"),
        "{found:?}"
    );
}

#[test]
fn a_replay_that_is_not_answered_is_a_notice_and_a_replay_that_came_too_early_is_nothing() {
    let found = replayed(&[(1, 1, None), (2, 2, Some(425))]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].code, Code::AcceptsEarlyDataTwice);
    assert_eq!(found[0].severity(), Severity::Notice);
    assert_eq!(found[0].servers, [address(1)]);
}

/// The findings about a server that requests a client certificate, and answers with these statuses: after a full
/// handshake, and after a resumed one.
fn of_statuses(has_certificate: bool, full: u16, resumed: u16) -> Vec<Code> {
    let mut report = tickets(&["+"]);
    report.has_client_certificate = has_certificate;
    let attempts = &mut report.mechanisms[0].attempts;
    for (attempt, status) in attempts.iter_mut().zip([full, resumed]) {
        let seen = attempt.result.as_mut().unwrap();
        seen.status = Some(status);
        seen.certificate_requested = seen.kind == Kind::NotOffered;
    }
    codes(&report)
}

#[test]
fn an_answer_that_changes_with_resumption_shows_what_became_of_the_client_certificate() {
    assert_eq!(of_statuses(true, 200, 200), []);
    assert_eq!(of_statuses(true, 200, 404), []);
    assert_eq!(
        of_statuses(true, 200, 403),
        [Code::ForgetsClientCertificate]
    );
    let requested = Code::ClientCertificateRequested;
    assert_eq!(of_statuses(false, 400, 400), [requested]);
    let gets_in = [Code::SkipsClientCertificate, requested];
    assert_eq!(of_statuses(false, 400, 204), gets_in);
}
