//! Decides when an HTTP/1 connection is idle. The request is read, the response is sent, and no byte of the next
//! request has arrived.
//!
//! An idle connection needs no HTTP state. Before that, a connection without its HTTP state could read the rest
//! of a body as a request.

use crate::request_framing::RequestFraming;

/// The progress of an HTTP/1 connection from one request to the next. Each event consumes the state and returns
/// the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// The head of a request has begun, or can have begun. No response is on its way.
    ExpectHead,
    /// A request is being answered.
    ExpectResponseEnd,
    /// The request is being answered, and all output so far is in the socket.
    ExpectResponsePart,
    /// The response is complete. The socket may not have taken all of it.
    ExpectFlush,
    /// The response is sent. The rest of the request's body can follow.
    ExpectRead,
    /// Only the connection itself is left. No byte of the next request has arrived.
    Idle,
    /// The connection ends.
    Closed,
}

impl Exchange {
    /// The head of a request is complete, and the request goes to its handler.
    #[must_use]
    pub const fn request_begun(self) -> Self {
        match self {
            Self::Closed => Self::Closed,
            _ => Self::ExpectResponseEnd,
        }
    }

    /// The handler has ended, and the body of the response is dropped.
    #[must_use]
    pub const fn response_ended(self) -> Self {
        match self {
            Self::ExpectResponseEnd | Self::ExpectResponsePart => Self::ExpectFlush,
            other => other,
        }
    }

    /// All bytes that were written so far are in the socket.
    #[must_use]
    pub const fn flushed(self) -> Self {
        match self {
            Self::ExpectFlush => Self::ExpectRead,
            Self::ExpectResponseEnd => Self::ExpectResponsePart,
            other => other,
        }
    }

    /// The HTTP library writes, or tries to write.
    #[must_use]
    pub const fn write_begun(self) -> Self {
        match self {
            // The library answers a bad request without a handler, so the end of this response is unknown.
            Self::ExpectHead | Self::ExpectRead | Self::ExpectResponsePart | Self::Idle => {
                Self::ExpectResponseEnd
            }
            other => other,
        }
    }

    /// The HTTP library got bytes of the client.
    #[must_use]
    pub const fn received(self) -> Self {
        match self {
            Self::Idle => Self::ExpectHead,
            other => other,
        }
    }

    /// The HTTP library needs more bytes, and there are none. `framing` has followed all bytes so far.
    #[must_use]
    pub const fn read_blocked(self, framing: &RequestFraming) -> Self {
        match self {
            Self::ExpectRead if framing.is_between_requests() => Self::Idle,
            Self::ExpectRead if framing.is_in_body() => Self::ExpectRead,
            Self::ExpectRead => Self::ExpectHead,
            other => other,
        }
    }

    /// The client has closed its side, the connection failed, or the server closes the connection.
    #[must_use]
    pub const fn closed(self) -> Self {
        Self::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::Exchange::*;
    use super::*;

    /// The framing after these bytes.
    fn framing(bytes: &str) -> RequestFraming {
        let mut framing = RequestFraming::new();
        assert_eq!(framing.find_refused(bytes.as_bytes()), None);
        framing
    }

    const GET: &str = "GET / HTTP/1.1\r\n\r\n";

    /// The state after a request without a body was answered.
    fn answered() -> Exchange {
        ExpectHead.request_begun().response_ended().flushed()
    }

    #[test]
    fn a_connection_is_idle_after_the_response_is_sent_and_a_read_found_nothing() {
        assert_eq!(answered().read_blocked(&framing(GET)), Idle);
    }

    #[test]
    fn a_connection_is_not_idle_before_each_condition_holds() {
        let read = framing(GET);
        let begun = ExpectHead.request_begun();
        for early in [
            ExpectHead.flushed(),
            begun,
            begun.flushed(),
            begun.response_ended(),
            // The flush came before the end of the response.
            begun.flushed().response_ended(),
            answered().request_begun(),
            answered().request_begun().flushed(),
            answered().write_begun(),
            answered().write_begun().flushed(),
            answered().closed(),
        ] {
            assert_ne!(early.read_blocked(&read), Idle, "{early:?}");
        }
    }

    #[test]
    fn the_body_of_the_request_must_be_read_to_its_end() {
        let sized = "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n";
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (head, body) in [(sized, "12345"), (chunked, "1\r\na\r\n0\r\nx: y\r\n\r\n")] {
            for end in 0..body.len() {
                let part = framing(&[head, &body[..end]].concat());
                let blocked = answered().read_blocked(&part);
                assert_eq!(blocked, ExpectRead, "{}", &body[..end]);
                let whole = framing(&[head, body].concat());
                assert_eq!(blocked.received().read_blocked(&whole), Idle);
            }
        }
    }

    #[test]
    fn a_head_that_has_begun_excludes_idleness_until_the_next_response() {
        for begun in ["\r", "\r\n", "G", "GET / HTTP/1.1\r\nHost: a\r\n\r"] {
            let part = framing(&[GET, begun].concat());
            let blocked = answered().read_blocked(&part);
            assert_eq!(blocked, ExpectHead, "{begun:?}");
            assert_eq!(blocked.read_blocked(&framing(GET)), ExpectHead);
        }
    }

    #[test]
    fn output_of_an_earlier_response_is_flushed_before_another_writer_may_answer() {
        let pipelined = ExpectHead.request_begun().response_ended().request_begun();
        assert_eq!(pipelined, ExpectResponseEnd);
        assert_eq!(pipelined.write_begun(), ExpectResponseEnd);
        assert_eq!(pipelined.write_begun().flushed(), ExpectResponsePart);
        assert_eq!(pipelined.flushed().write_begun(), ExpectResponseEnd);
        assert_eq!(pipelined.flushed().response_ended(), ExpectFlush);
    }

    #[test]
    fn bytes_and_writes_end_idleness() {
        assert_eq!(Idle.received(), ExpectHead);
        assert_eq!(Idle.write_begun(), ExpectResponseEnd);
        assert_eq!(ExpectHead.write_begun(), ExpectResponseEnd);
        assert_eq!(Idle.request_begun(), ExpectResponseEnd);
    }

    #[test]
    fn a_closed_connection_stays_closed() {
        let closed = Idle.closed();
        let all = closed
            .request_begun()
            .response_ended()
            .flushed()
            .write_begun();
        assert_eq!(all.received().read_blocked(&framing(GET)), Closed);
    }
}
