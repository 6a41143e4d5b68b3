//! The command line.

use std::path::PathBuf;

use sessile_bench::Result;

pub(super) const USAGE: &str = "usage: servers store|outages --sessile PATH [--rounds N] [--connections N] \
[--server-cpu N] [--client-cpu N] [--write FILE]";

pub(super) struct Options {
    pub(super) sessile: PathBuf,
    pub(super) rounds: usize,
    pub(super) connections: usize,
    pub(super) server_cpu: usize,
    pub(super) client_cpu: usize,
    /// Markdown file in which the results replace a section.
    pub(super) write: Option<PathBuf>,
}

impl Options {
    pub(super) fn read(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            sessile: PathBuf::new(),
            rounds: 5,
            connections: 2000,
            server_cpu: 0,
            client_cpu: 1,
            write: None,
        };
        while let Some(flag) = args.next() {
            let value = args.next().ok_or(USAGE)?;
            match flag.as_str() {
                "--sessile" => options.sessile = value.into(),
                "--rounds" => options.rounds = value.parse()?,
                "--connections" => options.connections = value.parse()?,
                "--server-cpu" => options.server_cpu = value.parse()?,
                "--client-cpu" => options.client_cpu = value.parse()?,
                "--write" => options.write = Some(value.into()),
                _ => return Err(USAGE.into()),
            }
        }
        if options.sessile.as_os_str().is_empty() || options.rounds == 0 {
            return Err(USAGE.into());
        }
        Ok(options)
    }
}
