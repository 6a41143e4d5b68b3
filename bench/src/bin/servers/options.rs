//! The command line.

use std::path::PathBuf;

use sessile_bench::Result;

use super::model::{ConnectionKind, Software};

const USAGE: &str = "usage: servers [store | outages] --sessile PATH [--rounds N] [--connections N] [--server-cpu N] \
[--client-cpu N] [--only SERVER] [--kind KIND] [--write FILE]";

pub(super) struct Options {
    pub(super) sessile: PathBuf,
    pub(super) rounds: usize,
    pub(super) connections: usize,
    pub(super) server_cpu: usize,
    pub(super) client_cpu: usize,
    /// Markdown file in which the results replace a section.
    pub(super) write: Option<PathBuf>,
    only: Option<Software>,
    kind: Option<ConnectionKind>,
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
            only: None,
            kind: None,
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
                "--only" => {
                    let found = Software::ALL.into_iter().find(|s| s.to_string() == value);
                    options.only = Some(found.ok_or("--only: sessile, nginx, HAProxy or bare")?);
                }
                "--kind" => {
                    let found = ConnectionKind::ALL
                        .into_iter()
                        .find(|kind| kind.as_str() == value);
                    options.kind = Some(found.ok_or("--kind: full, psk, session-id or ticket")?);
                }
                _ => return Err(USAGE.into()),
            }
        }
        if options.sessile.as_os_str().is_empty() || options.rounds == 0 {
            return Err(USAGE.into());
        }
        Ok(options)
    }

    pub(super) fn software(&self) -> Vec<Software> {
        self.only
            .map_or_else(|| Software::ALL.to_vec(), |only| vec![only])
    }

    pub(super) fn kinds(&self) -> Vec<ConnectionKind> {
        self.kind
            .map_or_else(|| ConnectionKind::ALL.to_vec(), |only| vec![only])
    }
}
