//! The program and its library against real peers. All tests share one binary, because each binary
//! links the whole program again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod activation;
mod alerts;
mod attacks;
mod balance;
mod balance_addresses;
mod balance_api_servers;
mod balance_checks;
mod balance_contract;
mod balance_labels;
mod balance_names;
mod balance_path;
mod balance_protocols;
mod balance_route_miss;
mod balance_servers;
mod balance_session_fault;
mod balance_session_loss;
mod balance_source;
mod balance_tickets;
mod chromium;
mod client;
mod fairness;
mod farm_clients;
mod farm_life;
mod farm_probe;
mod key;
mod key_export;
mod lab;
mod limits;
mod losses;
mod peers;
mod probe;
mod probe_after;
mod probe_early_data;
mod probe_start_tls;
mod probe_targets;
mod probe_tickets;
mod probe_watch;
mod proxy_protocol;
mod registry;
mod return_routing;
mod returning;
mod rolling;
mod serve_alerts;
mod serve_close;
mod serve_contract;
mod serve_files;
mod serve_large_files;
mod serve_life;
mod serve_parking;
mod serve_proxy;
mod serve_reload;
mod settings;
mod settings_golden;
#[path = "../ktls/site.rs"]
#[allow(dead_code, reason = "the test binary `ktls` uses the rest")]
mod site;
mod small_devices;
mod store;
mod tls_client_auth;
mod verdicts;
mod ways_in;
