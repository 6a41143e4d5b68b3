//! Runs client programs to their end.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Limit of the time for a client.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two checks whether a client has ended.
const PAUSE: Duration = Duration::from_millis(2);

/// The output and the exit status of a client.
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program to its end, with `input` on its standard input.
///
/// # Panics
///
/// With the name of `package` if the program is missing, or if it does not end in time.
pub(crate) fn run(package: &str, command: &mut Command, input: &str) -> Ran {
    // Use files instead of pipes, so that no thread has to read the output.
    let [mut stdin, mut stdout, mut stderr] =
        [(); 3].map(|()| tempfile::tempfile().expect("a temporary file"));
    stdin.write_all(input.as_bytes()).expect("written");
    stdin.rewind().expect("a file");
    let other = |file: &File| file.try_clone().expect("a second handle");
    command.stdin(stdin).stdout(other(&stdout));
    let mut child = match command.stderr(other(&stderr)).spawn() {
        Ok(child) => child,
        Err(error) => missing(package, command, &error),
    };
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().expect("a child's status") {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            None => thread::sleep(PAUSE),
        }
    };
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let [stdout, stderr] = [&mut stdout, &mut stderr].map(text);
    let status = status.unwrap_or_else(|| {
        panic!("{command:?} does not end:\n{stdout}\n{stderr}");
    });
    Ran {
        status,
        stdout,
        stderr,
    }
}

/// Panics with the name of the package that contains the missing program.
pub(crate) fn missing(package: &str, command: &Command, error: &io::Error) -> ! {
    let program = command.get_program().display();
    match error.kind() {
        io::ErrorKind::NotFound => panic!("{program} is missing: install the package {package}"),
        _ => panic!("{program}: {error}"),
    }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().expect("a file");
    file.read_to_end(&mut bytes).expect("readable");
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Ran {
    /// Returns the output of a program that must have succeeded.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        let Self {
            status,
            stdout,
            stderr,
        } = &self;
        assert!(status.success(), "{status}:\n{stdout}\n{stderr}");
        self
    }

    /// The number of lines with this prefix.
    pub(crate) fn count(&self, beginning: &str) -> usize {
        let lines = self.stdout.lines();
        lines.filter(|line| line.starts_with(beginning)).count()
    }

    /// The answers of `/verdict.json` in the output.
    pub(crate) fn answers(&self) -> Vec<Answer> {
        let lines = self.stdout.lines();
        let objects = lines.filter(|line| line.starts_with("{\"server\":"));
        objects.map(Answer::parse).collect()
    }

    /// The verdicts in the answers.
    pub(crate) fn verdicts(&self) -> Vec<String> {
        let answers = self.answers().into_iter();
        answers.map(|answer| answer.verdict).collect()
    }
}

/// The answer of `/verdict.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) server: String,
    pub(crate) verdict: String,
    pub(crate) protocol: String,
    pub(crate) http: String,
    /// The number of the request in its connection.
    pub(crate) request: u64,
}

impl Answer {
    pub(crate) fn parse(json: &str) -> Self {
        let json: Value = serde_json::from_str(json).expect("JSON");
        let text = |name: &str| json[name].as_str().expect("a text").to_owned();
        Self {
            server: text("server"),
            verdict: text("verdict"),
            protocol: text("protocol"),
            http: text("http"),
            request: json["request"].as_u64().expect("a number"),
        }
    }
}
