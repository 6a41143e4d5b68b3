//! A server claims its number in the store, and reports another running server with the same number.
//!
//! Two servers with one number confuse balancers and verdicts, but no connection fails. So a clash is only
//! reported.
//!
//! The claim is `token count name`. The token belongs to the process; the count rises while the process runs.
//! After the process has ended, its claim does not change any more, and expires.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{Opts, Registry};
use redis::{Cmd, Value};
use tokio::time::Instant;

use crate::live_gauge;
use crate::locks::locked;

/// How often a claim is refreshed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// After this time without a refresh, a claim expires.
const LIFETIME: Duration = Duration::from_secs(5);

/// Most bytes of another server's name in the log.
const MAX_LOGGED_NAME: usize = 255;

/// The claim of one server.
pub(super) struct NumberClaim {
    /// The key of the claim in the store.
    key: String,
    number: u32,
    /// The server's name.
    server: String,
    token: String,
    progress: Mutex<ClaimProgress>,
    /// True if another running server has this number.
    is_clash: Arc<AtomicBool>,
    /// True if the server drains, so that another process may claim the number.
    is_released: AtomicBool,
}

struct ClaimProgress {
    next_refresh: Instant,
    count: u64,
    /// The claim of another process that was last read.
    other: Option<Vec<u8>>,
}

/// The action for the claim in the store.
#[derive(Debug, PartialEq, Eq)]
enum ClaimAction {
    /// No process has the number.
    Claim,
    /// This process has the number.
    Refresh,
    /// Another process has the number.
    Leave,
}

impl NumberClaim {
    pub(super) fn new(
        scope: &str,
        number: u32,
        server: &str,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let mut token = [0; 8];
        // Without random bytes, two tokens can be equal, and their clash stays unnoticed. Nothing else
        // depends on the token.
        let _ = aws_lc_rs::rand::fill(&mut token);
        let is_clash = Arc::new(AtomicBool::new(false));
        let opts = Opts::new(
            "sessile_server_number_clash",
            "1 if another server of the farm has this server's number, else 0.",
        );
        let shown = Arc::clone(&is_clash);
        live_gauge::register(registry, opts.const_label("server", server), move || {
            usize::from(shown.load(Ordering::Relaxed))
        })?;
        Ok(Self {
            key: format!("sessile:{scope}:server:{number}"),
            number,
            server: server.to_owned(),
            token: format!("{:016x}", u64::from_be_bytes(token)),
            progress: Mutex::new(ClaimProgress {
                next_refresh: Instant::now(),
                count: 0,
                other: None,
            }),
            is_clash,
            is_released: AtomicBool::new(false),
        })
    }

    /// The command that reads the claim, if a refresh is due. Only one worker gets the command.
    pub(super) fn next_read(&self) -> Option<Cmd> {
        let now = Instant::now();
        let mut progress = locked(&self.progress);
        if now < progress.next_refresh || self.is_released.load(Ordering::Relaxed) {
            return None;
        }
        progress.next_refresh = now + REFRESH_INTERVAL;
        let mut command = redis::cmd("GET");
        command.arg(&self.key);
        Some(command)
    }

    /// The command that writes the claim. `found` is the store's answer to [`Self::next_read`].
    pub(super) fn next_write(&self, found: &Value) -> Option<Cmd> {
        let found = match found {
            Value::BulkString(value) => Some(value.as_slice()),
            _ => None,
        };
        let mut progress = locked(&self.progress);
        let condition = match self.decide(&mut progress, found) {
            ClaimAction::Claim => "NX",
            ClaimAction::Refresh => "XX",
            ClaimAction::Leave => return None,
        };
        progress.count += 1;
        let value = format!("{} {} {}", self.token, progress.count, self.server);
        let mut command = redis::cmd("SET");
        command.arg(&self.key).arg(value).arg(condition);
        command.arg("PX").arg(LIFETIME.as_millis() as u64);
        Some(command)
    }

    fn decide(&self, progress: &mut ClaimProgress, found: Option<&[u8]>) -> ClaimAction {
        let Some(found) = found else {
            self.clear_clash(progress);
            return ClaimAction::Claim;
        };
        let found_token = token(found);
        if found_token == self.token.as_bytes() {
            self.clear_clash(progress);
            return ClaimAction::Refresh;
        }
        let last = progress.other.replace(found.to_vec());
        // Since the last read, the other process has refreshed its claim, so it is running.
        if last.is_some_and(|last| token(&last) == found_token && last != found) {
            self.report_clash(found);
        }
        ClaimAction::Leave
    }

    fn report_clash(&self, found: &[u8]) {
        if self.is_clash.swap(true, Ordering::Relaxed) {
            return;
        }
        let name = found.splitn(3, |byte| *byte == b' ').nth(2);
        let name = name.unwrap_or_default();
        let other = String::from_utf8_lossy(&name[..name.len().min(MAX_LOGGED_NAME)]);
        tracing::error!(
            server = self.server,
            number = self.number,
            ?other,
            "another running server of the farm has this server's number: balancers cannot tell their tickets apart. \
             Give one of them another server.name or server.number"
        );
    }

    fn clear_clash(&self, progress: &mut ClaimProgress) {
        progress.other = None;
        if self.is_clash.swap(false, Ordering::Relaxed) {
            let (server, number) = (&self.server, self.number);
            tracing::info!(server, number, "no other server has this number any more");
        }
    }

    /// Stops refreshing the claim.
    pub(super) fn release(&self) {
        self.is_released.store(true, Ordering::Relaxed);
    }
}

fn token(claim: &[u8]) -> &[u8] {
    let mut words = claim.splitn(2, |byte| *byte == b' ');
    words.next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> NumberClaim {
        NumberClaim::new("farm", 7, "web1", &Registry::new()).unwrap()
    }

    /// The action for a claim in the store, and whether there is a clash then.
    fn decide(claim: &NumberClaim, found: Option<&str>) -> (ClaimAction, bool) {
        let mut progress = claim.progress.lock().unwrap();
        let action = claim.decide(&mut progress, found.map(str::as_bytes));
        (action, claim.is_clash.load(Ordering::Relaxed))
    }

    #[test]
    fn claims_a_free_number_and_refreshes_its_own_claim() {
        let claim = claim();
        assert_eq!(decide(&claim, None), (ClaimAction::Claim, false));
        let own = format!("{} 1 web1", claim.token);
        assert_eq!(decide(&claim, Some(&own)), (ClaimAction::Refresh, false));
    }

    #[test]
    fn waits_for_a_claim_that_is_not_refreshed_and_reports_no_clash() {
        let claim = claim();
        for _ in 0..3 {
            let other = Some("other 5 web1");
            assert_eq!(decide(&claim, other), (ClaimAction::Leave, false));
        }
        assert_eq!(decide(&claim, None), (ClaimAction::Claim, false));
    }

    #[test]
    fn reports_a_clash_while_another_process_refreshes_its_claim() {
        for name in ["web1", "web2"] {
            let claim = claim();
            for (count, is_clash) in [(5, false), (6, true), (6, true)] {
                let other = format!("other {count} {name}");
                assert_eq!(decide(&claim, Some(&other)), (ClaimAction::Leave, is_clash));
            }
            assert_eq!(decide(&claim, None), (ClaimAction::Claim, false));
        }
    }

    #[test]
    fn leaves_malformed_claims_alone() {
        let claim = claim();
        for found in ["", " ", "x", "x y", "\u{1b}[2J \n \u{fffd}"] {
            assert_eq!(
                decide(&claim, Some(found)).0,
                ClaimAction::Leave,
                "{found:?}"
            );
        }
    }
}
