//! The lines about what happened while the probe watched.

use humantime::{format_duration, format_rfc3339_seconds};

use super::text::{push, push_wrapped, title};
use crate::probe::events::ProbeEvent;
use crate::probe::report::ProbeReport;

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

pub(super) fn push_events(text: &mut String, report: &ProbeReport) {
    let Some(watched) = &report.watched else {
        return;
    };
    let limits = watched.limits;
    let head = format!(
        "\nWatched for {}, every {}",
        format_duration(limits.duration),
        format_duration(limits.interval)
    );
    push(text, &head);
    for event in &watched.events {
        push_wrapped(text, 2, &event_line(event));
    }
    if watched.events.is_empty() {
        push(text, "  nothing happened");
    }
}
