//! Reads the tickets of a TLS 1.3 server with one of three secrets, and parses the message itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sessile_proto::hello::Tls13NewSessionTicket;
use sessile_proto::ticket_reader::read_tickets;

fuzz_target!(|data: &[u8]| {
    for (suite, secret_len) in [(0x1301, 32), (0x1302, 48), (0x1303, 32)] {
        let tickets = read_tickets(suite, &[7; 48][..secret_len], data);
        let bytes: usize = tickets.iter().map(|ticket| ticket.ticket.len()).sum();
        assert!(bytes <= data.len());
    }
    if let Ok(parsed) = Tls13NewSessionTicket::parse(data) {
        assert!(!parsed.ticket.is_empty() && parsed.ticket.len() < data.len());
    }
});
