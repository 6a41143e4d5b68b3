//! The connection of one worker thread to the store, which many handshakes share.
//!
//! A task keeps the connection up. While the store is down, handshakes do not wait; the task alone tries again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::circuit_breaker::{Backoff, CircuitBreaker};
use super::connect::{HEARTBEAT, OpenConnection, is_refusal, within};
use super::error::RequestError;
use super::metrics::{StoreOperation, StoreOutcome};
use super::remote::{LoggedState, RemoteStore};
use super::transport::CONNECT_DEADLINE;
use crate::store::context::StoreContext;

/// How long a worker waits for its first connection, so that the first clients after a restart find the store.
const START_DEADLINE: Duration = Duration::from_millis(500);

/// How long the server stores no single-use session after the store refused one.
const SINGLE_USE_PAUSE: Duration = Duration::from_secs(5);

pub(in crate::store) struct WorkerConnection {
    pub(super) remote: Arc<RemoteStore>,
    /// `None` while the store is down.
    connection: RefCell<Option<OpenConnection>>,
    /// Rises with each connection. A request that fails on an earlier connection does not count against the
    /// current connection.
    generation: Cell<u64>,
    breaker: RefCell<CircuitBreaker>,
    /// When the store last refused a single-use session.
    single_use_refused: Cell<Option<Instant>>,
    /// Notified when a connection is made or given up.
    changed: Notify,
}

impl WorkerConnection {
    pub(in crate::store) fn new(remote: Arc<RemoteStore>) -> Self {
        Self {
            remote,
            connection: RefCell::new(None),
            generation: Cell::new(0),
            breaker: RefCell::default(),
            single_use_refused: Cell::default(),
            changed: Notify::new(),
        }
    }

    /// `session.store-timeout`.
    pub(in crate::store) fn timeout(&self) -> Duration {
        self.remote.timeout
    }

    fn is_up(&self) -> bool {
        self.connection.borrow().is_some()
    }

    /// True if single-use sessions can probably be stored now.
    pub(in crate::store) fn can_store_single_use(&self) -> bool {
        let refused = self.single_use_refused.get();
        // After the pause, one request finds out whether the store still forbids the scripts.
        self.is_up() && refused.is_none_or(|then| then.elapsed() >= SINGLE_USE_PAUSE)
    }

    /// Notes the failure of a request for a single-use session.
    pub(super) fn record_single_use_failure(&self, outcome: StoreOutcome) {
        if outcome == StoreOutcome::Refused {
            self.single_use_refused.set(Some(Instant::now()));
        }
    }

    /// Starts the task that connects, and waits a moment for the connection.
    pub(in crate::store) async fn start(self: &Rc<Self>) {
        self.remote.metrics.add_worker();
        tokio::task::spawn_local(Rc::clone(self).keep_connected());
        // After the deadline the worker starts without a connection. Until it has one, it finds no session in the
        // store, and those clients get a full handshake.
        let _ = timeout(START_DEADLINE, self.changed.notified()).await;
    }

    /// Sends a request and waits for the answer at most as long as `limit`. Counts failures.
    ///
    /// `count` is the number of sessions in the request.
    pub(super) async fn request(
        &self,
        operation: StoreOperation,
        command: &Cmd,
        count: usize,
        limit: Duration,
    ) -> Result<Value, StoreOutcome> {
        let begin = Instant::now();
        let answer = self.exchange(command, limit).await;
        match &answer {
            Ok(_) => self.remote.metrics.observe(operation, begin.elapsed()),
            Err(outcome) => self.remote.metrics.count(operation, *outcome, count),
        }
        answer
    }

    /// Like [`Self::request`], with the handshake's remaining budget as the limit.
    pub(super) async fn request_within(
        &self,
        context: &mut StoreContext,
        operation: StoreOperation,
        command: &Cmd,
        count: usize,
    ) -> Result<Value, StoreOutcome> {
        let request = self.request(operation, command, count, context.budget);
        context.wait_for(request).await
    }

    async fn exchange(&self, command: &Cmd, limit: Duration) -> Result<Value, StoreOutcome> {
        let generation = self.generation.get();
        let open = self.connection.borrow().clone();
        let mut connection = open.ok_or(StoreOutcome::Down)?.connection;
        let error = match connection.query(command, limit).await {
            Ok(value) => {
                self.breaker.take();
                return Ok(value);
            }
            Err(error) => error,
        };
        let (outcome, is_broken) = match &error {
            RequestError::Timeout => (StoreOutcome::Timeout, false),
            RequestError::Store(error) if connection.is_broken_by(error) => {
                (StoreOutcome::Down, true)
            }
            RequestError::Store(error) if is_refusal(error) => {
                self.breaker.take();
                self.remote.log_refusal(error);
                return Err(StoreOutcome::Refused);
            }
            RequestError::Store(_) => (StoreOutcome::Refused, false),
        };
        if generation == self.generation.get() {
            let timeout = self.remote.timeout;
            let mut breaker = self.breaker.borrow_mut();
            let is_failing = breaker.record_failure(Instant::now(), timeout);
            drop(breaker);
            if is_broken || is_failing {
                self.give_up(&error);
            }
        }
        Err(outcome)
    }

    fn give_up(&self, error: &RequestError) {
        if self.connection.take().is_none() {
            return;
        }
        self.changed.notify_one();
        self.remote.metrics.connection_down();
        if self.remote.should_log(LoggedState::Down) {
            let server = &self.remote.server;
            match error {
                RequestError::Timeout => tracing::warn!(
                    server,
                    "the session store does not answer in time: full handshakes until it does"
                ),
                RequestError::Store(error) => {
                    tracing::warn!(server, %error, "the session store is down: full handshakes until it is back");
                }
            }
        }
    }

    /// Connects, and connects again whenever the connection is given up.
    async fn keep_connected(self: Rc<Self>) {
        let mut backoff = Backoff::new();
        loop {
            match self.connect().await {
                Ok(open) => {
                    let since = Instant::now();
                    self.set_up(open);
                    self.test_until_given_up().await;
                    backoff.record_uptime(since.elapsed());
                }
                Err(error) => self.log_connect_error(error),
            }
            let mut random = [0];
            // Without random bytes all servers connect at the same time, which is no reason to stop.
            let _ = aws_lc_rs::rand::fill(&mut random);
            tokio::time::sleep(backoff.after_failure(random[0])).await;
        }
    }

    fn log_connect_error(&self, error: RequestError) {
        let server = &self.remote.server;
        let error = match error {
            RequestError::Timeout => "no answer in time".to_owned(),
            RequestError::Store(error) => error.to_string(),
        };
        if self.remote.should_log(LoggedState::Down) {
            tracing::warn!(
                server,
                error,
                "the session store cannot be reached: full handshakes until it can"
            );
        } else {
            tracing::debug!(server, error, "the session store is still down");
        }
    }

    /// Makes a connection, and reads the forget rules, which handshakes need before they use a session.
    async fn connect(&self) -> Result<OpenConnection, RequestError> {
        let connector = &self.remote.connector;
        let mut open = within(CONNECT_DEADLINE, connector.connect()).await?;
        // This request has the time limit of handshakes, so a store that is too slow for handshakes stays down.
        let read = self.remote.rules.read();
        let answer = open.connection.query(&read, self.remote.timeout).await?;
        self.remote.rules.learn(&answer);
        Ok(open)
    }

    fn replace_connection(&self, open: OpenConnection) {
        self.breaker.take();
        self.generation.set(self.generation.get() + 1);
        *self.connection.borrow_mut() = Some(open);
    }

    fn set_up(&self, open: OpenConnection) {
        self.replace_connection(open);
        self.changed.notify_one();
        if self.remote.metrics.connection_up() && self.remote.should_log(LoggedState::Up) {
            let (server, store) = (&self.remote.server, &self.remote.address);
            tracing::info!(server, store, "the session store answers");
        }
    }

    /// Tests the connection regularly, so that this task notices the end of the connection before a client
    /// does.
    async fn test_until_given_up(&self) {
        let ping = redis::cmd("PING");
        while self.is_up() {
            if timeout(HEARTBEAT, self.changed.notified()).await.is_err()
                && self.exchange(&ping, self.remote.timeout).await.is_ok()
            {
                self.exchange_farm_state().await;
                self.renew().await;
            }
        }
    }

    /// Replaces the connection if it needs renewed certificates. If this fails, the old connection stays.
    async fn renew(&self) {
        let Some(open) = self.connection.borrow().clone() else {
            return;
        };
        let Some(version) = self.remote.connector.renewed_tls(&open).await else {
            return;
        };
        match self.connect().await {
            Ok(open) if self.is_up() => self.replace_connection(open),
            // A timeout says nothing about the certificates, so they are tried again.
            Err(RequestError::Timeout) => {}
            _ => {
                // After another error, these certificates are not tried again.
                if let Some(open) = self.connection.borrow_mut().as_mut() {
                    open.tls_version = Some(version);
                }
            }
        }
    }

    /// Exchanges forget rules, time and server number with the other servers of the farm, through the store.
    async fn exchange_farm_state(&self) {
        let RemoteStore {
            rules,
            claim,
            clock,
            timeout,
            ..
        } = &*self.remote;
        if let Ok(answer) = self.exchange(&rules.read(), *timeout).await {
            rules.learn(&answer);
            if let Some(command) = rules.restore() {
                let _ = self.exchange(&command, *timeout).await;
            }
        }
        // TIME does not go through `exchange`, because a store that fails only at TIME is not given up.
        let open = self.connection.borrow().clone();
        if let Some(mut open) = open
            && let Some(command) = clock.next_read()
        {
            clock.record(open.connection.query(&command, *timeout).await);
        }
        if let Some(command) = claim.next_read()
            && let Ok(found) = self.exchange(&command, *timeout).await
            && let Some(command) = claim.next_write(&found)
        {
            let _ = self.exchange(&command, *timeout).await;
        }
    }
}
