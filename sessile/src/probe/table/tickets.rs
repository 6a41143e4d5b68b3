//! The lines about the tickets of a mechanism.

use std::collections::BTreeSet;
use std::time::Duration;

use super::text::push_wrapped;
use crate::probe::report::{MechanismFindings, ProbeReport};
use crate::probe::ticket_bytes::short;
use crate::probe::ticket_facts::TicketFacts;

/// Adds a line for the servers with the same kind of tickets.
pub(super) fn push_tickets(text: &mut String, tested: &MechanismFindings, report: &ProbeReport) {
    let entries = TicketFacts::by_servers(report, tested);
    for (facts, servers) in &entries {
        let mut numbers = String::new();
        if servers.len() < report.addresses.len() {
            let positions = servers.iter().filter_map(|server| {
                let position = report.addresses.iter().position(|known| known == server);
                position.map(|position| (position + 1).to_string())
            });
            numbers = format!(" of {}", positions.collect::<Vec<_>>().join(", "));
        }
        push_wrapped(text, 2, &format!("tickets{numbers}: {}", words(facts)));
    }
}

fn words(facts: &TicketFacts) -> String {
    let mut words = vec![format!(
        "{} in a full handshake",
        range(&facts.in_full_handshake)
    )];
    if !facts.in_resumed_handshake.is_empty() {
        let count = range(&facts.in_resumed_handshake);
        words.push(format!("{count} in a resumed one"));
    }
    words.push(format!("{} bytes", range(&facts.bytes)));
    let lifetimes = &facts.lifetime_seconds;
    if let (Some(&first), Some(&last)) = (lifetimes.first(), lifetimes.last()) {
        let range = if first == last {
            lifetime(first)
        } else {
            format!("{} to {}", lifetime(first), lifetime(last))
        };
        words.push(format!("lifetime {range}"));
    }
    match facts.usable_twice {
        Some(true) => words.push("usable twice".to_owned()),
        Some(false) => words.push("usable once".to_owned()),
        None => {}
    }
    if let Some(most) = facts.max_early_data.last() {
        words.push(format!("early data up to {most} bytes"));
    }
    if !facts.key_names.is_empty() {
        let names: Vec<String> = facts.key_names.iter().map(|name| short(name)).collect();
        words.push(format!("key name {}", names.join(" and ")));
    }
    words.join(", ")
}

/// The smallest and the largest number.
fn range(numbers: &BTreeSet<usize>) -> String {
    match (numbers.first(), numbers.last()) {
        (Some(first), Some(last)) if first == last => first.to_string(),
        (Some(first), Some(last)) => format!("{first} to {last}"),
        _ => "0".to_owned(),
    }
}

fn lifetime(seconds: u32) -> String {
    match seconds {
        0 => "not stated".to_owned(),
        seconds => humantime::format_duration(Duration::from_secs(seconds.into())).to_string(),
    }
}
