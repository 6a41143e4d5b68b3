//! The same tests for both stores: the session table of one process, and a Redis that servers
//! share. The tests also check the entries in Redis.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sessile::clock;
use sessile::config::{Config, StoreUrl};
use sessile::key::Keyring;
use sessile::store::{Store, WorkerStore};
use sessile_proto::keys::Schedule;
use sessile_proto::resumption::{NewSession, StoreKey};
use sessile_proto::session::Gone;
use sessile_proto::ticket::{Binding, ClientAuth, Envelope};
use sessile_proto::verdict::Reason;
use tokio::task::LocalSet;

use super::proxy::{Mode, Proxy};
use super::setup::Redis;

const LIFETIME: Duration = Duration::from_secs(600);

/// The secret of a session. The tests check that Redis holds no copy in clear.
const SECRET: &[u8] = b"the master secret of a session";

/// Two servers with the same sessions, and the key schedule of their farm.
struct Pair {
    one: WorkerStore,
    other: WorkerStore,
    schedule: Arc<Schedule>,
    /// The metrics of server `one`.
    metrics: prometheus::Registry,
}

impl Pair {
    /// Opens two servers that share a store. Without a URL, `one` and `other` are the same server.
    async fn open(store: Option<&str>, removable: bool) -> Self {
        let keys = Arc::new(Keyring::ephemeral(LIFETIME).unwrap());
        let mut config = Config::default();
        config.session.lifetime = LIFETIME;
        config.session.require_close_notify = removable;
        config.session.store_timeout = Duration::from_secs(3);
        if let Some(url) = store {
            config.session.store = url.parse::<StoreUrl>().unwrap();
        }
        let open = |registry: &prometheus::Registry| {
            Store::new(&config, &keys, 7, registry, 1).unwrap().worker()
        };
        let metrics = prometheus::Registry::new();
        let one = open(&metrics);
        let other = match store {
            Some(_) => open(&prometheus::Registry::new()),
            None => one.clone(),
        };
        one.connect().await;
        other.connect().await;
        let schedule = keys.schedule(clock::now());
        Self {
            one,
            other,
            schedule,
            metrics,
        }
    }

    /// The number of put requests of server `one` with this result.
    fn puts(&self, result: &str) -> f64 {
        let families = self.metrics.gather();
        let requests = families
            .iter()
            .find(|family| family.name() == "sessile_store_requests_total");
        let counted = requests.unwrap().get_metric().iter().filter(|metric| {
            let has = |name: &str, value: &str| {
                let mut labels = metric.get_label().iter();
                labels.any(|label| label.name() == name && label.value() == value)
            };
            has("operation", "put") && has("result", result)
        });
        counted.map(|metric| metric.get_counter().get_value()).sum()
    }

    async fn put(&self, store: &WorkerStore, id: &[u8], age: Duration) {
        let put = Self::session(id, age);
        let mut context = store.context(Arc::clone(&self.schedule), clock::now());
        store.put(vec![put], None, &mut context).await;
    }

    fn session(id: &[u8], age: Duration) -> NewSession {
        let now = clock::now();
        let millis = u64::try_from(age.as_millis()).unwrap();
        let established = sessile_proto::Time::from_unix_millis(now.unix_millis() - millis);
        let envelope = Envelope {
            value_format: 23,
            binding: Binding {
                site: 1,
                server_name: "name.of.the.site",
                client_auth: ClientAuth::None,
                version: 0x0303,
                suite: 0xc02b,
                extended_master_secret: true,
            },
            server: 1,
            established,
            expires: established.plus(LIFETIME),
            value: SECRET,
        };
        let mut bytes = Vec::new();
        envelope.encode(&mut bytes);
        NewSession {
            key: key(id),
            envelope: bytes,
            established,
            expires: envelope.expires,
        }
    }

    async fn find(&self, store: &WorkerStore, id: &[u8]) -> Result<(), Reason> {
        let mut context = store.context(Arc::clone(&self.schedule), clock::now());
        let found = store.find(vec![key(id)], &mut context).await;
        let (_, found) = found.into_iter().next().unwrap();
        found.map(|envelope| assert_eq!(Envelope::decode(&envelope).unwrap().value, SECRET))
    }
}

fn key(id: &[u8]) -> StoreKey {
    StoreKey::session_id(id).unwrap()
}

/// Runs a test on a single-threaded runtime, as a worker thread does.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

async fn behaves_as_a_store(store: Option<&str>, removable: bool) {
    let pair = Pair::open(store, removable).await;
    let (one, other) = (&pair.one, &pair.other);
    assert_eq!(pair.find(one, b"never").await, Err(Reason::Unknown));
    pair.put(one, b"a", Duration::ZERO).await;
    for _ in 0..2 {
        assert_eq!(pair.find(one, b"a").await, Ok(()));
        assert_eq!(pair.find(other, b"a").await, Ok(()));
    }
    // A longer session ID with the same prefix is another session.
    assert_eq!(pair.find(other, b"ab").await, Err(Reason::Unknown));
    pair.put(one, b"old", LIFETIME - Duration::from_millis(100))
        .await;
    while pair.find(one, b"old").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(pair.find(one, b"old").await, Err(Reason::Expired));
    assert!(pair.find(other, b"old").await.is_err());
    // One call looks up several keys and has a result for each.
    pair.put(other, b"b", Duration::ZERO).await;
    let keys = vec![key(b"never"), key(b"a"), key(b"b")];
    let mut context = one.context(Arc::clone(&pair.schedule), clock::now());
    let found = one.find(keys, &mut context).await;
    let found: Vec<_> = found.iter().map(|(_, found)| found.is_ok()).collect();
    assert_eq!(found, [false, true, true]);
    if removable {
        other.remove(&key(b"a"), Gone::Purged).await;
        for store in [one, other, one] {
            assert_eq!(pair.find(store, b"a").await, Err(Reason::Purged));
        }
        assert_eq!(pair.find(one, b"b").await, Ok(()));
    }
}

#[test]
fn the_session_table_of_one_process_behaves_as_a_store() {
    run(behaves_as_a_store(None, false));
    run(behaves_as_a_store(None, true));
}

#[test]
fn a_shared_redis_behaves_as_a_store() {
    let redis = Redis::start();
    run(behaves_as_a_store(Some(&redis.url()), false));
    redis::cmd("FLUSHALL").exec(&mut redis.connect()).unwrap();
    run(behaves_as_a_store(Some(&redis.url()), true));
}

#[test]
fn an_entry_copied_to_another_key_does_not_open() {
    let redis = Redis::start();
    run(async {
        let pair = Pair::open(Some(&redis.url()), false).await;
        pair.put(&pair.one, b"mine", Duration::ZERO).await;
        let (mine, _) = redis.entries().remove(0);
        pair.put(&pair.one, b"yours", Duration::ZERO).await;
        let yours = redis.entries().into_iter().find(|(name, _)| *name != mine);
        let (yours, _) = yours.unwrap();
        let mut copy = redis::cmd("COPY");
        copy.arg(mine).arg(yours).arg("REPLACE");
        copy.exec(&mut redis.connect()).unwrap();
        assert_eq!(pair.find(&pair.other, b"mine").await, Ok(()));
        let copied = pair.find(&pair.other, b"yours").await;
        assert_eq!(copied, Err(Reason::BadTicket));
    });
}

#[test]
fn the_look_up_and_the_put_of_a_handshake_share_one_wait_budget() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address());
    run(async {
        let pair = Pair::open(Some(&proxy.url()), false).await;
        proxy.set(Mode::Stall);
        let one = &pair.one;
        let mut context = one.context(Arc::clone(&pair.schedule), clock::now());
        let keys = vec![key(b"a"), key(b"b")];
        let found = one.find(keys, &mut context).await;
        let late = Err(Reason::StoreTimeout);
        assert_eq!(found, [(key(b"a"), late.clone()), (key(b"b"), late)]);
        // The look-up used the whole budget, so the put does not wait for an answer.
        let put = Pair::session(b"c", Duration::ZERO);
        let put = one.put(vec![put], None, &mut context);
        let waited = tokio::time::timeout(Duration::from_secs(1), put).await;
        waited.expect("the put does not wait");
        proxy.set(Mode::Pass);
        // Although the server did not wait, the put reaches the store.
        while pair.find(&pair.other, b"c").await.is_err() {}
        // An answer after the budget counts as late.
        while pair.puts("late") == 0.0 {
            let put = Pair::session(b"d", Duration::ZERO);
            one.put(vec![put], None, &mut context).await;
            // The answer to the put arrives during this look-up.
            let _ = pair.find(&pair.other, b"d").await;
        }
        // An answer within the budget counts as `ok`. The loop above may also have added to `ok`.
        let in_time = pair.puts("ok");
        pair.put(one, b"e", Duration::ZERO).await;
        assert_eq!(pair.puts("ok"), in_time + 1.0);
    });
}

#[test]
fn entries_in_redis_reveal_nothing_and_expire_with_their_session() {
    let redis = Redis::start();
    run(async {
        let pair = Pair::open(Some(&redis.url()), true).await;
        let ids = [
            &b"an identifier seen on the wire"[..],
            b"one that was removed",
        ];
        for id in ids {
            pair.put(&pair.one, id, LIFETIME / 2).await;
        }
        pair.one.remove(&key(ids[1]), Gone::Purged).await;
        let entries = redis.entries();
        assert_eq!(entries.len(), 2);
        for (name, value) in entries {
            let text = [name.as_slice(), &value].concat();
            for secret in [SECRET, b"name.of.the.site", ids[0], ids[1]] {
                let part = &secret[..8];
                assert!(!text.windows(8).any(|window| window == part), "{name:?}");
            }
            let left: u64 = redis::cmd("PTTL")
                .arg(name)
                .query(&mut redis.connect())
                .unwrap();
            assert!(Duration::from_millis(left) <= LIFETIME / 2, "{left}");
        }
    });
}

#[test]
fn damaged_entries_in_redis_only_cost_full_handshakes() {
    let redis = Redis::start();
    run(async {
        let pair = Pair::open(Some(&redis.url()), false).await;
        pair.put(&pair.one, b"a", Duration::ZERO).await;
        let (name, value) = redis.entries().remove(0);
        let overwrite = |value: &[u8]| {
            let mut set = redis::cmd("SET");
            set.arg(&name)
                .arg(value)
                .exec(&mut redis.connect())
                .unwrap();
        };
        for (rubbish, reason) in [
            (&b"hello"[..], Reason::OldFormat),
            (b"", Reason::OldFormat),
            (b"\0\x63", Reason::OldFormat),
            (&value[..value.len() - 1], Reason::BadTicket),
        ] {
            overwrite(rubbish);
            assert_eq!(pair.find(&pair.other, b"a").await, Err(reason));
        }
        redis::cmd("DEL")
            .arg(&name)
            .exec(&mut redis.connect())
            .unwrap();
        redis::cmd("RPUSH")
            .arg(&name)
            .arg("x")
            .exec(&mut redis.connect())
            .unwrap();
        assert_eq!(pair.find(&pair.other, b"a").await, Err(Reason::StoreDown));
        overwrite(&value);
        assert_eq!(pair.find(&pair.other, b"a").await, Ok(()));
    });
}
