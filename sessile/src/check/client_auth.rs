//! Whose certificates the clients of a site show: what its files hold, and what in them will refuse
//! clients or let them in by surprise.

use std::time::SystemTime;

use super::certificate::Moment;
use super::{Findings, counted};
use crate::config::{ClientAuth, ClientAuthMode, Config, Site, StoreUrl};
use crate::tls::ClientAuthorities;
use crate::tls::x509::{self, RevocationList};

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
        ClientAuthMode::Required => "has to show a certificate",
        ClientAuthMode::Optional => "may show a certificate",
    };
    findings.note(format!(
        "Site {names}: a client {what} of an authority in {ca} ({}), and it is verified again whenever a session resumes.",
        counted(files.authorities.len(), "certificate")
    ));
    findings.note(match (&config.session.store, config.sessions_are_removable()) {
        (StoreUrl::Memory, false) => format!(
            "Site {names}: a ticket carries the client's certificates, encrypted, and is as much longer."
        ),
        _ => format!("Site {names}: sessions are stored, behind tickets too, so that no ticket shows by its size whose it is."),
    });
    for (index, authority) in files.authorities.iter().enumerate() {
        let until = x509::validity(authority).map(|validity| validity.until);
        if let Some(until) = until.filter(|until| *until < now) {
            findings.warn(format!(
                "{ca}: certificate {} ended on {}, and what it has issued is accepted as long as it is in the file.",
                index + 1,
                Moment(until)
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
        "{path}: {}; a client whose issuer has none there is refused.",
        counted(files.lists.len(), "revocation list")
    ));
    let lists = files.lists.iter().enumerate();
    for (index, list) in
        lists.filter_map(|(index, list)| Some((index, x509::revocation_list(list)?)))
    {
        let RevocationList { next_update, .. } = list;
        match next_update {
            Some(due) if due < now => findings.fail(format!(
                "{path}: list {} was to be replaced by {}, and every client that it is for is refused until it is.",
                index + 1,
                Moment(due)
            )),
            Some(due) => findings.note(format!(
                "{path}: list {} holds until {}.",
                index + 1,
                Moment(due)
            )),
            None => {}
        }
    }
}
