//! The largest record that a client lets its server send: `max_fragment_length` (RFC 6066, section
//! 4) and `record_size_limit` (RFC 8449). Small devices send these extensions.

use super::{ClientHello, TLS_1_3};
use crate::record::{HEADER_LEN, MAX_PLAINTEXT};

/// The smallest `record_size_limit` that a client may send (RFC 8449, section 4).
const MIN_RECORD_SIZE_LIMIT: u16 = 64;

/// A limit that the protocol does not allow. The server answers with the alert illegal_parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IllegalRecordLimit {
    /// A `max_fragment_length` other than 1 to 4.
    #[error("illegal max_fragment_length {0}: not 1 to 4")]
    MaxFragmentLength(u8),
    /// A `record_size_limit` below 64.
    #[error("illegal record_size_limit {0}: below 64")]
    RecordSizeLimit(u16),
}

impl ClientHello<'_> {
    /// The size in bytes of the largest record that the client accepts in the negotiated version. The
    /// size is that of header and content before encryption. `None` if only the protocol's own limit
    /// holds.
    ///
    /// # Errors
    ///
    /// If the protocol does not allow the limit. If the hello has both extensions, only
    /// `record_size_limit` counts, and the value of `max_fragment_length` does not matter (RFC 8449,
    /// section 5).
    pub fn max_record_size(&self) -> Result<Option<usize>, IllegalRecordLimit> {
        let content = match (self.record_size_limit, self.max_fragment_length) {
            (Some(limit), _) => content_of_record_size_limit(limit, self.negotiated_version())?,
            (None, Some(code)) => content_of_max_fragment_length(code)?,
            (None, None) => return Ok(None),
        };
        Ok((content < MAX_PLAINTEXT).then_some(HEADER_LEN + content))
    }
}

fn content_of_record_size_limit(limit: u16, version: u16) -> Result<usize, IllegalRecordLimit> {
    if limit < MIN_RECORD_SIZE_LIMIT {
        return Err(IllegalRecordLimit::RecordSizeLimit(limit));
    }
    // In TLS 1.3 the limit includes the byte for the content type (RFC 8449, section 4).
    let content_type = usize::from(version >= TLS_1_3);
    Ok(usize::from(limit) - content_type)
}

fn content_of_max_fragment_length(code: u8) -> Result<usize, IllegalRecordLimit> {
    match code {
        1..=4 => Ok(1 << (8 + code)),
        _ => Err(IllegalRecordLimit::MaxFragmentLength(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata::exchange;

    /// The limits for TLS 1.2 and for TLS 1.3, if a client sends these two extensions.
    fn sizes(
        max_fragment_length: Option<u8>,
        record_size_limit: Option<u16>,
    ) -> [Result<Option<usize>, IllegalRecordLimit>; 2] {
        let bytes = exchange("openssl-tls13-full").client;
        let mut hello = ClientHello::parse(&bytes[5..]).expect("a hello");
        hello.max_fragment_length = max_fragment_length;
        hello.record_size_limit = record_size_limit;
        [None, hello.supported_versions].map(|supported_versions| {
            hello.supported_versions = supported_versions;
            hello.max_record_size()
        })
    }

    #[test]
    fn a_client_without_the_extensions_has_no_limit() {
        assert_eq!(sizes(None, None), [Ok(None); 2]);
    }

    #[test]
    fn max_fragment_length_limits_the_content_in_every_version() {
        for (code, content) in [(1, 512), (2, 1024), (3, 2048), (4, 4096)] {
            assert_eq!(sizes(Some(code), None), [Ok(Some(content + 5)); 2]);
        }
    }

    #[test]
    fn an_unknown_max_fragment_length_is_illegal() {
        for code in [0].into_iter().chain(5..=u8::MAX) {
            let illegal = IllegalRecordLimit::MaxFragmentLength(code);
            assert_eq!(sizes(Some(code), None), [Err(illegal); 2]);
        }
    }

    #[test]
    fn record_size_limit_includes_the_content_type_in_tls13() {
        assert_eq!(sizes(None, Some(64)), [Ok(Some(69)), Ok(Some(68))]);
        assert_eq!(sizes(None, Some(512)), [Ok(Some(517)), Ok(Some(516))]);
        let largest = [Ok(Some(16_388)), Ok(Some(16_387))];
        assert_eq!(sizes(None, Some(16_383)), largest);
        assert_eq!(sizes(None, Some(16_384)), [Ok(None), Ok(Some(16_388))]);
        // GnuTLS sends the first value by default. Only a future version could use the second value.
        assert_eq!(sizes(None, Some(16_385)), [Ok(None); 2]);
        assert_eq!(sizes(None, Some(u16::MAX)), [Ok(None); 2]);
    }

    #[test]
    fn a_record_size_limit_below_64_is_illegal() {
        for limit in 0..64 {
            let illegal = IllegalRecordLimit::RecordSizeLimit(limit);
            assert_eq!(sizes(None, Some(limit)), [Err(illegal); 2]);
        }
    }

    #[test]
    fn record_size_limit_wins_over_max_fragment_length() {
        assert_eq!(sizes(Some(1), Some(1024)), [Ok(Some(1029)), Ok(Some(1028))]);
        assert_eq!(sizes(Some(1), Some(16_385)), [Ok(None); 2]);
        // The illegal code 9 is not checked, because `record_size_limit` counts.
        assert_eq!(sizes(Some(9), Some(512)), [Ok(Some(517)), Ok(Some(516))]);
        let illegal = IllegalRecordLimit::RecordSizeLimit(63);
        assert_eq!(sizes(Some(1), Some(63)), [Err(illegal); 2]);
    }
}
