//! What a store can do wrong: it costs full handshakes, never a connection, and is over by itself.
//! Every client here that cannot connect fails its test (`setup::verdict`).

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sessile::client::Mechanism;

use super::proxy::{Mode, Proxy};
use super::setup::{Farm, Redis, client, hop, hop_until, verdict};
use crate::peers::eventually;

/// Verdicts of a client that comes to another server while the store fails or has just come back.
const COSTS: [&str; 3] = ["full/store-timeout", "full/store-down", "full/unknown"];

/// Where a request under load just made it.
const LUCKY: [&str; 4] = [
    "full/store-timeout",
    "full/store-down",
    "full/unknown",
    "resumed/session-id",
];

const DEADLINE: &str = "store-timeout = \"100ms\"\n";

fn farm(store: &str) -> Farm {
    Farm::new(&format!("store = \"{store}\"\n{DEADLINE}"))
}

#[tokio::test(flavor = "current_thread")]
async fn a_store_that_stops_and_comes_back_empty() {
    let redis = Redis::start();
    let farm = farm(&redis.url());
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &COSTS, &one, &other).await;
    // Its session is in the store, and in the table of its own server.
    let earlier = client(Mechanism::SessionId);
    verdict(&earlier, one.address()).await;
    let port = redis.stop();
    hop_until("full/store-down", &COSTS, &one, &other).await;
    for _ in 0..20 {
        assert_eq!(
            hop(Mechanism::SessionId, &one, &other).await,
            "full/store-down"
        );
    }
    assert_eq!(verdict(&earlier, one.address()).await, "resumed/session-id");
    assert_eq!(other.metric("sessile_store_up{server=\"web2\"}").await, 0);
    let _redis = Redis::start_again(port);
    hop_until("resumed/session-id", &COSTS, &one, &other).await;
    eventually("each of its threads has found it", || {
        other.metrics().sum("sessile_store_up", &[]) == 1
    });
    // What the store lost, the table in front still has.
    assert_eq!(verdict(&earlier, one.address()).await, "resumed/session-id");
}

#[tokio::test(flavor = "current_thread")]
async fn a_store_that_restarts_while_nobody_asks() {
    let redis = Redis::start();
    let farm = farm(&redis.url());
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &COSTS, &one, &other).await;
    let redis = redis.restart();
    // The servers find out and connect again without a client that asks them to.
    let clients = |redis: &Redis| {
        let mut list = redis::cmd("CLIENT");
        let list: String = list.arg("LIST").query(&mut redis.connect()).unwrap();
        list.lines().count() - 1
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while clients(&redis) < 4 {
        assert!(Instant::now() < deadline, "they stay away");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    hop_until("resumed/session-id", &COSTS, &one, &other).await;
}

#[tokio::test(flavor = "current_thread")]
async fn without_the_store_nobody_resumes_whose_session_another_server_may_have_removed() {
    let redis = Redis::start();
    let farm = Farm::new(&format!(
        "store = \"{}\"\n{DEADLINE}require-close-notify = true\n",
        redis.url()
    ));
    let server = farm.serve("web1");
    hop_until("resumed/session-id", &COSTS, &server, &server).await;
    let clients = [Mechanism::SessionId, Mechanism::Ticket, Mechanism::Psk].map(client);
    for client in &clients {
        verdict(client, server.address()).await;
    }
    redis.stop();
    eventually("both threads have lost it", || {
        let labels = [("state", "down")];
        server.metrics().sum("sessile_store_connections", &labels) == 2
    });
    for client in &clients {
        assert_eq!(verdict(client, server.address()).await, "full/store-down");
    }
}

#[test]
fn a_store_that_one_worker_thread_has_lost_is_not_up() {
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
    // This test's and one worker's stay; the other's comes back to a store that is full.
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
async fn a_store_that_is_paused() {
    let redis = Redis::start();
    let farm = farm(&redis.url());
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &COSTS, &one, &other).await;
    redis.peer.signal(Signal::STOP);
    hop_until("full/store-down", &COSTS, &one, &other).await;
    for _ in 0..20 {
        let verdict = hop(Mechanism::SessionId, &one, &other).await;
        assert!(COSTS.contains(&verdict.as_str()), "{verdict}");
    }
    redis.peer.signal(Signal::CONT);
    hop_until("resumed/session-id", &COSTS, &one, &other).await;
    let late = "sessile_store_requests_total{operation=\"put\",result=\"timeout\",server=\"web1\"}";
    assert!(one.metric(late).await > 0);
    assert!(one.peer.said().contains("does not answer in time"));
}

#[tokio::test(flavor = "current_thread")]
async fn a_store_behind_a_network_that_delays_stalls_and_cuts() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address());
    // The default of 20 ms, which 50 ms are too long for.
    let farm = Farm::new(&format!("store = \"{}\"\n", proxy.url()));
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    for mode in [Mode::Delay, Mode::Stall, Mode::Cut] {
        hop_until("resumed/session-id", &COSTS, &one, &other).await;
        proxy.set(mode);
        hop_until("full/store-down", &LUCKY, &one, &other).await;
        for _ in 0..10 {
            let verdict = hop(Mechanism::SessionId, &one, &other).await;
            assert!(COSTS.contains(&verdict.as_str()), "{mode:?}: {verdict}");
        }
        // Tickets have nothing to do with the store.
        assert_eq!(hop(Mechanism::Ticket, &one, &other).await, "resumed/ticket");
        assert_eq!(hop(Mechanism::Psk, &one, &other).await, "resumed/psk");
        proxy.set(Mode::Pass);
    }
    hop_until("resumed/session-id", &COSTS, &one, &other).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_handshake_waits_for_its_session_and_not_for_the_next_one_too() {
    // Large, so that a busy machine does not take as long again.
    const TIMEOUT: Duration = Duration::from_secs(4);
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address());
    let farm = Farm::new(&format!(
        "store = \"{}\"\nstore-timeout = \"4s\"\n",
        proxy.url()
    ));
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &COSTS, &one, &other).await;
    let client = client(Mechanism::SessionId);
    verdict(&client, one.address()).await;
    proxy.set(Mode::Stall);
    let begin = Instant::now();
    // Looking it up takes the whole time; storing the new session has none left.
    assert_eq!(
        verdict(&client, other.address()).await,
        "full/store-timeout"
    );
    assert!(begin.elapsed() < 2 * TIMEOUT, "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "current_thread")]
async fn a_store_that_takes_nothing_more() {
    let redis = Redis::start();
    let farm = farm(&redis.url());
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &COSTS, &one, &other).await;
    let limit = |bytes: &str| {
        let mut set = redis::cmd("CONFIG");
        let set = set.arg("SET").arg("maxmemory").arg(bytes);
        set.exec(&mut redis.connect()).unwrap();
    };
    limit("1");
    hop_until("full/unknown", &COSTS, &one, &other).await;
    // It is there all the while, and says so at once: it is not given up for it.
    for _ in 0..10 {
        let verdict = hop(Mechanism::SessionId, &one, &other).await;
        assert_eq!(verdict, "full/unknown");
    }
    assert_eq!(one.metric("sessile_store_up{server=\"web1\"}").await, 1);
    assert_eq!(one.peer.said().matches("refuses a request").count(), 1);
    // The session that was not taken resumes where it was made.
    let client = client(Mechanism::SessionId);
    verdict(&client, one.address()).await;
    assert_eq!(verdict(&client, one.address()).await, "resumed/session-id");
    limit("0");
    hop_until("resumed/session-id", &COSTS, &one, &other).await;
}
