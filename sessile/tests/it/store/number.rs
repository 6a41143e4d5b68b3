//! A server's number, which no other server of the farm may have, claimed in a real Redis.

use sessile::client::Mechanism;

use super::setup::{Farm, Redis, Server, hop};
use crate::peers::eventually;

/// What a server says of another one with its number.
const CLASH: &str = "another running server of the farm has this server's number";

fn process(claim: &[u8]) -> &[u8] {
    claim.split(|byte| *byte == b' ').next().unwrap()
}

async fn sees_a_clash(server: &Server) -> bool {
    let line = "sessile_server_number_clash{server=\"web1\"}";
    server.metric(line).await == 1
}

#[tokio::test(flavor = "current_thread")]
async fn two_running_servers_of_one_name_clash_until_one_ends_and_both_serve() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let one = farm.serve("web1");
    eventually("it claims its number", || redis.claims().len() == 1);
    let other = farm.serve("web1");
    eventually("the other sees it", || other.peer.said().contains(CLASH));
    assert!(sees_a_clash(&other).await);
    assert!(!sees_a_clash(&one).await);
    assert_eq!(
        hop(Mechanism::SessionId, &one, &other).await,
        "resumed/session-id"
    );
    one.drain();
    eventually("the other has it alone", || {
        other
            .peer
            .said()
            .contains("no other server has this number")
    });
    assert!(!sees_a_clash(&other).await);
    assert_eq!(other.peer.said().matches(CLASH).count(), 1);
}

#[tokio::test(flavor = "current_thread")]
async fn servers_of_two_names_with_one_number_set_clash_and_both_serve() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let alike = farm.numbered(7);
    let one = alike.serve("web1");
    eventually("it claims its number", || redis.claims().len() == 1);
    let other = alike.serve("web2");
    eventually("the other sees it", || other.peer.said().contains(CLASH));
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
    // A number of its own ends it.
    other.drain();
    let other = farm.numbered(8).serve("web2");
    eventually("both have a number", || redis.claims().len() == 2);
    assert!(!other.peer.said().contains(CLASH));
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_was_killed_has_its_number_back_without_a_clash() {
    let redis = Redis::start();
    let farm = Farm::sharing(&redis.url(), "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    eventually("both claim their numbers", || redis.claims().len() == 2);
    let before = redis.claims();
    one.peer.kill();
    let one = farm.serve("web1");
    eventually("it has taken its number over", || {
        let now = redis.claims();
        let is_new = |claim: &&Vec<u8>| before.iter().all(|old| process(old) != process(claim));
        now.len() == 2 && now.iter().filter(is_new).count() == 1
    });
    for server in [&one, &other] {
        assert!(!server.peer.said().contains(CLASH));
    }
    assert!(!sees_a_clash(&one).await);
}
