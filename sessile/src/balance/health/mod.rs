//! Health checks. Each server of the current set has one task that checks it.

mod check;
mod key_name_discovery;

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sessile_proto::health_state::{CheckEffect, HealthChange};
use sessile_proto::session_fault::CheckClient;
use tokio::time::{Instant, sleep, sleep_until};

use self::check::{CheckPlan, ComparedHandshake, compared_handshake, handshake};
use self::key_name_discovery::KeyNameDiscovery;
use super::server::{PoolServer, is_local_error};
use super::state::BalancerState;
use crate::client::{Client, Error, EstablishedConnection, connect_tcp};
use crate::config::Health;

/// The pause before a check that confirms a changed result. A requested check starts at least this long after
/// the start of the last check.
const DOUBT_INTERVAL: Duration = Duration::from_secs(1);

/// Checks every server of the current server set until the balancer stops.
pub(super) async fn supervise(state: Arc<BalancerState>) {
    let mut sets = state.servers.subscribe();
    let checked = Rc::new(RefCell::new(HashSet::new()));
    loop {
        let set = Arc::clone(&sets.borrow_and_update());
        for (_, server) in set.servers() {
            let name = server.name().to_owned();
            if set.inputs.balance.health != Health::Off && checked.borrow_mut().insert(name.clone())
            {
                let (state, checked) = (Arc::clone(&state), Rc::clone(&checked));
                tokio::task::spawn_local(async move {
                    check_while_configured(&state, &name).await;
                    checked.borrow_mut().remove(&name);
                });
            }
        }
        tokio::select! {
            changed = sets.changed() => if changed.is_err() { return },
            () = state.stop.cancelled() => return,
        }
    }
}

/// Checks one server until it is removed, or until checks are turned off.
async fn check_while_configured(state: &Arc<BalancerState>, name: &str) {
    let mut sets = state.servers.subscribe();
    loop {
        let set = Arc::clone(&sets.borrow_and_update());
        let Some(plan) = CheckPlan::new(&set, name) else {
            return;
        };
        if plan.health == Health::Off {
            plan.server.forget_checks();
            return;
        }
        if plan.health != Health::Tls {
            plan.server.forget_session_fault();
        }
        let checker = Checker {
            client: plan.client(CheckClient::Routine),
            discovery: KeyNameDiscovery::new(),
            plan: plan.clone(),
        };
        let checks = checker.run(state);
        // Most new server sets change nothing about this server's checks.
        let plan_changed = async {
            while sets.changed().await.is_ok() {
                let now = CheckPlan::new(&sets.borrow_and_update(), name);
                if !now.is_some_and(|now| now.is_same(&plan)) {
                    break;
                }
            }
        };
        tokio::select! {
            () = checks => {}
            () = plan_changed => {}
        }
    }
}

/// Checks one server again and again.
struct Checker {
    plan: CheckPlan,
    /// The client keeps its sessions, because a resumed handshake costs the server less.
    client: Option<Client>,
    discovery: KeyNameDiscovery,
}

impl Checker {
    /// Never returns.
    async fn run(mut self, state: &Arc<BalancerState>) {
        let mut passed_before = true;
        loop {
            let started = Instant::now();
            let result = self.check(passed_before).await;
            passed_before = result.is_ok();
            let server = &self.plan.server;
            let effect = record_check(state, server, result.as_ref().err());
            if let Ok(connection) = result
                && self.plan.health == Health::Tls
            {
                let came_up = effect.change == Some(HealthChange::CameUp);
                let connection = connection.as_ref();
                self.discovery
                    .record_check(state, &self.plan, connection, came_up);
            }
            let interval = self.plan.interval;
            let pause = if effect.in_doubt {
                interval.min(DOUBT_INTERVAL)
            } else {
                interval
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.plan.server.recheck_requested() => {
                    sleep_until(started + DOUBT_INTERVAL.min(interval)).await;
                }
            }
        }
    }

    /// One check. Returns the connection if there was a handshake.
    async fn check(&self, passed_before: bool) -> Result<Option<EstablishedConnection>, Error> {
        let CheckPlan { server, target, .. } = &self.plan;
        let Some(client) = self
            .client
            .as_ref()
            .filter(|_| self.plan.health == Health::Tls)
        else {
            connect_tcp(target.address, self.plan.timeout).await?;
            return Ok(None);
        };
        // Offer no session to a server with a session fault, because each check would cost a second handshake.
        // Discoveries still offer sessions. Offer no session after a failed check, because the next check
        // could cost a second timeout.
        let checked = if passed_before && server.session_fault().is_none() {
            compared_handshake(client, target).await
        } else {
            let connection = handshake(&client.with_empty_sessions(), target).await;
            connection.map(ComparedHandshake::Finished)
        };
        match checked {
            Ok(ComparedHandshake::Finished(connection)) => {
                if connection.offered.is_some() {
                    server.record_offer_finished(CheckClient::Routine);
                }
                Ok(Some(connection))
            }
            Ok(ComparedHandshake::EndedOffer {
                offered,
                failure,
                without_session,
            }) => {
                server.record_offer_ended(CheckClient::Routine, offered, &failure.error);
                Ok(Some(without_session))
            }
            // The server speaks TLS, but only versions that our client does not speak.
            Err(failure) if failure.error.refuses_version() => Ok(None),
            Err(failure) => Err(failure.error),
        }
    }
}

/// Records the result of a check, and logs the change. A local error is no result.
fn record_check(state: &BalancerState, server: &PoolServer, failed: Option<&Error>) -> CheckEffect {
    if let Some(Error::Connect(error)) = failed
        && is_local_error(error)
    {
        state.metrics.count_local_error(server.name(), error);
        tracing::debug!(server = server.name(), address = %server.address(), %error, "this host could not make a check");
        return CheckEffect::default();
    }
    let effect = server.record_check(failed, Instant::now().into_std());
    let (name, address) = (server.name(), server.address());
    match (effect.change, failed) {
        (Some(HealthChange::CameUp), _) => {
            tracing::info!(server = name, %address, "server is up: it passed its health checks");
        }
        (Some(HealthChange::WentDown), Some(error)) => {
            state.addresses.forget_server(server.id());
            tracing::warn!(
                server = name, %address, %error,
                "server is down: its health checks failed; new connections go to other servers"
            );
            if server.is_found() {
                // The name may have other addresses long before the lifetime of its records ends.
                state.names.repeat_lookups();
            }
        }
        (_, Some(error)) => {
            tracing::debug!(server = name, %address, %error, "a health check failed")
        }
        _ => {}
    }
    effect
}
