//! Scenarios 1 to 4: sessions whose connection was idle for too long.

use sessile_proto::verdict::{How, Reason, Verdict};
use tokio::time::sleep_until;

use super::registry;
use crate::client::{Client, Close};
use crate::lab::test_farm::{IdleConnection, Lab, TestFarm};
use crate::lab::{Finding, LabError, LabVisit, Scenario};

const RESUMED: Verdict = Verdict::Resumed(How::SessionId);
const PURGED: Verdict = Verdict::Full(Reason::Purged);

/// Clients of scenario 3, four for each of the three servers.
const CLIENTS: usize = 12;

/// Scenario 1, the article's failure: the balancer routes by session ID, and the servers purge.
pub(super) async fn purged_behind_a_balancer(lab: &Lab) -> Result<Scenario, LabError> {
    let test_farm = TestFarm::farm(lab, &[registry::KERNEL_SSL_0; 3])?;
    let client = lab.client();
    let (first, idle) = test_farm.visit(&client).await?;

    sleep_until(lab.within(idle.response_received)).await;
    let within = test_farm.visit_and_close(&client).await?;
    if !idle.is_within_idle_time(lab) {
        return Err(LabError::TooSlow(
            "a client did not come back within the idle time",
        ));
    }
    let resumes = Finding {
        case: "back within the idle time",
        article: "resumes: the connection's object is still there",
        observed: within.describe(),
        ok: resumes_at(&first, &within) && is_routed(&within, "session-id"),
        visits: vec![first.clone(), within],
    };

    let close = idle.wait_past_idle_time(lab).await;
    let after = test_farm.visit_and_close(&client).await?;
    let refused = Finding {
        case: "back after the idle time",
        article: "the object was destroyed and the session ID purged with it: the balancer still routes \
            by the old ID, and that server makes a new session",
        observed: format!("{}; {}", describe_close(close), after.describe()),
        ok: close == Some(Close::Notify)
            && is_purged_at(&first, &after)
            && is_routed(&after, "session-id"),
        visits: vec![first.clone(), after],
    };

    // Some clients drop their session when the server closes the connection. This client now does
    // the same.
    client.sessions.clear();
    let without = test_farm.visit_and_close(&client).await?;
    let placed = Finding {
        case: "back without its session",
        article: "the balancer has no session ID to route by and places the client like a new one",
        observed: without.describe(),
        ok: without.has_verdict(Verdict::Full(Reason::NothingOffered))
            && without.server != first.server
            && is_routed(&without, "policy"),
        visits: vec![first, without],
    };
    Ok(Scenario {
        number: 1,
        title: "EnableKernelSSL=0 on each of three servers behind a balancer",
        servers: test_farm.settings(),
        kernel_connections: test_farm.kernel_connections(),
        findings: vec![resumes, refused, placed],
    })
}

/// Scenario 2: the remedy on each server.
pub(super) async fn kept_behind_a_balancer(lab: &Lab) -> Result<Scenario, LabError> {
    let test_farm = TestFarm::farm(lab, &[registry::KERNEL_SSL_1; 3])?;
    let client = lab.client();
    let (first, idle) = test_farm.visit(&client).await?;
    let close = idle.wait_past_idle_time(lab).await;
    let after = test_farm.visit_and_close(&client).await?;
    let finding = Finding {
        case: "back after the idle time",
        article: "resumes on the same server: the table outlives the connection",
        observed: format!("{}; {}", describe_close(close), after.describe()),
        ok: close == Some(Close::Notify)
            && resumes_at(&first, &after)
            && is_routed(&after, "session-id"),
        visits: vec![first, after],
    };
    Ok(Scenario {
        number: 2,
        title: "EnableKernelSSL=1 on each of three servers behind a balancer",
        servers: test_farm.settings(),
        kernel_connections: test_farm.kernel_connections(),
        findings: vec![finding],
    })
}

/// Scenario 3: the remedy on two of three servers.
pub(super) async fn kept_on_two_of_three(lab: &Lab) -> Result<Scenario, LabError> {
    const FORGOTTEN: &str = "web3";
    let test_farm = TestFarm::farm(
        lab,
        &[
            registry::KERNEL_SSL_1,
            registry::KERNEL_SSL_1,
            registry::KERNEL_SSL_0,
        ],
    )?;
    let mut idle_clients: Vec<(Client, LabVisit, IdleConnection)> = Vec::new();
    for _ in 0..CLIENTS {
        let client = lab.client();
        let (first, idle) = test_farm.visit(&client).await?;
        idle_clients.push((client, first, idle));
    }
    let mut fixed = ReturnCounts::default();
    let mut forgotten = ReturnCounts::default();
    for (client, first, idle) in idle_clients {
        idle.wait_past_idle_time(lab).await;
        let after = test_farm.visit_and_close(&client).await?;
        if first.server == FORGOTTEN {
            forgotten.add(is_purged_at(&first, &after), [first, after]);
        } else {
            fixed.add(resumes_at(&first, &after), [first, after]);
        }
    }
    let resumes = Finding {
        case: "back after the idle time, first placed on web1 or web2",
        article: "resumes",
        observed: format!("{} of {} clients: {RESUMED}", fixed.expected, fixed.all),
        ok: fixed.all_as_expected(),
        visits: fixed.visits,
    };
    let refused = Finding {
        case: "back after the idle time, first placed on web3",
        article: "the failure stays, for some clients only: the registry entry must be set on each server",
        observed: format!(
            "{} of {} clients: {PURGED}",
            forgotten.expected, forgotten.all
        ),
        ok: forgotten.all_as_expected(),
        visits: forgotten.visits,
    };
    Ok(Scenario {
        number: 3,
        title: "EnableKernelSSL=1 on two of three servers behind a balancer, 0 on web3",
        servers: test_farm.settings(),
        kernel_connections: test_farm.kernel_connections(),
        findings: vec![resumes, refused],
    })
}

/// Scenario 4: the failure without a balancer, which few users notice.
pub(super) async fn purged_without_a_balancer(lab: &Lab) -> Result<Scenario, LabError> {
    let test_farm = TestFarm::server(lab, registry::KERNEL_SSL_0)?;
    let client = lab.client();
    let (first, idle) = test_farm.visit(&client).await?;
    let close = idle.wait_past_idle_time(lab).await;
    let after = test_farm.visit_and_close(&client).await?;
    let again = test_farm.visit_and_close(&client).await?;
    let hardly = Finding {
        case: "back after the idle time",
        article: "hardly affected: one full handshake, at the same server",
        observed: format!("{}; {}", describe_close(close), after.describe()),
        ok: close == Some(Close::Notify) && is_purged_at(&first, &after),
        visits: vec![first, after.clone()],
    };
    let resumes = Finding {
        case: "back again at once",
        article: "resumes",
        observed: again.describe(),
        ok: resumes_at(&after, &again),
        visits: vec![after, again],
    };
    Ok(Scenario {
        number: 4,
        title: "EnableKernelSSL=0 on one server without a balancer",
        servers: test_farm.settings(),
        kernel_connections: test_farm.kernel_connections(),
        findings: vec![hardly, resumes],
    })
}

/// Counts of the returns of one group of clients.
#[derive(Default)]
struct ReturnCounts {
    expected: usize,
    all: usize,
    visits: Vec<LabVisit>,
}

impl ReturnCounts {
    fn add(&mut self, expected: bool, visits: [LabVisit; 2]) {
        self.expected += usize::from(expected);
        self.all += 1;
        self.visits.extend(visits);
    }

    const fn all_as_expected(&self) -> bool {
        self.all > 0 && self.expected == self.all
    }
}

fn resumes_at(before: &LabVisit, now: &LabVisit) -> bool {
    now.has_verdict(RESUMED) && now.server == before.server && now.session_id == before.session_id
}

fn is_purged_at(before: &LabVisit, now: &LabVisit) -> bool {
    now.has_verdict(PURGED)
        && now.server == before.server
        && now.offered == before.session_id
        && now.session_id.is_some()
        && now.session_id != before.session_id
}

fn is_routed(visit: &LabVisit, by: &str) -> bool {
    visit.routed_by.as_deref() == Some(by)
}

fn describe_close(close: Option<Close>) -> String {
    match close {
        Some(close) => format!("closed ({close})"),
        None => "not closed".to_owned(),
    }
}
