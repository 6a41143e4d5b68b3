//! Makes the response to a request for a file ([RFC 9110](https://www.rfc-editor.org/rfc/rfc9110)).

use std::path::Path;
use std::time::SystemTime;

use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::content::{Content, Opened, Wanted};
use super::range::{self, Selection};
use super::validators::{Outcome, Validators};

/// Most headers of a response with content. The HTTP library adds the date.
pub(super) const MAX_HEADERS: usize = 7;

/// The parts of a file that a GET or HEAD request needs.
pub(super) fn wanted(method: &Method, headers: &HeaderMap) -> Wanted {
    let may_need_less = |name: &HeaderName| {
        matches!(
            *name,
            IF_MATCH | IF_MODIFIED_SINCE | IF_NONE_MATCH | IF_UNMODIFIED_SINCE | RANGE
        )
    };
    if *method == Method::HEAD {
        Wanted::Metadata
    } else if headers.keys().any(may_need_less) {
        Wanted::File
    } else {
        Wanted::Content
    }
}

/// The response to a GET or HEAD request. `path` gives the type of the content.
pub(super) fn respond(request: &Parts, path: &Path, opened: Opened) -> Response<Content> {
    let length = opened.length;
    let validators = Validators::new(length, opened.modified, SystemTime::now());
    match validators.evaluate(&request.headers) {
        Outcome::Failed => return without_content(StatusCode::PRECONDITION_FAILED),
        Outcome::NotModified => {
            let mut response = without_content(StatusCode::NOT_MODIFIED);
            add_validators(response.headers_mut(), &validators);
            return response;
        }
        Outcome::Proceed => {}
    }
    let (status, first, length_sent) = match selection(request, &validators, length) {
        Selection::Whole => (StatusCode::OK, 0, length),
        Selection::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Selection::Unsatisfiable => {
            let mut response = without_content(StatusCode::RANGE_NOT_SATISFIABLE);
            let headers = response.headers_mut();
            headers.insert(CONTENT_RANGE, header(format!("bytes */{length}")));
            return response;
        }
    };
    let content = if request.method == Method::HEAD {
        Content::EMPTY
    } else {
        Content::part(opened, first, length_sent)
    };
    let mut response = Response::new(content);
    *response.status_mut() = status;
    *response.headers_mut() = headers(path, length_sent, &validators);
    if status == StatusCode::PARTIAL_CONTENT {
        let last = first + length_sent - 1;
        let range = format!("bytes {first}-{last}/{length}");
        response.headers_mut().insert(CONTENT_RANGE, header(range));
    }
    response
}

/// The headers of a response with content of this length.
pub(super) fn headers(path: &Path, length: u64, validators: &Validators) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(MAX_HEADERS);
    headers.insert(CONTENT_TYPE, content_type(path));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    add_validators(&mut headers, validators);
    headers
}

/// The part of the file that a request asks for. Only GET has ranges (RFC 9110, 14.2).
fn selection(request: &Parts, validators: &Validators, length: u64) -> Selection {
    let mut ranges = request.headers.get_all(RANGE).iter();
    match (ranges.next(), ranges.next()) {
        (Some(range), None)
            if request.method == Method::GET && validators.matches_if_range(&request.headers) =>
        {
            range
                .to_str()
                .map_or(Selection::Whole, |range| range::select(range, length))
        }
        _ => Selection::Whole,
    }
}

fn without_content(status: StatusCode) -> Response<Content> {
    let mut response = Response::new(Content::EMPTY);
    *response.status_mut() = status;
    response
}

fn add_validators(headers: &mut HeaderMap, validators: &Validators) {
    headers.insert(ETAG, header(validators.etag.clone()));
    if let Some(modified) = validators.last_modified {
        headers.insert(LAST_MODIFIED, header(httpdate::fmt_http_date(modified)));
    }
}

fn content_type(path: &Path) -> HeaderValue {
    let known = mime_guess::from_path(path).first_raw();
    HeaderValue::from_static(known.unwrap_or("application/octet-stream"))
}

fn header(value: String) -> HeaderValue {
    HeaderValue::try_from(value).expect("digits, letters and punctuation of ASCII")
}
