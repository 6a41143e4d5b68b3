//! The forget rules that a server knows, from its configuration and from the shared store.
//!
//! A running server only adds rules, so a store that lost the rules revives no session. The state folder
//! also holds the farm's rules, for a start while the store cannot be reached.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};

use sessile_proto::Word;
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::sealed;
use sessile_proto::ticket::ForgetRules;
use sessile_proto::verdict::Reason;

use crate::config::Server;
use crate::key::{Keyring, Origin};
use crate::locks::{locked, read_locked, write_locked};
use crate::state_file::{self, TakeError};

/// Longest file, in bytes. The largest possible set of rules takes less than 5 KiB.
const MAX_FILE: u64 = 64 << 10;

#[derive(Default)]
pub(super) struct KnownForgetRules(RwLock<Arc<ForgetRules>>);

impl KnownForgetRules {
    /// The rules that a handshake applies.
    pub(super) fn known(&self) -> Arc<ForgetRules> {
        Arc::clone(&read_locked(&self.0))
    }

    /// Adds rules. Returns true if there was a new rule.
    pub(super) fn learn(&self, rules: &ForgetRules) -> bool {
        let mut known = write_locked(&self.0);
        let mut all = ForgetRules::clone(&known);
        all.merge(rules);
        let is_new = all != **known;
        if is_new {
            *known = Arc::new(all);
        }
        is_new
    }
}

/// The file of the farm's rules in a server's state folder, sealed under the farm key.
///
/// Reading leaves the file in place, for the next start.
pub(super) struct ForgetRulesFile {
    path: PathBuf,
    /// The identifier under which the file is sealed. The identifier names the server, so the file of
    /// another server does not open.
    seal_id: String,
    /// The rules in the file.
    saved: Mutex<ForgetRules>,
}

/// Why the file cannot be read or written.
#[derive(Debug, thiserror::Error)]
enum ForgetRulesFileError {
    #[error(transparent)]
    Unread(#[from] TakeError),
    #[error("the file cannot be written: {0}")]
    Io(#[from] io::Error),
    #[error("this server's farm key cannot open the file ({})", .0.as_str())]
    Closed(Reason),
    #[error(
        "this machine's clock does not fit the farm key, so nothing can be sealed; correct the clock"
    )]
    NoKey,
    #[error(
        "the operating system's random number generator failed; check that no sandbox blocks getrandom"
    )]
    Random,
}

impl ForgetRulesFile {
    /// `None` for an ephemeral key: no session survives a restart, so the rules are not needed
    /// afterwards.
    pub(super) fn new(server: &Server, keys: &Keyring) -> Option<Self> {
        if *keys.origin() == Origin::Ephemeral {
            return None;
        }
        let name = &server.name;
        Some(Self {
            path: state_file::path(&server.state_dir, "forget", name),
            seal_id: format!("sessile:{}:forget:{name}", keys.scope()),
            saved: Mutex::default(),
        })
    }

    /// The rules that the last run saved. If the file cannot be used, this logs a warning and returns no
    /// rules.
    pub(super) fn read(&self, schedule: &Schedule) -> ForgetRules {
        let rules = self.open(schedule).unwrap_or_else(|error| {
            tracing::warn!(
                file = %self.path.display(), %error,
                "cannot read the saved forget rules: only the rules in the store and in session.forget apply"
            );
            ForgetRules::default()
        });
        locked(&self.saved).clone_from(&rules);
        rules
    }

    fn open(&self, schedule: &Schedule) -> Result<ForgetRules, ForgetRulesFileError> {
        let Some(sealed) = state_file::read(&self.path, MAX_FILE)? else {
            return Ok(ForgetRules::default());
        };
        let seal_id = self.seal_id.as_bytes();
        match sealed::open(schedule, Purpose::Snapshot, seal_id, &sealed) {
            Ok(clear) => {
                ForgetRules::decode(&clear).ok_or(ForgetRulesFileError::Closed(Reason::OldFormat))
            }
            // All sessions that these rules cover have expired too.
            Err(Reason::Expired) => Ok(ForgetRules::default()),
            Err(reason) => Err(ForgetRulesFileError::Closed(reason)),
        }
    }

    /// Adds rules to the file, if they are not in it. Waits for the disk.
    pub(super) fn save(&self, schedule: &Schedule, rules: &ForgetRules) {
        let mut saved = locked(&self.saved);
        if saved.covers(rules) {
            return;
        }
        let mut all = saved.clone();
        all.merge(rules);
        match self.write(schedule, &all) {
            Ok(()) => *saved = all,
            Err(error) => tracing::warn!(
                file = %self.path.display(), %error,
                "cannot save the forget rules: after the next start only the rules in the store and in \
                 session.forget apply"
            ),
        }
    }

    fn write(&self, schedule: &Schedule, rules: &ForgetRules) -> Result<(), ForgetRulesFileError> {
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| ForgetRulesFileError::Random)?;
        let (seal_id, clear) = (self.seal_id.as_bytes(), rules.encode());
        let sealed = sealed::seal(schedule, Purpose::Snapshot, salt, seal_id, &clear)
            .ok_or(ForgetRulesFileError::NoKey)?;
        state_file::replace(&self.path, |file| Ok(file.write_all(&sealed)?))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use sessile_proto::ticket::ForgetScope;

    use super::*;
    use crate::clock;

    fn file(folder: &Path, name: &str) -> ForgetRulesFile {
        ForgetRulesFile {
            path: state_file::path(folder, "forget", "web1"),
            seal_id: format!("sessile:farm:forget:{name}"),
            saved: Mutex::default(),
        }
    }

    fn schedule() -> Arc<Schedule> {
        let keys = Keyring::ephemeral(Duration::from_secs(3600)).unwrap();
        keys.schedule(clock::now())
    }

    fn rule(scope: ForgetScope) -> ForgetRules {
        let mut rules = ForgetRules::default();
        rules.add(scope, clock::now());
        rules
    }

    #[test]
    fn the_file_keeps_every_saved_rule_after_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let schedule = schedule();
        let mut all = ForgetRules::default();
        for scope in [ForgetScope::Site(1), ForgetScope::Server(2)] {
            let rules = rule(scope);
            all.merge(&rules);
            // A new process, which knows only the new rule.
            let file = file(folder.path(), "web1");
            file.read(&schedule);
            file.save(&schedule, &rules);
            for _ in 0..2 {
                assert_eq!(file.read(&schedule), all);
            }
        }
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_server_or_farm_has_no_rules() {
        let folder = tempfile::tempdir().unwrap();
        let (mine, theirs) = (file(folder.path(), "web1"), file(folder.path(), "web2"));
        let schedule = schedule();
        mine.save(&schedule, &rule(ForgetScope::Everything));
        assert_eq!(theirs.read(&schedule), ForgetRules::default());
        assert_eq!(mine.read(&self::schedule()), ForgetRules::default());
        let whole = fs::read(&mine.path).unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                fs::write(&mine.path, changed).unwrap();
                assert_eq!(mine.read(&schedule), ForgetRules::default());
            }
            fs::write(&mine.path, &whole[..at]).unwrap();
            assert_eq!(mine.read(&schedule), ForgetRules::default());
        }
        fs::write(&mine.path, vec![0; MAX_FILE as usize + 1]).unwrap();
        assert_eq!(mine.read(&schedule), ForgetRules::default());
        // The next saved rule replaces the unusable file.
        let rules = rule(ForgetScope::Everything);
        mine.save(&schedule, &rules);
        assert_eq!(mine.read(&schedule), rules);
    }
}
