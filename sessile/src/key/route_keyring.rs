//! A balancer's key: the route chains of a whole key or of its exported part. With these chains, the
//! balancer reads labels, but it opens no ticket and never writes the file.

use std::path::Path;
use std::sync::{Arc, Mutex};

use sessile_proto::Time;
use sessile_proto::keys::{FarmKey, RouteKeys};

use super::{FileError, file};
use crate::clock;
use crate::locks::locked;

/// Seconds for which derived route keys are used.
///
/// Every day begins with a new step, so the keys of a new day are derived in time. The end of a
/// generation is noticed after one step at most.
const DERIVE_STEP: u64 = 60;

/// The route keys, shared by the threads of a balancer.
pub struct RouteKeyring {
    state: Mutex<DerivedRoutes>,
}

struct DerivedRoutes {
    part: FarmKey,
    /// The step, counted from the Unix epoch, for which `keys` was derived.
    step: u64,
    keys: Arc<RouteKeys>,
}

impl DerivedRoutes {
    fn new(key: &FarmKey, now: Time) -> Self {
        // A balancer must not hold ticket chains, even if the file has them.
        let part = key.route_part(now);
        let keys = Arc::new(RouteKeys::derive(&part, now));
        if keys.is_empty() {
            log_misfit(now);
        }
        Self {
            step: now.unix_secs() / DERIVE_STEP,
            keys,
            part,
        }
    }

    /// Derives the keys again. Logs if the clock leaves the time of the key, or comes back into it.
    fn derive(&mut self, now: Time) {
        let could_read = !self.keys.is_empty();
        self.keys = Arc::new(RouteKeys::derive(&self.part, now));
        if could_read && self.keys.is_empty() {
            log_misfit(now);
        } else if !could_read && !self.keys.is_empty() {
            tracing::info!(
                "the farm key has a route key for the time of this machine's clock again: ticket labels are read again"
            );
        }
    }
}

fn log_misfit(now: Time) {
    tracing::error!(
        clock = %clock::rfc3339(now),
        "no ticket label is read, because the farm key has no route key for the time of this machine's clock: set the \
         clock right, or copy the key from a server again"
    );
}

impl RouteKeyring {
    /// Reads a key file, whole or the route part.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let key = file::load_any(path)?;
        Ok(Self {
            state: Mutex::new(DerivedRoutes::new(&key, clock::now())),
        })
    }

    /// The route keys that can be live at `now`.
    #[must_use]
    pub fn keys(&self, now: Time) -> Arc<RouteKeys> {
        let mut state = locked(&self.state);
        let step = now.unix_secs() / DERIVE_STEP;
        if state.step != step {
            state.step = step;
            state.derive(now);
        }
        Arc::clone(&state.keys)
    }

    /// The farm's name.
    #[must_use]
    pub fn scope(&self) -> String {
        locked(&self.state).part.scope.clone()
    }
}

#[cfg(test)]
mod tests {
    use sessile_proto::ticket::{self, Class, Issuer};

    use super::*;
    use crate::key::edit::fresh;
    use crate::key::{Rotation, rotate};

    #[test]
    fn a_balancer_reads_the_labels_that_servers_write() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, part) = (
            folder.path().join("farm.key"),
            folder.path().join("route.key"),
        );
        let now = clock::now();
        let key = fresh(super::super::DEFAULT_MAX_LIFETIME).unwrap();
        file::write_new(&whole, &key).unwrap();
        let export = |key: &FarmKey| {
            crate::key::write_route_part(&part, key, now).unwrap();
        };
        export(&key);
        let keyrings = [&whole, &part].map(|path| RouteKeyring::open(path).unwrap());
        let issuer = Issuer {
            server: 7,
            incarnation: 1,
        };
        let label = |key: &FarmKey| {
            let schedule = sessile_proto::keys::Schedule::derive(key, now);
            ticket::issue(&schedule, issuer, Class::Stored, [3; 16]).unwrap()
        };
        let reads = |keyring: &RouteKeyring, token: &[u8]| {
            ticket::read_label(&keyring.keys(now), token).map(|(_, label)| label.server)
        };
        for keyring in &keyrings {
            assert_eq!(reads(keyring, &label(&key)), Some(7));
        }
        let (changed, _) = rotate(&whole, Rotation::Replace, now).unwrap();
        export(&changed);
        for keyring in &keyrings {
            assert_eq!(reads(keyring, &label(&changed)), None);
        }
        for path in [&whole, &part] {
            let keyring = RouteKeyring::open(path).unwrap();
            assert_eq!(reads(&keyring, &label(&changed)), Some(7));
            assert_eq!(reads(&keyring, &label(&key)), None);
        }
    }
}
