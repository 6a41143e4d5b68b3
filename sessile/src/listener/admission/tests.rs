use std::collections::HashSet;

use super::*;

fn admission(change: impl FnOnce(&mut config::Connection)) -> Arc<Admission> {
    let mut limits = config::Connection::default();
    change(&mut limits);
    Admission::new(&limits, 1000, BufferLimit::default())
}

/// Addresses that do not share a slot.
fn distinct_sources<const N: usize>(admission: &Admission) -> [IpAddr; N] {
    let mut slots = HashSet::new();
    let mut addresses = (0..=255u8).map(|net| IpAddr::from([198, 51, net, 1]));
    [(); N].map(|()| {
        let next = addresses.find(|ip| slots.insert(admission.slot_of(Source::of(*ip))));
        next.expect("256 networks are in more than a few slots")
    })
}

fn begin(admission: &Arc<Admission>, ip: IpAddr) -> Result<PendingHello<'_>, IntakeFailure> {
    let mut hello = admission.begin_hello(ip);
    hello.admit(ip, Instant::now).map(|_| hello)
}

/// A hello that waits for bytes.
fn begin_to_wait(admission: &Arc<Admission>, ip: IpAddr) -> PendingHello<'_> {
    let mut hello = begin(admission, ip).expect("room");
    assert!(!is_displaced(&mut hello), "an older hello gives way");
    hello
}

fn admit(admission: &Arc<Admission>, ip: IpAddr) -> Result<Admitted, IntakeFailure> {
    admission.begin_hello(ip).admit(ip, Instant::now)
}

fn is_displaced(hello: &mut PendingHello<'_>) -> bool {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    hello.poll_displaced(&mut cx).is_ready()
}

#[test]
fn the_oldest_incomplete_hello_gives_way_to_a_newcomer() {
    let admission = admission(|limits| limits.max_hellos = 100);
    let [greedy, other] = distinct_sources(&admission);
    let mut stalled: Vec<_> = (0..100)
        .map(|_| begin_to_wait(&admission, greedy))
        .collect();
    let mut newcomers: Vec<_> = (0..30).map(|_| begin_to_wait(&admission, other)).collect();
    let displaced: Vec<bool> = stalled.iter_mut().map(is_displaced).collect();
    assert!(displaced[..30].iter().all(|displaced| *displaced));
    assert!(!displaced[30..].iter().any(|displaced| *displaced));
    assert!(!newcomers.iter_mut().any(is_displaced));
    // A new hello of the greedy source displaces the oldest hello of that source.
    let next = begin_to_wait(&admission, greedy);
    assert!(is_displaced(&mut stalled[30]));
    stalled[31].complete();
    assert_eq!(admission.hellos.used(), 99);
    drop((stalled, newcomers, next));
    assert_eq!(admission.hellos.used(), 0);
}

#[test]
fn a_hello_without_a_wait_takes_no_place_among_the_incomplete_hellos() {
    let admission = admission(|limits| limits.max_hellos = 1);
    let [source, other] = distinct_sources(&admission);
    let mut stalled = begin_to_wait(&admission, other);
    let mut hello = begin(&admission, source).expect("room");
    hello.add_bytes(600).expect("room");
    hello.complete();
    assert!(!is_displaced(&mut stalled));
    assert_eq!(admission.hellos.used(), 1);
}

#[test]
fn a_few_greedy_sources_leave_room_for_one_that_comes_after_them() {
    const HELLO: usize = 2000;
    let admission = admission(|limits| {
        limits.max_hello_bytes = 1 << 20;
    });
    let [late, greedy @ ..] = distinct_sources::<9>(&admission);
    let mut of_greedy = Vec::new();
    for ip in greedy {
        while let Ok(mut hello) = begin(&admission, ip) {
            match hello.add_bytes(HELLO) {
                Ok(()) => of_greedy.push(hello),
                Err(_) => break,
            }
        }
    }
    let mut of_late = Vec::new();
    for _ in 0..5 {
        let mut hello = begin(&admission, late).expect("room");
        hello.add_bytes(HELLO).expect("room");
        of_late.push(hello);
    }
    // A greedy source has more than its share now, and gets nothing more.
    let more = begin(&admission, greedy[0]).and_then(|mut hello| hello.add_bytes(HELLO));
    assert_eq!(more.err(), Some(IntakeFailure::SourceLimit));
}

#[test]
fn a_source_has_no_more_connections_open_than_it_may() {
    let admission = admission(|limits| limits.max_per_source = 2);
    let [busy, other] = distinct_sources(&admission);
    let open = [admit(&admission, busy), admit(&admission, busy)];
    assert!(open.iter().all(Result::is_ok));
    let refused = admit(&admission, busy).err();
    assert_eq!(refused, Some(IntakeFailure::SourceConnections));
    admit(&admission, other).expect("it has none");
    drop(open);
    admit(&admission, busy).expect("they have ended");
}

#[test]
fn bytes_are_counted_until_they_are_let_go() {
    let admission = admission(|limits| limits.max_hello_bytes = 1 << 20);
    let [source] = distinct_sources(&admission);
    let mut hello = begin(&admission, source).expect("room");
    hello.add_bytes(MIN_BYTE_SHARE).expect("room");
    assert_eq!(hello.add_bytes(1), Err(IntakeFailure::SourceLimit));
    hello.complete();
    assert_eq!(hello.add_bytes(1), Err(IntakeFailure::SourceLimit));
    drop(hello);
    // The bytes of a PROXY header count before the source is known.
    let mut hello = admission.begin_hello(source);
    hello.add_bytes(1 << 20).expect("room");
    assert_eq!(hello.add_bytes(1), Err(IntakeFailure::HelloLimit));
}

#[test]
fn a_source_keeps_to_its_rate() {
    let admission = admission(|limits| limits.rate_per_source = 10);
    let [busy, other] = distinct_sources(&admission);
    let connect = |ip, after| {
        let mut hello = admission.begin_hello(ip);
        let now = admission.started + Duration::from_millis(after);
        hello.admit(ip, || now).map(drop)
    };
    for _ in 0..10 {
        connect(busy, 0).expect("a second's worth may come at once");
    }
    assert_eq!(connect(busy, 50), Err(IntakeFailure::SourceRate));
    connect(other, 50).expect("it made none yet");
    connect(busy, 100).expect("a tenth of a second later");
    assert_eq!(connect(busy, 100), Err(IntakeFailure::SourceRate));
    for _ in 0..10 {
        connect(busy, 60_000).expect("no more than a second's worth is saved up");
    }
    assert_eq!(connect(busy, 60_000), Err(IntakeFailure::SourceRate));
}

const MAX: BufferLimit = BufferLimit {
    bytes: 1 << 20,
    pipes: 16,
};

/// Connections of sources that share no slot.
fn admit_distinct<const N: usize>(admission: &Arc<Admission>) -> [Admitted; N] {
    distinct_sources(admission).map(|source| admit(admission, source).expect("room"))
}

#[test]
fn a_source_holds_a_quarter_of_the_pipes_and_each_that_comes_after_finds_one() {
    let admission = Admission::new(&config::Connection::default(), 1000, MAX);
    let clients: [Admitted; 8] = admit_distinct(&admission);
    let mut guards = Vec::new();
    let mut pipes = Vec::new();
    for client in &clients {
        let before = guards.len();
        while client.may_hold_pipe() {
            guards.push(client.hold_pipe());
        }
        pipes.push(guards.len() - before);
    }
    assert_eq!(pipes, [4, 4, 3, 2, 1, 1, 1, 0]);
    assert_eq!(admission.buffered_pipes(), 16);
    drop(guards);
    assert_eq!(admission.buffered_pipes(), 0);
    assert!(clients.iter().all(Admitted::may_hold_pipe));
    let [client] = admit_distinct(&self::admission(|_| {}));
    assert!(!client.may_hold_pipe(), "without pipes");
}

#[test]
fn bytes_are_buffered_up_to_a_share_and_given_back() {
    let admission = Admission::new(&config::Connection::default(), 1000, MAX);
    let [busy, other] = admit_distinct(&admission);
    let half = busy.buffer_bytes(MAX.bytes / 8);
    assert!(busy.may_buffer_bytes(MAX.bytes / 8));
    assert!(!busy.may_buffer_bytes(MAX.bytes / 8 + 1));
    let rest = busy.buffer_bytes(MAX.bytes / 8);
    assert!(!busy.may_buffer_bytes(1));
    assert!(other.may_buffer_bytes(MAX.bytes / 4));
    drop((half, rest));
    assert!(busy.may_buffer_bytes(MAX.bytes / 4));
    assert_eq!(admission.buffered_bytes(), 0);
}
