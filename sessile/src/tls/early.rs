//! Early data (0-RTT): whether it may be taken is decided here, before the library sees the hello. The
//! library's own checks come on top; none of them takes the place of the store's word that the session
//! was not used before.

use rustls::{ServerConfig, ServerConnection};
use sessile_proto::Time;
use sessile_proto::hello::ClientHello;
use sessile_proto::keys::Schedule;
use sessile_proto::ticket::Envelope;
use sessile_proto::verdict::{Reason, Rejection};

use super::{Template, value};
use crate::store::{Key, Patience};

/// How far a hello's age by the client's clock may be from its age by ours (RFC 9846, 8.3). The library
/// allows a minute, so that it never refuses for that what passed here.
const MAX_SKEW_MILLIS: u64 = 10_000;

/// Most bytes of refused early data that are read and thrown away: more than any session allows, with
/// what encryption adds. Over that the connection ends.
const MAX_SKIPPED: u32 = 4 * crate::config::MAX_EARLY_DATA;

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
        Ok(_) if !spent.same_node => Plan::Refused(Rejection::Store),
        Ok(envelope) if !is_fresh(envelope, first.obfuscated_ticket_age, now) => {
            Plan::Refused(Rejection::StaleHello)
        }
        Ok(_) => Plan::Granted(key),
        Err(_) => Plan::Refused(Rejection::Store),
    };
    (plan, Some((key, spent.session)))
}

impl Plan {
    /// Configures the library for a connection. `single_use`: its sessions will be such that may bring
    /// early data, so many bytes of it.
    pub(super) const fn configure(self, config: &mut ServerConfig, single_use: Option<u32>) {
        config.max_early_data_size = match (self, single_use) {
            (Self::Refused(_), _) => MAX_SKIPPED,
            (_, Some(bytes)) => bytes,
            (_, None) => 0,
        };
        config.send_half_rtt_data = matches!(self, Self::Granted(_));
    }

    /// Makes sure that refused early data is refused, whatever the library thinks of it.
    pub(super) fn enforce(self, tls: &mut ServerConnection) {
        if !matches!(self, Self::Granted(_)) {
            tls.reject_early_data();
        }
    }
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
    fn what_is_too_short_to_have_an_age_is_not_fresh() {
        for len in 0..12 {
            let short = envelope(&[0; 12][..len]);
            assert!(!is_fresh(&short, 0, Time::from_unix_millis(0)));
        }
        assert!(!is_fresh(b"", 0, Time::from_unix_millis(0)));
    }
}
