use super::*;
use crate::key::{DEFAULT_MAX_LIFETIME, Rotation, create, load, rotate, write_route_part};

const TEN_HOURS: Duration = DEFAULT_MAX_LIFETIME;

#[test]
fn the_first_start_makes_a_key_file_and_the_next_one_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/farm.key");
    let source = config::Key::File(path.clone());
    let first = Keyring::open(&source, TEN_HOURS).unwrap();
    assert_eq!(first.origin(), &Origin::Made(path.clone()));
    let second = Keyring::open(&source, TEN_HOURS).unwrap();
    assert_eq!(second.origin(), &Origin::Loaded(path));
    assert_eq!(first.scope(), second.scope());
}

#[test]
fn two_ephemeral_keys_have_nothing_in_common() {
    let (one, other) = (
        Keyring::ephemeral(TEN_HOURS).unwrap(),
        Keyring::ephemeral(TEN_HOURS).unwrap(),
    );
    assert_ne!(one.scope(), other.scope());
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A key that was made more than a day ago, and its file. Only the test moves the key forward.
fn made_long_ago(now: Time) -> (tempfile::TempDir, PathBuf, Shared) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farm.key");
    let then = now.minus(DAY + HOUR);
    let key = create(&path, Some("test"), HOUR, TEN_HOURS, then).unwrap();
    let shared = Shared::new(key, Origin::Loaded(path.clone()), now);
    (folder, path, shared)
}

fn stands_at(path: &Path) -> u64 {
    let key = load(path).unwrap();
    key.generations[0].ticket.as_ref().unwrap().epoch()
}

#[test]
fn a_clock_that_another_contradicts_moves_no_key_and_seals_nothing() {
    let now = clock::now();
    let (_folder, path, shared) = made_long_ago(now);
    let before = stands_at(&path);
    for wrong in [now.minus(DAY), now.plus(DAY)] {
        shared.record_shared_time(wrong, shared.moment(now));
        shared.move_forward(shared.moment(now));
        assert_eq!(stands_at(&path), before);
        assert!(!shared.schedule(now).can_seal());
    }
    shared.record_shared_time(now, shared.moment(now));
    assert!(shared.schedule(now).can_seal());
    shared.move_forward(shared.moment(now));
    let key = load(&path).unwrap();
    assert_eq!(stands_at(&path), key.oldest_epoch(now));
}

#[test]
fn an_unconfirmed_clock_makes_a_key_forget_little() {
    let now = clock::now();
    let (_folder, path, shared) = made_long_ago(now);
    let before = stands_at(&path);
    // The clock is a day ahead for three hours.
    let begin = now.plus(DAY);
    locked(&shared.state).clock_trust = ClockTrust::new(begin);
    for hours in [1, 2, 3] {
        shared.move_forward(Moment {
            uptime: HOUR * hours,
            wall: begin.plus(HOUR * hours),
        });
    }
    assert_eq!(stands_at(&path), before + 6);
}

#[test]
fn generations_that_end_early_are_counted() {
    let (_folder, path, keyring) = with_file();
    let revocations = || keyring.schedule(clock::now()).revocations();
    rotate(&path, Rotation::Add(None), clock::now()).unwrap();
    keyring.reload().unwrap();
    rotate(&path, Rotation::Activate(clock::now()), clock::now()).unwrap();
    keyring.reload().unwrap();
    assert_eq!(revocations(), 0);
    for times in [1, 2] {
        rotate(&path, Rotation::Replace, clock::now()).unwrap();
        keyring.reload().unwrap();
        keyring.reload().unwrap();
        assert_eq!(revocations(), times);
    }
    // A generation that is missing, or has another secret, has ended as well.
    let scope = keyring.scope().to_owned();
    std::fs::remove_file(&path).unwrap();
    create(&path, Some(&scope), HOUR, TEN_HOURS, clock::now()).unwrap();
    keyring.reload().unwrap();
    assert_eq!(revocations(), 3);
    keyring.reload().unwrap();
    assert_eq!(revocations(), 3);
}

#[test]
fn the_schedule_follows_the_clock_both_ways() {
    let keyring = Keyring::ephemeral(TEN_HOURS).unwrap();
    let now = clock::now();
    let today = keyring.schedule(now);
    let tomorrow = keyring.schedule(now.plus(Duration::from_secs(86_400)));
    assert!(!Arc::ptr_eq(&today, &tomorrow));
    assert!(keyring.schedule(now).is_current(now));
}

fn with_file() -> (tempfile::TempDir, PathBuf, Keyring) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farm.key");
    let keyring = Keyring::open(&config::Key::File(path.clone()), TEN_HOURS).unwrap();
    (folder, path, keyring)
}

#[test]
fn a_reload_uses_the_key_in_the_file() {
    let (_folder, path, keyring) = with_file();
    assert_eq!(keyring.reload().unwrap(), Reloaded::Unchanged);
    rotate(&path, Rotation::Replace, clock::now()).unwrap();
    let before = keyring.schedule(clock::now());
    let changed = Reloaded::Changed {
        generations: vec![0, 1],
        sealing: Some(1),
        missing: vec![],
    };
    assert_eq!(keyring.reload().unwrap(), changed);
    assert!(!Arc::ptr_eq(&before, &keyring.schedule(clock::now())));
}

/// The text of a key file with another first digit of a secret.
fn damaged(text: &str) -> String {
    let (before, secret) = text.split_once("ticket-secret = \"").unwrap();
    let digit = if secret.starts_with('7') { '8' } else { '7' };
    format!("{before}ticket-secret = \"{digit}{}", &secret[1..])
}

#[test]
fn a_damaged_file_is_not_replaced_when_the_key_moves_forward() {
    let now = clock::now();
    let (_folder, path, shared) = made_long_ago(now);
    let damaged = damaged(&std::fs::read_to_string(&path).unwrap());
    std::fs::write(&path, &damaged).unwrap();
    shared.record_shared_time(now, shared.moment(now));
    shared.move_forward(shared.moment(now));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
    assert!(shared.schedule(now).can_seal());
}

#[test]
fn a_file_without_a_checksum_gets_one_when_the_key_moves_forward() {
    let now = clock::now();
    let (_folder, path, shared) = made_long_ago(now);
    let text = std::fs::read_to_string(&path).unwrap();
    let is_checksum = |line: &&str| line.starts_with("# checksum: sha256:");
    let old: Vec<_> = text.lines().filter(|line| !is_checksum(line)).collect();
    assert_eq!(old.len() + 1, text.lines().count());
    std::fs::write(&path, old.join("\n")).unwrap();
    shared.record_shared_time(now, shared.moment(now));
    shared.move_forward(shared.moment(now));
    let moved = std::fs::read_to_string(&path).unwrap();
    assert_eq!(moved.lines().filter(is_checksum).count(), 1);
    assert_eq!(stands_at(&path), load(&path).unwrap().oldest_epoch(now));
}

#[test]
fn a_bad_file_at_a_reload_leaves_the_old_key_in_place() {
    let (folder, path, keyring) = with_file();
    let before = keyring.schedule(clock::now());
    let other = folder.path().join("other.key");
    let _other = Keyring::open(&config::Key::File(other.clone()), TEN_HOURS).unwrap();
    let whole = load(&path).unwrap();
    let damaged = damaged(&std::fs::read_to_string(&path).unwrap());
    let breaks: [(&dyn Fn(), &str); 5] = [
        (
            &|| std::fs::write(&path, &damaged).unwrap(),
            "do not match the file's checksum",
        ),
        (
            &|| std::fs::write(&path, "nonsense").unwrap(),
            "not a farm key",
        ),
        (
            &|| std::fs::remove_file(&path).unwrap(),
            "the file does not exist",
        ),
        (
            &|| assert!(std::fs::copy(&other, &path).unwrap() > 0),
            "restart it",
        ),
        (
            &|| {
                std::fs::remove_file(&path).unwrap();
                write_route_part(&path, &whole, clock::now()).unwrap();
            },
            "the route part only",
        ),
    ];
    for (breaks, reason) in breaks {
        breaks();
        let said = keyring.reload().unwrap_err().to_string();
        assert!(said.contains(reason), "{said}");
        assert!(Arc::ptr_eq(&before, &keyring.schedule(clock::now())));
    }
}

#[test]
fn a_generation_that_went_missing_is_named() {
    let (folder, path, keyring) = with_file();
    let first = folder.path().join("first");
    std::fs::copy(&path, &first).unwrap();
    rotate(&path, Rotation::Add(None), clock::now()).unwrap();
    keyring.reload().unwrap();
    std::fs::rename(&first, &path).unwrap();
    let Reloaded::Changed { missing, .. } = keyring.reload().unwrap() else {
        panic!("it changed");
    };
    assert_eq!(missing, [1]);
}

#[test]
fn the_file_is_moved_forward_without_a_handshake_and_its_changes_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farm.key");
    let seconds = Duration::from_secs;
    create(&path, Some("test"), seconds(1), seconds(2), clock::now()).unwrap();
    let first = stands_at(&path);
    let keyring = Keyring::open(&config::Key::File(path.clone()), TEN_HOURS).unwrap();
    rotate(&path, Rotation::Add(None), clock::now()).unwrap();
    let deadline = Instant::now() + seconds(20);
    while stands_at(&path) < first + 3 || locked(&keyring.shared.state).key.generations.len() < 2 {
        assert!(Instant::now() < deadline, "stands at {first} still");
        std::thread::yield_now();
    }
    assert_eq!(load(&path).unwrap().generations.len(), 2);
}
