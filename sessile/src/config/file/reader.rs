//! Reads the values of a configuration file one by one. A problem is noted, and the reading goes on.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeValue, Error, ValueDeserializer};

use super::problem::Problem;
use crate::config::base::Base;
use crate::config::settings::types::{SERVER_NAME, Type};

/// Reads values and collects the problems with them.
pub(in crate::config) struct Reader<'a> {
    text: &'a str,
    base: &'a Base,
    problems: Vec<Problem>,
    /// The places of keys that were taken out.
    gaps: Vec<usize>,
}

/// A table of the file. Problems with missing keys name this table.
pub(super) struct Table {
    /// The table as users write it, such as `[[upstream]]`.
    pub(super) name: &'static str,
    pub(super) span: Range<usize>,
}

impl Table {
    pub(super) fn new<T>(name: &'static str, written: &Spanned<T>) -> Self {
        let span = written.span();
        Self { name, span }
    }
}

impl<'a> Reader<'a> {
    pub(in crate::config) fn new(text: &'a str, base: &'a Base) -> Self {
        Self {
            text,
            base,
            problems: Vec::new(),
            gaps: Vec::new(),
        }
    }

    pub(super) fn add_problems(&mut self, problems: Vec<Problem>) {
        self.problems.extend(problems);
    }

    /// Notes that a key was taken out. Its section may then seem to break a condition.
    pub(super) fn note_gap(&mut self, offset: usize) {
        self.gaps.push(offset);
    }

    /// The value, or all problems that were noted.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty() {
            Ok(value)
        } else {
            Err(self.problems)
        }
    }

    /// Notes that a condition between keys is not met, unless a key of the section was taken out.
    pub(super) fn note(&mut self, span: Range<usize>, what: impl Into<String>) {
        let section = section_at(self.text, span.start);
        let mut gaps = self.gaps.iter();
        if !gaps.any(|&gap| section_at(self.text, gap) == section) {
            self.problems.push(Problem::at(self.text, span.start, what));
        }
    }

    /// Reads a TOML value into a field. A problem leaves the field as it is.
    pub(in crate::config) fn read_into<T, Y: Type<T>>(
        &mut self,
        r#type: &Y,
        key: &str,
        written: Spanned<DeValue<'_>>,
        field: &mut T,
    ) -> Result<(), Error> {
        let span = written.span();
        let value = serde::Deserialize::deserialize(ValueDeserializer::from(written))?;
        if let Some(value) = self.value(r#type, key, Some(Spanned::new(span, value))) {
            *field = value;
        }
        Ok(())
    }

    /// The value of a key, if the file has the key with a value of this type.
    pub(super) fn value<T, Y: Type<T>>(
        &mut self,
        r#type: &Y,
        key: &str,
        written: Option<Spanned<Y::Written>>,
    ) -> Option<T> {
        let base = self.base;
        self.parse(written?, |written| r#type.parse(key, written, base))
    }

    /// The result of `parse`. An error is noted at the place of the value.
    pub(super) fn parse<W, T>(
        &mut self,
        written: Spanned<W>,
        parse: impl FnOnce(W) -> Result<T, String>,
    ) -> Option<T> {
        let span = written.span();
        parse(written.into_inner())
            .map_err(|what| {
                self.problems.push(Problem::at(self.text, span.start, what));
            })
            .ok()
    }

    /// The same as [`Self::parse`], for a value that must not occur twice.
    pub(super) fn parse_unique<W, T: Clone + Display + Eq + Hash>(
        &mut self,
        seen: &mut Unique<T>,
        written: Spanned<W>,
        parse: impl FnOnce(W) -> Result<T, String>,
    ) -> Option<T> {
        let span = written.span();
        let value = self.parse(written, parse)?;
        self.unique(seen, value.clone(), &span);
        Some(value)
    }

    /// A name that only one table may have.
    pub(super) fn unique_name(
        &mut self,
        seen: &mut Unique<String>,
        written: Option<Spanned<String>>,
    ) -> Option<String> {
        let base = self.base;
        self.parse_unique(seen, written?, |name| SERVER_NAME.parse("name", name, base))
    }

    /// The written value. If the file has no value, notes that the table needs the key, with an example of
    /// its value.
    pub(super) fn required<W>(
        &mut self,
        written: Option<W>,
        table: &Table,
        key: &str,
        example: &str,
    ) -> Option<W> {
        if written.is_none() {
            let table_name = table.name;
            let what = format!("{table_name} needs `{key}`; write for example {key} = {example}");
            self.note(table.span.clone(), what);
        }
        written
    }

    /// The value of a key that the table needs.
    pub(super) fn required_value<T, Y: Type<T>>(
        &mut self,
        r#type: &Y,
        written: Option<Spanned<Y::Written>>,
        table: &Table,
        key: &str,
        example: &str,
    ) -> Option<T> {
        let found = self.required(written, table, key, example);
        self.value(r#type, key, found)
    }

    /// Notes a problem if the value occurred before.
    pub(super) fn unique<T: Display + Eq + Hash>(
        &mut self,
        seen: &mut Unique<T>,
        value: T,
        span: &Range<usize>,
    ) {
        if let Some(&offset) = seen.places.get(&value) {
            let first = Problem::at(self.text, offset, "").line;
            let kind = seen.kind;
            let what = format!("a second {kind} {value}; the first is in line {first}; remove one");
            self.note(span.clone(), what);
        } else {
            seen.places.insert(value, span.start);
        }
    }
}

/// The first part of the name of the section around an offset, such as `balance` of `[[balance.server]]`.
fn section_at(text: &str, offset: usize) -> &str {
    let rest = text.get(offset..).unwrap_or_default();
    let line_end = text.len() - rest.len() + rest.find('\n').unwrap_or(rest.len());
    let mut lines = text[..line_end].lines().rev();
    let here = lines.clone().next().unwrap_or_default();
    let head = lines
        .find(|line| line.trim_start().starts_with('['))
        .unwrap_or(here);
    let name = head.trim_start_matches(['[', ' ', '\t']);
    name.split(['.', ']', '=', ' ']).next().unwrap_or_default()
}

/// Values that must not occur twice, and the place of each.
pub(super) struct Unique<T> {
    kind: &'static str,
    places: HashMap<T, usize>,
}

impl<T> Unique<T> {
    pub(super) fn new(kind: &'static str) -> Self {
        Self {
            kind,
            places: HashMap::new(),
        }
    }
}
