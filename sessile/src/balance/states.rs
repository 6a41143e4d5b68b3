//! How every server stands, read when it is asked for: an ejection and a slow start end by themselves.

use std::sync::{Arc, Weak};
use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts, Registry};

use super::Shared;
use super::server::Condition;

struct States {
    /// Never set: each scrape has its own, so that two at once do not see each other's.
    empty: IntGaugeVec,
    shared: Weak<Shared>,
}

/// Registers the states of a balancer's servers.
pub(super) fn register(registry: &Registry, shared: &Arc<Shared>) -> prometheus::Result<()> {
    registry.register(Box::new(States {
        empty: gauges()?,
        shared: Arc::downgrade(shared),
    }))
}

fn gauges() -> prometheus::Result<IntGaugeVec> {
    let opts = Opts::new(
        "sessile_balance_server_state",
        "How this server stands: 1 for the state that it is in, else 0.",
    );
    IntGaugeVec::new(opts, &["server", "state"])
}

impl Collector for States {
    fn desc(&self) -> Vec<&Desc> {
        self.empty.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (Some(shared), Ok(gauges)) = (self.shared.upgrade(), gauges()) else {
            return Vec::new();
        };
        let (roster, now) = (shared.roster(), Instant::now());
        for (_, server) in roster.servers() {
            let is = server.condition(roster.balance.slow_start, now);
            for condition in Condition::ALL {
                let labels = [server.name(), condition.as_str()];
                let gauge = gauges.with_label_values(&labels);
                gauge.set((condition == is).into());
            }
        }
        gauges.collect()
    }
}
