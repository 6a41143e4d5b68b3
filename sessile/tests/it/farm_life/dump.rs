//! An attacker records all sessions of a farm: on the wire, in the store and on the disk. A
//! lifetime and two epochs later, the attacker steals the key file, which opens none of the
//! recorded sessions.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sessile::store::snapshot::SnapshotFile;
use sessile_proto::Time;
use sessile_proto::hello::{DEFAULT_LIMIT, HelloReader};
use sessile_proto::keys::{FarmKey, Purpose, Schedule};
use sessile_proto::{sealed, ticket};

use super::clients::{HOW, How, openssl};
use super::{Farm, Setup, drain, stands_at, travel, unix_secs};
use crate::peers::{Cut, Peer, Proxy, eventually, stopped_clock};
use crate::store::setup::Redis;

const ROTATE: u64 = 1;
const LIFETIME: u64 = 3;

/// The data of an attacker who recorded everything.
struct Recorded {
    /// The start of the recording, in seconds since the Unix epoch.
    from: u64,
    /// The end of the recording, in seconds since the Unix epoch.
    until: u64,
    /// The tickets and identities that clients sent.
    wire: Vec<Vec<u8>>,
    /// The names and values in the store.
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// The content of a server's state folder.
    snapshot: Vec<u8>,
}

/// The parts of a recording that a key opens.
#[derive(Debug, PartialEq, Eq)]
struct Opened {
    tickets: usize,
    entries: usize,
    snapshot: bool,
}

const NOTHING: Opened = Opened {
    tickets: 0,
    entries: 0,
    snapshot: false,
};

/// The path of OpenSSL's session for a mechanism.
fn session(farm: &Farm, how: How) -> PathBuf {
    farm.path(&format!("recorded-{how:?}.pem"))
}

/// The verdict on a recorded session. The file stays unchanged.
fn present(farm: &Farm, how: How, server: SocketAddr, clock: Option<&str>) -> String {
    let copy = farm.path("presented.pem");
    fs::copy(session(farm, how), &copy).unwrap();
    openssl(how, &farm.root(), &copy, server, clock)
}

/// Makes a session with each mechanism, records everything, and checks that each session resumes.
fn record(farm: &Farm, server: &Peer) -> Recorded {
    let from = unix_secs();
    let proxy = Proxy::start(server.address(), Cut::Whole);
    let mut wire = Vec::new();
    for how in HOW {
        let (root, session) = (farm.root(), session(farm, how));
        let first = openssl(how, &root, &session, server.address(), None);
        assert_eq!(first, "full/nothing-offered");
        let again = present(farm, how, proxy.address(), None);
        assert_eq!(again, how.verdict());
        let mut reader = HelloReader::new(DEFAULT_LIMIT);
        assert!(reader.push(&proxy.hello()).unwrap());
        let hello = reader.hello().unwrap();
        let identities = hello.pre_shared_key.map(|offered| offered.identities());
        let identity = identities.and_then(|mut all| Some(all.next()?.identity));
        let ticket = hello.session_ticket.filter(|ticket| !ticket.is_empty());
        wire.extend(identity.or(ticket).map(<[u8]>::to_vec));
    }
    assert_eq!(wire.len(), 2, "a ticket and an identity");
    let drained = farm.serve("web2");
    travel(farm, How::SessionId, &[&drained]);
    drain(drained);
    let file = SnapshotFile::new(&farm.path("state-web2"), "web2");
    Recorded {
        from,
        until: unix_secs(),
        wire,
        entries: farm.redis.entries(),
        snapshot: fs::read(file.path()).unwrap(),
    }
}

impl Recorded {
    /// The stored sessions, each with the hash in its name. Decryption needs this hash, too.
    fn sessions(&self) -> impl Iterator<Item = ([u8; 32], &[u8])> {
        let hashed = |name: &[u8]| {
            let digits = name.strip_prefix(b"sessile:life:")?;
            let mut hash = [0; 32];
            let digits = std::str::from_utf8(digits)
                .ok()
                .filter(|it| it.len() == 64)?;
            for (n, byte) in hash.iter_mut().enumerate() {
                *byte = u8::from_str_radix(&digits[2 * n..][..2], 16).ok()?;
            }
            Some(hash)
        };
        let entries = self.entries.iter();
        entries.filter_map(move |(name, value)| Some((hashed(name)?, &value[..])))
    }

    /// The parts that a key opens at any second since the start of the recording.
    fn opened(&self, key: &FarmKey) -> Opened {
        let around = self.from - 2..unix_secs() + 2;
        let schedules: Vec<Schedule> = around
            .map(|secs| Schedule::derive(key, Time::from_unix_millis(secs * 1000)))
            .collect();
        let ticket = |bytes: &&Vec<u8>| {
            schedules.iter().any(|schedule| {
                let label = ticket::read_label(schedule.routes(), bytes);
                label.is_some_and(|(id, label)| ticket::open(schedule, &id, label, bytes).is_ok())
            })
        };
        let entry = |(hash, value): &([u8; 32], &[u8])| {
            let open = |schedule| sealed::open(schedule, Purpose::Store, hash, value);
            schedules.iter().any(|schedule| open(schedule).is_ok())
        };
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(folder.path(), "web2");
        let snapshot = |schedule| {
            // Reading the snapshot removes the file.
            fs::write(file.path(), &self.snapshot).unwrap();
            let taken = file.take(schedule);
            taken.is_ok_and(|snapshot| !snapshot.unwrap().entries.is_empty())
        };
        Opened {
            tickets: self.wire.iter().filter(ticket).count(),
            entries: self.sessions().filter(entry).count(),
            snapshot: schedules.iter().any(snapshot),
        }
    }
}

/// The verdicts of a server with this key, this clock and the recorded store. The client's clock
/// stands at `then`, because a client with a later clock would not offer the sessions.
fn verdicts(
    farm: &Farm,
    key: &Path,
    recorded: &Recorded,
    clock: Option<&str>,
    then: &str,
) -> [String; 3] {
    let redis = Redis::start();
    let mut connection = redis.connect();
    for (name, value) in &recorded.entries {
        let set = redis::cmd("SET").arg(name).arg(value).exec(&mut connection);
        set.unwrap();
    }
    let setup = Setup {
        clock,
        key: Some(key),
        store: Some(&redis),
        site: "",
    };
    let server = farm.serve_as("thief", &setup);
    HOW.map(|how| present(farm, how, server.address(), Some(then)))
}

#[test]
fn a_key_file_stolen_after_a_lifetime_and_two_epochs_opens_no_recorded_session() {
    let farm = Farm::new("1s", "3s", None);
    let first_copy = farm.key("first-copy");
    let server = farm.serve("web1");
    let recorded = record(&farm, &server);
    assert!(recorded.sessions().count() > 0);

    // Copy the key file of a running server as soon as this file must not open the recording.
    let over = recorded.until + LIFETIME + 2 * ROTATE;
    eventually("a lifetime and two epochs", || unix_secs() >= over);
    let file = farm.key("web1");
    eventually("the file moved", || {
        stands_at(&file) * ROTATE > recorded.until
    });
    let stolen = farm.path("stolen.key");
    fs::copy(&file, &stolen).unwrap();
    drop(server);
    // Move the first copy of the key forward to the same time.
    let [early, mut moved] = [(); 2].map(|()| sessile::key::load(&first_copy).unwrap());
    assert!(moved.move_forward(Time::from_unix_millis(over * 1000)));

    let stolen_key = sessile::key::load(&stolen).unwrap();
    assert_eq!(recorded.opened(&stolen_key), NOTHING);
    assert_eq!(recorded.opened(&moved), NOTHING);
    // The first copy opens everything, so the recording is complete.
    let everything = Opened {
        tickets: 2,
        entries: recorded.sessions().count(),
        snapshot: true,
    };
    assert_eq!(recorded.opened(&early), everything);

    // The attacker's server has its clock stopped at the time of the recording, or a correct clock.
    let then = stopped_clock(SystemTime::UNIX_EPOCH + Duration::from_secs(recorded.until));
    for clock in [Some(&*then), None] {
        let verdicts = verdicts(&farm, &stolen, &recorded, clock, &then);
        let refused = ["full/expired", "full/unknown", "full/unknown-key"];
        let is_refused = |verdict: &String| refused.contains(&&**verdict);
        assert!(verdicts.iter().all(is_refused), "{verdicts:?}");
    }
    let kept = verdicts(&farm, &first_copy, &recorded, Some(&then), &then);
    assert_eq!(kept, HOW.map(How::verdict));
}
