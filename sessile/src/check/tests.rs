use super::*;
use crate::config::{
    BalancePool, Certificate, ClientAuth, ClientAuthMode, Config, Folder, Key, Listener, SiteRoute,
    Symlinks,
};
use crate::state_file;
use crate::{clock, key};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// A folder with a certificate for `a.example`, and a configuration that serves it.
fn farm(folder: &Path) -> Config {
    pair(folder, "a", (2000, 2100));
    let mut config = Config::default();
    config.server.state_dir = folder.join("state");
    config.key = Key::File(folder.join("state/farm.key"));
    config.listeners.push(Listener::new(
        "127.0.0.1:443".parse().expect("an address"),
        Role::Serve,
    ));
    config.sites.push(Site {
        names: vec!["a.example".to_owned(), "*.a.example".to_owned()],
        certificates: vec![named(folder, "a")],
        client_auth: None,
        early_data: 0,
        routes: vec![SiteRoute {
            path: "/".to_owned(),
            action: Action::Verdict,
        }],
    });
    config
}

fn named(folder: &Path, name: &str) -> Certificate {
    Certificate {
        chain: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    }
}

fn pair(folder: &Path, name: &str, years: (i32, i32)) {
    let names = ["a.example".to_owned(), "*.a.example".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).expect("names");
    params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("signed");
    let files = named(folder, name);
    fs::write(files.chain, certificate.pem()).expect("written");
    fs::write(&files.key, key.serialize_pem()).expect("written");
    fs::set_permissions(files.key, Permissions::from_mode(0o600)).expect("set");
}

fn now() -> SystemTime {
    humantime::parse_rfc3339("2026-08-01T00:00:00Z").expect("a time")
}

fn graded(config: &Config, grade: Grade) -> Vec<String> {
    let findings = check(config, now()).into_iter();
    let graded = findings.filter(|finding| finding.grade == grade);
    graded.map(|finding| finding.text).collect()
}

#[test]
fn a_valid_configuration_is_explained_without_warnings() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = farm(folder.path());
    let findings = check(&config, now());
    assert!(
        findings.iter().all(|finding| finding.grade == Grade::Note),
        "{findings:#?}"
    );
    let messages = graded(&config, Grade::Note).join("\n");
    for expected in [
        "127.0.0.1:443 serves 1 site",
        "valid until 2100-01-01T00:00:00Z",
        "state/farm.key at the first start",
        "A client resumes for 10h",
        "survive a restart and a crash",
        "A restart keeps them in the state folder (session.snapshot), but a crash loses them",
        "takes up to 1.9 MiB when full: 10000 entries of about 205 bytes",
    ] {
        assert!(messages.contains(expected), "{expected}:\n{messages}");
    }
}

#[test]
fn all_problems_of_certificates_are_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut config = farm(folder);
    pair(folder, "old", (2000, 2020));
    pair(folder, "new", (2090, 2100));
    fs::write(folder.join("text.pem"), "no certificate").expect("written");
    fs::write(folder.join("text.key"), "no key").expect("written");
    let site = &mut config.sites[0];
    site.names.push("b.example".to_owned());
    site.certificates = ["a", "old", "new", "text", "none"]
        .map(|name| named(folder, name))
        .into();
    site.certificates.push(Certificate {
        chain: folder.join("a.pem"),
        key: folder.join("old.key"),
    });
    let errors = graded(&config, Grade::Error).join("\n");
    for expected in [
        "a.pem: the certificate does not cover b.example",
        "old.pem: certificate 1 of the chain ended on 2020-01-01T00:00:00Z",
        "new.pem: certificate 1 of the chain is not valid before 2090-01-01T00:00:00Z",
        "text.pem: contains no PEM certificate",
        "text.key: contains no usable PEM private key",
        "none.pem: cannot be read: No such file",
        "none.key: cannot be read: No such file",
        "old.key: the private key does not match the certificate in",
    ] {
        assert!(errors.contains(expected), "{expected}:\n{errors}");
    }
}

#[test]
fn an_expiring_certificate_and_a_readable_key_give_warnings() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = farm(folder.path());
    let key = folder.path().join("a.key");
    fs::set_permissions(key, Permissions::from_mode(0o644)).expect("set");
    let soon = humantime::parse_rfc3339("2099-12-25T00:00:00Z").expect("a time");
    let findings = check(&config, soon).into_iter();
    let warnings: Vec<_> = findings
        .filter(|finding| finding.grade == Grade::Warning)
        .map(|finding| finding.text)
        .collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].ends_with("ends on 2100-01-01T00:00:00Z; renew it."));
    assert!(warnings[1].ends_with("run chmod o-rwx on it."));
}

#[test]
fn the_cost_of_a_restart_follows_from_the_settings() {
    let messages = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        let lines: Vec<_> = durability(&config)
            .iter()
            .map(ToString::to_string)
            .collect();
        lines.join("\n")
    };
    let ephemeral = messages(|config| config.key = Key::Ephemeral);
    assert!(ephemeral.contains("warning: key.file is \"none\": a restart or a crash costs"));
    let never = messages(|config| config.session.lifetime = Duration::ZERO);
    assert!(never.starts_with("warning: Nothing resumes"));
    let purged = messages(|config| config.connection.purge_on_reclaim = true);
    assert!(purged.contains("warning: All sessions are stored, even those with tickets"));
    assert!(purged.contains("idle for 5m loses its session"));
    let unkept = messages(|config| config.session.snapshot = false);
    assert!(unkept.contains("a restart or a crash loses them"));
    let shared = messages(|config| config.session.store = "redis://h".parse().expect("a store"));
    assert!(shared.contains("resume on every server that has the same store"));
    let without = messages(|config| {
        config.session.tickets = false;
        config.session.max_entries = 0;
    });
    assert!(without.starts_with("warning: Nothing resumes: session.tickets is false"));
    let without = messages(|config| {
        config.connection.purge_on_reclaim = true;
        config.session.max_entries = 0;
    });
    assert!(without.starts_with("warning: Nothing resumes: connection.purge-on-reclaim"));
    let without = messages(|config| config.session.tickets = false);
    assert!(without.contains("No tickets are issued"));
    let without = messages(|config| config.session.max_entries = 0);
    assert!(without.contains("warning: Session IDs do not resume"));
    let unwritable = messages(|config| {
        config.key = Key::File("/farm.key".into());
        config.server.state_dir = "/dev/null/state".into();
    });
    assert!(
        unwritable.contains("warning: This user cannot write to the state folder /dev/null/state")
    );
}

#[test]
fn links_that_may_lead_out_of_a_folder_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = farm(folder.path());
    for (symlinks, is_named) in [(Symlinks::Inside, false), (Symlinks::Follow, true)] {
        let path = folder.path().to_owned();
        config.sites[0].routes[0].action = Action::Files(Folder { path, symlinks });
        let notes = graded(&config, Grade::Note);
        let found = notes.iter().any(|note| note.contains("outside the folder"));
        assert_eq!(found, is_named, "{notes:?}");
    }
}

#[test]
fn missing_files_and_folders_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut config = farm(folder);
    config.sites[0].routes[0].action = Action::Files(Folder {
        path: folder.join("www"),
        symlinks: Symlinks::Inside,
    });
    config.key = Key::File(folder.join("a.pem/farm.key"));
    config.log.access = AccessLog::File(folder.join("logs/access.log"));
    let errors = graded(&config, Grade::Error);
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors[0].contains("www: cannot be read"));
    assert!(errors[1].contains("a part of that path is a file"));
    assert!(errors[2].contains("access.log: this user cannot write the access log"));
}

#[test]
fn a_farm_key_that_everyone_can_read_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = farm(folder.path());
    fs::create_dir(folder.path().join("state")).expect("made");
    let key = folder.path().join("state/farm.key");
    fs::write(&key, "# sessile farm key.\n").expect("written");
    fs::set_permissions(&key, Permissions::from_mode(0o604)).expect("set");
    let errors = graded(&config, Grade::Error);
    assert!(errors[0].contains("farm.key: mode 0604 lets other users read it; run `chmod 600"));
}

#[test]
fn a_damaged_farm_key_is_an_error_at_a_server_and_at_a_balancer() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = farm(folder.path());
    let path = folder.path().join("state/farm.key");
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    key::create(&path, Some("one"), hours(1), hours(10), clock::now()).expect("a key");
    assert!(graded(&config, Grade::Error).is_empty());
    let text = fs::read_to_string(&path).expect("readable");
    fs::write(&path, text.replace("\"one\"", "\"two\"")).expect("written");
    for role in [Role::Serve, Role::Balance] {
        config.listeners = vec![Listener::new(
            "127.0.0.1:443".parse().expect("an address"),
            role,
        )];
        let errors = graded(&config, Grade::Error);
        assert!(
            errors[0].contains("do not match the file's checksum"),
            "{errors:?}"
        );
    }
}

#[test]
fn client_auth_is_explained_with_its_problems() {
    use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair};
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = farm(folder.path());
    let [ca, crl] = ["ca.pem", "ca.crl"].map(|name| folder.path().join(name));
    config.sites[0].client_auth = Some(ClientAuth {
        mode: ClientAuthMode::Required,
        ca: ca.clone(),
        crl: Some(crl.clone()),
    });
    let errors = graded(&config, Grade::Error);
    assert!(errors[0].contains("ca.pem: cannot be read: No such file"));

    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(2026, 7, 1);
    let key = KeyPair::generate().expect("a key");
    fs::write(&ca, params.self_signed(&key).expect("signed").pem()).expect("written");
    let issuer = Issuer::new(params, key);
    let messages = |next_update, grade| {
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, 1),
            next_update,
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&issuer).expect("signed");
        fs::write(&crl, list.pem().expect("PEM")).expect("written");
        graded(&config, grade).join("\n")
    };
    let (current, old) = (
        rcgen::date_time_ymd(2026, 9, 1),
        rcgen::date_time_ymd(2026, 7, 1),
    );
    let notes = messages(current, Grade::Note);
    for expected in [
        "a client must send a certificate of an authority in",
        "a ticket carries the client's certificates, encrypted",
        "ca.crl: list 1 is valid until 2026-09-01T00:00:00Z",
    ] {
        assert!(notes.contains(expected), "{expected}:\n{notes}");
    }
    assert!(
        messages(current, Grade::Warning).contains("certificate 1 ended on 2026-07-01T00:00:00Z")
    );
    assert_eq!(messages(current, Grade::Error), "");
    let errors = messages(old, Grade::Error);
    assert!(
        errors.contains("expired on 2026-07-01T00:00:00Z"),
        "{errors}"
    );
}

#[test]
fn a_store_is_explained_with_its_problems() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = farm(folder.path());
    let mut messages = |store: &str, grade| {
        config.session.store = store.parse().expect("a store");
        graded(&config, grade).join("\n")
    };
    let local = "redis://127.0.0.1";
    assert!(messages(local, Grade::Note).contains("shared through redis://127.0.0.1:6379."));
    assert_eq!(messages(local, Grade::Warning), "");
    assert!(messages("redis://h", Grade::Warning).contains("any client that reaches it"));
    let open = messages("redis://:secret@h", Grade::Warning);
    assert!(open.contains("crosses the network unencrypted") && !open.contains("secret"));
    let files = messages("rediss://h?ca=/none/ca.pem", Grade::Error);
    assert!(files.starts_with("/none/ca.pem: cannot be read"), "{files}");
    config.key = Key::Ephemeral;
    assert!(graded(&config, Grade::Warning)[0].contains("key.file is \"none\""));
}

#[test]
fn a_readable_configuration_with_a_password_gives_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sessile.toml");
    fs::write(&file, "").expect("written");
    let mut config = Config::default();
    let mut open = |store: &str, mode| {
        config.session.store = store.parse().expect("a store");
        fs::set_permissions(&file, Permissions::from_mode(mode)).expect("set");
        config_file(&file, &config).is_some()
    };
    assert!(open("redis://:secret@h", 0o644));
    assert!(!open("redis://:secret@h", 0o600));
    assert!(!open("redis://h", 0o644));
}

#[test]
fn byte_counts_have_a_readable_unit() {
    assert_eq!(human_bytes(999), "999 bytes");
    assert_eq!(human_bytes(2_500_000), "2.3 MiB");
    assert_eq!(human_bytes(250 << 30), "250.0 GiB");
}

#[test]
fn an_upstream_is_explained_with_its_problems() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = farm(folder.path());
    let upstream = std::sync::Arc::new(crate::config::Upstream {
        name: "app".to_owned(),
        servers: vec!["10.0.0.1:80".to_owned(), "10.0.0.2:80".to_owned()],
        connect_timeout: Duration::from_secs(2),
        response_timeout: Duration::from_secs(60),
    });
    config.upstreams.push(std::sync::Arc::clone(&upstream));
    assert_eq!(
        graded(&config, Grade::Warning),
        ["No route has proxy = \"app\"."]
    );
    config.sites[0].routes[0].action = Action::Proxy(upstream);
    assert_eq!(graded(&config, Grade::Warning), [""; 0]);
    let messages = graded(&config, Grade::Note).join("\n");
    let expected =
        "Upstream app: 10.0.0.1:80, then 10.0.0.2:80 in plain HTTP; 2s to connect, 1m to answer.";
    assert!(messages.contains(expected), "{messages}");
}

#[test]
fn servers_with_equal_numbers_are_found_if_the_key_is_readable() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = farm(folder.path());
    let server = |name: &str, number| BalanceServer {
        name: name.to_owned(),
        address: "127.0.0.1:8443".parse().expect("an address"),
        number,
        weight: 1,
        pool: None,
        drain: false,
        proxy_protocol: None,
        max_connections: 0,
    };
    let derived = key::server_number("shop", "web1");
    config.balance.servers = vec![server("web1", None), server("web2", Some(derived))];
    let clashes = |config: &Config| {
        let errors = graded(config, Grade::Error);
        let about = errors
            .iter()
            .filter(|text| text.contains("both have the number"));
        about.count()
    };
    assert_eq!(clashes(&config), 0);
    let file = folder.path().join("state/farm.key");
    state_file::make_folder(&folder.path().join("state")).expect("a folder");
    let day = Duration::from_secs(86_400);
    key::create(&file, Some("shop"), day / 24, day, clock::now()).expect("a key");
    assert_eq!(clashes(&config), 1);
    config.balance.servers.pop();
    assert_eq!(clashes(&config), 0);
}

#[test]
fn servers_with_a_dns_name_are_explained_and_not_looked_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = farm(folder.path());
    let listener = Listener::new(([127, 0, 0, 1], 0).into(), Role::Balance);
    config.listeners.push(listener);
    let servers = [("web", "web.shop.test:443"), ("srv", "_tls._tcp.shop.test")];
    config.balance.servers = servers
        .map(|(name, address)| {
            let address: ServerAddress = address.parse().expect("an address");
            BalanceServer::new(name.to_owned(), address)
        })
        .into();
    config.balance.resolver = Some(([127, 0, 0, 1], 5300).into());
    let messages = graded(&config, Grade::Note).join("\n");
    for expected in [
        "balances over the servers of 2 DNS names in 1 pool",
        "Each address of the host web.shop.test is a server with port 443, named web/IP:443; /etc/hosts goes first; the \
         balancer asks the DNS server 127.0.0.1:5300 again when the lifetime of the records ends, after 1h at the \
         latest.",
        "The SRV records of _tls._tcp.shop.test name the hosts, the ports and the weights of the servers srv/IP:PORT;",
    ] {
        assert!(messages.contains(expected), "{messages}");
    }
}

#[test]
fn forget_rules_are_explained_and_old_ones_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = farm(folder.path());
    let mut forgotten = |days: u64| {
        config.session.forget = vec![crate::config::Forget {
            target: crate::config::ForgetTarget::Server("web2".to_owned()),
            before: clock::at(now() - Duration::from_secs(days * 86_400)),
        }];
        let count = |grade| {
            let messages = graded(&config, grade);
            messages
                .iter()
                .filter(|text| text.starts_with("session.forget: "))
                .count()
        };
        (count(Grade::Note), count(Grade::Warning))
    };
    assert_eq!(forgotten(1), (1, 0));
    assert_eq!(forgotten(8), (1, 1));
}

#[test]
fn a_balancer_without_tables_and_the_protocols_of_pools_are_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = farm(folder.path());
    config.sites.clear();
    config.listeners[0].role = Role::Balance;
    config.balance.pools = [("grpc", Some("h2")), ("web", None)]
        .map(|(name, alpn)| BalancePool {
            name: name.to_owned(),
            names: vec!["a.test".to_owned()],
            alpn: alpn.map(str::to_owned),
            policy: None,
        })
        .into();
    let notes = |config: &Config, text: &str| {
        let notes = graded(config, Grade::Note);
        notes.iter().filter(|note| note.contains(text)).count()
    };
    assert_eq!(notes(&config, "that offer the protocol"), 1);
    let grpc = "Pool grpc takes clients that offer the protocol \"h2\" (ALPN), for a.test.";
    assert_eq!(notes(&config, grpc), 1);
    for (max_entries, by_address, off) in [(10, 1, 0), (0, 0, 1)] {
        config.session.max_entries = max_entries;
        assert_eq!(notes(&config, "return by their address"), by_address);
        assert_eq!(notes(&config, "learns no sessions and no addresses"), off);
    }
}

#[test]
fn a_balancer_with_a_store_is_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = farm(folder.path());
    let notes_about_store = |config: &Config| {
        graded(config, Grade::Note)
            .iter()
            .filter(|note| note.starts_with("session.store has no effect here"))
            .count()
    };
    config.session.store = "redis://127.0.0.1".parse().expect("a store");
    assert_eq!(notes_about_store(&config), 0);
    config.sites.clear();
    config.listeners[0].role = Role::Balance;
    assert_eq!(notes_about_store(&config), 1);
    config.session.store = StoreUrl::Memory;
    assert_eq!(notes_about_store(&config), 0);
}
