//! The session table itself: its size, its lifetime, and what it takes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sessile_proto::verdict::{How, Reason, Verdict};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::registry;
use crate::lab::test_farm::{Lab, TestFarm};
use crate::lab::{Finding, LabError, LabVisit, Scenario};

const RESUMED: Verdict = Verdict::Resumed(How::SessionId);

/// Entries in the small table.
const SMALL: usize = 8;

/// How often the first client comes back before the table overflows.
const RETURNS: usize = 5;

/// `ServerCacheTime` in the scenario of that name. Ten hours do not compress.
const LIFETIME: Duration = Duration::from_millis(3000);

/// Entries in a table whose size nobody has set.
const DEFAULT_SIZE: usize = 10_000;

/// Most bytes that an entry may take beyond the session itself.
const MOST_OVERHEAD: usize = 96;

/// Most threads that make sessions.
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
    let mut of_second = vec![test_farm.visit_and_close(&second).await?];
    for _ in 1..SMALL {
        test_farm.visit_and_close(&lab.client()).await?;
    }
    // Before the first one comes back: its new session pushes the second one's out.
    of_second.push(test_farm.visit_and_close(&second).await?);
    let last = test_farm.visit_and_close(&first).await?;
    let evicted = Finding {
        case: "first in, used the most, then 8 newer sessions",
        article: "first in, first out: it leaves, however much it was used",
        observed: format!("resumed {resumed} times, then {}", last.describe()),
        ok: resumed == RETURNS && last.has_verdict(Verdict::Full(Reason::Evicted)),
        visits: [visits, vec![last]].concat(),
    };
    let stays = Finding {
        case: "second in, not used since",
        article: "stays",
        observed: of_second[1].describe(),
        ok: of_second[1].has_verdict(RESUMED),
        visits: of_second,
    };
    Ok(Scenario {
        number: 5,
        title: "MaximumCacheSize=8",
        servers: test_farm.settings(),
        findings: vec![evicted, stays],
    })
}

/// Scenario 6: a session's life counts from its full handshake.
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
    let alike =
        |visit: &LabVisit| visit.has_verdict(RESUMED) && visit.session_id == full.session_id;
    let before = Finding {
        case: "back after one second, and after two",
        article: "resumes",
        observed: describe_each(&visits[1..]),
        ok: visits[1..].iter().all(alike),
        visits,
    };
    let after = Finding {
        case: "back after three and a half seconds",
        article: "gone, counted from the full handshake: resuming does not extend it",
        observed: last.describe(),
        ok: last.has_verdict(Verdict::Full(Reason::Expired)),
        visits: vec![full, last],
    };
    Ok(Scenario {
        number: 6,
        title: "ServerCacheTime=3000 (ms)",
        servers: test_farm.settings(),
        findings: vec![before, after],
    })
}

/// Scenario 7: either value at 0 turns the table off.
pub(super) async fn zero(lab: &Lab) -> Result<Scenario, LabError> {
    let before = TestFarm::server(lab, registry::KERNEL_SSL_1)?;
    let size = TestFarm::server(lab, registry::CACHE_SIZE_0)?;
    let time = TestFarm::server(lab, registry::CACHE_TIME_0)?;
    let findings = vec![
        turned_off(lab, &before, &size, "MaximumCacheSize=0").await?,
        turned_off(lab, &before, &time, "ServerCacheTime=0").await?,
    ];
    Ok(Scenario {
        number: 7,
        title: "MaximumCacheSize=0, or ServerCacheTime=0",
        servers: [before, size, time]
            .iter()
            .flat_map(TestFarm::settings)
            .collect(),
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
    // One that holds a session from before the value was set.
    let regular = lab.client();
    let (held, returned) = (
        before.visit_and_close(&regular).await?,
        off.visit_and_close(&regular).await?,
    );
    Ok(Finding {
        case,
        article: "no session ID is given, and one from before does not resume",
        observed: format!(
            "{}, again {}; with an ID from before: {}",
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

/// A full handshake for this reason, after which the client has no session ID.
fn is_full(visit: &LabVisit, reason: Reason) -> bool {
    visit.has_verdict(Verdict::Full(reason)) && visit.session_id.is_none()
}

/// Scenario 8: a full table of the size that Windows gives it.
pub(super) async fn memory(lab: &Lab) -> Result<Scenario, LabError> {
    let test_farm = TestFarm::server(lab, registry::KERNEL_SSL_1)?;
    let client = lab.client();
    let mut visits = vec![test_farm.visit_and_close(&client).await?];
    fill(&test_farm, lab, DEFAULT_SIZE).await?;
    let memory = test_farm.first().store().memory();
    let entries = memory.snapshot();
    let sessions = entries
        .iter()
        .map(|entry| entry.key.len() + entry.value.len());
    let sessions: usize = sessions.sum();
    let overhead = memory.memory().saturating_sub(sessions) / entries.len().max(1);
    let size = Finding {
        case: "10,000 sessions after the first one",
        article: "the table holds 10,000",
        observed: format!("{} entries", thousands(entries.len())),
        ok: entries.len() == DEFAULT_SIZE,
        visits: Vec::new(),
    };
    let bytes = Finding {
        case: "the memory of the full table",
        article: "(says nothing; at most 96 bytes for each entry beyond the session itself)",
        observed: format!(
            "{} bytes for each entry: the session {}, the table {overhead}",
            memory.memory() / entries.len().max(1),
            sessions / entries.len().max(1),
        ),
        ok: overhead <= MOST_OVERHEAD,
        visits: Vec::new(),
    };
    visits.push(test_farm.visit_and_close(&client).await?);
    let first = Finding {
        case: "the first client comes back",
        article: "its session was the first in: it is gone",
        observed: visits[1].describe(),
        ok: visits[1].has_verdict(Verdict::Full(Reason::Evicted)),
        visits,
    };
    Ok(Scenario {
        number: 8,
        title: "MaximumCacheSize not set",
        servers: test_farm.settings(),
        findings: vec![size, bytes, first],
    })
}

/// Makes sessions by full handshakes of clients that have been nowhere yet.
async fn fill(test_farm: &TestFarm, lab: &Lab, sessions: usize) -> Result<(), LabError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let left = Arc::new(AtomicUsize::new(sessions));
    let mut fillers = JoinSet::new();
    for _ in 0..threads.min(MAX_THREADS) {
        let (client, front, stop) = (
            lab.client(),
            test_farm.front.clone(),
            test_farm.stop.clone(),
        );
        let left = Arc::clone(&left);
        fillers.spawn_blocking(move || {
            let one_less = |left: usize| left.checked_sub(1);
            runtime()?.block_on(async {
                while !stop.is_cancelled()
                    && left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                        .is_ok()
                {
                    let connected = client.with_empty_sessions().connect(&front).await;
                    connected.map_err(|source| LabError::Connect {
                        server: front.address.to_string(),
                        source,
                    })?;
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
    let built: io::Result<_> = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    built.map_err(LabError::Thread)
}

fn describe_each(visits: &[LabVisit]) -> String {
    let told: Vec<_> = visits.iter().map(LabVisit::describe).collect();
    told.join("; ")
}

/// 10,000 rather than 10000.
fn thousands(number: usize) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1000), number % 1000),
    }
}
