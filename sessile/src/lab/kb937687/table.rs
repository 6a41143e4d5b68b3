//! Scenarios 5 to 8: the size, lifetime and memory of the session table.

use std::time::Duration;

use sessile_proto::verdict::{How, Reason, Verdict};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::registry;
use crate::lab::test_farm::{Lab, TestFarm, connect};
use crate::lab::{Finding, LabError, LabVisit, Scenario};

const RESUMED: Verdict = Verdict::Resumed(How::SessionId);

/// Entries in the small table.
const SMALL: usize = 8;

/// How often the first client returns before the table overflows.
const RETURNS: usize = 5;

/// `ServerCacheTime` in scenario 6. The default of ten hours cannot be compressed.
const LIFETIME: Duration = Duration::from_millis(3000);

/// Default number of entries in a table.
const DEFAULT_SIZE: usize = 10_000;

/// Maximum number of bytes for an entry, without the session itself.
const MAX_OVERHEAD: usize = 96;

/// Maximum number of threads that make sessions.
const MAX_THREADS: usize = 4;

/// Scenario 5: first in, first out.
pub(super) async fn overflow(lab: &Lab) -> Result<Scenario, LabError> {
    let test_farm = TestFarm::server(lab, registry::CACHE_SIZE_8)?;
    let first = lab.client();
    let mut visits = vec![test_farm.visit_and_close(&first).await?];
    for _ in 0..RETURNS {
        visits.push(test_farm.visit_and_close(&first).await?);
    }
    let resumed = visits
        .iter()
        .filter(|visit| visit.has_verdict(RESUMED))
        .count();
    let second = lab.client();
    let mut second_visits = vec![test_farm.visit_and_close(&second).await?];
    for _ in 1..SMALL {
        test_farm.visit_and_close(&lab.client()).await?;
    }
    // The second client returns before the first, whose new session evicts the second client's
    // session.
    second_visits.push(test_farm.visit_and_close(&second).await?);
    let last = test_farm.visit_and_close(&first).await?;
    let evicted = Finding {
        case: "the oldest session, used often, after 8 newer sessions",
        article: "first in, first out: the oldest session is removed, even if it was used often",
        observed: format!("resumed {resumed} times, then {}", last.describe()),
        ok: resumed == RETURNS && last.has_verdict(Verdict::Full(Reason::Evicted)),
        visits: [visits, vec![last]].concat(),
    };
    let stays = Finding {
        case: "the second oldest session, not used until now",
        article: "is still in the table",
        observed: second_visits[1].describe(),
        ok: second_visits[1].has_verdict(RESUMED),
        visits: second_visits,
    };
    Ok(Scenario {
        number: 5,
        title: "MaximumCacheSize=8",
        servers: test_farm.settings(),
        kernel_connections: test_farm.kernel_connections(),
        findings: vec![evicted, stays],
    })
}

/// Scenario 6: the lifetime of a session counts from its full handshake.
pub(super) async fn lifetime(lab: &Lab) -> Result<Scenario, LabError> {
    let test_farm = TestFarm::server(lab, registry::CACHE_TIME_3000)?;
    let client = lab.client();
    let begun = Instant::now();
    let mut visits = vec![test_farm.visit_and_close(&client).await?];
    let made = Instant::now();
    for thirds in 1..=2 {
        sleep_until(begun + LIFETIME * thirds / 3).await;
        visits.push(test_farm.visit_and_close(&client).await?);
    }
    if begun.elapsed() >= LIFETIME {
        return Err(LabError::TooSlow(
            "a client did not come back within three seconds",
        ));
    }
    sleep_until(made + LIFETIME * 7 / 6).await;
    let last = test_farm.visit_and_close(&client).await?;
    let full = visits[0].clone();
    let before = Finding {
        case: "back after one second, and after two",
        article: "resumes",
        observed: describe_each(&visits[1..]),
        ok: visits[1..]
            .iter()
            .all(|visit| visit.has_verdict(RESUMED) && visit.session_id == full.session_id),
        visits,
    };
    let after = Finding {
        case: "back after three and a half seconds",
        article: "expired: the lifetime counts from the full handshake, and resuming does not extend it",
        observed: last.describe(),
        ok: last.has_verdict(Verdict::Full(Reason::Expired)),
        visits: vec![full, last],
    };
    Ok(Scenario {
        number: 6,
        title: "ServerCacheTime=3000 (ms)",
        servers: test_farm.settings(),
        kernel_connections: test_farm.kernel_connections(),
        findings: vec![before, after],
    })
}

/// Scenario 7: the value 0 for the size or the lifetime turns the table off.
pub(super) async fn zero(lab: &Lab) -> Result<Scenario, LabError> {
    let before = TestFarm::server(lab, registry::KERNEL_SSL_1)?;
    let size = TestFarm::server(lab, registry::CACHE_SIZE_0)?;
    let time = TestFarm::server(lab, registry::CACHE_TIME_0)?;
    let findings = vec![
        turned_off(lab, &before, &size, "MaximumCacheSize=0").await?,
        turned_off(lab, &before, &time, "ServerCacheTime=0").await?,
    ];
    let test_farms = [before, size, time];
    Ok(Scenario {
        number: 7,
        title: "MaximumCacheSize=0, or ServerCacheTime=0",
        servers: test_farms.iter().flat_map(TestFarm::settings).collect(),
        kernel_connections: test_farms.iter().map(TestFarm::kernel_connections).sum(),
        findings,
    })
}

async fn turned_off(
    lab: &Lab,
    before: &TestFarm,
    off: &TestFarm,
    case: &'static str,
) -> Result<Finding, LabError> {
    let client = lab.client();
    let (first, again) = (
        off.visit_and_close(&client).await?,
        off.visit_and_close(&client).await?,
    );
    // This client has a session from a server without the value 0.
    let regular = lab.client();
    let (held, returned) = (
        before.visit_and_close(&regular).await?,
        off.visit_and_close(&regular).await?,
    );
    Ok(Finding {
        case,
        article: "the server gives no session ID, and a session from before does not resume",
        observed: format!(
            "{}, second visit {}; with a session from before: {}",
            first.describe(),
            again.verdict,
            returned.describe()
        ),
        ok: is_full(&first, Reason::NothingOffered)
            && is_full(&again, Reason::NothingOffered)
            && is_full(&returned, Reason::CacheDisabled)
            && returned.offered == held.session_id,
        visits: vec![first, again, held, returned],
    })
}

/// True if the handshake was full for this reason and gave no session ID.
fn is_full(visit: &LabVisit, reason: Reason) -> bool {
    visit.has_verdict(Verdict::Full(reason)) && visit.session_id.is_none()
}

/// Scenario 8: a full table of the default size.
pub(super) async fn memory(lab: &Lab) -> Result<Scenario, LabError> {
    let test_farm = TestFarm::server(lab, registry::KERNEL_SSL_1)?;
    let client = lab.client();
    let mut visits = vec![test_farm.visit_and_close(&client).await?];
    fill(&test_farm, lab, DEFAULT_SIZE).await?;
    let table = test_farm.first().store().table();
    let entries = table.snapshot();
    let sessions: usize = entries
        .iter()
        .map(|entry| entry.key.len() + entry.value.len())
        .sum();
    let overhead = table.memory().saturating_sub(sessions) / entries.len().max(1);
    let size = Finding {
        case: "10,000 sessions after the first one",
        article: "the table holds 10,000",
        observed: format!("{} entries", thousands(entries.len())),
        ok: entries.len() == DEFAULT_SIZE,
        visits: Vec::new(),
    };
    let bytes = Finding {
        case: "the memory of the full table",
        article: "(not in the article; sessile allows 96 bytes for each entry, besides the session itself)",
        observed: format!(
            "{} bytes for each entry: the session {}, the table {overhead}",
            table.memory() / entries.len().max(1),
            sessions / entries.len().max(1),
        ),
        ok: overhead <= MAX_OVERHEAD,
        visits: Vec::new(),
    };
    visits.push(test_farm.visit_and_close(&client).await?);
    let first = Finding {
        case: "the first client comes back",
        article: "its session was the oldest, so it was removed",
        observed: visits[1].describe(),
        ok: visits[1].has_verdict(Verdict::Full(Reason::Evicted)),
        visits,
    };
    Ok(Scenario {
        number: 8,
        title: "MaximumCacheSize not set",
        servers: test_farm.settings(),
        kernel_connections: test_farm.kernel_connections(),
        findings: vec![size, bytes, first],
    })
}

/// Makes sessions by full handshakes of new clients.
async fn fill(test_farm: &TestFarm, lab: &Lab, sessions: usize) -> Result<(), LabError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(MAX_THREADS);
    let mut fillers = JoinSet::new();
    for thread in 0..threads {
        // The shares of all threads add up to the number of sessions.
        let share = (sessions + thread) / threads;
        let (client, front, stop) = (
            lab.client(),
            test_farm.front.clone(),
            test_farm.stop.clone(),
        );
        fillers.spawn_blocking(move || {
            runtime()?.block_on(async {
                for _ in 0..share {
                    if stop.is_cancelled() {
                        break;
                    }
                    connect(&client.with_empty_sessions(), &front).await?;
                }
                Ok::<_, LabError>(())
            })
        });
    }
    while let Some(filled) = fillers.join_next().await {
        filled??;
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime, LabError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LabError::Thread)
}

fn describe_each(visits: &[LabVisit]) -> String {
    let descriptions: Vec<_> = visits.iter().map(LabVisit::describe).collect();
    descriptions.join("; ")
}

/// The number with commas: 10,000.
fn thousands(number: usize) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1000), number % 1000),
    }
}
