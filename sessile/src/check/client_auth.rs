//! Checks the files of `client-auth` of a site, and finds entries that refuse or admit clients
//! unexpectedly.

use std::time::SystemTime;

use super::{Findings, counted, utc};
use crate::config::{ClientAuth, ClientAuthMode, Config, Site, StoreUrl};
use crate::tls::ClientAuthorities;
use crate::tls::x509;

pub(super) fn check(
    config: &Config,
    site: &Site,
    names: &str,
    now: SystemTime,
    findings: &mut Findings,
) {
    let Some(client_auth) = &site.client_auth else {
        return;
    };
    let files = match ClientAuthorities::load(client_auth) {
        Ok(files) => files,
        Err(error) => return findings.fail(format!("{error}.")),
    };
    let ca = client_auth.ca.display();
    let what = match client_auth.mode {
        ClientAuthMode::Required => "must send a certificate",
        ClientAuthMode::Optional => "may send a certificate",
    };
    findings.note(format!(
        "Site {names}: a client {what} of an authority in {ca} ({}). It is verified again whenever a session \
         resumes.",
        counted(files.authorities.len(), "certificate")
    ));
    // Sessions that must be removable are always stored, and their tickets contain no certificates.
    if !config.sessions_are_removable() {
        let session = &config.session;
        findings.note(if session.store == StoreUrl::Memory || session.max_entries == 0 {
            format!("Site {names}: a ticket carries the client's certificates, encrypted, so it is longer by their \
            size.")
        } else {
            format!("Site {names}: all sessions are in the session store, so the size of a ticket does not reveal the \
            client.")
        });
    }
    for (index, authority) in files.authorities.iter().enumerate() {
        let until = x509::validity(authority).map(|validity| validity.until);
        if let Some(until) = until.filter(|until| *until < now) {
            findings.warn(format!(
                "{ca}: certificate {} ended on {}, but certificates that it issued are accepted while it is in the \
                 file; remove it.",
                index + 1,
                utc(until)
            ));
        }
    }
    check_lists(client_auth, &files, now, findings);
}

fn check_lists(
    client_auth: &ClientAuth,
    files: &ClientAuthorities,
    now: SystemTime,
    findings: &mut Findings,
) {
    let Some(path) = &client_auth.crl else {
        return;
    };
    let path = path.display();
    findings.note(format!(
        "{path}: {}; a client is refused if its issuer has no list in this file.",
        counted(files.lists.len(), "revocation list")
    ));
    for (index, list) in files.lists.iter().enumerate() {
        let number = index + 1;
        let next_update = x509::revocation_list(list).and_then(|list| list.next_update);
        match next_update {
            Some(due) if due < now => findings.fail(format!(
                "{path}: list {number} expired on {}, so every client of its issuer is refused; replace it.",
                utc(due)
            )),
            Some(due) => findings.note(format!(
                "{path}: list {number} is valid until {}.",
                utc(due)
            )),
            None => {}
        }
    }
}
