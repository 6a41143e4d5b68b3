//! Changes one setting in the text of a TOML file. Comments, layout, line ends and the order of keys
//! stay.

use std::ops::Range;

use toml_edit::{Document, Item, TableLike};

use crate::config::settings::{Setting, Value};

/// Why a text cannot be edited.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The text is not TOML.
    #[error("the file is not TOML, so no setting can be added to it: {}", .0.message())]
    Syntax(#[from] toml_edit::TomlError),
    /// The text has a value instead of the section: `session = 5`.
    #[error("`{0}` is not a section in this file; write [{0}] by hand first")]
    NotASection(&'static str),
}

/// The TOML of a setting's value in the text.
pub(super) fn written(text: &str, setting: &Setting) -> Result<Option<String>, EditError> {
    let document = Document::parse(text)?;
    let place = item(&document, setting)?.and_then(Item::span);
    Ok(place.map(|place| text[place].to_owned()))
}

/// The text with a new value for the setting.
pub(super) fn set(text: &str, setting: &Setting, value: &Value) -> Result<String, EditError> {
    let document = Document::parse(text)?;
    let (section, key) = setting.parts();
    let value = value.toml();
    if let Some(place) = item(&document, setting)?.and_then(Item::span) {
        return Ok(splice(text, place, &value));
    }
    let end_of_line = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let line = format!("{key} = {value}");
    match document.get(section) {
        Some(item) if item.is_inline_table() => {
            let place = item.span().map_or(text.len(), |span| span.start + 1);
            let empty = item.as_table_like().is_some_and(TableLike::is_empty);
            let comma = if empty { " " } else { "," };
            Ok(splice(text, place..place, &format!(" {line}{comma}")))
        }
        Some(Item::Table(table)) if !table.is_implicit() || table.is_dotted() => {
            let last = (table.iter())
                .filter(|(_, item)| item.is_value())
                .filter_map(|(key, item)| {
                    let key = table.get_key_value(key).and_then(|(key, _)| key.span());
                    Some((key?, item.span()?))
                })
                .max_by_key(|(_, value)| value.end);
            let prefix = if table.is_dotted() {
                format!("{section}.")
            } else {
                String::new()
            };
            let (indent, after) = match last {
                Some((key, value)) => (indent(text, key.start), value.end),
                None => ("", table.span().map_or(text.len(), |span| span.end)),
            };
            let place = line_end(text, after);
            let new_line = format!("{end_of_line}{indent}{prefix}{line}");
            Ok(splice(text, place..place, &new_line))
        }
        _ => {
            let mut edited = text.to_owned();
            if !text.is_empty() && !text.ends_with('\n') {
                edited.push_str(end_of_line);
            }
            if !text.is_empty() {
                edited.push_str(end_of_line);
            }
            edited.push_str(&format!("[{section}]{end_of_line}{line}{end_of_line}"));
            Ok(edited)
        }
    }
}

/// The text without the setting. `None`: the setting was not set. Comments above the setting's line
/// stay, and a comment at the end of that line is removed.
pub(super) fn unset(text: &str, setting: &Setting) -> Result<Option<String>, EditError> {
    let document = Document::parse(text)?;
    let (section, key) = setting.parts();
    let Some(value) = item(&document, setting)?.and_then(Item::span) else {
        return Ok(None);
    };
    let section_item = document.get(section);
    if section_item.is_some_and(Item::is_inline_table) {
        // In an inline table, toml_edit removes the key together with one comma.
        let mut document = document.into_mut();
        if let Some(table) = document.get_mut(section).and_then(Item::as_table_like_mut) {
            table.remove(key);
        }
        return Ok(Some(document.to_string()));
    }
    let start = text[..value.start].rfind('\n').map_or(0, |end| end + 1);
    // A byte order mark stays at the start.
    let line = text[start..].trim_start_matches('\u{feff}');
    let line_start = text.len() - line.len();
    let newline = text[value.end..].find('\n').map(|end| value.end + end + 1);
    let line_end = newline.unwrap_or(text.len());
    Ok(Some(splice(text, line_start..line_end, "")))
}

fn item<'a>(
    document: &'a Document<&str>,
    setting: &Setting,
) -> Result<Option<&'a Item>, EditError> {
    let (section, key) = setting.parts();
    let Some(item) = document.get(section) else {
        return Ok(None);
    };
    let table = item
        .as_table_like()
        .ok_or(EditError::NotASection(section))?;
    Ok(table.get(key))
}

fn splice(text: &str, place: Range<usize>, with: &str) -> String {
    let mut edited = text.to_owned();
    edited.replace_range(place, with);
    edited
}

/// The end of the line at `place`, before the line break.
fn line_end(text: &str, place: usize) -> usize {
    let line = text[place..].split('\n').next().unwrap_or_default();
    place + line.trim_end_matches('\r').len()
}

/// The blanks at the start of the line at `place`.
fn indent(text: &str, place: usize) -> &str {
    let start = text[..place].rfind('\n').map_or(0, |end| end + 1);
    let line = &text[start..place];
    let blanks = line.len() - line.trim_start_matches([' ', '\t']).len();
    &line[..blanks]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{self, find};
    use proptest::prelude::*;

    fn edited(text: &str, name: &str, value: &str) -> String {
        let setting = find(name).expect("it is in the table");
        let value = setting.parse(value).expect("it is of the type");
        set(text, setting, &value).expect("it is TOML")
    }

    fn without(text: &str, name: &str) -> Option<String> {
        let setting = find(name).expect("it is in the table");
        unset(text, setting).expect("it is TOML")
    }

    #[test]
    fn a_value_is_replaced_in_place() {
        let text = "# top\n[session] # s\n  lifetime   =  '5m'   # short\n\n# end";
        assert_eq!(
            edited(text, "session.lifetime", "1h"),
            "# top\n[session] # s\n  lifetime   =  \"1h\"   # short\n\n# end"
        );
        assert_eq!(
            edited(
                "session = { lifetime = '5m' } # s",
                "session.lifetime",
                "1h"
            ),
            "session = { lifetime = \"1h\" } # s"
        );
        assert_eq!(
            edited("session.tickets = true\r\n", "session.tickets", "false"),
            "session.tickets = false\r\n"
        );
    }

    #[test]
    fn a_new_value_goes_to_the_end_of_its_section() {
        let text = "[session] # s\n\tlifetime = '5m' # short\n\n# the sites\n[[site]]\n";
        assert_eq!(
            edited(text, "session.tickets", "false"),
            "[session] # s\n\tlifetime = '5m' # short\n\ttickets = false\n\n# the sites\n[[site]]\n"
        );
        assert_eq!(
            edited("[session] # s\r\n[tls]\r\n", "session.tickets", "false"),
            "[session] # s\r\ntickets = false\r\n[tls]\r\n"
        );
        assert_eq!(
            edited("[session]", "session.tickets", "false"),
            "[session]\ntickets = false"
        );
        assert_eq!(
            edited(
                "session.lifetime = '5m'\nkey.file = 'none'\n",
                "session.tickets",
                "false"
            ),
            "session.lifetime = '5m'\nsession.tickets = false\nkey.file = 'none'\n"
        );
        for (inline, expected) in [
            ("session = {}\n", "session = { tickets = false }\n"),
            (
                "session = { lifetime = '5m' }\n",
                "session = { tickets = false, lifetime = '5m' }\n",
            ),
        ] {
            assert_eq!(edited(inline, "session.tickets", "false"), expected);
        }
    }

    #[test]
    fn a_new_section_goes_to_the_end_of_the_file() {
        assert_eq!(edited("", "key.file", "none"), "[key]\nfile = \"none\"\n");
        assert_eq!(
            edited("# mine", "key.file", "a\"b\\c"),
            "# mine\n\n[key]\nfile = 'a\"b\\c'\n"
        );
        let servers = "[[balance.server]]\r\nname = 'a'\r\naddress = '1.1.1.1:1'\r\n";
        let text = edited(servers, "balance.policy", "source");
        assert_eq!(
            text,
            format!("{servers}\r\n[balance]\r\npolicy = \"source\"\r\n")
        );
        crate::config::file::parse(&text, "s.toml".as_ref()).expect("it is right");
    }

    #[test]
    fn comments_above_a_removed_value_stay() {
        let text = "[session]\n# why\nlifetime = '5m' # short\ntickets = true\n";
        assert_eq!(
            without(text, "session.lifetime").as_deref(),
            Some("[session]\n# why\ntickets = true\n")
        );
        assert_eq!(
            without(
                "session = { lifetime = '5m', tickets = true }\n",
                "session.lifetime"
            )
            .as_deref(),
            Some("session = { tickets = true }\n")
        );
        assert_eq!(
            without("[session]\ntickets = true", "session.tickets").as_deref(),
            Some("[session]\n")
        );
        assert_eq!(without(text, "session.store"), None);
        assert_eq!(without("", "session.store"), None);
    }

    #[test]
    fn a_text_without_a_place_for_the_value_is_refused() {
        let setting = find("session.tickets").expect("it is in the table");
        let value = Value::Bool(true);
        for text in ["session = 5", "[[session]]", "[session\n", "a = 1\na = 2\n"] {
            set(text, setting, &value).expect_err(text);
            unset(text, setting).expect_err(text);
        }
    }

    proptest! {
        #[test]
        fn what_is_set_is_there_and_what_is_unset_is_not(
            operations in proptest::collection::vec((0..settings::all().count(), any::<bool>()), 1..12),
            start in 0..5usize,
        ) {
            let mut text = [
                "", "# only a comment", "\u{feff}session.tickets = true\r\n",
                "server = { name = 'x' }\n[session] # s\n\n  [tls]\n  kernel = 'off'\n[log]",
                "log.level = 'warn'\n[[balance.server]]\nname = 'a'\naddress = '1.1.1.1:1'\n",
            ][start].to_owned();
            for (index, sets) in operations {
                let setting = settings::all().nth(index).expect("it is in range");
                let defaults = crate::config::Config::default();
                let value = (setting.value)(&defaults).unwrap_or_else(|| match setting.kind {
                    settings::Kind::Count => Value::Count(5),
                    _ if setting.name == "balance.health-name" => Value::Text("farm.test".to_owned()),
                    _ => Value::Text("127.0.0.1:1".to_owned()),
                });
                if sets {
                    text = set(&text, setting, &value).expect("it is TOML");
                } else if let Some(without) = unset(&text, setting).expect("it is TOML") {
                    text = without;
                }
                let config = crate::config::file::parse(&text, "s.toml".as_ref()).expect(&text);
                prop_assert_eq!(written(&text, setting).expect("it is TOML").is_some(), sets);
                if sets {
                    prop_assert_eq!((setting.value)(&config), Some(value));
                }
            }
        }
    }
}
