//! What one handshake knows of sessions. The TLS library asks it for sessions and hands it new
//! ones; it answers from what was fetched beforehand and collects what has to be stored. Its
//! answers carry reasons, from which the verdict is made.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest;
use rustls::HandshakeKind;
use rustls::server::{ProducesTickets, StoresServerSessions};
use sessile_proto::Time;
use sessile_proto::hello::ClientHello;
use sessile_proto::keys::Schedule;
use sessile_proto::ticket::{
    self, Binding, Class, ClientAuth, Envelope, Expected, ForgetRules, Id, Issuer, SRID_LEN,
};
use sessile_proto::verdict::{self, EarlyData, How, Reason, Rejection, Verdict};

use super::client_auth::Clients;
use super::early::{self, Plan};
use super::offered::{self, MAX_IDENTITIES};
use super::{Sessions, Template, value};
use crate::store::{Key, Patience, Put};

/// TLS 1.2 on the wire.
pub(super) const TLS12: u16 = 0x0303;

/// TLS 1.3 on the wire.
pub(super) const TLS13: u16 = 0x0304;

/// Most bytes of a session that is kept. A client brings a sealed one back in its hello, and two of
/// them have to fit into what is read of a hello.
const MAX_VALUE: usize = 6 * 1024;

/// One handshake's view of sessions.
pub(super) struct Context {
    now: Time,
    schedule: Arc<Schedule>,
    issuer: Issuer,
    site: u64,
    /// Whose certificates are accepted; `None`: nobody is asked for one.
    clients: Option<Arc<Clients>>,
    server_name: String,
    version: u16,
    extended_master_secret: bool,
    psk_dhe: bool,
    lifetime: std::time::Duration,
    cache: bool,
    /// Whether sessions are in a store that may drop them by itself.
    shared: bool,
    tickets: bool,
    /// Whether sealed tickets are accepted.
    sealed: bool,
    /// Whether tickets are sealed here and now; otherwise they name a stored session.
    seals: bool,
    /// Whether its TLS 1.3 sessions are stored for single use, so that they may bring early data.
    single_use: bool,
    /// What was decided before the library had a look.
    early_data: Plan,
    /// The session for single use that was taken out of the store for this hello.
    spent: Option<Key>,
    forgotten: Arc<ForgetRules>,
    /// What the store said of the sessions that the hello names.
    fetched: Vec<(Key, Result<Vec<u8>, Reason>)>,
    /// The hello's random.
    random: [u8; 32],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kind: Option<HandshakeKind>,
    suite: u16,
    /// The session that was handed to the library last.
    admitted: Option<Admitted>,
    looked_at: usize,
    refused: Vec<Reason>,
    outbox: Vec<Put>,
    /// The library would not have taken the early data that was granted.
    declined: bool,
    /// The client had to send its hello again.
    retried: bool,
    /// Sessions that this connection made or resumed, as far as they are in the store.
    owned: Vec<Key>,
}

impl State {
    fn new(hello: &ClientHello<'_>, version: u16) -> Self {
        Self {
            refused: offered::beside(hello, version),
            ..Self::default()
        }
    }
}

#[derive(Clone, Copy)]
struct Admitted {
    how: How,
    origin: Origin,
    key: Option<Key>,
}

/// What a session inherits from the full handshake that it goes back to.
#[derive(Clone, Copy)]
struct Origin {
    established: Time,
    server: u32,
    suite: u16,
}

impl Context {
    /// Fetches the stored sessions that a hello names, and makes them the handshake's context.
    pub(super) async fn prefetch(
        hello: &ClientHello<'_>,
        template: &Template,
        now: Time,
        patience: &mut Patience,
    ) -> Self {
        let Sessions {
            store,
            keys,
            issuer,
            lifetime,
            sealed,
            ..
        } = &*template.sessions;
        let schedule = keys.schedule(now);
        let version = if hello.offers_tls13() { TLS13 } else { TLS12 };
        let mut named = offered::stored(hello, &schedule, version, store.is_shared());
        let (early_data, given) =
            early::plan(hello, template, &named, &schedule, now, patience).await;
        let single_use = version == TLS13
            && !matches!(early_data, Plan::Refused(_))
            && template.keeps_single_use(&schedule);
        let spent = given.as_ref().map(|(key, _)| *key);
        match &given {
            // The library takes the first session that will do.
            Some((_, Ok(_))) => named.clear(),
            _ => named.retain(|key| Some(*key) != spent),
        }
        let mut fetched = store.find(named, &schedule, now, patience).await;
        fetched.extend(given);
        let tickets = template.sessions.issues_tickets();
        let wants_tickets = hello.session_ticket.is_some();
        Self {
            now,
            issuer: *issuer,
            site: template.site,
            clients: template.clients.clone(),
            server_name: hello
                .server_name
                .map(str::to_ascii_lowercase)
                .unwrap_or_default(),
            version,
            extended_master_secret: version == TLS13 || hello.extended_master_secret,
            psk_dhe: hello.psk_modes.is_some_and(|modes| modes.psk_dhe_ke),
            lifetime: (*lifetime).min(schedule.max_lifetime()),
            // A client that takes a ticket will not come back with the session ID.
            // Where the clock and the key disagree there is no ticket to take.
            cache: store.is_enabled() && !(tickets && wants_tickets && schedule.can_seal()),
            shared: store.is_shared(),
            tickets,
            sealed: *sealed,
            // With a client's certificates in it, a ticket's size would show whose it is; and without
            // them, at the same site, that it has none.
            seals: *sealed && !(template.clients.is_some() && store.is_shared()),
            single_use,
            early_data,
            spent,
            forgotten: store.forgotten(),
            schedule,
            fetched,
            state: Mutex::new(State::new(hello, version)),
            random: offered::random(hello),
        }
    }

    /// The library does not take the early data that was granted: the handshake begins anew, without.
    pub(super) fn begin_again(&self, hello: &ClientHello<'_>) {
        *self.state() = State {
            declined: true,
            ..State::new(hello, self.version)
        };
    }

    /// Takes note of how far the handshake is, after every step of the library.
    pub(super) fn observe(&self, kind: Option<HandshakeKind>, suite: Option<u16>) {
        let mut state = self.state();
        state.retried |= kind == Some(HandshakeKind::FullWithHelloRetryRequest);
        state.kind = kind;
        state.suite = suite.unwrap_or(state.suite);
    }

    /// The keys of this handshake's time.
    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What has to be stored before anything more is sent.
    pub(super) fn take_outbox(&self) -> Vec<Put> {
        std::mem::take(&mut self.state().outbox)
    }

    /// Whether its TLS 1.3 sessions are stored for single use.
    pub(super) fn is_single_use(&self) -> bool {
        self.single_use && !self.state().declined
    }

    /// What may become of the hello's early data.
    pub(super) const fn early_data_plan(&self) -> Plan {
        self.early_data
    }

    /// How a handshake came out, and when its session's full handshake was. To be asked once, when the
    /// client cannot change it any more.
    pub(super) fn settle(&self) -> (Verdict, Time) {
        let mut state = self.state();
        let resumed = state.kind == Some(HandshakeKind::Resumed);
        match state.admitted {
            Some(admitted) if resumed => {
                (Verdict::Resumed(admitted.how), admitted.origin.established)
            }
            declined => {
                // Found, right in every respect that we know of, and declined by the library.
                if let Some(admitted) = declined {
                    let suite_differs = admitted.origin.suite != state.suite;
                    state.refused.push(if suite_differs {
                        Reason::SuiteMismatch
                    } else {
                        Reason::OldFormat
                    });
                }
                (verdict::judge(None, &state.refused), self.now)
            }
        }
    }

    /// What became of early data, `accepted` by the library or not.
    pub(super) fn early_data(&self, accepted: bool) -> EarlyData {
        let state = self.state();
        let resumed = state
            .admitted
            .filter(|_| state.kind == Some(HandshakeKind::Resumed));
        EarlyData::Rejected(match self.early_data {
            Plan::NotOffered => return EarlyData::None,
            Plan::Refused(why) => why,
            Plan::Granted(_) if accepted => return EarlyData::Accepted,
            Plan::Granted(_) if state.retried => Rejection::HelloRetry,
            Plan::Granted(first) => match resumed {
                None => Rejection::NotResumed,
                Some(admitted) if admitted.key != Some(first) => Rejection::NotFirstIdentity,
                // Everything else that the library asks for was looked at before.
                Some(_) => Rejection::AlpnMismatch,
            },
        })
    }

    /// The session for single use that a finished handshake resumed, where the store has it still.
    pub(super) fn used_up(&self) -> Option<Key> {
        let key = self.resumed_key().filter(Key::is_single_use);
        key.filter(|key| Some(*key) != self.spent)
    }

    /// The stored sessions that are a finished connection's own: those that it made, and the one that it
    /// resumed if that can be used again.
    pub(super) fn owned(&self) -> Vec<Key> {
        let resumed = self.resumed_key().filter(|key| !key.is_single_use());
        let mut owned = self.state().owned.clone();
        owned.extend(resumed);
        owned
    }

    /// The stored session that the handshake resumed.
    fn resumed_key(&self) -> Option<Key> {
        let state = self.state();
        let resumed = state.kind == Some(HandshakeKind::Resumed);
        state.admitted.filter(|_| resumed)?.key
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a session to the library if it may resume here, and notes the reason where not.
    fn admit(&self, how: How, key: Option<Key>, sealed: Result<&[u8], Reason>) -> Option<Vec<u8>> {
        let mut state = self.state();
        let admitted = sealed
            .and_then(Envelope::decode)
            .and_then(|envelope| {
                envelope
                    .admits(&self.expected(), self.now)
                    .map(|()| envelope)
            })
            .and_then(|envelope| match how {
                How::Psk if !self.psk_dhe => Err(Reason::NoDheMode),
                _ => Ok(envelope),
            })
            .and_then(|envelope| match &self.clients {
                Some(clients) => clients.admit(envelope.value, self.now).map(|()| envelope),
                None => Ok(envelope),
            });
        match admitted {
            Ok(envelope) => {
                state.admitted = Some(Admitted {
                    how,
                    origin: Origin {
                        established: envelope.established,
                        server: envelope.server,
                        suite: envelope.binding.suite,
                    },
                    key,
                });
                Some(envelope.value.to_vec())
            }
            Err(reason) => {
                state.refused.push(reason);
                None
            }
        }
    }

    fn expected(&self) -> Expected<'_> {
        Expected {
            value_format: value::FORMAT,
            site: self.site,
            server_name: &self.server_name,
            client_auth: self.client_auth(),
            version: self.version,
            lifetime: self.lifetime,
            extended_master_secret: self.extended_master_secret,
            forgotten: &self.forgotten,
        }
    }

    fn client_auth(&self) -> ClientAuth {
        self.clients
            .as_ref()
            .map_or(ClientAuth::None, |clients| clients.mode)
    }

    fn fetched(&self, key: &Key) -> Result<&[u8], Reason> {
        let found = self.fetched.iter().find(|(fetched, _)| fetched == key);
        match found {
            Some((_, Ok(envelope))) => Ok(envelope),
            Some((_, Err(reason))) => Err(*reason),
            None => Err(Reason::Unknown),
        }
    }

    /// Opens a ticket or identity of whatever kind.
    fn open(&self, how: How, token: &[u8]) -> Option<Vec<u8>> {
        if !self.tickets {
            self.state().refused.push(Reason::TicketsDisabled);
            return None;
        }
        match ticket::read_label(self.schedule.routes(), token) {
            Some((_, label)) if ticket::is_revoked(&self.schedule, label) => {
                self.state().refused.push(Reason::Revoked);
                None
            }
            Some((id, label)) if label.class == Class::Stored => {
                let key = Key::stored(&id);
                let mut found = self.fetched(&key);
                let other_life = label.incarnation != self.issuer.incarnation;
                let ours = label.server == self.issuer.server;
                // A shared store outlives its servers, and may have evicted the session or restarted empty.
                if found == Err(Reason::Unknown) && ours && other_life && !self.shared {
                    found = Err(Reason::Lost);
                }
                self.admit(how, Some(key), found)
            }
            Some(_) if !self.sealed => {
                // Sealed before a setting came that needs sessions to be removable.
                self.state().refused.push(Reason::Revoked);
                None
            }
            Some((id, label)) => {
                let opened = ticket::open(&self.schedule, &id, label, token);
                self.admit(how, None, opened.as_deref().map_err(|reason| *reason))
            }
            None => match Key::single_use(token).map(|key| (key, self.fetched(&key))) {
                Some((key, found)) if self.single_use || found != Err(Reason::Unknown) => {
                    self.admit(how, Some(key), found)
                }
                _ => {
                    self.state().refused.push(Reason::UnknownKey);
                    None
                }
            },
        }
    }

    /// The full handshake of the session that is being announced.
    ///
    /// The age is inherited only by a handshake that resumed. TLS 1.2 announces a ticket while it
    /// still reads the hello only if it resumes; everything else comes after [`Self::observe`].
    fn origin(&self, state: &State) -> Origin {
        let resumes = matches!(state.kind, None | Some(HandshakeKind::Resumed));
        match state.admitted {
            Some(admitted) if resumes => admitted.origin,
            _ => Origin {
                established: self.now,
                server: self.issuer.server,
                suite: state.suite,
            },
        }
    }

    fn envelope<'a>(&'a self, origin: Origin, value: &'a [u8]) -> Envelope<'a> {
        Envelope {
            value_format: value::FORMAT,
            binding: Binding {
                site: self.site,
                server_name: &self.server_name,
                client_auth: self.client_auth(),
                version: self.version,
                suite: origin.suite,
                extended_master_secret: self.extended_master_secret,
            },
            server: origin.server,
            established: origin.established,
            expires: origin.established.plus(self.lifetime),
            value,
        }
    }

    /// A nonce for a ticket. The hello's random is mixed in, so that a machine that was cloned
    /// with the state of its generator does not use one twice.
    fn fresh_id(&self) -> Option<Id> {
        let mut drawn = [0; 32];
        aws_lc_rs::rand::fill(&mut drawn).ok()?;
        let mut mixed = digest::Context::new(&digest::SHA256);
        mixed.update(&drawn);
        mixed.update(&self.random);
        mixed.finish().as_ref().first_chunk().copied()
    }

    fn store(&self, state: &mut State, key: Key, envelope: &Envelope<'_>) {
        let mut bytes = Vec::with_capacity(envelope.encoded_len());
        envelope.encode(&mut bytes);
        state.owned.push(key);
        state.outbox.push(Put {
            key,
            envelope: bytes,
            established: envelope.established,
            expires: envelope.expires,
        });
    }
}

impl StoresServerSessions for Context {
    /// A new TLS 1.2 session ID, once the client's Finished was verified; or a TLS 1.3 identity for
    /// single use.
    fn put(&self, id: Vec<u8>, value: Vec<u8>) -> bool {
        let key = match self.version {
            TLS12 => Key::session_id(&id).filter(|_| self.cache),
            _ => Key::single_use(&id).filter(|_| self.is_single_use()),
        };
        let Some(key) = key.filter(|_| value.len() <= MAX_VALUE) else {
            return false;
        };
        let mut state = self.state();
        let origin = self.origin(&state);
        self.store(&mut state, key, &self.envelope(origin, &value));
        true
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        let key = Key::session_id(id)?;
        self.admit(How::SessionId, Some(key), self.fetched(&key))
    }

    /// Asked for a TLS 1.3 identity where new ones are for single use, or tickets are off.
    fn take(&self, identity: &[u8]) -> Option<Vec<u8>> {
        self.decrypt(identity)
    }

    fn can_cache(&self) -> bool {
        self.cache
    }
}

impl ProducesTickets for Context {
    fn enabled(&self) -> bool {
        self.tickets && !self.is_single_use()
    }

    /// Seconds that are left of the session's life.
    fn lifetime(&self) -> u32 {
        let state = self.state();
        let origin = self.origin(&state);
        let left = origin
            .established
            .plus(self.lifetime)
            .since(self.now)
            .as_secs();
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, value: &[u8]) -> Option<Vec<u8>> {
        if value.len() > MAX_VALUE {
            return None;
        }
        let id = self.fresh_id()?;
        let mut state = self.state();
        let origin = self.origin(&state);
        let envelope = self.envelope(origin, value);
        if self.seals {
            return ticket::seal(&self.schedule, self.issuer, id, &envelope);
        }
        let srid: [u8; SRID_LEN] = ticket::issue(&self.schedule, self.issuer, Class::Stored, id)?;
        self.store(&mut state, Key::stored(&id), &envelope);
        Some(srid.to_vec())
    }

    fn decrypt(&self, token: &[u8]) -> Option<Vec<u8>> {
        {
            let mut state = self.state();
            state.looked_at += 1;
            if state.looked_at > MAX_IDENTITIES {
                return None;
            }
        }
        let how = if self.version == TLS13 {
            How::Psk
        } else {
            How::Ticket
        };
        self.open(how, token)
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}
