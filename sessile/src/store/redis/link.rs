//! One worker thread's way to the store: a connection that many handshakes share, kept up by a task
//! of its own. A store that fails is left alone for a while, during which nobody waits for it; then
//! the task, not a client's handshake, finds out whether it is well again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::backoff::Backoff;
use super::breaker::Breaker;
use super::connect::{CONNECT_DEADLINE, Dialed, is_refusal};
use super::metrics::{Operation, Outcome};
use super::{Remote, Said};

/// How long a worker that starts waits for its first connection, so that the first clients after a
/// restart find the store.
const START_DEADLINE: Duration = Duration::from_millis(500);

/// How often a connection that is well is asked whether it still is, and what the farm has to say.
pub(in crate::store) const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long no session for single use is made where the store has refused one.
const SINGLE_USE_PAUSE: Duration = Duration::from_secs(5);

pub(in crate::store) struct Link {
    pub(super) remote: Arc<Remote>,
    /// While the store is taken for well.
    connection: RefCell<Option<Dialed>>,
    /// Which connection that is: what an earlier one did says nothing about it.
    serial: Cell<u64>,
    breaker: Cell<Breaker>,
    /// When it last refused what a session for single use needs.
    refused_single_use: Cell<Option<Instant>>,
    /// The connection came up, or is given up.
    changed: Notify,
}

/// Why there is no answer.
#[derive(Debug)]
enum Failure {
    Timeout,
    Store(redis::RedisError),
}

impl Link {
    pub(in crate::store) fn new(remote: Arc<Remote>) -> Self {
        Self {
            remote,
            connection: RefCell::new(None),
            serial: Cell::new(0),
            breaker: Cell::default(),
            refused_single_use: Cell::default(),
            changed: Notify::new(),
        }
    }

    /// `session.store-timeout`.
    pub(in crate::store) fn timeout(&self) -> Duration {
        self.remote.timeout
    }

    /// Whether the store is taken for well.
    fn is_up(&self) -> bool {
        self.connection.borrow().is_some()
    }

    /// Whether sessions for single use can be stored, as far as is known: a store that forbids their
    /// scripts is asked again now and then, and clients have other tickets in between.
    pub(in crate::store) fn keeps_single_use(&self) -> bool {
        let refused = self.refused_single_use.get();
        self.is_up() && refused.is_none_or(|then| then.elapsed() >= SINGLE_USE_PAUSE)
    }

    pub(super) fn note_single_use(&self, outcome: Outcome) {
        if outcome == Outcome::Refused {
            self.refused_single_use.set(Some(Instant::now()));
        }
    }

    /// Starts to connect, and waits a moment for that.
    pub(in crate::store) async fn start(self: &Rc<Self>) {
        self.remote.metrics.one_wanted();
        tokio::task::spawn_local(Rc::clone(self).keep());
        // Where it takes longer, handshakes are full until it is there.
        let _ = timeout(START_DEADLINE, self.changed.notified()).await;
    }

    /// Asks the store for as long as is granted, and counts what is no answer: once for each of the
    /// `many` things that the command asks for.
    pub(super) async fn ask(
        &self,
        operation: Operation,
        command: &Cmd,
        many: usize,
        patience: Duration,
    ) -> Result<Value, Outcome> {
        let begin = Instant::now();
        let answer = self.exchange(command, patience).await;
        match &answer {
            Ok(_) => self.remote.metrics.observe(operation, begin.elapsed()),
            Err(outcome) => self.remote.metrics.count(operation, *outcome, many),
        }
        answer
    }

    async fn exchange(&self, command: &Cmd, patience: Duration) -> Result<Value, Outcome> {
        let serial = self.serial.get();
        let dialed = self.connection.borrow().clone();
        let mut connection = dialed.ok_or(Outcome::Down)?.connection;
        let failure = match timeout(patience, connection.ask(command)).await {
            Ok(Ok(value)) => {
                self.breaker.take();
                return Ok(value);
            }
            Ok(Err(error)) => Failure::Store(error),
            Err(_) => Failure::Timeout,
        };
        let (outcome, ends) = match &failure {
            Failure::Timeout => (Outcome::Timeout, false),
            Failure::Store(error) if connection.is_ended_by(error) => (Outcome::Down, true),
            Failure::Store(error) => {
                if is_refusal(error) {
                    self.breaker.take();
                    self.say_refused(error);
                    return Err(Outcome::Refused);
                }
                (Outcome::Refused, false)
            }
        };
        if serial == self.serial.get() {
            let (breaker, is_enough) = self
                .breaker
                .get()
                .failed(Instant::now(), self.remote.timeout);
            self.breaker.set(breaker);
            if ends || is_enough {
                self.give_up(&failure);
            }
        }
        Err(outcome)
    }

    /// Once: the metrics count the others.
    fn say_refused(&self, error: &redis::RedisError) {
        if !self.remote.said_refused.swap(true, Ordering::Relaxed) {
            let server = &self.remote.server;
            tracing::warn!(server, %error, "the session store refuses a request; further refusals are counted");
        }
    }

    fn give_up(&self, failure: &Failure) {
        if self.connection.take().is_none() {
            return;
        }
        self.changed.notify_one();
        self.remote.metrics.one_less();
        // Once: a store that is lost is lost to all, and the metrics tell how many have it.
        if self.remote.says(Said::Unwell) {
            let server = &self.remote.server;
            match failure {
                Failure::Timeout => tracing::warn!(
                    server,
                    "the session store does not answer in time: full handshakes until it does"
                ),
                Failure::Store(error) => {
                    tracing::warn!(server, %error, "the session store is down: full handshakes until it is back");
                }
            }
        }
    }

    /// Connects, waits until that connection is given up, and begins again.
    async fn keep(self: Rc<Self>) {
        let mut backoff = Backoff::new();
        loop {
            match self.dial().await {
                Ok(dialed) => {
                    let since = Instant::now();
                    self.come_up(dialed);
                    self.until_given_up().await;
                    backoff.was_well(since.elapsed());
                }
                Err(failure) => {
                    let server = &self.remote.server;
                    let error = match failure {
                        Failure::Timeout => "no answer in time".to_owned(),
                        Failure::Store(error) => error.to_string(),
                    };
                    // Once: a store that stays away would fill the log.
                    if self.remote.says(Said::Unwell) {
                        tracing::warn!(
                            server,
                            error,
                            "the session store cannot be reached: full handshakes until it can"
                        );
                    } else {
                        tracing::debug!(server, error, "the session store is still down");
                    }
                }
            }
            let mut random = [0];
            // Without random bytes the servers come back together, which is no reason to stop.
            let _ = aws_lc_rs::rand::fill(&mut random);
            tokio::time::sleep(backoff.failed(random[0])).await;
        }
    }

    /// A connection over which the store has said what is forgotten, as quickly as handshakes need it to
    /// answer: before that is known, its sessions are of no use.
    async fn dial(&self) -> Result<Dialed, Failure> {
        let dialed = timeout(CONNECT_DEADLINE, self.remote.dialer.dial()).await;
        let mut dialed = dialed
            .map_err(|_| Failure::Timeout)?
            .map_err(Failure::Store)?;
        let rules = self.remote.rules.command();
        let answer = timeout(self.remote.timeout, dialed.connection.ask(&rules)).await;
        let answer = answer
            .map_err(|_| Failure::Timeout)?
            .map_err(Failure::Store)?;
        self.remote.rules.learn(&answer);
        Ok(dialed)
    }

    fn use_from_now_on(&self, dialed: Dialed) {
        self.breaker.take();
        self.serial.set(self.serial.get() + 1);
        *self.connection.borrow_mut() = Some(dialed);
    }

    fn come_up(&self, dialed: Dialed) {
        self.use_from_now_on(dialed);
        self.changed.notify_one();
        if self.remote.metrics.one_more() && self.remote.says(Said::Well) {
            let (server, store) = (&self.remote.server, &self.remote.shown);
            tracing::info!(server, store, "the session store answers");
        }
    }

    /// Asks now and then, so that a connection that ended is found by this task and not by a client.
    async fn until_given_up(&self) {
        let ping = redis::cmd("PING");
        while self.connection.borrow().is_some() {
            if timeout(HEARTBEAT, self.changed.notified()).await.is_err()
                && self.exchange(&ping, self.remote.timeout).await.is_ok()
            {
                self.follow_the_farm().await;
                self.renew().await;
            }
        }
    }

    /// Makes the connection anew where it would go on with certificates that have been renewed. Until the
    /// new one is there, and where it does not come about, the old one does.
    async fn renew(&self) {
        let Some(dialed) = self.connection.borrow().clone() else {
            return;
        };
        let Some(certificates) = self.remote.dialer.renewed(&dialed).await else {
            return;
        };
        match self.dial().await {
            Ok(dialed) if self.is_up() => self.use_from_now_on(dialed),
            // No answer for a moment says nothing about them.
            Err(Failure::Timeout) => {}
            _ => {
                // They are tried once.
                if let Some(dialed) = self.connection.borrow_mut().as_mut() {
                    dialed.certificates = Some(certificates);
                }
            }
        }
    }

    /// What the servers of a farm tell each other through the store.
    async fn follow_the_farm(&self) {
        let Remote {
            rules,
            claim,
            timeout,
            ..
        } = &*self.remote;
        if let Ok(answer) = self.exchange(&rules.command(), *timeout).await {
            rules.learn(&answer);
            if let Some(command) = rules.put_back() {
                let _ = self.exchange(&command, *timeout).await;
            }
        }
        self.compare_clocks().await;
        let Some(look) = claim.look() else {
            return;
        };
        if let Ok(found) = self.exchange(&look, *timeout).await
            && let Some(command) = claim.answer(&found)
        {
            let _ = self.exchange(&command, *timeout).await;
        }
    }

    /// Not through [`Self::exchange`]: a store that does not tell its time is none the worse.
    async fn compare_clocks(&self) {
        let clock = &self.remote.clock;
        let dialed = self.connection.borrow().clone();
        if let Some(mut dialed) = dialed
            && let Some(look) = clock.look()
            && let Ok(answer) = timeout(self.remote.timeout, dialed.connection.ask(&look)).await
        {
            clock.answer(answer);
        }
    }
}
