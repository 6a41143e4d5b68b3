//! A Redis Cluster of three nodes, and a Redis master with a replica and a Sentinel.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use redis::Connection;
use sessile::client::Mechanism;

use super::early;
use super::setup::{Farm, REDIS, Redis, client, hop_until, verdict};
use crate::peers::{Peer, free_port};

const SLOTS: u32 = 16384;

/// The ACL rules for a server's user in a Redis Cluster.
const ACL_RULES: [&str; 8] = [
    "+eval",
    "+info",
    "~sessile:*",
    "+get",
    "+mget",
    "+set",
    "+ping",
    "+cluster|slots",
];

fn ask<T: redis::FromRedisValue>(connection: &mut Connection, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query(connection).unwrap()
}

pub(super) fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "the condition does not become true"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn cluster(folder: &std::path::Path) -> [Redis; 3] {
    let bus = [(); 3].map(|()| free_port().to_string());
    let nodes: [Redis; 3] = std::array::from_fn(|n| {
        let file = folder.join(format!("node-{n}.conf"));
        Redis::with(&[
            "--cluster-enabled",
            "yes",
            "--cluster-config-file",
            file.to_str().unwrap(),
            "--cluster-port",
            &bus[n],
            "--cluster-node-timeout",
            "2000",
        ])
    });
    let mut connections: Vec<_> = nodes.iter().map(Redis::connect).collect();
    for (n, connection) in (0..).zip(&mut connections) {
        let (first, last) = (SLOTS * n / 3, SLOTS * (n + 1) / 3 - 1);
        let range = [first.to_string(), last.to_string()];
        let () = ask(
            connection,
            &["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]],
        );
        let mut user = vec!["ACL", "SETUSER", "sessile", "on", ">se:cret"];
        user.extend(ACL_RULES);
        let () = ask(connection, &user);
    }
    for n in [1, 2] {
        let port = nodes[n].address().port().to_string();
        let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &bus[n]];
        let () = ask(&mut connections[0], &meet);
    }
    wait_until(|| {
        let well = |connection: &mut Connection| {
            let info: String = ask(connection, &["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        };
        connections.iter_mut().all(well)
    });
    nodes
}

#[tokio::test(flavor = "current_thread")]
async fn every_client_resumes_at_every_server_over_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = cluster(folder.path());
    let hosts = nodes.each_ref().map(|node| node.address().to_string());
    let all = format!("redis://sessile:se%3Acret@{}", hosts.join(","));
    let one = format!("redis+cluster://sessile:se%3Acret@{}", hosts[1]);
    for (url, settings) in [(&all, ""), (&one, "require-close-notify = true\n")] {
        let farm = Farm::sharing(url, settings);
        let servers = farm.serve_three();
        for (mechanism, how) in [
            (Mechanism::SessionId, "resumed/session-id"),
            (Mechanism::Ticket, "resumed/ticket"),
            (Mechanism::Psk, "resumed/psk"),
        ] {
            for _ in 0..4 {
                let client = client(mechanism);
                verdict(&client, servers[0].address()).await;
                for server in &servers {
                    assert_eq!(verdict(&client, server.address()).await, how);
                }
            }
        }
        // No request to the store failed, so every client resumed because its session was found.
        for result in ["timeout", "down", "refused", "bad"] {
            for operation in ["fetch", "put"] {
                let line = format!(
                    "sessile_store_requests_total{{operation=\"{operation}\",result=\"{result}\",server=\"web2\"}}"
                );
                assert_eq!(servers[1].metric(&line).await, 0, "{line}");
            }
        }
    }
    let spread: Vec<usize> = nodes.iter().map(key_count).collect();
    assert!(spread.iter().all(|&names| names > 0), "{spread:?}");
}

#[test]
fn early_data_is_accepted_once_over_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = cluster(folder.path());
    let hosts = nodes.each_ref().map(|node| node.address().to_string());
    let url = format!("redis://sessile:se%3Acret@{}", hosts.join(","));
    let farm = Farm::sharing(&url, early::ON);
    let servers = farm.serve_three();
    for _ in 0..10 {
        early::assert_accepted_once(&farm, &servers);
    }
    let spread: Vec<usize> = nodes.iter().map(key_count).collect();
    assert!(spread.iter().all(|&names| names > 0), "{spread:?}");
}

fn key_count(node: &Redis) -> usize {
    let keys: Vec<String> = ask(&mut node.connect(), &["KEYS", "sessile:*"]);
    keys.len()
}

#[tokio::test(flavor = "current_thread")]
async fn a_paused_cluster_node_costs_full_handshakes_until_it_continues() {
    const FAILURE_VERDICTS: [&str; 4] = [
        "full/store-timeout",
        "full/store-down",
        "full/unknown",
        "resumed/session-id",
    ];
    let folder = tempfile::tempdir().unwrap();
    let [first, second, third] = cluster(folder.path());
    let hosts = [&first, &second, &third].map(|node| node.address().to_string());
    let url = format!("redis://sessile:se%3Acret@{}", hosts.join(","));
    let farm = Farm::new(&format!("store = \"{url}\"\nstore-timeout = \"200ms\"\n"));
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    third.peer.signal(rustix::process::Signal::STOP);
    hop_until("full/store-down", &FAILURE_VERDICTS, &one, &other).await;
    third.peer.signal(rustix::process::Signal::CONT);
    for _ in 0..3 {
        hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn servers_follow_the_sentinel_to_a_new_master() {
    const FAILURE_VERDICTS: [&str; 3] = ["full/store-timeout", "full/store-down", "full/unknown"];
    let folder = tempfile::tempdir().unwrap();
    let master = Redis::start();
    let port = master.address().port().to_string();
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &port]);
    wait_until(|| {
        let info: String = ask(&mut replica.connect(), &["INFO", "replication"]);
        info.contains("master_link_status:up")
    });
    let sentinel = Peer::start(REDIS, |own| {
        let file = folder.path().join(format!("sentinel-{own}.conf"));
        let text = format!(
            "port {own}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {port} 1\n\
             sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 5000\n"
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(file).arg("--sentinel");
        command.current_dir(folder.path());
        command
    });
    let client = redis::Client::open(format!("redis://{}", sentinel.address())).unwrap();
    let mut asked = client.get_connection().unwrap();
    wait_until(|| {
        let replicas: Vec<redis::Value> = ask(&mut asked, &["SENTINEL", "REPLICAS", "mymaster"]);
        replicas.len() == 1
    });
    let mut user = vec!["ACL", "SETUSER", "sessile", "on", ">secret", "+role"];
    user.extend(&ACL_RULES[..7]);
    for node in [&master, &replica] {
        let () = ask(&mut node.connect(), &user);
    }
    let url = format!(
        "redis+sentinel://sessile:secret@{}/mymaster",
        sentinel.address()
    );
    let farm = Farm::new(&format!("store = \"{url}\"\nstore-timeout = \"200ms\"\n"));
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    master.stop();
    hop_until("full/store-down", &FAILURE_VERDICTS, &one, &other).await;
    hop_until("resumed/session-id", &FAILURE_VERDICTS, &one, &other).await;
    assert!(key_count(&replica) > 0);
}
