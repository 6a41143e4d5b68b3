//! A gauge whose value is read when it is asked for, not kept up to date.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Opts, Registry};

type Read = dyn Fn() -> usize + Send + Sync;

struct LiveGauge {
    gauge: IntGauge,
    read: Box<Read>,
}

/// Registers a gauge that calls `read` at every scrape.
///
/// One collector for each gauge: the registry tells collectors apart by the sum of their gauges'
/// hashes, and for names as alike as web1 and web2 such sums can be the same.
///
/// # Errors
/// Where the name and its labels are taken.
pub fn register(
    registry: &Registry,
    opts: Opts,
    read: impl Fn() -> usize + Send + Sync + 'static,
) -> prometheus::Result<()> {
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
