//! Each reason for a full handshake.

use super::*;

const KEY: fn() -> StoreKey = || StoreKey::session_id(&SESSION_ID).unwrap();

/// The verdict on a session ID for which the store gives this answer.
fn on_session_id(found: Result<Vec<u8>, Reason>) -> Verdict {
    verdict_by_id(with(TLS_1_2, |inputs| inputs.fetched.push((KEY(), found))))
}

fn seal(version: u16, change: impl FnOnce(&mut Envelope<'_>)) -> Vec<u8> {
    let mut envelope = envelope(version);
    change(&mut envelope);
    ticket::seal(&schedule_at(1, NOON), ISSUER, [9; 16], &envelope).unwrap()
}

#[test]
fn what_a_full_handshake_gives_resumes() {
    for version in [TLS_1_2, TLS_1_3] {
        let how = if version == TLS_1_3 {
            How::Psk
        } else {
            How::Ticket
        };
        let (sealed, nothing) = ticket(inputs(version));
        assert!(nothing.is_empty(), "a sealed ticket leaves nothing behind");
        assert_eq!(verdict(inputs(version), &sealed), Verdict::Resumed(how));

        let removable = |inputs: &mut Inputs| inputs.policy.sessions_are_removable = true;
        let (identifier, fetched) = ticket(with(version, removable));
        let mut again = with(version, removable);
        again.fetched = fetched;
        assert_eq!(verdict(again, &identifier), Verdict::Resumed(how));
    }
    let fetched = session_id(inputs(TLS_1_2));
    let again = with(TLS_1_2, |inputs| inputs.fetched = fetched);
    assert_eq!(verdict_by_id(again), Verdict::Resumed(How::SessionId));
}

#[test]
fn nothing_offered() {
    let mut resumption = Resumption::new(inputs(TLS_1_3));
    full(&mut resumption);
    assert_eq!(
        resumption.verdict(),
        (Verdict::Full(Reason::NothingOffered), NOON)
    );
}

#[test]
fn the_reason_of_the_store_is_the_reason() {
    for reason in [
        Reason::Unknown,
        Reason::CacheDisabled,
        Reason::StoreDown,
        Reason::StoreTimeout,
        Reason::Evicted,
        Reason::Expired,
        Reason::Purged,
        Reason::Spent,
        Reason::Revoked,
        Reason::NotClosedCleanly,
    ] {
        assert_eq!(on_session_id(Err(reason)), Verdict::Full(reason));
    }
    // The store was not asked for this session ID.
    assert_eq!(
        verdict_by_id(inputs(TLS_1_2)),
        Verdict::Full(Reason::Unknown)
    );
}

#[test]
fn tokens_of_another_farm_and_noise_are_of_an_unknown_key() {
    let (theirs, _) = ticket(with(TLS_1_3, |inputs| {
        inputs.schedule = schedule_at(2, NOON)
    }));
    for token in [theirs.as_slice(), &[7; 32], &[7; 3], b""] {
        let verdict = verdict(inputs(TLS_1_3), token);
        assert_eq!(verdict, Verdict::Full(Reason::UnknownKey));
    }
}

#[test]
fn tickets_are_disabled_by_the_setting_and_without_a_place_to_store_them() {
    let (sealed, _) = ticket(inputs(TLS_1_3));
    let off = with(TLS_1_3, |inputs| inputs.policy.tickets_enabled = false);
    assert_eq!(
        verdict(off, &sealed),
        Verdict::Full(Reason::TicketsDisabled)
    );
    let nowhere = with(TLS_1_3, |inputs| {
        inputs.policy.sessions_are_removable = true;
        inputs.policy.cache = Cache::Off;
    });
    assert_eq!(
        verdict(nowhere, &sealed),
        Verdict::Full(Reason::TicketsDisabled)
    );
}

#[test]
fn lost_is_a_session_of_this_servers_earlier_life_in_its_own_table() {
    let removable = |inputs: &mut Inputs| inputs.policy.sessions_are_removable = true;
    let (identifier, _) = ticket(with(TLS_1_3, removable));
    let verdict_with = |change: fn(&mut Inputs)| {
        let inputs = with(TLS_1_3, |inputs| {
            removable(inputs);
            change(inputs);
        });
        verdict(inputs, &identifier)
    };
    assert_eq!(
        verdict_with(|inputs| inputs.policy.issuer.incarnation += 1),
        Verdict::Full(Reason::Lost)
    );
    assert_eq!(
        verdict_with(|_| ()),
        Verdict::Full(Reason::Unknown),
        "the state was not lost"
    );
    assert_eq!(
        verdict_with(|inputs| inputs.policy.issuer.server += 1),
        Verdict::Full(Reason::Unknown),
        "another server made it"
    );
    assert_eq!(
        verdict_with(|inputs| {
            inputs.policy.issuer.incarnation += 1;
            inputs.policy.cache = Cache::Shared;
        }),
        Verdict::Full(Reason::Unknown),
        "the store can have evicted it"
    );
    assert_eq!(
        verdict_with(|inputs| {
            inputs.policy.issuer.incarnation += 1;
            let (identifier, _) = ticket(with(TLS_1_3, |inputs| {
                inputs.policy.sessions_are_removable = true;
            }));
            let (id, _) = ticket::read_label(inputs.schedule.routes(), &identifier).unwrap();
            let other = StoreKey::stored(&id);
            inputs.fetched.push((other, Err(Reason::Evicted)));
        }),
        Verdict::Full(Reason::Lost),
        "what the store says of another session does not count"
    );
}

#[test]
fn a_session_expires_at_its_own_end_and_at_the_end_of_the_lifetime_here() {
    let ending = seal(TLS_1_3, |envelope| envelope.expires = NOON.plus(HOUR));
    let at = |span| {
        move |inputs: &mut Inputs| {
            inputs.now = NOON.plus(span);
            inputs.schedule = schedule_at(1, NOON.plus(span));
        }
    };
    let second = Duration::from_secs(1);
    let verdict_at = |span, token: &[u8]| verdict(with(TLS_1_3, at(span)), token);
    assert_eq!(
        verdict_at(HOUR - second, &ending),
        Verdict::Resumed(How::Psk)
    );
    assert_eq!(verdict_at(HOUR, &ending), Verdict::Full(Reason::Expired));

    let long = seal(TLS_1_3, |_| ());
    let strict = |span| {
        verdict(
            with(TLS_1_3, |inputs| {
                at(span)(inputs);
                inputs.policy.lifetime = HOUR;
            }),
            &long,
        )
    };
    assert_eq!(strict(HOUR - second), Verdict::Resumed(How::Psk));
    assert_eq!(strict(HOUR), Verdict::Full(Reason::Expired));
}

#[test]
fn the_lifetime_of_the_farm_key_is_the_longest() {
    let mut resumption = Resumption::new(with(TLS_1_3, |inputs| {
        inputs.policy.lifetime = LIFETIME * 2;
    }));
    full(&mut resumption);
    assert_eq!(u64::from(resumption.ticket_lifetime()), LIFETIME.as_secs());
}

#[test]
fn revoked_is_what_was_forgotten_or_sealed_before_sessions_had_to_be_removable() {
    let (sealed, _) = ticket(inputs(TLS_1_3));
    let mut forgotten = ForgetRules::default();
    forgotten.add(ForgetScope::Site(SITE), NOON.plus(HOUR));
    let forgets = with(TLS_1_3, |inputs| inputs.forgotten = Arc::new(forgotten));
    assert_eq!(verdict(forgets, &sealed), Verdict::Full(Reason::Revoked));
    let removable = with(TLS_1_3, |inputs| {
        inputs.policy.sessions_are_removable = true;
    });
    assert_eq!(verdict(removable, &sealed), Verdict::Full(Reason::Revoked));
}

#[test]
fn revoked_is_what_a_generation_made_that_has_ended() {
    let removable = |inputs: &mut Inputs| inputs.policy.sessions_are_removable = true;
    let (identifier, fetched) = ticket(with(TLS_1_3, removable));
    let (sealed, _) = ticket(inputs(TLS_1_3));
    let mut key = farm_key(1);
    key.replace(secrets(2), NOON).unwrap();
    let after = Arc::new(Schedule::derive(&key, NOON));
    for token in [&identifier, &sealed] {
        let inputs = with(TLS_1_3, |inputs| {
            inputs.fetched.clone_from(&fetched);
            inputs.schedule = Arc::clone(&after);
        });
        assert_eq!(verdict(inputs, token), Verdict::Full(Reason::Revoked));
    }
}

#[test]
fn a_flipped_byte_behind_the_label_is_a_bad_ticket() {
    let (mut sealed, _) = ticket(inputs(TLS_1_3));
    sealed[40] ^= 1;
    assert_eq!(
        verdict(inputs(TLS_1_3), &sealed),
        Verdict::Full(Reason::BadTicket)
    );
}

#[test]
fn another_encoding_is_an_old_format() {
    let other = seal(TLS_1_3, |envelope| envelope.value_format += 1);
    assert_eq!(
        verdict(inputs(TLS_1_3), &other),
        Verdict::Full(Reason::OldFormat)
    );
    assert_eq!(
        on_session_id(Ok(b"no envelope".to_vec())),
        Verdict::Full(Reason::OldFormat)
    );
    // The library declines a session although all that we compare is the same.
    let (sealed, _) = ticket(inputs(TLS_1_3));
    let mut resumption = Resumption::new(inputs(TLS_1_3));
    assert!(matches!(
        resumption.offer_token(&sealed),
        Decision::Admit(_)
    ));
    full(&mut resumption);
    assert_eq!(resumption.verdict().0, Verdict::Full(Reason::OldFormat));
}

#[test]
fn what_does_not_match_names_the_field() {
    let refused = |change: fn(&mut Envelope<'_>), reason| {
        let token = seal(TLS_1_3, change);
        assert_eq!(verdict(inputs(TLS_1_3), &token), Verdict::Full(reason));
    };
    refused(|it| it.binding.site += 1, Reason::NameMismatch);
    refused(
        |it| it.binding.server_name = "b.example",
        Reason::NameMismatch,
    );
    refused(
        |it| it.binding.client_auth = ClientAuth::Optional,
        Reason::ClientAuth,
    );
    refused(|it| it.binding.version = TLS_1_2, Reason::VersionMismatch);
    refused(
        |it| it.binding.extended_master_secret = false,
        Reason::EmsMismatch,
    );
}

#[test]
fn a_tls12_ticket_beside_tls13_is_of_another_version() {
    let mut resumption = Resumption::new(with(TLS_1_3, |inputs| {
        inputs.offers.offers_tls12_ticket_in_tls13 = true;
    }));
    full(&mut resumption);
    let expected = Verdict::Full(Reason::VersionMismatch);
    assert_eq!(resumption.verdict().0, expected);
}

#[test]
fn another_suite_is_found_out_when_the_library_declines() {
    let (sealed, _) = ticket(inputs(TLS_1_3));
    let mut resumption = Resumption::new(inputs(TLS_1_3));
    assert!(matches!(
        resumption.offer_token(&sealed),
        Decision::Admit(_)
    ));
    resumption.observe(Progress::Full, Some(SUITE + 1));
    assert_eq!(resumption.verdict().0, Verdict::Full(Reason::SuiteMismatch));
}

#[test]
fn a_client_without_psk_dhe_ke_does_not_resume_in_tls13() {
    let (sealed, _) = ticket(inputs(TLS_1_3));
    let no_dhe = with(TLS_1_3, |inputs| inputs.offers.psk_dhe_ke = false);
    assert_eq!(verdict(no_dhe, &sealed), Verdict::Full(Reason::NoDheMode));
    let (sealed, _) = ticket(inputs(TLS_1_2));
    let tls12 = with(TLS_1_2, |inputs| inputs.offers.psk_dhe_ke = false);
    assert_eq!(verdict(tls12, &sealed), Verdict::Resumed(How::Ticket));
}

#[test]
fn a_site_with_client_certificates_has_each_one_verified_again() {
    for mode in [ClientAuth::Optional, ClientAuth::Required] {
        let asking = || with(TLS_1_3, |inputs| inputs.policy.client_auth = mode);
        let (sealed, _) = ticket(asking());
        let offer = || {
            let mut resumption = Resumption::new(asking());
            let Decision::VerifyClient(candidate) = resumption.offer_token(&sealed) else {
                panic!("{mode:?}: not verified");
            };
            assert_eq!(candidate.session(), SESSION);
            (resumption, candidate)
        };
        let (mut resumption, candidate) = offer();
        assert_eq!(resumption.admit(candidate), SESSION);
        resumption.observe(Progress::Resumed, Some(SUITE));
        assert_eq!(resumption.verdict().0, Verdict::Resumed(How::Psk));

        let (mut resumption, _) = offer();
        resumption.refuse(Reason::ClientAuth);
        full(&mut resumption);
        assert_eq!(resumption.verdict().0, Verdict::Full(Reason::ClientAuth));
    }
}

#[test]
fn only_the_first_four_identities_are_looked_at() {
    let (sealed, _) = ticket(inputs(TLS_1_3));
    for noise in 0..6 {
        let mut resumption = Resumption::new(inputs(TLS_1_3));
        for _ in 0..noise {
            assert!(matches!(resumption.offer_token(&[7; 32]), Decision::Refuse));
        }
        let admitted = matches!(resumption.offer_token(&sealed), Decision::Admit(_));
        assert_eq!(admitted, noise < 4, "after {noise} others");
    }
}

#[test]
fn the_offer_that_got_furthest_gives_the_reason() {
    let mut resumption = Resumption::new(inputs(TLS_1_3));
    let expired = seal(TLS_1_3, |envelope| envelope.expires = NOON);
    for token in [&expired[..], &[7; 32]] {
        assert!(matches!(resumption.offer_token(token), Decision::Refuse));
    }
    full(&mut resumption);
    assert_eq!(resumption.verdict().0, Verdict::Full(Reason::Expired));
}
