//! The response's body, which goes to the client. The body fails if the upstream sends nothing for too long.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, SizeHint};
use sessile_proto::chunked_body::{self, ChunkedBody};
use sessile_proto::response_head::BodyLength;
use tokio::time::timeout;

use super::connections::{Connection, Connections};
use super::silence::Silence;
use super::slots::UpstreamSlot;
use super::upload::{Upload, UploadError};
use crate::serve::files::FileStream;

/// How long an upload may go on after its response is complete.
const ENDING_TIMEOUT: Duration = Duration::from_secs(60);

/// A response's body: complete in memory, or as it arrives. The type has room for a file too, so that all
/// responses of the server have the same type.
pub(super) type ResponseBody = Either<Full<Bytes>, Either<FileStream, Pin<Box<Download>>>>;

/// A response's body, which is sent to the client.
pub(in crate::serve) struct Download {
    rest: Rest,
    /// A piece that arrived with the head of the response.
    first: Option<Frame<Bytes>>,
    /// `None` after the last byte of the response, and after an error.
    link: Option<Link>,
    silence: Silence,
    slot: UpstreamSlot,
}

/// The connection that a response arrives on.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) connections: Rc<Connections>,
    /// The rest of the request.
    pub(super) upload: Upload,
    /// True if the connection can take another request after the response.
    pub(super) keeps_connection: bool,
}

/// The part of a body that was not taken.
enum Rest {
    Complete,
    Bytes(u64),
    Chunked(ChunkedBody),
    UntilClose,
}

impl Download {
    pub(super) fn new(
        length: BodyLength,
        link: Link,
        silence: Silence,
        slot: UpstreamSlot,
    ) -> Self {
        Self {
            rest: Rest::from(length),
            first: None,
            link: Some(link),
            silence,
            slot,
        }
    }

    /// The body of the response. If the body arrived with the head, the request ends here.
    pub(super) fn into_body(mut self) -> ResponseBody {
        self.silence.end();
        // An error is found again when the body is sent.
        let piece = self.take_piece().ok().flatten();
        match piece.map(Frame::into_data) {
            Some(Ok(data)) if self.link.is_none() => return Either::Left(Full::new(data)),
            None if self.link.is_none() => return Either::Left(Full::default()),
            Some(Ok(data)) => self.first = Some(Frame::data(data)),
            Some(Err(trailers)) => self.first = Some(trailers),
            None => {}
        }
        Either::Right(Either::Right(Box::pin(self)))
    }

    /// Takes a piece of the received bytes.
    fn take_piece(&mut self) -> io::Result<Option<Frame<Bytes>>> {
        let Some(link) = &mut self.link else {
            return Ok(None);
        };
        let received = &mut link.connection.received;
        let piece = self.rest.take(received)?;
        // The end of the body is often behind its last piece. An error is found again at the next piece.
        let _ = self.rest.skip_framing(received);
        if self.rest.is_complete() {
            self.slot.end(|results| &results.ok);
            if let Some(link) = self.link.take() {
                link.end();
            }
        }
        Ok(piece)
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Frame<Bytes>>>> {
        loop {
            if let Some(link) = &mut self.link {
                link.poll_upload(cx)?;
            }
            let piece = self.take_piece()?;
            let Some(link) = &mut self.link else {
                return Poll::Ready(Ok(piece));
            };
            if piece.is_some() {
                return Poll::Ready(Ok(piece));
            }
            let Poll::Ready(received) = link.connection.poll_receive(cx) else {
                self.silence.go_on();
                ready!(self.silence.poll_limit(&mut link.connection, cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            };
            if received? == 0 {
                self.rest.close()?;
            }
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        let piece = ready!(this.poll_piece(cx));
        this.silence.end();
        if piece.is_err() {
            this.link = None;
            this.slot.end(|results| &results.cut);
        }
        Poll::Ready(piece.transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_complete()
    }

    fn size_hint(&self) -> SizeHint {
        let Some(rest) = self.rest.len() else {
            return SizeHint::default();
        };
        let first = self.first.as_ref().and_then(Frame::data_ref);
        SizeHint::with_exact(rest + first.map_or(0, |data| data.len() as u64))
    }
}

impl Link {
    /// Sends more of the request.
    ///
    /// # Errors
    /// The client did not send the rest of its request.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.upload.poll_send(&mut self.connection.io, None, cx) {
            Poll::Ready(Err(UploadError::Client(failure))) => {
                Err(io::Error::other(failure.reason()))
            }
            // The upstream needs no more of the request.
            Poll::Ready(Err(UploadError::Upstream) | Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Ends a request whose response is complete.
    fn end(self) {
        if self.upload.is_complete() {
            if self.keeps_connection {
                self.connections.keep(self.connection);
            }
        } else if self.upload.is_open() {
            tokio::task::spawn_local(self.send_rest());
        }
    }

    /// Sends the rest of the request, and closes the connection.
    async fn send_rest(mut self) {
        let io = &mut self.connection.io;
        let sent = poll_fn(|cx| self.upload.poll_send(io, None, cx));
        // The response is complete, so an error has no effect.
        let _ = timeout(ENDING_TIMEOUT, sent).await;
    }
}

impl From<BodyLength> for Rest {
    fn from(length: BodyLength) -> Self {
        match length {
            BodyLength::Empty => Self::Complete,
            BodyLength::Bytes(left) => Self::Bytes(left),
            BodyLength::Chunked => Self::Chunked(ChunkedBody::new()),
            BodyLength::UntilClose => Self::UntilClose,
        }
    }
}

impl Rest {
    /// Takes the next piece. `None` if more bytes are needed, or if the body is complete.
    fn take(&mut self, received: &mut BytesMut) -> io::Result<Option<Frame<Bytes>>> {
        self.skip_framing(received)?;
        let available = received.len();
        let taken = match self {
            Self::Complete => 0,
            Self::Bytes(left) => {
                let taken = usize::try_from(*left).map_or(available, |left| left.min(available));
                *left -= taken as u64;
                if *left == 0 {
                    *self = Self::Complete;
                }
                taken
            }
            Self::Chunked(body) => {
                if let Some(len) = body.take_trailers() {
                    return trailers(&received.split_to(len)).map(Some);
                }
                body.take_data(available)
            }
            Self::UntilClose => available,
        };
        let piece = (taken > 0).then(|| Frame::data(received.split_to(taken).freeze()));
        Ok(piece)
    }

    /// Removes received bytes in front of the next data.
    fn skip_framing(&mut self, received: &mut BytesMut) -> io::Result<()> {
        if let Self::Chunked(body) = self {
            let skipped = body.skip_framing(received).map_err(io::Error::other)?;
            received.advance(skipped);
        }
        Ok(())
    }

    /// Ends the body, because the upstream has closed its side.
    ///
    /// # Errors
    /// The body is incomplete.
    fn close(&mut self) -> io::Result<()> {
        if matches!(self, Self::UntilClose) {
            *self = Self::Complete;
        }
        if self.is_complete() {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    const fn is_complete(&self) -> bool {
        match self {
            Self::Complete => true,
            Self::Chunked(body) => body.is_complete(),
            Self::Bytes(_) | Self::UntilClose => false,
        }
    }

    /// The number of bytes, if it is known.
    const fn len(&self) -> Option<u64> {
        match self {
            Self::Complete => Some(0),
            Self::Bytes(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }
}

fn trailers(bytes: &[u8]) -> io::Result<Frame<Bytes>> {
    let mut trailers = HeaderMap::new();
    for field in chunked_body::parse_trailers(bytes).map_err(io::Error::other)? {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(io::Error::other)?;
        let value = HeaderValue::from_bytes(field.value).map_err(io::Error::other)?;
        trailers.append(name, value);
    }
    Ok(Frame::trailers(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data that can be taken of these bytes, and the bytes that are left.
    fn take_all(rest: &mut Rest, bytes: &str) -> io::Result<(String, String)> {
        let mut received = BytesMut::from(bytes);
        let mut data = String::new();
        while let Some(piece) = rest.take(&mut received)? {
            let piece = piece.into_data().expect("data");
            data.push_str(std::str::from_utf8(&piece).expect("text"));
        }
        let left = String::from_utf8(received.into()).expect("text");
        Ok((data, left))
    }

    #[test]
    fn a_body_takes_no_byte_behind_its_end() {
        for (length, bytes, data, left) in [
            (BodyLength::Empty, "HTTP", "", "HTTP"),
            (BodyLength::Bytes(2), "okHTTP", "ok", "HTTP"),
            (
                BodyLength::Chunked,
                "2\r\nok\r\n0\r\n\r\nHTTP",
                "ok",
                "HTTP",
            ),
        ] {
            let mut rest = Rest::from(length);
            let taken = take_all(&mut rest, bytes).expect("valid");
            assert_eq!(taken, (data.to_owned(), left.to_owned()));
            assert!(rest.is_complete() && rest.close().is_ok());
        }
    }

    #[test]
    fn only_a_body_without_a_length_ends_with_the_connection() {
        for (length, bytes) in [
            (BodyLength::Bytes(3), "ok"),
            (BodyLength::Chunked, "2\r\nok"),
            (BodyLength::Chunked, "2\r\nok\r\n0\r\n"),
        ] {
            let mut rest = Rest::from(length);
            let (data, _) = take_all(&mut rest, bytes).expect("valid");
            assert_eq!(data, "ok");
            assert!(!rest.is_complete());
            assert!(rest.close().is_err(), "{length:?}");
        }
        let mut rest = Rest::from(BodyLength::UntilClose);
        assert_eq!(take_all(&mut rest, "ok").expect("valid").0, "ok");
        assert!(!rest.is_complete() && rest.close().is_ok() && rest.is_complete());
    }

    #[test]
    fn an_error_behind_data_is_found_again() {
        let mut rest = Rest::from(BodyLength::Chunked);
        let mut received = BytesMut::from("2\r\nok\r\nx\r\n");
        assert!(rest.take(&mut received).expect("data").is_some());
        for _ in 0..2 {
            // The line end behind the data is removed first.
            let _ = rest.skip_framing(&mut received);
        }
        assert!(rest.take(&mut received).is_err());
    }
}
