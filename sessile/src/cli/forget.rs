//! `sessile forget`: ends sessions before their time, on every server of a farm, through its store.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sessile_proto::Time;
use sessile_proto::keys::Schedule;
use sessile_proto::ticket::{Extent, Forgotten, MAX_MARKS};

use crate::clock::{self, rfc3339};
use crate::config::{self, Config, Key, Site, StoreUrl, Whose};
use crate::{key, serve, store};

const EXAMPLES: &str = r"Examples:
  sessile forget --config /etc/sessile.toml --site shop.example    its certificate's key was stolen
  sessile forget --config /etc/sessile.toml --server web2          the machine was broken into
  sessile forget --config /etc/sessile.toml --everything --before 2026-11-24T10:00:00Z

Their clients pay one full handshake, with the verdict full/revoked; what they make then resumes.
A farm without a shared store says the same in each server's file, with session.forget.
Where the farm key was stolen this is not enough: `sessile key rotate --compromised`.";

/// How far the clock of a server may be ahead whose sessions are to be forgotten; protocol and key file
/// allow as much.
const MAX_AHEAD: Duration = Duration::from_secs(3600);

/// With so many marks, a farm is about to run out of those that are kept apart.
const MANY: usize = 200;

/// Forget sessions of the farm, through its shared store
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The configuration file of one of the farm's servers [default: $SESSILE_CONFIG, else sessile.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    what: What,
    /// Sessions whose full handshake was before then, an hour ahead at most [default: now]
    #[arg(long, value_name = "TIME", value_parser = point_in_time)]
    before: Option<Time>,
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct What {
    /// Those of the site with this first name; "*" is the site without names
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
    /// Those made by the server of this name or number
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// All of them
    #[arg(long)]
    everything: bool,
}

fn point_in_time(text: &str) -> Result<Time, String> {
    let time = clock::parse_rfc3339(text);
    time.ok_or_else(|| "not a time in UTC, as in 2026-11-24T10:00:00Z".to_owned())
}

/// Runs `sessile forget`.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::start_log(tracing::level_filters::LevelFilter::ERROR);
    let path = config::file::path_or_default(args.config);
    let config = config::file::load(&path)?;
    let now = clock::now();
    let before = args.before.unwrap_or(now);
    if before > now.plus(MAX_AHEAD) {
        bail!(
            "--before {}: that is still to come by this machine's clock, by more than the hour that a server's clock may \
             be ahead, and would forget sessions as they are made",
            rfc3339(before)
        );
    }
    let whose = whose(&args.what, &config)?;
    let StoreUrl::Redis(redis) = &config.session.store else {
        bail!(
            "{}: session.store is \"memory\", so there is no store to tell the farm's servers; put \
             forget = [{}] under [session] in each server's file instead",
            path.display(),
            // Where it is read, it has to have been.
            entry(&whose, before.min(now))
        );
    };
    let Key::File(file) = &config.key else {
        bail!(
            "{}: key.file is \"none\", so no other server can read what is said under it",
            path.display()
        );
    };
    let key = key::load(file)?;
    let schedule = Schedule::derive(&key, now);
    let extent = serve::extent(&whose, &config, &key.scope);
    let farm = (key.scope.as_str(), &schedule);
    let marks = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(store::forget(redis, farm, extent, before))?;
    say(&whose, (extent, before), &marks, &redis.to_string())
}

fn whose(what: &What, config: &Config) -> anyhow::Result<Whose> {
    if let Some(server) = &what.server {
        let number = server.parse().ok().filter(|n| *n <= config::MAX_NUMBER);
        return Ok(number.map_or_else(|| Whose::Server(server.clone()), Whose::Number));
    }
    let Some(site) = &what.site else {
        return Ok(Whose::Everyones);
    };
    let name = site.to_ascii_lowercase();
    let found = Site::called(&name, &config.sites).with_context(|| {
        let known: Vec<_> = config.sites.iter().map(Site::title).collect();
        match config::file::nearest(&name, known.iter().copied()) {
            Some(nearest) => {
                format!("--site {site}: no site has that first name; did you mean {nearest}?")
            }
            None => format!(
                "--site {site}: no site has that first name; known here: {}",
                known.join(", ")
            ),
        }
    })?;
    Ok(found.whose())
}

/// The same, as the configuration file has it.
fn entry(whose: &Whose, before: Time) -> String {
    let before = format!("before = \"{}\"", rfc3339(before));
    match whose {
        Whose::Everyones => format!("{{ {before} }}"),
        Whose::Site(name) => format!("{{ site = \"{}\", {before} }}", title(name)),
        Whose::Server(name) => format!("{{ server = {name:?}, {before} }}"),
        Whose::Number(number) => format!("{{ server = {number}, {before} }}"),
    }
}

fn title(first_name: &str) -> &str {
    match first_name {
        "" => "*",
        name => name,
    }
}

fn say(
    whose: &Whose,
    (extent, before): (Extent, Time),
    marks: &Forgotten,
    store: &str,
) -> anyhow::Result<ExitCode> {
    let sessions = match whose {
        Whose::Everyones => "every session".to_owned(),
        Whose::Site(name) => format!("sessions of site {}", title(name)),
        Whose::Server(name) => format!("sessions made by server {name}"),
        Whose::Number(number) => format!("sessions made by the server of number {number}"),
    };
    let within = humantime::format_duration(store::FORGETS_WITHIN);
    let mut text = format!(
        "Forgotten: {sessions} from before {}.\n\
         Servers that reach {store} know within {within}; their clients pay one full handshake (full/revoked).\n\
         A server that does not reach it knows when it does again, or from session.forget in its file.\n",
        rfc3339(before)
    );
    if before > clock::now() {
        text.push_str(
            "Until then, no session of these resumes: what is made meanwhile is forgotten, too.\n",
        );
    }
    if let (Whose::Server(name), Extent::Server(number)) = (whose, extent) {
        text.push_str(&format!(
            "{name} stands for number {number}; whether a server has that name or number is not known here.\n"
        ));
    }
    let apart = marks.marks().count();
    if apart >= MANY {
        text.push_str(&format!(
            "The farm has {apart} marks; over {MAX_MARKS}, the oldest becomes one for everything.\n"
        ));
    }
    for (known, time) in marks.marks() {
        let covers = known == Extent::Everything || known == extent;
        if covers && (known, time) != (extent, before) {
            let time = rfc3339(time);
            text.push_str(&match known {
                Extent::Everything => {
                    format!("Every session from before {time} is forgotten, too.\n")
                }
                _ => format!("It was asked for before, and for later: {time} counts.\n"),
            });
        }
    }
    let written = std::io::stdout().write_all(text.as_bytes());
    written.context("the standard output")?;
    Ok(ExitCode::SUCCESS)
}
