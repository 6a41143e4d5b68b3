//! `sessile key`: makes, shows, exports and rotates the farm key. It prints fingerprints and never a secret.

mod export;
mod show;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Subcommand;
use sessile_proto::Time;
use sessile_proto::keys::CannotRotate;

use super::print;
use crate::clock::{self, rfc3339};
use crate::config;
use crate::key::{self, KeyError, Rotation};

/// The exit code of a check that finds a fault.
const FAULTY: u8 = 2;

const EXAMPLES: &str = r"Examples:
  sessile key new --scope shop        make the first key of a farm
  sessile key show                    show it by fingerprints, no secrets
  sessile key rotate --at 24h         new secret; copy it to every server
  sessile key rotate --compromised    the old secret was stolen: end it now
  sessile key export --route --output route.key
  sessile key export --format nginx --output /etc/nginx/tickets

A server reads its key file again on SIGHUP. docs/operations.md has every step.";

/// Make, show, export and rotate the farm key.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The key file [default: key.file of --config, else farm.key in the state folder]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// The configuration file that names the key file
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a key file; an existing file is never overwritten
    #[command(after_help = "Example:\n  sessile key new --file farm.key --scope shop")]
    New {
        /// How long a ticket key seals new tickets
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
        rotate: Duration,
        /// Longest lifetime of a session; a server's session.lifetime can only shorten it
        #[arg(long, value_name = "TIME", default_value = "10h", value_parser = humantime::parse_duration)]
        max_lifetime: Duration,
        /// The farm's name, the same on every server [default: a random one]
        #[arg(long, value_name = "NAME")]
        scope: Option<String>,
    },
    /// Show fingerprints, generations, epochs and ages; never a secret
    #[command(after_help = "Example:\n  sessile key show --file farm.key")]
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a balancer's part of the key, or ticket keys for other TLS servers
    Export(export::Args),
    /// Change the secret: a new generation, accepted before it is used
    #[command(
        after_help = "TIME is RFC 3339 in UTC (2030-01-31T04:00:00Z) or a duration from now (24h).\n\n\
        Examples:\n  sessile key rotate --at 24h\n  sessile key rotate --activate"
    )]
    Rotate {
        /// Use the added generation, from now on or from --at
        #[arg(long)]
        activate: bool,
        /// Time from which the new generation is used
        #[arg(long, value_name = "TIME", value_parser = point_in_time)]
        at: Option<PointInTime>,
        /// The key was stolen: use a new generation at once and end all others at once
        #[arg(long, conflicts_with_all = ["activate", "at"])]
        compromised: bool,
    },
    /// Check that the file can be used, and print warnings about it
    #[command(after_help = "Example:\n  sessile key check --file farm.key\n\n\
        Exit code: 0 if the file can be used (warnings included), 2 if it cannot.")]
    Check,
}

/// A point in time on the command line.
#[derive(Clone, Copy, Debug)]
enum PointInTime {
    At(Time),
    FromNow(Duration),
}

fn point_in_time(text: &str) -> Result<PointInTime, String> {
    if let Ok(span) = humantime::parse_duration(text) {
        return Ok(PointInTime::FromNow(span));
    }
    clock::parse_rfc3339(text)
        .map(PointInTime::At)
        .ok_or_else(|| {
            "neither a time in UTC, as in 2030-01-31T04:00:00Z, nor a duration, as in 24h"
                .to_owned()
        })
}

/// Runs `sessile key`.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::start_log(tracing::level_filters::LevelFilter::ERROR);
    let path = key_file(args.file, args.config)?;
    let now = clock::now();
    match args.command {
        Command::New {
            rotate,
            max_lifetime,
            scope,
        } => {
            key::create(&path, scope.as_deref(), rotate, max_lifetime, now)?;
            // The first export can then move the file.
            key::note_clock(&path, now);
            new_key(&path)
        }
        Command::Show { json } => show::run(&path, json, now),
        Command::Export(args) => export::run(&path, &args, now),
        Command::Rotate {
            activate,
            at,
            compromised,
        } => {
            let rotation = rotation(activate, at, compromised, now)?;
            rotate(&path, rotation, now)
        }
        Command::Check => check(&path, now),
    }
}

fn key_file(file: Option<PathBuf>, config: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(file) = file {
        return Ok(file);
    }
    let Some(config) = config else {
        return Ok(config::default_state_dir().join("farm.key"));
    };
    match config::file::load_settings(&config)?.key {
        config::Key::File(path) => Ok(path),
        config::Key::Ephemeral => bail!(
            "{}: key.file is \"none\": the key is in the server's memory only",
            config.display()
        ),
    }
}

fn new_key(path: &Path) -> anyhow::Result<ExitCode> {
    let key = key::load(path)?;
    print(&format!(
        "{} is the key of farm {:?}: ticket keys change every {}, sessions live {} at most.\n\
         Copy it to every server before the server starts, over an encrypted channel, with mode 0600:\n\
         anyone who has it can open and forge every ticket.\n",
        path.display(),
        key.scope,
        humantime::format_duration(key.rotate),
        humantime::format_duration(key.max_lifetime),
    ))
}

fn rotation(
    activate: bool,
    at: Option<PointInTime>,
    compromised: bool,
    now: Time,
) -> anyhow::Result<Rotation> {
    let time = match at {
        Some(PointInTime::At(time)) if time < now => {
            bail!(
                "--at {}: this time has passed; give a later one",
                rfc3339(time)
            )
        }
        Some(PointInTime::At(time)) => Some(time),
        Some(PointInTime::FromNow(span)) => Some(now.plus(span)),
        None => None,
    };
    Ok(if compromised {
        Rotation::Replace
    } else if activate {
        Rotation::Activate(time.unwrap_or(now))
    } else {
        Rotation::Add(time)
    })
}

fn rotate(path: &Path, rotation: Rotation, now: Time) -> anyhow::Result<ExitCode> {
    let (_, number) = key::rotate(path, rotation, now).map_err(with_remedy)?;
    let file = path.display();
    let copy = "copy the file to every other server of the farm and have each reload it (SIGHUP)";
    print(&match rotation {
        Rotation::Add(None) => format!(
            "{file}: generation {number} is accepted and not used yet.\n\
             Next: {copy}.\n\
             When all of them have it: run `sessile key rotate --activate` on one, and copy the file again.\n"
        ),
        Rotation::Add(Some(at)) => format!(
            "{file}: generation {number} is accepted, and used from {} on.\n\
             Until then: {copy}.\n",
            rfc3339(at)
        ),
        Rotation::Activate(at) => format!(
            "{file}: generation {number} is used from {} on; tickets of the one before it are \
             accepted while they live.\n\
             Next: {copy}. A server that is late loses nothing.\n",
            rfc3339(at)
        ),
        Rotation::Replace => format!(
            "{file}: generation {number} is used from now on, and every other one has ended.\n\
             At once: {copy}. Until a server has it, the stolen key works there.\n\
             Every client pays one full handshake.\n"
        ),
    })
}

fn with_remedy(error: KeyError) -> anyhow::Error {
    let remedy = match &error {
        KeyError::Rotate { source, .. } => match source {
            CannotRotate::Waiting(_) => {
                "use it with `sessile key rotate --activate`, or end it with the others by \
                 `--compromised`"
                    .to_owned()
            }
            CannotRotate::Outgoing(_, until) => {
                let until = Time::from_unix_millis(until.saturating_mul(1000));
                format!("another generation can be added from {} on", rfc3339(until))
            }
            CannotRotate::NothingWaits => "`sessile key rotate` adds one".to_owned(),
            CannotRotate::ClockBehind(_) => {
                "compare this machine's clock (`date`); set it, or run this on another server"
                    .to_owned()
            }
            _ => return error.into(),
        },
        _ => return error.into(),
    };
    anyhow::anyhow!("{error}; {remedy}")
}

fn check(path: &Path, now: Time) -> anyhow::Result<ExitCode> {
    let key = match key::load_any(path) {
        Ok(key) => key,
        Err(error) => {
            let error = anyhow::Error::from(error);
            eprintln!("error: {}", super::in_one_line(&error));
            return Ok(ExitCode::from(FAULTY));
        }
    };
    let warnings = key::warnings(path, &key, now);
    let mut out = String::new();
    for warning in &warnings {
        writeln!(out, "warning: {warning}.")?;
    }
    let part = if key.is_route_part() {
        "the balancer's part of the key"
    } else {
        "the key"
    };
    writeln!(
        out,
        "{} can be used: {part} of farm {:?}, with {} and {}.",
        path.display(),
        key.scope,
        crate::check::counted(key.generations.len(), "generation"),
        crate::check::counted(warnings.len(), "warning"),
    )?;
    print(&out)
}
