//! `sessile settings` and `sessile check` with the real binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sessile::config::{Role, file, settings};

const FILE: &str = r#"# the farm's front door
[session] # what is remembered
lifetime = "5m" # short, on purpose

# the only site
[[site]]
certificates = [{ chain = "c.pem", key = "k.pem" }]
"#;

struct Folder(tempfile::TempDir);

impl Folder {
    /// A folder with `FILE` as `sessile.toml`.
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        fs::write(folder.path("sessile.toml"), FILE).expect("written");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path("sessile.toml")).expect("it is there")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("it is there");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names
            .map(|name| name.into_string().expect("UTF-8"))
            .collect()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.output(Command::new(env!("CARGO_BIN_EXE_sessile")).args(arguments))
    }

    fn output(&self, command: &mut Command) -> Output {
        command
            .current_dir(self.0.path())
            .env_remove("SESSILE_CONFIG")
            .env("RUST_BACKTRACE", "0")
            .output()
            .expect("it runs")
    }

    /// The output of a successful command.
    fn output_of(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The error of a failed command. The file must stay unchanged.
    fn refused(&self, arguments: &[&str]) -> String {
        let before = (self.text(), self.names());
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?}: {output:?}");
        assert_eq!((self.text(), self.names()), before);
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

#[test]
fn a_change_keeps_comments_and_writes_a_backup() {
    let folder = Folder::new();
    folder.output_of(&["settings", "set", "session.lifetime", "8h"]);
    folder.output_of(&["settings", "set", "session.tickets", "false"]);
    let expected = FILE.replace(
        "\"5m\" # short, on purpose\n",
        "\"8h\" # short, on purpose\ntickets = false\n",
    );
    assert_eq!(folder.text(), expected);
    assert_eq!(
        folder.output_of(&["settings", "get", "session.lifetime"]),
        "8h\n"
    );
    assert_eq!(folder.names().len(), 3);
    let said = folder.output_of(&["settings", "unset", "session.tickets"]);
    assert!(
        said.starts_with("session.tickets has its default: true\nbackup: "),
        "{said}"
    );
    let said = folder.output_of(&["settings", "unset", "session.tickets"]);
    assert!(
        said.ends_with("has that value already: nothing was changed\n"),
        "{said}"
    );
}

#[test]
fn restoring_a_backup_restores_the_whole_file() {
    let folder = Folder::new();
    folder.output_of(&["settings", "backup"]);
    fs::write(folder.path("sessile.toml"), "broken").expect("written");
    folder.output_of(&["settings", "restore"]);
    assert_eq!(folder.text(), FILE);
    let error = folder.refused(&["settings", "restore", "none.bak"]);
    assert!(error.contains("none.bak: cannot be read"), "{error}");
}

#[test]
fn refused_changes_are_explained_and_change_nothing() {
    let folder = Folder::new();
    let cases: [(&[&str], &str); 5] = [
        (
            &["set", "session.lifetime", "8d"],
            "sessile.toml:3:12: `lifetime` is 8days",
        ),
        (
            &["set", "session.max-entries", "-1"],
            "session.max-entries takes a whole number",
        ),
        (
            &["set", "session.tickets", "yes"],
            "session.tickets takes true or false",
        ),
        (
            &["set", "tls.kernel", "always"],
            "known here: auto, on, off",
        ),
        (
            &["get", "session.lifetme"],
            "did you mean session.lifetime?",
        ),
    ];
    for (arguments, expected) in cases {
        let error = folder.refused(&[&["settings"], arguments].concat());
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    let wrong = FILE.replace("lifetime", "lifetme");
    fs::write(folder.path("sessile.toml"), wrong).expect("written");
    let error = folder.refused(&["settings", "set", "tls.kernel", "off"]);
    let expected = "sessile.toml:3:1: unknown key `lifetme` in [session]; did you mean `lifetime`?";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_full_disk_keeps_the_old_file() {
    let folder = Folder::new();
    // The shell limits the size of files to 0 and ignores SIGXFSZ. So a write fails, as on a full
    // disk.
    let script = "trap '' 25; ulimit -f 0; exec \"$0\" settings set session.lifetime 8h";
    let output =
        folder.output(Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_sessile")]));
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(
        (folder.text().as_str(), folder.names()),
        (FILE, vec!["sessile.toml".to_owned()])
    );
}

#[test]
fn a_registry_export_can_be_imported_and_exported() {
    let folder = Folder::new();
    let export = "Windows Registry Editor Version 5.00\r\n\r\n\
        [HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Control\\SecurityProviders\\SCHANNEL]\r\n\
        \"MaximumCacheSize\"=dword:00004e20\r\n\
        \"ServerCacheTime\"=dword:0036ee80\r\n\
        \"EventLogging\"=dword:00000001\r\n\r\n\
        [HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Services\\HTTP\\Parameters]\r\n\
        \"EnableKernelSSL\"=dword:00000000\r\n";
    fs::write(
        folder.path("in.reg"),
        sessile::config::reg::to_utf16(export),
    )
    .expect("written");
    let said = folder.output_of(&["settings", "import", "in.reg"]);
    for expected in [
        "took     line 4: SCHANNEL\\MaximumCacheSize = 0x00004e20 (20000): session.max-entries = 20000\n",
        "took     line 9: HTTP\\Parameters\\EnableKernelSSL = 0x00000000 (0): \
         tls.kernel = off, connection.purge-on-reclaim = true\n",
        "SCHANNEL\\EventLogging: no setting of sessile corresponds to it\n",
    ] {
        assert!(said.contains(expected), "{expected}:\n{said}");
    }
    assert!(
        folder
            .text()
            .starts_with("# the farm's front door\n[session] # what is remembered\n")
    );
    assert!(
        folder
            .text()
            .contains("lifetime = \"1h\" # short, on purpose\nmax-entries = 20000\n")
    );

    folder.output_of(&["settings", "export", "--reg", "--output", "out.reg"]);
    let written = fs::read(folder.path("out.reg")).expect("it is there");
    assert_eq!(written[..2], [0xff, 0xfe]);
    let before = file::load(&folder.path("sessile.toml")).expect("it is right");
    folder.output_of(&["settings", "import", "out.reg", "--config", "copy.toml"]);
    let mut copy = file::load(&folder.path("copy.toml")).expect("it is right");
    copy.sites = before.sites.clone();
    assert_eq!(copy, before);
    let comment = folder.output_of(&["settings", "export", "--reg"]);
    assert!(
        comment.contains("\r\n; [[site]], 1 in all\r\n"),
        "{comment}"
    );
}

#[test]
fn an_invalid_import_changes_nothing() {
    let folder = Folder::new();
    let key = "REGEDIT4\n[HKLM\\SYSTEM\\CurrentControlSet\\Control\\SecurityProviders\\SCHANNEL]\n\"MaximumCacheSize\"=dword:5\n";
    for (line, expected) in [
        (
            "\"ServerCacheTime\"=dword:xyz\n",
            "in.reg:4:25: dword: takes one to eight",
        ),
        (
            "\"ServerCacheTime\"=dword:ffffffff\n",
            "in.reg: line 4: HKLM",
        ),
        (
            "\"ServerCacheTime\"=hex(b):80,ee,36,00,00,00,00,00\n",
            "it has 64 bits (REG_QWORD)",
        ),
        (
            "\"ServerCacheTime\"=hex(b):80,ee,36,00,00,00,00,00\n\"ClientCacheTime\"=hex(b):80,ee,36,00,00,00,00,00\n",
            "or remove the line: Windows ignores it\nin.reg: line 5: HKLM",
        ),
    ] {
        fs::write(folder.path("in.reg"), format!("{key}{line}")).expect("written");
        let error = folder.refused(&["settings", "import", "in.reg"]);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_import_says_what_is_the_default_already_and_what_to_do_next() {
    let folder = Folder::new();
    let export = "REGEDIT4\n[HKLM\\SYSTEM\\CurrentControlSet\\Services\\HTTP\\Parameters]\n\
        \"EnableKernelSSL\"=dword:1\n\"MaxConnections\"=dword:5\n";
    fs::write(folder.path("in.reg"), export).expect("written");
    let said = folder.output_of(&["settings", "import", "in.reg", "--config", "new.toml"]);
    for expected in [
        "tls.kernel = auto (the default already), connection.purge-on-reclaim = false (the default already)\n",
        "connection.max = 5\n",
        "next     new.toml has no [[listener]] yet",
        "next     sessile check --config new.toml\n",
    ] {
        assert!(said.contains(expected), "{expected}:\n{said}");
    }
    // A value that the import changed was no default before.
    fs::write(folder.path("old.toml"), "tls.kernel = 'off'\n").expect("written");
    let said = folder.output_of(&["settings", "import", "in.reg", "--config", "old.toml"]);
    let expected = "tls.kernel = auto (the default), connection.purge-on-reclaim = false (the default already)\n";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn the_list_shows_values_and_their_cost() {
    let folder = Folder::new();
    let list = folder.output_of(&["settings", "list"]);
    assert!(list.contains("* session.lifetime"), "{list}");
    assert!(
        list.contains("costs: up to 1.9 MiB of memory when full"),
        "{list}"
    );
    let list: serde_json::Value =
        serde_json::from_str(&folder.output_of(&["settings", "list", "--json"])).expect("JSON");
    let listed = list.as_array().expect("a list");
    assert_eq!(listed.len(), settings::all().count());
    let lifetime = listed
        .iter()
        .find(|setting| setting["name"] == "session.lifetime")
        .expect("it is there");
    assert_eq!(
        (&lifetime["set"], &lifetime["value"]),
        (&true.into(), &"5m".into())
    );
    assert_eq!(lifetime["registry"], r"SCHANNEL\ServerCacheTime");
}

#[test]
fn a_toml_export_has_the_same_settings() {
    let folder = Folder::new();
    let exported = folder.output_of(&["settings", "export"]);
    let origin = folder.path("sessile.toml");
    let mut before = file::load(&origin).expect("it is right");
    before.sites.clear();
    assert_eq!(
        file::parse(&exported, &origin).expect("it is right"),
        before
    );
}

#[test]
fn the_file_comes_from_the_flag_the_variable_or_the_working_folder() {
    let folder = Folder::new();
    fs::write(folder.path("other.toml"), "session.lifetime = '3h'").expect("written");
    let get = ["settings", "get", "session.lifetime"];
    assert_eq!(folder.output_of(&get), "5m\n");
    assert_eq!(
        folder.output_of(&[&get[..], &["--config", "other.toml"]].concat()),
        "3h\n"
    );
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "SESSILE_CONFIG=other.toml exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_sessile"),
    ]);
    assert_eq!(folder.output(command.args(get)).stdout, b"3h\n");
    folder.refused(&[&get[..], &["--config", "none.toml"]].concat());
}

#[test]
fn check_exits_with_2_for_an_invalid_configuration() {
    let folder = Folder::new();
    let missing = folder.run(&["check"]);
    assert_eq!(missing.status.code(), Some(2));
    let said = String::from_utf8(missing.stdout).expect("UTF-8");
    assert!(said.contains("error: c.pem: cannot be read"), "{said}");
    fs::write(folder.path("bad.toml"), "[sesion]\n[[site]]\nname = 'x'\n").expect("written");
    let wrong = folder.run(&["check", "bad.toml"]);
    assert_eq!(wrong.status.code(), Some(2));
    let said = String::from_utf8(wrong.stderr).expect("UTF-8");
    assert_eq!(said.lines().count(), 2, "{said}");
    fs::write(folder.path("empty.toml"), "key.file = 'none'").expect("written");
    assert!(
        folder
            .run(&["check", "--config", "empty.toml"])
            .status
            .success()
    );
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
}

#[test]
fn every_example_is_valid() {
    for name in ["serve", "balance", "farm-server"] {
        let path = root().join("examples").join(name).with_extension("toml");
        let config = file::load(&path).expect("it is right");
        assert!(!config.listeners.is_empty());
    }
}

#[test]
fn the_documentation_lists_every_setting_with_its_default() {
    let text = fs::read_to_string(root().join("docs/reference/settings.md")).expect("it is there");
    let mut table = String::from(
        "| setting | type | default | registry | restart | meaning |\n|---|---|---|---|---|---|\n",
    );
    for setting in settings::all() {
        let registry = setting
            .registry
            .map_or("–".to_owned(), |value| format!("`{value}`"));
        let restart = match setting.restart {
            [] => "–",
            [Role::Serve] => "serve",
            [Role::Balance] => "balance",
            _ => "both",
        };
        table += &format!(
            "| `{}` | {} | {} | {registry} | {restart} | {} |\n",
            setting.name,
            setting.kind.word(),
            setting.default(),
            setting.meaning
        );
    }
    assert!(
        text.contains(&table),
        "docs/reference/settings.md should have this table:\n{table}"
    );
}
