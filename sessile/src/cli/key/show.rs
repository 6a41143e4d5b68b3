//! What a key is, for people and for programs: fingerprints, epochs, ages. Two servers have the
//! same key where they show the same fingerprint for the same epoch.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use sessile_proto::Time;
use sessile_proto::keys::{Chain, FarmKey, Generation, ROUTE_STEP, Standing};

use super::rfc3339;
use crate::key;

/// Shape of `sessile key show --json`: fields are added, and none is renamed or removed.
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
    /// `None`: not decided. The start of time where it sealed as soon as it was made.
    activates: Option<String>,
    ends: Option<String>,
    ticket: Option<ShownChain>,
    route: ShownChain,
}

#[derive(Serialize)]
struct ShownChain {
    /// What the file stands at: everything sealed from then on can be opened with it.
    stands_at: u64,
    since: String,
    age_seconds: u64,
    /// At the present epoch or day; none where the chain begins later.
    fingerprint: Option<String>,
}

pub(super) fn run(path: &Path, json: bool, now: Time) -> anyhow::Result<ExitCode> {
    let key = key::load_any(path)?;
    let shown = Shown::of(&key, path, now);
    super::print(&match json {
        true => format!("{:#}\n", serde_json::to_value(&shown)?),
        false => shown.text()?,
    })
}

impl<'a> Shown<'a> {
    fn of(key: &'a FarmKey, path: &Path, now: Time) -> Self {
        let generations = key.generations.iter();
        Self {
            file: path.display().to_string(),
            part: match key.is_route_part() {
                true => "route",
                false => "whole",
            },
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

    fn text(&self) -> Result<String, std::fmt::Error> {
        let span = |seconds| humantime::format_duration(std::time::Duration::from_secs(seconds));
        let mut out = String::new();
        writeln!(out, "{}", self.file)?;
        let part = match self.part {
            "route" => ", the balancer's part",
            _ => "",
        };
        writeln!(out, "  farm          {}{part}", self.scope)?;
        writeln!(out, "  rotate        {}", span(self.rotate_seconds))?;
        writeln!(out, "  max-lifetime  {}", span(self.max_lifetime_seconds))?;
        for generation in &self.generations {
            let ended = generation.state == "ended";
            let time = |name, time: Option<&String>| {
                time.map_or(String::new(), |time| format!(", {name} {time}"))
            };
            let from = generation.activates.as_ref();
            writeln!(
                out,
                "\ngeneration {}: {}{}{}",
                generation.number,
                match generation.state {
                    "waiting" => "accepted, not used yet",
                    "outgoing" => "accepted, no longer used",
                    state => state,
                },
                // The first one has no beginning, and what has ended is not used again.
                time(
                    "used from",
                    from.filter(|time| !ended && !time.starts_with("1970-"))
                ),
                time(
                    if ended { "since" } else { "ends" },
                    generation.ends.as_ref()
                ),
            )?;
            let chains = [
                ("ticket", "epoch", self.epoch, generation.ticket.as_ref()),
                ("route", "day", self.day, Some(&generation.route)),
            ];
            for (name, unit, present, chain) in chains {
                let Some(chain) = chain else { continue };
                let print = chain.fingerprint.as_deref().unwrap_or("none, begins later");
                writeln!(
                    out,
                    "  {name:<6}  fingerprint {print} at {unit} {present}\n          \
                     opens from {unit} {}, {}, {} ago",
                    chain.stands_at,
                    chain.since,
                    span(chain.age_seconds),
                )?;
            }
        }
        Ok(out)
    }
}

impl ShownGeneration {
    fn of(key: &FarmKey, generation: &Generation, now: Time) -> Self {
        let time = |secs: u64| rfc3339(Time::from_unix_millis(secs.saturating_mul(1000)));
        let chain = |chain: &Chain, step: u64| {
            let present = now.unix_secs() / step;
            let secs = chain.epoch().saturating_mul(step);
            ShownChain {
                stands_at: chain.epoch(),
                since: time(secs),
                age_seconds: now.unix_secs().saturating_sub(secs),
                fingerprint: key
                    .fingerprint(chain, present)
                    .map(|print| crate::client::hex(&print)),
            }
        };
        Self {
            number: generation.number,
            state: match key.standing(generation, now) {
                Standing::Waiting => "waiting",
                Standing::Sealing => "sealing",
                Standing::Outgoing => "outgoing",
                Standing::Ended => "ended",
            },
            activates: generation.activates.map(time),
            ends: generation.ends.map(time),
            ticket: generation
                .ticket
                .as_ref()
                .map(|ticket| chain(ticket, key.rotate.as_secs().max(1))),
            route: chain(&generation.route, ROUTE_STEP),
        }
    }
}
