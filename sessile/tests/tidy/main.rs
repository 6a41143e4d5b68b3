//! Checks that the compiler does not make: file sizes, module heads, imports, links and open ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Most lines of a source file.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    let sessile = Path::new(env!("CARGO_MANIFEST_DIR"));
    sessile.parent().unwrap().to_owned()
}

/// The files of the repository with this ending, also new ones. Files that git ignores are left out.
fn files(ending: &str) -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is needed: install the package git");
    assert!(listed.status.success(), "not a git checkout");
    let names = String::from_utf8(listed.stdout).unwrap();
    let files: Vec<_> = names
        .lines()
        .map(|name| root().join(name))
        .filter(|path| path.to_string_lossy().ends_with(ending) && path.exists())
        .collect();
    assert!(!files.is_empty(), "no files end in {ending}");
    files
}

#[test]
fn source_files_have_at_most_600_lines() {
    for path in files(".rs") {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= MAX_LINES, "{}: {lines} lines", path.display());
    }
}

#[test]
fn every_module_has_a_head() {
    for path in files(".rs") {
        let text = fs::read_to_string(&path).unwrap();
        let is_test = path.file_name().is_some_and(|name| name == "tests.rs");
        let is_fuzz = path
            .components()
            .any(|part| part.as_os_str() == "fuzz_targets");
        assert!(
            is_test || is_fuzz || text.starts_with("//! "),
            "{}: begins without a module head",
            path.display()
        );
    }
}

#[test]
fn no_todo_and_no_ignored_test_is_committed() {
    let marks = ["todo", "unimplemented"].map(|name| format!("{name}!("));
    for path in files(".rs") {
        let text = fs::read_to_string(&path).unwrap();
        for mark in &marks {
            assert!(!text.contains(mark), "{}: {mark}", path.display());
        }
        assert!(
            !text.contains(concat!("#[", "ignore")),
            "{}",
            path.display()
        );
    }
}

#[test]
fn architecture_has_at_most_150_lines() {
    let lines = fs::read_to_string(root().join("ARCHITECTURE.md"))
        .unwrap()
        .lines()
        .count();
    assert!(lines <= 150, "{lines} lines");
}

#[test]
fn links_between_documents_lead_to_files() {
    for path in files(".md") {
        let text = fs::read_to_string(&path).unwrap();
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let file = target.split('#').next().unwrap();
            let linked = path.parent().unwrap().join(file);
            assert!(linked.exists(), "{}: {target}", path.display());
        }
    }
}
