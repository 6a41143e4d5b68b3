//! Searches for the age at which each server refuses its sessions. All searches run at the same time, each in rounds
//! of returns after different gaps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sessile_proto::age_search::AgeSearch;
use sessile_proto::watch::SessionOutcome;
use tokio::task::JoinSet;
use tokio::time::interval;

use super::ProbeProgress;
use super::after_gap::{DelayedReturn, SessionAge};
use super::delayed::{self, PROGRESS, Task};
use super::plan::{AgeLimits, ProbePlan};
use super::report::ProbeReport;
use crate::client::SetupError;

/// One search. Its result is at the same index in the report.
struct Running {
    search: AgeSearch,
    /// The task of each return, with another gap.
    task: Task,
    /// Returns of this round that have not ended.
    pending: usize,
    answers: Vec<(Duration, bool)>,
}

/// Searches as the plan says. Servers that refuse their own sessions at once are left out.
///
/// # Errors
///
/// As [`super::run`].
pub(super) async fn run(
    plan: &ProbePlan,
    report: &mut ProbeReport,
    progress: &mut dyn FnMut(ProbeProgress),
) -> Result<(), SetupError> {
    let Some(limits) = plan.age_limits else {
        return Ok(());
    };
    let mut searches: Vec<Running> = delayed::series(plan, report)
        .into_iter()
        .map(|task| Running {
            search: search_of(report, limits, &task),
            task,
            pending: 0,
            answers: Vec::new(),
        })
        .collect();
    let without_result = |running: &Running| SessionAge {
        how: running.task.how,
        address: running.task.address,
        first_connection: running.task.first_connection,
        limits: AgeLimits {
            max: running.search.max(),
            ..limits
        },
        found: None,
        error: None,
    };
    report.session_ages = searches.iter().map(without_result).collect();
    let plan = Arc::new(plan.clone());
    let mut returns = JoinSet::new();
    let mut end = Instant::now();
    let begin_round = |index: usize, running: &mut Running, returns: &mut JoinSet<_>| {
        let mut latest = Instant::now();
        for gap in running.search.round() {
            let task = Task {
                gap,
                ..running.task
            };
            let plan = Arc::clone(&plan);
            returns.spawn(async move { (index, delayed::make(plan, task).await) });
            running.pending += 1;
            latest = latest.max(Instant::now() + gap);
        }
        latest
    };
    for (index, running) in searches.iter_mut().enumerate() {
        end = end.max(begin_round(index, running, &mut returns));
    }
    let mut ticks = interval(PROGRESS);
    while !returns.is_empty() {
        tokio::select! {
            Some(done) = returns.join_next() => {
                // A task that panicked has already printed its message. Its search ends without a result.
                let Ok((index, made)) = done else { continue };
                let running = &mut searches[index];
                running.take(made?, &mut report.session_ages[index]);
                if running.pending == 0 {
                    end = end.max(begin_round(index, running, &mut returns));
                }
            }
            _ = ticks.tick() => progress(ProbeProgress::Waiting {
                returns: returns.len(),
                left: end.saturating_duration_since(Instant::now()),
            }),
        }
    }
    Ok(())
}

/// The search for the sessions of a task. A client offers no ticket after the lifetime that the server promised. In the
/// last second of the lifetime, the server may already refuse the ticket.
fn search_of(report: &ProbeReport, limits: AgeLimits, task: &Task) -> AgeSearch {
    let promised = report.promised_lifetime(task.how, task.address);
    let max = promised.map_or(limits.max, |promised| {
        promised.saturating_sub(PROMISE_ROUNDING).min(limits.max)
    });
    AgeSearch::new(max, limits.within)
}

/// Lifetimes are in whole seconds, and each side rounds the age in its own way.
const PROMISE_ROUNDING: Duration = Duration::from_secs(1);

impl Running {
    /// Takes the answer to a return. After the last one of a round, the search goes on.
    fn take(&mut self, made: DelayedReturn, result: &mut SessionAge) {
        self.pending -= 1;
        match made.outcome {
            SessionOutcome::Resumed => self.answers.push((made.age, true)),
            SessionOutcome::Refused => self.answers.push((made.age, false)),
            SessionOutcome::Failed | SessionOutcome::NotOffered => result.error = made.error,
        }
        if self.pending == 0 {
            self.search.record(&std::mem::take(&mut self.answers));
            result.found = self.search.found();
        }
    }
}
