//! Clients that are turned away: the causes that all roles share, and the alert to the client.

use sessile_proto::alert::AlertDescription;
use strum::{IntoStaticStr, VariantArray};
use tokio::net::TcpStream;

/// Why a listener turns a client away before the role has accepted the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum IntakeFailure {
    /// The connection ended before a ClientHello was complete.
    NoHello,
    /// The first bytes are not a valid ClientHello.
    BadHello,
    /// The ClientHello took too long.
    Deadline,
    /// The PROXY header is missing or malformed.
    BadProxyHeader,
    /// The connection does not come from a source in `proxy-trusted`.
    UntrustedProxy,
    /// A newer connection took the place of the incomplete hello, or of the connection before it was accepted.
    Displaced,
    /// The hellos in memory take too many bytes.
    HelloLimit,
    /// The hellos of one source take too many bytes.
    SourceLimit,
    /// One source has too many open connections.
    SourceConnections,
    /// One source connects too often.
    SourceRate,
}

/// A client that is turned away. It is counted before its connection ends.
pub struct Rejection<C> {
    pub(super) cause: C,
    /// The connection, unless it is closed already.
    pub(super) io: Option<TcpStream>,
    /// The fatal alert for the client, which is sent in clear.
    pub(super) alert: Option<AlertDescription>,
}

impl<C> Rejection<C> {
    /// A client whose connection is closed already.
    pub const fn after_close(cause: C) -> Self {
        Self {
            cause,
            io: None,
            alert: None,
        }
    }
}
