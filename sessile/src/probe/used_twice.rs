//! The test whether a server resumes a session twice. Stateless tickets can be used until they expire; a server with a
//! cache can remove a TLS 1.3 session when it resumes.

use std::net::SocketAddr;

use super::early_data::end;
use super::report::ProbeReport;
use super::visit::{RESPONSE_WAIT, TICKET_WAIT, Visitor};
use crate::client::SetupError;

/// Returns to each server twice with one TLS 1.3 session. Servers that refuse their own sessions are left out.
///
/// # Errors
///
/// The server name cannot be used, or there is no CA certificate.
pub(super) async fn run(visitor: &Visitor<'_>, report: &mut ProbeReport) -> Result<(), SetupError> {
    let Some(tested) = report.mechanisms.last() else {
        return Ok(());
    };
    let addresses = report.addresses.iter().copied();
    let servers: Vec<SocketAddr> = addresses
        .filter(|server| tested.keeps_own_sessions(*server))
        .collect();
    for server in servers {
        if let Some(is_usable) = is_usable_twice(visitor, server).await? {
            report.usable_twice.push((server, is_usable));
        }
    }
    Ok(())
}

/// `None` if the first return did not resume, or if the session cannot be made again.
async fn is_usable_twice(
    visitor: &Visitor<'_>,
    server: SocketAddr,
) -> Result<Option<bool>, SetupError> {
    let target = visitor.target(server)?;
    let mut client = visitor.replay_client(server)?;
    visitor.plan.pace.wait(server).await;
    let Ok(full) = client.connect(&target, TICKET_WAIT).await else {
        return Ok(None);
    };
    let Some(mut session) = client.repeated_session(&full, &target) else {
        return Ok(None);
    };
    end(full).await;
    visitor.plan.pace.wait(server).await;
    if !matches!(session.resumes(&target, RESPONSE_WAIT).await, Ok(true)) {
        return Ok(None);
    }
    visitor.plan.pace.wait(server).await;
    Ok(session.resumes(&target, RESPONSE_WAIT).await.ok())
}
