//! Names and values that users of `sessile balance` depend on, in the metrics and in the API's JSON.
//! The expected texts change only when a name is added.

use serde_json::Value;

use crate::balance_servers::{server, start};
use crate::peers::free_port;

const METRICS: &str = include_str!("balance_contract/metrics.txt");

const API: &str = include_str!("balance_contract/api.json");

/// The lines about the balancer, without the other metrics of the process.
fn balance_lines(metrics: &str) -> Vec<&str> {
    let lines = metrics.lines();
    lines
        .filter(|line| line.contains("sessile_balance_"))
        .collect()
}

#[test]
fn metrics_and_api_of_a_new_balancer_have_their_documented_names() {
    let folder = tempfile::tempdir().unwrap();
    let address = ([127, 0, 0, 1], free_port()).into();
    let settings = "health = \"off\"";
    let balancer = start(folder.path(), settings, &[server("a", address, "")]);
    let metrics = balancer.metrics_text();
    assert_eq!(balance_lines(&metrics), balance_lines(METRICS));

    let expected: Value = serde_json::from_str(API).unwrap();
    let mut shown = balancer.snapshot();
    let shown_address = shown["servers"][0]["address"].take();
    assert_eq!(shown_address, address.to_string());
    // Compare the JSON as text, because the order of the keys counts, too.
    let text = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    assert_eq!(text(&shown), text(&expected));
}
