//! `sessile settings init`: writes a commented configuration to begin with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::cli::print;
use crate::config::Role;
use crate::settings::{Place, SettingsFile, template};

const EXAMPLES: &str = r"Examples:
  sessile settings init serve
  sessile settings init balance --output balance.toml

Each setting of the role is in the file, as a comment with its meaning and
default. Until lines are switched on, the file changes nothing.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The role that the process will have
    role: RoleName,
    /// For the systemd units in contrib/: paths in /var, and certificates from LoadCredential=
    #[arg(long)]
    systemd: bool,
    /// Write to this new file instead
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file of --output; a backup stays beside it
    #[arg(long, requires = "output")]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleName {
    /// A TLS server
    Serve,
    /// A TLS balancer, which never decrypts
    Balance,
}

pub(super) fn run(args: Args, now: SystemTime) -> anyhow::Result<ExitCode> {
    let role = match args.role {
        RoleName::Serve => Role::Serve,
        RoleName::Balance => Role::Balance,
    };
    let place = if args.systemd {
        Place::SystemdUnit
    } else {
        Place::Anywhere
    };
    let text = template(role, place);
    match args.output {
        None => print(&text),
        Some(path) => write(&path, &text, args.force, now)
            .with_context(|| format!("{} was not written", path.display())),
    }
}

fn write(path: &Path, text: &str, force: bool, now: SystemTime) -> anyhow::Result<ExitCode> {
    let file = SettingsFile::open(path)?;
    if file.exists() && !force {
        bail!("the file exists; --force replaces it, and leaves a backup beside it");
    }
    let change = file.replace(text, now)?;
    let next = format!(
        "Next: edit it, then run `sessile check {}`.\n",
        path.display()
    );
    print(&(super::outcome(path, &change) + &next))
}
