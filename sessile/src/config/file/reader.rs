//! Reads the values of a configuration file one by one, by their kinds, and notes what is wrong with
//! them instead of stopping there.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::problem::{Hint, Problem, What};
use super::raw::{self, Bytes, Number, Span, Text};

/// Longest duration of any setting: a year, as humantime counts it.
const MAX_DURATION: Duration = Duration::from_secs(31_557_600);

/// Reads values one by one and notes what is wrong with them.
pub(super) struct Reader<'a> {
    text: &'a str,
    folder: &'a Path,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, folder: &'a Path) -> Self {
        Self {
            text,
            folder,
            problems: Vec::new(),
        }
    }

    /// The value, if nothing was noted.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty() {
            Ok(value)
        } else {
            Err(self.problems)
        }
    }

    /// A path as the text has it, which is relative to the file's folder.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    pub(super) fn note(&mut self, span: Range<usize>, what: What) {
        self.problems.push(Problem::at(self.text, span.start, what));
    }

    /// The value, or what is missing noted at the table's place.
    pub(super) fn required<T>(
        &mut self,
        value: Option<T>,
        table: Range<usize>,
        missing: What,
    ) -> Option<T> {
        if value.is_none() {
            self.note(table, missing);
        }
        value
    }

    /// Text that is not empty.
    pub(super) fn text(&mut self, key: &'static str, written: Text) -> Text {
        let value = written?;
        if value.get_ref().is_empty() {
            self.note(value.span(), What::Empty { key });
            return None;
        }
        Some(value)
    }

    pub(super) fn path(&mut self, key: &'static str, written: Text) -> Option<PathBuf> {
        let path = self.text(key, written)?;
        Some(self.folder.join(path.into_inner()))
    }

    pub(super) fn number<N: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        written: Number,
        least: i64,
        most: i64,
    ) -> Option<N> {
        let number = written?;
        let raw::Whole(value) = *number.get_ref();
        let fits = (least..=most).contains(&value);
        let converted = fits.then(|| N::try_from(value).ok()).flatten();
        if converted.is_none() {
            let what = What::OutOfRange {
                key,
                value,
                least,
                most,
            };
            self.note(number.span(), what);
        }
        converted
    }

    /// A number of bytes, with or without a binary unit.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        written: Bytes,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let written = written?;
        let raw::Size(text) = written.get_ref();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match text[digits.len()..].trim_start() {
            "" | "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            _ => None,
        };
        let number = digits.trim_end().parse::<i64>().ok();
        let value = unit.and_then(|unit: i64| number?.checked_mul(unit));
        let what = match value {
            Some(value) => match u32::try_from(value) {
                Ok(value) if range.contains(&value) => return Some(value),
                _ => What::OutOfRange {
                    key,
                    value,
                    least: (*range.start()).into(),
                    most: (*range.end()).into(),
                },
            },
            None => What::NotASize {
                key,
                value: text.clone(),
            },
        };
        self.note(written.span(), what);
        None
    }

    pub(super) fn duration(&mut self, key: &'static str, written: Span) -> Option<Duration> {
        let written = written?;
        let raw::TimeSpan(text) = written.get_ref();
        let what = match humantime::parse_duration(text) {
            Ok(value) if value <= MAX_DURATION => return Some(value),
            Ok(value) => What::TooLong {
                key,
                value,
                most: MAX_DURATION,
            },
            Err(_) => What::NotADuration {
                key,
                value: text.clone(),
            },
        };
        self.note(written.span(), what);
        None
    }

    pub(super) fn positive(&mut self, key: &'static str, written: Span) -> Option<Duration> {
        let span = written.as_ref().map(Spanned::span)?;
        let value = self.duration(key, written)?;
        if value.is_zero() {
            self.note(span, What::ZeroDuration { key });
            return None;
        }
        Some(value)
    }

    pub(super) fn address(&mut self, key: &'static str, written: Text) -> Option<SocketAddr> {
        let written = written?;
        let parsed = written.get_ref().parse().ok();
        if parsed.is_none() {
            let value = written.get_ref().clone();
            self.note(written.span(), What::NotAnAddress { key, value });
        }
        parsed
    }

    pub(super) fn one_of<T: Copy>(
        &mut self,
        key: &'static str,
        written: Text,
        known: &[(&str, T)],
    ) -> Option<T> {
        let written = written?;
        let value = written.get_ref();
        let found = known.iter().find(|(word, _)| word == value);
        if found.is_none() {
            let words = known.iter().map(|(word, _)| (*word).to_owned()).collect();
            let what = What::NotOneOf {
                key,
                value: value.clone(),
                hint: Hint::new(value, words),
            };
            self.note(written.span(), what);
        }
        found.map(|&(_, meant)| meant)
    }

    /// Notes a value that was there before.
    pub(super) fn unique<T: Display + Eq + Hash>(
        &mut self,
        seen: &mut Unique<T>,
        value: T,
        span: &Range<usize>,
    ) {
        let text = value.to_string();
        if let Some(&first) = seen.places.get(&value) {
            let what = What::Twice {
                kind: seen.kind,
                value: text,
                first: Problem::at(self.text, first, What::NotUtf8).line,
            };
            self.note(span.clone(), what);
        } else {
            seen.places.insert(value, span.start);
        }
    }
}

/// Values that may stand once each, and where they stood first.
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
