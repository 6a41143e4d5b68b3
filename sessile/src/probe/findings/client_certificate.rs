//! Findings about answers that change with resumption. A resumed handshake has no certificate of the client: the server
//! must know it from the session.

use std::net::SocketAddr;

use super::Found;
use crate::probe::attempt::FinishedHandshake;
use crate::probe::finding::Code;
use crate::probe::report::MechanismFindings;

impl Found<'_> {
    /// Servers that request a client certificate, and answer otherwise when the session resumed.
    pub(super) fn client_certificates(&mut self, tested: &MechanismFindings) {
        for &address in &self.report.addresses {
            if let Some((code, deed)) = self.changed_answer(tested, address) {
                self.observe(code, Some(tested.how), address, deed);
            }
        }
    }

    fn changed_answer(
        &self,
        tested: &MechanismFindings,
        address: SocketAddr,
    ) -> Option<(Code, String)> {
        let own = tested.attempts.iter();
        let own = own.filter(|attempt| attempt.address == address);
        let seen: Vec<&FinishedHandshake> = own
            .filter(|attempt| attempt.origin.is_none_or(|origin| origin == address))
            .filter_map(|attempt| attempt.seen())
            .collect();
        let full = seen
            .iter()
            .find(|seen| seen.certificate_requested)?
            .status?;
        let mut resumed = seen
            .iter()
            .filter(|seen| seen.is_resumed())
            .filter_map(|seen| seen.status);
        let with = if self.report.has_client_certificate {
            "with the client certificate"
        } else {
            "without a client certificate"
        };
        let deed = |resumed: u16, meaning: &str| {
            format!(
                "answered HEAD / with {full} after a full handshake {with}, and with {resumed} after a resumed one. \
                 {meaning}"
            )
        };
        if is_refusal(full) {
            let answered = resumed.find(|status| !is_refusal(*status))?;
            let meaning = "A client that the server had refused gets in when it returns.";
            return Some((Code::SkipsClientCertificate, deed(answered, meaning)));
        }
        let refused = resumed.find(|status| is_refusal(*status))?;
        let meaning = "The server forgets the client's certificate when the session resumes.";
        Some((Code::ForgetsClientCertificate, deed(refused, meaning)))
    }
}

/// True if the status says that the client may not do this.
const fn is_refusal(status: u16) -> bool {
    matches!(status, 400 | 401 | 403 | 495 | 496)
}
