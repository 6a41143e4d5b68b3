//! A probe finds out whether, how and across which servers a farm resumes sessions. Each address counts as one
//! server. For each mechanism, the probe makes a full handshake with each server. Then it offers sessions of each
//! server to each server. It prints nothing; [`table`] and [`json`] write the report.
//!
//! - `plan`: target and options. `visit`: one connection. `pace`: the time between connections.
//! - `delayed`, `ages`, `watch`, `early_data`, `used_twice`, `other_name`: the tests beside the matrix.
//! - `report`, `ticket_facts`: the facts. `findings`: the conclusions, with `remedies`.

mod after_gap;
mod ages;
mod attempt;
mod delayed;
mod early_data;
mod events;
pub mod finding;
pub mod findings;
pub mod html;
pub(crate) mod http;
pub mod json;
mod other_name;
mod pace;
mod plan;
pub mod prometheus;
mod remedies;
mod report;
#[cfg(test)]
mod samples;
pub mod table;
mod ticket_bytes;
mod ticket_facts;
mod used_twice;
mod visit;
mod watch;

use std::net::SocketAddr;
use std::time::Duration;

use sessile_proto::verdict::How;

use crate::client::SetupError;
pub use after_gap::{DelayedReturn, SessionAge};
pub use attempt::{Attempt, FailedHandshake, FinishedHandshake};
pub use events::{Event, KeyAge, ProbeEvent, WatchLimits, Watched};
pub use pace::Pace;
pub use plan::{AgeLimits, FirstConnection, MECHANISMS, ProbePlan, Request};
pub use report::{
    EarlyDataFindings, EarlyDataOffer, EarlyDataOutcome, EarlyDataReplay, MechanismFindings,
    OtherNameOffer, ProbeReport, Status,
};
use visit::Visitor;

/// What the probe does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeProgress {
    /// A handshake begins.
    Handshake {
        mechanism: How,
        /// The number of the handshake in the whole run, from 1.
        connection: usize,
        /// The expected number of handshakes in the whole run.
        connections: usize,
        address: SocketAddr,
    },
    /// Delayed returns wait.
    Waiting {
        returns: usize,
        /// The time until the last of them.
        left: Duration,
    },
    /// The state of the servers is known, so that every change is an event from now on.
    WatchBegins { servers: usize },
    /// The probe watches the servers.
    Watching { left: Duration, events: usize },
    /// Something happened to a server that is watched.
    Event(ProbeEvent),
}

/// Runs the plan. `report` grows with each handshake, so a dropped future leaves a partial report.
/// `progress` is called before each handshake.
///
/// # Errors
///
/// The plan is invalid: the server name cannot be used, or there is no CA certificate.
pub async fn run(
    plan: &ProbePlan,
    report: &mut ProbeReport,
    progress: &mut dyn FnMut(ProbeProgress),
) -> Result<(), SetupError> {
    for &how in &plan.mechanisms {
        report.mechanisms.push(MechanismFindings {
            how,
            attempts: Vec::new(),
        });
        let visitor = Visitor::new(plan, how)?;
        let mut test = MechanismTest {
            plan,
            visitor,
            report: &mut *report,
            progress: &mut *progress,
        };
        test.run().await?;
        test.offer_to_other_names().await?;
        if how == How::Psk {
            used_twice::run(&test.visitor, test.report).await?;
            early_data::run(&mut test.visitor, test.report).await?;
        }
        if report.no_address_answers() {
            break;
        }
    }
    delayed::run(plan, report, progress).await?;
    ages::run(plan, report, progress).await?;
    watch::run(plan, report, progress).await?;
    report.complete = true;
    Ok(())
}

/// The test of one mechanism with all servers.
struct MechanismTest<'a> {
    plan: &'a ProbePlan,
    visitor: Visitor<'a>,
    report: &'a mut ProbeReport,
    progress: &'a mut dyn FnMut(ProbeProgress),
}

impl MechanismTest<'_> {
    async fn run(&mut self) -> Result<(), SetupError> {
        // Copy the list, because the report's list gets shorter if an address is left out.
        for address in self.report.addresses.clone() {
            self.visit(None, address).await?;
        }
        if self.findings().finished().next().is_none() {
            // A single address may stand for several servers, so it gets two attempts.
            if let [single] = *self.report.addresses {
                self.visit(None, single).await?;
            }
            if self.findings().finished().next().is_none() {
                return Ok(());
            }
        }
        let addresses = self.report.addresses.clone();
        for _ in 0..self.plan.returns {
            for &from in &addresses {
                for &to in &addresses {
                    self.offer(from, to).await?;
                }
            }
        }
        Ok(())
    }

    async fn offer_to_other_names(&mut self) -> Result<(), SetupError> {
        for name in &self.plan.other_names {
            for address in self.report.addresses.clone() {
                if self.findings().is_silent(address) || !self.findings().gives(address) {
                    continue;
                }
                let offered = other_name::offer(&mut self.visitor, name, address);
                self.report.other_names.extend(offered.await?);
            }
        }
        Ok(())
    }

    /// Offers a session of one server to a server. If the probe has no session, it gets one first.
    async fn offer(&mut self, from: SocketAddr, to: SocketAddr) -> Result<(), SetupError> {
        if self.findings().is_silent(to) || self.findings().is_silent(from) {
            return Ok(());
        }
        let limit = self.plan.max_full_handshakes(self.report.addresses.len());
        if !self.visitor.has_session_of(from) {
            let may_give = self.findings().gives_sessions(from)
                && self.findings().full_handshakes(from) < limit;
            if !may_give {
                return Ok(());
            }
            self.visit(None, from).await?;
        }
        if self.visitor.has_session_of(from) {
            self.visit(Some(from), to).await?;
        }
        Ok(())
    }

    /// Makes one attempt and adds it to the report.
    async fn visit(
        &mut self,
        origin: Option<SocketAddr>,
        address: SocketAddr,
    ) -> Result<(), SetupError> {
        if !self.report.addresses.contains(&address) {
            return Ok(());
        }
        self.plan.pace.wait(address).await;
        let connection = self.report.attempts().count() + 1;
        (self.progress)(ProbeProgress::Handshake {
            mechanism: self.visitor.how,
            connection,
            connections: self.plan.connections().max(connection),
            address,
        });
        let result = self.visitor.visit(origin, address).await?;
        if let Err(failed) = &result
            && self.report.may_leave_out(self.plan, address, &failed.error)
        {
            self.report.leave_out(address, &failed.error);
            return Ok(());
        }
        // Without an offer, the attempt is a full handshake.
        let origin = origin.filter(|_| match &result {
            Ok(seen) => seen.offered.is_some(),
            Err(failed) => failed.offered.is_some(),
        });
        let current = self.report.mechanisms.last_mut();
        let findings = current.expect("the mechanism's findings were added before the test");
        findings.attempts.push(Attempt {
            address,
            origin,
            result,
        });
        Ok(())
    }

    fn findings(&self) -> &MechanismFindings {
        let current = self.report.mechanisms.last();
        current.expect("the mechanism's findings were added before the test")
    }
}
