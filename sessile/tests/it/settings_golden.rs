//! The output of `sessile settings` and `sessile check`, compared with texts in `tests/golden`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sessile::config::file;

/// A configuration in which every setting differs from its default.
const EVERY_SETTING: &str = include_str!("../golden/every-setting.toml");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sessile(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sessile"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("SESSILE_CONFIG")
        .env("STATE_DIRECTORY", "state")
        .output()
        .expect("it runs")
}

fn stdout(folder: &Path, arguments: &[&str]) -> String {
    String::from_utf8(sessile(folder, arguments).stdout).expect("UTF-8")
}

/// Compares a text with the golden file `name`.
fn compare(name: &str, found: &str) {
    let path = root().join("tests/golden").join(name);
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{} should be:\n{found}", path.display());
}

fn folder_with(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sessile.toml");
    fs::write(&file, text).expect("written");
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).expect("set");
    folder
}

#[test]
fn the_list_and_the_exports_of_every_setting_stay_as_they_are() {
    let folder = folder_with(EVERY_SETTING);
    let run = |arguments: &[&str]| stdout(folder.path(), arguments);
    compare("list.txt", &run(&["settings", "list"]));
    compare("list.json", &run(&["settings", "list", "--json"]));
    compare("export.toml", &run(&["settings", "export"]));
    let export = run(&["settings", "export", "--reg"]);
    compare("export.reg", &export.replace("\r\n", "\n"));
}

#[test]
fn the_list_of_the_defaults_stays_as_it_is() {
    // Set the name, because this default is the only one that differs from host to host.
    let folder = folder_with("server.name = \"one\"\n");
    compare(
        "defaults.txt",
        &stdout(folder.path(), &["settings", "list"]),
    );
}

#[test]
fn the_errors_of_a_configuration_stay_as_they_are() {
    let texts = include_str!("../golden/errors.txt").lines();
    let texts = texts.filter_map(|line| line.strip_prefix("> "));
    let blocks = texts.map(|text| {
        let written = text.replace("\\n", "\n").replace("\\t", "\t");
        match file::parse(&written, Path::new("s.toml")) {
            Ok(_) => format!("> {text}\nright\n"),
            Err(error) => format!("> {text}\n{error}\n"),
        }
    });
    let blocks: Vec<_> = blocks.collect();
    compare("errors.txt", &blocks.join("\n"));
}

#[test]
fn an_import_prints_and_writes_the_same() {
    let export = "REGEDIT4\n\
        [HKLM\\SYSTEM\\CurrentControlSet\\Control\\SecurityProviders\\SCHANNEL]\n\
        \"MaximumCacheSize\"=dword:10\n\"ServerCacheTime\"=dword:3e9\n\"ClientCacheTime\"=-\n\"EventLogging\"=dword:1\n\
        [HKLM\\SYSTEM\\ControlSet001\\Services\\HTTP\\Parameters]\n\
        \"EnableSslCloseNotify\"=dword:2\n\"EnableKernelSSL\"=dword:0\n\"MaxConnections\"=hex(4):00,01,00,00\n";
    let folder = folder_with("[session]\nclient-lifetime = '3h' # c\n");
    fs::write(folder.path().join("in.reg"), export).expect("written");
    let printed = stdout(folder.path(), &["settings", "import", "in.reg"]);
    let lines = printed.lines().filter(|line| !line.starts_with("backup: "));
    let lines: Vec<_> = lines.collect();
    let text = fs::read_to_string(folder.path().join("sessile.toml")).expect("it is there");
    compare("import.txt", &format!("{}\n----\n{text}", lines.join("\n")));
}

/// True for a line that depends on the kernel of this machine.
fn tells_kernel_tls(line: &str) -> bool {
    ["Files of 64 KiB", "Large files are encrypted"]
        .iter()
        .any(|start| line.starts_with(start))
}

#[test]
fn the_check_of_each_example_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for name in ["www", "state"] {
        fs::create_dir(path(name)).expect("made");
    }
    let names = ["www.example.org".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).expect("names");
    params.not_after = rcgen::date_time_ymd(2100, 1, 1);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("signed");
    fs::write(path("cert.pem"), certificate.pem()).expect("written");
    fs::write(path("key.pem"), key.serialize_pem()).expect("written");
    fs::set_permissions(path("key.pem"), fs::Permissions::from_mode(0o600)).expect("set");
    let mut examples: Vec<PathBuf> = fs::read_dir(root().join("../examples"))
        .expect("it is there")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    examples.sort();
    let mut found = String::new();
    for example in examples {
        let name = example.file_name().and_then(|name| name.to_str());
        let name = name.expect("UTF-8");
        fs::copy(&example, path(name)).expect("copied");
        found += &stdout(folder.path(), &["check", name]);
    }
    let (kernel, other): (Vec<_>, Vec<_>) = found
        .split_inclusive('\n')
        .partition(|line| tells_kernel_tls(line));
    assert!(!kernel.is_empty());
    compare("check.txt", &other.concat());
}

#[test]
fn the_warnings_of_check_stay_as_they_are() {
    let listener = "[[listener]]\naddress = '127.0.0.1:5'\n";
    let serve =
        format!("{listener}[[site]]\ncertificates = [{{ chain = 'c.pem', key = 'k.pem' }}]\n");
    let balance = format!(
        "{listener}role = 'balance'\n[[balance.server]]\nname = 'a'\naddress = '10.0.0.1:1'\n"
    );
    let upstream = "[[upstream]]\nname = 'app'\nservers = ['http://10.0.0.1']\n";
    let texts = [
        String::new(),
        format!("key.file = 'none'\nsession.tickets = false\nsession.max-entries = 0\n{serve}"),
        format!("session.store = 'redis://h'\nsession.early-data = '1KiB'\n{serve}"),
        format!("session.lifetime = 0\nsession.store = 'redis://:p@h'\nkey.file = 'none'\n{serve}"),
        format!("session.store = 'rediss://h?ca=a.pem'\nsession.max-entries = 0\n{serve}"),
        format!(
            "session.require-close-notify = true\nconnection.purge-on-reclaim = true\nadmin.listen = '0.0.0.0:1'\n{serve}"
        ),
        format!("session.forget = [{{ before = '2020-01-01T00:00:00Z' }}]\n{serve}"),
        format!("{serve}client-auth = {{ ca = 'ca.pem' }}\n{upstream}"),
        format!(
            "session.store = 'redis://127.0.0.1'\nsession.snapshot = false\nkey.file = 'x'\n{balance}"
        ),
    ];
    let mut found = String::new();
    for text in texts {
        let folder = folder_with(&text);
        fs::create_dir(folder.path().join("state")).expect("made");
        found += &stdout(folder.path(), &["check"]);
        found += "\n";
    }
    compare("warnings.txt", &found);
}
