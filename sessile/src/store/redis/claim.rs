//! A server's claim to its number, for the other servers of the farm to see: a value that it refreshes
//! while it runs. Two servers with one number lead balancers and verdicts astray and fail no
//! connection, so that a clash is said and not acted upon.
//!
//! `token beat name`: the token is the process's own and the beat counts. A claim that another process
//! left behind beats no more, and ends by itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{Opts, Registry};
use redis::{Cmd, Value};
use tokio::time::Instant;

use crate::live_gauge;
use crate::locks::locked;

/// How often a claim is refreshed.
const BEAT: Duration = Duration::from_secs(1);

/// How long a claim stands that is not.
const LIFE: Duration = Duration::from_secs(5);

/// Most bytes of another server's name that the log repeats.
const MAX_SHOWN: usize = 255;

pub(super) struct Claim {
    /// Where it lies in the store.
    name: String,
    number: u32,
    /// The server's name.
    server: String,
    token: String,
    state: Mutex<State>,
    /// Whether another server has this number; 0 or 1.
    clash: Arc<AtomicUsize>,
    /// The server drains: its number is free for the next one.
    resigned: AtomicBool,
}

struct State {
    /// When the next beat is due.
    due: Instant,
    beat: u64,
    /// Another process's claim, when last looked at.
    other: Option<Vec<u8>>,
}

/// What to do about what lies in the store.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nobody has the number: claim it.
    Take,
    /// It is this server's: say that it still is.
    Refresh,
    /// Another process has it.
    Leave,
}

impl Claim {
    pub(super) fn new(
        scope: &str,
        number: u32,
        server: &str,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let mut token = [0; 8];
        // Without random bytes a clash may go unnoticed, and nothing else.
        let _ = aws_lc_rs::rand::fill(&mut token);
        let clash = Arc::new(AtomicUsize::new(0));
        let opts = Opts::new(
            "sessile_server_number_clash",
            "1 where another server of the farm has this server's number, else 0.",
        );
        let read = Arc::clone(&clash);
        live_gauge::register(registry, opts.const_label("server", server), move || {
            read.load(Ordering::Relaxed)
        })?;
        Ok(Self {
            name: format!("sessile:{scope}:server:{number}"),
            number,
            server: server.to_owned(),
            token: format!("{:016x}", u64::from_be_bytes(token)),
            state: Mutex::new(State {
                due: Instant::now(),
                beat: 0,
                other: None,
            }),
            clash,
            resigned: AtomicBool::new(false),
        })
    }

    /// What to ask the store, where a beat is due: one worker's turn.
    pub(super) fn look(&self) -> Option<Cmd> {
        let now = Instant::now();
        let mut state = locked(&self.state);
        if now < state.due || self.resigned.load(Ordering::Relaxed) {
            return None;
        }
        state.due = now + BEAT;
        let mut command = redis::cmd("GET");
        command.arg(&self.name);
        Some(command)
    }

    /// What to tell the store upon its answer.
    pub(super) fn answer(&self, found: &Value) -> Option<Cmd> {
        let found = match found {
            Value::BulkString(value) => Some(value.as_slice()),
            _ => None,
        };
        let mut state = locked(&self.state);
        let only_if = match self.judge(&mut state, found) {
            Step::Take => "NX",
            Step::Refresh => "XX",
            Step::Leave => return None,
        };
        state.beat += 1;
        let value = format!("{} {} {}", self.token, state.beat, self.server);
        let mut command = redis::cmd("SET");
        command.arg(&self.name).arg(value).arg(only_if);
        command.arg("PX").arg(LIFE.as_millis() as u64);
        Some(command)
    }

    fn judge(&self, state: &mut State, found: Option<&[u8]>) -> Step {
        let Some(found) = found else {
            self.has_no_rival(state);
            return Step::Take;
        };
        let token = token(found);
        if token == self.token.as_bytes() {
            self.has_no_rival(state);
            return Step::Refresh;
        }
        let before = state.other.replace(found.to_vec());
        // The same process has been there again: it is alive.
        if before.is_some_and(|before| self::token(&before) == token && before != found) {
            self.has_a_rival(found);
        }
        Step::Leave
    }

    fn has_a_rival(&self, found: &[u8]) {
        if self.clash.swap(1, Ordering::Relaxed) == 1 {
            return;
        }
        let other = found.splitn(3, |byte| *byte == b' ').nth(2);
        let other = other.unwrap_or_default();
        let other = String::from_utf8_lossy(&other[..other.len().min(MAX_SHOWN)]);
        tracing::error!(
            server = self.server,
            number = self.number,
            ?other,
            "another running server of the farm has this server's number: balancers cannot tell their tickets apart. \
             Give one of them another server.name or server.number"
        );
    }

    fn has_no_rival(&self, state: &mut State) {
        state.other = None;
        if self.clash.swap(0, Ordering::Relaxed) == 1 {
            let (server, number) = (&self.server, self.number);
            tracing::info!(server, number, "no other server has this number any more");
        }
    }

    /// Claims nothing any more.
    pub(super) fn resign(&self) {
        self.resigned.store(true, Ordering::Relaxed);
    }
}

fn token(claim: &[u8]) -> &[u8] {
    let mut words = claim.splitn(2, |byte| *byte == b' ');
    words.next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(name: &str) -> Claim {
        Claim::new("farm", 7, name, &Registry::new()).unwrap()
    }

    /// What a claim does about a value, and whether it sees a clash then.
    fn judged(claim: &Claim, found: Option<&str>) -> (Step, usize) {
        let mut state = claim.state.lock().unwrap();
        let step = claim.judge(&mut state, found.map(str::as_bytes));
        (step, claim.clash.load(Ordering::Relaxed))
    }

    #[test]
    fn a_free_number_is_taken_and_kept() {
        let claim = claim("web1");
        assert_eq!(judged(&claim, None), (Step::Take, 0));
        let mine = format!("{} 1 web1", claim.token);
        assert_eq!(judged(&claim, Some(&mine)), (Step::Refresh, 0));
    }

    #[test]
    fn a_claim_that_beats_no_more_is_waited_for_and_is_no_clash() {
        let claim = claim("web1");
        for _ in 0..3 {
            assert_eq!(judged(&claim, Some("other 5 web1")), (Step::Leave, 0));
        }
        assert_eq!(judged(&claim, None), (Step::Take, 0));
    }

    #[test]
    fn a_claim_that_another_process_refreshes_is_a_clash_until_it_ends() {
        for name in ["web1", "web2"] {
            let claim = claim("web1");
            let beat = |beat| format!("other {beat} {name}");
            assert_eq!(judged(&claim, Some(&beat(5))), (Step::Leave, 0));
            assert_eq!(judged(&claim, Some(&beat(6))), (Step::Leave, 1));
            assert_eq!(judged(&claim, Some(&beat(6))), (Step::Leave, 1));
            assert_eq!(judged(&claim, None), (Step::Take, 0));
        }
    }

    #[test]
    fn what_nobody_of_ours_wrote_does_no_harm() {
        let claim = claim("web1");
        for found in ["", " ", "x", "x y", "\u{1b}[2J \n \u{fffd}"] {
            assert_eq!(judged(&claim, Some(found)).0, Step::Leave, "{found:?}");
        }
    }
}
