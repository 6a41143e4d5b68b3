//! New session IDs and tickets, and their end.

use super::*;

/// A handshake that resumed the ticket.
fn resumed(inputs: Inputs, token: &[u8]) -> Resumption {
    let mut resumption = Resumption::new(inputs);
    assert!(matches!(resumption.offer_token(token), Decision::Admit(_)));
    resumption.observe(Progress::Resumed, Some(SUITE));
    resumption
}

fn tickets_given(resumption: &mut Resumption) -> usize {
    let given = (0..4).filter_map(|_| resumption.add_ticket(SESSION, random()));
    given.count()
}

fn opened(token: &[u8], now: Time) -> Vec<u8> {
    let schedule = schedule_at(1, now);
    let (id, label) = ticket::read_label(schedule.routes(), token).unwrap();
    ticket::open(&schedule, &id, label, token).unwrap()
}

#[test]
fn a_resumed_tls13_handshake_gives_one_ticket_unless_the_client_asks() {
    let (sealed, _) = ticket(inputs(TLS_1_3));
    assert_eq!(tickets_given(&mut resumed(inputs(TLS_1_3), &sealed)), 1);
    let asking = with(TLS_1_3, |inputs| inputs.offers.requests_tickets = true);
    assert_eq!(tickets_given(&mut resumed(asking, &sealed)), 4);
    let mut first = Resumption::new(inputs(TLS_1_3));
    full(&mut first);
    assert_eq!(tickets_given(&mut first), 4, "the library sets the number");
}

#[test]
fn a_resumed_tls12_handshake_gives_no_ticket() {
    let (sealed, _) = ticket(inputs(TLS_1_2));
    let mut resumption = Resumption::new(inputs(TLS_1_2));
    assert!(resumption.gives_tickets(), "nothing was offered so far");
    assert!(matches!(
        resumption.offer_token(&sealed),
        Decision::Admit(_)
    ));
    assert!(!resumption.gives_tickets(), "by ticket");

    let fetched = session_id(inputs(TLS_1_2));
    let mut resumption = Resumption::new(with(TLS_1_2, |inputs| inputs.fetched = fetched));
    assert!(matches!(
        resumption.offer_session_id(&SESSION_ID),
        Decision::Admit(_)
    ));
    assert!(!resumption.gives_tickets(), "by session ID");
}

#[test]
fn a_declined_tls12_session_is_replaced() {
    let (sealed, _) = ticket(inputs(TLS_1_2));
    let mut resumption = Resumption::new(inputs(TLS_1_2));
    assert!(matches!(
        resumption.offer_token(&sealed),
        Decision::Admit(_)
    ));
    resumption.full_tls12_chosen();
    assert!(resumption.gives_tickets());
    // The new ticket does not inherit the time of the declined session.
    let later = NOON.plus(HOUR);
    let mut resumption = Resumption::new(with(TLS_1_2, |inputs| {
        inputs.now = later;
        inputs.schedule = schedule_at(1, later);
    }));
    assert!(matches!(
        resumption.offer_token(&sealed),
        Decision::Admit(_)
    ));
    full(&mut resumption);
    let renewed = resumption.add_ticket(SESSION, random()).unwrap();
    let renewed = opened(&renewed, later);
    let renewed = Envelope::decode(&renewed).unwrap();
    assert_eq!(renewed.established, later);
    assert_eq!(renewed.expires, later.plus(LIFETIME));
}

#[test]
fn a_client_that_takes_a_ticket_gets_no_session_id() {
    let gives = |change: fn(&mut Inputs)| {
        let resumption = Resumption::new(with(TLS_1_2, change));
        resumption.gives_session_id()
    };
    assert!(!gives(|_| ()));
    assert!(gives(|inputs| inputs.offers.accepts_ticket = false));
    assert!(gives(|inputs| inputs.policy.tickets_enabled = false));
    assert!(gives(|inputs| {
        let schedule = Schedule::derive(&farm_key(1), NOON);
        inputs.schedule = Arc::new(schedule.without_sealing());
    }));
    assert!(!gives(|inputs| {
        inputs.offers.accepts_ticket = false;
        inputs.policy.cache = Cache::Off;
    }));
}

#[test]
fn a_session_ends_a_minute_before_the_certificate_chain() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let mut resumption = Resumption::new(inputs(TLS_1_3));
    resumption.certificate_chosen(Some(NOON.plus(minutes(30))));
    full(&mut resumption);
    assert_eq!(resumption.ticket_lifetime(), 29 * 60);
    let token = resumption.add_ticket(SESSION, random()).unwrap();

    // Later tickets end at the same time, on every server and under every certificate.
    let later = NOON.plus(minutes(20));
    let at = |now: Time| {
        with(TLS_1_3, |inputs| {
            inputs.now = now;
            inputs.schedule = schedule_at(1, now);
        })
    };
    let mut second = resumed(at(later), &token);
    second.certificate_chosen(Some(NOON.plus(LIFETIME)));
    assert_eq!(second.ticket_lifetime(), 9 * 60);
    let token = second.add_ticket(SESSION, random()).unwrap();
    let last_second = NOON.plus(minutes(29)).minus(Duration::from_secs(1));
    assert_eq!(verdict(at(last_second), &token), Verdict::Resumed(How::Psk));
    let end = NOON.plus(minutes(29));
    assert_eq!(verdict(at(end), &token), Verdict::Full(Reason::Expired));
}

#[test]
fn a_chain_that_outlives_the_lifetime_changes_nothing() {
    for end in [None, Some(NOON.plus(LIFETIME * 2))] {
        let mut resumption = Resumption::new(inputs(TLS_1_3));
        resumption.certificate_chosen(end);
        full(&mut resumption);
        assert_eq!(u64::from(resumption.ticket_lifetime()), LIFETIME.as_secs());
    }
}

#[test]
fn under_a_second_of_life_nothing_is_given() {
    let chain_end = |millis: u64| NOON.plus(Duration::from_millis(60_000 + millis));
    for (millis, gives) in [(0, false), (999, false), (1000, true)] {
        let mut tls13 = Resumption::new(inputs(TLS_1_3));
        tls13.certificate_chosen(Some(chain_end(millis)));
        full(&mut tls13);
        assert_eq!(tls13.add_ticket(SESSION, random()).is_some(), gives);

        let mut tls12 = Resumption::new(with(TLS_1_2, |inputs| {
            inputs.offers.accepts_ticket = false;
        }));
        tls12.certificate_chosen(Some(chain_end(millis)));
        assert_eq!(tls12.gives_tickets(), gives);
        assert_eq!(tls12.gives_session_id(), gives);
        full(&mut tls12);
        assert_eq!(tls12.add_session(&SESSION_ID, SESSION), gives);
    }
}

#[test]
fn a_resumed_session_inherits_the_time_of_its_full_handshake() {
    let (sealed, _) = ticket(inputs(TLS_1_3));
    let later = NOON.plus(HOUR * 2);
    let again = with(TLS_1_3, |inputs| {
        inputs.now = later;
        inputs.schedule = schedule_at(1, later);
        inputs.policy.issuer.server = 9;
    });
    let mut resumption = resumed(again, &sealed);
    assert_eq!(resumption.verdict(), (Verdict::Resumed(How::Psk), NOON));
    let left = LIFETIME - HOUR * 2;
    assert_eq!(u64::from(resumption.ticket_lifetime()), left.as_secs());
    let next = resumption.add_ticket(SESSION, random()).unwrap();
    let next = opened(&next, later);
    let next = Envelope::decode(&next).unwrap();
    assert_eq!((next.established, next.server), (NOON, ISSUER.server));
    assert_eq!(next.binding.suite, SUITE);
}

#[test]
fn stored_sessions_belong_to_their_connection() {
    let removable = |inputs: &mut Inputs| inputs.policy.sessions_are_removable = true;
    let mut first = Resumption::new(with(TLS_1_3, removable));
    full(&mut first);
    let token = first.add_ticket(SESSION, random()).unwrap();
    let new = first.take_new_sessions();
    assert_eq!(first.owned(), [new[0].key]);
    assert_eq!(
        (new[0].established, new[0].expires),
        (NOON, NOON.plus(LIFETIME))
    );
    assert!(first.take_new_sessions().is_empty(), "they are taken once");

    let mut second = resumed(
        with(TLS_1_3, |inputs| {
            removable(inputs);
            inputs
                .fetched
                .push((new[0].key, Ok(new[0].envelope.clone())));
        }),
        &token,
    );
    second.add_ticket(SESSION, random()).unwrap();
    let made = second.take_new_sessions()[0].key;
    assert_eq!(second.owned(), [made, new[0].key]);
    assert_eq!(second.to_consume(), None, "it can be used again");
}

#[test]
fn a_session_that_is_too_large_is_not_given() {
    for (len, gives) in [(6 * 1024, true), (6 * 1024 + 1, false)] {
        let mut resumption = Resumption::new(inputs(TLS_1_3));
        full(&mut resumption);
        let given = resumption.add_ticket(&vec![0; len], random());
        assert_eq!(given.is_some(), gives);
    }
}

#[test]
fn nothing_is_sealed_while_the_clock_and_the_key_disagree() {
    let mut resumption = Resumption::new(with(TLS_1_3, |inputs| {
        let schedule = Schedule::derive(&farm_key(1), NOON);
        inputs.schedule = Arc::new(schedule.without_sealing());
    }));
    full(&mut resumption);
    assert_eq!(resumption.add_ticket(SESSION, random()), None);
}

#[test]
fn two_tickets_differ_even_if_a_generator_repeats_itself() {
    let ticket_of = |hello_random| {
        let mut resumption = Resumption::new(with(TLS_1_3, |inputs| {
            inputs.offers.random = [hello_random; 32];
        }));
        full(&mut resumption);
        resumption.add_ticket(SESSION, [7; 32]).unwrap()
    };
    assert_ne!(ticket_of(1)[..16], ticket_of(2)[..16]);
}

#[test]
fn tickets_are_sealed_unless_their_size_or_their_life_tells_too_much() {
    let tickets = |change: fn(&mut Policy)| {
        let mut policy = policy();
        change(&mut policy);
        policy.tickets()
    };
    assert_eq!(tickets(|_| ()), Tickets::Sealed);
    assert_eq!(tickets(|it| it.cache = Cache::Off), Tickets::Sealed);
    assert_eq!(tickets(|it| it.tickets_enabled = false), Tickets::Off);
    assert_eq!(
        tickets(|it| it.sessions_are_removable = true),
        Tickets::Stored
    );
    let asking = |it: &mut Policy| it.client_auth = ClientAuth::Optional;
    assert_eq!(tickets(asking), Tickets::Sealed, "without a shared store");
    assert_eq!(
        tickets(|it| {
            it.client_auth = ClientAuth::Optional;
            it.cache = Cache::Shared;
        }),
        Tickets::Stored
    );
    assert_eq!(
        tickets(|it| {
            it.sessions_are_removable = true;
            it.cache = Cache::Off;
        }),
        Tickets::Off
    );
}
