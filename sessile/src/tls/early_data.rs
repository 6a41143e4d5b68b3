//! Early data (0-RTT) in rustls: a connection that takes it, or that skips what it refuses.
//!
//! rustls has one limit for the early data that it takes and for the early data that it skips. What is
//! refused is larger on the wire than what was allowed. So if rustls refuses what was granted, the
//! handshake starts again with a connection that skips.

use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};
use sessile_proto::record::HEADER_LEN;
use sessile_proto::resumption::{ConsumedSession, EarlyDataPlan};
use sessile_proto::ticket::Envelope;
use sessile_proto::verdict::Reason;

use super::rustls_session;
use crate::store::Consumed;

/// Most bytes of refused early data that are skipped: more than any session has ever allowed, with
/// the overhead of encryption. The connection ends if more comes.
const MAX_SKIPPED: u32 = 4 * crate::config::MAX_EARLY_DATA;

/// The content type of a hello's records.
const HANDSHAKE: u8 = 22;

/// What the plan for early data needs to know of a session that the store gave out.
pub(super) fn facts(consumed: &Consumed) -> Result<ConsumedSession, Reason> {
    let envelope = consumed.session.as_ref().map_err(|reason| *reason)?;
    let session = Envelope::decode(envelope).map(|envelope| envelope.value);
    let session = session.unwrap_or_default();
    Ok(ConsumedSession {
        is_certain: consumed.is_certain,
        age: rustls_session::age(session),
        announced: rustls_session::announced_early_data(session),
    })
}

/// A connection that follows the plan. `single_use` is how much early data its new sessions announce;
/// `None` if they cannot bring any, and then none is taken either.
pub(super) fn connect(
    plan: EarlyDataPlan,
    mut config: ServerConfig,
    single_use: Option<u32>,
) -> Result<Box<ServerConnection>, rustls::Error> {
    let is_granted = matches!(plan, EarlyDataPlan::Granted(_)) && single_use.is_some();
    config.max_early_data_size = match (single_use, plan) {
        (Some(bytes), _) => bytes,
        (None, EarlyDataPlan::NotOffered) => 0,
        (None, _) => MAX_SKIPPED,
    };
    config.send_half_rtt_data = is_granted;
    let mut tls = ServerConnection::new(Arc::new(config)).map(Box::new)?;
    if let Some(bytes) = single_use {
        tls.set_resumption_data(&bytes.to_be_bytes());
    }
    // rustls would take early data from any session that it finds fresh.
    if !is_granted {
        tls.reject_early_data();
    }
    Ok(tls)
}

/// Gives rustls the hello alone. True if rustls takes what follows as early data.
pub(super) fn takes_early_data(tls: &mut ServerConnection, mut hello: &[u8]) -> bool {
    while !hello.is_empty() {
        if tls.read_tls(&mut hello).is_err() || tls.process_new_packets().is_err() {
            return false;
        }
    }
    tls.early_data().is_some()
}

/// How many bytes of a first flight are the records of the hello. Records of another type follow.
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
    fn a_hello_ends_where_another_type_begins() {
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
