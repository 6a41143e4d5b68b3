//! The numbers of the servers that a balancer knows, where the key that they are derived with is at
//! hand.

use super::Findings;
use crate::config::{Config, Key};
use crate::key;

pub(super) fn check(config: &Config, findings: &mut Findings) {
    let servers = &config.balance.servers;
    let Key::File(file) = &config.key else {
        return;
    };
    if servers.is_empty() || !file.exists() {
        return;
    }
    // What is wrong with the file is said elsewhere.
    let Ok(key) = key::load_any(file) else {
        return;
    };
    let servers = servers.iter().map(|s| (s.name.as_str(), s.number));
    for key::Clash { number, names } in key::clashes(&key.scope, servers) {
        let [one, other] = names;
        findings.fail(format!(
            "Servers {one} and {other} both have the number {number} in farm {:?}: their tickets cannot be told apart. Give \
             one of them another number, here (number) and in its own file (server.number).",
            key.scope
        ));
    }
}
