//! Explains which sessions a restart or a crash loses, with and without a shared store.

use std::net::IpAddr;

use humantime::format_duration;
use sessile_proto::Time;
use sessile_proto::keys::MAX_LIFETIME;

use super::{Findings, Grade, counted, state};
use crate::clock;
use crate::config::store::{Node, Redis};
use crate::config::{Config, Forget, ForgetTarget, Key, StoreUrl, human_bytes};

pub(super) fn check(config: &Config, findings: &mut Findings) {
    let (session, connection) = (&config.session, &config.connection);
    if session.lifetime.is_zero() {
        findings.warn("Nothing resumes: session.lifetime is 0, so every handshake is full.");
        return;
    }
    let stored = config.sessions_are_removable();
    if session.max_entries == 0 && (stored || !session.tickets) {
        let reason = if session.tickets {
            "connection.purge-on-reclaim or session.require-close-notify is on, so all sessions must be stored"
        } else {
            "session.tickets is false"
        };
        findings.warn(format!(
            "Nothing resumes: {reason}, and session.max-entries is 0. Every handshake is full."
        ));
        return;
    }
    let life = format_duration(session.lifetime);
    findings.note(format!(
        "A client resumes for {life} after its full handshake. Then it makes another full handshake."
    ));
    let (grade, place) = session_place(config);
    match (session.tickets && !stored, &config.key) {
        (true, Key::File(path)) => findings.note(format!(
            "Tickets (of TLS 1.3 clients, and of TLS 1.2 clients that use them) survive a restart and a crash, and resume on \
             every server that has the same {}.",
            path.display()
        )),
        (true, Key::Ephemeral) => findings.warn(
            "key.file is \"none\": a restart or a crash costs every client one full handshake, and no other server resumes \
             tickets.",
        ),
        (false, _) if session.tickets => findings.add(
            grade,
            format!(
                "All sessions are stored, even those with tickets (connection.purge-on-reclaim or \
                 session.require-close-notify is on). {place}."
            ),
        ),
        (false, _) => findings.note("No tickets are issued: session.tickets is false."),
    }
    if session.max_entries == 0 {
        findings.warn(
            "Session IDs do not resume: session.max-entries is 0, so clients without tickets never \
        resume.",
        );
    } else if !stored {
        findings.note(format!(
            "Session IDs (TLS 1.2 clients without tickets) survive the end of their connection. {place}."
        ));
    }
    if connection.purge_on_reclaim {
        findings.warn(format!(
            "connection.purge-on-reclaim is on: a client that is idle for {} loses its session with its connection.",
            format_duration(connection.idle_timeout)
        ));
    }
    if session.require_close_notify {
        findings.warn("session.require-close-notify is on: a client that drops its connection loses its session.");
    }
}

/// Explains `session.forget`.
pub(super) fn check_forget(config: &Config, now: Time, findings: &mut Findings) {
    for Forget { target, before } in &config.session.forget {
        let sessions = match target {
            ForgetTarget::Everything => "sessions".to_owned(),
            ForgetTarget::Site(name) if name.is_empty() => {
                "sessions of the site without names".to_owned()
            }
            ForgetTarget::Site(name) => format!("sessions of site {name}"),
            ForgetTarget::Server(name) => format!("sessions made by server {name}"),
            ForgetTarget::Number(number) => {
                format!("sessions made by server number {number}")
            }
        };
        let when = clock::rfc3339(*before);
        findings.note(format!(
            "session.forget: {sessions} from before {when} do not resume."
        ));
        if now.since(*before) > MAX_LIFETIME {
            findings.warn(format!(
                "session.forget: no session from before {when} can be alive; remove the entry."
            ));
        }
    }
}

/// The place of stored sessions in words, and the grade of the finding about this place.
fn session_place(config: &Config) -> (Grade, &'static str) {
    match (&config.session.store, &config.key) {
        (StoreUrl::Redis(_), Key::File(_)) => (
            Grade::Note,
            "They survive a restart and a crash, and resume on every server that has the same store and the same key.file",
        ),
        // A drain writes a snapshot to the state folder, and the next start reads the snapshot.
        (StoreUrl::Memory, Key::File(_)) if config.session.snapshot => (
            Grade::Warning,
            "They stay in this server's session table: only this server resumes them. A restart keeps \
             them in the state folder (session.snapshot), but a crash loses them",
        ),
        _ => (
            Grade::Warning,
            "They stay in this server's session table: only this server resumes them, and a restart or a \
             crash loses them",
        ),
    }
}

/// Checks the shared store, without connecting to it.
pub(super) fn check_store(config: &Config, findings: &mut Findings) {
    let StoreUrl::Redis(redis) = &config.session.store else {
        return;
    };
    findings.note(format!(
        "Sessions are shared through {redis}. A handshake waits at most {} for the store, and is full \
         if the store does not answer.",
        format_duration(config.session.store_timeout)
    ));
    let early_data = config.sites.iter().filter(|site| site.early_data > 0);
    let sites = early_data.count();
    if sites > 0 {
        findings.note(format!(
            "Early data (0-RTT) of TLS 1.3 clients is accepted at {}: up to {}, once for each session. \
             Their sessions are \
             in the session store, not in tickets, and live as long as the store keeps them.",
            counted(sites, "site"),
            human_bytes(config.session.early_data.into())
        ));
    }
    if config.session.lifetime.is_zero() {
        findings.warn("session.store is not used: session.lifetime is 0, so no session is kept.");
    } else if config.session.max_entries == 0 {
        findings.warn(
            "session.store keeps no session of this server: session.max-entries is 0. The server still reads the rules \
             that `sessile forget` writes.",
        );
    }
    if config.key == Key::Ephemeral {
        findings.warn(
            "key.file is \"none\": no other server can open the sessions of this server in session.store, nor can this \
             server after a restart.",
        );
    }
    check_network(redis, findings);
    for file in redis.clone().files_mut() {
        state::check_readable(file, findings);
    }
    if let Some((_, key)) = redis.tls.as_ref().and_then(|tls| tls.client.as_ref()) {
        state::check_private(key, Grade::Warning, findings);
    }
}

fn check_network(redis: &Redis, findings: &mut Findings) {
    if redis.tls.is_some() || redis.nodes.iter().all(is_loopback) {
        return;
    }
    findings.warn(if redis.has_password() {
        "session.store: its password crosses the network unencrypted; use rediss://."
    } else {
        "session.store: any client that reaches it can delete sessions and restore old ones; set a password and use \
         rediss://. (It cannot read sessions: entries are sealed.)"
    });
}

fn is_loopback(node: &Node) -> bool {
    let address = node.host.parse::<IpAddr>();
    node.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
