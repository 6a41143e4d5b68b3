//! Returns after a gap: how long a server keeps a session, and whether the fate of the first connection matters.
//! All returns wait at the same time, so the run takes as long as the longest gap.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sessile_proto::Word;
use sessile_proto::verdict::How;
use sessile_proto::watch::SessionOutcome;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep_until};

use super::ProbeProgress;
use super::after_gap::DelayedReturn;
use super::plan::{FirstConnection, ProbePlan};
use super::report::ProbeReport;
use super::visit::Visitor;
use crate::client::{Close, EstablishedConnection, SetupError};

/// How often the progress is shown.
pub(super) const PROGRESS: Duration = Duration::from_secs(1);

/// Time to wait for the server's close after a close_notify.
const CLOSE_WAIT: Duration = Duration::from_millis(500);

/// One return to make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub(super) how: How,
    pub(super) address: SocketAddr,
    pub(super) gap: Duration,
    pub(super) first_connection: FirstConnection,
}

/// Makes the delayed returns of the plan. Servers that refuse their own sessions at once are left out.
///
/// # Errors
///
/// As [`super::run`].
pub(super) async fn run(
    plan: &ProbePlan,
    report: &mut ProbeReport,
    progress: &mut dyn FnMut(ProbeProgress),
) -> Result<(), SetupError> {
    let tasks = tasks(plan, report);
    let plan = Arc::new(plan.clone());
    let longest = plan.gaps.iter().max().copied().unwrap_or_default();
    let end = Instant::now() + longest;
    let mut running = JoinSet::new();
    for task in tasks {
        running.spawn(make(Arc::clone(&plan), task));
    }
    let mut ticks = interval(PROGRESS);
    while !running.is_empty() {
        tokio::select! {
            Some(done) = running.join_next() => {
                // A task that panicked has already printed its message.
                if let Ok(result) = done {
                    report.delayed.push(result?);
                }
            }
            _ = ticks.tick() => progress(ProbeProgress::Waiting {
                returns: running.len(),
                left: end.saturating_duration_since(Instant::now()),
            }),
        }
    }
    report.delayed.sort_by_key(|made| {
        (
            made.address,
            made.how.as_str(),
            made.first_connection,
            made.gap,
        )
    });
    Ok(())
}

/// The returns of the plan.
fn tasks(plan: &ProbePlan, report: &ProbeReport) -> Vec<Task> {
    let with_gaps = |task| plan.gaps.iter().map(move |&gap| Task { gap, ..task });
    series(plan, report)
        .into_iter()
        .flat_map(with_gaps)
        .collect()
}

/// A return without a gap for each kind: mechanism, server and fate of the first connection.
pub(super) fn series(plan: &ProbePlan, report: &ProbeReport) -> Vec<Task> {
    let mut series = Vec::new();
    for tested in &report.mechanisms {
        for &address in &report.addresses {
            if !tested.keeps_own_sessions(address) {
                continue;
            }
            series.extend(plan.first_connections.iter().map(|&first_connection| Task {
                how: tested.how,
                address,
                gap: Duration::ZERO,
                first_connection,
            }));
        }
    }
    series
}

/// Makes a full handshake, waits, and returns.
pub(super) async fn make(plan: Arc<ProbePlan>, task: Task) -> Result<DelayedReturn, SetupError> {
    let Task {
        how,
        address,
        gap,
        first_connection,
    } = task;
    let mut visitor = Visitor::new(&plan, how)?;
    plan.pace.wait(address).await;
    let mut made = DelayedReturn {
        how,
        address,
        gap,
        first_connection,
        age: Duration::ZERO,
        closed_after: None,
        outcome: SessionOutcome::Failed,
        error: None,
    };
    let connection = match visitor.open(address).await? {
        Ok(connection) => connection,
        Err(failed) => {
            made.error = Some(failed.error.to_string());
            return Ok(made);
        }
    };
    let opened = Instant::now();
    let spent = spend(connection, first_connection, gap).await;
    made.closed_after = spent.closed_after;
    plan.pace.wait(address).await;
    made.age = opened.elapsed();
    match visitor.return_to(address).await? {
        Ok(seen) => made.outcome = seen.kind.into(),
        Err(failed) => made.error = Some(failed.error.to_string()),
    }
    // Some servers forget the session of a connection that ends without close_notify.
    drop(spent.idle);
    Ok(made)
}

/// The first connection after the gap.
#[derive(Default)]
struct Spent {
    /// When the server closed an idle connection.
    closed_after: Option<Duration>,
    /// The idle connection, which stays open during the return.
    idle: Option<EstablishedConnection>,
}

/// Spends the gap with the first connection as the user chose.
async fn spend(
    mut connection: EstablishedConnection,
    first_connection: FirstConnection,
    gap: Duration,
) -> Spent {
    let begin = tokio::time::Instant::now();
    let mut spent = Spent::default();
    match first_connection {
        FirstConnection::Idle => {
            let mut end: Option<Close> = None;
            while end.is_none() && begin.elapsed() < gap {
                tokio::select! {
                    close = connection.closed() => end = Some(close),
                    () = sleep_until(begin + gap) => {}
                }
            }
            spent.closed_after = end.map(|_| begin.elapsed());
            spent.idle = Some(connection);
        }
        FirstConnection::CloseNotify => {
            connection.close(CLOSE_WAIT).await;
        }
        // The drop sends FIN, and no close_notify.
        FirstConnection::Fin => drop(connection),
        FirstConnection::Reset => connection.stream.reset(),
    }
    sleep_until(begin + gap).await;
    spent
}
