//! Moves a key file forward from a command that ends at once, such as `sessile key export`.
//!
//! A server measures its uptime to check its clock. Commands measure the time between two of them instead: a
//! note beside the key file has the clocks of an earlier command.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sessile_proto::Time;
use sessile_proto::keys::FarmKey;
use sessile_proto::keys::clock_trust::{ClockTrust, Evidence, Moment};

use super::{KeyError, file, kernel};
use crate::state_file;

/// A value that the kernel chooses at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What a command did with a key file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// The file has lost the keys that no live ticket needs.
    Moved,
    /// All keys in the file can be needed.
    UpToDate,
    /// The file is this far behind, and nothing bears out the clock yet.
    Unconfirmed(Duration),
}

/// The clocks at an earlier command.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ClockNote {
    boot_id: String,
    /// Milliseconds since 1970, by the wall clock.
    wall_ms: u64,
    /// Milliseconds since the boot.
    boot_ms: u64,
}

/// Removes from a key file the keys that no live ticket needs. The trust in the clock limits how many are removed.
///
/// # Errors
/// If the file cannot be used or replaced.
pub fn catch_up(path: &Path, now: Time) -> Result<CatchUp, KeyError> {
    let mut outcome = CatchUp::UpToDate;
    file::update::<KeyError>(path, |key| {
        outcome = advance(path, key, now);
        Ok(outcome == CatchUp::Moved)
    })?;
    Ok(outcome)
}

/// Starts the measurement for [`catch_up`], if the folder of the key file can be written.
pub fn note_clock(path: &Path, now: Time) {
    if let Some(note) = ClockNote::new(now) {
        note.write(path);
    }
}

fn advance(path: &Path, key: &mut FarmKey, now: Time) -> CatchUp {
    let Some(current) = ClockNote::new(now) else {
        return outcome(false, key, now);
    };
    let Some(earlier) = ClockNote::read(path).filter(|earlier| earlier.is_before(&current)) else {
        current.write(path);
        return outcome(false, key, now);
    };
    let moment = current.moment_since(&earlier);
    let mut trust = ClockTrust::new(Time::from_unix_millis(earlier.wall_ms));
    let evidence = Evidence {
        now: moment,
        ntp: kernel::ntp_time(),
    };
    let permit = trust.permit(evidence, key.rotate);
    let has_moved = permit.advance(key);
    // After a jump of the wall clock, the measurement starts again.
    if has_moved || trust.has_jumped(moment) {
        current.write(path);
    }
    outcome(has_moved, key, now)
}

fn outcome(has_moved: bool, key: &FarmKey, now: Time) -> CatchUp {
    let lag = key.lag(now);
    if has_moved {
        CatchUp::Moved
    } else if lag < key.rotate {
        CatchUp::UpToDate
    } else {
        CatchUp::Unconfirmed(lag)
    }
}

impl ClockNote {
    /// The present clocks. `None` if the system does not say which boot this is.
    fn new(now: Time) -> Option<Self> {
        let boot_id = fs::read_to_string(BOOT_ID).ok()?;
        Some(Self {
            boot_id: boot_id.trim().to_owned(),
            wall_ms: now.unix_millis(),
            boot_ms: u64::try_from(kernel::since_boot().as_millis()).ok()?,
        })
    }

    fn read(key_file: &Path) -> Option<Self> {
        toml::from_str(&fs::read_to_string(note_path(key_file)).ok()?).ok()
    }

    fn write(&self, key_file: &Path) {
        // Without a note, the next command starts the measurement. So an error has no other effect.
        let _ = state_file::replace(&note_path(key_file), |file| {
            let text = toml::to_string(self).map_err(io::Error::other)?;
            file.write_all(text.as_bytes())
        });
    }

    /// True if the time between two notes can be measured.
    fn is_before(&self, other: &Self) -> bool {
        self.boot_id == other.boot_id && self.boot_ms <= other.boot_ms
    }

    /// This moment, with the uptime counted from an earlier note.
    const fn moment_since(&self, earlier: &Self) -> Moment {
        Moment {
            uptime: Duration::from_millis(self.boot_ms - earlier.boot_ms),
            wall: Time::from_unix_millis(self.wall_ms),
        }
    }
}

fn note_path(key_file: &Path) -> PathBuf {
    key_file.with_added_extension("clock")
}
