//! The problems of a configuration file: the place, the cause and the remedy of each.

use std::fmt;
use std::time::Duration;

use toml::de::Error;

use crate::config::store::BadStore;

/// One problem and its place.
#[derive(Debug)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    pub what: What,
}

impl Problem {
    /// A problem at the byte `offset` of `text`.
    pub(super) fn at(text: &str, offset: usize, what: What) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..]
                .trim_start_matches('\u{feff}')
                .chars()
                .count()
                + 1,
            what,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what)
    }
}

/// The kind of a problem. `key` is the last part of a setting's name, and `value` is the text in the file.
#[derive(Debug, thiserror::Error)]
pub enum What {
    #[error("not UTF-8 from here on; save the file as UTF-8")]
    NotUtf8,
    #[error("not TOML: {}", .0.message())]
    Syntax(Error),
    #[error("unknown key `{}`{}; {hint}", key.escape_debug(), In(section))]
    UnknownKey {
        key: String,
        /// Dotted, without brackets; empty at the top level.
        section: String,
        hint: Hint,
    },
    #[error("{}", .0.message())]
    WrongType(Error),
    #[error("{table} needs `{key}`; write for example {key} = {example}")]
    Missing {
        table: &'static str,
        key: &'static str,
        example: &'static str,
    },
    #[error("`{key}` is {value:?}; {hint}")]
    NotOneOf {
        key: &'static str,
        value: String,
        hint: Hint,
    },
    #[error("`{key}` is empty; give it a value, or remove the line for the default")]
    Empty { key: &'static str },
    #[error(
        "`{key}` is {value:?}, which is not a duration; write a number and a unit, such as \"5m\" or \"10h\""
    )]
    NotADuration { key: &'static str, value: String },
    #[error("`{key}` is zero; write a longer duration, such as \"1s\"")]
    ZeroDuration { key: &'static str },
    #[error("`{key}` is {}; at most {} is allowed", Span(*value), Span(*most))]
    TooLong {
        key: &'static str,
        value: Duration,
        most: Duration,
    },
    #[error(
        "`lifetime` is {}, but TLS 1.3 allows tickets at most 7 days; write \"7d\" or less, or set tickets = false",
        Span(*value)
    )]
    TooLongForTickets { value: Duration },
    #[error(
        "`{key}` is {value:?}, which is not an IP address with a port; write for example \"0.0.0.0:443\" or \
         \"[::]:443\" (host names are not looked up)"
    )]
    NotAnAddress { key: &'static str, value: String },
    #[error("`{key}` is {value}; write a number from {least} to {most}")]
    OutOfRange {
        key: &'static str,
        value: i64,
        least: i64,
        most: i64,
    },
    #[error("`{key}` is {value:?}, which is not a size; write a number of bytes, or \"16KiB\"")]
    NotASize { key: &'static str, value: String },
    #[error(
        "`early-data` is on and session.store is \"memory\": a replay would be accepted once by each server; set store \
         = \"redis://HOST\", the same on every server, or remove `early-data`"
    )]
    EarlyDataInMemory,
    #[error(
        "`early-data` is on and session.tickets is false: without tickets no client can send early data; set tickets = \
         true, or remove `early-data`"
    )]
    EarlyDataWithoutTickets,
    #[error(
        "`early-data` is on and session.max-entries or session.lifetime is 0, so no session is kept; raise it, or \
         remove `early-data`"
    )]
    EarlyDataWithoutSessions,
    #[error(
        "`early-data` of the site is {value} bytes, and session.early-data is {most}: a site may allow less, not more; \
         raise session.early-data and set a lower value at the other sites"
    )]
    EarlyDataWidens { value: u32, most: u32 },
    #[error(
        "`early-data` is on at a site with `client-auth`: a replayed request would be served as that of an \
         authenticated client; write early-data = 0, or remove it"
    )]
    EarlyDataOfClients,
    #[error(
        "`before` is {value:?}, which is not a time in UTC; write for example \"2026-11-24T10:00:00Z\""
    )]
    NotATime { value: String },
    #[error(
        "`before` is {value:?}, which is in the future by this machine's clock: new sessions would be forgotten; write \
         a time in the past"
    )]
    ForgetsTheFuture { value: String },
    #[error(
        "`site` is {value:?}, which is not the first name of a site (\"*\": the site without names); {hint}"
    )]
    NotASite { value: String, hint: Hint },
    #[error("a `forget` names both a `site` and a `server`; write one entry for each")]
    SiteAndServer,
    #[error(
        "more than {} `forget` entries; remove those that are older than the farm key's max-lifetime",
        sessile_proto::ticket::MAX_FORGET_RULES
    )]
    TooManyMarks,
    #[error("`store` {0}")]
    Store(BadStore),
    #[error(
        "`kernel` is \"on\", but this version has no kernel TLS; write \"off\", or \"auto\" to use it in a version \
         that has it"
    )]
    KernelIsOn,
    #[error(
        "`name` is {value:?}; a server's name is 1 to 255 characters without control characters"
    )]
    NotAName { value: String },
    #[error(
        "{value:?} is not a server name; write a DNS name (in ASCII form), or \"*.\" and a DNS name; omit `names` for \
         the site that takes every other name"
    )]
    NotAServerName { value: String },
    #[error(
        "`path` is {value:?}; write a path that begins with a slash, without query, fragment, semicolon, `..` or empty \
         part"
    )]
    NotAPath { value: String },
    #[error(
        "`redirect` is {value:?}; write \"https://host/path\", or a path that begins with a slash"
    )]
    NotARedirect { value: String },
    #[error(
        "the route has {found} of `files`, `proxy`, `redirect`, `respond` and `verdict = true`; it needs exactly one"
    )]
    ActionCount { found: usize },
    #[error(
        "`proxy` is {value:?}, but there is no [[upstream]]; add one with name = {value:?} and \
         servers = [\"http://10.0.0.1:8080\"]"
    )]
    NoUpstream { value: String },
    #[error(
        "{value:?} is not the server of an upstream; write \"http://\", a host and a port: \"http://10.0.0.1:8080\" \
         (the path of a request is passed on unchanged)"
    )]
    NotAnUpstreamServer { value: String },
    #[error(
        "{value:?} needs TLS, which this version does not speak to an upstream; write \"http://\" and use a network \
         that you trust"
    )]
    UpstreamTls { value: String },
    #[error("`status` needs `respond`, which this route does not have; remove `status`")]
    StatusAlone,
    #[error("`symlinks` needs `files`, which this route does not have; remove `symlinks`")]
    SymlinksAlone,
    #[error(
        "the site has no certificate; add certificates = [{{ chain = \"cert.pem\", key = \"key.pem\" }}]"
    )]
    NoCertificate,
    #[error("a second {kind} {value}; the first is in line {first}; remove one")]
    Twice {
        kind: &'static str,
        value: String,
        first: usize,
    },
    #[error(
        "{value:?} in `proxy-trusted` is not a network; write an address, or a prefix with its length, such as \
         \"10.0.0.0/8\" (the bits after the prefix must be zero)"
    )]
    NotANetwork { value: String },
    #[error(
        "`proxy-protocol` is true, but no address is trusted to send the header; add proxy-trusted = [\"10.0.0.0/8\"], \
         with the addresses of the proxies"
    )]
    NobodyTrusted,
    #[error(
        "`proxy-trusted` has no effect without proxy-protocol = true; add that, or remove `proxy-trusted`"
    )]
    TrustedForNothing,
    #[error(
        "the listener has role \"serve\", but there is no site; add a [[site]], or set role = \"balance\""
    )]
    NothingToServe,
    #[error(
        "{value:?} is not a server name for health checks; write a DNS name in ASCII form that a client would send"
    )]
    NotACheckName { value: String },
    #[error("the pool has no server; add pool = {pool:?} to a [[balance.server]]")]
    EmptyPool { pool: String },
    #[error(
        "the pool has no names; add names = [\"shop.example\"], or remove the pool: servers without a pool take every \
         other name"
    )]
    NamelessPool,
    #[error(
        "`unknown-name` is \"refuse\", but no pool has names, so every client would be refused; add a \
         [[balance.pool]]"
    )]
    EveryNameRefused,
    #[error(
        "the listener has role \"balance\", but there is no server; add a [[balance.server]] with name and address"
    )]
    NothingToBalance,
}

impl What {
    pub(super) const fn missing(
        table: &'static str,
        key: &'static str,
        example: &'static str,
    ) -> Self {
        Self::Missing {
            table,
            key,
            example,
        }
    }
}

/// A duration for people.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// ` in [section]`, or nothing at the top level.
struct In<'a>(&'a str);

impl fmt::Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => f.write_str(" at the top level"),
            section => write!(f, " in [{section}]"),
        }
    }
}

/// A suggestion: the words that are known at this place.
#[derive(Debug)]
pub struct Hint {
    /// The nearest known word, if one is near.
    pub nearest: Option<String>,
    /// All known words.
    pub known: Vec<String>,
}

impl Hint {
    pub(super) fn new(written: &str, known: Vec<String>) -> Self {
        Self {
            nearest: nearest(written, known.iter().map(String::as_str)).map(str::to_owned),
            known,
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.nearest {
            Some(nearest) => write!(f, "did you mean `{nearest}`?"),
            None if self.known.is_empty() => f.write_str("none is defined yet"),
            None => write!(f, "known here: {}", self.known.join(", ")),
        }
    }
}

/// The known word nearest to `written`. At most a third of the letters may differ, or two letters.
pub(crate) fn nearest<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = (written.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|word| (strsim::levenshtein(written, word), word))
        .filter(|&(distance, word)| distance <= limit && distance < word.len())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_similar_word_is_suggested() {
        let known = ["max-entries", "lifetime", "tickets", "store"];
        let meant = |written: &str| nearest(written, known);
        assert_eq!(meant("lifetme"), Some("lifetime"));
        assert_eq!(meant("max_entries"), Some("max-entries"));
        assert_eq!(meant("colour"), None);
        assert_eq!(meant(""), None);
    }

    #[test]
    fn a_place_is_a_line_and_a_column_in_characters() {
        let text = "a = 1\nä = ü!\n";
        let problem = Problem::at(text, text.find('!').expect("it is there"), What::NotUtf8);
        assert_eq!((problem.line, problem.column), (2, 6));
    }
}
