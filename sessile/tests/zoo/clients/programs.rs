//! Clients whose source is a file of `programs/`, which an interpreter runs or the C compiler compiles.
//!
//! Arguments: the mechanism, the CA's file, the server's name, a port of 127.0.0.1, and the number of
//! connections. The program prints the library's version first. Each connection adds a line: the
//! library's word (`resumed` or `full`), a space, and the JSON of `/verdict.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::farm::Farm;
use super::{Connection, Mechanism, Visit};
use crate::peers::{Answer, NAME, run};

/// A file and the interpreter that runs it.
pub(super) struct Script {
    pub(super) package: &'static str,
    /// The program and the arguments in front of the file.
    pub(super) interpreter: &'static [&'static str],
    pub(super) file: &'static str,
}

impl Script {
    pub(super) fn visit(&self, mechanism: Mechanism, connections: usize) -> Visit {
        let farm = Farm::start("");
        // Java resolves names with this file.
        fs::write(farm.folder().join("hosts"), format!("127.0.0.1 {NAME}\n")).unwrap();
        let (program, arguments) = self.interpreter.split_first().unwrap();
        let mut command = Command::new(program);
        command.args(arguments).arg(path(self.file));
        // Run Go without modules, so that it fetches nothing from the network.
        command.env("GO111MODULE", "off");
        visit(&farm, self.package, command, mechanism, connections, &[])
    }
}

/// A source file and the flags of the C compiler.
pub(super) struct CSource {
    /// The package that has the library and its headers.
    pub(super) package: &'static str,
    pub(super) file: &'static str,
    pub(super) flags: &'static str,
    /// Arguments that follow the common ones.
    pub(super) arguments: &'static [&'static str],
}

impl CSource {
    pub(super) fn visit(&self, mechanism: Mechanism, connections: usize) -> Visit {
        let farm = Farm::start("");
        let program = farm.folder().join("client");
        let mut compiler = Command::new("cc");
        compiler.arg("-o").arg(&program).arg(path(self.file));
        compiler.args(self.flags.split(' '));
        let compiled = run("gcc", &mut compiler, "");
        assert!(
            compiled.status.success(),
            "{} is not compiled; install the package {}:\n{}",
            self.file,
            self.package,
            compiled.stderr
        );
        let command = Command::new(program);
        visit(
            &farm,
            self.package,
            command,
            mechanism,
            connections,
            self.arguments,
        )
    }
}

fn path(file: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/clients/programs");
    folder.join(file)
}

fn visit(
    farm: &Farm,
    package: &str,
    mut command: Command,
    mechanism: Mechanism,
    connections: usize,
    arguments: &[&str],
) -> Visit {
    command.arg(mechanism.as_str()).arg(&farm.certificates().ca);
    command.args([NAME, &farm.port().to_string(), &connections.to_string()]);
    command.args(arguments);
    command.current_dir(farm.folder());
    let ran = run(package, &mut command, "");
    assert!(
        ran.status.success(),
        "{}; is the package {package} there?\n{}{}",
        ran.status,
        ran.stdout,
        ran.stderr
    );
    let mut lines = ran.stdout.lines().filter(|line| !line.is_empty());
    let version = lines.next().and_then(|line| line.strip_prefix("version "));
    let connections = lines.map(|line| {
        let (outcome, answer) = line.split_once(' ').expect("an outcome and an answer");
        Connection {
            resumed: Some(outcome == "resumed"),
            answer: Answer::parse(answer),
        }
    });
    Visit {
        version: version.expect("a version").to_owned(),
        connections: connections.collect(),
    }
}
