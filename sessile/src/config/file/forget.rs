//! `session.forget`: the sessions that are forgotten on request.

use sessile_proto::Time;
use sessile_proto::ticket::MAX_FORGET_RULES;
use toml::Spanned;

use super::problem::hint;
use super::raw;
use super::reader::{Reader, Table};
use crate::clock;
use crate::config::settings::types::{Count, SERVER_NAME};
use crate::config::{Forget, ForgetTarget, MAX_NUMBER, Site};

/// Reads all entries. The site of an entry must be one of `sites`.
pub(super) fn read(
    reader: &mut Reader<'_>,
    written: Vec<Spanned<raw::Forget>>,
    sites: &[Site],
) -> Vec<Forget> {
    if let Some(beyond) = written.get(MAX_FORGET_RULES) {
        let what = format!(
            "more than {MAX_FORGET_RULES} `forget` entries; remove those that are older than the farm key's \
             max-lifetime"
        );
        reader.note(beyond.span(), what);
    }
    written
        .into_iter()
        .filter_map(|written| mark(reader, written, sites))
        .collect()
}

fn mark(reader: &mut Reader<'_>, written: Spanned<raw::Forget>, sites: &[Site]) -> Option<Forget> {
    let table = Table::new("`forget`", &written);
    let written = written.into_inner();
    let before = reader
        .required(written.before, &table, "before", "\"2026-11-24T10:00:00Z\"")
        .and_then(|before| reader.parse(before, past_time));
    let target = match (written.site, written.server) {
        (None, None) => Some(ForgetTarget::Everything),
        (Some(_), None) if !reader.is_complete("site") => None,
        (Some(site), None) => reader.parse(site, |site| site_of(&site, sites)),
        (None, Some(server)) => server_of(reader, server),
        (Some(_), Some(_)) => {
            let what = "a `forget` names both a `site` and a `server`; write one entry for each";
            reader.note(table.span, what);
            None
        }
    };
    Some(Forget {
        target: target?,
        before: before?,
    })
}

fn past_time(raw::Moment(value): raw::Moment) -> Result<Time, String> {
    match clock::parse_rfc3339(&value) {
        Some(time) if time <= clock::now() => Ok(time),
        Some(_) => Err(format!(
            "`before` is {value:?}, which is in the future by this machine's clock: new sessions would be forgotten; \
             write a time in the past"
        )),
        None => Err(format!(
            "`before` is {value:?}, which is not a time in UTC; write for example \"2026-11-24T10:00:00Z\""
        )),
    }
}

fn site_of(written: &str, sites: &[Site]) -> Result<ForgetTarget, String> {
    let value = written.to_ascii_lowercase();
    let found = Site::called(&value, sites);
    found.map(Site::target).ok_or_else(|| {
        format!(
            "`site` is {value:?}, which is not the first name of a site (\"*\": the site without names); {}",
            hint(&value, sites.iter().map(Site::title))
        )
    })
}

fn server_of(reader: &mut Reader<'_>, written: Spanned<raw::NameOrNumber>) -> Option<ForgetTarget> {
    let span = written.span();
    match written.into_inner() {
        raw::NameOrNumber::Name(name) => reader
            .value(&SERVER_NAME, "server", Some(Spanned::new(span, name)))
            .map(ForgetTarget::Server),
        raw::NameOrNumber::Number(number) => {
            let numbers = Count(0..=MAX_NUMBER.into());
            reader
                .value(&numbers, "server", Some(Spanned::new(span, number)))
                .map(ForgetTarget::Number)
        }
    }
}
