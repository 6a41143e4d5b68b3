//! What an experiment found. `docs/reference/lab.md` promises the shape of its JSON: fields are added, and
//! none is renamed or removed.

use serde::{Serialize, Serializer};
use sessile_proto::verdict::Verdict;

/// Everything that an experiment found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub experiment: &'static str,
    /// How many times faster than in the article time went by.
    pub scale: u32,
    /// After how long the servers reclaimed an idle connection.
    pub idle_timeout_seconds: f64,
    pub scenarios: Vec<Scenario>,
}

/// A group of servers with their settings, and what became of their clients.
#[derive(Clone, Debug, Serialize)]
pub struct Scenario {
    pub number: u8,
    pub title: &'static str,
    pub servers: Vec<ServerSettings>,
    pub findings: Vec<Finding>,
}

/// What one server was told.
#[derive(Clone, Debug, Serialize)]
pub struct ServerSettings {
    pub name: String,
    /// The text of a `.reg` file.
    pub registry: &'static str,
}

/// What the article says of one case, and what was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub case: &'static str,
    pub article: &'static str,
    pub observed: String,
    /// Whether what was seen is what the article says.
    pub ok: bool,
    /// The handshakes that the finding rests on, in their order.
    pub visits: Vec<Visit>,
}

/// One handshake and what it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Visit {
    /// Who says that it answered.
    pub server: String,
    /// What the server says that the handshake came to.
    #[serde(serialize_with = "as_text")]
    pub verdict: Verdict,
    /// What the client read from the wire.
    pub resumed: bool,
    /// The balancer's rule; nothing where there is no balancer.
    pub routed_by: Option<String>,
    /// The session ID that the client offered, hexadecimal.
    pub offered: Option<String>,
    /// The session ID that it can offer next time.
    pub session_id: Option<String>,
}

fn as_text<S: Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(verdict)
}

impl Report {
    /// Whether everything was as the article says.
    #[must_use]
    pub fn all_ok(&self) -> bool {
        self.findings().all(|finding| finding.ok)
    }

    /// Every finding of every scenario.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.scenarios
            .iter()
            .flat_map(|scenario| &scenario.findings)
    }

    /// The report as JSON, indented, without a final line break.
    ///
    /// # Errors
    ///
    /// Never in practice: every key is text and every number finite.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

impl Visit {
    /// Whether the handshake came to that, by the server's word and by what went over the wire.
    #[must_use]
    pub fn came_to(&self, verdict: Verdict) -> bool {
        self.verdict == verdict && self.resumed == matches!(verdict, Verdict::Resumed(_))
    }

    /// Who answered, what it came to, and what became of the session ID.
    #[must_use]
    pub fn told(&self) -> String {
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

/// A report of one scenario, of which one half differs.
#[cfg(test)]
pub(super) fn sample() -> Report {
    use sessile_proto::verdict::Reason;
    let visit = Visit {
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
        observed: visit.told(),
        ok,
        visits: vec![visit.clone()],
    };
    Report {
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
    fn one_finding_that_differs_makes_the_report_differ() {
        let mut report = sample();
        assert!(!report.all_ok());
        report.scenarios[0].findings.truncate(1);
        assert!(report.all_ok());
    }

    #[test]
    fn a_verdict_counts_only_where_the_wire_agrees_with_it() {
        let mut visit = sample().scenarios[0].findings[0].visits[0].clone();
        assert!(visit.came_to(Verdict::Full(Reason::Purged)));
        assert!(!visit.came_to(Verdict::Full(Reason::Expired)));
        visit.verdict = Verdict::Resumed(How::SessionId);
        assert!(!visit.came_to(visit.verdict));
        visit.resumed = true;
        assert!(visit.came_to(visit.verdict));
    }

    #[test]
    fn what_became_of_the_session_id_is_told() {
        let visit = sample().scenarios[0].findings[0].visits[0].clone();
        let told = |offered: Option<&str>, session_id: Option<&str>| {
            let visit = Visit {
                offered: offered.map(str::to_owned),
                session_id: session_id.map(str::to_owned),
                routed_by: None,
                ..visit.clone()
            };
            visit.told()
        };
        assert_eq!(
            told(Some("0a"), Some("0a")),
            "web1: full/purged, same session ID"
        );
        assert_eq!(told(None, Some("0a")), "web1: full/purged, new session ID");
        assert_eq!(told(Some("0a"), None), "web1: full/purged, no session ID");
    }

    #[test]
    fn as_json_it_has_the_promised_shape() {
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
