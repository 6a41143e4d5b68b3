//! Claims of server numbers in a real Redis. Each number must be unique in the farm.

use sessile::client::Mechanism;

use super::setup::{Farm, Redis, Server, hop};
use crate::peers::eventually;

/// The log line of a server that finds its own number at another server.
const CLASH: &str = "another running server of the farm has this server's number";

fn process(claim: &[u8]) -> &[u8] {
    claim.split(|byte| *byte == b' ').next().unwrap()
}

async fn sees_a_clash(server: &Server) -> bool {
    let line = "sessile_server_number_clash{server=\"web1\"}";
    server.metric(line).await == 1
}

#[tokio::test(flavor = "current_thread")]
async fn two_servers_with_the_same_name_report_a_clash_until_one_ends() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let one = farm.serve("web1");
    eventually("the server claims its number", || redis.claims().len() == 1);
    let other = farm.serve("web1");
    eventually("the other server reports the clash", || {
        other.peer.said().contains(CLASH)
    });
    assert!(sees_a_clash(&other).await);
    assert!(!sees_a_clash(&one).await);
    assert_eq!(
        hop(Mechanism::SessionId, &one, &other).await,
        "resumed/session-id"
    );
    one.drain();
    eventually("the clash ends", || {
        other
            .peer
            .said()
            .contains("no other server has this number")
    });
    assert!(!sees_a_clash(&other).await);
    assert_eq!(other.peer.said().matches(CLASH).count(), 1);
}

#[tokio::test(flavor = "current_thread")]
async fn two_servers_with_the_same_number_report_a_clash_and_still_serve() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let alike = farm.numbered(7);
    let one = alike.serve("web1");
    eventually("the server claims its number", || redis.claims().len() == 1);
    let other = alike.serve("web2");
    eventually("the other server reports the clash", || {
        other.peer.said().contains(CLASH)
    });
    assert_eq!(
        other
            .metric("sessile_server_number_clash{server=\"web2\"}")
            .await,
        1
    );
    assert!(!sees_a_clash(&one).await);
    assert_eq!(redis.claims().len(), 1);
    for mechanism in [Mechanism::SessionId, Mechanism::Psk] {
        let verdict = hop(mechanism, &one, &other).await;
        assert!(verdict.starts_with("resumed/"), "{verdict}");
    }
    // Start the second server with another number, which ends the clash.
    other.drain();
    let other = farm.numbered(8).serve("web2");
    eventually("both have a number", || redis.claims().len() == 2);
    assert!(!other.peer.said().contains(CLASH));
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_restarted_after_a_kill_claims_its_number_without_a_clash() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    eventually("both claim their numbers", || redis.claims().len() == 2);
    let before = redis.claims();
    one.peer.kill();
    let one = farm.serve("web1");
    eventually("the new process claims the number", || {
        let now = redis.claims();
        let is_new = |claim: &&Vec<u8>| before.iter().all(|old| process(old) != process(claim));
        now.len() == 2 && now.iter().filter(is_new).count() == 1
    });
    for server in [&one, &other] {
        assert!(!server.peer.said().contains(CLASH));
    }
    assert!(!sees_a_clash(&one).await);
}
