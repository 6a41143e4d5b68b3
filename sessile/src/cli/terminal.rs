//! Output of reports: colours, the progress line, and pipes that the reader closes early.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;

use crate::probe::table::Colour;

/// 128 + SIGINT, as shells report an interrupted command.
pub(super) const EXIT_INTERRUPTED: u8 = 130;

/// Colours if the standard output is a terminal, unless `NO_COLOR` or `TERM=dumb` is set
/// (<https://no-color.org>).
pub(super) fn colour() -> Colour {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if io::stdout().is_terminal() && !no_color && !dumb {
        Colour::Always
    } else {
        Colour::Never
    }
}

/// Writes a report to the standard output.
pub(super) fn print_report(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        // `sessile probe … | head`: the reader has closed the pipe and wants no more.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write the report"),
    }
}

/// A line on the standard error stream that each update overwrites. Only terminals get the line.
pub(super) struct ProgressLine {
    is_terminal: bool,
}

impl ProgressLine {
    pub(super) fn new() -> Self {
        Self {
            is_terminal: io::stderr().is_terminal(),
        }
    }

    pub(super) fn show(&self, text: fmt::Arguments<'_>) {
        if self.is_terminal {
            write_error(format_args!("\r\x1b[K{text}"));
        }
    }
}

impl ProgressLine {
    /// Prints a line that stays, also without a terminal.
    pub(super) fn print(&self, text: &str) {
        let clear = if self.is_terminal { "\r\x1b[K" } else { "" };
        write_error(format_args!("{clear}{text}\n"));
    }
}

/// Writes to the standard error stream. Progress is no reason to stop if the stream is closed or its disk is full.
fn write_error(text: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.is_terminal {
            write_error(format_args!("\r\x1b[K"));
        }
    }
}
