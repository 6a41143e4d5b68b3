//! `sessile probe`: plans the probe of each target, runs it, and prints the reports.

mod args;
mod print;
mod targets;

use std::cell::Cell;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use tokio::signal::unix::{SignalKind, signal};

pub(super) use args::Args;

use super::endpoint::Endpoint;
use super::terminal::{self, EXIT_INTERRUPTED, ProgressLine};
use crate::probe::{self, ProbePlan, ProbeProgress, ProbeReport, table};
use print::{print, print_error};
use targets::Common;

/// A target, its plan, and the report that grows.
struct Run {
    plan: Option<ProbePlan>,
    report: ProbeReport,
}

/// Runs the probe and prints its report.
///
/// # Errors
///
/// The runtime cannot be started, or the report cannot be written. Faults of the user or the server
/// are printed and give the exit status 2.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = super::runtime()?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch signals")?;
        let planned = tokio::select! {
            planned = plan(args) => planned,
            _ = interrupt.recv() => return Ok(ExitCode::from(EXIT_INTERRUPTED)),
        };
        let mut runs = match planned {
            Ok(runs) => runs,
            Err(error) => return Ok(print_error(&error)),
        };
        if args.dry_run {
            terminal::print_report(&announcements(&runs))?;
            return Ok(ExitCode::SUCCESS);
        }
        let line = ProgressLine::new();
        if let [
            Run {
                plan: Some(plan), ..
            },
        ] = runs.as_slice()
        {
            line.show(format_args!("{}", announcement(plan)));
        }
        tokio::select! {
            () = probe_all(args, &mut runs, &line) => {}
            _ = interrupt.recv() => {}
        }
        drop(line);
        let reports: Vec<&ProbeReport> = runs.iter().map(|run| &run.report).collect();
        print(args, &reports)
    });
    // Do not wait for a name lookup that is still running.
    runtime.shutdown_background();
    code
}

/// The plans for all targets. A target without a plan has its reason in the report, unless it is the only one.
async fn plan(args: &Args) -> anyhow::Result<Vec<Run>> {
    let targets = targets::list(args)?;
    let common = &Common::of(args).await?;
    if let [target] = targets.as_slice() {
        let plan = common.plan(args, target).await?;
        return Ok(vec![Run::of(target, Ok(plan))]);
    }
    let plans = targets.into_iter().map(|target| async move {
        let plan = common.plan(args, &target).await;
        Run::of(&target, plan)
    });
    let plans = stream::iter(plans).buffered(args.parallel.into());
    let mut runs: Vec<Run> = plans.collect().await;
    let mut plans: Vec<&mut ProbePlan> = runs
        .iter_mut()
        .filter_map(|run| run.plan.as_mut())
        .collect();
    targets::add_other_names(&mut plans);
    Ok(runs)
}

/// Probes the targets, several at the same time.
async fn probe_all(args: &Args, runs: &mut [Run], line: &ProgressLine) {
    let targets = runs.len();
    let done = Cell::new(0);
    // Events can happen to each target at any time.
    let parallel = if args.watch.is_some() {
        targets
    } else {
        args.parallel.into()
    };
    let all = stream::iter(runs).for_each_concurrent(parallel, |run| {
        let done = &done;
        async move {
            if let Some(plan) = &run.plan {
                let place = match targets {
                    1 => String::new(),
                    _ => format!(
                        "{} of {targets} targets done, {}: ",
                        done.get(),
                        plan.target
                    ),
                };
                let mut progress = |progress| show_progress(line, &place, progress);
                if let Err(error) = probe::run(plan, &mut run.report, &mut progress).await {
                    run.report.error = Some(error.to_string());
                }
            }
            done.set(done.get() + 1);
        }
    });
    all.await;
}

impl Run {
    fn of(target: &Endpoint, plan: anyhow::Result<ProbePlan>) -> Self {
        match plan {
            Ok(plan) => Self {
                report: ProbeReport::new(&plan),
                plan: Some(plan),
            },
            Err(error) => Self {
                plan: None,
                report: ProbeReport::without_plan(target.to_string(), format!("{error:#}")),
            },
        }
    }
}

fn show_progress(line: &ProgressLine, place: &str, progress: ProbeProgress) {
    match progress {
        ProbeProgress::Handshake {
            mechanism,
            connection,
            connections,
            address,
        } => line.show(format_args!(
            "{place}{}, handshake {connection} of {connections}, {address}",
            table::title(mechanism),
        )),
        ProbeProgress::Waiting { returns, left } => {
            let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
            line.show(format_args!(
                "{place}waiting {left} for {returns} delayed returns"
            ));
        }
        ProbeProgress::Watching { left, events } => {
            let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
            let events = table::count(events, "event", "events");
            line.show(format_args!("{place}watching for {left}, {events} so far"));
        }
        ProbeProgress::WatchBegins { servers } => {
            let servers = table::count(servers, "server", "servers");
            line.print(&format!("{place}watching {servers}"));
        }
        ProbeProgress::Event(event) => line.print(&table::event_line(&event)),
    }
}

/// What the probe is about to do, a line for each target.
fn announcements(runs: &[Run]) -> String {
    let mut text = String::new();
    for run in runs {
        text += &match (&run.plan, &run.report.error) {
            (Some(plan), _) => announcement(plan),
            (None, Some(error)) => format!("{}: {error}", run.report.target),
            (None, None) => String::new(),
        };
        text.push('\n');
    }
    if runs.len() > 1 {
        let plans = runs.iter().filter_map(|run| run.plan.as_ref());
        let connections: usize = plans.map(ProbePlan::connections).sum();
        text += &format!("about {connections} connections in total\n");
    }
    text
}

/// What the probe is about to do.
fn announcement(plan: &ProbePlan) -> String {
    let time = match plan.shortest_time() {
        Duration::ZERO => String::new(),
        time => format!(" in about {}", humantime::format_duration(time)),
    };
    let rate = match plan.pace.rate() {
        0 => "no limit of the rate".to_owned(),
        rate => format!("at most {rate} a second to one address"),
    };
    let early_data = match plan.early_data_connections() {
        0 => String::new(),
        more => format!("; up to {more} more if they accept early data"),
    };
    format!(
        "about {} connections to {} of {}{time}, {rate}{early_data}",
        plan.connections(),
        table::count(plan.addresses.len(), "address", "addresses"),
        plan.target,
    )
}
