//! Health checks of `sessile balance`: local errors and changes of the wall clock say nothing about a server.

use std::fs;

use crate::balance_servers::{named, server, start, visit, write};
use crate::peers::{Certificates, NAME, Sessile, free_port};

#[test]
fn a_check_with_a_local_error_takes_no_server_down() {
    let certificates = Certificates::new();
    let near = named(&certificates, "near");
    let settings = "health = \"tcp\"\nhealth-interval = \"20ms\"";
    // The system refuses connections to a broadcast address: the network is unreachable.
    let far = "255.255.255.255:443".parse().unwrap();
    let rest = [server("far", far, ""), server("near", near.address(), "")];
    let balancer = start(certificates.folder(), settings, &rest);
    let own_failures = "sessile_balance_own_failures_total";
    balancer.await_metrics(|metrics| metrics.sum(own_failures, &[]) > 4);
    let far = balancer.await_server("far", |_| true);
    assert_eq!(far["state"], "up", "{far:#}");
}

#[test]
fn a_wall_clock_that_is_set_back_makes_no_ejection_longer() {
    let certificates = Certificates::new();
    let folder = certificates.folder();
    let alive = named(&certificates, "alive");
    let nobody = ([127, 0, 0, 1], free_port()).into();
    let settings = "policy = \"round-robin\"\nhealth = \"off\"";
    let rest = [
        server("gone", nobody, ""),
        server("alive", alive.address(), ""),
    ];
    let config = write(folder, settings, &rest);
    let clock = folder.join("clock");
    fs::write(&clock, "+0").unwrap();
    let balancer = Sessile::balance_by(&clock, &config, folder);
    for _ in 0..2 {
        assert_eq!(visit(balancer.address(), NAME, None).0, "alive");
    }
    balancer.await_server("gone", |server| server["state"] == "ejected");
    fs::write(&clock, "-1h").unwrap();
    // The ejection still lasts five seconds.
    balancer.await_server("gone", |server| server["state"] == "up");
}
