//! The results of an experiment. `docs/reference/lab.md` promises the JSON format: later versions add fields,
//! but rename and remove none.

use serde::{Serialize, Serializer};
use sessile_proto::verdict::Verdict;

/// The results of an experiment.
#[derive(Clone, Debug, Serialize)]
pub struct LabReport {
    pub experiment: &'static str,
    /// The factor by which time was compressed.
    pub scale: u32,
    /// The idle time after which servers reclaim a connection.
    pub idle_timeout_seconds: f64,
    pub scenarios: Vec<Scenario>,
}

/// A group of servers with their settings, and the findings about their clients.
#[derive(Clone, Debug, Serialize)]
pub struct Scenario {
    pub number: u8,
    pub title: &'static str,
    pub servers: Vec<ServerSettings>,
    /// How many connections had their TLS records in the kernel.
    pub kernel_connections: u64,
    pub findings: Vec<Finding>,
}

/// The registry settings of one server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerSettings {
    pub name: String,
    /// The text of a `.reg` file.
    pub registry: &'static str,
}

/// The article's statement about one case, and the observation.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub case: &'static str,
    pub article: &'static str,
    pub observed: String,
    /// True if the observation confirms the article's statement.
    pub ok: bool,
    /// The handshakes behind the finding, in their order.
    pub visits: Vec<LabVisit>,
}

/// One handshake of a client and its result.
#[derive(Clone, Debug, Serialize)]
pub struct LabVisit {
    /// The name that the server states.
    pub server: String,
    /// The verdict that the server states.
    #[serde(serialize_with = "as_text")]
    pub verdict: Verdict,
    /// True if the client saw on the wire that the session was resumed.
    pub resumed: bool,
    /// The balancer's rule, if there is a balancer.
    pub routed_by: Option<String>,
    /// The session ID that the client offered, in hexadecimal.
    pub offered: Option<String>,
    /// The session ID that the client can offer next.
    pub session_id: Option<String>,
}

fn as_text<S: Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(verdict)
}

impl LabReport {
    /// True if all observations are as the article says.
    #[must_use]
    pub fn all_ok(&self) -> bool {
        self.findings().all(|finding| finding.ok)
    }

    /// How many connections had their TLS records in the kernel.
    #[must_use]
    pub fn kernel_connections(&self) -> u64 {
        let scenarios = self.scenarios.iter();
        scenarios.map(|scenario| scenario.kernel_connections).sum()
    }

    /// The findings of all scenarios.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.scenarios
            .iter()
            .flat_map(|scenario| &scenario.findings)
    }

    /// The report as JSON, indented, without a final line break.
    ///
    /// # Errors
    ///
    /// Never in practice: all keys are text and all numbers are finite.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

impl LabVisit {
    /// True if the server states this verdict and the wire confirms it.
    #[must_use]
    pub fn has_verdict(&self, verdict: Verdict) -> bool {
        self.verdict == verdict && self.resumed == matches!(verdict, Verdict::Resumed(_))
    }

    /// The server, the verdict and the session ID in one line.
    #[must_use]
    pub fn describe(&self) -> String {
        let id = match (&self.offered, &self.session_id) {
            (_, None) => "no session ID",
            (Some(offered), Some(id)) if offered == id => "same session ID",
            (_, Some(_)) => "new session ID",
        };
        let by = match &self.routed_by {
            Some(by) => format!(", routed by {by}"),
            None => String::new(),
        };
        format!("{}: {}, {id}{by}", self.server, self.verdict)
    }
}

/// A report of one scenario with two findings. The second observation differs from the article.
#[cfg(test)]
pub(super) fn sample() -> LabReport {
    use sessile_proto::verdict::Reason;
    let visit = LabVisit {
        server: "web1".to_owned(),
        verdict: Verdict::Full(Reason::Purged),
        resumed: false,
        routed_by: Some("session-id".to_owned()),
        offered: Some("0a".to_owned()),
        session_id: Some("0b".to_owned()),
    };
    let finding = |case, article, ok| Finding {
        case,
        article,
        observed: visit.describe(),
        ok,
        visits: vec![visit.clone()],
    };
    LabReport {
        experiment: "lab",
        scale: 7,
        idle_timeout_seconds: 300.0 / 7.0,
        scenarios: vec![Scenario {
            number: 1,
            title: "EnableKernelSSL=0",
            servers: vec![ServerSettings {
                name: "web1".to_owned(),
                registry: "REGEDIT4\n",
            }],
            kernel_connections: 0,
            findings: vec![
                finding(
                    "back",
                    "the session ID was purged with the connection's object",
                    true,
                ),
                finding("and again", "resumes", false),
            ],
        }],
    }
}

#[cfg(test)]
mod tests {
    use sessile_proto::verdict::{How, Reason};

    use super::*;

    #[test]
    fn a_report_is_ok_only_if_every_finding_is() {
        let mut report = sample();
        assert!(!report.all_ok());
        report.scenarios[0].findings.truncate(1);
        assert!(report.all_ok());
    }

    #[test]
    fn a_verdict_counts_only_if_the_wire_confirms_it() {
        let mut visit = sample().scenarios[0].findings[0].visits[0].clone();
        assert!(visit.has_verdict(Verdict::Full(Reason::Purged)));
        assert!(!visit.has_verdict(Verdict::Full(Reason::Expired)));
        visit.verdict = Verdict::Resumed(How::SessionId);
        assert!(!visit.has_verdict(visit.verdict));
        visit.resumed = true;
        assert!(visit.has_verdict(visit.verdict));
    }

    #[test]
    fn describes_what_became_of_the_session_id() {
        let visit = sample().scenarios[0].findings[0].visits[0].clone();
        let describe = |offered: Option<&str>, session_id: Option<&str>| {
            let visit = LabVisit {
                offered: offered.map(str::to_owned),
                session_id: session_id.map(str::to_owned),
                routed_by: None,
                ..visit.clone()
            };
            visit.describe()
        };
        assert_eq!(
            describe(Some("0a"), Some("0a")),
            "web1: full/purged, same session ID"
        );
        assert_eq!(
            describe(None, Some("0a")),
            "web1: full/purged, new session ID"
        );
        assert_eq!(
            describe(Some("0a"), None),
            "web1: full/purged, no session ID"
        );
    }

    #[test]
    fn the_json_has_the_promised_format() {
        let json: serde_json::Value = serde_json::from_str(&sample().json().unwrap()).unwrap();
        let scenario = &json["scenarios"][0];
        assert_eq!(scenario["servers"][0]["registry"], "REGEDIT4\n");
        assert_eq!(scenario["findings"][1]["ok"], false);
        let visit = serde_json::json!({
            "server": "web1",
            "verdict": "full/purged",
            "resumed": false,
            "routed_by": "session-id",
            "offered": "0a",
            "session_id": "0b",
        });
        assert_eq!(scenario["findings"][0]["visits"][0], visit);
        assert_eq!(json["scale"], 7);
    }
}
