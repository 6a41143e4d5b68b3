//! Findings about groups of servers that do not share sessions.

use std::collections::BTreeSet;

use sessile_proto::resumption_matrix::Sharing;

use super::{Found, is_by_cache};
use crate::probe::finding::Code;
use crate::probe::report::MechanismFindings;
use crate::probe::ticket_bytes::short;
use crate::probe::ticket_facts::{KeyNames, TicketFacts};

impl Found<'_> {
    /// Groups of servers that resume only their own sessions.
    pub(super) fn separate_groups(&mut self, tested: &MechanismFindings, sharing: &Sharing) {
        let groups: Vec<String> = sharing
            .groups
            .iter()
            .map(|group| self.names(&self.addresses(group)))
            .collect();
        let servers = self.addresses(&sharing.groups.concat());
        let groups = groups.join("; ");
        let only_own = "Each of these groups resumes only its own sessions";
        let key_names = self.key_names(tested, &sharing.groups);
        let (code, text) = if is_by_cache(tested) {
            let text = format!("The servers do not share a session cache. {only_own}: {groups}.");
            (Code::NoSharedCache, text)
        } else if let Some(shared) = shared_name(&key_names) {
            let mut text = format!(
                "The tickets of all servers name the same key ({shared}), and the servers refuse each other's \
                 tickets. {only_own}: {groups}."
            );
            if self.have_different_certificates(tested, &sharing.groups) {
                text += " The groups have different certificates.";
            }
            (Code::RefusesSharedKeys, text)
        } else {
            let mut text = format!("The servers do not share ticket keys. {only_own}: {groups}.");
            if key_names.iter().all(|names| !names.is_empty()) {
                let names: Vec<String> = key_names.iter().map(joined).collect();
                text += &format!(" Their tickets name different keys: {}.", names.join("; "));
            }
            (Code::NoSharedTicketKeys, text)
        };
        self.add(code, Some(tested.how), servers, text);
    }

    /// Groups in which not every server shares with every other server.
    pub(super) fn apart(&mut self, tested: &MechanismFindings, sharing: &Sharing) {
        for group in &sharing.groups {
            let mut pairs = sharing.apart.iter().filter(|(one, _)| group.contains(one));
            let Some(&(one, other)) = pairs.next() else {
                continue;
            };
            let (code, what) = if is_by_cache(tested) {
                (Code::NoSharedCache, "No session cache is shared by all of")
            } else {
                (Code::NoSharedTicketKeys, "No ticket key is on all of")
            };
            let servers = self.addresses(group);
            let more = match pairs.count() {
                0 => String::new(),
                more => format!(", and so do {more} more pairs"),
            };
            let text = format!(
                "{what} the servers {}. For example, {} refuse each other's sessions{more}.",
                self.names(&servers),
                self.names(&self.addresses(&[one, other])),
            );
            self.add(code, Some(tested.how), servers, text);
        }
    }

    /// The key names of each group's tickets.
    fn key_names(
        &self,
        tested: &MechanismFindings,
        groups: &[Vec<usize>],
    ) -> Vec<BTreeSet<String>> {
        let known = KeyNames::of(self.report);
        let of_server = |server: &usize| {
            TicketFacts::of(self.report, tested, &known, self.report.addresses[*server])
                .map(|facts| facts.key_names)
                .unwrap_or_default()
        };
        let of_group = |group: &Vec<usize>| group.iter().flat_map(of_server).collect();
        groups.iter().map(of_group).collect()
    }

    /// True if no two groups have a certificate in common.
    fn have_different_certificates(
        &self,
        tested: &MechanismFindings,
        groups: &[Vec<usize>],
    ) -> bool {
        let of_group = |group: &Vec<usize>| -> BTreeSet<[u8; 32]> {
            let servers = group.iter().map(|&server| self.report.addresses[server]);
            servers
                .flat_map(|server| tested.full(server))
                .filter_map(|seen| seen.certificate)
                .collect()
        };
        let mut certificates = groups.iter().flat_map(of_group);
        let mut known = BTreeSet::new();
        certificates.all(|certificate| known.insert(certificate)) && !known.is_empty()
    }
}

/// A key name that all groups have, in short form.
fn shared_name(groups: &[BTreeSet<String>]) -> Option<String> {
    let (first, others) = groups.split_first()?;
    let mut names = first.iter();
    let shared = names.find(|name| others.iter().all(|group| group.contains(*name)));
    shared.map(|name| short(name))
}

fn joined(names: &BTreeSet<String>) -> String {
    let names: Vec<String> = names.iter().map(|name| short(name)).collect();
    names.join(", ")
}
