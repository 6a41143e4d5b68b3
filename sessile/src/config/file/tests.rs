mod sites;

use super::*;
use crate::config::{
    AccessLog, Action, ClientAuth, ClientAuthMode, Folder, ForgetTarget, KernelTls, Key, Role,
    Symlinks,
};
use proptest::prelude::*;
use sessile_proto::proxy_protocol::Version;
use sessile_proto::route::Policy;
use std::sync::Arc;
use std::time::Duration;

const SITE: &str = "[[site]]\ncertificates = [{ chain = 'c.pem', key = 'k.pem' }]\n";

/// Every key except `key.file`.
const EVERY_KEY: &str = r#"
[server]
name = "one"
number = 7
state-dir = "state"
workers = 3
[session]
max-entries = 12
lifetime = "1h 30m"
tickets = false
store = "rediss://u:p@h?ca=ca.pem"
store-timeout = "5ms"
snapshot = false
early-data = "0KiB"
client-lifetime = 0
require-close-notify = true
[connection]
idle-timeout = "30s"
purge-on-reclaim = true
max = 99
max-hellos = 50
max-hello-bytes = 2000000
max-hello-size = "32KiB"
max-per-source = 20
rate-per-source = 100
drain-timeout = "1m"
[tls]
kernel = "off"
[admin]
listen = "127.0.0.1:9000"
[log]
level = "debug"
access = "access.log"
[[listener]]
address = "[::]:443"
[[listener]]
address = "0.0.0.0:444"
role = "balance"
proxy-protocol = true
proxy-trusted = ["10.0.0.0/8", "::1"]
[[site]]
names = ["WWW.example.org", "*.example.org"]
certificates = [{ chain = "c.pem", key = "/k.pem" }]
client-auth = { mode = "optional", ca = "clients.pem", crl = "/clients.crl" }
early-data = 0
[[site.route]]
path = "/"
files = "www"
symlinks = "follow"
[[site.route]]
path = "/old/"
redirect = "https://example.org/new"
[[site.route]]
path = "/teapot"
respond = "short and stout"
status = 418
[[site.route]]
path = "/verdict"
verdict = true
[[site.route]]
path = "/app"
proxy = "app"
[[upstream]]
name = "app"
servers = ["http://10.0.0.1:8080", "http://app.internal/", "http://[::1]"]
connect-timeout = "3s"
response-timeout = "2m"
[balance]
policy = "least-connections"
connect-timeout = "1s"
idle-timeout = 0
total-timeout = "12h"
[[balance.server]]
name = "a"
address = "10.0.0.1:443"
number = 5
weight = 9
proxy-protocol = "v2""#;

fn config(text: &str) -> Config {
    parse(text, Path::new("etc/sessile.toml")).expect("it is right")
}

/// The error messages for an invalid text, without the file name.
fn problems(text: &str) -> Vec<String> {
    let error = parse(text, Path::new("s.toml")).expect_err("it is wrong");
    let lines = error.to_string();
    lines
        .lines()
        .map(|line| line.trim_start_matches("s.toml:").to_owned())
        .collect()
}

#[test]
fn an_empty_file_gives_the_defaults() {
    assert_eq!(config(""), Config::default());
    assert_eq!(config("\u{feff}[session]\r\n"), Config::default());
}

fn followed_folder(path: &str) -> Action {
    Action::Files(Folder {
        path: path.into(),
        symlinks: Symlinks::Follow,
    })
}

#[test]
fn every_key_sets_its_field() {
    let config = config(EVERY_KEY);
    assert_eq!(
        (&*config.server.name, config.server.number),
        ("one", Some(7))
    );
    assert_eq!(config.server.state_dir, Path::new("etc/state"));
    assert_eq!(config.server.workers, 3);
    assert_eq!(config.session.max_entries, 12);
    assert_eq!(
        config.session.store.to_string(),
        "rediss://u:***@h:6379?ca=etc/ca.pem"
    );
    assert_eq!(config.session.store_timeout, Duration::from_millis(5));
    assert!(!config.session.snapshot);
    assert_eq!(config.session.lifetime, Duration::from_secs(5400));
    assert_eq!(config.session.client_lifetime, Duration::ZERO);
    assert!(!config.session.tickets && config.session.require_close_notify);
    assert_eq!(config.key, Key::File("etc/state/farm.key".into()));
    assert_eq!(config.connection.idle_timeout, Duration::from_secs(30));
    assert_eq!(
        (config.connection.purge_on_reclaim, config.connection.max),
        (true, 99)
    );
    assert_eq!(config.tls.kernel, KernelTls::Off);
    assert_eq!(config.admin.listen, "127.0.0.1:9000".parse().ok());
    assert_eq!(config.log.access, AccessLog::File("etc/access.log".into()));
    let roles: Vec<_> = config
        .listeners
        .iter()
        .map(|listener| listener.role)
        .collect();
    assert_eq!(roles, [Role::Serve, Role::Balance]);
    let [site] = &config.sites[..] else {
        panic!("one site")
    };
    assert_eq!(site.names, ["www.example.org", "*.example.org"]);
    assert_eq!(site.certificates[0].chain, Path::new("etc/c.pem"));
    assert_eq!(site.certificates[0].key, Path::new("/k.pem"));
    let client_auth = ClientAuth {
        mode: ClientAuthMode::Optional,
        ca: "etc/clients.pem".into(),
        crl: Some("/clients.crl".into()),
    };
    assert_eq!(site.client_auth, Some(client_auth));
    let paths: Vec<_> = site.routes.iter().map(|route| &*route.path).collect();
    assert_eq!(paths, ["/verdict", "/teapot", "/old", "/app", "/"]);
    let upstream = Arc::clone(&config.upstreams[0]);
    assert_eq!(
        upstream.servers,
        ["10.0.0.1:8080", "app.internal:80", "[::1]:80"]
    );
    assert_eq!(
        (upstream.connect_timeout, upstream.response_timeout),
        (Duration::from_secs(3), Duration::from_secs(120))
    );
    assert_eq!(site.routes[3].action, Action::Proxy(upstream));
    let teapot = Action::Respond {
        status: 418,
        body: "short and stout".to_owned(),
    };
    assert_eq!(site.routes[1].action, teapot);
    assert_eq!(site.routes[4].action, followed_folder("etc/www"));
    assert_eq!(config.balance.policy, Policy::LeastConnections);
    let [server] = &config.balance.servers[..] else {
        panic!("one server")
    };
    assert_eq!((server.number, server.weight), (Some(5), 9));
}

#[test]
fn connection_limits_and_proxies_set_their_fields() {
    let config = config(EVERY_KEY);
    assert_eq!(config.balance.servers[0].proxy_protocol, Some(Version::V2));
    let proxies = config.listeners[1].proxies.iter();
    let proxies: Vec<_> = proxies.map(ToString::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "::1/128"]);
    assert!(config.listeners[0].proxies.is_empty());
    let limits = &config.connection;
    assert_eq!(
        (
            limits.max_hellos,
            limits.max_hello_bytes,
            limits.max_per_source,
            limits.rate_per_source
        ),
        (50, 2_000_000, 20, 100)
    );
    assert_eq!(limits.max_hello_size, 32 * 1024);
    assert_eq!(limits.drain_timeout, Duration::from_secs(60));
    let balance = &config.balance;
    assert!(balance.idle_timeout.is_zero());
    assert_eq!(balance.total_timeout, Duration::from_secs(12 * 60 * 60));
}

#[test]
fn without_a_key_file_the_key_is_ephemeral() {
    assert_eq!(config("key.file = 'none'").key, Key::Ephemeral);
    assert_eq!(
        config("key.file = 'a.key'").key,
        Key::File("etc/a.key".into())
    );
}

#[test]
fn an_unknown_key_is_located_and_the_nearest_suggested() {
    assert_eq!(
        problems("[session]\nlifetme = '5m'\n"),
        ["2:1: unknown key `lifetme` in [session]; did you mean `lifetime`?"]
    );
    assert_eq!(
        problems("[tls]\ncolour = 1\n"),
        ["2:1: unknown key `colour` in [tls]; known here: kernel"]
    );
    assert_eq!(
        problems("[sesion]\n"),
        ["1:2: unknown key `sesion` at the top level; did you mean `session`?"]
    );
    assert_eq!(
        problems("[[site]]\n[[site.route]]\npth = '/'\n"),
        [
            "1:1: the site has no certificate; add certificates = [{ chain = \"cert.pem\", key = \"key.pem\" }]",
            "3:1: unknown key `pth` in [site.route]; did you mean `path`?"
        ]
    );
}

#[test]
fn a_listener_with_proxy_protocol_needs_trusted_proxies() {
    let listener = "[[listener]]\naddress = '1.2.3.4:5'\n";
    let problems = |rest: &str| problems(&format!("{SITE}{listener}{rest}"));
    assert_eq!(
        problems("proxy-protocol = true\n"),
        [
            "3:1: `proxy-protocol` is true, but no address is trusted to send the header; add proxy-trusted = \
             [\"10.0.0.0/8\"], with the addresses of the proxies"
        ]
    );
    assert_eq!(
        problems("proxy-trusted = ['10.0.0.0/8']\n"),
        [
            "5:18: `proxy-trusted` has no effect without proxy-protocol = true; add that, or remove `proxy-trusted`"
        ]
    );
    assert_eq!(
        problems("proxy-protocol = true\nproxy-trusted = ['10.0.0.1/8']\n"),
        [
            "6:18: \"10.0.0.1/8\" in `proxy-trusted` is not a network; write an address, or a prefix with its length, \
         such as \"10.0.0.0/8\" (the bits after the prefix must be zero)"
        ]
    );
}

#[test]
fn one_run_reports_all_problems() {
    assert_eq!(
        problems("[session]\nlifetme = '5m'\nmax-entries = '9'\n[[site]]\nnames = [5]\nrout = 1\n"),
        [
            "2:1: unknown key `lifetme` in [session]; did you mean `lifetime`?",
            "3:15: invalid type: string \"9\", expected a whole number",
            "5:10: invalid type: integer `5`, expected a string",
            "6:1: unknown key `rout` in [site]; did you mean `route`?",
        ]
    );
    assert_eq!(
        problems("session.lifetime = '5 moons'\nconnection.max = -1\nlog.level = 'inof'\n"),
        [
            "1:20: `lifetime` is \"5 moons\", which is not a duration; write a number and a unit, such as \"5m\" or \"10h\"",
            "2:18: `max` is -1; write a number from 0 to 4294967295",
            "3:13: `level` is \"inof\"; did you mean `info`?",
        ]
    );
}

#[test]
fn a_syntax_error_is_located() {
    assert_eq!(
        problems("[session]\nlifetime = '5m'\nlifetime = '6m'\n"),
        ["3:1: not TOML: duplicate key"]
    );
    assert!(problems("[session]\nlifetime = \n")[0].starts_with("2:1"));
}

#[test]
fn wrong_keys_do_not_hide_wrong_values() {
    let found = problems(
        "[session]\nticketts = true\nlifetime = 'odd'\n[[listener]]\nadress = ':443'\n\
         [[listener]]\naddress = 'farm:1'\n[[site]]\nnames = ['a']\n",
    );
    let expected = [
        "2:1: unknown key `ticketts`",
        "3:12: `lifetime` is",
        "5:1: unknown key `adress`",
        "7:11: `address` is",
        "8:1: the site has no certificate",
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found} {expected}");
    }
}

#[test]
fn errors_for_values_out_of_bounds_name_the_remedy() {
    let cases = [
        (
            "session.lifetime = '8d'",
            "1:20: `lifetime` is 8days, but TLS 1.3 allows tickets",
        ),
        (
            "session.lifetime = 5",
            "1:20: `lifetime` is \"5\", which is not a duration",
        ),
        (
            "session.client-lifetime = '2years'",
            "at most 1year is allowed",
        ),
        (
            "session.store = 'redis://:secret@h?x=1'",
            "1:17: `store` has an unknown option",
        ),
        (
            "session.store-timeout = '6s'",
            "1:25: `store-timeout` is 6s; at most 5s is allowed",
        ),
        (
            "server.number = 16777216",
            "write a number from 0 to 16777215",
        ),
        ("server.name = ''", "a server's name is 1 to 255"),
        ("server.state-dir = ''", "`state-dir` is empty"),
        ("connection.idle-timeout = '0s'", "`idle-timeout` is zero"),
        (
            "tls.kernel = 'always'",
            "1:14: `kernel` is \"always\"; known here: auto, on, off",
        ),
        (
            "admin.listen = 'farm.test:9000'",
            "not an address to listen on",
        ),
        (
            "balance.policy = 'random'",
            "known here: source, least-connections, round-robin",
        ),
    ];
    for (text, expected) in cases {
        let problems = problems(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(expected), "{text}: {problems:?}");
        assert!(!problems[0].contains("secret"));
    }
    config("session.lifetime = '7d'");
    config("session = { lifetime = '8d', tickets = false }");
}

#[test]
fn listeners_need_distinct_addresses_and_a_role() {
    let listener = "[[listener]]\naddress = '127.0.0.1:1'\n";
    assert!(
        problems(listener)[0]
            .starts_with("1:1: the listener has role \"serve\", but there is no site")
    );
    let balance = format!("{listener}role = 'balance'\n");
    assert!(
        problems(&balance)[0]
            .starts_with("1:1: the listener has role \"balance\", but there is no server")
    );
    assert_eq!(
        problems(
            &format!("{listener}{listener}admin.listen = '127.0.0.1:1'\n{SITE}")
                .replace("admin.", "")
        ),
        [
            "5:1: unknown key `listen` in [listener]; known here: address, role, proxy-protocol, proxy-trusted, kernel"
        ]
    );
    assert_eq!(
        problems(&format!(
            "admin.listen = '127.0.0.1:1'\n{listener}{listener}{SITE}"
        )),
        [
            "1:16: a second listener address 127.0.0.1:1; the first is in line 3; remove one",
            "5:11: a second listener address 127.0.0.1:1; the first is in line 3; remove one",
        ]
    );
    let overlapping = listener.replace("127.0.0.1:1", ":1");
    assert_eq!(
        problems(&format!("{listener}{overlapping}{SITE}")),
        [
            "4:11: the listener address [::]:1 has clients in common with 127.0.0.1:1 in line 2; remove one"
        ]
    );
    let any = listener.replace(":1'", ":0'");
    assert_eq!(config(&format!("{any}{any}{SITE}")).listeners.len(), 2);
    let bare = format!("[[listener]]\n{SITE}");
    assert!(problems(&bare)[0].starts_with("1:1: [[listener]] needs `address`"));
}

#[test]
fn servers_clash_by_name_and_number() {
    let server = |name: &str, rest: &str| {
        format!("[[balance.server]]\nname = '{name}'\naddress = '10.0.0.1:1'\n{rest}\n")
    };
    assert_eq!(
        problems(&format!(
            "{}{}",
            server("a", "number = 1"),
            server("a", "number = 1")
        )),
        [
            "6:8: a second server name a; the first is in line 2; remove one",
            "8:10: a second server number 1; the first is in line 4; remove one",
        ]
    );
    assert_eq!(
        problems(&server("a", "weight = 0")),
        ["4:10: `weight` is 0; write a number from 1 to 65535"]
    );
    assert_eq!(problems("[[balance.server]]\n").len(), 2);
    assert_eq!(config(&server("a", "")).balance.servers[0].weight, 1);
}

#[test]
fn a_file_that_is_not_utf8_is_placed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s.toml");
    std::fs::write(&path, b"# caf\n# caf\xe9\n").expect("written");
    let error = load(&path).expect_err("it is Latin-1").to_string();
    assert!(
        error.ends_with("s.toml:2:6: not UTF-8 from here on; save the file as UTF-8"),
        "{error}"
    );
    let missing = load(&folder.path().join("none.toml")).expect_err("it is not there");
    assert!(missing.to_string().contains("cannot be read"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\[{0,2}(session|site|listener|key)?\\.?(route)?\\]{0,2}\n|(max|file|path|names) ?= ?('[a-z/]*'|[0-9]+|\\[\\]|\\{\\})?\n|\\PC{0,9}\n?){0,8}") {
        let _ = parse(&text, Path::new("s.toml"));
    }
}

#[test]
fn every_form_of_a_forget_rule_is_read() {
    let file = |forget: &str| {
        format!(
            "session.forget = [{forget}]\n{SITE}names = ['Shop.example', 'www.example']\n{SITE}"
        )
    };
    let config = config(&file(
        "{ before = '2026-01-01T00:00:00Z' }, { site = 'SHOP.example', before = 2026-01-01T00:00:00Z }, \
         { site = '*', before = '2026-01-01T00:00:00.5Z' }, { server = 'web2', before = '2026-01-01T00:00:00Z' }, \
         { server = 7, before = '2026-01-01T00:00:00Z' }",
    ));
    let begin = sessile_proto::Time::from_unix_millis(1_767_225_600_000);
    let target: Vec<_> = config.session.forget.iter().map(|f| &f.target).collect();
    let site = |name: &str| ForgetTarget::Site(name.to_owned());
    let expected = [
        ForgetTarget::Everything,
        site("shop.example"),
        site(""),
        ForgetTarget::Server("web2".to_owned()),
        ForgetTarget::Number(7),
    ];
    assert_eq!(target, expected.iter().collect::<Vec<_>>());
    let since = |n: usize| config.session.forget[n].before.since(begin).as_millis();
    assert_eq!([0, 1, 2, 3, 4].map(since), [0, 0, 500, 0, 0]);
}

#[test]
fn errors_for_forget_rules_name_the_remedy() {
    let cases = [
        ("{ }", "`forget` needs `before`"),
        (
            "{ before = 'noon' }",
            "`before` is \"noon\", which is not a time in UTC",
        ),
        ("{ before = 2026-01-01 }", "which is not a time in UTC"),
        (
            "{ before = '2999-01-01T00:00:00Z' }",
            "in the future by this machine's clock",
        ),
        (
            "{ site = 'shop.exmaple', before = '2026-01-01T00:00:00Z' }",
            "did you mean `shop.example`?",
        ),
        (
            "{ site = '*', before = '2026-01-01T00:00:00Z' }",
            "known here: shop.example",
        ),
        (
            "{ site = 'shop.example', server = 1, before = '2026-01-01T00:00:00Z' }",
            "write one entry for each",
        ),
        (
            "{ server = -1, before = '2026-01-01T00:00:00Z' }",
            "`server` is -1; write a number from 0",
        ),
        (
            "{ server = true, before = '2026-01-01T00:00:00Z' }",
            "expected a server's name or its number",
        ),
        ("{ sever = 1 }", "did you mean `server`?"),
    ];
    for (forget, expected) in cases {
        let lines = problems(&format!(
            "session.forget = [{forget}]\n{SITE}names = ['shop.example']\n"
        ));
        assert!(
            lines.iter().any(|line| line.contains(expected)),
            "{forget}: {lines:?}"
        );
    }
    let many = "{ before = '2026-01-01T00:00:00Z' },".repeat(257);
    let lines = problems(&format!("session.forget = [{many}]\n"));
    assert!(
        lines[0].contains("more than 256 `forget` entries"),
        "{lines:?}"
    );
}

#[test]
fn the_size_limit_of_a_hello_has_bounds() {
    let size = |written: &str| {
        let text = format!("connection.max-hello-size = {written}");
        parse(&text, "s.toml".as_ref()).map(|config| config.connection.max_hello_size)
    };
    assert_eq!(size("\"64KiB\"").expect("it is right"), 65536);
    assert_eq!(size("4096").expect("it is right"), 4096);
    for wrong in ["4095", "65537", "-1", "\"1 MiB\""] {
        let problems = size(wrong).expect_err("out of bounds").to_string();
        assert!(problems.contains("from 4096 to 65536"), "{problems}");
    }
}
