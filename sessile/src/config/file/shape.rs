//! From text to the file's shape. serde stops at the first key or type that does not fit; here what
//! did not fit is noted, taken out, and the rest is tried again, so that one run shows everything.

use std::ops::Range;

use serde::Deserialize;
use toml::de::{DeTable, DeValue, Deserializer, Error};

use super::problem::{Hint, Problem, What};
use super::raw::File;

/// Most problems that are looked for; the rest shows when these are dealt with.
const MAX_PROBLEMS: usize = 20;

/// Reads the shape of a configuration file, or everything that keeps the text from having it.
pub(super) fn read(text: &str) -> Result<File, Vec<Problem>> {
    let (mut table, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        let errors = syntax.into_iter().take(MAX_PROBLEMS);
        return Err(errors
            .map(|error| Problem::at(text, start(&error), What::Syntax(error)))
            .collect());
    }
    let mut problems = Vec::new();
    loop {
        let error = match File::deserialize(Deserializer::from(table.clone())) {
            Ok(file) if problems.is_empty() => return Ok(file),
            Ok(_) => return Err(problems),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_default();
        let removed = remove(table.get_mut(), &span, "");
        let found = removed.is_some();
        let place = start(&error);
        problems.push(Problem::at(
            text,
            place,
            misfit(error, removed.unwrap_or_default()),
        ));
        if !found || problems.len() == MAX_PROBLEMS {
            return Err(problems);
        }
    }
}

fn start(error: &Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

/// What an error of serde's means. The names that are known here are only in its message, between
/// backticks; a test holds that form fast.
fn misfit(error: Error, section: String) -> What {
    let message = error.message();
    if !message.starts_with("unknown field") {
        return What::WrongType(error);
    }
    let mut quoted = message.split('`').skip(1).step_by(2).map(str::to_owned);
    let key = quoted.next().unwrap_or_default();
    let hint = Hint::new(&key, quoted.collect());
    What::UnknownKey { key, section, hint }
}

/// Takes the key or value that lies at `span` out of `table`, and names the section it was in.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>, section: &str) -> Option<String> {
    let here = table.iter().find_map(|(key, value)| {
        // An element of an array cannot be taken out alone; an array of tables is looked into below.
        let holds = match value.get_ref() {
            DeValue::Array(elements) => elements.iter().any(|element| {
                element.span() == *span && !matches!(element.get_ref(), DeValue::Table(_))
            }),
            _ => false,
        };
        (key.span() == *span || value.span() == *span || holds).then(|| key.get_ref().to_string())
    });
    if let Some(key) = here {
        table.remove(key.as_str());
        return Some(section.to_owned());
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
