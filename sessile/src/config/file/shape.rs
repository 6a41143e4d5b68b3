//! From text to settings and tables. serde stops at the first key or type that is wrong. This module notes
//! that problem, takes the key out and tries again, so that one run finds every problem.

use std::collections::HashMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, Error};

use super::problem::{Problem, hint};
use super::raw::File;
use super::reader::{Gap, Reader};
use crate::config::Config;
use crate::config::base::Base;
use crate::config::settings::SECTIONS;

/// Most problems of one run.
const MAX_PROBLEMS: usize = 20;

/// A text without the keys and values that serde refused.
pub(super) struct Shape<'a> {
    /// The reader. It has already noted the refused keys, and the problems with the values of settings.
    pub(super) reader: Reader<'a>,
    /// The configuration with its settings, but without the tables.
    pub(super) config: Config,
    /// The settings that are written, each with the place of its value.
    pub(super) places: HashMap<&'static str, Range<usize>>,
    pub(super) tables: File,
}

/// Reads settings and tables, and notes everything that is wrong with their keys and types.
///
/// # Errors
/// The text is not TOML, or a problem has no key that can be taken out.
pub(super) fn read<'a>(text: &'a str, base: &'a Base) -> Result<Shape<'a>, Vec<Problem>> {
    let (mut table, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        let errors = syntax.iter().take(MAX_PROBLEMS);
        let what = |error: &Error| format!("not TOML: {}", error.message());
        return Err(errors
            .map(|error| Problem::at(text, start(error), what(error)))
            .collect());
    }
    let mut shape = Shape {
        reader: Reader::new(text, base),
        config: Config::default(),
        places: HashMap::new(),
        tables: File::default(),
    };
    let mut places = Vec::new();
    add_tables(table.get_ref(), &mut places);
    shape.reader.set_tables(places);
    let mut problems = shape.take_settings(table.get_mut(), text);
    loop {
        let error = match File::deserialize(Deserializer::from(table.clone())) {
            Ok(tables) => {
                shape.reader.add_problems(problems);
                return Ok(Shape { tables, ..shape });
            }
            Err(error) => error,
        };
        let span = error.span().unwrap_or_default();
        let removed = remove(table.get_mut(), &span, "");
        let section = removed.as_ref().map_or("", |gap| gap.section.as_str());
        let what = misfit(error.message(), section);
        problems.push(Problem::at(text, span.start, what));
        match removed {
            Some(gap) if problems.len() < MAX_PROBLEMS => shape.reader.note_gap(gap),
            _ => return Err(problems),
        }
    }
}

impl Shape<'_> {
    /// Takes the settings out of the table and reads them. Returns the values that have a wrong TOML type.
    fn take_settings(&mut self, table: &mut DeTable<'_>, text: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, settings) in &SECTIONS {
            let section = table.get_mut(*name).map(Spanned::get_mut);
            let Some(DeValue::Table(section)) = section else {
                continue;
            };
            for setting in *settings {
                let Some(value) = section.remove(setting.key()) else {
                    continue;
                };
                self.places.insert(setting.name, value.span());
                let read = (setting.read)(&mut self.reader, value, &mut self.config);
                if let Err(error) = read {
                    problems.push(Problem::at(text, start(&error), error.message()));
                    self.reader.note_gap(Gap {
                        offset: start(&error),
                        section: (*name).to_owned(),
                        key: setting.key().to_owned(),
                        is_table: false,
                    });
                }
            }
        }
        problems.truncate(MAX_PROBLEMS);
        problems
    }
}

fn start(error: &Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

/// Turns serde's message into the message of a problem. serde names the known keys only in the message,
/// between backticks. A test guards the form of the message.
fn misfit(message: &str, section: &str) -> String {
    if !message.starts_with("unknown field") {
        return message.to_owned();
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let key = quoted.next().unwrap_or_default();
    let setting_keys = SECTIONS
        .iter()
        .filter(|(name, _)| *name == section)
        .flat_map(|(_, settings)| *settings)
        .map(|setting| setting.key());
    let hint = hint(key, setting_keys.chain(quoted));
    let key = key.escape_debug();
    match section {
        "" => format!("unknown key `{key}` at the top level; {hint}"),
        _ => format!("unknown key `{key}` in [{section}]; {hint}"),
    }
}

/// Takes the key or value at `span` out of `table`, whose name is `section`.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>, section: &str) -> Option<Gap> {
    let here = table.iter().find_map(|(key, value)| {
        // An element of an array cannot be taken out alone. Tables in arrays are searched below.
        let holds = elements(value.get_ref())
            .any(|element| element.span() == *span && !is_table(element.get_ref()));
        (key.span() == *span || value.span() == *span || holds).then(|| key.get_ref().to_string())
    });
    if let Some(key) = here {
        let removed = table.remove(key.as_str())?;
        let value = removed.get_ref();
        return Some(Gap {
            offset: span.start,
            section: section.to_owned(),
            key,
            is_table: is_table(value) || elements(value).any(|element| is_table(element.get_ref())),
        });
    }
    table.iter_mut().find_map(|(key, value)| {
        let key = key.get_ref();
        let path = if section.is_empty() {
            key.to_string()
        } else {
            format!("{section}.{key}")
        };
        match value.get_mut() {
            DeValue::Table(inner) => remove(inner, span, &path),
            DeValue::Array(array) => array
                .iter_mut()
                .find_map(|element| match element.get_mut() {
                    DeValue::Table(inner) => remove(inner, span, &path),
                    _ => None,
                }),
            _ => None,
        }
    })
}

/// Adds the places of all tables below `table`.
fn add_tables(table: &DeTable<'_>, places: &mut Vec<Range<usize>>) {
    for value in table.values() {
        let inner = std::iter::once(value).chain(elements(value.get_ref()));
        for value in inner {
            if let DeValue::Table(table) = value.get_ref() {
                places.push(value.span());
                add_tables(table, places);
            }
        }
    }
}

const fn is_table(value: &DeValue<'_>) -> bool {
    matches!(value, DeValue::Table(_))
}

/// The elements of an array. Other values have none.
fn elements<'v, 'd>(value: &'v DeValue<'d>) -> impl Iterator<Item = &'v Spanned<DeValue<'d>>> {
    let array = match value {
        DeValue::Array(array) => Some(array),
        _ => None,
    };
    array.into_iter().flatten()
}
