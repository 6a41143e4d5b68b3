//! Makes a rustls connection that accepts or skips early data (0-RTT; RFC 9846, 4.2.10).
//!
//! rustls applies one limit to accepted plaintext and to skipped ciphertext, although ciphertext is
//! longer. If rustls refuses early data that sessile granted, the handshake starts again with a larger
//! limit.

use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};
use sessile_proto::record::HEADER_LEN;
use sessile_proto::resumption::{ConsumedSession, EarlyDataPlan};
use sessile_proto::ticket::Envelope;
use sessile_proto::verdict::Reason;

use super::connection::{Connection, MAX_OUTPUT};
use super::rustls_session;
use super::unbuffered::Unbuffered;
use crate::store::Consumed;

/// Most bytes of refused early data that are skipped. The connection ends if more bytes come.
///
/// The limit is higher than the early data of any session plus the overhead of encryption.
const MAX_SKIPPED: u32 = 4 * crate::config::MAX_EARLY_DATA;

/// The record content type of a ClientHello (RFC 9846, 5.1).
const HANDSHAKE: u8 = 22;

/// Reads the inputs of the early data plan from the store's answer about a consumed session.
///
/// # Errors
/// The reason why the store returned no session.
pub(super) fn consumed_session(consumed: &Consumed) -> Result<ConsumedSession, Reason> {
    let bytes = consumed.session.as_ref().map_err(|reason| *reason)?;
    let session = Envelope::decode(bytes)
        .map(|envelope| envelope.value)
        .unwrap_or_default();
    Ok(ConsumedSession {
        is_certain: consumed.is_certain,
        age: rustls_session::age(session),
        announced: rustls_session::announced_early_data(session),
    })
}

/// Makes a connection that follows the plan.
///
/// `single_use` is the number of bytes of early data that new sessions announce. With `None`, new
/// sessions announce no early data, and the connection accepts none.
pub(super) fn new_connection(
    plan: EarlyDataPlan,
    mut config: ServerConfig,
    single_use: Option<u32>,
) -> Result<Connection, rustls::Error> {
    let is_granted = matches!(plan, EarlyDataPlan::Granted(_)) && single_use.is_some();
    config.max_early_data_size = match (single_use, plan) {
        (Some(bytes), _) => bytes,
        (None, EarlyDataPlan::NotOffered) => 0,
        (None, _) => MAX_SKIPPED,
    };
    if single_use.is_none() && matches!(plan, EarlyDataPlan::NotOffered) {
        return Unbuffered::new(config).map(Connection::Unbuffered);
    }
    config.send_half_rtt_data = is_granted;
    let mut tls = ServerConnection::new(Arc::new(config)).map(Box::new)?;
    tls.set_buffer_limit(Some(MAX_OUTPUT));
    if let Some(bytes) = single_use {
        tls.set_resumption_data(&bytes.to_be_bytes());
    }
    // By default, rustls accepts early data for any session with a plausible age.
    if !is_granted {
        tls.reject_early_data();
    }
    Ok(Connection::Buffered(tls))
}

/// Passes the ClientHello to rustls. True if rustls accepts the early data that follows.
pub(super) fn accepts_early_data(tls: &mut Connection, mut hello: &[u8]) -> bool {
    while !hello.is_empty() {
        if !matches!(tls.receive(&mut hello), Ok(Ok(()))) {
            return false;
        }
    }
    tls.has_early_data()
}

/// The length in bytes of the handshake records at the start of `received`.
pub(super) fn hello_len(received: &[u8]) -> usize {
    let mut end = 0;
    while let Some([HANDSHAKE, _, _, high, low, ..]) = received.get(end..) {
        end += HEADER_LEN + usize::from(u16::from_be_bytes([*high, *low]));
    }
    end.min(received.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_ends_at_the_first_record_of_another_type() {
        let hello = [22, 3, 1, 0, 2, 1, 0];
        let early = [23, 3, 3, 0, 1, 9];
        assert_eq!(hello_len(&[&hello[..], &early].concat()), 7);
        assert_eq!(hello_len(&[hello, hello].concat()), 14);
        for len in 0..hello.len() {
            assert!(hello_len(&hello[..len]) <= len);
        }
        assert_eq!(hello_len(&early), 0);
    }
}
