//! Reads labels. A label is the encrypted server number inside a ticket of a sessile server.
//!
//! The route keys open labels, and cannot open tickets. Labels need no learned table, so every balancer of a
//! farm leads a client to the same server.

use std::sync::Arc;

use sessile_proto::Time;
use sessile_proto::hello::ClientHello;
use sessile_proto::ticket::{self, Label};

use crate::config::{Config, Key};
use crate::key::{FileError, FileFault, RouteKeyring};

/// Most PSK identities that are read in one hello.
///
/// Each identity without a label costs a try with every route key. Clients send their best identities first.
pub(super) const MAX_IDENTITIES: usize = 4;

/// Reads the key file. `None` if the configuration has no key, or if the default key file does not exist.
///
/// `had_one`: the balancer already has a key. Then a missing default file is an error.
pub(super) fn open_route_keys(
    config: &Config,
    had_one: bool,
) -> Result<Option<Arc<RouteKeyring>>, FileError> {
    let Key::File(path) = &config.key else {
        return Ok(None);
    };
    match RouteKeyring::open(path) {
        Err(FileError {
            fault: FileFault::Missing,
            ..
        }) if !had_one && *path == config.default_key_file() => Ok(None),
        opened => Ok(Some(Arc::new(opened?))),
    }
}

/// The label of a ticket.
pub(super) fn read_ticket_label(keyring: &RouteKeyring, ticket: &[u8], now: Time) -> Option<Label> {
    Some(ticket::read_label(&keyring.keys(now), ticket)?.1)
}

/// The first label among the first PSK identities, or else the label of the TLS 1.2 ticket.
pub(super) fn read_label(
    keyring: &RouteKeyring,
    hello: &ClientHello<'_>,
    now: Time,
) -> Option<Label> {
    let psks = hello.pre_shared_key.iter();
    let identities = psks.flat_map(|psks| psks.identities().take(MAX_IDENTITIES));
    let mut tokens = identities
        .map(|psk| psk.identity)
        .chain(hello.session_ticket)
        .peekable();
    // Most hellos of new clients have no token. Then no keys are needed.
    tokens.peek()?;
    let keys = keyring.keys(now);
    tokens.find_map(|token| Some(ticket::read_label(&keys, token)?.1))
}
