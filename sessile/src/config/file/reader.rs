//! Reads the values of a configuration file one by one. A problem is noted, and the reading goes on.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::DnsName;

use super::problem::{Hint, Problem, What};
use super::raw::{self, Bytes, Number, Span, Text};
use crate::config::StoreUrl;

/// Most bytes of a server's name.
const MAX_NAME_LEN: usize = 255;

/// A duration up to a year (in humantime's length).
pub(in crate::config) const ANY_DURATION: RangeInclusive<Duration> =
    Duration::ZERO..=Duration::from_secs(31_557_600);
/// A duration that is not zero.
pub(in crate::config) const POSITIVE_DURATION: RangeInclusive<Duration> =
    Duration::from_nanos(1)..=*ANY_DURATION.end();

/// Reads values and collects the problems with them.
pub(in crate::config) struct Reader<'a> {
    text: &'a str,
    folder: &'a Path,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(in crate::config) fn new(text: &'a str, folder: &'a Path) -> Self {
        Self {
            text,
            folder,
            problems: Vec::new(),
        }
    }

    /// The value, or all problems that were noted.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty() {
            Ok(value)
        } else {
            Err(self.problems)
        }
    }

    /// A path of the text, which is relative to the file's folder.
    pub(in crate::config) fn resolve(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    pub(in crate::config) fn note(&mut self, span: Range<usize>, what: What) {
        self.problems.push(Problem::at(self.text, span.start, what));
    }

    /// The value. If there is none, notes `missing` at the start of the table.
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
    pub(in crate::config) fn text(&mut self, key: &'static str, written: Text) -> Text {
        let value = written?;
        if value.get_ref().is_empty() {
            self.note(value.span(), What::Empty { key });
            return None;
        }
        Some(value)
    }

    pub(in crate::config) fn path(&mut self, key: &'static str, written: Text) -> Option<PathBuf> {
        let path = self.text(key, written)?;
        Some(self.folder.join(path.into_inner()))
    }

    pub(in crate::config) fn number<N: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        written: Number,
        least: i64,
        most: i64,
    ) -> Option<N> {
        let written = written?;
        let raw::Whole(value) = *written.get_ref();
        let number = N::try_from(value).ok();
        if number.is_none() || !(least..=most).contains(&value) {
            let what = What::OutOfRange {
                key,
                value,
                least,
                most,
            };
            self.note(written.span(), what);
            return None;
        }
        number
    }

    /// A number of bytes, with or without a binary unit.
    pub(in crate::config) fn size(
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

    pub(in crate::config) fn duration(
        &mut self,
        key: &'static str,
        written: Span,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let written = written?;
        let raw::TimeSpan(text) = written.get_ref();
        let what = match humantime::parse_duration(text) {
            Ok(value) if range.contains(&value) => return Some(value),
            Ok(value) if value.is_zero() => What::ZeroDuration { key },
            Ok(value) => What::TooLong {
                key,
                value,
                most: *range.end(),
            },
            Err(_) => What::NotADuration {
                key,
                value: text.clone(),
            },
        };
        self.note(written.span(), what);
        None
    }

    pub(in crate::config) fn address(
        &mut self,
        key: &'static str,
        written: Text,
    ) -> Option<SocketAddr> {
        let written = written?;
        let parsed = written.get_ref().parse().ok();
        if parsed.is_none() {
            let value = written.get_ref().clone();
            self.note(written.span(), What::NotAnAddress { key, value });
        }
        parsed
    }

    pub(in crate::config) fn one_of<T: Copy>(
        &mut self,
        key: &'static str,
        written: Text,
        known: &[(&str, T)],
    ) -> Option<T> {
        let written = written?;
        let value = written.get_ref();
        if let Some(&(_, meaning)) = known.iter().find(|(word, _)| word == value) {
            return Some(meaning);
        }
        let words = known.iter().map(|(word, _)| (*word).to_owned()).collect();
        let what = What::NotOneOf {
            key,
            value: value.clone(),
            hint: Hint::new(value, words),
        };
        self.note(written.span(), what);
        None
    }

    /// The name of a server, an upstream or a pool.
    pub(in crate::config) fn server_name(&mut self, written: Text) -> Option<String> {
        let name = written?;
        let value = name.get_ref();
        if value.is_empty() || value.len() > MAX_NAME_LEN || value.chars().any(char::is_control) {
            let value = value.clone();
            self.note(name.span(), What::NotAName { value });
            return None;
        }
        Some(name.into_inner())
    }

    /// A name that only one table may have.
    pub(super) fn unique_name(
        &mut self,
        written: Text,
        names: &mut Unique<String>,
    ) -> Option<String> {
        let place = written.as_ref()?.span();
        let name = self.server_name(written)?;
        self.unique(names, name.clone(), &place);
        Some(name)
    }

    /// A DNS name without a wildcard, in lower case.
    pub(in crate::config) fn dns_name(
        &mut self,
        key: &'static str,
        written: Text,
    ) -> Option<String> {
        let name = self.text(key, written)?;
        if DnsName::try_from(name.get_ref().as_str()).is_err() {
            let value = name.get_ref().clone();
            self.note(name.span(), What::NotACheckName { value });
            return None;
        }
        Some(name.into_inner().to_ascii_lowercase())
    }

    /// The session store. No problem repeats the value, which may hold a password.
    pub(in crate::config) fn store(
        &mut self,
        key: &'static str,
        written: Text,
    ) -> Option<StoreUrl> {
        let written = self.text(key, written)?;
        match written.get_ref().parse() {
            Ok(StoreUrl::Redis(mut redis)) => {
                for file in redis.files_mut() {
                    *file = self.resolve(&file.to_string_lossy());
                }
                Some(StoreUrl::Redis(redis))
            }
            Ok(StoreUrl::Memory) => Some(StoreUrl::Memory),
            Err(bad) => {
                self.note(written.span(), What::Store(bad));
                None
            }
        }
    }

    /// Notes a value that occurred before.
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

/// Values that must not occur twice, and the place of each.
pub(super) struct Unique<T> {
    kind: &'static str,
    places: HashMap<T, usize>,
}

impl<T> Unique<T> {
    pub(in crate::config) fn new(kind: &'static str) -> Self {
        Self {
            kind,
            places: HashMap::new(),
        }
    }
}
