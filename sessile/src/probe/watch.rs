//! Watches servers for hours: returns to each server again and again, and notes when it loses sessions, changes its
//! ticket key or its certificate, or does not answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use sessile_proto::session_events::{ServerWatch, SessionWatch};
use sessile_proto::verdict::How;
use sessile_proto::watch::Kind;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::ProbeProgress;
use super::attempt::{FailedHandshake, FinishedHandshake};
use super::delayed::PROGRESS;
use super::events::{Event, KeyAge, ProbeEvent, WatchLimits, Watched};
use super::plan::ProbePlan;
use super::report::ProbeReport;
use super::visit::Visitor;
use crate::client::SetupError;
use crate::clock;

/// News of a server.
enum News {
    /// The state of the server before all events is known.
    Known,
    Event(ProbeEvent),
    KeyAge(KeyAge),
}

/// Watches the servers and mechanisms that resumed their own sessions.
///
/// # Errors
///
/// As [`super::run`].
pub(super) async fn run(
    plan: &ProbePlan,
    report: &mut ProbeReport,
    progress: &mut dyn FnMut(ProbeProgress),
) -> Result<(), SetupError> {
    let Some(limits) = plan.watch else {
        return Ok(());
    };
    let plan = Arc::new(plan.clone());
    let (sender, mut news) = mpsc::channel(NEWS);
    let end = Instant::now() + limits.duration;
    let mut servers = JoinSet::new();
    for &address in &report.addresses {
        let tested = report.mechanisms.iter();
        let kept = tested.filter(|tested| tested.keeps_own_sessions(address));
        let mechanisms: Vec<How> = kept.map(|tested| tested.how).collect();
        if !mechanisms.is_empty() {
            let server = Server {
                address,
                limits,
                end,
                news: sender.clone(),
            };
            servers.spawn(server.watch(Arc::clone(&plan), mechanisms));
        }
    }
    drop(sender);
    if servers.is_empty() {
        return Ok(());
    }
    let mut unknown = servers.len();
    let mut ticks = interval(PROGRESS);
    loop {
        tokio::select! {
            received = news.recv() => {
                let watched = report.watched.get_or_insert_with(|| Watched::new(limits));
                match received {
                    // All servers have ended.
                    None => break,
                    Some(News::Known) => {
                        unknown -= 1;
                        if unknown == 0 {
                            let servers = servers.len();
                            progress(ProbeProgress::WatchBegins { servers });
                        }
                    }
                    Some(News::KeyAge(age)) => watched.take_key_age(age),
                    Some(News::Event(event)) => {
                        progress(ProbeProgress::Event(event.clone()));
                        watched.events.push(event);
                    }
                }
            }
            _ = ticks.tick() => progress(ProbeProgress::Watching {
                left: end.saturating_duration_since(Instant::now()),
                events: report.watched.as_ref().map_or(0, |watched| watched.events.len()),
            }),
        }
    }
    while let Some(ended) = servers.join_next().await {
        // A task that panicked has already printed its message.
        ended.unwrap_or(Ok(()))?;
    }
    Ok(())
}

/// News that wait for the report.
const NEWS: usize = 64;

/// A server that is watched.
struct Server {
    address: SocketAddr,
    limits: WatchLimits,
    end: Instant,
    news: mpsc::Sender<News>,
}

impl Server {
    async fn watch(self, plan: Arc<ProbePlan>, mechanisms: Vec<How>) -> Result<(), SetupError> {
        let mut server = ServerWatch::default();
        let mut sessions = Vec::new();
        for how in mechanisms {
            sessions.push((Visitor::new(&plan, how)?, SessionWatch::default()));
        }
        // Two tickets show whether their first bytes are a key name.
        for _ in 0..2 {
            for (visitor, session) in &mut sessions {
                self.visit(visitor, &mut server, session).await?;
            }
        }
        let _ = self.news.send(News::Known).await;
        let mut ticks = interval(self.limits.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = sleep_until(self.end.into()) => return Ok(()),
            }
            for (visitor, session) in &mut sessions {
                self.visit(visitor, &mut server, session).await?;
            }
        }
    }

    /// Makes a full handshake, and returns with the session of the visit before. In this order, a return that resumes
    /// shows that the server still has the key before.
    async fn visit(
        &self,
        visitor: &mut Visitor<'_>,
        server: &mut ServerWatch,
        session: &mut SessionWatch,
    ) -> Result<(), SetupError> {
        let held = visitor.take_newest(self.address)?;
        visitor.plan.pace.wait(self.address).await;
        let full = visitor.visit(None, self.address).await?;
        let certificate = full
            .as_ref()
            .ok()
            .map(|seen| seen.certificate.unwrap_or_default());
        if let Some(event) = server.reach(certificate) {
            self.tell(None, Event::Server(event)).await;
        }
        let mut resumed = None;
        if full.is_ok() && !held.is_empty() {
            visitor.plan.pace.wait(self.address).await;
            let returned = visitor.visit_with(&held, self.address).await?;
            resumed = is_resumed(&returned);
        }
        let now = clock::now();
        let tickets = full.as_ref().map_or(&[][..], |seen| &seen.tickets);
        let ticket = tickets.first().map(|ticket| ticket.bytes.as_slice());
        let how = visitor.how;
        if let Some(event) = session.answer(resumed, ticket, now) {
            self.tell(Some(how), Event::Session(event)).await;
        }
        if let Some(age) = session.key_age(now) {
            let address = self.address;
            let age = KeyAge { how, address, age };
            // The receiver is gone if the run was stopped.
            let _ = self.news.send(News::KeyAge(age)).await;
        }
        Ok(())
    }

    async fn tell(&self, how: Option<How>, event: Event) {
        let event = ProbeEvent {
            at: SystemTime::now(),
            address: self.address,
            how,
            event,
        };
        let _ = self.news.send(News::Event(event)).await;
    }
}

/// Whether a session resumed. `None` if the server did not answer to it.
fn is_resumed(returned: &Result<FinishedHandshake, FailedHandshake>) -> Option<bool> {
    match returned {
        Ok(seen) => match seen.kind {
            Kind::Resumed(_) => Some(true),
            Kind::Refused => Some(false),
            Kind::NotOffered | Kind::Failed => None,
        },
        // The server answers only to clients without a session.
        Err(failed) => matches!(failed.without_session, Some(Ok(()))).then_some(false),
    }
}
