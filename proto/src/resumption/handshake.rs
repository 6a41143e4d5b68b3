//! One handshake: which of the offered sessions are admitted, and the verdict.

use std::borrow::Cow;
use std::sync::Arc;

use crate::Time;
use crate::keys::Schedule;
use crate::ticket::{self, Class, ClientAuth, Envelope, Expected, ForgetRules, Id, Label};
use crate::verdict::{EarlyData, How, Reason, Rejection, Verdict};

use super::early_data::EarlyDataPlan;
use super::offers::{self, Offers};
use super::policy::{Cache, Policy, Tickets};
use super::store_key::StoreKey;

/// The progress of a handshake, as the TLS library reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// The library has not decided between a full handshake and a resumption.
    #[default]
    Undecided,
    /// A full handshake.
    Full,
    /// A full handshake after a HelloRetryRequest.
    FullAfterRetry,
    /// A resumption, whether or not a HelloRetryRequest came before.
    Resumed,
}

/// The answer of a store for each key: an envelope, or the reason why there is none.
pub type Fetched = Vec<(StoreKey, Result<Vec<u8>, Reason>)>;

/// Everything that is known before the TLS library sees the hello.
pub struct Inputs {
    /// The rules of the site.
    pub policy: Policy,
    /// The offers of the hello.
    pub offers: Offers,
    /// The answers of the store for [`super::stored_sessions`].
    pub fetched: Fetched,
    /// The plan for early data.
    pub early_data: EarlyDataPlan,
    /// The session that the store gave out for the early data of this hello.
    pub consumed: Option<StoreKey>,
    /// True if the store can tell at this moment that a session was not used before.
    pub can_store_single_use: bool,
    /// The keys of this moment.
    pub schedule: Arc<Schedule>,
    /// The rules for sessions that were forgotten on request.
    pub forgotten: Arc<ForgetRules>,
    /// The present time.
    pub now: Time,
}

/// A session that must be in the store before the server sends the flight that announces the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSession {
    /// The key in the store.
    pub key: StoreKey,
    /// An encoded [`Envelope`].
    pub envelope: Vec<u8>,
    /// The time of the session's full handshake.
    pub established: Time,
    /// The time at which the session ends.
    pub expires: Time,
}

/// The facts that a session inherits from its full handshake.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) established: Time,
    /// The end of every session that goes back to this handshake.
    pub(super) expires: Time,
    pub(super) server: u32,
    pub(super) suite: u16,
}

/// The sessions of one handshake.
pub struct Resumption {
    pub(super) inputs: Inputs,
    /// True if the site stores TLS 1.3 sessions for single use at this moment.
    pub(super) makes_single_use: bool,
    pub(super) state: State,
}

/// The part that changes during a handshake.
#[derive(Default)]
pub(super) struct State {
    pub(super) progress: Progress,
    /// The cipher suite, as on the wire; 0 until it is negotiated.
    pub(super) suite: u16,
    /// The session that was handed to the library last.
    pub(super) admitted: Option<Admitted>,
    pub(super) tokens_seen: usize,
    pub(super) refused: Vec<Reason>,
    pub(super) new_sessions: Vec<NewSession>,
    /// Stored sessions that this connection made.
    pub(super) stored: Vec<StoreKey>,
    /// TLS 1.3 tickets that this connection was given.
    pub(super) tickets_given: usize,
    /// True if the library refused the early data that was granted.
    pub(super) early_data_declined: bool,
    /// True if a HelloRetryRequest was sent.
    pub(super) retried: bool,
    /// True if the library has decided on a full TLS 1.2 handshake.
    pub(super) is_full_tls12: bool,
    /// The end of the certificate chain that the library chose.
    pub(super) chain_end: Option<Time>,
}

#[derive(Clone, Copy)]
pub(super) struct Admitted {
    how: How,
    pub(super) origin: Origin,
    key: Option<StoreKey>,
}

/// A session that may resume unless its client's certificate is no longer accepted.
pub struct Candidate {
    admitted: Admitted,
    /// The TLS library's encoding of the session.
    session: Vec<u8>,
}

impl Candidate {
    /// The TLS library's encoding of the session; it holds the client's certificate chain.
    #[must_use]
    pub fn session(&self) -> &[u8] {
        &self.session
    }
}

/// The session behind an offered session ID or token.
struct Found<'a> {
    /// `None` if the session is not in a store.
    key: Option<StoreKey>,
    /// An encoded [`Envelope`].
    envelope: Cow<'a, [u8]>,
}

/// The decision on an offered session.
pub enum Decision {
    /// The library gets this session, in its own encoding.
    Admit(Vec<u8>),
    /// The library gets no session; the reason is noted.
    Refuse,
    /// The caller verifies the client's certificate chain first, and then calls
    /// [`Resumption::admit`] or [`Resumption::refuse`].
    VerifyClient(Candidate),
}

impl Resumption {
    /// A handshake whose hello was read.
    #[must_use]
    pub fn new(mut inputs: Inputs) -> Self {
        let policy = &mut inputs.policy;
        policy.lifetime = policy.lifetime.min(inputs.schedule.max_lifetime());
        // If early data is refused, the client gets sealed tickets, because a store that is down does not
        // affect them.
        let is_refused = matches!(inputs.early_data, EarlyDataPlan::Refused(_));
        let may_bring_early_data = inputs.offers.is_tls13() && policy.accepts_early_data();
        Self {
            makes_single_use: may_bring_early_data && inputs.can_store_single_use && !is_refused,
            state: State::new(&inputs.offers),
            inputs,
        }
    }

    /// Starts again, without early data: the library refused the early data that was granted.
    pub fn restart_without_early_data(&mut self) {
        self.state = State::new(&self.inputs.offers);
        self.state.early_data_declined = true;
    }

    /// Notes when the certificate chain ends that the library sends in a full handshake. `None` if the end
    /// is unknown or has passed.
    pub fn certificate_chosen(&mut self, chain_end: Option<Time>) {
        self.state.chain_end = chain_end;
    }

    /// Notes that the library has decided on a full TLS 1.2 handshake.
    pub fn full_tls12_chosen(&mut self) {
        self.state.is_full_tls12 = true;
    }

    /// Notes the progress of the library. Call this after each of the library's steps.
    pub fn observe(&mut self, progress: Progress, suite: Option<u16>) {
        let state = &mut self.state;
        state.retried |= progress == Progress::FullAfterRetry;
        state.progress = progress;
        state.suite = suite.unwrap_or(state.suite);
    }

    /// The plan for early data.
    #[must_use]
    pub const fn early_data_plan(&self) -> EarlyDataPlan {
        self.inputs.early_data
    }

    /// True if new TLS 1.3 sessions are stored for single use.
    #[must_use]
    pub const fn is_single_use(&self) -> bool {
        self.makes_single_use && !self.state.early_data_declined
    }

    /// Decides on a TLS 1.2 session ID.
    pub fn offer_session_id(&mut self, id: &[u8]) -> Decision {
        let key = StoreKey::session_id(id).ok_or(Reason::Unknown);
        let found = key.and_then(|key| self.fetched(key));
        let candidate = found.and_then(|found| self.candidate(How::SessionId, found));
        self.decide(candidate)
    }

    /// Decides on a TLS 1.2 ticket or a TLS 1.3 identity.
    pub fn offer_token(&mut self, token: &[u8]) -> Decision {
        self.state.tokens_seen += 1;
        if self.state.tokens_seen > offers::MAX_IDENTITIES {
            return Decision::Refuse;
        }
        let how = if self.inputs.offers.is_tls13() {
            How::Psk
        } else {
            How::Ticket
        };
        let found = self.look_up(token);
        let candidate = found.and_then(|found| self.candidate(how, found));
        self.decide(candidate)
    }

    /// Hands a candidate to the library, after its client's certificate was verified.
    pub fn admit(&mut self, candidate: Candidate) -> Vec<u8> {
        self.state.admitted = Some(candidate.admitted);
        candidate.session
    }

    /// Notes why an offered session is not handed to the library.
    pub fn refuse(&mut self, reason: Reason) {
        self.state.refused.push(reason);
    }

    /// The verdict, and the time of the session's full handshake. Call this when the client has finished.
    #[must_use]
    pub fn verdict(&self) -> (Verdict, Time) {
        if let Some(resumed) = self.resumed() {
            return (Verdict::Resumed(resumed.how), resumed.origin.established);
        }
        // The library declined a session that we admitted. The library makes the same comparisons as we do.
        // It also compares the cipher suite, which was not yet negotiated when we admitted the session.
        let declined = self.state.admitted.map(|declined| {
            if declined.origin.suite == self.state.suite {
                Reason::OldFormat
            } else {
                Reason::SuiteMismatch
            }
        });
        let refused = self.state.refused.iter().copied().chain(declined);
        (Verdict::full(refused), self.inputs.now)
    }

    /// The outcome of early data. `is_accepted` is the library's answer.
    #[must_use]
    pub fn early_data(&self, is_accepted: bool) -> EarlyData {
        let granted = match self.inputs.early_data {
            EarlyDataPlan::NotOffered => return EarlyData::None,
            EarlyDataPlan::Refused(why) => return EarlyData::Rejected(why),
            EarlyDataPlan::Granted(_) if is_accepted => return EarlyData::Accepted,
            EarlyDataPlan::Granted(granted) => granted,
        };
        EarlyData::Rejected(match self.resumed() {
            _ if self.state.retried => Rejection::HelloRetry,
            None => Rejection::NotResumed,
            Some(resumed) if resumed.key != Some(granted) => Rejection::NotFirstIdentity,
            // The library compares one more thing than the plan: the application protocol.
            Some(_) => Rejection::AlpnMismatch,
        })
    }

    /// The session for single use that a finished handshake resumed. `None` if early data already consumed
    /// the session.
    #[must_use]
    pub fn to_consume(&self) -> Option<StoreKey> {
        let key = self.resumed()?.key.filter(StoreKey::is_single_use)?;
        (Some(key) != self.inputs.consumed).then_some(key)
    }

    /// The stored sessions of a finished connection: the new sessions, and the resumed session unless it
    /// was for single use.
    #[must_use]
    pub fn owned(&self) -> Vec<StoreKey> {
        let resumed = self.resumed().and_then(|resumed| resumed.key);
        let reusable = resumed.filter(|key| !key.is_single_use());
        let made = self.state.stored.iter().copied();
        made.chain(reusable).collect()
    }

    /// The session that the handshake resumed.
    pub(super) fn resumed(&self) -> Option<Admitted> {
        let has_resumed = self.state.progress == Progress::Resumed;
        self.state.admitted.filter(|_| has_resumed)
    }

    /// Finds the session that a token stands for.
    fn look_up(&self, token: &[u8]) -> Result<Found<'_>, Reason> {
        if self.inputs.policy.tickets() == Tickets::Off {
            return Err(Reason::TicketsDisabled);
        }
        let Some((id, label)) = ticket::read_label(self.inputs.schedule.routes(), token) else {
            return self.look_up_single_use(token);
        };
        if ticket::is_revoked(&self.inputs.schedule, label) {
            return Err(Reason::Revoked);
        }
        if label.class == Class::Stored {
            return self.look_up_stored(&id, label);
        }
        if self.inputs.policy.sessions_are_removable {
            // The ticket is older than a setting that needs removable sessions.
            return Err(Reason::Revoked);
        }
        let envelope = ticket::open(&self.inputs.schedule, &id, label, token)?;
        Ok(Found {
            key: None,
            envelope: Cow::Owned(envelope),
        })
    }

    fn look_up_stored(&self, id: &Id, label: Label) -> Result<Found<'_>, Reason> {
        let issuer = self.inputs.policy.issuer;
        let is_of_earlier_life =
            label.server == issuer.server && label.incarnation != issuer.incarnation;
        // A shared store outlives its servers, and can have evicted the session itself.
        let is_local = self.inputs.policy.cache != Cache::Shared;
        let found = self.fetched(StoreKey::stored(id));
        found.map_err(|reason| match reason {
            Reason::Unknown if is_of_earlier_life && is_local => Reason::Lost,
            reason => reason,
        })
    }

    /// Finds a session for single use, whose identity is random and has no label.
    fn look_up_single_use(&self, token: &[u8]) -> Result<Found<'_>, Reason> {
        let key = StoreKey::single_use(token).ok_or(Reason::UnknownKey)?;
        self.fetched(key).map_err(|reason| match reason {
            // At a site that makes no sessions for single use, any random token looks like such a session.
            Reason::Unknown if !self.makes_single_use => Reason::UnknownKey,
            reason => reason,
        })
    }

    fn fetched(&self, key: StoreKey) -> Result<Found<'_>, Reason> {
        let mut all = self.inputs.fetched.iter();
        let (_, fetched) = all
            .find(|(other, _)| *other == key)
            .ok_or(Reason::Unknown)?;
        match fetched {
            Ok(envelope) => Ok(Found {
                key: Some(key),
                envelope: Cow::Borrowed(envelope),
            }),
            Err(reason) => Err(*reason),
        }
    }

    /// Compares a session that was found with this handshake.
    fn candidate(&self, how: How, found: Found<'_>) -> Result<Candidate, Reason> {
        let envelope = Envelope::decode(&found.envelope)?;
        envelope.admits(&self.expected(), self.inputs.now)?;
        if how == How::Psk && !self.inputs.offers.psk_dhe_ke {
            return Err(Reason::NoDheMode);
        }
        let lifetime_end = envelope.established.plus(self.inputs.policy.lifetime);
        let origin = Origin {
            established: envelope.established,
            expires: envelope.expires.min(lifetime_end),
            server: envelope.server,
            suite: envelope.binding.suite,
        };
        Ok(Candidate {
            admitted: Admitted {
                how,
                origin,
                key: found.key,
            },
            session: envelope.value.to_vec(),
        })
    }

    fn decide(&mut self, candidate: Result<Candidate, Reason>) -> Decision {
        match candidate {
            Err(reason) => {
                self.refuse(reason);
                Decision::Refuse
            }
            Ok(candidate) if self.inputs.policy.client_auth == ClientAuth::None => {
                Decision::Admit(self.admit(candidate))
            }
            Ok(candidate) => Decision::VerifyClient(candidate),
        }
    }

    fn expected(&self) -> Expected<'_> {
        Expected {
            value_format: self.inputs.policy.session_format,
            site: self.inputs.policy.site,
            server_name: &self.inputs.offers.server_name,
            client_auth: self.inputs.policy.client_auth,
            version: self.inputs.offers.version,
            lifetime: self.inputs.policy.lifetime,
            extended_master_secret: self.inputs.offers.extended_master_secret,
            forgotten: &self.inputs.forgotten,
        }
    }
}

impl State {
    fn new(offers: &Offers) -> Self {
        let mut state = Self::default();
        // In TLS 1.3, the TLS library does not ask us about a TLS 1.2 ticket.
        if offers.offers_tls12_ticket_in_tls13 {
            state.refused.push(Reason::VersionMismatch);
        }
        state
    }
}
