//! Rules that no compiler checks: file sizes, module heads, import directions and content that must
//! not be committed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod imports;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use imports::Imports;

/// The layers of the program, from the top. A module imports from its own layer and from the layers below.
const LAYERS: [&[&str]; 6] = [
    &["cli"],
    &["lab", "settings"],
    &["farm", "check"],
    &["serve", "balance", "probe", "admin"],
    &["client", "listener", "tls", "key", "store"],
    &[
        "config",
        "lifecycle",
        "clock",
        "live_gauge",
        "locks",
        "log_interval",
        "page",
        "server_names",
        "state_file",
    ],
];

/// The maximum number of lines of a file.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    let sessile = Path::new(env!("CARGO_MANIFEST_DIR"));
    sessile.parent().unwrap().to_owned()
}

/// Files that git tracks, or would track if they were added.
fn files(ending: &str) -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is needed: install the package git");
    assert!(listed.status.success(), "not a git checkout");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let paths = listed.lines().map(|line| root().join(line));
    let files: Vec<_> = paths
        .filter(|path| path.to_string_lossy().ends_with(ending) && path.exists())
        .collect();
    assert!(!files.is_empty(), "no files end in {ending}");
    files
}

#[test]
fn no_source_file_is_too_large_to_know() {
    for path in files(".rs") {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= MAX_LINES, "{}: {lines} lines", path.display());
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for krate in ["proto", "sessile"] {
        let circle = Imports::read(&root().join(krate).join("src")).circle();
        assert_eq!(circle, None, "{krate}: files import each other in a circle");
    }
}

#[test]
fn imports_run_from_the_upper_layers_to_the_lower() {
    let layer = |module: &[String]| {
        let name = module.first()?;
        let layer = LAYERS
            .iter()
            .position(|names| names.contains(&name.as_str()));
        Some(layer.unwrap_or_else(|| panic!("{name} is in no layer")))
    };
    let imports = Imports::read(&root().join("sessile/src"));
    for (from, to) in imports.edges() {
        assert!(
            layer(from) <= layer(to),
            "{} imports {}",
            from.join("::"),
            to.join("::")
        );
        let roles = [&from[..1], &to[..1]].concat();
        assert_ne!(roles, ["serve", "balance"], "{}", from.join("::"));
        assert_ne!(roles, ["balance", "serve"], "{}", from.join("::"));
    }
}

#[test]
fn every_module_says_what_it_is() {
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
fn nothing_is_left_open() {
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
fn architecture_fits_on_its_pages() {
    let lines = fs::read_to_string(root().join("ARCHITECTURE.md"))
        .unwrap()
        .lines()
        .count();
    assert!(lines <= 150, "{lines} lines");
}

#[test]
fn links_between_documents_lead_somewhere() {
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
