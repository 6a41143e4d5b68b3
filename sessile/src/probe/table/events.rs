//! The line of an event.

use humantime::format_rfc3339_seconds;

use super::text::title;
use crate::probe::events::ProbeEvent;

/// An event in one line: time, server and what happened.
#[must_use]
pub fn event_line(event: &ProbeEvent) -> String {
    let mechanism = match event.how {
        Some(how) => format!(" ({})", title(how)),
        None => String::new(),
    };
    let at = format_rfc3339_seconds(event.at);
    format!("{at} {} {}{mechanism}", event.address, event.event)
}
