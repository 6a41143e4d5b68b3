use rustls::AlertDescription;

use super::*;
use crate::probe::samples::{attempt, failed, report, seen};

fn findings(attempts: Vec<Attempt>) -> MechanismFindings {
    let how = How::Psk;
    MechanismFindings { how, attempts }
}

fn psk(kind: Kind) -> Attempt {
    attempt(1, Ok(seen(How::Psk, kind)))
}

fn alert(alert: AlertDescription) -> Attempt {
    failed(1, Error::Alert(alert))
}

const RESUMED: Kind = Kind::Resumed(How::Psk);

#[test]
fn the_status_distinguishes_all_some_and_no_returns_resumed() {
    let status = |kinds: &[Kind]| findings(kinds.iter().copied().map(psk).collect()).status();
    assert_eq!(status(&[]), Status::Unfinished);
    assert_eq!(status(&[Kind::NotOffered]), Status::Unfinished);
    assert_eq!(status(&[Kind::NotOffered, RESUMED]), Status::Resumes);
    assert_eq!(
        status(&[Kind::NotOffered, RESUMED, Kind::Refused]),
        Status::Partly
    );
    assert_eq!(status(&[Kind::NotOffered, Kind::Refused]), Status::Refuses);
    // A server that gives few tickets gets more full handshakes, which are no returns.
    assert_eq!(
        status(&[Kind::NotOffered, RESUMED, Kind::NotOffered]),
        Status::Resumes
    );
}

#[test]
fn a_version_that_every_server_declines_is_not_offered() {
    let refused = findings(vec![alert(AlertDescription::ProtocolVersion)]);
    assert_eq!(refused.status(), Status::NotOffered);
    assert_eq!(refused.note(), Some("the server does not speak TLS 1.3"));
    let nothing_common = findings(vec![alert(AlertDescription::HandshakeFailure)]);
    assert_eq!(nothing_common.status(), Status::NotOffered);
    let other = findings(vec![alert(AlertDescription::InternalError)]);
    assert_eq!(other.status(), Status::Failed);
}

#[test]
fn a_version_that_one_of_two_servers_declines_fails_the_probe() {
    let mut report = report();
    let error = Error::Alert(AlertDescription::ProtocolVersion);
    let declined = failed(2, error);
    report.mechanisms = vec![findings(vec![
        psk(Kind::NotOffered),
        psk(RESUMED),
        declined,
    ])];
    assert!(!report.all_resume());
}

#[test]
fn the_probe_succeeds_if_every_offered_mechanism_resumes_and_there_is_one() {
    let mut report = report();
    assert!(!report.all_resume());
    report.mechanisms.remove(0);
    assert!(report.all_resume());
    report.mechanisms.pop();
    assert!(!report.all_resume(), "nothing resumes");
}

#[test]
fn causes_are_verdicts_that_servers_stated_for_refusals() {
    let with_verdict = |kind, verdict: &str| {
        let verdict = Some(verdict.to_owned());
        attempt(
            1,
            Ok(FinishedHandshake {
                verdict,
                ..seen(How::Psk, kind)
            }),
        )
    };
    let findings = findings(vec![
        with_verdict(Kind::NotOffered, "full/nothing-offered"),
        with_verdict(RESUMED, "resumed/psk"),
        with_verdict(Kind::Refused, "full/expired"),
        with_verdict(Kind::Refused, "full/expired"),
        with_verdict(Kind::Refused, "full/because"),
        psk(Kind::Refused),
    ]);
    let expired = Cause {
        verdict: Verdict::parse("full/expired").unwrap(),
        said_by: vec!["192.0.2.1:443".to_owned()],
    };
    assert_eq!(findings.causes(), [expired]);
}

#[test]
fn servers_without_sessions_count_for_the_share_if_others_give_sessions() {
    let without = |last| {
        let mut full = seen(How::Psk, Kind::NotOffered);
        full.given = false;
        attempt(last, Ok(full))
    };
    let mut report = report();
    report.mechanisms = vec![findings(vec![
        psk(Kind::NotOffered),
        psk(RESUMED),
        psk(RESUMED),
        without(2),
        without(2),
    ])];
    assert_eq!(report.returns(), (4, 2));
    assert!(report.reaches(50.0) && !report.reaches(51.0));
    report.mechanisms = vec![findings(vec![without(1), without(2)])];
    assert_eq!(report.returns(), (0, 0));
}
