//! A first flight that someone has recorded is played back: at every server, after everything that may
//! happen to servers and stores.

use std::path::Path;
use std::process::Command;

use super::visitor::{GET, Visit, Visitor, play_back as send, position_of_identity};
use super::{ON, accepted, farm, outcomes, play_back, unfinished};
use crate::peers::eventually;
use crate::store::cluster::wait_until;
use crate::store::proxy::{Mode, Proxy};
use crate::store::setup::{Redis, Server};

fn ask(redis: &Redis, words: &[&str]) -> redis::Value {
    ask_for(redis, words)
}

fn ask_for<T: redis::FromRedisValue>(redis: &Redis, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query(&mut redis.connect()).unwrap()
}

fn info(redis: &Redis, line: &str) -> bool {
    let said: String = redis::cmd("INFO").query(&mut redis.connect()).unwrap();
    said.lines().any(|said| said == line)
}

#[test]
fn a_request_is_answered_once_wherever_its_first_flight_is_played_back() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let servers = farm.serve_three();
    let servers = servers.each_ref();
    let visitor = Visitor::new(&farm);
    let first = visitor.visit(servers[0].address());
    assert_eq!(first.outcome(), "full/nothing-offered none");

    let flight = visitor.early(GET);
    let recorded = flight.bytes.clone();
    let answer = Visit::to(servers[1].address(), flight).answer();
    assert_eq!(answer.outcome(), "resumed/psk accepted");
    for server in servers {
        play_back(server, &recorded);
    }
    assert_eq!(accepted(&servers), 1);
    let requests = |server: &Server| server.metrics().sum("sessile_requests_total", &[]);
    assert_eq!(servers.map(requests), [1, 1, 0]);

    // Every visit brings a session for the next one.
    for server in servers.iter().cycle().take(7) {
        let answer = visitor.visit_early(server.address());
        assert_eq!(answer.outcome(), "resumed/psk accepted");
    }
    // No table of a single server has any part in it.
    for server in servers {
        assert_eq!(
            server.metrics().sum("sessile_session_table_entries", &[]),
            0
        );
    }
}

#[test]
fn a_flight_that_comes_first_to_the_attackers_server_is_answered_once_too() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let visitor = Visitor::new(&farm);
    visitor.visit(one.address());
    let flight = visitor.early(GET);
    play_back(&other, &flight.bytes);
    assert_eq!(accepted(&[&other]), 1);
    let mut late = Visit::to(one.address(), flight);
    late.send(GET);
    assert_eq!(late.answer().outcome(), "full/spent rejected/store");
    assert_eq!(accepted(&[&one, &other]), 1);
}

#[test]
fn of_two_servers_that_get_it_at_once_one_answers() {
    const RACES: u64 = 50;
    let redis = Redis::start();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    for _ in 0..RACES {
        let visitor = Visitor::new(&farm);
        visitor.visit(one.address());
        let flight = visitor.early(GET).bytes;
        std::thread::scope(|threads| {
            for server in [&one, &other] {
                let flight = &flight;
                threads.spawn(move || send(server.address(), flight));
            }
        });
    }
    eventually("they give the connections up", || {
        unfinished(&one) + unfinished(&other) == 2 * RACES
    });
    assert_eq!(accepted(&[&one, &other]), RACES);
}

#[test]
fn not_again_after_its_server_was_restarted_or_killed() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let visitor = Visitor::new(&farm);
    visitor.visit(one.address());
    let flight = visitor.early(GET);
    let recorded = flight.bytes.clone();
    let answer = Visit::to(other.address(), flight).answer();
    assert_eq!(answer.outcome(), "resumed/psk accepted");

    one.drain();
    other.peer.kill();
    for name in ["web1", "web2"] {
        let again = farm.serve(name);
        play_back(&again, &recorded);
        assert_eq!(accepted(&[&again]), 0);
    }
    // What was not spent yet still is good for once, at a server that has never seen the client.
    let answer = visitor.visit_early(farm.serve("web3").address());
    assert_eq!(answer.outcome(), "resumed/psk accepted");
}

#[test]
fn not_again_after_the_store_was_restored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let redis = Redis::with(&["--dir", path, "--dbfilename", "dump.rdb"]);
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let visitor = Visitor::new(&farm);
    visitor.visit(one.address());
    ask(&redis, &["SAVE"]);
    let flight = visitor.early(GET);
    let recorded = flight.bytes.clone();
    let answer = Visit::to(one.address(), flight).answer();
    assert_eq!(answer.outcome(), "resumed/psk accepted");

    // The dump knows nothing of that, and the store gives the session out again.
    let port = redis.stop();
    let _redis = Redis::start_again_with(port, &["--dir", path, "--dbfilename", "dump.rdb"]);
    assert_given_out_and_refused(&one, &other, &recorded);
}

/// The store has forgotten that a session was spent, and gives it out once more: that must not be enough.
fn assert_given_out_and_refused(one: &Server, other: &Server, recorded: &[u8]) {
    // Servers that were refused wait for seconds before they ask again.
    wait_until(|| {
        play_back(one, recorded);
        spends(&[one], "ok") == 2
    });
    wait_until(|| {
        play_back(other, recorded);
        spends(&[other], "gone") == 1
    });
    assert_eq!(accepted(&[one, other]), 1);
}

/// How often servers have spent a session with that result.
fn spends(servers: &[&Server], result: &str) -> u64 {
    let labels = [("operation", "spend"), ("result", result)];
    let of = |server: &&Server| {
        let metrics = server.metrics();
        metrics.sum("sessile_store_requests_total", &labels)
    };
    servers.iter().map(of).sum()
}

#[test]
fn a_session_from_before_a_restore_still_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let redis = Redis::with(&["--dir", path, "--dbfilename", "dump.rdb"]);
    let farm = farm(&redis);
    let server = farm.serve("web1");
    let visitors = [(); 200].map(|()| Visitor::new(&farm));
    for visitor in &visitors {
        visitor.visit(server.address());
    }
    ask(&redis, &["SAVE"]);
    let port = redis.stop();
    let _redis = Redis::start_again_with(port, &["--dir", path, "--dbfilename", "dump.rdb"]);
    let mut visitors = visitors.iter();
    eventually("the store is found again", || {
        let visitor = visitors.next().unwrap();
        let outcome = visitor.visit_early(server.address()).outcome();
        let found = outcome == "resumed/psk rejected/store";
        assert!(
            found || outcome == "full/store-down rejected/store",
            "{outcome}"
        );
        found
    });
}

#[test]
fn not_again_after_a_failover_and_back() {
    let redis = Redis::start();
    let port = redis.address().port().to_string();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    // A first replica gives the master's data a new name: it has to be there before.
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &port]);
    eventually("it is replicated", || {
        info(&replica, "master_link_status:up")
    });
    let visitor = Visitor::new(&farm);
    visitor.visit(one.address());
    let sessions = redis.entries().len();
    eventually("they are replicated", || {
        replica.entries().len() == sessions
    });
    // The replica is promoted and hears nothing more.
    ask(&replica, &["REPLICAOF", "NO", "ONE"]);
    let flight = visitor.early(GET);
    let recorded = flight.bytes.clone();
    let answer = Visit::to(one.address(), flight).answer();
    assert_eq!(answer.outcome(), "resumed/psk accepted");

    // The old master follows the new one, and is then master again: the same process as ever, with a
    // session that nobody has spent.
    let promoted = replica.address().port().to_string();
    ask(&redis, &["REPLICAOF", "127.0.0.1", &promoted]);
    eventually("it is replicated", || info(&redis, "master_link_status:up"));
    ask(&redis, &["REPLICAOF", "NO", "ONE"]);
    assert_given_out_and_refused(&one, &other, &recorded);
}

#[test]
fn a_session_that_has_resumed_without_early_data_is_spent_too() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let (one, other) = (farm.serve("web1"), farm.serve("web2"));
    let path = |name: &str| farm.folder().join(name);
    let (kept, request) = (path("kept.pem"), path("request"));
    std::fs::write(&request, GET).unwrap();
    let [kept_in, kept_out, early] = ["-sess_in", "-sess_out", "-early_data"].map(Path::new);
    s_client(&one, &farm.root(), &[kept_out, &kept]);
    let verdict = |server, arguments: &[&Path]| {
        let said = s_client(
            server,
            &farm.root(),
            &[&[kept_in, &kept], arguments].concat(),
        );
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("sessile-verdict: "));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    assert_eq!(verdict(&one, &[]), "resumed/psk");
    assert_eq!(verdict(&other, &[]), "full/spent");
    s_client(&other, &farm.root(), &[kept_in, &kept, early, &request]);
    assert_eq!(other.metrics().verdict("full/spent"), 2);
    assert_eq!(outcomes(&[&other], "rejected/store"), 1);
    assert_eq!(accepted(&[&one, &other]), 0);
}

fn s_client(server: &Server, root: &Path, arguments: &[&Path]) -> String {
    let mut command = Command::new("openssl");
    command.args([
        "s_client",
        "-tls1_3",
        "-ign_eof",
        "-servername",
        "localhost",
    ]);
    command.args(["-alpn", "http/1.1", "-connect"]);
    command.arg(server.address().to_string());
    command.arg("-CAfile").arg(root).args(arguments);
    let request = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(request.path(), GET).unwrap();
    // Where early data is refused it asks again; where it is not, nobody listens any more.
    let output = command.stdin(request.reopen().unwrap()).output();
    let output = output.expect("openssl is needed: install the package openssl");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn openssl_is_answered_early_once() {
    let redis = Redis::start();
    let farm = farm(&redis);
    let servers = farm.serve_three();
    let path = |name: &str| farm.folder().join(name);
    let (kept, next, request) = (path("kept.pem"), path("next.pem"), path("request"));
    std::fs::write(&request, GET).unwrap();
    let [kept_in, kept_out, early] = ["-sess_in", "-sess_out", "-early_data"].map(Path::new);
    s_client(&servers[0], &farm.root(), &[kept_out, &kept]);
    for server in &servers {
        let arguments = [kept_in, &kept, kept_out, &next, early, &request];
        let said = s_client(server, &farm.root(), &arguments);
        assert!(said.contains("Early data was accepted"), "{said}");
        assert!(said.contains("sessile-early-data: accepted"), "{said}");
        // The session that was used before is refused.
        let said = s_client(server, &farm.root(), &[kept_in, &kept, early, &request]);
        assert!(said.contains("Early data was rejected"), "{said}");
        std::fs::rename(&next, &kept).unwrap();
    }
}

#[test]
fn a_session_that_reaches_the_store_after_its_first_flight_brings_no_early_data() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address());
    let farm = farm(&redis);
    // Long enough not to be given up for the few requests that are held up here.
    let held_up = format!("store = \"{}\"\nstore-timeout = \"1s\"\n{ON}", proxy.url());
    let (one, other) = (farm.with(&held_up).serve("web1"), farm.serve("web2"));
    let visitor = Visitor::new(&farm);
    proxy.set(Mode::Hold);
    visitor.visit(one.address());
    assert_eq!(sessions(&redis), 0);

    let flight = visitor.early(GET);
    let recorded = flight.bytes.clone();
    let mut visit = Visit::to(other.address(), flight);
    visit.send(GET);
    assert_eq!(visit.answer().outcome(), "full/unknown-key rejected/store");
    assert_eq!(spends(&[&other], "missing"), 1);
    proxy.set(Mode::Pass);
    eventually("it reaches the store", || sessions(&redis) == 2);
    play_back(&other, &recorded);
    assert_eq!(spends(&[&other], "ok"), 1);
    assert_eq!(accepted(&[&one, &other]), 0);
}

/// Sessions for single use that are in a store.
fn sessions(redis: &Redis) -> usize {
    let entries = redis.entries();
    let parts = entries.iter().filter_map(|(name, _)| {
        let brace = name.iter().position(|&byte| byte == b'}')?;
        (brace + 1 < name.len()).then_some(())
    });
    parts.count()
}

#[test]
fn what_strangers_make_up_leaves_little_in_the_store_and_takes_nothing_from_others() {
    const STRANGERS: usize = 400;
    let redis = Redis::start();
    let farm = farm(&redis);
    let server = farm.serve("web1");
    let visitor = Visitor::new(&farm);
    visitor.visit(server.address());
    let mut flight = visitor.early(GET).bytes;
    let identity = position_of_identity(&flight);
    let before = redis.entries();
    for _ in 0..STRANGERS {
        aws_lc_rs::rand::fill(&mut flight[identity..identity + 32]).unwrap();
        send(server.address(), &flight);
    }
    eventually("they are turned down", || {
        spends(&[&server], "missing") == STRANGERS as u64
    });
    let mut left = redis.entries();
    let is_claim = |name: &[u8]| name.windows(8).any(|part| part == b":server:");
    left.retain(|(name, _)| !is_claim(name) && before.iter().all(|(other, _)| other != name));
    // Strangers that meet in a part of the store leave one mark, and there are 4,096 parts: with so many of
    // them it is as good as certain that some do.
    assert!((1..STRANGERS).contains(&left.len()), "{}", left.len());
    for (name, value) in left {
        let name = String::from_utf8(name).unwrap();
        let (_, part) = name.rsplit_once(':').unwrap();
        assert!(part.len() == 5 && part.starts_with('{'), "{name}");
        assert_eq!(value, b"");
        let life: i64 = ask_for(&redis, &["PTTL", &name]);
        assert!(life <= 20_000, "{life}");
    }
    // Who is in a part that a stranger asked for may have to wait for early data, and resumes.
    let outcome = visitor.visit_early(server.address()).outcome();
    let known = ["resumed/psk accepted", "resumed/psk rejected/store"];
    assert!(known.contains(&outcome.as_str()), "{outcome}");
}
