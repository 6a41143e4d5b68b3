//! Why an upstream gave no response, and what that means for the client, the metrics and the log.

use http::StatusCode;
use prometheus::IntCounter;

use crate::serve::metrics::UpstreamResults;

/// Why an upstream gave no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No server accepts a connection.
    Unreachable,
    /// The connection ended before a response.
    Closed,
    /// The response is not HTTP, or its framing cannot be forwarded.
    Invalid,
    /// The upstream sent nothing for `response-timeout`.
    Silent,
    /// The client did not send its complete request.
    Client,
    /// The client sent no byte of its request's body for `connection.body-timeout`.
    Stalled,
    /// The slot of the request went to a source with fewer slots.
    Displaced,
}

impl Failure {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::Unreachable | Self::Closed | Self::Invalid => StatusCode::BAD_GATEWAY,
            Self::Silent => StatusCode::GATEWAY_TIMEOUT,
            Self::Client => StatusCode::BAD_REQUEST,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::Displaced => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(super) const fn counter(self, results: &UpstreamResults) -> &IntCounter {
        match self {
            Self::Unreachable => &results.unreachable,
            Self::Closed => &results.closed,
            Self::Invalid => &results.invalid,
            Self::Silent => &results.timeout,
            Self::Client => &results.abandoned,
            Self::Stalled => &results.stalled,
            Self::Displaced => &results.displaced,
        }
    }

    /// True if the upstream caused the failure.
    pub(super) const fn is_of_upstream(self) -> bool {
        !matches!(self, Self::Client | Self::Stalled | Self::Displaced)
    }

    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Unreachable => "no server accepts a connection",
            Self::Closed => "it closes the connection before it answers",
            Self::Invalid => "its answer is not HTTP, or cannot be forwarded",
            Self::Silent => "it sent nothing within response-timeout",
            Self::Client => "the client closed the connection",
            Self::Stalled => "the client stopped sending",
            Self::Displaced => "another client needed the slot",
        }
    }
}
