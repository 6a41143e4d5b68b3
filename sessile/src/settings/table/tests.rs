use super::*;

#[test]
fn a_default_that_does_not_depend_on_the_machine_is_the_one_documented() {
    let defaults = Config::default();
    for setting in &SETTINGS {
        let words = setting.default.contains(' ') || setting.default == "nowhere";
        if !words {
            let value = (setting.value)(&defaults).expect("it has a default");
            assert_eq!(value.to_string(), setting.default, "{}", setting.name);
        }
    }
}

#[test]
fn a_password_in_a_setting_is_not_shown() {
    let store = find("session.store").expect("it is there");
    let shown = |toml| store.without_password(toml);
    assert_eq!(shown("'redis://u:secret@h'"), r#""redis://u:***@h:6379""#);
    assert_eq!(shown("'redis://h'"), "'redis://h'");
    let config =
        crate::config::file::parse("session.store = 'redis://u:secret@h'", "s.toml".as_ref());
    let value = (store.value)(&config.expect("it is right"));
    assert_eq!(
        value.expect("it is set").to_string(),
        "redis://u:***@h:6379"
    );
}

#[test]
fn every_registry_value_stands_for_settings_that_exist() {
    for value in &reg::VALUES {
        for name in value.settings {
            find(name).expect("it is in the table");
        }
    }
}

#[test]
fn a_setting_is_found_by_name_or_suggested() {
    find("session.lifetime").expect("it is there");
    let suggested = |name| find(name).expect_err("it is not there").nearest;
    assert_eq!(suggested("session.lifetme"), Some("session.lifetime"));
    assert_eq!(suggested("max-entries"), Some("session.max-entries"));
    assert_eq!(suggested("colour"), None);
}

#[test]
fn every_value_reads_back_from_what_toml_writes() {
    for setting in &SETTINGS {
        let Some(value) = (setting.value)(&Config::default()) else {
            continue;
        };
        let text = format!("{} = {}\n", setting.name, value.toml());
        let config = crate::config::file::parse(&text, "s.toml".as_ref()).expect(setting.name);
        assert_eq!((setting.value)(&config), Some(value), "{}", setting.name);
    }
}
