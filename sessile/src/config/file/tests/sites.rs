//! Tests of sites, routes and upstreams.

use super::*;

#[test]
fn sites_clash_by_name_and_need_a_certificate() {
    let named = SITE.replace("]]\n", "]]\nnames = ['a.example']\n");
    assert_eq!(
        problems(&format!("{named}{}", named.replace("a.ex", "A.ex"))),
        ["5:10: a second site for the name a.example; the first is in line 2; remove one"]
    );
    assert_eq!(
        problems(&format!("{SITE}{SITE}")),
        ["3:1: a second site without names; the first is in line 1; remove one"]
    );
    assert!(problems("[[site]]\n")[0].starts_with("1:1: the site has no certificate"));
    assert!(
        problems("[[site]]\ncertificates = [{ chain = 'c' }]\n")[0]
            .contains("a certificate needs `key`")
    );
    for name in ["*", "a.*.b", "1.2.3.4", "ü.example", "a.", "", "a b"] {
        let text = named.replace("a.example", name);
        assert!(
            problems(&text)[0].contains("is not a server name"),
            "{name}"
        );
    }
}

#[test]
fn client_certificates_need_an_authority_and_are_required_by_default() {
    let site = |keys: &str| format!("{SITE}client-auth = {{ {keys} }}\n");
    let read = config(&site("ca = 'a.pem'")).sites.remove(0).client_auth;
    let expected = ClientAuth {
        mode: ClientAuthMode::Required,
        ca: "etc/a.pem".into(),
        crl: None,
    };
    assert_eq!(read, Some(expected));
    let cases = [
        (
            "mode = 'optional'",
            "3:15: client-auth needs `ca`; write for example ca = \"clients.pem\"",
        ),
        (
            "ca = 'a.pem', mode = 'require'",
            "3:38: `mode` is \"require\"; did you mean `required`?",
        ),
        ("ca = ''", "3:22: `ca` is empty"),
        ("ca = 'a.pem', crl = ''", "3:37: `crl` is empty"),
        (
            "ca = 'a.pem', crls = 'b'",
            "3:31: unknown key `crls` in [site.client-auth]; did you mean `crl`?",
        ),
    ];
    for (keys, expected) in cases {
        let problems = problems(&site(keys));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(expected), "{problems:?}");
    }
}

#[test]
fn a_route_has_one_path_and_one_action() {
    let route = |keys: &str| format!("{SITE}[[site.route]]\n{keys}\n");
    let cases = [
        ("path = '/'", "3:1: the route has 0 of"),
        ("path = '/'\nverdict = false", "3:1: the route has 0 of"),
        (
            "path = '/'\nverdict = true\nfiles = 'x'",
            "3:1: the route has 2 of",
        ),
        ("verdict = true", "3:1: [[site.route]] needs `path`"),
        ("path = 'x'\nverdict = true", "4:8: `path` is \"x\""),
        ("path = '/a/../b'\nverdict = true", "4:8: `path` is"),
        ("path = ''\nverdict = true", "4:8: `path` is"),
        (
            "path = '/'\nverdict = true\nstatus = 200",
            "6:10: `status` needs `respond`",
        ),
        (
            "path = '/'\nrespond = 'x'\nstatus = 99",
            "6:10: `status` is 99",
        ),
        ("path = '/'\nredirect = 'ftp://x'", "5:12: `redirect` is"),
        ("path = '/'\nredirect = '//x'", "5:12: `redirect` is"),
        ("path = '/'\nfiles = ''", "5:9: `files` is empty"),
        (
            "path = '/'\nfiles = 'x'\nsymlinks = 'outside'",
            "6:12: `symlinks` is \"outside\"",
        ),
        (
            "path = '/'\nverdict = true\nsymlinks = 'follow'",
            "6:12: `symlinks` needs `files`",
        ),
    ];
    for (keys, expected) in cases {
        let problems = problems(&route(keys));
        assert!(problems[0].starts_with(expected), "{keys}: {problems:?}");
    }
    let twice = format!(
        "{}[[site.route]]\npath = '/a/'\nverdict = true\n",
        route("path = '/a'\nverdict = true")
    );
    assert_eq!(
        problems(&twice),
        ["7:8: a second route for the path /a; the first is in line 4; remove one"]
    );
}

#[test]
fn a_route_names_a_configured_upstream() {
    let route = format!("{SITE}[[site.route]]\npath = '/'\nproxy = 'ap'\n");
    assert_eq!(
        problems(&route),
        [
            "5:9: `proxy` is \"ap\", but there is no [[upstream]]; add one with name = \"ap\" and \
             servers = [\"http://10.0.0.1:8080\"]"
        ]
    );
    let upstream = |name: &str| format!("[[upstream]]\nname = '{name}'\nservers = ['http://a']\n");
    assert_eq!(
        problems(&format!("{route}{}", upstream("app"))),
        ["5:9: `proxy` is \"ap\"; did you mean `app`?"]
    );
    config(&format!("{route}{}", upstream("ap")));
    assert_eq!(
        problems(&format!("{}{}", upstream("a"), upstream("a"))),
        ["5:8: a second upstream a; the first is in line 2; remove one"]
    );
}

#[test]
fn an_upstream_has_a_name_and_servers_with_plain_http() {
    let upstream_problems = |keys: &str| problems(&format!("[[upstream]]\n{keys}\n"));
    assert_eq!(
        upstream_problems(""),
        [
            "1:1: [[upstream]] needs `name`; write for example name = \"app\"",
            "1:1: [[upstream]] needs `servers`; write for example servers = [\"http://10.0.0.1:8080\"]",
        ]
    );
    for server in [
        "10.0.0.1:8080",
        "app",
        "ftp://app",
        "http://app/path",
        "http://app?query",
        "http://user@app",
        "http://app:0",
        "http://app:99999",
        "http://:80",
        "http://",
        "",
    ] {
        let problems = upstream_problems(&format!("name = 'a'\nservers = ['{server}']"));
        let expected =
            format!("3:12: {server:?} is not the server of an upstream; write \"http://\"");
        assert!(problems[0].starts_with(&expected), "{problems:?}");
    }
    assert!(
        upstream_problems("name = 'a'\nservers = ['https://app']")[0]
            .contains("needs TLS, which this version does not speak")
    );
    assert_eq!(
        upstream_problems(
            "name = 'a'\nservers = ['http://a', 'http://A:80', 'http://a:81']\nresponse-timeout = '0s'"
        ),
        [
            "3:24: a second server a:80; the first is in line 3; remove one",
            "4:20: `response-timeout` is zero; write a longer duration, such as \"1s\"",
        ]
    );
}

#[test]
fn a_site_can_lower_the_size_of_early_data() {
    let store = "[session]\nstore = \"redis://h\"\n";
    let bytes = |size: &str, site: &str| {
        let config = config(&format!("{store}early-data = {size}\n{SITE}{site}"));
        (config.session.early_data, config.sites[0].early_data)
    };
    assert_eq!(bytes("\"16KiB\"", ""), (16384, 16384));
    assert_eq!(
        bytes("\"64 KiB\"", "early-data = \"1KiB\"\n"),
        (65536, 1024)
    );
    assert_eq!(bytes("512", "early-data = 0\n"), (512, 0));
    assert_eq!(config(&format!("{store}{SITE}")).sites[0].early_data, 0);

    let wrong =
        |session: &str, site: &str| problems(&format!("[session]\n{session}\n{SITE}{site}"));
    let needs = |session: &str| wrong(&format!("{session}\nearly-data = 1"), "");
    assert_eq!(
        wrong("early-data = \"1KiB\"", ""),
        [
            "2:14: `early-data` is on and session.store is \"memory\": a replay would be accepted once by each server; \
             set store = \"redis://HOST\", the same on every server, or remove `early-data`"
        ]
    );
    assert!(needs("store = \"redis://h\"\ntickets = false")[0].contains("set tickets = true"));
    for nothing in ["max-entries = 0", "lifetime = 0"] {
        let problems = needs(&format!("store = \"redis://h\"\n{nothing}"));
        assert!(problems[0].contains("no session is kept"), "{problems:?}");
    }
    assert_eq!(
        wrong("store = \"redis://h\"\nearly-data = 9", "early-data = 10\n"),
        [
            "6:14: `early-data` of the site is 10 bytes, and session.early-data is 9: a site may allow less, not more; \
             raise session.early-data and set a lower value at the other sites"
        ]
    );
    let clients = "client-auth = { mode = \"optional\", ca = \"c.pem\" }\n";
    assert_eq!(bytes("512", clients), (512, 0));
    assert_eq!(
        bytes("512", &format!("{clients}early-data = 0\n")),
        (512, 0)
    );
    let store = "store = \"redis://h\"\nearly-data = 9";
    let said_of_clients = wrong(store, &format!("{clients}early-data = 9\n"));
    assert!(said_of_clients[0].contains("write early-data = 0, or remove it"));
    for (size, part) in [
        ("\"64KiB1\"", "not a size"),
        ("\"16KB\"", "write a number of bytes, or \"16KiB\""),
        ("\"-1\"", "write a number from 0 to 65536"),
        ("\"1MiB\"", "is 1048576; write a number from 0 to 65536"),
        ("65537", "write a number from 0 to 65536"),
        ("\"9223372036854775807KiB\"", "not a size"),
        ("true", "a number of bytes, or a size in quotes"),
    ] {
        let problems = wrong(&format!("store = \"redis://h\"\nearly-data = {size}"), "");
        assert!(problems[0].contains(part), "{size}: {problems:?}");
    }
}
