//! Names and labels of the metrics that users of `sessile serve` depend on. The expected text changes only
//! when a name is added.

use std::fs;

use crate::peers::{Certificates, Sessile, free_port};

const METRICS: &str = include_str!("serve_contract/metrics.txt");

/// The lines of `/metrics` without values.
fn names(metrics: &str) -> Vec<&str> {
    let without_value = |line| match line {
        comment if str::starts_with(comment, "# ") => comment,
        series => series.rsplit_once(' ').map_or(series, |(name, _)| name),
    };
    metrics.lines().map(without_value).collect()
}

#[test]
fn metrics_of_a_new_server_have_their_documented_names() {
    let certificates = Certificates::new();
    let config = certificates.folder().join("sessile.toml");
    let upstream = free_port();
    let text = format!(
        "[server]\nname = \"web1\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[site]]\ncertificates = [{{ chain = {:?}, key = {:?} }}]\n\
         [[site.route]]\npath = \"/\"\nproxy = \"app\"\n\
         [[upstream]]\nname = \"app\"\nservers = [\"http://127.0.0.1:{upstream}\"]\n",
        certificates.chain, certificates.key
    );
    fs::write(&config, text).unwrap();
    let server = Sessile::serve_configured(&config, certificates.folder());
    let metrics = server.metrics_text();
    assert_eq!(names(&metrics), names(METRICS), "{metrics}");
}
