//! Records what `sessile --version` prints about the build.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// The libraries that decide how sessile speaks TLS and HTTP.
const LIBRARIES: [&str; 5] = ["rustls", "aws-lc-rs", "tokio", "hyper", "redis"];

fn main() {
    let var = |name: &str| env::var(name).unwrap_or_default();
    let folder = var("CARGO_MANIFEST_DIR");
    let root = Path::new(&folder)
        .parent()
        .expect("the crate is in a workspace");
    let compiler = first_line(Command::new(var("RUSTC")).arg("--version"));
    let features = match var("CARGO_CFG_FEATURE") {
        features if features.is_empty() => "none".to_owned(),
        features => features,
    };
    for (name, value) in [
        ("COMMIT", commit(root, &var("PROFILE"))),
        ("TARGET", var("TARGET")),
        ("FEATURES", features),
        ("LIBRARIES", libraries(root)),
        ("COMPILER", compiler.unwrap_or("unknown".to_owned())),
    ] {
        println!("cargo::rustc-env=SESSILE_BUILD_{name}={value}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}

/// `$SESSILE_COMMIT`, which package builds without git set, else what git says.
fn commit(root: &Path, profile: &str) -> String {
    println!("cargo::rerun-if-env-changed=SESSILE_COMMIT");
    if let Ok(commit) = env::var("SESSILE_COMMIT") {
        return commit;
    }
    // A commit would rebuild everything. During development, this takes more time than it is worth.
    if profile != "release" {
        return "not recorded in a debug build".to_owned();
    }
    let git =
        |arguments: &[&str]| first_line(Command::new("git").current_dir(root).args(arguments));
    // The sources may be unpacked below a checkout of another project.
    if git(&["rev-parse", "--show-toplevel"]).as_deref() != root.to_str() {
        return "unknown".to_owned();
    }
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo::rerun-if-changed={}", root.join(path).display());
        }
    }
    for sources in ["src", "../proto/src", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={sources}");
    }
    git(&[
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ])
    .unwrap_or("unknown".to_owned())
}

/// The versions of [`LIBRARIES`] in Cargo.lock.
fn libraries(root: &Path) -> String {
    let path = root.join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", path.display());
    let lock = fs::read_to_string(path).unwrap_or_default();
    let version = |library: &str| {
        let (_, package) = lock.split_once(&format!("\nname = \"{library}\"\nversion = \""))?;
        let (version, _) = package.split_once('"')?;
        Some(format!("{library} {version}"))
    };
    let versions: Vec<_> = LIBRARIES.into_iter().filter_map(version).collect();
    versions.join(", ")
}

/// The first line that a command prints. `None`: the command failed or is missing.
fn first_line(command: &mut Command) -> Option<String> {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}
