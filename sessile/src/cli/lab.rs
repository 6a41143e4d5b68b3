//! `sessile lab`: runs an experiment and shows what it found.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::lab::table::{self, Colour};
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

    /// How many times faster time goes by: at 60, five idle minutes take 5 s; at 300, 1 s, which a
    /// busy machine may be too slow for
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = scales())]
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

Exit status: 0 everything is as the article says; 1 something differs; 2 wrong usage, or it could
not be carried out; 130 interrupted.";

/// A greater scale than this leaves less than three seconds for what has to happen in time.
const UNEASY: u32 = 100;

/// 128 + SIGINT, as shells report it.
const EXIT_INTERRUPTED: u8 = 130;

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::start_log(tracing::level_filters::LevelFilter::ERROR);
    let Experiment::Kb937687 = args.experiment;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let ended = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch signals")?;
        warn_of_haste(args.scale);
        anyhow::Ok(tokio::select! {
            report = experiment(args.scale) => Some(report?),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        })
    });
    // Threads that are in the middle of something must not hold up the end.
    runtime.shutdown_background();
    match ended? {
        Some(report) => show(&args, &report),
        None => Ok(ExitCode::from(EXIT_INTERRUPTED)),
    }
}

fn warn_of_haste(scale: u32) {
    if scale > UNEASY {
        eprintln!(
            "sessile lab: at --scale {scale} a busy machine may be too slow for clients to come back in time"
        );
    }
}

/// Runs the experiment beside a line that shows how far it is, on a terminal only.
async fn experiment(scale: u32) -> Result<LabReport, LabError> {
    let line = ProgressLine::new();
    let so_far = std::cell::Cell::new(None);
    let mut progress = |progress| {
        so_far.set(Some(progress));
        line.show(progress);
    };
    let mut experiment = std::pin::pin!(kb937687::run(scale, &mut progress));
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            report = &mut experiment => return report,
            _ = tick.tick() => if let Some(progress) = so_far.get() {
                line.show(progress);
            }
        }
    }
}

fn show(args: &Args, report: &LabReport) -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    let text = match args.json {
        true => report.json()? + "\n",
        false => {
            let colour = match stdout.is_terminal() && super::probe::colours_wanted() {
                true => Colour::Always,
                false => Colour::Never,
            };
            table::write(report, colour)
        }
    };
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        // `sessile lab … | head`: the reader has what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("cannot write the report")?,
    }
    Ok(match report.all_ok() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// One line that is written over, and gone in the end.
struct ProgressLine {
    terminal: bool,
    started: Instant,
}

impl ProgressLine {
    fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            started: Instant::now(),
        }
    }

    fn show(&self, progress: LabProgress) {
        if self.terminal {
            eprint!(
                "\r\x1b[K{} of {} scenarios finished after {} s",
                progress.done,
                progress.of,
                self.started.elapsed().as_secs()
            );
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn scales() -> clap::builder::RangedI64ValueParser<u32> {
    let (least, most) = kb937687::SCALES.into_inner();
    clap::value_parser!(u32).range(i64::from(least)..=i64::from(most))
}
