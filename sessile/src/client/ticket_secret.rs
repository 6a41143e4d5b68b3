//! Keeps the secret that decrypts a server's TLS 1.3 tickets, for the time of the connection.

use std::fmt;
use std::sync::Mutex;

use rustls::KeyLog;
use zeroize::Zeroizing;

use crate::locks::locked;

/// Takes the server's first application traffic secret from rustls. Nothing writes it anywhere.
#[derive(Default)]
pub(super) struct TicketSecret(Mutex<Option<Zeroizing<Vec<u8>>>>);

impl TicketSecret {
    /// The secret, once the server's Finished has arrived. Always `None` with TLS 1.2.
    pub(super) fn get(&self) -> Option<Zeroizing<Vec<u8>>> {
        locked(&self.0).clone()
    }
}

impl KeyLog for TicketSecret {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if label == LABEL {
            *locked(&self.0) = Some(Zeroizing::new(secret.to_vec()));
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label == LABEL
    }
}

/// The secret's name in the format of SSLKEYLOGFILE (RFC 9850).
const LABEL: &str = "SERVER_TRAFFIC_SECRET_0";

impl fmt::Debug for TicketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketSecret").finish_non_exhaustive()
    }
}
