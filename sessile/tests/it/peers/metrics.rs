//! The metrics of `/metrics`, parsed as Prometheus does.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Limit of the time until the admin listener answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a request (method and path) to the admin listener. Returns the status and the JSON.
pub(super) fn ask(
    admin: SocketAddr,
    request: &str,
    token: Option<&str>,
    body: &str,
) -> (u16, Value) {
    let (status, body) = text(admin, request, token, body);
    let json = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
    (status, json)
}

/// Sends a request (method and path) to the admin listener. Returns the status and the body.
pub(super) fn text(
    admin: SocketAddr,
    request: &str,
    token: Option<&str>,
    body: &str,
) -> (u16, String) {
    let mut io = TcpStream::connect(admin).expect("the admin listener");
    io.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let token = token.map_or(String::new(), |it| {
        format!("authorization: Bearer {it}\r\n")
    });
    let length = body.len();
    let request = format!(
        "{request} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n{token}content-length: {length}\r\n\r\n{body}"
    );
    io.write_all(request.as_bytes()).expect("a request");
    let mut response = String::new();
    io.read_to_string(&mut response).expect("a response");
    let (head, body) = response.split_once("\r\n\r\n").expect("a whole head");
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
    (status.expect("a status"), body.to_owned())
}

/// The result of one scrape.
pub(crate) struct Metrics(Vec<Series>);

struct Series {
    name: String,
    /// The labels as text: `server="web1",verdict="full/unknown"`.
    labels: String,
    value: u64,
}

impl Metrics {
    pub(crate) fn fetch(admin: SocketAddr) -> Self {
        let mut io = TcpStream::connect(admin).expect("the admin listener");
        io.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let request = "GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n";
        io.write_all(request.as_bytes()).expect("a request");
        let mut response = String::new();
        io.read_to_string(&mut response).expect("a response");
        let (head, body) = response.split_once("\r\n\r\n").expect("a whole head");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Self::parse(body)
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
            Some(Series {
                name: name.to_owned(),
                labels: labels.trim_end_matches('}').to_owned(),
                // Counters are integers. Tests do not read sums of seconds.
                value: value.parse().ok()?,
            })
        });
        Self(series.collect())
    }

    /// The sum of all series with a name and these label values.
    ///
    /// # Panics
    ///
    /// If no series matches, so that a misspelt name does not count as zero.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let written = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{value}\""));
        let wanted: Vec<String> = written.collect();
        let is_wanted = |series: &&Series| {
            let has = |label: &String| series.labels.split(',').any(|its| its == label);
            series.name == name && wanted.iter().all(has)
        };
        let found: Vec<u64> = self.0.iter().filter(is_wanted).map(|it| it.value).collect();
        assert!(!found.is_empty(), "no series {name} with {labels:?}");
        found.iter().sum()
    }

    /// Finished handshakes with a verdict, over all servers.
    pub(crate) fn verdict(&self, verdict: &str) -> u64 {
        self.sum("sessile_handshakes_total", &[("verdict", verdict)])
    }

    /// All finished handshakes, over all servers.
    pub(crate) fn handshakes(&self) -> u64 {
        self.sum("sessile_handshakes_total", &[])
    }

    /// Connections that the balancer routed, by rule and outcome.
    pub(crate) fn routed(&self, by: &str, outcome: &str) -> u64 {
        let labels = [("routed_by", by), ("outcome", outcome)];
        self.sum("sessile_balance_connections_total", &labels)
    }

    /// All connections that the balancer routed.
    pub(crate) fn all_routed(&self) -> u64 {
        self.sum("sessile_balance_connections_total", &[])
    }

    /// Connections that the balancer refused.
    pub(crate) fn turned_away(&self, cause: &str) -> u64 {
        self.sum("sessile_balance_turned_away_total", &[("cause", cause)])
    }

    /// Sessions that the balancer has learned.
    pub(crate) fn learned(&self) -> u64 {
        self.sum("sessile_balance_learned_entries", &[])
    }
}

/// All series that are not zero.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for series in self.0.iter().filter(|series| series.value > 0) {
            writeln!(f, "{}{{{}}} {}", series.name, series.labels, series.value)?;
        }
        Ok(())
    }
}
