//! TLS alerts: their numbers, their names, and the alert that answers bad first bytes.

use crate::hello::TLS_1_2;
use crate::record::{ContentType, Error};

/// The alerts that sessile sends itself: before a TLS library has the connection, and after the kernel has its
/// records (RFC 9846, 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AlertDescription {
    /// A message or a record that is not allowed at this point.
    UnexpectedMessage = 10,
    /// A record that cannot be decrypted.
    BadRecordMac = 20,
    /// A record longer than the protocol allows.
    RecordOverflow = 22,
    /// Client and server have no parameters in common.
    HandshakeFailure = 40,
    /// A field that can be read and has a forbidden value.
    IllegalParameter = 47,
    /// A message that cannot be read.
    DecodeError = 50,
    /// A protocol version that is not spoken here.
    ProtocolVersion = 70,
    /// A lower version than the client and sessile both speak (RFC 7507).
    InappropriateFallback = 86,
    /// A server name that is not served here (RFC 6066, 3).
    UnrecognizedName = 112,
}

impl AlertDescription {
    /// A record with this fatal alert, in clear.
    #[must_use]
    pub const fn record(self) -> [u8; 7] {
        const FATAL: u8 = 2;
        let [major, minor] = TLS_1_2.to_be_bytes();
        let content = ContentType::Alert as u8;
        [content, major, minor, 0, 2, FATAL, self as u8]
    }

    /// The alert for first bytes that are not a valid ClientHello; `None`: send nothing.
    ///
    /// Bytes that are not TLS get no alert: their sender could not read it. OpenSSL, and with it
    /// nginx and HAProxy, does the same.
    #[must_use]
    pub const fn for_client_hello(error: Error) -> Option<Self> {
        match error {
            Error::ContentType(20..=23)
            | Error::HandshakeType(_)
            | Error::Trailing
            | Error::Interleaved
            // RFC 9846, 5.4, requires this alert for the empty handshake records of TLS 1.3.
            | Error::EmptyFragment => Some(Self::UnexpectedMessage),
            Error::TooLong(_) => Some(Self::RecordOverflow),
            // No RFC names an alert for a message over a local limit. OpenSSL also sends
            // illegal_parameter.
            Error::OverLimit(_) | Error::Illegal(_) => Some(Self::IllegalParameter),
            Error::Length | Error::OutOfRange(_) => Some(Self::DecodeError),
            Error::ClientVersion(_) => Some(Self::ProtocolVersion),
            Error::Incomplete | Error::ContentType(_) | Error::Version(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::{ClientHello, DEFAULT_LIMIT, HelloReader};

    const HELLO: &[u8] = include_bytes!("testdata/client-openssl-tls13-full.bin");

    /// A record of this content type.
    fn record(content: u8, fragment: &[u8]) -> Vec<u8> {
        let len = u16::try_from(fragment.len()).unwrap().to_be_bytes();
        [&[content, 3, 1], &len[..], fragment].concat()
    }

    /// A ClientHello in one record, from the bytes after its random.
    fn hello(version: u16, rest: &[u8]) -> Vec<u8> {
        let body = [&version.to_be_bytes(), &[7; 32][..], rest].concat();
        let [.., high, middle, low] = body.len().to_be_bytes();
        record(22, &[&[1, high, middle, low], &body[..]].concat())
    }

    /// The alert that answers these first bytes, which are not a valid ClientHello.
    fn answer(bytes: &[u8]) -> Option<AlertDescription> {
        let mut reader = HelloReader::new(DEFAULT_LIMIT);
        let error = match reader.push(bytes) {
            Ok(true) => reader.hello().map(|_| ()).unwrap_err(),
            Ok(false) => panic!("more bytes are awaited"),
            Err(error) => error,
        };
        AlertDescription::for_client_hello(error)
    }

    #[test]
    fn an_alert_is_a_fatal_record_with_its_number() {
        assert_eq!(
            AlertDescription::DecodeError.record(),
            [21, 3, 3, 0, 2, 2, 50]
        );
    }

    #[test]
    fn bytes_that_are_not_tls_get_no_alert() {
        assert_eq!(answer(b"GET / HTTP/1.1\r\n\r\n"), None);
        assert_eq!(answer(b"SSH-2.0-OpenSSH_9.2\r\n"), None);
        assert_eq!(answer(&[0; 12]), None);
        assert_eq!(answer(&[0xff; 12]), None);
        // SSL 2.0, and a record version that was never used.
        assert_eq!(answer(&[0x80, 46, 1, 0, 2]), None);
        assert_eq!(answer(&[22, 2, 0, 0, 10]), None);
    }

    #[test]
    fn a_first_message_that_is_no_client_hello_is_unexpected() {
        let unexpected = Some(AlertDescription::UnexpectedMessage);
        assert_eq!(answer(&record(20, &[1])), unexpected);
        assert_eq!(answer(&record(21, &[2, 40])), unexpected);
        assert_eq!(answer(&record(23, &[0; 40])), unexpected);
        assert_eq!(answer(&record(22, &[20, 0, 0, 12])), unexpected);
        assert_eq!(answer(&record(22, &[])), unexpected);
        let interrupted = [&record(22, &HELLO[5..15])[..], &record(21, &[1, 0])].concat();
        assert_eq!(answer(&interrupted), unexpected);
        let trailing = [&HELLO[5..], &[20, 0, 0, 0]].concat();
        assert_eq!(answer(&record(22, &trailing)), unexpected);
    }

    #[test]
    fn a_record_over_the_limit_overflows() {
        let overflow = Some(AlertDescription::RecordOverflow);
        assert_eq!(answer(&[22, 3, 1, 0x40, 1]), overflow);
        assert_eq!(answer(&[23, 3, 3, 0x48, 1]), overflow);
    }

    #[test]
    fn a_malformed_hello_is_told_from_one_with_illegal_values() {
        let decode = Some(AlertDescription::DecodeError);
        let illegal = Some(AlertDescription::IllegalParameter);
        // A session ID of 33 bytes, no compression method, a block of extensions that is cut off.
        let long_id = [&[33][..], &[0; 33], &[0, 2, 0xc0, 0x2b, 1, 0]].concat();
        assert_eq!(answer(&hello(0x0303, &long_id)), decode);
        assert_eq!(answer(&hello(0x0303, &[0, 0, 2, 0xc0, 0x2b, 0])), decode);
        let cut = [0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 9, 0, 23, 0, 0];
        assert_eq!(answer(&hello(0x0303, &cut)), decode);
        // The same extension twice.
        let twice = [0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 8, 0, 23, 0, 0, 0, 23, 0, 0];
        assert_eq!(answer(&hello(0x0303, &twice)), illegal);
        // A message of 16 MiB.
        assert_eq!(answer(&record(22, &[1, 0xff, 0xff, 0xff])), illegal);
    }

    #[test]
    fn a_version_that_is_not_of_tls_is_refused_by_that_name() {
        let version = Some(AlertDescription::ProtocolVersion);
        let rest = [0, 0, 2, 0xc0, 0x2b, 1, 0];
        assert_eq!(answer(&hello(0x0002, &rest)), version);
    }

    #[test]
    fn a_good_hello_has_no_alert() {
        assert!(ClientHello::parse(&HELLO[5..]).is_ok());
        assert_eq!(AlertDescription::for_client_hello(Error::Incomplete), None);
    }
}
