//! `sessile settings`: reads, changes, backs up, restores, imports and exports settings.

mod init;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use clap::Subcommand;

use super::print;
use crate::config::file::{self, LoadError};
use crate::config::settings::{Setting, all, find};
use crate::config::{Config, reg};
use crate::settings::{self, Change, ImportError, SettingsFile};

const EXAMPLES: &str = r"Examples:
  sessile settings list
  sessile settings set session.lifetime 8h
  sessile settings import schannel.reg --config /etc/sessile/sessile.toml
  sessile settings restore

Every change is checked with the whole file first. It leaves a backup beside
the file (FILE.<time>.bak), which is never removed. It replaces the file in one
step and keeps comments and layout.";

/// Read and change the settings in a configuration file.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The configuration file [default: $SESSILE_CONFIG, else sessile.toml in the working folder]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Write a commented configuration to begin with: every setting of a role, with its default
    Init(init::Args),
    /// Show every setting: value, default, registry name, meaning and what it costs
    #[command(after_help = "Example:\n  sessile settings list --json")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one setting's value
    #[command(after_help = "Example:\n  sessile settings get session.lifetime")]
    Get {
        /// The setting's name, as in `settings list`
        name: String,
    },
    /// Set a setting to a value; makes the file if it does not exist
    #[command(after_help = "Example:\n  sessile settings set session.lifetime 8h")]
    Set {
        /// The setting's name, as in `settings list`
        name: String,
        /// The value, as in the file; text needs no quotes
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Remove a setting from the file: its default applies again
    #[command(after_help = "Example:\n  sessile settings unset session.lifetime")]
    Unset {
        /// The setting's name, as in `settings list`
        name: String,
    },
    /// Write a backup beside the file
    #[command(after_help = "Example:\n  sessile settings backup --config /etc/sessile.toml")]
    Backup,
    /// Restore a backup, by default the newest; the file that it replaces is backed up first
    #[command(after_help = "Example:\n  sessile settings restore --config /etc/sessile.toml")]
    Restore {
        /// The backup file [default: the newest one]
        #[arg(value_name = "BACKUP")]
        backup: Option<PathBuf>,
    },
    /// Import a registry export (.reg): SCHANNEL's cache size and times, HTTP's parameters
    #[command(after_help = "Example:\n  sessile settings import schannel.reg")]
    Import {
        /// The registry export
        #[arg(value_name = "FILE.reg")]
        file: PathBuf,
    },
    /// Write the settings to the standard output
    #[command(after_help = "Example:\n  sessile settings export --reg --output sessile.reg")]
    Export {
        /// In registry form; settings without one are listed in comments
        #[arg(long)]
        reg: bool,
        /// Write to this new file instead; registry form is written in UTF-16LE, as by regedit
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// Greatest width of the column of values in `list`.
const MAX_COLUMN: usize = 24;

/// Runs `sessile settings`.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let variable = std::env::var_os(file::PATH_VARIABLE);
    let config_is_given = args.config.is_some();
    let is_named = config_is_given || variable.is_some_and(|path| !path.is_empty());
    let path = file::path_or_default(args.config);
    let now = SystemTime::now();
    let unchanged = || format!("{} was not changed", path.display());
    match args.command {
        Command::Init(_) if config_is_given => {
            bail!("settings init reads no configuration; name the new file with --output")
        }
        Command::Init(init) => init::run(init, now),
        Command::List { json } => {
            let (text, config) = read(&path, is_named)?;
            if json {
                list_json(&text, &config)
            } else {
                list(&path, &text, &config)
            }
        }
        Command::Get { name } => get(find(&name)?, &read(&path, is_named)?.1),
        Command::Set { name, value } => {
            set(&path, find(&name)?, &value, now).with_context(unchanged)
        }
        Command::Unset { name } => unset(&path, find(&name)?, now).with_context(unchanged),
        Command::Backup => {
            let backup = SettingsFile::open(&path)?.backup(now)?;
            print(&format!("backup: {}\n", backup.display()))
        }
        Command::Restore { backup } => {
            let file = SettingsFile::open(&path)?;
            let restored = file.restore(backup.as_deref(), now);
            let (from, change) = restored.with_context(unchanged)?;
            let restored = format!("restored {} from {}\n", path.display(), from.display());
            print(&(restored + &outcome(&path, &change)))
        }
        Command::Import { file } => import(&path, &file, now).with_context(unchanged),
        Command::Export { reg, output } => {
            let (text, config) = read(&path, is_named)?;
            export(&text, &config, reg, output.as_deref())
        }
    }
}

/// The file's text, and its configuration. The default file need not exist.
fn read(path: &Path, is_named: bool) -> anyhow::Result<(String, Config)> {
    let text = match file::read(path) {
        Err(LoadError::Read { source, .. })
            if source.kind() == ErrorKind::NotFound && !is_named =>
        {
            eprintln!("{} does not exist: these are the defaults", path.display());
            String::new()
        }
        text => text?,
    };
    let config = file::parse(&text, path)?;
    Ok((text, config))
}

fn list(path: &Path, text: &str, config: &Config) -> anyhow::Result<ExitCode> {
    let value =
        |setting: &Setting| (setting.value)(config).map_or("(none)".to_owned(), |v| v.to_string());
    let widths = all().map(|setting| value(setting).chars().count());
    // Long values, such as paths, do not widen the column.
    let width = widths
        .filter(|&width| width <= MAX_COLUMN)
        .max()
        .unwrap_or_default();
    let mut out = format!("{} (* is set there)\n\n", path.display());
    for setting in all() {
        let is_set = settings::is_set(text, setting);
        let registry = setting
            .registry
            .map_or(String::new(), |value| match value.form.unit() {
                "" => format!(", registry: {value}"),
                unit => format!(", registry: {value} ({unit})"),
            });
        writeln!(
            out,
            "{} {:<28} {:<width$}  default: {}{registry}",
            if is_set { '*' } else { ' ' },
            setting.name,
            value(setting),
            setting.default()
        )?;
        writeln!(out, "      {}", setting.meaning)?;
        if let Some(cost) = (setting.cost)(config) {
            writeln!(out, "      costs: {cost}")?;
        }
    }
    print(&out)
}

fn list_json(text: &str, config: &Config) -> anyhow::Result<ExitCode> {
    let settings: serde_json::Value = all()
        .map(|setting| {
            serde_json::json!({
                "name": setting.name,
                "type": setting.kind.word(),
                "value": (setting.value)(config).map(|value| value.json()),
                "default": setting.default(),
                "set": settings::is_set(text, setting),
                "registry": setting.registry.map(|value| value.to_string()),
                "meaning": setting.meaning,
                "cost": (setting.cost)(config),
            })
        })
        .collect();
    print(&format!("{settings:#}\n"))
}

fn get(setting: &Setting, config: &Config) -> anyhow::Result<ExitCode> {
    match (setting.value)(config) {
        Some(value) => print(&format!("{value}\n")),
        None => {
            eprintln!(
                "{} is not set; its default: {}",
                setting.name,
                setting.default()
            );
            Ok(ExitCode::FAILURE)
        }
    }
}

fn set(path: &Path, setting: &Setting, text: &str, now: SystemTime) -> anyhow::Result<ExitCode> {
    let value = setting.parse(text)?;
    let file = SettingsFile::open(path)?;
    let change = file.set(setting, &value, now)?;
    let shown = settings::without_password(setting, &value.toml());
    let mut out = format!("{} = {shown}\n", setting.name);
    if let Some(cost) = (setting.cost)(&file::load_settings(path)?) {
        writeln!(out, "costs: {cost}")?;
    }
    print(&(out + &outcome(path, &change)))
}

fn unset(path: &Path, setting: &Setting, now: SystemTime) -> anyhow::Result<ExitCode> {
    let file = SettingsFile::open(path)?;
    let change = file.unset(setting, now)?;
    let out = format!("{} has its default: {}\n", setting.name, setting.default());
    print(&(out + &outcome(path, &change)))
}

fn import(path: &Path, from: &Path, now: SystemTime) -> anyhow::Result<ExitCode> {
    let mut bytes = Vec::new();
    let opened =
        File::open(from).with_context(|| format!("{} cannot be opened", from.display()))?;
    opened
        .take(reg::MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    let file = SettingsFile::open(path)?;
    let import = match settings::import(&file, &bytes, now) {
        Err(ImportError::NotAnExport(error)) => bail!("{}:{error}", from.display()),
        Err(ImportError::Unsuitable(mistakes)) => {
            let lines = mistakes
                .iter()
                .map(|line| format!("{}: {line}", from.display()));
            bail!("{}", lines.collect::<Vec<_>>().join("\n"))
        }
        import => import?,
    };
    let mut out = String::new();
    for line in &import.taken {
        writeln!(out, "took     {line}")?;
    }
    for line in &import.ignored {
        writeln!(out, "ignored  {line}")?;
    }
    if import.taken.is_empty() {
        writeln!(
            out,
            "{} has no value that corresponds to a setting of sessile",
            from.display()
        )?;
    }
    out.push_str(&outcome(path, &import.change));
    if !matches!(import.change, Change::None) {
        out.push_str(&next_steps(path, &file::load(path)?));
    }
    print(&out)
}

/// What a user does after an import.
fn next_steps(path: &Path, config: &Config) -> String {
    let path = path.display();
    if config.listeners.is_empty() {
        return format!(
            "next     {path} has no [[listener]] yet: add one, with a [[site]] or a [[balance.server]]\n\
             next     sessile check --config {path}\n"
        );
    }
    format!(
        "next     sessile check --config {path}\n\
         next     restart sessile, or reload it with SIGHUP: its log then names the settings that need a restart\n"
    )
}

fn export(
    text: &str,
    config: &Config,
    reg: bool,
    output: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let exported = if reg {
        settings::export_reg(text, config)
    } else {
        settings::export_toml(text)
    };
    let Some(path) = output else {
        return print(&exported);
    };
    let bytes = if reg {
        reg::to_utf16(&exported)
    } else {
        exported.into_bytes()
    };
    let written = File::create_new(path).and_then(|mut file| file.write_all(&bytes));
    written.with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn outcome(path: &Path, change: &Change) -> String {
    match change {
        Change::None => format!(
            "{} has that value already: nothing was changed\n",
            path.display()
        ),
        Change::Made => format!("made {}\n", path.display()),
        Change::Replaced { backup } => format!("backup: {}\n", backup.display()),
    }
}
