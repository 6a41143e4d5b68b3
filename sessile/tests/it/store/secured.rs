//! A Redis behind TLS and access rules.

use std::path::Path;
use std::process::Command;

use sessile::client::Mechanism;

use super::early;
use super::setup::{Farm, REDIS, Redis, hop, hop_until};
use crate::peers::{Certificates, Peer, free_port};

fn redis_over_tls(certificates: &Certificates) -> Peer {
    Peer::start(REDIS, |port| {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", "0"]);
        command.args(["--tls-port", &port.to_string()]);
        command.arg("--tls-cert-file").arg(&certificates.chain);
        command.arg("--tls-key-file").arg(&certificates.key);
        command.arg("--tls-ca-cert-file").arg(&certificates.ca);
        command.args(["--tls-auth-clients", "yes"]);
        command.current_dir(certificates.folder());
        command
    })
}

#[tokio::test(flavor = "current_thread")]
async fn the_store_may_be_behind_tls_and_ask_for_a_certificate() {
    let certificates = Certificates::new();
    let redis = redis_over_tls(&certificates);
    let shown = |path: &Path| path.display().to_string();
    let Certificates { ca, chain, key, .. } = &certificates;
    let client = format!("cert={}&key={}", shown(chain), shown(key));
    let store = format!("rediss://{}?ca={}&{client}", redis.address(), shown(ca));
    let farm = Farm::sharing(&store, "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let connecting = ["full/store-down", "full/unknown"];
    hop_until("resumed/session-id", &connecting, &one, &other).await;

    // A server that nobody vouches for, and a client without a certificate, get no connection.
    let unknown = Certificates::new();
    for store in [
        format!(
            "rediss://{}?ca={}&{client}",
            redis.address(),
            shown(&unknown.ca)
        ),
        format!("rediss://{}?ca={}", redis.address(), shown(ca)),
        format!("redis://{}", redis.address()),
    ] {
        let farm = Farm::sharing(&store, "");
        let (one, other) = (farm.serve("web1"), farm.serve("web2"));
        assert_eq!(
            hop(Mechanism::SessionId, &one, &other).await,
            "full/store-down"
        );
        assert!(
            one.peer
                .said()
                .contains("the session store cannot be reached")
        );
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_systems_authorities_count_where_no_others_are_named() {
    let certificates = Certificates::new();
    let redis = redis_over_tls(&certificates);
    let shown = |path: &Path| path.display().to_string();
    let Certificates { ca, chain, key, .. } = &certificates;
    let client = format!("cert={}&key={}", shown(chain), shown(key));
    let named = format!("rediss://{}?ca={}&{client}", redis.address(), shown(ca));
    let unnamed = format!("rediss://{}?{client}", redis.address());
    let connecting = ["full/store-down", "full/unknown"];

    // What is wrong with the system's is nothing to who names others.
    let broken = certificates.folder().join("none.pem");
    let farm = Farm::sharing(&named, "").on_a_system_with(&broken);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &connecting, &one, &other).await;
    let farm = Farm::sharing(&unnamed, "");
    let output = farm.on_a_system_with(&broken).run("web1", free_port());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("no certificate authorities"), "{said}");

    let farm = farm.on_a_system_with(ca);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &connecting, &one, &other).await;

    // Others than these are not trusted: neither the system's beside a named one, nor any that came along.
    let stranger = Certificates::new();
    let elsewhere = format!(
        "rediss://{}?ca={}&{client}",
        redis.address(),
        shown(&stranger.ca)
    );
    for (store, system) in [(&elsewhere, ca), (&unnamed, &stranger.ca)] {
        let farm = Farm::sharing(store, "").on_a_system_with(system);
        let (one, other) = (farm.serve("web1"), farm.serve("web2"));
        let hop = hop(Mechanism::SessionId, &one, &other).await;
        assert_eq!(hop, "full/store-down");
        assert!(one.peer.said().contains("cannot be reached"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_needs_four_commands_on_its_farms_own_names() {
    let rules = ["~sessile:*", "+get", "+mget", "+set", "+ping"];
    let mut arguments = vec!["--user", "sessile", "on", ">p@ss"];
    arguments.extend(rules);
    arguments.extend(["--user", "default", "off"]);
    let redis = Redis::with(&arguments);
    let address = redis.address();
    let farm = Farm::sharing(
        &format!("redis://sessile:p%40ss@{address}"),
        "require-close-notify = true\n",
    );
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    for (mechanism, how) in [
        (Mechanism::SessionId, "resumed/session-id"),
        (Mechanism::Psk, "resumed/psk"),
    ] {
        assert_eq!(hop(mechanism, &one, &other).await, how);
    }
    let wrong = Farm::sharing(&format!("redis://sessile:guess@{address}"), "");
    let (one, other) = (wrong.serve("web1"), wrong.serve("web2"));
    assert_eq!(
        hop(Mechanism::SessionId, &one, &other).await,
        "full/store-down"
    );
    let said = one.peer.said();
    assert!(said.contains("cannot be reached"), "{said}");
    assert!(!said.contains("guess"), "{said}");
}

#[test]
fn early_data_needs_two_commands_more() {
    let mut arguments = vec!["--user", "sessile", "on", ">p@ss"];
    arguments.extend(["~sessile:*", "+get", "+mget", "+set", "+ping"]);
    arguments.extend(["+eval", "+info", "--user", "default", "off"]);
    let redis = Redis::with(&arguments);
    let url = format!("redis://sessile:p%40ss@{}", redis.address());
    let farm = Farm::sharing(&url, early::ON);
    early::assert_accepted_once(&farm, &farm.serve_three());

    // Without them every connection works, and nothing is early.
    let mut without = vec!["--user", "sessile", "on", ">p@ss"];
    without.extend(["~sessile:*", "+get", "+mget", "+set", "+ping"]);
    let redis = Redis::with(&without);
    let url = format!("redis://sessile:p%40ss@{}", redis.address());
    let farm = Farm::sharing(&url, early::ON);
    let server = farm.serve("web1");
    early::assert_never_accepted(&farm, &server);
    // Nor does it cost the clients with session IDs their store.
    let other = farm.serve("web2");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let hop = runtime.block_on(hop(Mechanism::SessionId, &server, &other));
    assert_eq!(hop, "resumed/session-id");
}

#[test]
fn a_certificate_that_is_not_there_stops_the_start() {
    let farm = Farm::new("store = \"rediss://127.0.0.1:1?ca=none.pem\"\n");
    let output = farm.run("web1", free_port());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("session.store: ") && said.contains("none.pem"),
        "{said}"
    );
}
