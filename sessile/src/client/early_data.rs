//! Early data (0-RTT) of a client: data in the first flight, before the server has answered.

use super::{Client, EstablishedConnection, Failure, Sessions, Target};

/// The early data of one connection.
#[derive(Clone, Copy)]
pub(super) enum EarlyData<'a> {
    None,
    Send(&'a [u8]),
    /// The connection sends nothing after the early data, so the server sees no end of the handshake.
    SendOnly(&'a [u8]),
}

impl Client {
    /// Connects as [`Client::attempt_with`] does, and sends early data if the offered session allows it.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn attempt_with_early_data(
        &self,
        offered: &Sessions,
        target: &Target,
        early_data: &[u8],
    ) -> Result<EstablishedConnection, Failure> {
        self.open(offered, target, EarlyData::Send(early_data))
            .await
    }
}

impl EstablishedConnection {
    /// True if the server accepted the early data of this connection.
    #[must_use]
    pub fn has_accepted_early_data(&self) -> bool {
        self.stream.tls().is_early_data_accepted()
    }
}
