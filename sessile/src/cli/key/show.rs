//! `sessile key show`: fingerprints, epochs and ages, for people and for programs.
//!
//! Two servers have the same key if they show the same fingerprint for the same epoch.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use sessile_proto::Time;
use sessile_proto::keys::{Chain, FarmKey, Generation, GenerationStatus, ROUTE_STEP};

use super::{print, rfc3339};
use crate::key;

/// The output of `sessile key show --json`. Fields may be added, but never renamed or removed.
#[derive(Serialize)]
struct Shown<'a> {
    file: String,
    part: &'static str,
    scope: &'a str,
    rotate_seconds: u64,
    max_lifetime_seconds: u64,
    epoch: u64,
    day: u64,
    generations: Vec<ShownGeneration>,
}

#[derive(Serialize)]
struct ShownGeneration {
    number: u8,
    state: &'static str,
    /// The time from which the generation seals. `None` if no time is decided. 1970 if the
    /// generation sealed when it was made.
    activates: Option<String>,
    ends: Option<String>,
    ticket: Option<ShownChain>,
    route: ShownChain,
}

#[derive(Serialize)]
struct ShownChain {
    /// The oldest epoch or day that the file opens.
    stands_at: u64,
    since: String,
    age_seconds: u64,
    /// The fingerprint at the present epoch or day. `None` if the chain begins later.
    fingerprint: Option<String>,
}

pub(super) fn run(path: &Path, json: bool, now: Time) -> anyhow::Result<ExitCode> {
    let key = key::load_any(path)?;
    let shown = Shown::of(&key, path, now);
    let output = if json {
        format!("{:#}\n", serde_json::to_value(&shown)?)
    } else {
        shown.text()
    };
    print(&output)
}

impl<'a> Shown<'a> {
    fn of(key: &'a FarmKey, path: &Path, now: Time) -> Self {
        let part = if key.is_route_part() {
            "route"
        } else {
            "whole"
        };
        let generations = key.generations.iter();
        Self {
            file: path.display().to_string(),
            part,
            scope: &key.scope,
            rotate_seconds: key.rotate.as_secs(),
            max_lifetime_seconds: key.max_lifetime.as_secs(),
            epoch: key.epoch(now),
            day: now.unix_secs() / ROUTE_STEP,
            generations: generations
                .map(|generation| ShownGeneration::of(key, generation, now))
                .collect(),
        }
    }

    fn text(&self) -> String {
        let part = match self.part {
            "route" => ", the balancer's part",
            _ => "",
        };
        let mut out = format!(
            "{}\n  farm          {}{part}\n  rotate        {}\n  max-lifetime  {}\n",
            self.file,
            self.scope,
            span_in_words(self.rotate_seconds),
            span_in_words(self.max_lifetime_seconds),
        );
        for generation in &self.generations {
            let use_in_words = generation.use_in_words();
            out.push_str(&format!(
                "\ngeneration {}: {use_in_words}\n",
                generation.number
            ));
            if let Some(ticket) = &generation.ticket {
                out.push_str(&ticket.text("ticket", "epoch", self.epoch));
            }
            out.push_str(&generation.route.text("route", "day", self.day));
        }
        out
    }
}

impl ShownGeneration {
    fn of(key: &FarmKey, generation: &Generation, now: Time) -> Self {
        let ticket_step = key.rotate.as_secs().max(1);
        let ticket = generation.ticket.as_ref();
        Self {
            number: generation.number,
            state: match key.status(generation, now) {
                GenerationStatus::Waiting => "waiting",
                GenerationStatus::Sealing => "sealing",
                GenerationStatus::Outgoing => "outgoing",
                GenerationStatus::Ended => "ended",
            },
            activates: generation.activates.map(rfc3339_of),
            ends: generation.ends.map(rfc3339_of),
            ticket: ticket.map(|chain| ShownChain::of(key, chain, ticket_step, now)),
            route: ShownChain::of(key, &generation.route, ROUTE_STEP, now),
        }
    }

    /// The use of the generation in words, with its beginning and end.
    fn use_in_words(&self) -> String {
        let has_ended = self.state == "ended";
        let mut text = match self.state {
            "waiting" => "accepted, not used yet",
            "outgoing" => "accepted, no longer used",
            state => state,
        }
        .to_owned();
        // A generation that sealed at once has no beginning, and an ended generation is not used
        // again.
        if let Some(from) = &self.activates
            && !has_ended
            && !from.starts_with("1970-")
        {
            text.push_str(&format!(", used from {from}"));
        }
        if let Some(end) = &self.ends {
            let verb = if has_ended { "since" } else { "ends" };
            text.push_str(&format!(", {verb} {end}"));
        }
        text
    }
}

impl ShownChain {
    /// `step`: the seconds in one epoch of the chain.
    fn of(key: &FarmKey, chain: &Chain, step: u64, now: Time) -> Self {
        let began = chain.epoch().saturating_mul(step);
        Self {
            stands_at: chain.epoch(),
            since: rfc3339_of(began),
            age_seconds: now.unix_secs().saturating_sub(began),
            fingerprint: key
                .fingerprint(chain, now.unix_secs() / step)
                .map(|print| crate::client::hex(&print)),
        }
    }

    /// Two lines about this chain, whose epochs are called `unit`.
    fn text(&self, name: &str, unit: &str, present: u64) -> String {
        let fingerprint = self.fingerprint.as_deref().unwrap_or("none, begins later");
        format!(
            "  {name:<6}  fingerprint {fingerprint} at {unit} {present}\n          \
             opens from {unit} {}, {}, {} ago\n",
            self.stands_at,
            self.since,
            span_in_words(self.age_seconds),
        )
    }
}

fn rfc3339_of(seconds: u64) -> String {
    rfc3339(Time::from_unix_millis(seconds.saturating_mul(1000)))
}

fn span_in_words(seconds: u64) -> impl std::fmt::Display {
    humantime::format_duration(std::time::Duration::from_secs(seconds))
}
