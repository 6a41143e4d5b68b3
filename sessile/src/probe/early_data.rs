//! The test of early data (0-RTT): which servers accept it, and whether they accept the same bytes twice.
//!
//! The early data is always a HEAD request for `/`. The probe repeats this request as an attacker does: it sends the
//! bytes of an earlier connection again, and does not finish the handshake.

use std::net::SocketAddr;

use sessile_proto::resumption_matrix::{Answer, ResumptionMatrix};
use strum::{IntoStaticStr, VariantArray};

use super::http;
use super::pace::Pace;
use super::report::{MechanismFindings, ProbeReport};
use super::visit::{RESPONSE_WAIT, Visitor};
use crate::client::{EstablishedConnection, ReplayClient, RepeatedOffer, SetupError, Target};

/// Which servers accept early data. Empty if no server gives sessions for early data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EarlyDataFindings {
    /// One session of each server, offered to each server with early data.
    pub offers: Vec<EarlyDataOffer>,
    /// Early data that a server had accepted, sent again.
    pub replays: Vec<EarlyDataReplay>,
}

/// A session that was offered with early data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyDataOffer {
    /// The server that gave the session.
    pub origin: SocketAddr,
    /// The server to which it was offered.
    pub address: SocketAddr,
    pub outcome: EarlyDataOutcome,
    /// Why the handshake failed.
    pub error: Option<String>,
}

/// Early data that a server had accepted, and that was sent again in the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyDataReplay {
    /// The server that accepted the early data the first time. It gave the session, too.
    pub origin: SocketAddr,
    /// The server that got the same bytes again.
    pub address: SocketAddr,
    pub outcome: EarlyDataOutcome,
    /// The HTTP status with which the server answered the repeated request. The server answered before the client
    /// had finished the handshake.
    pub status: Option<u16>,
    /// Why the handshake failed.
    pub error: Option<String>,
}

/// A server's answer to early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum EarlyDataOutcome {
    Accepted,
    /// The server ignored the early data. The client has to send it again.
    Refused,
    /// The handshake failed.
    Failed,
    /// The probe could not send the same bytes again.
    Unknown,
}

impl EarlyDataFindings {
    /// True if nothing was tested.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.offers.is_empty() && self.replays.is_empty()
    }

    /// Who accepts early data with whose sessions. `Resumed` stands for accepted early data.
    #[must_use]
    pub fn matrix(&self, addresses: &[SocketAddr]) -> ResumptionMatrix {
        let mut matrix = ResumptionMatrix::new(addresses.len());
        let index = |address| addresses.iter().position(|known| *known == address);
        for offer in &self.offers {
            let answer = match offer.outcome {
                EarlyDataOutcome::Accepted => Answer::Resumed,
                EarlyDataOutcome::Refused => Answer::Refused,
                EarlyDataOutcome::Failed => Answer::Ended,
                EarlyDataOutcome::Unknown => continue,
            };
            if let (Some(from), Some(to)) = (index(offer.origin), index(offer.address)) {
                matrix.record(from, to, answer);
            }
        }
        matrix
    }

    fn is_accepted(&self, origin: SocketAddr, address: SocketAddr) -> bool {
        self.offers.iter().any(|offer| {
            let pair = (offer.origin, offer.address);
            pair == (origin, address) && offer.outcome == EarlyDataOutcome::Accepted
        })
    }
}

/// Tests the servers that give sessions for early data.
///
/// # Errors
///
/// The server name cannot be used, or there is no CA certificate.
pub(super) async fn run(
    visitor: &mut Visitor<'_>,
    pace: &mut Pace,
    report: &mut ProbeReport,
) -> Result<(), SetupError> {
    let Some(tested) = report.mechanisms.last() else {
        return Ok(());
    };
    let addresses = report.addresses.iter().copied();
    let servers: Vec<SocketAddr> = addresses
        .filter(|server| !tested.is_silent(*server) && visitor.offers_http1_only(*server))
        .collect();
    let giving = servers.iter().filter(|server| gives(tested, **server));
    let giving: Vec<SocketAddr> = giving.copied().collect();
    let found = &mut report.early_data;
    for &origin in &giving {
        for &address in &servers {
            let offered = offer(visitor, pace, origin, address).await?;
            found.offers.extend(offered);
        }
    }
    for origin in giving {
        if found.is_accepted(origin, origin) {
            let others = servers.iter().copied();
            let other = others
                .filter(|server| *server != origin)
                .find(|server| found.is_accepted(origin, *server));
            let replays = replay(visitor, pace, origin, other).await?;
            found.replays.extend(replays);
        }
    }
    Ok(())
}

/// True if the server gave a session for early data.
fn gives(tested: &MechanismFindings, server: SocketAddr) -> bool {
    let tickets = tested.finished_at(server).flat_map(|seen| &seen.tickets);
    let mut limits = tickets.filter_map(|ticket| ticket.max_early_data);
    limits.any(|most| most > 0)
}

/// Offers a session of `origin` with early data. `None` if the server gave no session for early data.
async fn offer(
    visitor: &mut Visitor<'_>,
    pace: &mut Pace,
    origin: SocketAddr,
    address: SocketAddr,
) -> Result<Option<EarlyDataOffer>, SetupError> {
    if !visitor.allows_early_data(origin)? {
        pace.wait(origin).await;
        // If this fails, there is no session to offer.
        let _ = visitor.visit(None, origin, pace).await?;
        if !visitor.allows_early_data(origin)? {
            return Ok(None);
        }
    }
    pace.wait(address).await;
    let (outcome, error) = match visitor.offer_early_data(origin, address).await? {
        Ok(true) => (EarlyDataOutcome::Accepted, None),
        Ok(false) => (EarlyDataOutcome::Refused, None),
        Err(error) => (EarlyDataOutcome::Failed, Some(error.to_string())),
    };
    Ok(Some(EarlyDataOffer {
        origin,
        address,
        outcome,
        error,
    }))
}

/// Sends accepted early data again: to the server that accepted it, and to another server that accepts the sessions
/// of this server.
async fn replay(
    visitor: &Visitor<'_>,
    pace: &mut Pace,
    origin: SocketAddr,
    other: Option<SocketAddr>,
) -> Result<Vec<EarlyDataReplay>, SetupError> {
    let plan = visitor.plan;
    let target = plan.connection_target(origin, &plan.server_name)?;
    let mut replays = Vec::new();
    let Some(mut offer) = repeated_offer(visitor, pace, &target).await? else {
        let outcome = EarlyDataOutcome::Unknown;
        replays.push(EarlyDataReplay { origin, address: origin, outcome, status: None, error: None });
        return Ok(replays);
    };
    pace.wait(origin).await;
    let Ok(mut first) = offer.offer(&target).await else {
        return Ok(replays);
    };
    if !first.has_accepted_early_data() {
        return Ok(replays);
    }
    read_status(&mut first).await;
    first.close(RESPONSE_WAIT + first.times.first_byte).await;
    for address in [Some(origin), other].into_iter().flatten() {
        pace.wait(address).await;
        let target = plan.connection_target(address, &plan.server_name)?;
        replays.push(replayed(&offer, &target, origin).await);
    }
    Ok(replays)
}

/// Makes a full handshake for an offer that can be repeated.
async fn repeated_offer(
    visitor: &Visitor<'_>,
    pace: &mut Pace,
    target: &Target,
) -> Result<Option<RepeatedOffer>, SetupError> {
    let plan = visitor.plan;
    let client = ReplayClient::new(&plan.trust, plan.certificate.as_ref(), plan.timeout)?;
    let mut client = client.with_alpn(visitor.alpn_for(target.address));
    pace.wait(target.address).await;
    let Ok(mut connection) = client.connect(target).await else {
        return Ok(None);
    };
    visitor.request(&mut connection).await;
    let request = http::head_request(&plan.host);
    let offer = client.repeated_offer(&connection, target, request.as_bytes());
    connection.close(RESPONSE_WAIT + connection.times.first_byte).await;
    Ok(offer)
}

async fn replayed(
    offer: &RepeatedOffer,
    target: &Target,
    origin: SocketAddr,
) -> EarlyDataReplay {
    let mut replay = EarlyDataReplay {
        origin,
        address: target.address,
        outcome: EarlyDataOutcome::Unknown,
        status: None,
        error: None,
    };
    match offer.replay(target).await {
        Ok(None) => {}
        Ok(Some(mut connection)) if connection.has_accepted_early_data() => {
            replay.outcome = EarlyDataOutcome::Accepted;
            replay.status = read_status(&mut connection).await;
        }
        Ok(Some(_)) => replay.outcome = EarlyDataOutcome::Refused,
        Err(failure) => {
            replay.outcome = EarlyDataOutcome::Failed;
            replay.error = Some(failure.error.to_string());
        }
    }
    replay
}

async fn read_status(connection: &mut EstablishedConnection) -> Option<u16> {
    let wait = RESPONSE_WAIT + connection.times.first_byte;
    http::read_head(&mut connection.stream, wait).await.headers.status
}
