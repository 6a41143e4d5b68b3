//! Checks of the servers of `sessile balance`, and what says nothing about a server.

use crate::balance_servers::{named, server, start};
use crate::peers::Certificates;

#[test]
fn a_check_that_this_host_cannot_make_takes_no_server_down() {
    let certificates = Certificates::new();
    let near = named(&certificates, "near");
    let settings = "health = \"tcp\"\nhealth-interval = \"20ms\"";
    // No connection leads to a broadcast address: the system says that the network is unreachable.
    let far = "255.255.255.255:443".parse().unwrap();
    let rest = [server("far", far, ""), server("near", near.address(), "")];
    let balancer = start(certificates.folder(), settings, &rest);
    let own_failures = "sessile_balance_own_failures_total";
    balancer.await_metrics(|metrics| metrics.sum(own_failures, &[]) > 4);
    let far = balancer.await_server("far", |_| true);
    assert_eq!(far["state"], "up", "{far:#}");
}
