//! Checks if the files and folders of a configuration exist, and who can read and write them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Access, access};

use super::{Findings, Grade};
use crate::config::{Config, Key, Role, StoreUrl};
use crate::key;

/// The permission bits of users outside the file's group.
const OTHERS: u32 = 0o007;

/// The access of this user to a folder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Folder {
    Writable,
    /// The folder does not exist, and a folder above it is writable.
    CanBeMade,
    NotWritable,
    /// A part of the path is a file.
    Blocked,
}

impl Folder {
    fn of(path: &Path) -> Self {
        let path = if path == Path::new("") {
            Path::new(".")
        } else {
            path
        };
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_dir() => Self::Blocked,
            Ok(_) if access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok() => Self::Writable,
            Ok(_) => Self::NotWritable,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                match path.parent().map(Self::of) {
                    Some(Self::Writable | Self::CanBeMade) => Self::CanBeMade,
                    Some(other) => other,
                    None => Self::NotWritable,
                }
            }
            Err(_) => Self::NotWritable,
        }
    }
}

/// The consequence for TLS 1.3 clients of sessile servers if the balancer reads no labels.
pub(crate) const fn without_labels(config: &Config) -> &'static str {
    if config.session.max_entries > 0 {
        "return to their server only by their address"
    } else {
        "return to their server only if balance.policy leads them there, because session.max-entries is 0"
    }
}

/// Explains the state of a balancer. A balancer never makes a key, and needs a key only to read the
/// labels of tickets.
fn check_balancer(config: &Config, findings: &mut Findings) {
    if config.session.store != StoreUrl::Memory {
        findings.note(
            "session.store has no effect here: it is for servers, and a balancer does not share what it learned.",
        );
    }
    findings.note(if config.session.snapshot {
        "The balancer keeps learned sessions over a restart, in the state folder (session.snapshot); a crash loses \
         them."
    } else {
        "The balancer loses learned sessions at a restart: session.snapshot is false."
    });
    findings.note(if config.session.max_entries > 0 {
        "Clients whose tickets have no label and no key name return by their address; the balancer remembers their \
         servers in memory only."
    } else {
        "The balancer learns no sessions and no addresses: session.max-entries is 0."
    });
    if let Key::File(file) = &config.key
        && file.exists()
        && let Err(error) = key::load_any(file)
    {
        findings.fail(format!("{error}."));
    }
    match &config.key {
        Key::File(key) if key.exists() => findings.note(format!(
            "Tickets of sessile servers are routed by their labels, which the key in {} opens.",
            key.display()
        )),
        Key::File(key) if *key != config.default_key_file() => findings.fail(format!(
            "The key that opens ticket labels is not in {}; run `sessile key export --route` on a server and copy the \
             file there.",
            key.display()
        )),
        _ => findings.note(format!(
            "There is no key file, so ticket labels are not read: TLS 1.3 clients of sessile servers {}. Run `sessile \
             key export --route` on a server, copy the file here and set key.file.",
            without_labels(config)
        )),
    }
}

/// Checks that the farm key can be read and moved forward, or can be made.
pub(super) fn check(config: &Config, findings: &mut Findings) {
    if config.has_role(Role::Balance) && !config.has_role(Role::Serve) {
        check_balancer(config, findings);
        return;
    }
    let Key::File(key) = &config.key else {
        findings.note("The farm key is made in memory at each start (key.file is \"none\").");
        return;
    };
    let folder = key.parent().unwrap_or(Path::new(""));
    let (exists, access) = (key.exists(), Folder::of(folder));
    let name = key.display();
    match (exists, access) {
        (true, Folder::Writable) => findings.note(format!("The farm key is in {name}.")),
        (true, _) => findings.warn(format!(
            "The farm key is in {name}, but this user cannot write to its folder: the key cannot be moved forward, so \
             there is no forward secrecy."
        )),
        (false, Folder::Writable | Folder::CanBeMade) => findings.note(format!(
            "The farm key will be made in {name} at the first start; the other servers of the farm need a copy of it."
        )),
        (false, Folder::NotWritable) => findings.fail(format!(
            "The farm key cannot be made in {name}: this user cannot write to its folder, and every restart would cost \
             every client a full handshake. Make the folder writable, or set server.state-dir or key.file."
        )),
        (false, Folder::Blocked) => findings.fail(format!(
            "The farm key cannot be made in {name}: a part of that path is a file."
        )),
    }
    if exists && let Err(error) = key::load(key) {
        findings.fail(format!("{error}."));
    }
    check_state_folder(config, findings);
}

/// Checks the state folder, if the farm key is in another folder.
pub(super) fn check_state_folder(config: &Config, findings: &mut Findings) {
    let Key::File(key) = &config.key else { return };
    let folder = key.parent().unwrap_or(Path::new(""));
    let state_dir = &config.server.state_dir;
    if folder != state_dir && !matches!(Folder::of(state_dir), Folder::Writable | Folder::CanBeMade)
    {
        findings.warn(format!(
            "This user cannot write to the state folder {}, so nothing is kept there for the next start; change its \
             owner or set server.state-dir.",
            state_dir.display()
        ));
    }
}

/// Checks a file that must be readable.
pub(super) fn check_readable(path: &Path, findings: &mut Findings) {
    if let Err(error) = access(path, Access::READ_OK) {
        findings.fail(format!("{}: cannot be read: {error}.", path.display()));
    }
}

/// Checks a folder whose files are served.
pub(super) fn check_served(path: &Path, findings: &mut Findings) {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => findings.fail(format!(
            "{}: is a file, but `files` needs a folder; write the folder that contains it.",
            path.display()
        )),
        _ => check_readable(path, findings),
    }
}

/// Checks a file with a secret: other users must not be able to read or change it.
pub(super) fn check_private(path: &Path, grade: Grade, findings: &mut Findings) {
    let Ok(metadata) = fs::metadata(path) else {
        return;
    };
    if metadata.is_file() && metadata.permissions().mode() & OTHERS != 0 {
        findings.add(
            grade,
            format!(
                "{}: holds a secret, but its mode lets other users read or change it; run chmod o-rwx on it.",
                path.display()
            ),
        );
    }
}

/// Checks that the access log can be written.
pub(super) fn check_log(path: &Path, findings: &mut Findings) {
    let folder = path.parent().unwrap_or(Path::new(""));
    let writable = match fs::metadata(path) {
        Ok(metadata) => !metadata.is_dir() && access(path, Access::WRITE_OK).is_ok(),
        Err(_) => Folder::of(folder) == Folder::Writable,
    };
    if !writable {
        findings.fail(format!(
            "{}: this user cannot write the access log there; change the owner or set another file.",
            path.display()
        ));
    }
}
