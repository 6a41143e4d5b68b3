//! Labels: the server's number inside a ticket of a sessile server, read with the route keys. They
//! open labels and no ticket; nothing has to be remembered for it, so every balancer of a farm leads
//! a client to the same server.

use sessile_proto::Time;
use sessile_proto::hello::ClientHello;
use sessile_proto::ticket::{self, Label};

use crate::config::{Config, Key};
use crate::key::{FileError, RouteKeyring};

/// PSK identities that are looked at: a client sends its best ones first, and each one that has no
/// label costs a try with every route key.
pub(super) const MAX_IDENTITIES: usize = 4;

/// The route keys of the farm.
pub(super) struct Labels {
    keyring: RouteKeyring,
}

impl Labels {
    /// Reads the key file; `None` where there is to be no key, or none is set and the state folder
    /// has none. `had_one`: it had one before, and is not to lose it unasked.
    pub(super) fn open(config: &Config, had_one: bool) -> Result<Option<Self>, FileError> {
        let Key::File(path) = &config.key else {
            return Ok(None);
        };
        match RouteKeyring::open(path) {
            Ok(keyring) => Ok(Some(Self { keyring })),
            Err(FileError::Missing { .. }) if !had_one && *path == config.default_key_file() => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The first label among the first PSK identities, else that of the TLS 1.2 ticket.
    pub(super) fn read(&self, hello: &ClientHello<'_>, now: Time) -> Option<Label> {
        let identities = hello.pre_shared_key.iter().flat_map(|psks| {
            let identities = psks.identities().take(MAX_IDENTITIES);
            identities.map(|psk| psk.identity)
        });
        let mut tokens = identities.chain(hello.session_ticket).peekable();
        tokens.peek()?;
        let keys = self.keyring.keys(now);
        tokens.find_map(|token| Some(ticket::read_label(&keys, token)?.1))
    }

    /// The farm's name.
    pub(super) fn scope(&self) -> String {
        self.keyring.scope()
    }
}
