//! Findings about sessions that were offered to other names.

use super::Found;
use crate::probe::attempt::FinishedHandshake;
use crate::probe::finding::Code;

impl Found<'_> {
    /// Sessions of the tested name that resume for another name.
    pub(super) fn other_names(&mut self) {
        for offered in &self.report.other_names {
            let resumed = offered.offer.as_ref().ok();
            let Some(seen) = resumed.filter(|seen| seen.is_resumed()) else {
                continue;
            };
            let (requests_certificate, certificate) = match &offered.full {
                Ok(seen) => (seen.certificate_requested, seen.certificate),
                Err(failed) => (failed.certificate_requested, None),
            };
            let label = self.report.server_label(offered.address);
            let [name, own] = [&offered.name, &self.report.server_name];
            let is_open_to_all = offered.full.as_ref().is_ok_and(is_answered);
            if is_open_to_all {
                // The other name asks for a certificate, but serves clients without one.
                continue;
            }
            if requests_certificate && !self.report.requests_certificate(offered.address) {
                let text = format!(
                    "{label} requests a client certificate for {name}, and resumed a session of {own} for {name} \
                     without a request"
                );
                let (code, text) = match seen.status {
                    Some(status) if (200..300).contains(&status) => {
                        let end = "A client without a certificate gets in, as in CVE-2025-23419.";
                        let text = format!("{text}. It answered HEAD / with {status}. {end}");
                        (Code::SkipsClientCertificate, text)
                    }
                    Some(status) => {
                        let text = format!("{text}. It refused HEAD / with {status}.");
                        (Code::ResumesForOtherName, text)
                    }
                    None => {
                        let end = "The probe got no HTTP response, so it does not know whether the server checks.";
                        (Code::ResumesForOtherName, format!("{text}. {end}"))
                    }
                };
                self.add(code, Some(offered.how), vec![offered.address], text);
            } else if certificate.is_some() && certificate != offered.certificate {
                let text = format!(
                    "{label} resumed a session of {own} for {name}, which has another certificate."
                );
                let code = Code::ResumesForOtherName;
                self.add(code, Some(offered.how), vec![offered.address], text);
            }
        }
    }
}

/// True if the server answered the request with success.
fn is_answered(seen: &FinishedHandshake) -> bool {
    seen.status
        .is_some_and(|status| (200..300).contains(&status))
}
