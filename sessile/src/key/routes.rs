//! A balancer's key: route chains only, from the part that was exported for it or from a whole
//! key. Reads labels, opens no ticket, and never writes the file.

use std::path::Path;
use std::sync::{Arc, Mutex};

use sessile_proto::Time;
use sessile_proto::keys::{FarmKey, RouteKeys};

use super::ring::locked;
use super::{FileError, file};
use crate::clock;

/// Route keys as the threads of a balancer share them.
pub struct RouteRing {
    state: Mutex<State>,
}

struct State {
    part: FarmKey,
    /// For the minute since the Unix epoch in which they were derived.
    derived: (u64, Arc<RouteKeys>),
}

/// Seconds for which derived route keys are used. Days begin with a minute; that a generation ended
/// is noticed within one.
const FRESH: u64 = 60;

impl State {
    fn new(key: &FarmKey, now: Time) -> Self {
        // Ticket chains of a whole key are dropped, and wiped, here.
        let part = key.route_part(now);
        let keys = Arc::new(RouteKeys::derive(&part, now));
        Self {
            part,
            derived: (now.unix_secs() / FRESH, keys),
        }
    }
}

impl RouteRing {
    /// Reads a key file, whole or the route part.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let key = file::load_any(path)?;
        Ok(Self {
            state: Mutex::new(State::new(&key, clock::now())),
        })
    }

    /// The route keys that can be live at `now`.
    #[must_use]
    pub fn keys(&self, now: Time) -> Arc<RouteKeys> {
        let mut state = locked(&self.state);
        let minute = now.unix_secs() / FRESH;
        if state.derived.0 != minute {
            state.derived = (minute, Arc::new(RouteKeys::derive(&state.part, now)));
        }
        Arc::clone(&state.derived.1)
    }

    /// The farm's name.
    #[must_use]
    pub fn scope(&self) -> String {
        locked(&self.state).part.scope.clone()
    }
}

impl std::fmt::Debug for RouteRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteRing").finish_non_exhaustive()
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
        let rings = [&whole, &part].map(|path| RouteRing::open(path).unwrap());
        let issuer = Issuer {
            server: 7,
            incarnation: 1,
        };
        let label = |key: &FarmKey| {
            let schedule = sessile_proto::keys::Schedule::derive(key, now);
            ticket::issue(&schedule, issuer, Class::Stored, [3; 16]).unwrap()
        };
        let reads = |ring: &RouteRing, token: &[u8]| {
            ticket::read_label(&ring.keys(now), token).map(|(_, label)| label.server)
        };
        for ring in &rings {
            assert_eq!(reads(ring, &label(&key)), Some(7));
        }
        let (changed, _) = rotate(&whole, Rotation::Replace, now).unwrap();
        export(&changed);
        for ring in &rings {
            assert_eq!(reads(ring, &label(&changed)), None);
        }
        for path in [&whole, &part] {
            let ring = RouteRing::open(path).unwrap();
            assert_eq!(reads(&ring, &label(&changed)), Some(7));
            assert_eq!(reads(&ring, &label(&key)), None);
        }
    }
}
