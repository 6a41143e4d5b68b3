//! The validators of a file, and the conditions of a request
//! ([RFC 9110, 8.8 and 13](https://www.rfc-editor.org/rfc/rfc9110#section-13)).
//!
//! The servers of a farm have copies of a file. So the entity tag contains neither inode nor device.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use http::header::{
    HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
};

/// The time of a file's last change, as the file system reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ModificationTime {
    /// Seconds since 1970; negative for a time before 1970.
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// The headers that identify the version of a file.
#[derive(Debug)]
pub(super) struct Validators {
    /// A strong entity tag, in quotes.
    pub(super) etag: String,
    /// Whole seconds, because HTTP dates have no fractions.
    pub(super) last_modified: Option<SystemTime>,
}

/// The result of the conditions of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answer as if there were no condition.
    Proceed,
    /// The client has this version (304).
    NotModified,
    /// The client does not want this version (412).
    Failed,
}

impl Validators {
    /// `now`: a later modification time is not announced, because its date would be wrong.
    pub(super) fn new(length: u64, modified: ModificationTime, now: SystemTime) -> Self {
        let ModificationTime {
            seconds,
            nanoseconds,
        } = modified;
        let last_modified = u64::try_from(seconds)
            .ok()
            .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
            .filter(|&modified| modified <= now);
        Self {
            etag: format!("\"{seconds:x}.{nanoseconds:08x}-{length:x}\""),
            last_modified,
        }
    }

    /// Evaluates the conditions of a GET or HEAD request, in the order of RFC 9110, 13.2.2.
    pub(super) fn evaluate(&self, headers: &HeaderMap) -> Outcome {
        if headers.contains_key(IF_MATCH) {
            if !self.is_in_list(headers, IF_MATCH, Comparison::Strong) {
                return Outcome::Failed;
            }
        } else if let Some(date) = date(headers, IF_UNMODIFIED_SINCE)
            && self.last_modified.is_some_and(|modified| modified > date)
        {
            return Outcome::Failed;
        }
        if headers.contains_key(IF_NONE_MATCH) {
            if self.is_in_list(headers, IF_NONE_MATCH, Comparison::Weak) {
                return Outcome::NotModified;
            }
        } else if let Some(date) = date(headers, IF_MODIFIED_SINCE)
            && self.last_modified.is_some_and(|modified| modified <= date)
        {
            return Outcome::NotModified;
        }
        Outcome::Proceed
    }

    /// True if the request has no `If-Range`, or names exactly this version (RFC 9110, 13.1.5).
    ///
    /// A date names no version, because a file can change twice within a second.
    pub(super) fn matches_if_range(&self, headers: &HeaderMap) -> bool {
        if !headers.contains_key(IF_RANGE) {
            return true;
        }
        // A weak tag begins with `W/`, so it is not this tag.
        only_value(headers, IF_RANGE).is_some_and(|value| value == self.etag)
    }

    fn is_in_list(&self, headers: &HeaderMap, name: HeaderName, comparison: Comparison) -> bool {
        headers.get_all(name).iter().any(|value| {
            let list = value.as_bytes().trim_ascii();
            list == b"*"
                || EntityTags(list).any(|tag| {
                    tag.quoted == self.etag.as_bytes()
                        && (comparison == Comparison::Weak || !tag.is_weak)
                })
        })
    }
}

/// How entity tags are compared (RFC 9110, 8.8.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// The entity tags of a list. The iterator ends at the first invalid tag.
struct EntityTags<'a>(&'a [u8]);

struct EntityTag<'a> {
    is_weak: bool,
    /// The tag with its quotes. A comma can be part of a tag.
    quoted: &'a [u8],
}

impl<'a> Iterator for EntityTags<'a> {
    type Item = EntityTag<'a>;

    fn next(&mut self) -> Option<EntityTag<'a>> {
        let is_separator = |byte: &u8| matches!(byte, b',' | b' ' | b'\t');
        let start = self.0.iter().position(|byte| !is_separator(byte))?;
        let element = &self.0[start..];
        let tag = element.strip_prefix(b"W/").unwrap_or(element);
        let inner = tag.strip_prefix(b"\"")?;
        let end = inner.iter().position(|&byte| byte == b'"')?;
        let (quoted, rest) = tag.split_at(end + 2);
        self.0 = rest;
        Some(EntityTag {
            is_weak: tag.len() < element.len(),
            quoted,
        })
    }
}

/// The value of a header that occurs once.
fn only_value(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// The date of a header. A header with an invalid date, or with two dates, counts as missing.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(only_value(headers, name)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const EARLIER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
    const ETAG: &str = "\"2ebc98a1.1dcd6500-14\"";

    fn modified() -> ModificationTime {
        ModificationTime {
            seconds: 784_111_777,
            nanoseconds: 500_000_000,
        }
    }

    fn validators() -> Validators {
        Validators::new(20, modified(), SystemTime::now())
    }

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let field = |(name, value): &(HeaderName, &str)| {
            let value = HeaderValue::from_str(value).expect("a value");
            (name.clone(), value)
        };
        let mut map = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn size_and_modification_time_make_the_tag() {
        assert_eq!(validators().etag, ETAG);
        let ModificationTime {
            seconds,
            nanoseconds,
        } = modified();
        for (length, seconds, nanoseconds) in [
            (21, seconds, nanoseconds),
            (20, seconds + 1, nanoseconds),
            (20, seconds, nanoseconds + 1),
            (20, -seconds, nanoseconds),
        ] {
            let modified = ModificationTime {
                seconds,
                nanoseconds,
            };
            let other = Validators::new(length, modified, SystemTime::now());
            assert_ne!(other.etag, ETAG);
        }
    }

    #[test]
    fn a_date_before_1970_or_after_now_is_not_announced() {
        let since = |seconds| {
            let modified = ModificationTime {
                seconds,
                nanoseconds: 1,
            };
            let now = UNIX_EPOCH + Duration::from_secs(1000);
            Validators::new(20, modified, now).last_modified
        };
        assert_eq!(since(-1), None);
        assert_eq!(since(0), Some(UNIX_EPOCH));
        assert_eq!(since(1000), Some(UNIX_EPOCH + Duration::from_secs(1000)));
        assert_eq!(since(1001), None);
        assert_eq!(since(i64::MAX), None);
    }

    #[test]
    fn conditions_have_the_outcome_and_the_order_of_the_rfc() {
        use Outcome::{Failed, NotModified, Proceed};
        let weak = &format!("W/{ETAG}");
        let list = &format!("\"a,b\" , W/\"c\",{ETAG}");
        let other = "\"other\"";
        let cases: &[(&[(HeaderName, &str)], Outcome)] = &[
            (&[], Proceed),
            (&[(IF_MATCH, ETAG)], Proceed),
            (&[(IF_MATCH, "*")], Proceed),
            (&[(IF_MATCH, list)], Proceed),
            (&[(IF_MATCH, other), (IF_MATCH, ETAG)], Proceed),
            (&[(IF_MATCH, weak)], Failed),
            (&[(IF_MATCH, other)], Failed),
            (&[(IF_MATCH, "")], Failed),
            (&[(IF_MATCH, "\"open")], Failed),
            (&[(IF_UNMODIFIED_SINCE, DATE)], Proceed),
            (&[(IF_UNMODIFIED_SINCE, LATER)], Proceed),
            (&[(IF_UNMODIFIED_SINCE, EARLIER)], Failed),
            (&[(IF_UNMODIFIED_SINCE, "yesterday")], Proceed),
            (&[(IF_MATCH, ETAG), (IF_UNMODIFIED_SINCE, EARLIER)], Proceed),
            (&[(IF_NONE_MATCH, ETAG)], NotModified),
            (&[(IF_NONE_MATCH, weak)], NotModified),
            (&[(IF_NONE_MATCH, "*")], NotModified),
            (&[(IF_NONE_MATCH, list)], NotModified),
            (&[(IF_NONE_MATCH, other)], Proceed),
            (&[(IF_MODIFIED_SINCE, DATE)], NotModified),
            (&[(IF_MODIFIED_SINCE, LATER)], NotModified),
            (&[(IF_MODIFIED_SINCE, EARLIER)], Proceed),
            (&[(IF_MODIFIED_SINCE, "yesterday")], Proceed),
            (
                &[(IF_MODIFIED_SINCE, LATER), (IF_MODIFIED_SINCE, LATER)],
                Proceed,
            ),
            (
                &[(IF_NONE_MATCH, other), (IF_MODIFIED_SINCE, DATE)],
                Proceed,
            ),
            (
                &[(IF_NONE_MATCH, ETAG), (IF_MODIFIED_SINCE, EARLIER)],
                NotModified,
            ),
            (&[(IF_MATCH, other), (IF_NONE_MATCH, ETAG)], Failed),
            (&[(IF_MATCH, ETAG), (IF_NONE_MATCH, ETAG)], NotModified),
            (
                &[(IF_UNMODIFIED_SINCE, EARLIER), (IF_NONE_MATCH, ETAG)],
                Failed,
            ),
        ];
        for (fields, expected) in cases {
            let outcome = validators().evaluate(&headers(fields));
            assert_eq!(outcome, *expected, "{fields:?}");
        }
    }

    #[test]
    fn dates_of_a_file_without_a_date_are_ignored() {
        let modified = ModificationTime {
            seconds: -1,
            nanoseconds: 0,
        };
        let validators = Validators::new(20, modified, SystemTime::now());
        for name in [IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE] {
            let headers = headers(&[(name, DATE)]);
            assert_eq!(validators.evaluate(&headers), Outcome::Proceed);
        }
        assert!(!validators.matches_if_range(&headers(&[(IF_RANGE, DATE)])));
    }

    #[test]
    fn a_part_is_continued_only_if_the_version_is_exactly_the_same() {
        for (value, expected) in [
            (ETAG, true),
            (DATE, false),
            ("\"other\"", false),
            (&format!("W/{ETAG}"), false),
            (&format!("{ETAG}, {ETAG}"), false),
            (EARLIER, false),
            (LATER, false),
            ("*", false),
            ("", false),
        ] {
            let headers = headers(&[(IF_RANGE, value)]);
            assert_eq!(validators().matches_if_range(&headers), expected, "{value}");
        }
        assert!(validators().matches_if_range(&HeaderMap::new()));
        let twice = headers(&[(IF_RANGE, ETAG), (IF_RANGE, ETAG)]);
        assert!(!validators().matches_if_range(&twice));
    }
}
