//! Connects rustls with `sessile_proto::resumption`. This adapter fetches the sessions that a ClientHello
//! names, and verifies client certificates again. It makes no decision.

use std::sync::{Arc, Mutex, MutexGuard};

use rustls::HandshakeKind;
use rustls::server::StoresServerSessions;
use rustls::server::{ClientHello as RustlsHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sessile_proto::Time;
use sessile_proto::hello::ClientHello;
use sessile_proto::resumption::{
    self, Decision, EarlyDataPlan, EarlyDataRequest, EarlyDataTerms, Inputs, Offers, Progress,
    Resumption,
};
use sessile_proto::verdict::Reason;

use super::certificate::CertificateSet;
use super::client_auth::ClientVerifier;
use super::early_data;
use super::template::Template;
use crate::locks::locked;
use crate::store::StoreContext;

/// The session storage, ticketer and certificate resolver of one handshake.
pub(super) struct HandshakeSessions {
    /// `None` if the site asks no client for a certificate.
    client_verifier: Option<Arc<ClientVerifier>>,
    certificates: Arc<CertificateSet>,
    now: Time,
    resumption: Mutex<Resumption>,
}

impl HandshakeSessions {
    /// Fetches the stored sessions that a ClientHello names.
    pub(super) async fn fetch(
        hello: &ClientHello<'_>,
        template: &Template,
        context: &mut StoreContext,
    ) -> Self {
        let store = &template.sessions.store;
        let schedule = Arc::clone(&context.schedule);
        let now = context.now;
        let policy = template.policy;
        let mut named = resumption::stored_sessions(hello, &schedule, store.is_shared());

        let request = EarlyDataRequest::new(hello, &named, policy.accepts_early_data());
        let can_store_single_use = store.can_store_single_use() && schedule.can_seal();
        let terms = EarlyDataTerms {
            limit: policy.early_data,
            can_store: can_store_single_use,
            now,
        };
        let mut consumed = None;
        let early_data = match request {
            EarlyDataRequest::None => EarlyDataPlan::NotOffered,
            EarlyDataRequest::Refused(why) => EarlyDataPlan::Refused(why),
            EarlyDataRequest::Consume {
                key,
                obfuscated_age,
            } => {
                let result = store.consume(&key, context).await;
                let session = early_data::consumed_session(&result);
                consumed = Some((key, result.session));
                EarlyDataPlan::after_consume(key, obfuscated_age, session, terms)
            }
        };

        match &consumed {
            // The consumed session is the first offer. rustls resumes the first acceptable offer, so the
            // other sessions are not fetched.
            Some((_, Ok(_))) => named.clear(),
            Some((key, Err(_))) => named.retain(|named| named != key),
            None => {}
        }
        let mut fetched = store.find(named, context).await;
        let consumed_key = consumed.as_ref().map(|(key, _)| *key);
        fetched.extend(consumed);

        let inputs = Inputs {
            policy,
            offers: Offers::new(hello),
            fetched,
            early_data,
            consumed: consumed_key,
            can_store_single_use,
            schedule,
            forgotten: store.forget_rules(),
            now,
        };
        Self {
            client_verifier: template.client_verifier.clone(),
            certificates: Arc::clone(&template.certificates),
            now,
            resumption: Mutex::new(Resumption::new(inputs)),
        }
    }

    /// Records the progress of rustls. Call this after each call to rustls.
    pub(super) fn observe(&self, kind: Option<HandshakeKind>, suite: Option<u16>) {
        let progress = match kind {
            None => Progress::Undecided,
            Some(HandshakeKind::Full) => Progress::Full,
            Some(HandshakeKind::FullWithHelloRetryRequest) => Progress::FullAfterRetry,
            Some(HandshakeKind::Resumed) => Progress::Resumed,
        };
        self.lock().observe(progress, suite);
    }

    /// The decisions and the state of this handshake. rustls calls methods that take the same lock, so
    /// hold the lock for one call only.
    pub(super) fn lock(&self) -> MutexGuard<'_, Resumption> {
        locked(&self.resumption)
    }

    /// Performs a decision. Returns the session for rustls; `None` if the session is refused.
    fn perform(&self, decision: Decision) -> Option<Vec<u8>> {
        let candidate = match decision {
            Decision::Admit(session) => return Some(session),
            Decision::Refuse => return None,
            Decision::VerifyClient(candidate) => candidate,
        };
        let verified = match &self.client_verifier {
            Some(verifier) => verifier.verify_again(candidate.session(), self.now),
            None => Err(Reason::ClientAuth),
        };
        let mut resumption = self.lock();
        match verified {
            Ok(()) => Some(resumption.admit(candidate)),
            Err(reason) => {
                resumption.refuse(reason);
                None
            }
        }
    }
}

impl StoresServerSessions for HandshakeSessions {
    /// rustls calls this in two cases. In TLS 1.2, `id` is a session ID, and the client's Finished was
    /// verified. In TLS 1.3, `id` is a PSK identity, and [`ProducesTickets::enabled`] was false.
    fn put(&self, id: Vec<u8>, session: Vec<u8>) -> bool {
        self.lock().add_session(&id, &session)
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        let decision = self.lock().offer_session_id(id);
        self.perform(decision)
    }

    /// rustls calls this for a TLS 1.3 PSK identity if [`ProducesTickets::enabled`] was false.
    fn take(&self, identity: &[u8]) -> Option<Vec<u8>> {
        self.decrypt(identity)
    }

    /// In TLS 1.2, rustls calls this only after it has chosen a full handshake.
    fn can_cache(&self) -> bool {
        let mut resumption = self.lock();
        resumption.full_tls12_chosen();
        resumption.gives_session_id()
    }
}

impl ProducesTickets for HandshakeSessions {
    fn enabled(&self) -> bool {
        self.lock().gives_tickets()
    }

    fn lifetime(&self) -> u32 {
        self.lock().ticket_lifetime()
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        let mut random = [0; 32];
        aws_lc_rs::rand::fill(&mut random).ok()?;
        self.lock().add_ticket(session, random)
    }

    fn decrypt(&self, token: &[u8]) -> Option<Vec<u8>> {
        let decision = self.lock().offer_token(token);
        self.perform(decision)
    }
}

impl ResolvesServerCert for HandshakeSessions {
    fn resolve(&self, hello: RustlsHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certificate = self.certificates.choose(&hello)?;
        let chain_end = certificate.next_expiry(self.now);
        self.lock().certificate_chosen(chain_end);
        Some(Arc::clone(&certificate.certified))
    }
}

impl std::fmt::Debug for HandshakeSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandshakeSessions").finish_non_exhaustive()
    }
}
