//! A large file as the answer to a request of HTTP/1.1. hyper does not send it, because hyper cannot send a file
//! without a copy.

use std::fmt::Write as _;
use std::time::SystemTime;

use http::header::{CONNECTION, DATE};
use http::response::Parts;
use http::{Request, Version};
use hyper::body::Body;
use sessile_proto::verdict::EarlyData;

use super::files::FileStream;
use crate::tls::Handshake;

/// The smallest content that is sent without hyper, in bytes.
const MIN_LENGTH: u64 = 64 * 1024;

/// A response with the content of a large file.
pub(super) struct LargeFile {
    head: Parts,
    pub(super) content: FileStream,
    /// True if the connection ends after this response.
    pub(super) is_last: bool,
}

/// True if the answer to this request may be sent without hyper.
///
/// hyper reads the content of requests, and knows the rules of HTTP/1.0. With early data, the rest of the handshake
/// runs in the stream.
pub(super) fn may_answer(request: &Request<impl Body>, handshake: &Handshake) -> bool {
    request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && handshake.early_data != EarlyData::Accepted
}

/// True if a file is so large that it is sent without hyper.
pub(super) const fn is_large(content: &FileStream) -> bool {
    content.left() >= MIN_LENGTH
}

impl LargeFile {
    /// `asks_for_end`: the client ends the connection after this response.
    pub(super) fn new(head: Parts, content: FileStream, asks_for_end: bool) -> Self {
        Self {
            is_last: asks_for_end || head.headers.contains_key(CONNECTION),
            head,
            content,
        }
    }

    /// Ends the connection after this file.
    pub(super) fn ending_connection(mut self) -> Self {
        self.is_last = true;
        self
    }

    /// The bytes of the head.
    pub(super) fn encode_head(&self) -> Vec<u8> {
        let Parts {
            status, headers, ..
        } = &self.head;
        let mut start = String::new();
        let reason = status.canonical_reason().unwrap_or_default();
        let _ = write!(start, "HTTP/1.1 {} {reason}\r\n", status.as_str());
        let mut head = start.into_bytes();
        for (name, value) in headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        if !headers.contains_key(DATE) {
            let date = httpdate::fmt_http_date(SystemTime::now());
            head.extend_from_slice(format!("date: {date}\r\n").as_bytes());
        }
        if self.is_last && !headers.contains_key(CONNECTION) {
            head.extend_from_slice(b"connection: close\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}
