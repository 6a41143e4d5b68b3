//! What packages rely on: the version, completions, configurations to begin with, and systemd's credentials.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::peers::{Certificates, Sessile, curl, run};

fn sessile(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.args(arguments).current_dir(folder);
    for variable in ["CREDENTIALS_DIRECTORY", "SESSILE_CONFIG", "STATE_DIRECTORY"] {
        command.env_remove(variable);
    }
    command
}

#[test]
fn the_version_names_the_build_and_its_libraries() {
    let folder = tempfile::tempdir().unwrap();
    let print = |argument| run("sessile", &mut sessile(folder.path(), &[argument]), "").succeeded();
    let short = format!("sessile {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(print("-V").stdout, short);
    let long = print("--version").stdout;
    assert!(long.starts_with(&short), "{long}");
    let value = |key: &str| {
        let line = long.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("no {key} in {long}")).trim()
    };
    assert!(!value("commit:").is_empty());
    assert!(value("target:").contains("linux"), "{long}");
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap();
    let libraries = value("libraries:");
    for library in ["rustls", "aws-lc-rs", "tokio", "hyper", "redis"] {
        let version = libraries
            .split(", ")
            .find_map(|one| one.strip_prefix(library)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("no {library} in {libraries}"));
        let package = format!("name = \"{library}\"\nversion = \"{version}\"\n");
        assert!(lock.contains(&package), "{package}");
    }
}

#[test]
fn bash_completes_commands_flags_values_and_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("site.toml"), "").unwrap();
    let generate = &mut sessile(folder.path(), &["generate", "completions", "bash"]);
    let script = run("sessile", generate, "").succeeded().stdout;
    fs::write(folder.path().join("completions"), script).unwrap();
    let complete = |words: &[&str]| -> Vec<String> {
        // Completion options can be set only while bash completes, so `compopt` does nothing here.
        const COMPLETE: &str = "compopt() { :; }; . ./completions; COMP_WORDS=(\"$@\"); \
            COMP_CWORD=$(($# - 1)); _sessile sessile \"${COMP_WORDS[COMP_CWORD]}\" \
            \"${COMP_WORDS[COMP_CWORD - 1]}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        bash.args(["-c", COMPLETE, "bash"]).args(words);
        bash.current_dir(folder.path());
        let printed = run("bash", &mut bash, "").succeeded().stdout;
        printed.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(complete(&["sessile", "se"]), ["settings", "serve"]);
    assert_eq!(complete(&["sessile", "key", "ro"]), ["rotate"]);
    assert_eq!(complete(&["sessile", "serve", "--conf"]), ["--config"]);
    assert_eq!(
        complete(&["sessile", "serve", "--config", "si"]),
        ["site.toml"]
    );
    let format = ["sessile", "key", "export", "--format", "ng"];
    assert_eq!(complete(&format), ["nginx"]);
}

#[test]
fn a_configuration_to_begin_with_never_overwrites_a_file_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let init = |arguments: &[&str]| {
        let arguments = [&["settings", "init"], arguments].concat();
        run("sessile", &mut sessile(folder.path(), &arguments), "")
    };
    let printed = init(&["balance"]).succeeded().stdout;
    let output = ["serve", "--output", "s.toml"];
    init(&output).succeeded();
    let written = fs::read_to_string(folder.path().join("s.toml")).unwrap();
    assert!(written.contains("\n#[[site]]\n"), "{written}");
    assert!(printed.contains("\n#[[balance.server]]\n"), "{printed}");
    run(
        "sessile",
        &mut sessile(folder.path(), &["check", "s.toml"]),
        "",
    )
    .succeeded();

    fs::write(folder.path().join("s.toml"), "# mine\n").unwrap();
    let refused = init(&output);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    let text = || fs::read_to_string(folder.path().join("s.toml")).unwrap();
    assert_eq!(text(), "# mine\n");
    let replaced = init(&["serve", "--output", "s.toml", "--force"]).succeeded();
    assert_eq!(text(), written);
    let backup = replaced
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("backup: "));
    assert_eq!(fs::read_to_string(backup.unwrap()).unwrap(), "# mine\n");
    assert!(!init(&["serve", "--config", "s.toml"]).status.success());
}

#[test]
fn a_server_reads_its_certificate_from_systemds_credentials() {
    const SITE: &str = "[[listener]]\naddress = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'\n[[site]]\n\
        certificates = [{ chain = '$CREDENTIALS_DIRECTORY/chain.pem', key = '$CREDENTIALS_DIRECTORY/key.pem' }]\n\
        [[site.route]]\npath = '/'\nrespond = 'with credentials'\n";
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("s.toml");
    fs::write(&config, SITE).unwrap();

    let mut env = Command::new("env");
    env.arg(format!(
        "CREDENTIALS_DIRECTORY={}",
        certificates.folder().display()
    ));
    let server = Sessile::serve_by(env, &config, folder.path());
    let answer = run("curl", &mut curl(&server, &certificates, "/", &[]), "").succeeded();
    assert_eq!(answer.stdout, "with credentials");

    // Without credentials, a role says what is missing. A change of a setting needs none.
    let serve = &mut sessile(folder.path(), &["serve", "--config", "s.toml"]);
    let refused = run("sessile", serve, "");
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        refused.stderr.contains("CREDENTIALS_DIRECTORY is not set"),
        "{}",
        refused.stderr
    );
    let set = [
        "settings",
        "set",
        "session.lifetime",
        "8h",
        "--config",
        "s.toml",
    ];
    run("sessile", &mut sessile(folder.path(), &set), "").succeeded();
}
