//! Early data (0-RTT): whether it may be taken is decided here, before the library sees the hello. The
//! library's own checks come on top; none of them takes the place of the store's word that the session
//! was not used before. Where they refuse what was granted here, the handshake begins anew without: the
//! library has one figure for what it takes and for what it throws away, and what is refused is larger
//! on the wire than it was allowed to be.

use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};
use sessile_proto::Time;
use sessile_proto::hello::ClientHello;
use sessile_proto::keys::Schedule;
use sessile_proto::record::HEADER_LEN;
use sessile_proto::ticket::Envelope;
use sessile_proto::verdict::{Reason, Rejection};

use super::{Template, value};
use crate::store::{Key, Patience};

/// How far a hello's age by the client's clock may be from its age by ours (RFC 9846, 8.3). The library
/// allows a minute, so that it never refuses for that what passed here.
const MAX_SKEW_MILLIS: u64 = 10_000;

/// Most bytes of refused early data that are read and thrown away: more than any session has ever allowed,
/// with what encryption adds. Over that the connection ends.
const MAX_SKIPPED: u32 = 4 * crate::config::MAX_EARLY_DATA;

/// The content type of a hello's records.
const HANDSHAKE: u8 = 22;

/// What a handshake may do with early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// The hello announces none.
    NotOffered,
    /// This session, the first that the hello offers, is spent for it.
    Granted(Key),
    Refused(Rejection),
}

/// What the store gave out for a hello's early data: a session, or why there is none.
pub(super) type Given = Option<(Key, Result<Vec<u8>, Reason>)>;

/// Decides on the early data that a TLS 1.3 hello announces, and spends its first session for it. `named`
/// holds the stored sessions that the hello offers.
pub(super) async fn plan(
    hello: &ClientHello<'_>,
    template: &Template,
    named: &[Key],
    schedule: &Schedule,
    now: Time,
    patience: &mut Patience,
) -> (Plan, Given) {
    if !hello.early_data {
        return (Plan::NotOffered, None);
    }
    let first = hello
        .pre_shared_key
        .and_then(|psks| psks.identities().next());
    let Some(first) = first.filter(|_| template.takes_early_data()) else {
        return (Plan::Refused(Rejection::Off), None);
    };
    let Some(key) = Key::single_use(first.identity).filter(|key| named.contains(key)) else {
        // Others of its sessions may be for single use; the first is what early data goes with.
        let other = named.iter().any(Key::is_single_use);
        let why = match other {
            true => Rejection::NotFirstIdentity,
            false => Rejection::Off,
        };
        return (Plan::Refused(why), None);
    };
    let store = &template.sessions.store;
    let spent = store.spend(&key, schedule, now, patience).await;
    let plan = match &spent.session {
        Ok(_) if !spent.is_sure || !template.keeps_single_use(schedule) => {
            Plan::Refused(Rejection::Store)
        }
        Ok(envelope) if !is_fresh(envelope, first.obfuscated_ticket_age, now) => {
            Plan::Refused(Rejection::StaleHello)
        }
        // More may come than is taken here today.
        Ok(envelope) if promised(envelope).is_none_or(|bytes| bytes > template.early_data) => {
            Plan::Refused(Rejection::Off)
        }
        Ok(_) => Plan::Granted(key),
        Err(_) => Plan::Refused(Rejection::Store),
    };
    (plan, Some((key, spent.session)))
}

impl Plan {
    /// A connection as planned. `single_use`: its sessions will be such that may bring early data, so many
    /// bytes of it; without it, none is taken either.
    pub(super) fn connect(
        self,
        mut config: ServerConfig,
        single_use: Option<u32>,
    ) -> Result<Box<ServerConnection>, rustls::Error> {
        let granted = matches!(self, Self::Granted(_)) && single_use.is_some();
        config.max_early_data_size = match single_use {
            Some(bytes) => bytes,
            None if self == Self::NotOffered => 0,
            None => MAX_SKIPPED,
        };
        config.send_half_rtt_data = granted;
        let mut tls = ServerConnection::new(Arc::new(config)).map(Box::new)?;
        if let Some(bytes) = single_use {
            tls.set_resumption_data(&bytes.to_be_bytes());
        }
        // Whatever the library thinks of it.
        if !granted {
            tls.reject_early_data();
        }
        Ok(tls)
    }
}

/// Lets the library take in the hello alone, and says whether it takes what comes behind it as early data.
pub(super) fn takes(tls: &mut ServerConnection, mut hello: &[u8]) -> bool {
    while !hello.is_empty() {
        if tls.read_tls(&mut hello).is_err() || tls.process_new_packets().is_err() {
            return false;
        }
    }
    tls.early_data().is_some()
}

/// How many bytes of a first flight are the hello's records. What follows them is of another type.
pub(super) fn hello_len(received: &[u8]) -> usize {
    let mut end = 0;
    while let Some([HANDSHAKE, _, _, high, low, ..]) = received.get(end..) {
        end += HEADER_LEN + usize::from(u16::from_be_bytes([*high, *low]));
    }
    end.min(received.len())
}

/// How much early data the client of a session was told that it may send.
fn promised(envelope: &[u8]) -> Option<u32> {
    value::promised(Envelope::decode(envelope).ok()?.value)
}

/// Whether the client says the same of its session's age as the session does.
fn is_fresh(envelope: &[u8], obfuscated_age: u32, now: Time) -> bool {
    let Ok(Envelope { value, .. }) = Envelope::decode(envelope) else {
        return false;
    };
    let Some((made, added)) = value::made(value) else {
        return false;
    };
    let age = now.unix_millis().saturating_sub(made.saturating_mul(1000));
    let claimed = obfuscated_age.wrapping_sub(added);
    age.abs_diff(claimed.into()) <= MAX_SKEW_MILLIS
}

#[cfg(test)]
mod tests {
    use sessile_proto::ticket::{Binding, ClientAuth};

    use super::*;

    const MADE: u64 = 1_800_000_000;
    const ADDED: u32 = u32::MAX - 7;

    fn envelope(value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let binding = Binding {
            site: 0,
            server_name: "",
            client_auth: ClientAuth::None,
            version: 0x0304,
            suite: 0,
            extended_master_secret: true,
        };
        Envelope {
            value_format: 23,
            binding,
            server: 0,
            established: Time::from_unix_millis(0),
            expires: Time::from_unix_millis(u64::MAX),
            value,
        }
        .encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_hello_is_fresh_where_both_ages_agree_within_ten_seconds() {
        let mut value = b"secret".to_vec();
        value.extend(MADE.to_be_bytes());
        value.extend(ADDED.to_be_bytes());
        let envelope = envelope(&value);
        let fresh = |claimed: u32, age: u64| {
            let now = Time::from_unix_millis(MADE * 1000 + age);
            is_fresh(&envelope, ADDED.wrapping_add(claimed), now)
        };
        assert!(fresh(0, 0) && fresh(5_000, 5_400) && fresh(3_600_000, 3_600_900));
        assert!(fresh(0, 10_000) && !fresh(0, 10_001));
        assert!(fresh(30_000, 20_000) && !fresh(30_001, 20_000));
        // The same hello a quarter of an hour later, and one from a clock that runs backwards.
        assert!(!fresh(5_000, 905_400) && !fresh(0_u32.wrapping_sub(60_000), 0));
    }

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

    #[test]
    fn what_is_too_short_to_have_an_age_is_not_fresh() {
        for len in 0..12 {
            let short = envelope(&[0; 12][..len]);
            assert!(!is_fresh(&short, 0, Time::from_unix_millis(0)));
        }
        assert!(!is_fresh(b"", 0, Time::from_unix_millis(0)));
    }
}
