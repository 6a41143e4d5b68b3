use super::*;
use crate::config::file::parse;
use crate::config::{Key, StoreUrl};

#[test]
fn a_setting_is_found_by_name_or_suggested() {
    find("session.lifetime").expect("it is there");
    let suggested = |name| find(name).expect_err("it is not there").nearest;
    assert_eq!(suggested("session.lifetme"), Some("session.lifetime"));
    assert_eq!(suggested("max-entries"), Some("session.max-entries"));
    assert_eq!(suggested("colour"), None);
}

#[test]
fn every_value_reads_back_from_its_toml() {
    let defaults = Config::default();
    for setting in all() {
        let Some(value) = (setting.value)(&defaults) else {
            assert!(setting.default_words.is_some(), "{}", setting.name);
            continue;
        };
        let text = format!("{} = {}\n", setting.name, value.toml());
        let config = parse(&text, "s.toml".as_ref()).expect(setting.name);
        assert_eq!(
            (setting.value)(&config),
            Some(value.clone()),
            "{}",
            setting.name
        );
        assert!(!(setting.differs)(&config, &defaults), "{}", setting.name);
        let mut config = Config::default();
        setting.assign(&mut config, &value);
        assert_eq!(config, defaults, "{}", setting.name);
    }
}

#[test]
fn an_example_stands_for_a_default_that_depends_on_the_host() {
    for setting in all() {
        let text = format!("{} = {}\n", setting.name, setting.example());
        parse(&text, "s.toml".as_ref()).expect(setting.name);
        let has_example = setting.example.is_some();
        assert_eq!(
            setting.default_words.is_some(),
            has_example,
            "{}",
            setting.name
        );
    }
}

#[test]
fn a_hello_size_that_the_reader_refuses_cannot_be_set() {
    let size = find("connection.max-hello-size").expect("it is there");
    assert_eq!(
        size.default(),
        sessile_proto::hello::DEFAULT_LIMIT.to_string()
    );
}

#[test]
fn a_change_needs_a_restart_in_roles_that_do_not_reload_it() {
    let needing = |role: Role| -> Vec<&str> {
        let needing = all().filter(|setting| setting.restart.contains(&role));
        needing.map(|setting| setting.name).collect()
    };
    let only_balance = |name: &&str| name.starts_with("balance.");
    let served = all().map(|setting| setting.name);
    let served: Vec<_> = served
        .filter(|name| !only_balance(name) && *name != "session.early-data")
        .collect();
    assert_eq!(needing(Role::Serve), served);
    assert_eq!(
        needing(Role::Balance),
        [
            "server.name",
            "server.number",
            "server.state-dir",
            "server.workers",
            "session.max-entries",
            "session.lifetime",
            "session.snapshot",
            "connection.max",
            "connection.max-hellos",
            "connection.max-hello-bytes",
            "connection.max-hello-size",
            "connection.max-per-source",
            "connection.rate-per-source",
            "connection.drain-timeout",
            "admin.listen",
            "admin.token-file",
            "log.level",
        ]
    );
}

#[test]
fn a_change_of_the_password_alone_is_a_change() {
    let (running, mut written) = (Config::default(), Config::default());
    assert_eq!(
        changes_for_restart(Role::Serve, &running, &written),
        [""; 0]
    );
    let store = |text: &str| text.parse::<StoreUrl>().expect("a store");
    written.session.store = store("redis://:one@h");
    written.key = Key::Ephemeral;
    let names = changes_for_restart(Role::Serve, &running, &written);
    assert_eq!(names, ["session.store", "key.file"]);
    let running = written.clone();
    written.session.store = store("redis://:two@h");
    let names = changes_for_restart(Role::Serve, &running, &written);
    assert_eq!(names, ["session.store"]);
    assert_eq!(
        changes_for_restart(Role::Balance, &running, &written),
        [""; 0]
    );
}

#[test]
fn every_number_of_a_registry_value_reads_back() {
    for setting in all() {
        let Some(value) = setting.registry else {
            continue;
        };
        for number in [1, 2, 10_000, u32::MAX] {
            let mut config = Config::default();
            let decoded = value.form.decode(number);
            setting.assign(&mut config, &decoded);
            assert_eq!(
                (setting.value)(&config),
                Some(decoded.clone()),
                "{}",
                setting.name
            );
            let switch = matches!(
                value.form,
                Form::Flag | Form::KernelTls | Form::PurgeOnReclaim
            );
            let given = if switch { 1 } else { number };
            assert_eq!(value.form.encode(&decoded), Some(given), "{}", setting.name);
        }
    }
}
