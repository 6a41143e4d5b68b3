//! `sessile check`: validates a configuration file and explains it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use crate::check::{self, Grade};
use crate::config::file;

/// The exit code for a configuration with errors.
const HAS_ERRORS: u8 = 2;

const EXAMPLES: &str = r"Examples:
  sessile check
  sessile check /etc/sessile/sessile.toml

Exit code: 0 if the file is right (warnings included), 2 if it is not.";

/// Validate a configuration file and say what it means.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The configuration file [default: $SESSILE_CONFIG, else sessile.toml in the working folder]
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// The same as FILE
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs `sessile check`.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path = file::path_or_default(args.file.or(args.config));
    let config = match file::load(&path) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return Ok(ExitCode::from(HAS_ERRORS));
        }
    };
    let mut findings = check::check(&config, SystemTime::now());
    findings.extend(check::config_file(&path, &config));
    let mut out = String::new();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    let count = |grade| findings.iter().filter(|found| found.grade == grade).count();
    let (errors, warnings) = (count(Grade::Error), count(Grade::Warning));
    let verdict = if errors > 0 {
        "is not right"
    } else {
        "is right"
    };
    writeln!(
        out,
        "\n{} {verdict}: {}, {}",
        path.display(),
        check::counted(errors, "error"),
        check::counted(warnings, "warning")
    )?;
    super::print(&out)?;
    Ok(if errors > 0 {
        ExitCode::from(HAS_ERRORS)
    } else {
        ExitCode::SUCCESS
    })
}
