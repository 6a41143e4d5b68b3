//! `sessile forget`: ends sessions early on all servers of a farm, through the shared store.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sessile_proto::Time;
use sessile_proto::keys::Schedule;
use sessile_proto::ticket::{ForgetRules, ForgetScope, MAX_FORGET_RULES};

use crate::clock::{self, rfc3339};
use crate::config::store::Redis;
use crate::config::{self, Config, ForgetTarget, Key, Site, StoreUrl};
use crate::{key, serve, store};

const EXAMPLES: &str = r"Examples:
  sessile forget --config /etc/sessile.toml --site shop.example
  sessile forget --config /etc/sessile.toml --server web2
  sessile forget --everything --before 2026-11-24T10:00:00Z

Use --site if a certificate's key was stolen, and --server if a machine was
broken into.

Their clients pay one full handshake (full/revoked). Their new sessions resume.
Without a shared session store, set session.forget in each server's file.
If the farm key was stolen, also run `sessile key rotate --compromised`.";

/// Maximum time that `--before` may be in the future. The clock of a server may be ahead of this
/// machine's clock by this time.
const MAX_AHEAD: Duration = Duration::from_secs(3600);

/// From this number of rules on, the summary warns about [`MAX_FORGET_RULES`].
const MANY_RULES: usize = 200;

/// Forget sessions of the farm, through its shared store
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The configuration file of one of the farm's servers [default: $SESSILE_CONFIG, else sessile.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    what: What,
    /// Forget sessions whose full handshake was before TIME; at most 1h ahead [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    before: Option<Time>,
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct What {
    /// Forget the sessions of the site with this first name; "*" is the site without names
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
    /// Forget the sessions made by the server with this name or number
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Forget all sessions
    #[arg(long)]
    everything: bool,
}

fn parse_time(text: &str) -> Result<Time, &'static str> {
    clock::parse_rfc3339(text).ok_or("not a time in UTC, as in 2026-11-24T10:00:00Z")
}

/// Runs `sessile forget`.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::start_log(tracing::level_filters::LevelFilter::ERROR);
    let path = config::file::path_or_default(args.config);
    let config = config::file::load_settings(&path)?;
    let now = clock::now();
    let before = args.before.unwrap_or(now);
    if before > now.plus(MAX_AHEAD) {
        bail!(
            "--before {}: this time is more than 1h ahead of this machine's clock, so new sessions would be \
             forgotten too; give an earlier time",
            rfc3339(before)
        );
    }
    let target = target(&args.what, &config)?;
    let StoreUrl::Redis(redis) = &config.session.store else {
        bail!(
            "{}: session.store is \"memory\", so the servers share no session store; put \
             forget = [{}] under [session] in each server's file instead",
            path.display(),
            // The configuration accepts no time in the future.
            config_entry(&target, before.min(now))
        );
    };
    let Key::File(file) = &config.key else {
        bail!(
            "{}: key.file is \"none\", so no other server can read the rule; set key.file to the farm key",
            path.display()
        );
    };
    let key = key::load(file)?;
    let schedule = Schedule::derive(&key, now);
    let forget_scope = serve::forget_scope(&target, &config, &key.scope);
    let forget = store::forget(redis, &key.scope, &schedule, forget_scope, before);
    let rules = super::runtime()?.block_on(forget)?;
    super::print(&summary(&target, forget_scope, before, &rules, redis))
}

fn target(what: &What, config: &Config) -> anyhow::Result<ForgetTarget> {
    if let Some(server) = &what.server {
        let number = server.parse().ok().filter(|n| *n <= config::MAX_NUMBER);
        return Ok(number.map_or_else(
            || ForgetTarget::Server(server.clone()),
            ForgetTarget::Number,
        ));
    }
    let Some(site) = &what.site else {
        return Ok(ForgetTarget::Everything);
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
    Ok(found.target())
}

/// The entry of `session.forget` that forgets these sessions, for a configuration file.
fn config_entry(target: &ForgetTarget, before: Time) -> String {
    let before = format!("before = \"{}\"", rfc3339(before));
    match target {
        ForgetTarget::Everything => format!("{{ {before} }}"),
        ForgetTarget::Site(name) => format!("{{ site = \"{}\", {before} }}", title(name)),
        ForgetTarget::Server(name) => format!("{{ server = {name:?}, {before} }}"),
        ForgetTarget::Number(number) => format!("{{ server = {number}, {before} }}"),
    }
}

fn title(first_name: &str) -> &str {
    match first_name {
        "" => "*",
        name => name,
    }
}

/// The output of the command after it has written the rule to the store. `rules` are all rules of the
/// farm.
fn summary(
    target: &ForgetTarget,
    scope: ForgetScope,
    before: Time,
    rules: &ForgetRules,
    store: &Redis,
) -> String {
    let sessions = match target {
        ForgetTarget::Everything => "every session".to_owned(),
        ForgetTarget::Site(name) => format!("sessions of site {}", title(name)),
        ForgetTarget::Server(name) => format!("sessions made by server {name}"),
        ForgetTarget::Number(number) => format!("sessions made by server number {number}"),
    };
    let within = humantime::format_duration(store::FORGETS_WITHIN);
    let mut text = format!(
        "Forgotten: {sessions} from before {}.\n\
         Servers that reach {store} know within {within}; their clients pay one full handshake (full/revoked).\n\
         A server that cannot reach it applies this when it reaches it again, or from session.forget in its \
         file.\n",
        rfc3339(before)
    );
    if before > clock::now() {
        text.push_str("Until then, sessions that clients make are forgotten, too.\n");
    }
    if let (ForgetTarget::Server(name), ForgetScope::Server(number)) = (target, scope) {
        text.push_str(&format!(
            "{name} is server number {number}; this command cannot tell if a server has that name or number.\n"
        ));
    }
    let count = rules.iter().count();
    if count >= MANY_RULES {
        text.push_str(&format!(
            "The farm has {count} forget rules; over {MAX_FORGET_RULES}, the oldest becomes a rule for all \
             sessions.\n"
        ));
    }
    let others = rules.iter().filter(|other| *other != (scope, before));
    for (other, time) in others {
        let time = rfc3339(time);
        if other == ForgetScope::Everything {
            text.push_str(&format!(
                "Every session from before {time} is forgotten, too.\n"
            ));
        } else if other == scope {
            text.push_str(&format!(
                "An earlier command named a later time, which stays in force: {time}.\n"
            ));
        }
    }
    text
}
