//! Servers that the API of `sessile balance` adds, changes and removes.

use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::balance_servers::{named, reload, server, start, visit, write};
use crate::peers::{Certificates, Dns, NAME, Peer, Sessile, eventually};

/// A balancer, and the token of its API.
struct Controlled {
    balancer: Sessile,
    token: String,
}

impl Controlled {
    fn start(certificates: &Certificates, balance: &str, rest: &[String]) -> Self {
        let balancer = start(certificates.folder(), balance, rest);
        let token = fs::read_to_string(certificates.folder().join("token")).unwrap();
        Self {
            balancer,
            token: token.trim().to_owned(),
        }
    }

    /// The status and the answer of a request about a server.
    fn ask(&self, method: &str, server: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = format!("{method} /api/balancer/servers/{server}");
        self.balancer.api(&request, Some(&self.token), &body)
    }

    /// A request that is carried out.
    fn do_(&self, method: &str, server: &str, body: &Value) -> Value {
        let (status, said) = self.ask(method, server, body);
        assert_eq!(status, 200, "{said}");
        said
    }

    /// The status and the error of a request that is refused.
    fn refused(&self, method: &str, server: &str, body: &Value) -> (u16, String) {
        let (status, said) = self.ask(method, server, body);
        (
            status,
            said["error"].as_str().unwrap_or_default().to_owned(),
        )
    }

    fn names(&self) -> Vec<String> {
        let snapshot = self.balancer.snapshot();
        let servers = snapshot["servers"].as_array().unwrap().iter();
        let names = servers.map(|server| server["name"].as_str().unwrap().to_owned());
        names.collect()
    }

    /// The servers that new clients reach.
    fn reached(&self) -> Vec<String> {
        let visits = (0..4).map(|_| visit(self.balancer.address(), NAME, None).0);
        let mut reached: Vec<String> = visits.collect();
        reached.sort();
        reached.dedup();
        reached
    }
}

const SETTINGS: &str = "policy = \"round-robin\"\nhealth = \"off\"";

#[test]
fn a_server_of_the_api_stays_over_a_reload_and_other_changes_do_not() {
    let certificates = Certificates::new();
    let servers = ["a", "b", "c"].map(|name| named(&certificates, name));
    let [a, b, c] = servers.each_ref().map(Peer::address);
    let rest = [server("a", a, "")];
    let api = Controlled::start(&certificates, SETTINGS, &rest);
    let unauthorized = api.balancer.api("PUT /api/balancer/servers/b", None, "{}");
    assert_eq!(unauthorized.0, 401);
    let unauthorized = api
        .balancer
        .api("DELETE /api/balancer/servers/a", Some("guess"), "");
    assert_eq!(unauthorized.0, 401);

    let added = api.do_("PUT", "b", &json!({"address": b.to_string(), "weight": 3}));
    assert_eq!(
        (
            &added["name"],
            &added["address"],
            &added["weight"],
            &added["from_api"]
        ),
        (&json!("b"), &json!(b.to_string()), &json!(3), &json!(true))
    );
    assert_eq!(api.reached(), ["a", "b"]);
    // Settings that a request leaves out get their defaults.
    let changed = api.do_(
        "PUT",
        "b",
        &json!({"address": c.to_string(), "max_connections": 5}),
    );
    assert_eq!(
        (&changed["weight"], &changed["max_connections"]),
        (&json!(1), &json!(5))
    );
    assert_eq!(api.reached(), ["a", "c"]);

    // The servers of the file are as in the file after a reload.
    api.do_("PUT", "a", &json!({"address": b.to_string()}));
    assert_eq!(api.reached(), ["b", "c"]);
    assert_eq!(
        api.do_("DELETE", "a", &json!(null)),
        json!({"removed": ["a"]})
    );
    assert_eq!(api.names(), ["b"]);
    assert_eq!(api.reached(), ["c"]);
    reload(&api.balancer);
    assert_eq!(api.names(), ["a", "b"]);
    assert_eq!(api.reached(), ["a", "c"]);

    assert_eq!(
        api.do_("DELETE", "b", &json!(null)),
        json!({"removed": ["b"]})
    );
    reload(&api.balancer);
    assert_eq!(api.names(), ["a"]);
    let (status, error) = api.refused("DELETE", "b", &json!(null));
    assert_eq!(
        (status, error.as_str()),
        (404, "no server is named \"b\"; the servers are a")
    );
}

#[test]
fn a_reload_removes_servers_of_the_api_that_no_longer_fit() {
    let certificates = Certificates::new();
    let servers = ["a", "b", "c"].map(|name| named(&certificates, name));
    let [a, b, c] = servers.each_ref().map(Peer::address);
    let pool = "[[balance.pool]]\nname = \"shop\"\nnames = [\"shop.test\"]\n".to_owned();
    let in_pool = server("s", a, "pool = \"shop\"");
    let rest = [pool, server("a", a, ""), in_pool];
    let api = Controlled::start(&certificates, SETTINGS, &rest);
    let added = api.do_(
        "PUT",
        "b",
        &json!({"address": b.to_string(), "pool": "shop"}),
    );
    assert_eq!(added["pool"], "shop");
    api.do_("PUT", "c", &json!({"address": c.to_string()}));
    write(
        certificates.folder(),
        SETTINGS,
        &[server("a", a, ""), server("c", b, "")],
    );
    reload(&api.balancer);
    assert_eq!(api.names(), ["a", "c"]);
    assert_eq!(api.reached(), ["a", "b"]);
    api.balancer
        .await_line("the configuration has no longer the pool of a server that the API added");
    api.balancer
        .await_line("the name of a server that the API added");
}

#[test]
fn requests_are_refused_in_the_words_of_the_configuration() {
    let certificates = Certificates::new();
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let rest = [server("a", address, "number = 5")];
    let api = Controlled::start(&certificates, SETTINGS, &rest);
    for (body, error) in [
        (
            json!({}),
            "[[balance.server]] needs `address`; write for example address = \"10.0.0.1:443\"",
        ),
        (
            json!({"address": "web.test"}),
            "`address` is \"web.test\", which has no port; write for example \"web.shop.example:443\", or an SRV name \
             such as \"_tls._tcp.web.shop.example\"",
        ),
        (
            json!({"address": "127.0.0.1:1", "weight": 0, "pool": "shop"}),
            "`weight` is 0; write a number from 1 to 65535; `pool` is \"shop\"; none is defined yet",
        ),
        (
            json!({"address": "web.test:1", "number": 3}),
            "`number` has no effect if `address` is a DNS name, because the balancer learns the numbers from the \
             servers' tickets; remove it",
        ),
        (
            json!({"address": "_tls._tcp.web.test", "weight": 3}),
            "`weight` has no effect if `address` is an SRV name, because each record has a weight; remove it",
        ),
    ] {
        assert_eq!(api.refused("PUT", "b", &body), (400, error.to_owned()));
    }
    let (status, error) = api.refused("PUT", "b", &json!({"adress": "127.0.0.1:1"}));
    assert!(
        status == 400 && error.contains("unknown field `adress`"),
        "{error}"
    );
    assert!(
        error.ends_with("write for example {\"address\": \"10.0.0.1:443\"}"),
        "{error}"
    );
    let body = json!({"address": "127.0.0.1:1", "number": 5});
    let (status, error) = api.refused("PUT", "b", &body);
    assert!(
        status == 409 && error.contains("have the same number, 5"),
        "{error}"
    );
    // A refused server has no metrics.
    let metrics = api.balancer.metrics_text();
    assert!(metrics.contains("server=\"a\"") && !metrics.contains("server=\"b\""));
    assert_eq!(
        api.refused("PATCH", "a", &json!({})),
        (405, "method not allowed".to_owned())
    );
    assert_eq!(api.names(), ["a"]);
}

#[test]
fn the_api_adds_and_removes_the_servers_of_a_dns_name() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let dns = Dns::start("127.0.0.1 web.test\n");
    let settings = format!("{SETTINGS}\n{}", dns.setting());
    let api = Controlled::start(&certificates, &settings, &[server("a", a, "")]);
    let name = format!("web.test:{}", b.port());
    let added = api.do_("PUT", "web", &json!({"address": name}));
    assert_eq!(
        (&added["address"], &added["from_api"]),
        (&json!(name), &json!(true))
    );
    let found = format!("web/{b}");
    let has = |names: &[&str]| eventually("the servers have changed", || api.names() == names);
    has(&["a", &found]);
    assert_eq!(api.reached(), ["a", "b"]);
    reload(&api.balancer);
    assert_eq!(api.names(), ["a", &found]);
    for (method, body) in [
        ("PUT", json!({"address": "127.0.0.1:1"})),
        ("DELETE", json!(null)),
    ] {
        let (status, error) = api.refused(method, &found, &body);
        assert!(
            status == 409 && error.contains("change or remove the server \"web\""),
            "{error}"
        );
    }
    // Names of servers that DNS can give are not for other servers.
    let body = json!({"address": "127.0.0.1:1"});
    let (status, error) = api.refused("PUT", "web/127.0.0.9:1", &body);
    assert!(
        status == 400 && error.contains("choose another name"),
        "{error}"
    );
    let (status, _) = api.ask("POST", "web", &json!({"drain": true}));
    assert_eq!(status, 200);
    assert_eq!(api.reached(), ["a"]);
    assert_eq!(
        api.do_("DELETE", "web", &json!(null)),
        json!({"removed": [found]})
    );
    assert_eq!(api.names(), ["a"]);

    api.do_("PUT", "srv", &json!({"address": "_tls._tcp.web.test"}));
    let (status, error) = api.refused("POST", "srv", &json!({"weight": 2}));
    assert!(status == 400 && error.contains("SRV name"), "{error}");
}

#[test]
fn a_request_that_adds_or_removes_a_server_looks_all_names_up_again() {
    let certificates = Certificates::new();
    let servers = ["a", "b"].map(|name| named(&certificates, name));
    let [a, b] = servers.each_ref().map(Peer::address);
    let lifetime = ["--local-ttl=3600".to_owned()];
    let dns = Dns::with("127.0.0.1 web.test\n", &lifetime);
    let settings = format!("{SETTINGS}\n{}", dns.setting());
    let web = format!(
        "[[balance.server]]\nname = \"web\"\naddress = \"web.test:{}\"\n",
        a.port()
    );
    let api = Controlled::start(&certificates, &settings, &[web]);
    dns.set_hosts("127.0.0.1 web.test\n127.0.0.9 web.test\n");
    let _dns = dns.restart_with(&lifetime);
    api.do_("PUT", "b", &json!({"address": b.to_string()}));
    let found = ["127.0.0.1", "127.0.0.9"].map(|ip| format!("web/{ip}:{}", a.port()));
    let wanted = [&found[0], &found[1], "b"];
    eventually("the name was looked up again", || api.names() == wanted);
}

#[test]
fn a_pool_without_servers_is_not_ready() {
    let certificates = Certificates::new();
    let address = named(&certificates, "a").address();
    let pool = "[[balance.pool]]\nname = \"shop\"\nnames = [\"shop.test\"]\n".to_owned();
    let in_pool = server("s", address, "pool = \"shop\"");
    let rest = [pool, server("a", address, ""), in_pool];
    let api = Controlled::start(&certificates, SETTINGS, &rest);
    let readiness = || api.balancer.readiness();
    let unready = |pools: &str| (503, format!("no server is up in {pools}\n"));
    let ready = (200, "ready\n".to_owned());
    assert_eq!(readiness(), ready);
    // Only a named pool needs servers.
    api.do_("DELETE", "a", &json!(null));
    assert_eq!(readiness(), ready);
    api.do_("DELETE", "s", &json!(null));
    let both = "pool default (it has no server), pool shop (it has no server)";
    assert_eq!(readiness(), unready(both));
    api.do_("PUT", "a", &json!({"address": address.to_string()}));
    assert_eq!(readiness(), unready("pool shop (it has no server)"));
}
