//! Offers sessions of the tested name to another name of the same servers. A server that resumes them skips the
//! checks of a full handshake for the other name, such as that of the client's certificate.

use std::net::SocketAddr;

use super::report::OtherNameOffer;
use super::visit::Visitor;
use crate::client::SetupError;

/// Offers a session of the tested name at `address` to the other name. `None` if the server gives no session.
///
/// # Errors
///
/// The name cannot be used.
pub(super) async fn offer(
    visitor: &mut Visitor<'_>,
    name: &str,
    address: SocketAddr,
) -> Result<Option<OtherNameOffer>, SetupError> {
    // A new session, so that no offer of the test before it can have used it up.
    visitor.plan.pace.wait(address).await;
    let Ok(own) = visitor.visit(None, address).await? else {
        return Ok(None);
    };
    if !visitor.has_session_of(address) {
        return Ok(None);
    }
    visitor.plan.pace.wait(address).await;
    let full = visitor.visit_name(name, None, address).await?;
    visitor.plan.pace.wait(address).await;
    let offer = visitor.visit_name(name, Some(address), address).await?;
    Ok(Some(OtherNameOffer {
        name: name.to_owned(),
        how: visitor.how,
        address,
        full,
        offer,
        certificate: own.certificate,
    }))
}
