//! Early data, and sessions that can be used once.

use super::*;

const IDENTITY: [u8; 32] = [0x77; 32];

const TERMS: EarlyDataTerms = EarlyDataTerms {
    limit: 16_384,
    can_store: true,
    now: NOON,
};

fn key() -> StoreKey {
    StoreKey::single_use(&IDENTITY).unwrap()
}

/// A session that allows early data.
fn consumed() -> ConsumedSession {
    ConsumedSession {
        is_certain: true,
        age: Some(TicketAge {
            made: NOON.unix_secs(),
            age_add: u32::MAX - 7,
        }),
        announced: Some(16_384),
    }
}

/// The plan for a client that says that its ticket has this age, in milliseconds.
fn plan(
    age: u32,
    session: Result<ConsumedSession, Reason>,
    terms: EarlyDataTerms,
) -> EarlyDataPlan {
    let obfuscated = age.wrapping_add(u32::MAX - 7);
    EarlyDataPlan::after_consume(key(), obfuscated, session, terms)
}

#[test]
fn early_data_is_granted_for_a_session_that_is_certain_fresh_and_small_enough() {
    let granted = EarlyDataPlan::Granted(key());
    assert_eq!(plan(0, Ok(consumed()), TERMS), granted);
    let refused = |change: fn(&mut ConsumedSession, &mut EarlyDataTerms), why| {
        let (mut session, mut terms) = (consumed(), TERMS);
        change(&mut session, &mut terms);
        let refused = EarlyDataPlan::Refused(why);
        assert_eq!(plan(0, Ok(session), terms), refused);
    };
    refused(|session, _| session.is_certain = false, Rejection::Store);
    refused(|_, terms| terms.can_store = false, Rejection::Store);
    refused(|session, _| session.age = None, Rejection::StaleHello);
    refused(|session, _| session.announced = None, Rejection::Off);
    refused(|_, terms| terms.limit -= 1, Rejection::Off);
    let spent = plan(0, Err(Reason::Spent), TERMS);
    assert_eq!(spent, EarlyDataPlan::Refused(Rejection::Store));
}

#[test]
fn a_hello_is_fresh_if_both_ages_agree_within_ten_seconds() {
    let is_fresh = |claimed: u32, age: u64| {
        let now = NOON.plus(Duration::from_millis(age));
        let plan = plan(claimed, Ok(consumed()), EarlyDataTerms { now, ..TERMS });
        plan == EarlyDataPlan::Granted(key())
    };
    assert!(is_fresh(0, 0) && is_fresh(5_000, 5_400) && is_fresh(3_600_000, 3_600_900));
    assert!(is_fresh(0, 10_000) && !is_fresh(0, 10_001));
    assert!(is_fresh(30_000, 20_000) && !is_fresh(30_001, 20_000));
    // The same hello comes a quarter of an hour later, and another comes from a clock that runs
    // backwards.
    assert!(!is_fresh(5_000, 905_400) && !is_fresh(0_u32.wrapping_sub(60_000), 0));
}

fn take_early_data(inputs: &mut Inputs) {
    inputs.policy.early_data = TERMS.limit;
    inputs.policy.cache = Cache::Shared;
    inputs.can_store_single_use = true;
}

/// A resumption of [`IDENTITY`], for which the store gave out a session.
fn with_plan(early_data: EarlyDataPlan) -> Resumption {
    Resumption::new(with(TLS_1_3, |inputs| {
        take_early_data(inputs);
        inputs.early_data = early_data;
        inputs.consumed = Some(key());
        let envelope = encoded(&envelope(TLS_1_3));
        inputs.fetched.push((key(), Ok(envelope)));
    }))
}

fn resume(resumption: &mut Resumption) {
    assert!(matches!(
        resumption.offer_token(&IDENTITY),
        Decision::Admit(_)
    ));
    resumption.observe(Progress::Resumed, Some(SUITE));
}

#[test]
fn what_became_of_early_data_names_the_cause() {
    let granted = EarlyDataPlan::Granted(key());
    let rejected = EarlyData::Rejected;

    let mut resumption = with_plan(granted);
    resume(&mut resumption);
    assert_eq!(resumption.early_data(true), EarlyData::Accepted);
    assert_eq!(
        resumption.early_data(false),
        rejected(Rejection::AlpnMismatch)
    );

    let mut resumption = with_plan(granted);
    full(&mut resumption);
    assert_eq!(
        resumption.early_data(false),
        rejected(Rejection::NotResumed)
    );

    let mut resumption = with_plan(granted);
    resumption.observe(Progress::FullAfterRetry, None);
    resume(&mut resumption);
    assert_eq!(
        resumption.early_data(false),
        rejected(Rejection::HelloRetry)
    );

    let mut resumption = with_plan(granted);
    let other = [0x78; 32];
    let envelope = encoded(&envelope(TLS_1_3));
    let other_key = StoreKey::single_use(&other).unwrap();
    resumption.inputs.fetched.push((other_key, Ok(envelope)));
    assert!(matches!(resumption.offer_token(&other), Decision::Admit(_)));
    resumption.observe(Progress::Resumed, Some(SUITE));
    assert_eq!(
        resumption.early_data(false),
        rejected(Rejection::NotFirstIdentity)
    );

    let refused = with_plan(EarlyDataPlan::Refused(Rejection::StaleHello));
    assert_eq!(refused.early_data(false), rejected(Rejection::StaleHello));
    let none = with_plan(EarlyDataPlan::NotOffered);
    assert_eq!(none.early_data(false), EarlyData::None);
}

#[test]
fn a_site_with_early_data_gives_sessions_for_single_use() {
    let mut resumption = with_plan(EarlyDataPlan::NotOffered);
    assert!(resumption.is_single_use());
    assert!(!resumption.gives_tickets(), "the library is to store them");
    full(&mut resumption);
    let new_identity = [0x79; 32];
    assert!(resumption.add_session(&new_identity, SESSION));
    let new = resumption.take_new_sessions();
    assert_eq!(new[0].key, StoreKey::single_use(&new_identity).unwrap());

    for (version, plan, can_store) in [
        (TLS_1_2, EarlyDataPlan::NotOffered, true),
        (TLS_1_3, EarlyDataPlan::NotOffered, false),
        (TLS_1_3, EarlyDataPlan::Refused(Rejection::Store), true),
    ] {
        let resumption = Resumption::new(with(version, |inputs| {
            take_early_data(inputs);
            inputs.early_data = plan;
            inputs.can_store_single_use = can_store;
        }));
        assert!(!resumption.is_single_use());
        assert!(resumption.gives_tickets());
    }
}

#[test]
fn a_resumed_handshake_gives_one_session_for_single_use() {
    let mut resumption = with_plan(EarlyDataPlan::NotOffered);
    resume(&mut resumption);
    let given = [1, 2].map(|n| resumption.add_session(&[n; 32], SESSION));
    assert_eq!(given, [true, false]);
}

#[test]
fn an_identity_for_single_use_is_not_stored_where_tickets_are_given() {
    let mut resumption = Resumption::new(with(TLS_1_3, |inputs| {
        take_early_data(inputs);
        inputs.policy.early_data = 0;
    }));
    assert!(!resumption.is_single_use());
    full(&mut resumption);
    assert!(!resumption.add_session(&IDENTITY, SESSION));
}

#[test]
fn a_session_for_single_use_is_consumed_once() {
    // The store gave out the session before the handshake.
    let mut resumption = with_plan(EarlyDataPlan::Granted(key()));
    resume(&mut resumption);
    assert_eq!(resumption.to_consume(), None);
    assert!(resumption.owned().is_empty());
    // Without early data, the store only read the session.
    let mut resumption = with_plan(EarlyDataPlan::NotOffered);
    resumption.inputs.consumed = None;
    assert_eq!(resumption.to_consume(), None, "nothing has resumed");
    resume(&mut resumption);
    assert_eq!(resumption.to_consume(), Some(key()));
}

#[test]
fn after_a_restart_there_is_no_early_data_and_nothing_is_for_single_use() {
    let mut resumption = with_plan(EarlyDataPlan::Granted(key()));
    resume(&mut resumption);
    resumption.restart_without_early_data();
    assert!(!resumption.is_single_use() && resumption.gives_tickets());
    full(&mut resumption);
    assert_eq!(
        resumption.verdict().0,
        Verdict::Full(Reason::NothingOffered)
    );
    assert_eq!(
        resumption.early_data(false),
        EarlyData::Rejected(Rejection::NotResumed)
    );
}

#[test]
fn a_random_identity_is_unknown_at_a_site_with_early_data_and_of_an_unknown_key_elsewhere() {
    let token = [0x55; 32];
    let with_early_data = with(TLS_1_3, take_early_data);
    assert_eq!(
        verdict(with_early_data, &token),
        Verdict::Full(Reason::Unknown)
    );
    assert_eq!(
        verdict(inputs(TLS_1_3), &token),
        Verdict::Full(Reason::UnknownKey)
    );
    // A site without early data still reports the reason of the store.
    let spent = with(TLS_1_3, |inputs| {
        let key = StoreKey::single_use(&token).unwrap();
        inputs.fetched.push((key, Err(Reason::Spent)));
    });
    assert_eq!(verdict(spent, &token), Verdict::Full(Reason::Spent));
}

#[test]
fn early_data_needs_a_shared_store_tickets_and_clients_without_certificates() {
    let accepts = |change: fn(&mut Policy)| {
        let mut policy = Policy {
            early_data: 1,
            cache: Cache::Shared,
            ..policy()
        };
        change(&mut policy);
        policy.accepts_early_data()
    };
    assert!(accepts(|_| ()));
    assert!(!accepts(|it| it.early_data = 0));
    assert!(!accepts(|it| it.cache = Cache::Local));
    assert!(!accepts(|it| it.tickets_enabled = false));
    assert!(!accepts(|it| it.client_auth = ClientAuth::Optional));
}
