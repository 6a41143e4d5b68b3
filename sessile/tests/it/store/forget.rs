//! Sessions that are forgotten on request: a farm's through its Redis, a server's by its configuration.

use std::process::{Command, Output, Stdio};

use sessile::client::{Client, Mechanism};
use sessile_proto::keys::{Purpose, Schedule};
use sessile_proto::sealed;
use sessile_proto::ticket::ForgetRules;

use super::setup::{Farm, Redis, Server, client, hop, hop_until, verdict};
use crate::peers::eventually;

const HOWS: [(Mechanism, &str); 3] = [
    (Mechanism::SessionId, "resumed/session-id"),
    (Mechanism::Ticket, "resumed/ticket"),
    (Mechanism::Psk, "resumed/psk"),
];

/// What a server says when it hears of a mark.
const HEARD: &str = "the farm forgets sessions on request";

/// A farm with a site for `localhost`, and one for every other name.
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

/// Forgets, and waits until each of these servers has heard of that many changes.
fn forgotten(farm: &Farm, servers: &[&Server], changes: usize, arguments: &[&str]) {
    let output = forget(farm, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    for server in servers {
        eventually("it hears of it", || {
            server.peer.said().matches(HEARD).count() >= changes
        });
    }
}

/// The marks as they lie in the store, and their name.
fn written(redis: &Redis) -> (Vec<u8>, Vec<u8>) {
    let mut entries = redis.entries().into_iter();
    entries
        .find(|(name, _)| name.ends_with(b":forget"))
        .unwrap()
}

/// Clients of every kind that were at this server, and how they resume.
async fn visitors(server: &Server) -> Vec<(Client, &'static str)> {
    let mut visitors = Vec::new();
    for (mechanism, how) in HOWS {
        let client = client(mechanism);
        assert_eq!(
            verdict(&client, server.address()).await,
            "full/nothing-offered"
        );
        visitors.push((client, how));
    }
    visitors
}

#[tokio::test(flavor = "current_thread")]
async fn what_the_farm_forgets_is_revoked_at_another_server_and_new_sessions_resume() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let [one, other, third] = farm.serve_three();
    let servers = [&one, &other, &third];
    // Another site's and another server's sessions are nobody's business.
    forgotten(&farm, &servers, 1, &["--site", "*"]);
    forgotten(&farm, &servers, 2, &["--server", "web2"]);
    let cases = [
        &["--server", "web1"][..],
        &["--site", "LocalHost"],
        &["--everything"],
    ];
    for (n, arguments) in cases.into_iter().enumerate() {
        let visitors = visitors(&one).await;
        for (client, how) in &visitors {
            assert_eq!(verdict(client, other.address()).await, *how);
        }
        forgotten(&farm, &servers, 3 + n, arguments);
        for (client, how) in &visitors {
            // Which is in the table of the server by now.
            assert_eq!(verdict(client, other.address()).await, "full/revoked");
            assert_eq!(verdict(client, third.address()).await, *how);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_session_belongs_to_the_server_of_its_full_handshake_wherever_it_resumed_since() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let [one, other, third] = farm.serve_three();
    let visitors = visitors(&one).await;
    for (client, how) in &visitors {
        // New tickets, made by another server.
        assert_eq!(verdict(client, other.address()).await, *how);
    }
    let servers = [&one, &other, &third];
    forgotten(&farm, &servers, 1, &["--server", "web2"]);
    for (client, how) in &visitors {
        assert_eq!(verdict(client, third.address()).await, *how);
    }
    forgotten(&farm, &servers, 2, &["--server", "web1"]);
    for (client, _) in &visitors {
        assert_eq!(verdict(client, third.address()).await, "full/revoked");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn stored_tickets_and_snapshots_are_forgotten_too() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "[connection]\npurge-on-reclaim = true\n");
    let [one, other, third] = farm.serve_three();
    let visitors = visitors(&one).await;
    third.drain();
    forgotten(&farm, &[&one, &other], 1, &["--everything"]);
    one.drain();
    // They hear of it before their first handshake.
    let (one, third) = (farm.serve("web1"), farm.serve("web3"));
    for (n, (client, how)) in visitors.iter().enumerate() {
        let address = [&one, &third][n % 2].address();
        assert_eq!(verdict(client, address).await, "full/revoked");
        assert_eq!(verdict(client, other.address()).await, *how);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_store_that_restarts_empty_brings_nothing_back() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let [one, other, _third] = farm.serve_three();
    let visitors = visitors(&one).await;
    forgotten(&farm, &[&other], 1, &["--everything"]);
    let redis = redis.restart();
    // They read the marks before they claim their numbers anew.
    eventually("all are back", || redis.claims().len() == 3);
    for (client, _) in &visitors[1..] {
        assert_eq!(verdict(client, other.address()).await, "full/revoked");
    }
}

/// What the store says is forgotten.
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
fn marks_that_the_store_evicts_or_has_of_earlier_are_put_back() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    forgotten(&farm, &[&one, &other], 1, &["--server", "77"]);
    let (name, earlier) = written(&redis);
    forgotten(&farm, &[&one, &other], 2, &["--site", "*"]);
    let both = rules(&farm, &redis).unwrap();
    assert_eq!(both.iter().count(), 2);
    let is_whole = || rules(&farm, &redis).is_some_and(|rules| rules == both);
    let mut del = redis::cmd("DEL");
    del.arg(&name).exec(&mut redis.connect()).unwrap();
    eventually("they are back", is_whole);
    // As after a restore, or a mark that was added while the others were gone.
    set(&redis, &name, &earlier);
    eventually("both are there", is_whole);
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_starts_without_the_store_knows_what_it_knew() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let [first, second] = [visitors(&one).await, visitors(&one).await];
    forgotten(&farm, &[&other], 1, &["--everything"]);
    other.drain();
    let port = redis.stop();
    for visitors in [first, second] {
        let other = farm.serve("web2");
        let (psk, _) = &visitors[2];
        assert_eq!(verdict(psk, other.address()).await, "full/revoked");
        // The file is good for more than one start.
        other.drain();
    }
    // Another store, that never heard of it, is told.
    let redis = Redis::start_again(port);
    let _other = farm.serve("web2");
    eventually("it is told", || rules(&farm, &redis).is_some());
}

#[tokio::test(flavor = "current_thread")]
async fn a_store_that_does_not_say_what_is_forgotten_is_not_used() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let one = farm.serve("web1");
    let scope = sessile::key::load(&farm.folder().join("farm.key"))
        .unwrap()
        .scope;
    let name = format!("sessile:{scope}:forget");
    // Every request for the marks ends with an error, and no other does.
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
async fn a_mark_up_to_an_hour_ahead_reaches_the_sessions_of_a_clock_that_is() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let (one, other) = (farm.serve_at("web1", Some("+50m")), farm.serve("web2"));
    let visitors = visitors(&one).await;
    forgotten(&farm, &[&one, &other], 1, &["--server", "web1"]);
    let (psk, how) = &visitors[2];
    assert_eq!(verdict(psk, other.address()).await, *how);
    let ahead = std::time::SystemTime::now() + std::time::Duration::from_secs(59 * 60);
    let ahead = humantime::format_rfc3339_seconds(ahead).to_string();
    let arguments = ["--server", "web1", "--before", &ahead];
    forgotten(&farm, &[&one, &other], 2, &arguments);
    for (client, _) in &visitors {
        assert_eq!(verdict(client, other.address()).await, "full/revoked");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn marks_that_do_not_open_are_said_once_and_passed_by() {
    let redis = Redis::start();
    let farm = farm(&redis.url(), "");
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let visitors = visitors(&one).await;
    forgotten(&farm, &[&one, &other], 1, &["--server", "77"]);
    let (name, value) = written(&redis);
    let mut damaged = value;
    *damaged.last_mut().unwrap() ^= 1;
    set(&redis, &name, &damaged);
    let warning = "does not open under this server's farm key";
    eventually("it says so", || other.peer.said().contains(warning));
    for (client, how) in &visitors {
        assert_eq!(verdict(client, other.address()).await, *how);
    }
    assert_eq!(other.peer.said().matches(warning).count(), 1);
    let output = forget(&farm, &["--everything"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("do not open under this key file"), "{error}");
}

#[test]
fn no_mark_is_lost_among_concurrent_writers() {
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
async fn a_server_without_a_store_forgets_what_its_configuration_says() {
    let farm = Farm::new("");
    for whose in ["", "site = \"*\",", "server = \"web1\","] {
        let one = farm.serve("web1");
        let visitors = visitors(&one).await;
        let now = a_moment_later();
        let marked = farm.with(&format!("forget = [{{ {whose} before = {now} }}]\n"));
        let other = marked.serve("web2");
        for (client, how) in &visitors[1..] {
            assert_eq!(verdict(client, other.address()).await, "full/revoked");
            assert_eq!(verdict(client, one.address()).await, *how);
        }
        // The client without tickets has its session at the first server only.
        let (client, how) = &visitors[0];
        assert_eq!(verdict(client, one.address()).await, *how);
        marked.reload("web1", &one);
        assert_eq!(verdict(client, one.address()).await, "full/revoked");
        // The next start has the settings that come next.
        one.drain();
    }
    let elsewhere = "forget = [{ server = 9, before = \"2026-01-01T00:00:00Z\" }]\n";
    let farm = farm.with(elsewhere);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    assert_eq!(hop(Mechanism::Psk, &one, &other).await, "resumed/psk");
}

/// A time after everything that has been, as a configuration has it.
fn a_moment_later() -> String {
    let begin = sessile::clock::now();
    eventually("the clock goes", || sessile::clock::now() > begin);
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

#[test]
fn what_cannot_be_forgotten_is_said_with_the_remedy() {
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
