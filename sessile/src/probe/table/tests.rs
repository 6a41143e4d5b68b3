use super::*;
use crate::probe::samples;

#[test]
fn the_report_has_aligned_tables_and_a_summary_of_each_mechanism() {
    let text = write(&samples::report(), Colour::Never, Detail::Attempts);
    let expected = "\
farm.test: server name farm.test, 2 addresses

warning: 1 of 5 handshakes with 192.0.2.1:443 failed: the server does not speak
  TLS

TLS 1.2 session ID: resumed 1 of 2; failed at 192.0.2.1:443 1 time
  full/unknown, says web2
TLS 1.2 ticket: not offered: the server gives no ticket
TLS 1.3 PSK: resumed 1 of 1

TLS 1.2 session ID
  sessions of    to      1     2
                   1   yes     -
                   2     .     .
  #  address        offered        outcome    time  server
  0  192.0.2.1:443  nothing        full     1.5 ms
  1  192.0.2.1:443  07070707…0707  resumed  1.5 ms
  2  192.0.2.2:443  07070707…0707  refused  1.5 ms  web2    full/unknown
  3  192.0.2.1:443                 failed
     the server does not speak TLS

TLS 1.2 ticket
  #  address        offered  outcome    time
  0  192.0.2.1:443  nothing  full     1.5 ms
  1  192.0.2.2:443  nothing  full     1.5 ms

TLS 1.3 PSK
  sessions of    to      1     2
                   1     .   yes
                   2     .     .
  #  address        offered        outcome    time
  0  192.0.2.1:443  nothing        full     1.5 ms
  1  192.0.2.2:443  07070707…0707  resumed  1.5 ms

  1 = 192.0.2.1:443
  2 = 192.0.2.2:443 (web2)
  yes: every session resumed; 1/2: some did; -: refused; end: the server ended
    the handshake; .: not tested
";
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn a_failed_return_shows_its_offer_and_the_comparison_without_a_session() {
    let text = write(&samples::faulty(), Colour::Never, Detail::Attempts);
    let expected = "\
farm.test: server name farm.test, 1 address

critical: 192.0.2.1:443 ended 2 of 2 handshakes that offered a session of the
  farm, and finished the same handshakes without a session. Clients that return
  cannot connect.
  - until the server's TLS stack is mended, turn off the mechanism that fails;
    the table shows which one

TLS 1.3 PSK: resumed 0 of 2; failed at 192.0.2.1:443 2 times
  2 of 2 connections that offered a session were ended by the server; 2 of 2
    without one succeeded

TLS 1.3 PSK
  #  address        offered        outcome    time
  0  192.0.2.1:443  nothing        full     1.5 ms
  1  192.0.2.1:443  07070707…0707  failed
     the server refused the handshake: alert internal_error; without a session
       it succeeded
  2  192.0.2.1:443  07070707…0707  failed
     the server refused the handshake: alert internal_error; without a session
       it succeeded
";
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn no_line_is_wider_than_a_terminal() {
    let address = "[2001:db8:1234:5678:9abc:def0:1234:5678]:65535"
        .parse()
        .unwrap();
    let mut report = samples::report();
    for attempt in report.mechanisms.iter_mut().flat_map(|it| &mut it.attempts) {
        attempt.address = address;
        if let Ok(seen) = &mut attempt.result {
            seen.server = Some("a-server-with-a-long-name.of.a-data-centre.example".to_owned());
        }
    }
    let text = write(&report, Colour::Never, Detail::Attempts);
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{line}\n\n{text}");
    }
}

#[test]
fn colours_do_not_change_the_alignment() {
    let plain = write(&samples::report(), Colour::Never, Detail::Attempts);
    let coloured = write(&samples::report(), Colour::Always, Detail::Attempts);
    assert!(coloured.contains("\x1b[32mresumed\x1b[0m"));
    let stripped = ["\x1b[32m", "\x1b[31m", "\x1b[0m"]
        .iter()
        .fold(coloured, |text, code| text.replace(code, ""));
    assert_eq!(stripped, plain);
}

#[test]
fn a_run_that_was_stopped_says_so() {
    let mut report = samples::report();
    report.complete = false;
    report.mechanisms[2].attempts.truncate(1);
    let text = write(&report, Colour::Never, Detail::Attempts);
    assert!(text.contains("\nTLS 1.3 PSK: not finished\n"), "{text}");
    assert!(text.ends_with("\nstopped before the end\n"), "{text}");
}

#[test]
fn the_lines_about_tickets_name_their_servers_if_these_differ() {
    let mut report = samples::report();
    let psk = &mut report.mechanisms[2];
    let full = psk.attempts[0].result.as_mut().unwrap();
    full.tickets = vec![samples::given_ticket(1, 1), samples::given_ticket(1, 2)];
    let text = write(&report, Colour::Never, Detail::Summary);
    let expected = "
  tickets of 1: 2 in a full handshake, 200 bytes, lifetime 1h, key name
    01010101…
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn the_events_of_a_watch_have_their_times() {
    let mut report = samples::report();
    report.watched = Some(samples::watched());
    let text = write(&report, Colour::Never, Detail::Summary);
    let expected = "
Watched for 2h, every 30s
  1970-01-01T00:00:01Z 192.0.2.1:443 does not answer
  1970-01-01T00:00:02Z 192.0.2.1:443 answers again
  1970-01-01T00:00:03Z 192.0.2.1:443 refused a session that it had just given;
    key 01010101… before, 02020202… now (TLS 1.2 ticket)
";
    assert!(text.ends_with(expected), "{text}");
}
