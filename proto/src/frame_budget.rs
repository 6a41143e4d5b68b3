//! Limits the HTTP/2 frames of a client that bring no work: PING, SETTINGS, PRIORITY, WINDOW_UPDATE,
//! RST_STREAM, empty DATA, and frames of unknown types (RFC 9113,
//! [10.5](https://www.rfc-editor.org/rfc/rfc9113#section-10.5)).
//!
//! [`FrameBudget`] reads the frame headers of both directions. Requests, responses and data refill the
//! budget. [`FrameBudget`] parses no payload; an HTTP library must check the frames.

use std::time::Duration;

/// Bytes that a client sends before its first frame.
const PREFACE: u32 = 24;

/// The frames without work that a client may send at once.
const BURST: u64 = 1000;

/// The frames without work that each second allows, even without a request.
const PER_SECOND: u64 = 10;

/// The frames without work that each request allows. Browsers send PRIORITY and WINDOW_UPDATE frames
/// with requests.
const PER_REQUEST: u64 = 50;

/// The frames without work that each frame of a response allows. Simple clients send two window updates
/// and a PING for each frame.
const PER_RESPONSE_FRAME: u64 = 10;

/// The bytes of a request's body that allow one more frame without work.
const BYTES_PER_FRAME: u64 = 1024;

const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
/// The type of the frame that continues a block of headers.
const CONTINUATION: u8 = 9;

/// The error code of a client that sends too much (RFC 9113, 7).
const ENHANCE_YOUR_CALM: u32 = 11;

/// The client sent more frames without work than its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// The budget of one connection.
#[derive(Debug)]
pub struct FrameBudget {
    received: FrameReader,
    sent: FrameReader,
    /// The number of frames without work that the client may still send.
    left: u64,
    /// When the budget was last refilled by time, since the start of the connection.
    refilled: Duration,
    /// The highest stream that the client has opened.
    last_stream: u32,
    /// True if a request, a response or data passed since the last call of [`Self::take_work`].
    worked: bool,
}

impl FrameBudget {
    /// The budget of a new connection.
    #[must_use]
    pub fn new() -> Self {
        Self {
            received: FrameReader::skip(PREFACE),
            sent: FrameReader::default(),
            left: BURST,
            refilled: Duration::ZERO,
            last_stream: 0,
            worked: false,
        }
    }

    /// Counts bytes from the client. `now`: the time since the start of the connection.
    ///
    /// # Errors
    /// The budget is exhausted. The connection must end, and these bytes must be dropped.
    pub fn receive(&mut self, mut bytes: &[u8], now: Duration) -> Result<(), Exhausted> {
        let mut result = Ok(());
        while let Some(frame) = self.received.next(&mut bytes) {
            match frame.kind {
                HEADERS => {
                    self.last_stream = self.last_stream.max(frame.stream);
                    self.add(PER_REQUEST);
                }
                DATA if frame.len > 0 => self.add(u64::from(frame.len) / BYTES_PER_FRAME),
                // The HTTP library limits the length of a block of headers.
                CONTINUATION if frame.len > 0 => {}
                _ => result = result.and(self.take_one(now)),
            }
        }
        result
    }

    /// Counts bytes to the client.
    pub fn send(&mut self, mut bytes: &[u8]) {
        while let Some(frame) = self.sent.next(&mut bytes) {
            if matches!(frame.kind, DATA | HEADERS) && frame.len > 0 {
                self.add(PER_RESPONSE_FRAME);
            }
        }
    }

    /// True if a request, a response or data passed since the last call.
    pub fn take_work(&mut self) -> bool {
        std::mem::take(&mut self.worked)
    }

    /// The GOAWAY frame with the code `ENHANCE_YOUR_CALM`. `None` if the last frame to the client is
    /// incomplete.
    #[must_use]
    pub fn goaway(&self) -> Option<[u8; FRAME_HEADER + 8]> {
        if !self.sent.is_between_frames() {
            return None;
        }
        let mut frame = [0; FRAME_HEADER + 8];
        frame[2] = 8;
        frame[3] = GOAWAY;
        frame[9..13].copy_from_slice(&self.last_stream.to_be_bytes());
        frame[13..].copy_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
        Some(frame)
    }

    const fn add(&mut self, frames: u64) {
        self.left += frames;
        self.worked = true;
    }

    fn take_one(&mut self, now: Duration) -> Result<(), Exhausted> {
        if self.left == 0 {
            let since = now.saturating_sub(self.refilled).as_secs_f64();
            self.left = ((since * PER_SECOND as f64) as u64).min(BURST);
            self.refilled = now;
        }
        self.left = self.left.checked_sub(1).ok_or(Exhausted)?;
        Ok(())
    }
}

impl Default for FrameBudget {
    fn default() -> Self {
        Self::new()
    }
}

/// Finds the frame headers in a stream of bytes.
#[derive(Debug, Default)]
struct FrameReader {
    header: [u8; FRAME_HEADER],
    /// How many bytes of the header have come.
    filled: usize,
    /// How many bytes come before the next header.
    to_skip: u32,
}

/// The header of a frame (RFC 9113, 4.1).
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    /// The length of the payload.
    len: u32,
    stream: u32,
}

impl FrameReader {
    fn skip(bytes: u32) -> Self {
        Self {
            to_skip: bytes,
            ..Self::default()
        }
    }

    /// Takes bytes until the end of the next frame header. `None` if the bytes end before that.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let skipped = bytes.len().min(self.to_skip as usize);
        self.to_skip -= skipped as u32;
        let taken = (bytes.len() - skipped).min(FRAME_HEADER - self.filled);
        let part = &bytes[skipped..skipped + taken];
        self.header[self.filled..self.filled + taken].copy_from_slice(part);
        self.filled += taken;
        *bytes = &bytes[skipped + taken..];
        if self.filled < FRAME_HEADER {
            return None;
        }
        let [a, b, c, kind, _flags, stream @ ..] = self.header;
        let len = u32::from_be_bytes([0, a, b, c]);
        self.filled = 0;
        self.to_skip = len;
        Some(Frame {
            kind,
            len,
            // The first bit is reserved.
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
        })
    }

    const fn is_between_frames(&self) -> bool {
        self.filled == 0 && self.to_skip == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;
    const START: Duration = Duration::ZERO;

    fn frame(kind: u8, stream: u32, len: u32) -> Vec<u8> {
        let mut frame = len.to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0]);
        frame.extend(stream.to_be_bytes());
        frame.resize(FRAME_HEADER + len as usize, 7);
        frame
    }

    fn after_preface() -> FrameBudget {
        let mut budget = FrameBudget::new();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        budget.receive(preface, START).expect("a new budget");
        budget
    }

    /// How many copies of this frame the budget accepts.
    fn accepted(budget: &mut FrameBudget, frame: &[u8], now: Duration) -> u64 {
        (0..)
            .find(|_| budget.receive(frame, now) == Err(Exhausted))
            .expect("a limit")
    }

    #[test]
    fn frames_without_work_have_a_limit() {
        for (kind, len) in [
            (PING, 8),
            (WINDOW_UPDATE, 4),
            (2, 5),
            (3, 4),
            (4, 0),
            (0xfa, 100),
            (DATA, 0),
            (CONTINUATION, 0),
        ] {
            let mut budget = after_preface();
            let flood = frame(kind, 1, len);
            assert_eq!(accepted(&mut budget, &flood, START), BURST, "type {kind}");
        }
    }

    #[test]
    fn requests_and_data_refill_the_budget() {
        let mut budget = after_preface();
        let ping = frame(PING, 0, 8);
        assert_eq!(accepted(&mut budget, &ping, START), BURST);
        budget.receive(&frame(HEADERS, 1, 20), START).expect("work");
        assert_eq!(accepted(&mut budget, &ping, START), PER_REQUEST);
        budget.receive(&frame(DATA, 1, 4096), START).expect("work");
        assert_eq!(accepted(&mut budget, &ping, START), 4);
        budget.send(&frame(HEADERS, 1, 20));
        budget.send(&frame(DATA, 1, 1));
        assert_eq!(accepted(&mut budget, &ping, START), 2 * PER_RESPONSE_FRAME);
        assert!(budget.take_work());
        // The answers to the flood are no work.
        budget.send(&frame(PING, 0, 8));
        budget.send(&frame(4, 0, 0));
        assert_eq!(accepted(&mut budget, &ping, START), 0);
        assert!(!budget.take_work());
    }

    #[test]
    fn a_client_that_acknowledges_each_frame_never_exhausts_the_budget() {
        let mut budget = after_preface();
        for _ in 0..100_000 {
            budget.send(&frame(DATA, 1, 10));
            for update in [frame(WINDOW_UPDATE, 0, 4), frame(WINDOW_UPDATE, 1, 4)] {
                assert_eq!(budget.receive(&update, START), Ok(()));
            }
        }
    }

    #[test]
    fn time_refills_the_budget_up_to_a_burst() {
        let mut budget = after_preface();
        let ping = frame(PING, 0, 8);
        assert_eq!(accepted(&mut budget, &ping, START), BURST);
        let mut now = Duration::from_secs(3);
        assert_eq!(accepted(&mut budget, &ping, now), 3 * PER_SECOND);
        now += Duration::from_secs(1_000_000);
        assert_eq!(accepted(&mut budget, &ping, now), BURST);
        // A client may send one PING each second for ever.
        for second in 0..10_000 {
            let now = now + Duration::from_secs(second);
            assert_eq!(budget.receive(&ping, now).is_ok(), second > 0);
        }
    }

    #[test]
    fn goaway_names_the_last_stream_and_waits_for_the_end_of_a_frame() {
        let mut budget = after_preface();
        for stream in [1, 5, 3] {
            let headers = frame(HEADERS, stream, 9);
            budget.receive(&headers, START).expect("work");
        }
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 11];
        assert_eq!(budget.goaway(), Some(goaway));
        let sent = frame(DATA, 1, 2);
        for end in 1..sent.len() {
            budget.send(&sent[end - 1..end]);
            assert_eq!(budget.goaway(), None);
        }
        budget.send(&sent[sent.len() - 1..]);
        assert_eq!(budget.goaway(), Some(goaway));
    }

    proptest! {
        #[test]
        fn splits_change_nothing(
            frames in prop::collection::vec((0u8..12, 0u32..5, 0u32..40), 0..40),
            size in 1usize..50,
        ) {
            let bytes: Vec<u8> = frames
                .iter()
                .flat_map(|(kind, stream, len)| frame(*kind, *stream, *len))
                .collect();
            let mut whole = after_preface();
            let mut split = after_preface();
            prop_assert_eq!(whole.receive(&bytes, START), Ok(()));
            whole.send(&bytes);
            for part in bytes.chunks(size) {
                prop_assert_eq!(split.receive(part, START), Ok(()));
                split.send(part);
            }
            prop_assert_eq!(whole.left, split.left);
            prop_assert_eq!(whole.last_stream, split.last_stream);
            prop_assert_eq!(whole.goaway(), split.goaway());
        }
    }
}
