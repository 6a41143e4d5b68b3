//! Sends a request over a connection, and receives the head of the response. Both happen at the same time,
//! because an upstream may answer before it has the complete request.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use http::Response;
use sessile_proto::response_head::{self, BodyLength, Error};

use super::connections::Connection;
use super::failure::Failure;
use super::head;
use super::silence::Silence;
use super::upload::{Upload, UploadError};

/// Most informational responses before a response.
const MAX_INFORMATIONAL: usize = 100;

/// The head of a response.
pub(super) struct UpstreamHead {
    pub(super) response: Response<()>,
    pub(super) body: BodyLength,
    /// True if the connection can take another request after the body.
    pub(super) keeps_connection: bool,
}

/// Why a connection gave no response.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection ended before the upstream sent a byte.
    Unanswered,
    Failed(Failure),
}

impl Broken {
    /// The reason for this end of a connection. `is_answered`: the upstream has sent a byte.
    fn of(received: &io::Result<usize>, is_answered: bool) -> Self {
        match received {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Self::Failed(Failure::Silent),
            _ if is_answered => Self::Failed(Failure::Closed),
            _ => Self::Unanswered,
        }
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Unanswered => Self::Closed,
            Broken::Failed(failure) => failure,
        }
    }
}

/// A request on its connection, before the head of the response.
pub(super) struct UpstreamExchange<'r> {
    connection: &'r mut Connection,
    upload: &'r mut Upload,
    silence: &'r mut Silence,
    /// True if the request has the method HEAD.
    is_head: bool,
    /// True if the upstream has sent a byte.
    is_answered: bool,
    /// How many bytes were searched for the end of the head.
    searched: usize,
    /// How many informational responses the upstream has sent.
    informational: usize,
}

impl<'r> UpstreamExchange<'r> {
    pub(super) fn new(
        connection: &'r mut Connection,
        upload: &'r mut Upload,
        silence: &'r mut Silence,
        is_head: bool,
    ) -> Self {
        Self {
            connection,
            upload,
            silence,
            is_head,
            is_answered: false,
            searched: 0,
            informational: 0,
        }
    }

    /// Waits for the head of the response. The rest of the request may be unsent then.
    pub(super) async fn head(mut self) -> Result<UpstreamHead, Broken> {
        poll_fn(|cx| self.poll_head(cx)).await
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<UpstreamHead, Broken>> {
        let writer = &mut self.connection.writer;
        match self.upload.poll_send(writer, Some(self.silence), cx) {
            Poll::Ready(Err(UploadError::Client(failure))) => {
                return Poll::Ready(Err(Broken::Failed(failure)));
            }
            Poll::Ready(Err(UploadError::Upstream)) if self.upload.is_unsent() => {
                return Poll::Ready(Err(Broken::Unanswered));
            }
            // An upstream may answer, and then close before it has the complete request.
            Poll::Ready(Err(UploadError::Upstream) | Ok(())) | Poll::Pending => {}
        }
        while let Poll::Ready(received) = self.connection.reader.poll_receive(cx) {
            if !matches!(received, Ok(1..)) {
                return Poll::Ready(Err(Broken::of(&received, self.is_answered)));
            }
            self.is_answered = true;
            match self.parse() {
                Ok(head) => return Poll::Ready(Ok(head)),
                Err(Error::Incomplete) => {}
                Err(error) => {
                    tracing::debug!(%error, "an upstream's response is refused");
                    return Poll::Ready(Err(Broken::Failed(Failure::Invalid)));
                }
            }
        }
        ready!(self.silence.poll_limit(&mut self.connection.reader, cx));
        Poll::Ready(Err(Broken::Failed(Failure::Silent)))
    }

    /// Parses the head of the response. Skips informational responses (RFC 9110, 15.2).
    fn parse(&mut self) -> Result<UpstreamHead, Error> {
        while self.informational <= MAX_INFORMATIONAL {
            let received = &mut self.connection.reader.received;
            let found = response_head::find_len(received, self.searched);
            self.searched = match found {
                Err(Error::Incomplete) => received.len(),
                _ => 0,
            };
            let bytes = received.split_to(found?).freeze();
            let mut slots = response_head::empty_slots();
            let head = response_head::parse(&bytes, self.is_head, &mut slots)?;
            if !head.is_informational() {
                return Ok(UpstreamHead {
                    response: head::to_client(&head, &bytes).ok_or(Error::Malformed)?,
                    body: head.body,
                    keeps_connection: head.keeps_connection,
                });
            }
            self.informational += 1;
        }
        Err(Error::TooLong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_times_out_is_silent() {
        let timed_out = || Err(io::ErrorKind::TimedOut.into());
        let reset = || Err(io::ErrorKind::ConnectionReset.into());
        for (received, is_answered, failure) in [
            (timed_out(), false, Some(Failure::Silent)),
            (timed_out(), true, Some(Failure::Silent)),
            (reset(), true, Some(Failure::Closed)),
            (Ok(0), true, Some(Failure::Closed)),
            // These requests may be sent again.
            (reset(), false, None),
            (Ok(0), false, None),
        ] {
            let found = match Broken::of(&received, is_answered) {
                Broken::Failed(failure) => Some(failure),
                Broken::Unanswered => None,
            };
            assert_eq!(found, failure, "{received:?} {is_answered}");
        }
    }
}
