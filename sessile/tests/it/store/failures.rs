//! A failing store costs full handshakes, but no connection. Servers reconnect to the store by
//! themselves. A failed connection fails its test (see `setup::verdict`).

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sessile::client::Mechanism;

use super::proxy::{Mode, Proxy};
use super::setup::{Farm, Redis, client, hop, hop_until, verdict};
use crate::peers::eventually;

/// Verdicts at another server while the store fails or has just recovered.
const FAILURE_VERDICTS: [&str; 3] = ["full/store-timeout", "full/store-down", "full/unknown"];

/// [`FAILURE_VERDICTS`], and the verdict of a client whose session still arrives in time.
const DEGRADED_VERDICTS: [&str; 4] = [
    "full/store-timeout",
    "full/store-down",
    "full/unknown",
    "resumed/session-id",
];

const STORE_TIMEOUT: &str = "store-timeout = \"100ms\"\n";

fn farm(store: &str) -> Farm {
    Farm::new(&format!("store = \"{store}\"\n{STORE_TIMEOUT}"))
}

#[tokio::test(flavor = "current_thread")]
async fn servers_reconnect_to_a_store_that_restarts_empty() {
    let redis = Redis::start();
    let farm = farm(&redis.url());
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    // The session of `earlier` is in the store and in the session table of `one`.
    let earlier = client(Mechanism::SessionId);
    verdict(&earlier, one.address()).await;
    let port = redis.stop();
    hop_until("full/store-down", &FAILURE_VERDICTS, &one, &other).await;
    for _ in 0..20 {
        assert_eq!(
            hop(Mechanism::SessionId, &one, &other).await,
            "full/store-down"
        );
    }
    assert_eq!(verdict(&earlier, one.address()).await, "resumed/session-id");
    assert_eq!(other.metric("sessile_store_up{server=\"web2\"}").await, 0);
    let _redis = Redis::start_again(port);
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    eventually("every worker thread is connected to the store", || {
        other.metrics().sum("sessile_store_up", &[]) == 1
    });
    // The session table of `one` still has the session that the store has lost.
    assert_eq!(verdict(&earlier, one.address()).await, "resumed/session-id");
}

#[tokio::test(flavor = "current_thread")]
async fn servers_reconnect_to_a_restarted_store_without_requests() {
    let redis = Redis::start();
    let farm = farm(&redis.url());
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    let redis = redis.restart();
    // The servers notice the restart and reconnect, although no client makes a handshake.
    let clients = |redis: &Redis| {
        let mut list = redis::cmd("CLIENT");
        let list: String = list.arg("LIST").query(&mut redis.connect()).unwrap();
        list.lines().count() - 1
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while clients(&redis) < 4 {
        assert!(Instant::now() < deadline, "the servers do not reconnect");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
}

#[tokio::test(flavor = "current_thread")]
async fn removable_sessions_do_not_resume_while_the_store_is_down() {
    let redis = Redis::start();
    let farm = Farm::new(&format!(
        "store = \"{}\"\n{STORE_TIMEOUT}require-close-notify = true\n",
        redis.url()
    ));
    let server = farm.serve("web1");
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &server, &server).await;
    let clients = [Mechanism::SessionId, Mechanism::Ticket, Mechanism::Psk].map(client);
    for client in &clients {
        verdict(client, server.address()).await;
    }
    redis.stop();
    eventually("both worker threads lose the store", || {
        let labels = [("state", "down")];
        server.metrics().sum("sessile_store_connections", &labels) == 2
    });
    for client in &clients {
        assert_eq!(verdict(client, server.address()).await, "full/store-down");
    }
}

#[test]
fn the_store_is_down_if_one_worker_thread_has_lost_it() {
    let redis = Redis::start();
    let farm = farm(&redis.url());
    let server = farm.serve("web1");
    let count = |state: &str| {
        let labels = [("state", state)];
        server.metrics().sum("sessile_store_connections", &labels)
    };
    let up = || server.metrics().sum("sessile_store_up", &[]);
    eventually("both have their connections", || count("up") == 2);
    assert_eq!((up(), count("down")), (1, 0));
    let mut connection = redis.connect();
    let mut client = |words: &[&str]| -> redis::Value {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query(&mut connection).unwrap()
    };
    // Redis keeps the connections of this test and of one worker, and refuses the other worker.
    client(&["CONFIG", "SET", "maxclients", "2"]);
    let redis::Value::BulkString(list) = client(&["CLIENT", "LIST"]) else {
        panic!("a list of clients");
    };
    let list = String::from_utf8(list).unwrap();
    let theirs = list.lines().find(|line| !line.contains("cmd=client"));
    let id = theirs.unwrap().split(' ').next().unwrap();
    client(&["CLIENT", "KILL", "ID", id.strip_prefix("id=").unwrap()]);
    eventually("one is lost", || count("down") == 1);
    assert_eq!((up(), count("up")), (0, 1));
    client(&["CONFIG", "SET", "maxclients", "100"]);
    eventually("it is back", || up() == 1);
    assert_eq!((count("up"), count("down")), (2, 0));
    let said = server.peer.said();
    for line in [
        "the session store answers",
        "full handshakes until it is back",
    ] {
        let times = 1 + usize::from(line.ends_with("answers"));
        assert_eq!(said.matches(line).count(), times, "{said}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_paused_store_costs_full_handshakes_until_it_continues() {
    let redis = Redis::start();
    let farm = farm(&redis.url());
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    redis.peer.signal(Signal::STOP);
    hop_until("full/store-down", &FAILURE_VERDICTS, &one, &other).await;
    for _ in 0..20 {
        let verdict = hop(Mechanism::SessionId, &one, &other).await;
        assert!(FAILURE_VERDICTS.contains(&verdict.as_str()), "{verdict}");
    }
    redis.peer.signal(Signal::CONT);
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    let late = "sessile_store_requests_total{operation=\"put\",result=\"timeout\",server=\"web1\"}";
    assert!(one.metric(late).await > 0);
    assert!(one.peer.said().contains("does not answer in time"));
}

#[tokio::test(flavor = "current_thread")]
async fn delayed_stalled_and_cut_answers_cost_full_handshakes() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address());
    // The default timeout of 20 ms is shorter than the proxy's delay of 50 ms.
    let farm = Farm::new(&format!("store = \"{}\"\n", proxy.url()));
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    for mode in [Mode::Delay, Mode::Stall, Mode::Cut] {
        hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
        proxy.set(mode);
        hop_until("full/store-down", &DEGRADED_VERDICTS, &one, &other).await;
        for _ in 0..10 {
            let verdict = hop(Mechanism::SessionId, &one, &other).await;
            assert!(
                FAILURE_VERDICTS.contains(&verdict.as_str()),
                "{mode:?}: {verdict}"
            );
        }
        // Sealed tickets resume without the store.
        assert_eq!(hop(Mechanism::Ticket, &one, &other).await, "resumed/ticket");
        assert_eq!(hop(Mechanism::Psk, &one, &other).await, "resumed/psk");
        proxy.set(Mode::Pass);
    }
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_handshake_waits_for_the_look_up_but_not_for_the_put() {
    // The timeout is large, so that delays of a busy machine stay below it.
    const TIMEOUT: Duration = Duration::from_secs(4);
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address());
    let farm = Farm::new(&format!(
        "store = \"{}\"\nstore-timeout = \"4s\"\n",
        proxy.url()
    ));
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    let client = client(Mechanism::SessionId);
    verdict(&client, one.address()).await;
    proxy.set(Mode::Stall);
    let begin = Instant::now();
    // The look-up uses the whole budget, so the server does not wait to store the new session.
    assert_eq!(
        verdict(&client, other.address()).await,
        "full/store-timeout"
    );
    assert!(begin.elapsed() < 2 * TIMEOUT, "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "current_thread")]
async fn a_full_store_costs_full_handshakes_and_stays_up() {
    let redis = Redis::start();
    let farm = farm(&redis.url());
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    let limit = |bytes: &str| {
        let mut set = redis::cmd("CONFIG");
        let set = set.arg("SET").arg("maxmemory").arg(bytes);
        set.exec(&mut redis.connect()).unwrap();
    };
    limit("1");
    hop_until("full/unknown", &FAILURE_VERDICTS, &one, &other).await;
    // A store that refuses a put at once is still up.
    for _ in 0..10 {
        let verdict = hop(Mechanism::SessionId, &one, &other).await;
        assert_eq!(verdict, "full/unknown");
    }
    assert_eq!(one.metric("sessile_store_up{server=\"web1\"}").await, 1);
    assert_eq!(
        one.peer
            .said()
            .matches("the session store refused a request")
            .count(),
        1
    );
    // A session that the store refused still resumes at the server that made the session.
    let client = client(Mechanism::SessionId);
    verdict(&client, one.address()).await;
    assert_eq!(verdict(&client, one.address()).await, "resumed/session-id");
    limit("0");
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
}
