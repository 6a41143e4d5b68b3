//! Servers forget sessions on request. A farm gets the forget rules through Redis, and a single
//! server from its configuration.

use std::process::{Command, Output, Stdio};

use sessile::client::{Client, Mechanism};
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::sealed;
use sessile_proto::ticket::ForgetRules;

use super::setup::{Farm, Redis, Server, client, hop, hop_until, verdict};
use crate::peers::eventually;

const RESUMED_VERDICTS: [(Mechanism, &str); 3] = [
    (Mechanism::SessionId, "resumed/session-id"),
    (Mechanism::Ticket, "resumed/ticket"),
    (Mechanism::Psk, "resumed/psk"),
];

/// The log line of a server that reads new forget rules.
const RULES_READ: &str = "new forget rules apply";

/// A farm with a site for `localhost`, and a site for all other names.
fn farm(store: &str, settings: &str) -> Farm {
    let pair = "certificates = [{ chain = 'server.pem', key = 'server.key' }]";
    let route = "[[site.route]]\npath = \"/\"\nverdict = true\n";
    Farm::sharing(
        store,
        &format!(
            "{settings}\n[[site]]\nnames = [\"localhost\", \"www.localhost\"]\n{pair}\n{route}"
        ),
    )
}

fn forget(farm: &Farm, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.arg("forget").arg("--config");
    command.arg(farm.folder().join("web1.toml")).args(arguments);
    command.output().unwrap()
}

/// Runs `sessile forget`. Waits until each server has logged `changes` changes of the rules since
/// its start.
fn forget_and_wait(farm: &Farm, servers: &[&Server], changes: usize, arguments: &[&str]) {
    let output = forget(farm, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    for server in servers {
        eventually("the server reads the forget rules", || {
            server.peer.said().matches(RULES_READ).count() >= changes
        });
    }
}

/// The key and the value of the forget rules in the store.
fn stored_rules(redis: &Redis) -> (Vec<u8>, Vec<u8>) {
    let mut entries = redis.entries().into_iter();
    entries
        .find(|(name, _)| name.ends_with(b":forget"))
        .unwrap()
}

/// One client for each mechanism, with a session from the server, and the verdict of a resumption.
async fn clients_with_sessions(server: &Server) -> Vec<(Client, &'static str)> {
    let mut clients = Vec::new();
    for (mechanism, how) in RESUMED_VERDICTS {
        let client = client(mechanism);
        assert_eq!(
            verdict(&client, server.address()).await,
            "full/nothing-offered"
        );
        clients.push((client, how));
    }
    clients
}

#[tokio::test(flavor = "current_thread")]
async fn forgotten_sessions_are_revoked_at_other_servers_and_new_sessions_resume() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let [one, other, third] = farm.serve_three();
    let servers = [&one, &other, &third];
    // Forget rules for another site or server do not affect the sessions below.
    forget_and_wait(&farm, &servers, 1, &["--site", "*"]);
    forget_and_wait(&farm, &servers, 2, &["--server", "web2"]);
    let cases = [
        &["--server", "web1"][..],
        &["--site", "LocalHost"],
        &["--everything"],
    ];
    for (n, arguments) in cases.into_iter().enumerate() {
        let clients = clients_with_sessions(&one).await;
        for (client, how) in &clients {
            assert_eq!(verdict(client, other.address()).await, *how);
        }
        forget_and_wait(&farm, &servers, 3 + n, arguments);
        for (client, how) in &clients {
            // The server `other` also has the session in its session table.
            assert_eq!(verdict(client, other.address()).await, "full/revoked");
            assert_eq!(verdict(client, third.address()).await, *how);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_forget_rule_for_a_server_applies_to_sessions_whose_full_handshake_was_there() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let [one, other, third] = farm.serve_three();
    let clients = clients_with_sessions(&one).await;
    for (client, how) in &clients {
        // Here, the server `other` issues new tickets.
        assert_eq!(verdict(client, other.address()).await, *how);
    }
    let servers = [&one, &other, &third];
    forget_and_wait(&farm, &servers, 1, &["--server", "web2"]);
    for (client, how) in &clients {
        assert_eq!(verdict(client, third.address()).await, *how);
    }
    forget_and_wait(&farm, &servers, 2, &["--server", "web1"]);
    for (client, _) in &clients {
        assert_eq!(verdict(client, third.address()).await, "full/revoked");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn forget_rules_apply_to_stored_sessions_and_snapshots() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "[connection]\npurge-on-reclaim = true\n");
    let [one, other, third] = farm.serve_three();
    let clients = clients_with_sessions(&one).await;
    third.drain();
    forget_and_wait(&farm, &[&one, &other], 1, &["--everything"]);
    one.drain();
    // Restarted servers read the forget rules before their first handshake.
    let (one, third) = (farm.serve("web1"), farm.serve("web3"));
    for (n, (client, how)) in clients.iter().enumerate() {
        let address = [&one, &third][n % 2].address();
        assert_eq!(verdict(client, address).await, "full/revoked");
        assert_eq!(verdict(client, other.address()).await, *how);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn forgotten_sessions_stay_revoked_after_the_store_restarts_empty() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let [one, other, _third] = farm.serve_three();
    let clients = clients_with_sessions(&one).await;
    forget_and_wait(&farm, &[&other], 1, &["--everything"]);
    let redis = redis.restart();
    // The servers read the forget rules before they claim their numbers again.
    eventually("all servers have reconnected", || redis.claims().len() == 3);
    for (client, _) in &clients[1..] {
        assert_eq!(verdict(client, other.address()).await, "full/revoked");
    }
}

/// The decrypted forget rules in the store.
fn rules(farm: &Farm, redis: &Redis) -> Option<ForgetRules> {
    let key = sessile::key::load(&farm.folder().join("farm.key")).unwrap();
    let schedule = Schedule::derive(&key, sessile::clock::now());
    let mut entries = redis.entries().into_iter();
    let (name, value) = entries.find(|(name, _)| name.ends_with(b":forget"))?;
    let rules = sealed::open(&schedule, Purpose::Store, &name, &value).unwrap();
    Some(ForgetRules::decode(&rules).unwrap())
}

fn set(redis: &Redis, name: &[u8], value: &[u8]) {
    let mut set = redis::cmd("SET");
    let set = set.arg(name).arg(value);
    set.exec(&mut redis.connect()).unwrap();
}

#[test]
fn servers_restore_forget_rules_that_the_store_loses() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    forget_and_wait(&farm, &[&one, &other], 1, &["--server", "77"]);
    let (name, earlier) = stored_rules(&redis);
    forget_and_wait(&farm, &[&one, &other], 2, &["--site", "*"]);
    let both = rules(&farm, &redis).unwrap();
    assert_eq!(both.iter().count(), 2);
    let is_whole = || rules(&farm, &redis).is_some_and(|rules| rules == both);
    let mut del = redis::cmd("DEL");
    del.arg(&name).exec(&mut redis.connect()).unwrap();
    eventually("the servers restore the rules", is_whole);
    // A restored backup of the store may hold an earlier version of the rules.
    set(&redis, &name, &earlier);
    eventually("the servers restore the later rule", is_whole);
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_starts_without_the_store_reads_its_saved_forget_rules() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let [first, second] = [
        clients_with_sessions(&one).await,
        clients_with_sessions(&one).await,
    ];
    forget_and_wait(&farm, &[&other], 1, &["--everything"]);
    other.drain();
    let port = redis.stop();
    for clients in [first, second] {
        let other = farm.serve("web2");
        let (psk, _) = &clients[2];
        assert_eq!(verdict(psk, other.address()).await, "full/revoked");
        // The next round starts the server again, which reads the same file of rules.
        other.drain();
    }
    // When the store is back and empty, the server writes its saved rules there.
    let redis = Redis::start_again(port);
    let _other = farm.serve("web2");
    eventually("the server writes its rules to the store", || {
        rules(&farm, &redis).is_some()
    });
}

#[tokio::test(flavor = "current_thread")]
async fn a_store_whose_forget_rules_cannot_be_read_is_not_used() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let one = farm.serve("web1");
    // Wait for both workers. A worker that connects later could not read the rules, and would store
    // no session.
    eventually("both workers have read the rules", || {
        let labels = [("state", "up")];
        one.metrics().sum("sessile_store_connections", &labels) == 2
    });
    let scope = sessile::key::load(&farm.folder().join("farm.key"))
        .unwrap()
        .scope;
    let name = format!("sessile:{scope}:forget");
    // A list under this key makes every read of the rules fail, but no other request.
    let mut push = redis::cmd("RPUSH");
    let push = push.arg(&name).arg("x");
    push.exec(&mut redis.connect()).unwrap();
    let other = farm.serve("web2");
    assert_eq!(
        hop(Mechanism::SessionId, &one, &other).await,
        "full/store-down"
    );
    let mut del = redis::cmd("DEL");
    del.arg(&name).exec(&mut redis.connect()).unwrap();
    let meanwhile = ["full/store-down"];
    hop_until("resumed/session-id", &meanwhile, &one, &other).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_forget_rule_in_the_future_covers_sessions_of_a_server_with_a_fast_clock() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let (one, other) = (farm.serve_at("web1", Some("+50m")), farm.serve("web2"));
    let clients = clients_with_sessions(&one).await;
    forget_and_wait(&farm, &[&one, &other], 1, &["--server", "web1"]);
    let (psk, how) = &clients[2];
    assert_eq!(verdict(psk, other.address()).await, *how);
    let ahead = std::time::SystemTime::now() + std::time::Duration::from_secs(59 * 60);
    let ahead = humantime::format_rfc3339_seconds(ahead).to_string();
    let arguments = ["--server", "web1", "--before", &ahead];
    forget_and_wait(&farm, &[&one, &other], 2, &arguments);
    for (client, _) in &clients {
        assert_eq!(verdict(client, other.address()).await, "full/revoked");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn forget_rules_that_do_not_open_are_logged_once_and_ignored() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let clients = clients_with_sessions(&one).await;
    forget_and_wait(&farm, &[&one, &other], 1, &["--server", "77"]);
    let (name, value) = stored_rules(&redis);
    let mut damaged = value;
    *damaged.last_mut().unwrap() ^= 1;
    set(&redis, &name, &damaged);
    let warning = "this server's farm key cannot open the forget rules";
    eventually("the server logs a warning", || {
        other.peer.said().contains(warning)
    });
    for (client, how) in &clients {
        assert_eq!(verdict(client, other.address()).await, *how);
    }
    assert_eq!(other.peer.said().matches(warning).count(), 1);
    let output = forget(&farm, &["--everything"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("this key file cannot open the forget marks"),
        "{error}"
    );
}

#[test]
fn concurrent_forget_commands_lose_no_rule() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let one = farm.serve("web1");
    let writers: Vec<_> = (0..8)
        .map(|number| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
            command.arg("forget").arg("--config");
            command.arg(farm.folder().join("web1.toml"));
            command.args(["--server", &number.to_string()]);
            command.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    let rules = rules(&farm, &redis).unwrap();
    assert_eq!(rules.iter().count(), 8);
    drop(one);
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_without_a_store_applies_forget_rules_from_its_configuration() {
    let farm = Farm::new("");
    for whose in ["", "site = \"*\",", "server = \"web1\","] {
        let one = farm.serve("web1");
        let clients = clients_with_sessions(&one).await;
        let now = next_instant();
        let marked = farm.with(&format!("forget = [{{ {whose} before = {now} }}]\n"));
        let other = marked.serve("web2");
        for (client, how) in &clients[1..] {
            assert_eq!(verdict(client, other.address()).await, "full/revoked");
            assert_eq!(verdict(client, one.address()).await, *how);
        }
        // Without tickets, only the first server has the client's session.
        let (client, how) = &clients[0];
        assert_eq!(verdict(client, one.address()).await, *how);
        marked.reload("web1", &one);
        assert_eq!(verdict(client, one.address()).await, "full/revoked");
        // The next round starts `web1` again with the original settings.
        one.drain();
    }
    let elsewhere = "forget = [{ server = 9, before = \"2026-01-01T00:00:00Z\" }]\n";
    let farm = farm.with(elsewhere);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    assert_eq!(hop(Mechanism::Psk, &one, &other).await, "resumed/psk");
}

/// A time later than all earlier events, in the format of the configuration.
fn next_instant() -> String {
    let begin = sessile::clock::now();
    eventually("the clock advances", || sessile::clock::now() > begin);
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

#[test]
fn a_forget_command_that_fails_names_the_remedy() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    drop(farm.serve("web1"));
    let refused = |farm: &Farm, arguments: &[&str], remedy: &str| {
        let output = forget(farm, arguments);
        assert_eq!(output.status.code(), Some(2));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(remedy), "{error}");
    };
    refused(&farm, &[], "<--site <NAME>|--server <NAME>|--everything>");
    refused(
        &farm,
        &["--everything", "--site", "*"],
        "cannot be used with",
    );
    refused(&farm, &["--site", "localhots"], "did you mean localhost?");
    refused(
        &farm,
        &["--site", "www.localhost"],
        "no site has that first name",
    );
    let future = ["--everything", "--before", "2099-01-01T00:00:00Z"];
    refused(&farm, &future, "1h ahead of this machine's clock");
    refused(
        &farm,
        &["--everything", "--before", "noon"],
        "not a time in UTC",
    );
    redis.stop();
    refused(&farm, &["--everything"], "the session store cannot be used");
    let memory = Farm::new("");
    drop(memory.serve("web1"));
    let remedy = "forget = [{ server = \"web2\", before = ";
    refused(&memory, &["--server", "web2"], remedy);
}
