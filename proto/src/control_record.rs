//! Records without application data on an open connection whose record layer is in the kernel. The TLS library
//! does not see these records.

use crate::alert::AlertDescription;
use crate::record::MAX_PLAINTEXT;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const KEY_UPDATE: u8 = 24;

const WARNING: u8 = 1;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// Most records that one AES-GCM key encrypts. RFC 9846, 5.5, allows 2^24.5.
const MAX_RECORDS: u64 = 1 << 23;

/// The KeyUpdate message that asks for no answer.
pub const KEY_UPDATE_MESSAGE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

/// A record of a client without application data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRecord {
    /// The client sends no more.
    CloseNotify,
    /// The client ends the connection with this alert.
    FatalAlert(u8),
    /// A warning that changes nothing.
    Warning,
    /// All later records of the client use the next key.
    KeyUpdate {
        /// True if the client also asks the server to change its key.
        asks_for_answer: bool,
    },
}

impl ControlRecord {
    /// Reads the content of a record that is not application data.
    ///
    /// # Errors
    /// The alert that ends the connection.
    pub const fn parse(
        content_type: u8,
        content: &[u8],
        is_tls13: bool,
    ) -> Result<Self, AlertDescription> {
        match (content_type, content) {
            (ALERT, [_, CLOSE_NOTIFY]) => Ok(Self::CloseNotify),
            // TLS 1.3 ignores the level of an alert: all other alerts are fatal (RFC 9846, 6).
            (ALERT, [_, USER_CANCELED]) if is_tls13 => Ok(Self::Warning),
            (ALERT, [WARNING, _]) if !is_tls13 => Ok(Self::Warning),
            (ALERT, [_, description]) => Ok(Self::FatalAlert(*description)),
            (ALERT, _) => Err(AlertDescription::DecodeError),
            (HANDSHAKE, [KEY_UPDATE, 0, 0, 1, request]) if is_tls13 => match request {
                0 => Ok(Self::KeyUpdate {
                    asks_for_answer: false,
                }),
                1 => Ok(Self::KeyUpdate {
                    asks_for_answer: true,
                }),
                _ => Err(AlertDescription::IllegalParameter),
            },
            // TLS 1.2 has renegotiation, which sessile never accepts.
            _ => Err(AlertDescription::UnexpectedMessage),
        }
    }
}

/// How many more records the present key of the server may encrypt.
#[derive(Clone, Copy, Debug)]
pub struct RecordBudget(u64);

impl RecordBudget {
    /// The budget of a key that has encrypted `used` records.
    #[must_use]
    pub const fn new(used: u64) -> Self {
        Self(MAX_RECORDS.saturating_sub(used))
    }

    /// The most bytes that can be written at once, or 0 if the key is used up.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        // A write can begin and end inside a record.
        self.0.saturating_sub(2) * MAX_PLAINTEXT as u64
    }

    /// Notes that the key encrypted one write of so many bytes.
    pub const fn take(&mut self, bytes: u64) {
        self.0 = self.0.saturating_sub(bytes / MAX_PLAINTEXT as u64 + 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_notify_has_any_level() {
        for (level, is_tls13) in [(1, true), (2, true), (1, false), (2, false)] {
            let record = ControlRecord::parse(ALERT, &[level, 0], is_tls13);
            assert_eq!(record, Ok(ControlRecord::CloseNotify));
        }
    }

    #[test]
    fn a_warning_of_tls12_is_a_fatal_alert_in_tls13() {
        let no_certificate = [1, 41];
        assert_eq!(
            ControlRecord::parse(ALERT, &no_certificate, false),
            Ok(ControlRecord::Warning)
        );
        assert_eq!(
            ControlRecord::parse(ALERT, &no_certificate, true),
            Ok(ControlRecord::FatalAlert(41))
        );
        assert_eq!(
            ControlRecord::parse(ALERT, &[1, 90], true),
            Ok(ControlRecord::Warning)
        );
    }

    #[test]
    fn an_alert_of_another_length_is_refused() {
        for alert in [&[][..], &[2], &[2, 40, 0]] {
            let record = ControlRecord::parse(ALERT, alert, true);
            assert_eq!(record, Err(AlertDescription::DecodeError), "{alert:?}");
        }
    }

    #[test]
    fn a_key_update_is_one_whole_message_of_tls13() {
        for (request, asks_for_answer) in [(0, false), (1, true)] {
            let record = ControlRecord::parse(HANDSHAKE, &[24, 0, 0, 1, request], true);
            assert_eq!(record, Ok(ControlRecord::KeyUpdate { asks_for_answer }));
        }
        let refused = |content: &[u8], is_tls13| {
            ControlRecord::parse(HANDSHAKE, content, is_tls13).expect_err("refused")
        };
        assert_eq!(
            refused(&[24, 0, 0, 1, 2], true),
            AlertDescription::IllegalParameter
        );
        for content in [
            &[24, 0, 0, 1][..],
            &[24, 0, 0, 1, 0, 24],
            &[1, 0, 0, 0],
            &[],
        ] {
            let alert = refused(content, true);
            assert_eq!(alert, AlertDescription::UnexpectedMessage, "{content:?}");
        }
        assert_eq!(
            refused(&KEY_UPDATE_MESSAGE, false),
            AlertDescription::UnexpectedMessage
        );
    }

    #[test]
    fn a_key_encrypts_no_more_records_than_allowed() {
        let mut budget = RecordBudget::new(MAX_RECORDS - 4);
        assert_eq!(budget.bytes(), 2 * 16_384);
        budget.take(16_384);
        assert_eq!(budget.bytes(), 0);
        assert_eq!(RecordBudget::new(u64::MAX).bytes(), 0);
        // 128 GiB, less two records.
        assert_eq!(RecordBudget::new(0).bytes() >> 20, 131_071);
    }
}
