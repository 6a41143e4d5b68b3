//! KB937687, a support article on IIS 6.0.
//!
//! Windows keeps TLS session IDs in a table: first in, first out, 10,000 entries, ten hours. IIS
//! kept one object for each connection. After five idle minutes it destroyed the object and purged
//! the session ID. Clients behind balancers that route by session ID could then not resume. The
//! remedy is `EnableKernelSSL=1` on each server.

mod idle;
mod table;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use tokio::task::{JoinSet, LocalSet};

use super::test_farm::Lab;
use super::{LabError, LabProgress, LabReport, Scenario};

/// The settings of the scenarios, in the format of `sessile settings import`.
mod registry {
    pub(super) const KERNEL_SSL_0: &str = include_str!("registry/kernel-ssl-0.reg");
    pub(super) const KERNEL_SSL_1: &str = include_str!("registry/kernel-ssl-1.reg");
    pub(super) const CACHE_SIZE_8: &str = include_str!("registry/cache-size-8.reg");
    pub(super) const CACHE_SIZE_0: &str = include_str!("registry/cache-size-0.reg");
    pub(super) const CACHE_TIME_3000: &str = include_str!("registry/cache-time-3000.reg");
    pub(super) const CACHE_TIME_0: &str = include_str!("registry/cache-time-0.reg");
}

/// Allowed scales. At the greatest scale, five minutes take one second.
pub const SCALES: std::ops::RangeInclusive<u32> = 1..=300;

type ScenarioFuture = Pin<Box<dyn Future<Output = Result<Scenario, LabError>>>>;

/// The scenarios in the order of their numbers.
const SCENARIOS: [fn(Rc<Lab>) -> ScenarioFuture; 8] = [
    |lab| Box::pin(async move { idle::purged_behind_a_balancer(&lab).await }),
    |lab| Box::pin(async move { idle::kept_behind_a_balancer(&lab).await }),
    |lab| Box::pin(async move { idle::kept_on_two_of_three(&lab).await }),
    |lab| Box::pin(async move { idle::purged_without_a_balancer(&lab).await }),
    |lab| Box::pin(async move { table::overflow(&lab).await }),
    |lab| Box::pin(async move { table::lifetime(&lab).await }),
    |lab| Box::pin(async move { table::zero(&lab).await }),
    |lab| Box::pin(async move { table::memory(&lab).await }),
];

/// Runs all scenarios at the same time. `progress` is called at the start and after each scenario.
/// Dropping the future stops everything.
///
/// # Errors
///
/// A scenario cannot be run. An unexpected observation is a finding, not an error.
pub async fn run(scale: u32, progress: &mut dyn FnMut(LabProgress)) -> Result<LabReport, LabError> {
    let lab = Rc::new(Lab::new(scale)?);
    let of = SCENARIOS.len();
    let all = async {
        let mut running = JoinSet::new();
        for scenario in SCENARIOS {
            running.spawn_local(scenario(Rc::clone(&lab)));
        }
        let mut scenarios = Vec::new();
        progress(LabProgress { done: 0, of });
        while let Some(finished) = running.join_next().await {
            scenarios.push(finished??);
            let done = scenarios.len();
            progress(LabProgress { done, of });
        }
        Ok::<_, LabError>(scenarios)
    };
    let mut scenarios = LocalSet::new().run_until(all).await?;
    scenarios.sort_unstable_by_key(|scenario| scenario.number);
    Ok(LabReport {
        experiment: "kb937687",
        scale,
        idle_timeout_seconds: lab.idle.as_secs_f64(),
        scenarios,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::KernelTls;
    use crate::lab::test_farm::iis_like_config;

    #[test]
    fn the_registry_texts_set_what_their_names_say() {
        let idle = Duration::from_secs(5);
        let config_from = |registry| iis_like_config(idle, registry).unwrap();
        let kept = config_from(registry::KERNEL_SSL_1);
        assert!(!kept.connection.purge_on_reclaim);
        assert_eq!(kept.session.max_entries, 10_000);
        assert_eq!(kept.session.lifetime, Duration::from_secs(36_000));
        assert!(!kept.session.tickets);
        assert_eq!(kept.connection.idle_timeout, idle);

        let purged = config_from(registry::KERNEL_SSL_0);
        assert!(purged.connection.purge_on_reclaim);
        assert_eq!(purged.tls.kernel, KernelTls::Off);
        assert_eq!(config_from(registry::CACHE_SIZE_8).session.max_entries, 8);
        assert_eq!(config_from(registry::CACHE_SIZE_0).session.max_entries, 0);
        let three_seconds = config_from(registry::CACHE_TIME_3000);
        assert_eq!(three_seconds.session.lifetime, Duration::from_secs(3));
        let off = config_from(registry::CACHE_TIME_0);
        assert_eq!(off.session.lifetime, Duration::ZERO);
    }
}
