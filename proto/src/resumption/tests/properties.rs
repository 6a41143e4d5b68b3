//! Properties that hold for every hello, policy and answer of a store.

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 2] = [NAME, "b.example"];
const MODES: [ClientAuth; 3] = [ClientAuth::None, ClientAuth::Optional, ClientAuth::Required];
const VERSIONS: [u16; 2] = [TLS_1_2, TLS_1_3];

impl std::fmt::Debug for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (policy, offers) = (&self.policy, &self.offers);
        write!(f, "{policy:?} {offers:?} at {:?}", self.now)
    }
}

fn time() -> impl Strategy<Value = Time> {
    (0..24_u64).prop_map(|hours| NOON.plus(HOUR * hours as u32))
}

prop_compose! {
    fn any_binding()(
        site in 7..9_u64,
        server_name in prop::sample::select(&NAMES[..]),
        client_auth in prop::sample::select(&MODES[..]),
        version in prop::sample::select(&VERSIONS[..]),
        suite in SUITE..SUITE + 2,
        extended_master_secret in any::<bool>(),
    ) -> Binding<'static> {
        Binding { site, server_name, client_auth, version, suite, extended_master_secret }
    }
}

prop_compose! {
    fn any_envelope()(
        binding in any_binding(),
        established in time(),
        expires in time(),
    ) -> Envelope<'static> {
        Envelope {
            value_format: FORMAT,
            binding,
            server: ISSUER.server,
            established,
            expires,
            value: SESSION,
        }
    }
}

prop_compose! {
    fn any_inputs()(
        client_auth in prop::sample::select(&MODES[..]),
        cache in prop::sample::select(&[Cache::Off, Cache::Local, Cache::Shared][..]),
        version in prop::sample::select(&VERSIONS[..]),
        server_name in prop::sample::select(&NAMES[..]),
        flags in any::<[bool; 6]>(),
        now in time(),
    ) -> Inputs {
        let [tickets_enabled, removable, ems, psk_dhe_ke, accepts_ticket, single_use] = flags;
        let mut inputs = inputs(version);
        inputs.policy.client_auth = client_auth;
        inputs.policy.cache = cache;
        inputs.policy.tickets_enabled = tickets_enabled;
        inputs.policy.sessions_are_removable = removable;
        inputs.offers.server_name = server_name.to_owned();
        inputs.offers.extended_master_secret = ems || version == TLS_1_3;
        inputs.offers.psk_dhe_ke = psk_dhe_ke;
        inputs.offers.accepts_ticket = accepts_ticket;
        inputs.policy.early_data = 1;
        inputs.can_store_single_use = single_use;
        inputs.schedule = schedule_at(1, now);
        inputs.now = now;
        inputs
    }
}

/// An offer of a client: a sealed ticket, a session ID, an identity for single use, or noise.
#[derive(Clone, Debug)]
enum Offer {
    Sealed(Envelope<'static>),
    SessionId(Option<Envelope<'static>>),
    SingleUse(Option<Envelope<'static>>),
    Noise(Vec<u8>),
}

fn any_offer() -> impl Strategy<Value = Offer> {
    prop_oneof![
        any_envelope().prop_map(Offer::Sealed),
        prop::option::of(any_envelope()).prop_map(Offer::SessionId),
        prop::option::of(any_envelope()).prop_map(Offer::SingleUse),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Offer::Noise),
    ]
}

/// Makes the offer. Returns the envelope behind it, and the decision.
fn make(offer: &Offer, mut inputs: Inputs) -> (Option<Envelope<'static>>, Resumption, Decision) {
    let found = |envelope: &Option<Envelope<'static>>| {
        let found = envelope.as_ref().map(encoded);
        found.ok_or(Reason::Evicted)
    };
    let identity = [0x33; 32];
    let (envelope, token) = match offer {
        Offer::Sealed(envelope) => {
            let sealed = ticket::seal(&inputs.schedule, ISSUER, [9; 16], envelope);
            (Some(*envelope), sealed.unwrap())
        }
        Offer::SessionId(envelope) => {
            let key = StoreKey::session_id(&SESSION_ID).unwrap();
            inputs.fetched.push((key, found(envelope)));
            let mut resumption = Resumption::new(inputs);
            let decision = resumption.offer_session_id(&SESSION_ID);
            return (*envelope, resumption, decision);
        }
        Offer::SingleUse(envelope) => {
            let key = StoreKey::single_use(&identity).unwrap();
            inputs.fetched.push((key, found(envelope)));
            (*envelope, identity.to_vec())
        }
        Offer::Noise(bytes) => (None, bytes.clone()),
    };
    let mut resumption = Resumption::new(inputs);
    let decision = resumption.offer_token(&token);
    (envelope, resumption, decision)
}

proptest! {
    #[test]
    fn only_a_session_of_the_same_terms_is_admitted(
        inputs in any_inputs(),
        offer in any_offer(),
    ) {
        let (policy, offers, now) = (inputs.policy, inputs.offers.clone(), inputs.now);
        let (envelope, mut resumption, decision) = make(&offer, inputs);
        let candidate = match decision {
            Decision::Refuse => {
                full(&mut resumption);
                let (verdict, established) = resumption.verdict();
                prop_assert!(matches!(verdict, Verdict::Full(_)));
                prop_assert_ne!(verdict, Verdict::Full(Reason::NothingOffered));
                prop_assert_eq!(established, now);
                return Ok(());
            }
            Decision::Admit(session) => {
                prop_assert_eq!(policy.client_auth, ClientAuth::None);
                session
            }
            Decision::VerifyClient(candidate) => {
                prop_assert_ne!(policy.client_auth, ClientAuth::None);
                resumption.admit(candidate)
            }
        };
        prop_assert_eq!(candidate, SESSION);
        let envelope = envelope.expect("noise is never admitted");
        let binding = envelope.binding;
        prop_assert_eq!(binding.site, policy.site);
        prop_assert_eq!(binding.server_name, offers.server_name);
        prop_assert_eq!(binding.client_auth, policy.client_auth);
        prop_assert_eq!(binding.version, offers.version);
        prop_assert_eq!(binding.extended_master_secret, offers.extended_master_secret);
        prop_assert!(now < envelope.expires);
        prop_assert!(now < envelope.established.plus(policy.lifetime));
        prop_assert!(offers.version == TLS_1_2 || offers.psk_dhe_ke || matches!(offer, Offer::SessionId(_)));
        let is_session_id = matches!(offer, Offer::SessionId(_));
        prop_assert!(is_session_id || policy.tickets() != Tickets::Off);
        let is_sealed = matches!(offer, Offer::Sealed(_));
        prop_assert!(!is_sealed || !policy.sessions_are_removable);

        resumption.observe(Progress::Resumed, Some(SUITE));
        let (verdict, established) = resumption.verdict();
        prop_assert!(matches!(verdict, Verdict::Resumed(_)));
        prop_assert_eq!(established, envelope.established);
    }

    #[test]
    fn nothing_that_is_given_lives_longer_than_its_full_handshake_allows(
        inputs in any_inputs(),
        offer in any_offer(),
        chain_end in prop::option::of(time()),
        resumes in any::<bool>(),
    ) {
        let (policy, now) = (inputs.policy, inputs.now);
        let (envelope, mut resumption, decision) = make(&offer, inputs);
        resumption.certificate_chosen(chain_end.filter(|end| *end > now));
        let admitted = match decision {
            Decision::Refuse => false,
            Decision::Admit(_) => true,
            Decision::VerifyClient(candidate) => !resumption.admit(candidate).is_empty(),
        };
        let origin = envelope.filter(|_| admitted && resumes);
        if origin.is_some() {
            resumption.observe(Progress::Resumed, Some(SUITE));
        } else {
            full(&mut resumption);
        }
        let end = match (origin, chain_end.filter(|end| *end > now)) {
            (Some(origin), _) => origin.expires.min(origin.established.plus(policy.lifetime)),
            (None, Some(chain_end)) => now.plus(policy.lifetime).min(chain_end),
            (None, None) => now.plus(policy.lifetime),
        };
        let announced = Duration::from_secs(resumption.ticket_lifetime().into());
        prop_assert!(now.plus(announced) <= end);
        resumption.add_ticket(SESSION, random());
        resumption.add_session(&[0x66; 32], SESSION);
        for new in resumption.take_new_sessions() {
            prop_assert!(new.expires <= end);
            prop_assert!(new.expires > now);
            prop_assert_eq!(Envelope::decode(&new.envelope).unwrap().expires, new.expires);
            prop_assert_ne!(policy.cache, Cache::Off);
        }
    }
}
