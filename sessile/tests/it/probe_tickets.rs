//! What `sessile probe` says about the tickets of servers.

use crate::peers::{Certificates, nginx, openssl, ticket_key};
use crate::probe::Found;

#[test]
fn the_report_says_whether_a_ticket_can_be_used_twice() {
    let certificates = Certificates::new();
    let often = nginx(&certificates, "");
    // With early data, OpenSSL keeps its sessions, and removes each one when it resumes.
    let once = openssl(&certificates, &["-early_data", "-naccept", "100"]);
    for (server, is_usable_twice) in [(&often, true), (&once, false)] {
        let found = Found::with(
            &certificates,
            server.address(),
            &["--mechanism", "psk", "--request", "none"],
        );
        let tickets = &found.mechanism("psk")["tickets"][0];
        assert_eq!(
            tickets["usable_twice"], is_usable_twice,
            "{:#}",
            found.report
        );
    }
}

#[test]
fn servers_with_the_same_ticket_key_resume_each_others_tickets() {
    let certificates = Certificates::new();
    let key = certificates.folder().join("ticket.key");
    std::fs::write(&key, ticket_key(7)).unwrap();
    let directives = format!(
        "ssl_session_cache off; ssl_session_ticket_key {};",
        key.display()
    );
    let farm = [(); 2].map(|()| nginx(&certificates, &directives));
    let addresses = [farm[0].address(), farm[1].address()];
    let found = Found::by(&certificates, &addresses, "4");
    assert_eq!(found.statuses(), ["not-offered", "resumes", "resumes"]);
    assert_eq!(found.status, Some(0));
}
