//! `session.forget`: the sessions that are forgotten on request.

use sessile_proto::Time;
use sessile_proto::ticket::MAX_FORGET_RULES;
use toml::Spanned;

use super::problem::{Hint, What};
use super::raw;
use super::reader::Reader;
use crate::clock;
use crate::config::{Forget, ForgetTarget, MAX_NUMBER, Site};

/// Reads all marks. The site of a mark must be one of `sites`.
pub(super) fn read(
    reader: &mut Reader<'_>,
    written: Vec<Spanned<raw::Forget>>,
    sites: &[Site],
) -> Vec<Forget> {
    if let Some(beyond) = written.get(MAX_FORGET_RULES) {
        reader.note(beyond.span(), What::TooManyMarks);
    }
    written
        .into_iter()
        .filter_map(|written| mark(reader, written, sites))
        .collect()
}

fn mark(reader: &mut Reader<'_>, written: Spanned<raw::Forget>, sites: &[Site]) -> Option<Forget> {
    let span = written.span();
    let written = written.into_inner();
    let missing = What::missing("`forget`", "before", "\"2026-11-24T10:00:00Z\"");
    let before = reader
        .required(written.before, span.clone(), missing)
        .and_then(|before| past_time(reader, before));
    let target = match (written.site, written.server) {
        (None, None) => Some(ForgetTarget::Everything),
        (Some(site), None) => site_of(reader, &site, sites),
        (None, Some(server)) => server_of(reader, server),
        (Some(_), Some(_)) => {
            reader.note(span, What::SiteAndServer);
            None
        }
    };
    Some(Forget {
        target: target?,
        before: before?,
    })
}

fn past_time(reader: &mut Reader<'_>, written: Spanned<raw::Moment>) -> Option<Time> {
    let span = written.span();
    let raw::Moment(value) = written.into_inner();
    match clock::parse_rfc3339(&value) {
        Some(time) if time <= clock::now() => return Some(time),
        Some(_) => reader.note(span, What::ForgetsTheFuture { value }),
        None => reader.note(span, What::NotATime { value }),
    }
    None
}

fn site_of(
    reader: &mut Reader<'_>,
    written: &Spanned<String>,
    sites: &[Site],
) -> Option<ForgetTarget> {
    let value = written.get_ref().to_ascii_lowercase();
    let found = Site::called(&value, sites);
    if found.is_none() {
        let known = sites.iter().map(|site| site.title().to_owned()).collect();
        let what = What::NotASite {
            hint: Hint::new(&value, known),
            value,
        };
        reader.note(written.span(), what);
    }
    found.map(Site::target)
}

fn server_of(reader: &mut Reader<'_>, written: Spanned<raw::NameOrNumber>) -> Option<ForgetTarget> {
    let span = written.span();
    match written.into_inner() {
        raw::NameOrNumber::Name(name) => reader
            .server_name(Some(Spanned::new(span, name)))
            .map(ForgetTarget::Server),
        raw::NameOrNumber::Number(number) => {
            let spanned = Some(Spanned::new(span, number));
            reader
                .number("server", spanned, 0, i64::from(MAX_NUMBER))
                .map(ForgetTarget::Number)
        }
    }
}
