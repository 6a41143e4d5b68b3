//! A Prometheus gauge that reads its value at each scrape.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Opts, Registry};

type Read = dyn Fn() -> usize + Send + Sync;

struct LiveGauge {
    gauge: IntGauge,
    read: Box<Read>,
}

/// Registers a gauge that calls `read` at each scrape.
///
/// # Errors
///
/// The registry already has a metric with this name and these labels.
pub fn register(
    registry: &Registry,
    opts: Opts,
    read: impl Fn() -> usize + Send + Sync + 'static,
) -> prometheus::Result<()> {
    // Each gauge has its own collector. The registry identifies a collector by the sum of the
    // hashes of its gauges. With several gauges in each collector, collectors for the servers web1
    // and web2 can have equal sums.
    registry.register(Box::new(LiveGauge {
        gauge: IntGauge::with_opts(opts)?,
        read: Box::new(read),
    }))
}

impl Collector for LiveGauge {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let value = i64::try_from((self.read)()).unwrap_or(i64::MAX);
        self.gauge.set(value);
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_with_similar_names_do_not_collide() {
        let registry = Registry::new();
        for server in 1..=99 {
            for name in ["entries", "bytes"] {
                let opts = Opts::new(name, "help").const_label("server", format!("web{server}"));
                register(&registry, opts, move || server).unwrap();
            }
        }
        assert_eq!(registry.gather().len(), 2);
    }
}
