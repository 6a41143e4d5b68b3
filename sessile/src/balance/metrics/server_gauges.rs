//! Gauges of each server. They are read at each scrape, because no event marks the end of an ejection or of a
//! slow start.
//!
//! A removed server has no series.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts, Registry};
use sessile_proto::Word;
use sessile_proto::health_state::ServerState;

/// A server at the time of a scrape.
pub(in crate::balance) struct ServerReading {
    pub(in crate::balance) name: String,
    pub(in crate::balance) state: ServerState,
    /// True if health checks say that the server is down.
    pub(in crate::balance) is_down: bool,
    pub(in crate::balance) has_session_fault: bool,
    /// The age in seconds above which the server refuses its sessions. 0: no age limit is known.
    pub(in crate::balance) age_limit: f64,
    pub(in crate::balance) key_names: usize,
    /// The number of other servers that share a ticket key with this server.
    pub(in crate::balance) siblings: usize,
}

struct ServerGauge {
    name: &'static str,
    help: &'static str,
    value: fn(&ServerReading) -> f64,
}

const GAUGES: [ServerGauge; 5] = [
    ServerGauge {
        name: "sessile_balance_server_up",
        help: "0 if checks say that this server is down, else 1.",
        value: |server| f64::from(!server.is_down),
    },
    ServerGauge {
        name: "sessile_balance_server_session_fault",
        help: "1 while this server ends handshakes that offer its own session and finishes others, else 0.",
        value: |server| f64::from(server.has_session_fault),
    },
    ServerGauge {
        name: "sessile_balance_server_forgets_after_seconds",
        help: "The age from which this server refuses its own unexpired sessions; 0 if it refuses none.",
        value: |server| server.age_limit,
    },
    ServerGauge {
        name: "sessile_balance_server_key_names",
        help: "Proven key names of this server's tickets.",
        value: |server| server.key_names as f64,
    },
    ServerGauge {
        name: "sessile_balance_server_group_size",
        help: "Servers that share a ticket key with this server, itself included.",
        value: |server| (server.siblings + 1) as f64,
    },
];

/// Registers the gauges. `read` is called at each scrape.
pub(in crate::balance) fn register_servers(
    registry: &Registry,
    read: impl Fn() -> Vec<ServerReading> + Send + Sync + 'static,
) -> prometheus::Result<()> {
    registry.register(Box::new(ServerCollector {
        describing: GaugeFamilies::new()?,
        read: Box::new(read),
    }))
}

struct ServerCollector {
    /// These families are never set. Each scrape makes its own families, so that two scrapes at once do not
    /// mix.
    describing: GaugeFamilies,
    read: Box<dyn Fn() -> Vec<ServerReading> + Send + Sync>,
}

struct GaugeFamilies {
    /// In the order of [`GAUGES`].
    gauges: Vec<GaugeVec>,
    state: GaugeVec,
}

impl GaugeFamilies {
    fn new() -> prometheus::Result<Self> {
        let gauges = GAUGES.map(|ServerGauge { name, help, .. }| {
            GaugeVec::new(Opts::new(name, help), &["server"])
        });
        let state = Opts::new(
            "sessile_balance_server_state",
            "State of this server: 1 for the current state, else 0.",
        );
        Ok(Self {
            gauges: gauges.into_iter().collect::<Result<_, _>>()?,
            state: GaugeVec::new(state, &["server", "state"])?,
        })
    }

    fn set(&self, server: &ServerReading) {
        let name = server.name.as_str();
        for (family, gauge) in self.gauges.iter().zip(GAUGES) {
            let value = (gauge.value)(server);
            family.with_label_values(&[name]).set(value);
        }
        for state in ServerState::all() {
            let gauge = self.state.with_label_values(&[name, state.as_str()]);
            gauge.set(f64::from(state == server.state));
        }
    }

    fn all(&self) -> impl Iterator<Item = &GaugeVec> {
        self.gauges.iter().chain([&self.state])
    }
}

impl Collector for ServerCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.describing.all().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(families) = GaugeFamilies::new() else {
            return Vec::new();
        };
        for server in (self.read)() {
            families.set(&server);
        }
        families.all().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    fn reading(name: &str, state: ServerState) -> ServerReading {
        ServerReading {
            name: name.to_owned(),
            state,
            is_down: state == ServerState::Down,
            has_session_fault: state == ServerState::Down,
            age_limit: 300.5,
            key_names: 2,
            siblings: 3,
        }
    }

    #[test]
    fn each_scrape_shows_the_servers_of_its_time() {
        let registry = Registry::new();
        let read = || {
            let (up, down) = (ServerState::Up, ServerState::Down);
            vec![reading("web1", up), reading("web2", down)]
        };
        register_servers(&registry, read).unwrap();
        for _ in 0..2 {
            let encoder = TextEncoder::new();
            let page = encoder.encode_to_string(&registry.gather()).unwrap();
            for line in [
                "server_state{server=\"web1\",state=\"up\"} 1",
                "server_state{server=\"web1\",state=\"down\"} 0",
                "server_up{server=\"web1\"} 1",
                "server_up{server=\"web2\"} 0",
                "server_session_fault{server=\"web1\"} 0",
                "server_session_fault{server=\"web2\"} 1",
                "server_forgets_after_seconds{server=\"web1\"} 300.5",
                "server_key_names{server=\"web1\"} 2",
                "server_group_size{server=\"web1\"} 4",
            ] {
                assert!(
                    page.contains(&format!("\nsessile_balance_{line}\n")),
                    "{page}"
                );
            }
        }
    }
}
