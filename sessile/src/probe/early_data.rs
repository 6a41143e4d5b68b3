//! The test of early data (0-RTT): which servers accept it, and whether they accept the same bytes twice.
//!
//! The early data is always a HEAD request for `/`. The probe repeats this request as an attacker does. It sends the
//! bytes of an earlier connection again, and does not finish the handshake.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt as _;

use super::http;
use super::report::{
    EarlyDataOffer, EarlyDataOutcome, EarlyDataReplay, MechanismFindings, ProbeReport,
};
use super::visit::{RESPONSE_WAIT, TICKET_WAIT, Visitor};
use crate::client::{EstablishedConnection, RepeatedOffer, SetupError, Target};

/// Tests the servers that give sessions for early data.
///
/// # Errors
///
/// The server name cannot be used, or there is no CA certificate.
pub(super) async fn run(
    visitor: &mut Visitor<'_>,
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
            let offered = offer(visitor, origin, address).await?;
            found.offers.extend(offered);
        }
    }
    for origin in giving {
        if found.is_accepted(origin, origin) {
            let others = servers.iter().copied();
            let other = others
                .filter(|server| *server != origin)
                .find(|server| found.is_accepted(origin, *server));
            let replays = replay(visitor, origin, other).await?;
            found.replays.extend(replays);
        }
    }
    Ok(())
}

/// True if the server gave a session for early data.
fn gives(tested: &MechanismFindings, server: SocketAddr) -> bool {
    let tickets = tested.tickets_of(server);
    let mut limits = tickets.filter_map(|(_, ticket)| ticket.max_early_data);
    limits.any(|most| most > 0)
}

/// Offers a session of `origin` with early data. `None` if the server gave no session for early data.
async fn offer(
    visitor: &mut Visitor<'_>,
    origin: SocketAddr,
    address: SocketAddr,
) -> Result<Option<EarlyDataOffer>, SetupError> {
    visitor.plan.pace.wait(origin).await;
    if !visitor.renew_session(origin).await? {
        return Ok(None);
    }
    visitor.plan.pace.wait(address).await;
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

/// Sends accepted early data again, to the server that accepted it and to the `other` server.
async fn replay(
    visitor: &Visitor<'_>,
    origin: SocketAddr,
    other: Option<SocketAddr>,
) -> Result<Vec<EarlyDataReplay>, SetupError> {
    let addresses = [Some(origin), other].into_iter().flatten();
    let unknown = |address| EarlyDataReplay {
        origin,
        address,
        outcome: EarlyDataOutcome::Unknown,
        status: None,
        error: None,
    };
    let mut replays: Vec<EarlyDataReplay> = addresses.map(unknown).collect();
    if let Some(accepted) = accepted_offer(visitor, origin).await? {
        for replay in &mut replays {
            visitor.plan.pace.wait(replay.address).await;
            let target = visitor.target(replay.address)?;
            send_again(&accepted, &target, replay).await;
        }
    }
    Ok(replays)
}

/// Makes a full handshake, and sends early data with its session. `None` if the server does not accept this early
/// data, or if its bytes cannot be sent again.
async fn accepted_offer(
    visitor: &Visitor<'_>,
    server: SocketAddr,
) -> Result<Option<RepeatedOffer>, SetupError> {
    let target = visitor.target(server)?;
    let mut client = visitor.replay_client(server)?;
    visitor.plan.pace.wait(server).await;
    let Ok(full) = client.connect(&target, TICKET_WAIT).await else {
        return Ok(None);
    };
    visitor.plan.pace.wait(server).await;
    let request = http::early_request(&visitor.plan.host);
    let Some(mut offer) = client.repeated_offer(&full, &target, request.as_bytes()) else {
        return Ok(None);
    };
    end(full).await;
    let Ok(first) = offer.offer(&target).await else {
        return Ok(None);
    };
    let is_accepted = first.has_accepted_early_data();
    end(first).await;
    Ok(is_accepted.then_some(offer))
}

/// Sends close_notify, and waits for nothing: the replays must follow soon, and some servers have one connection at
/// a time.
pub(super) async fn end(mut connection: EstablishedConnection) {
    // A server that closed the connection first is no reason to stop.
    let _ = connection.stream.shutdown().await;
}

async fn send_again(accepted: &RepeatedOffer, target: &Target, replay: &mut EarlyDataReplay) {
    match accepted.replay(target).await {
        Ok(None) => {}
        Ok(Some(mut connection)) if connection.has_accepted_early_data() => {
            replay.outcome = EarlyDataOutcome::Accepted;
            replay.status = read_status(&mut connection).await;
        }
        Ok(Some(_)) if accepted.is_stale() => {}
        Ok(Some(_)) => replay.outcome = EarlyDataOutcome::Refused,
        Err(failure) => {
            replay.outcome = EarlyDataOutcome::Failed;
            replay.error = Some(failure.error.to_string());
        }
    }
}

async fn read_status(connection: &mut EstablishedConnection) -> Option<u16> {
    let wait = RESPONSE_WAIT + connection.times.first_byte;
    http::read_head(&mut connection.stream, wait)
        .await
        .headers
        .status
}
