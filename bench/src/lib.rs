//! Parts that the benchmarks share: processes under measurement, and documents with their results.

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The result of a step of a benchmark.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Limit of the time until a program listens.
const START: Duration = Duration::from_secs(10);

/// A running program that listens on an address. Dropping it stops the program.
pub struct Program {
    name: String,
    process: Child,
}

impl Program {
    /// Starts a program and waits until it listens. `name` is used in errors.
    ///
    /// # Errors
    ///
    /// The program cannot be started, ends, or does not listen in time.
    pub fn start(name: &str, command: &mut Command, address: SocketAddr) -> Result<Self> {
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let mut program = Self {
            name: name.to_owned(),
            process,
        };
        program.wait_until_listening(address)?;
        Ok(program)
    }

    fn wait_until_listening(&mut self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("{} does not start: {status}", self.name).into());
            }
            if Instant::now() > deadline {
                return Err(format!("{} does not listen", self.name).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends a signal, by its name without `SIG`.
    ///
    /// # Errors
    ///
    /// The signal cannot be sent.
    pub fn signal(&self, name: &str) -> Result<()> {
        let id = self.process.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("no signal {name}").into())
        }
    }

    /// Processor time of all threads so far.
    ///
    /// # Errors
    ///
    /// The program has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for process in self.processes()? {
            for thread in fs::read_dir(format!("/proc/{process}/task"))? {
                let times = fs::read_to_string(thread?.path().join("schedstat"))?;
                let spent = times.split(' ').next().ok_or("schedstat is empty")?;
                nanoseconds += spent.parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// The process and its children, such as nginx's workers.
    fn processes(&self) -> Result<Vec<u32>> {
        let parent = self.process.id();
        let mut processes = vec![parent];
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        for child in children.split_whitespace() {
            processes.push(child.parse()?);
        }
        Ok(processes)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Send SIGTERM first, because a killed nginx would leave its workers running.
        let asked = Command::new("kill")
            .arg(self.process.id().to_string())
            .status();
        if !asked.is_ok_and(|status| status.success()) {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

/// A free loopback address.
///
/// # Errors
///
/// No port is free.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Pins a process, with the threads that it starts later, to one processor.
///
/// # Errors
///
/// The processor does not exist, or taskset is missing.
pub fn pin(process: u32, cpu: usize) -> Result<()> {
    let status = Command::new("taskset")
        .args(["-cp", &cpu.to_string(), &process.to_string()])
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("taskset (Debian's util-linux): {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("there is no processor {cpu}").into())
    }
}

/// The trimmed standard output of a program, empty if the program cannot be run.
#[must_use]
pub fn output_of(program: &str, arguments: &[&str]) -> String {
    Command::new(program)
        .args(arguments)
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

/// Prints a text. If a document is given, the text also replaces the section `mark` of the
/// document.
///
/// # Errors
///
/// The document cannot be read or written, or has no such section.
pub fn publish(mark: &str, text: &str, document: Option<&Path>) -> Result<()> {
    print!("{text}");
    let Some(document) = document else {
        return Ok(());
    };
    let begin = format!("<!-- {mark}: written by the benchmark -->");
    let end = format!("<!-- {mark}: end -->");
    let old = fs::read_to_string(document)?;
    let (head, tail) = old
        .split_once(&begin)
        .and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)))
        .ok_or_else(|| format!("no {begin} … {end} in the document"))?;
    fs::write(document, format!("{head}{begin}\n\n{text}\n{end}{tail}"))?;
    Ok(())
}
