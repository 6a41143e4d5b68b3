//! The response's body, which goes to the client. The body fails if the upstream sends nothing for too long.

use std::future::{Future as _, poll_fn};
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
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::connections::{Connection, Connections, Reader};
use super::silence::Silence;
use super::slots::UpstreamSlot;
use super::upload::{Upload, UploadError};
use crate::serve::files::FileStream;

/// How long an upload may go on after its response is complete.
const ENDING_TIMEOUT: Duration = Duration::from_secs(60);

/// A response's body: complete in memory, or as it arrives. The type has a case for files, because all
/// responses of the server have the same type.
pub(super) type ResponseBody = Either<Full<Bytes>, Either<FileStream, Pin<Box<Download>>>>;

/// A response's body, which is sent to the client.
pub(in crate::serve) struct Download {
    rest: Rest,
    /// A piece that arrived with the head of the response, or an error in such a piece.
    first: Option<io::Result<Frame<Bytes>>>,
    /// `None` after the last byte of the response, and after an error.
    link: Option<Link>,
    silence: Silence,
    slot: UpstreamSlot,
}

/// The connection that a response arrives on. The connection closes if the link is dropped.
pub(super) struct Link {
    reader: Reader,
    request: RequestState,
    connections: Rc<Connections>,
    /// True if the connection can take another request after the response.
    keeps_connection: bool,
}

/// How much of the request the upstream has.
enum RequestState {
    /// The upstream has the complete request.
    Sent(OwnedWriteHalf),
    /// The upstream takes no more of the request.
    Refused,
    /// A task sends the rest of the request, even while the client does not read the response.
    Sending(AbortOnDropHandle<Result<OwnedWriteHalf, UploadError>>),
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
        match self.take_piece() {
            Ok(None) if self.link.is_none() => return Either::Left(Full::default()),
            Ok(Some(piece)) if self.link.is_none() => match piece.into_data() {
                Ok(data) => return Either::Left(Full::new(data)),
                Err(trailers) => self.first = Some(Ok(trailers)),
            },
            piece => self.first = piece.transpose(),
        }
        Either::Right(Either::Right(Box::pin(self)))
    }

    /// Takes a piece of the received bytes.
    fn take_piece(&mut self) -> io::Result<Option<Frame<Bytes>>> {
        let Some(link) = &mut self.link else {
            return Ok(None);
        };
        let received = &mut link.reader.received;
        let piece = self.rest.take(received)?;
        // The end of the body is often behind its last piece.
        let framing = self.rest.skip_framing(received);
        if piece.is_none() {
            framing?;
        }
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
                link.poll_request(cx)?;
            } else if !self.rest.is_complete() {
                // The error was returned before.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let piece = self.take_piece()?;
            let Some(link) = &mut self.link else {
                return Poll::Ready(Ok(piece));
            };
            if piece.is_some() {
                return Poll::Ready(Ok(piece));
            }
            let Poll::Ready(received) = link.reader.poll_receive(cx) else {
                self.silence.go_on();
                ready!(self.silence.poll_limit(&mut link.reader, cx));
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
        let piece = match this.first.take() {
            Some(first) => first.map(Some),
            None => ready!(this.poll_piece(cx)),
        };
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
        let first = self.first.as_ref().and_then(|first| first.as_ref().ok());
        let first = first.and_then(Frame::data_ref);
        SizeHint::with_exact(rest + first.map_or(0, |data| data.len() as u64))
    }
}

impl Link {
    /// Begins a task for the rest of the request. `keeps_connection`: the upstream keeps the connection.
    pub(super) fn new(
        connection: Connection,
        connections: Rc<Connections>,
        upload: Upload,
        keeps_connection: bool,
    ) -> Self {
        let Connection { reader, writer } = connection;
        let request = if upload.is_complete() {
            RequestState::Sent(writer)
        } else if upload.is_open() {
            let task = tokio::task::spawn_local(send_rest(upload, writer));
            RequestState::Sending(AbortOnDropHandle::new(task))
        } else {
            RequestState::Refused
        };
        Self {
            reader,
            request,
            connections,
            keeps_connection,
        }
    }

    /// Notes the end of the task that sends the rest of the request.
    ///
    /// # Errors
    /// The client did not send the rest of its request.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let RequestState::Sending(task) = &mut self.request else {
            return Ok(());
        };
        let Poll::Ready(sent) = Pin::new(task).poll(cx) else {
            return Ok(());
        };
        self.request = match sent.map_err(io::Error::other)? {
            Ok(writer) => RequestState::Sent(writer),
            Err(UploadError::Client(failure)) => return Err(io::Error::other(failure.reason())),
            Err(UploadError::Upstream) => RequestState::Refused,
        };
        Ok(())
    }

    /// Ends a request whose response is complete.
    fn end(self) {
        let Self {
            reader,
            request,
            connections,
            keeps_connection,
        } = self;
        match request {
            RequestState::Sent(writer) if keeps_connection => {
                connections.keep(Connection { reader, writer });
            }
            RequestState::Sent(_) | RequestState::Refused => {}
            RequestState::Sending(task) => {
                tokio::task::spawn_local(async {
                    // The response is complete, so an error has no effect.
                    let _ = timeout(ENDING_TIMEOUT, task).await;
                    // Some upstreams drop a request if the connection closes, so it closes only now.
                    drop(reader);
                });
            }
        }
    }
}

/// Sends the rest of a request whose response has begun.
async fn send_rest(
    mut upload: Upload,
    mut writer: OwnedWriteHalf,
) -> Result<OwnedWriteHalf, UploadError> {
    poll_fn(|cx| upload.poll_send(&mut writer, None, cx)).await?;
    Ok(writer)
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
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::task::LocalSet;

    use super::super::connections::tests::{connect, upstream};
    use super::super::slots::SlotPool;
    use super::*;
    use crate::serve::metrics::UpstreamResults;
    use crate::serve::pending_upstreams::PendingUpstreams;
    use crate::serve::request_task::RequestEnd;
    use crate::serve::request_task::tests::metrics;
    use sessile_proto::affinity::Source;
    use tokio::time::Instant;

    /// A response that an upstream has begun.
    struct Begun {
        download: Download,
        upstream: TcpStream,
        results: UpstreamResults,
        connections: Rc<Connections>,
    }

    impl Begun {
        /// `received`: the bytes that arrived with the head.
        async fn new(length: BodyLength, received: &str) -> Self {
            let (listener, connections) = upstream().await;
            let (connection, upstream) = connect(&listener, &connections).await;
            let Connection { mut reader, writer } = connection;
            reader.received.extend_from_slice(received.as_bytes());
            let link = Link {
                reader,
                request: RequestState::Sent(writer),
                connections: Rc::clone(&connections),
                keeps_connection: true,
            };
            let metrics = metrics();
            let pool = SlotPool::new(1, metrics.upstream("app"));
            let results = metrics.upstream("app");
            let source = Source::of([127, 0, 0, 1].into());
            let slot = pool.take(source, RequestEnd::default()).expect("a slot");
            let pending = PendingUpstreams::new();
            let silence = Silence::begin(Instant::now(), Duration::from_secs(600), &pending);
            let download = Download::new(length, link, silence, slot);
            Self {
                download,
                upstream,
                results,
                connections,
            }
        }
    }

    #[tokio::test]
    async fn malformed_trailers_without_data_cut_the_response() {
        let received = "0\r\nno colon\r\n\r\n";
        let begun = Begun::new(BodyLength::Chunked, received).await;
        let mut body = begun.download.into_body();
        assert!(!body.is_end_stream());
        assert!(body.frame().await.expect("a frame").is_err());
        assert_eq!((begun.results.cut.get(), begun.results.ok.get()), (1, 0));
        assert!(begun.connections.take_idle(Instant::now()).is_none());
    }

    #[tokio::test]
    async fn an_error_behind_a_line_end_is_found_at_once() {
        let mut begun = Begun::new(BodyLength::Chunked, "2\r\nok").await;
        let mut body = begun.download.into_body();
        let data = body.frame().await.expect("a frame").expect("data");
        assert_eq!(data.into_data().expect("data"), "ok");
        let line_end_and_error = b"\r\nx\r\n";
        begun
            .upstream
            .write_all(line_end_and_error)
            .await
            .expect("an open connection");
        // Without another byte, only the limit of the silence would wake the response.
        let next = timeout(Duration::from_secs(60), body.frame()).await;
        let error = next
            .expect("no wait")
            .expect("a frame")
            .expect_err("an error");
        assert_eq!(
            error.to_string(),
            chunked_body::Error::Malformed.to_string()
        );
        // A body that failed never looks complete.
        assert!(body.frame().await.expect("a frame").is_err());
    }

    #[tokio::test]
    async fn a_response_that_is_dropped_closes_its_connection() {
        for received in ["", "a part", "all of it!"] {
            let mut begun = Begun::new(BodyLength::Bytes(11), received).await;
            drop(begun.download.into_body());
            let read = begun.upstream.read(&mut [0]).await;
            assert!(!matches!(read, Ok(1..)), "{read:?}");
            assert!(begun.connections.take_idle(Instant::now()).is_none());
            assert_eq!(begun.results.abandoned.get(), 1);
        }
    }

    #[tokio::test]
    async fn a_response_that_is_complete_keeps_its_connection() {
        let run = async {
            let begun = Begun::new(BodyLength::Bytes(2), "ok").await;
            let body = begun.download.into_body().collect().await.expect("a body");
            assert_eq!(body.to_bytes(), "ok");
            assert!(begun.connections.take_idle(Instant::now()).is_some());
            assert_eq!(begun.results.ok.get(), 1);
        };
        LocalSet::new().run_until(run).await;
    }

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
