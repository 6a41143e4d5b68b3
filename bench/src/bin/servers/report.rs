//! What was measured: the date, the machine and the versions.

use std::fs;

use sessile_bench::output_of;

use super::model::Software;
use super::options::Options;

/// The date, the machine and the versions of a measurement.
pub(super) fn measured(options: &Options, software: &[Software]) -> String {
    let versions: Vec<_> = software
        .iter()
        .map(|software| software.version(options))
        .collect();
    format!(
        "Measured on {} ({}, Linux {}): {}.",
        output_of("date", &["+%F"]),
        processor(),
        output_of("uname", &["-r"]),
        versions.join("; "),
    )
}

fn processor() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    information
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or("unknown processor", |(_, model)| model)
        .to_owned()
}
