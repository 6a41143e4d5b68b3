//! `sessile lab`: runs an experiment and prints its report.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::terminal::{self, EXIT_INTERRUPTED, ProgressLine};
use crate::lab::table;
use crate::lab::{LabError, LabProgress, LabReport, kb937687};

/// Watch an article's failure and its resolution side by side, in compressed time.
///
/// Everything runs in this process and is real: servers, balancer, clients, sockets, handshakes. Only
/// the idle time is shorter.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The article, by its number
    #[arg(value_enum)]
    experiment: Experiment,

    /// How many times faster time passes: at 60, five idle minutes take 5 s; at 300, 1 s, which
    /// may be too fast for a busy machine
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = scale())]
    scale: u32,

    /// Write JSON for programs instead of the table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Experiment {
    /// IIS 6.0 forgets a TLS session when its connection was idle; EnableKernelSSL=1 keeps it
    Kb937687,
}

const AFTER_HELP: &str = "\
Example:
  sessile lab kb937687 --scale 60

Exit status: 0 everything is as the article says; 1 something differs;
2 wrong usage, or a scenario failed; 130 \
interrupted.";

/// Above this scale, clients have less than three seconds to return in time.
const MAX_SAFE_SCALE: u32 = 100;

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::start_log(tracing::level_filters::LevelFilter::ERROR);
    let Experiment::Kb937687 = args.experiment;
    let runtime = super::runtime()?;
    let result = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch signals")?;
        warn_about_scale(args.scale);
        anyhow::Ok(tokio::select! {
            report = experiment(args.scale) => Some(report?),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        })
    });
    // Do not wait for threads that are still working.
    runtime.shutdown_background();
    match result? {
        Some(report) => print(&args, &report),
        None => Ok(ExitCode::from(EXIT_INTERRUPTED)),
    }
}

fn warn_about_scale(scale: u32) {
    if scale > MAX_SAFE_SCALE {
        eprintln!(
            "sessile lab: at --scale {scale} a busy machine may be too slow for clients to come back in time"
        );
    }
}

/// Runs the experiment and updates the progress line once a second.
async fn experiment(scale: u32) -> Result<LabReport, LabError> {
    let line = ProgressLine::new();
    let started = Instant::now();
    let show = |progress: LabProgress| {
        line.show(format_args!(
            "{} of {} scenarios finished after {} s",
            progress.done,
            progress.of,
            started.elapsed().as_secs()
        ));
    };
    let latest = std::cell::Cell::new(None);
    let mut progress = |progress| {
        latest.set(Some(progress));
        show(progress);
    };
    let mut experiment = std::pin::pin!(kb937687::run(scale, &mut progress));
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            report = &mut experiment => return report,
            _ = tick.tick() => if let Some(progress) = latest.get() {
                show(progress);
            }
        }
    }
}

fn print(args: &Args, report: &LabReport) -> anyhow::Result<ExitCode> {
    let text = if args.json {
        report.json()? + "\n"
    } else {
        table::write(report, terminal::colour())
    };
    terminal::print_report(&text)?;
    Ok(if report.all_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn scale() -> clap::builder::RangedI64ValueParser<u32> {
    let (min, max) = kb937687::SCALES.into_inner();
    clap::value_parser!(u32).range(i64::from(min)..=i64::from(max))
}
