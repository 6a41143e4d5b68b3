//! A Redis behind TLS and access rules.

use std::fs;
use std::path::Path;
use std::process::Command;

use sessile::client::Mechanism;

use super::early;
use super::setup::{Farm, REDIS, Redis, Server, hop, hop_until};
use crate::peers::{Certificates, Peer, eventually, free_port};

fn redis_over_tls(certificates: &Certificates) -> Peer {
    Peer::start(REDIS, |port| command(certificates, port))
}

pub(super) fn command(certificates: &Certificates, port: u16) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--port", "0"]);
    command.args(["--tls-port", &port.to_string()]);
    ask_for_certificates(&mut command, certificates);
    command
}

fn ask_for_certificates(command: &mut Command, certificates: &Certificates) {
    command.arg("--tls-cert-file").arg(&certificates.chain);
    command.arg("--tls-key-file").arg(&certificates.key);
    command.arg("--tls-ca-cert-file").arg(&certificates.ca);
    command.args(["--tls-auth-clients", "yes"]);
    command.current_dir(certificates.folder());
}

/// The folder from which a server reads its certificates for the store.
struct Installed(tempfile::TempDir);

impl Installed {
    const NAMES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

    fn new(certificates: &Certificates) -> Self {
        let installed = Self(tempfile::tempdir().unwrap());
        for name in Self::NAMES {
            installed.replace(name, certificates);
        }
        installed
    }

    /// Replaces a file by renaming, as tools that renew certificates do.
    fn replace(&self, name: &str, certificates: &Certificates) {
        let Certificates { ca, chain, key, .. } = certificates;
        let from = match name {
            "ca.pem" => ca,
            "cert.pem" => chain,
            _ => key,
        };
        let new = self.0.path().join("new");
        fs::copy(from, &new).unwrap();
        fs::rename(new, self.0.path().join(name)).unwrap();
    }

    fn options(&self) -> String {
        let [ca, cert, key] = Self::NAMES.map(|name| self.0.path().join(name));
        let [ca, cert, key] = [ca, cert, key].map(|path| path.display().to_string());
        format!("ca={ca}&cert={cert}&key={key}")
    }
}

#[tokio::test(flavor = "current_thread")]
async fn servers_connect_to_a_store_with_tls_and_client_certificates() {
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

    // The connection fails with an unknown authority, without a client certificate or without TLS.
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
async fn the_systems_authorities_are_trusted_unless_the_url_names_a_ca() {
    let certificates = Certificates::new();
    let redis = redis_over_tls(&certificates);
    let shown = |path: &Path| path.display().to_string();
    let Certificates { ca, chain, key, .. } = &certificates;
    let client = format!("cert={}&key={}", shown(chain), shown(key));
    let named = format!("rediss://{}?ca={}&{client}", redis.address(), shown(ca));
    let unnamed = format!("rediss://{}?{client}", redis.address());
    let connecting = ["full/store-down", "full/unknown"];

    // If the URL names a CA, servers ignore the system's authorities, even a broken file.
    let broken = certificates.folder().join("none.pem");
    let farm = Farm::sharing(&named, "").with_system_authorities(&broken);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &connecting, &one, &other).await;
    let farm = Farm::sharing(&unnamed, "");
    let output = farm
        .with_system_authorities(&broken)
        .run("web1", free_port());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("no certificate authorities"), "{said}");

    let farm = farm.with_system_authorities(ca);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    hop_until("resumed/session-id", &connecting, &one, &other).await;

    // A named CA replaces the system's authorities, and no built-in authorities are trusted.
    let stranger = Certificates::new();
    let elsewhere = format!(
        "rediss://{}?ca={}&{client}",
        redis.address(),
        shown(&stranger.ca)
    );
    for (store, system) in [(&elsewhere, ca), (&unnamed, &stranger.ca)] {
        let farm = Farm::sharing(store, "").with_system_authorities(system);
        let (one, other) = (farm.serve("web1"), farm.serve("web2"));
        let hop = hop(Mechanism::SessionId, &one, &other).await;
        assert_eq!(hop, "full/store-down");
        assert!(one.peer.said().contains("cannot be reached"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_needs_four_commands_on_its_own_keys_and_time_to_compare_clocks() {
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
    eventually("the server asks for the TIME command", || {
        one.peer.said().contains("give the store's user +time")
    });
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
fn early_data_needs_eval_and_info() {
    let mut arguments = vec!["--user", "sessile", "on", ">p@ss"];
    arguments.extend(["~sessile:*", "+get", "+mget", "+set", "+ping"]);
    arguments.extend(["+eval", "+info", "--user", "default", "off"]);
    let redis = Redis::with(&arguments);
    let url = format!("redis://sessile:p%40ss@{}", redis.address());
    let farm = Farm::sharing(&url, early::ON);
    early::assert_accepted_once(&farm, &farm.serve_three());

    // Without permission for EVAL and INFO, servers use the store, but accept no early data.
    let mut without = vec!["--user", "sessile", "on", ">p@ss"];
    without.extend(["~sessile:*", "+get", "+mget", "+set", "+ping"]);
    let redis = Redis::with(&without);
    let url = format!("redis://sessile:p%40ss@{}", redis.address());
    let farm = Farm::sharing(&url, early::ON);
    let server = farm.serve("web1");
    early::assert_never_accepted(&farm, &server);
    // Clients with session IDs still resume through the store.
    let other = farm.serve("web2");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let hop = runtime.block_on(hop(Mechanism::SessionId, &server, &other));
    assert_eq!(hop, "resumed/session-id");
}

#[tokio::test(flavor = "current_thread")]
async fn the_next_connection_uses_a_renewed_certificate() {
    let (old, new) = (Certificates::new(), Certificates::new());
    let installed = Installed::new(&old);
    let redis = redis_over_tls(&old);
    let port = redis.address().port();
    let again = |redis: Peer, certificates: &Certificates| {
        redis.kill();
        Peer::start_on(port, REDIS, command(certificates, port)).unwrap()
    };
    let store = format!("rediss://{}?{}", redis.address(), installed.options());
    let farm = Farm::sharing(&store, "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let connecting = ["full/store-down", "full/unknown"];
    hop_until("resumed/session-id", &connecting, &one, &other).await;

    // While the certificate and the key do not match, the server uses the old pair.
    installed.replace("cert.pem", &new);
    let redis = again(redis, &old);
    hop_until("resumed/session-id", &connecting, &one, &other).await;
    let said = one.peer.said();
    assert!(
        said.contains("do not belong together") && said.contains("the old ones stay in use"),
        "{said}"
    );

    installed.replace("key.pem", &new);
    installed.replace("ca.pem", &new);
    let _redis = again(redis, &new);
    hop_until("resumed/session-id", &connecting, &one, &other).await;
}

#[tokio::test(flavor = "current_thread")]
async fn servers_reconnect_to_a_cluster_after_a_certificate_renewal() {
    let certificates = Certificates::new();
    let installed = Installed::new(&certificates);
    let tls = free_port();
    // A cluster of one node. The test itself connects to this node without TLS.
    let node = Peer::start(REDIS, |port| {
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--cluster-enabled",
            "yes",
        ]);
        command.args(["--port", &port.to_string(), "--tls-port", &tls.to_string()]);
        command.args([
            "--tls-cluster",
            "yes",
            "--cluster-port",
            &free_port().to_string(),
        ]);
        ask_for_certificates(&mut command, &certificates);
        command
    });
    let client = redis::Client::open(format!("redis://{}", node.address())).unwrap();
    let mut clear = client.get_connection().unwrap();
    let mut slots = redis::cmd("CLUSTER");
    slots.arg("ADDSLOTSRANGE").arg(0).arg(16383);
    slots.exec(&mut clear).unwrap();
    let mut connections = || {
        let info: String = redis::cmd("INFO").arg("stats").query(&mut clear).unwrap();
        let mut lines = info.lines();
        let received = lines.find_map(|line| line.strip_prefix("total_connections_received:"));
        received.unwrap().parse::<u64>().unwrap()
    };

    let store = format!("rediss+cluster://127.0.0.1:{tls}?{}", installed.options());
    let farm = Farm::sharing(&store, "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let connecting = ["full/store-down", "full/unknown"];
    hop_until("resumed/session-id", &connecting, &one, &other).await;
    let losses = |server: &Server| server.peer.said().matches("full handshakes until").count();
    let both = |server: &Server| server.metrics().sum("sessile_store_up", &[]) == 1;
    eventually("both servers are connected", || both(&one) && both(&other));
    let (before, lost) = (connections(), losses(&one));
    for name in ["cert.pem", "key.pem"] {
        // Replace the file with a new file that has the same contents.
        installed.replace(name, &certificates);
    }
    eventually("the two workers of each server reconnect", || {
        connections() >= before + 4
    });
    hop_until("resumed/session-id", &connecting, &one, &other).await;
    // The servers lost no connection to the store, because they closed the old connections after
    // opening the new ones.
    assert_eq!(losses(&one), lost);
}

#[test]
fn unusable_certificates_stop_the_start() {
    let (mine, other) = (Certificates::new(), Certificates::new());
    let shown = |path: &Path| path.display().to_string();
    let pair = format!("cert={}&key={}", shown(&mine.chain), shown(&other.key));
    for (options, wrong) in [
        ("ca=none.pem".to_owned(), "none.pem"),
        (
            format!("ca={}", shown(&mine.key)),
            "contains no certificate",
        ),
        (
            format!("ca={}&{pair}", shown(&mine.ca)),
            "do not belong together",
        ),
    ] {
        let farm = Farm::new(&format!("store = \"rediss://127.0.0.1:1?{options}\"\n"));
        let output = farm.run("web1", free_port());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("session.store: ") && said.contains(wrong),
            "{said}"
        );
    }
}
