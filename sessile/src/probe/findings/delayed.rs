//! Findings about returns after a gap.

use sessile_proto::Word;
use sessile_proto::watch::SessionOutcome;

use super::Found;
use crate::probe::after_gap::DelayedReturn;
use crate::probe::finding::Code;
use crate::probe::plan::FirstConnection;

impl Found<'_> {
    /// Sessions that were gone after a gap.
    pub(super) fn delayed(&mut self) {
        self.expired();
        let all = &self.report.delayed;
        for lost in all
            .iter()
            .filter(|it| it.outcome == SessionOutcome::Refused)
        {
            let same_test =
                |other: &&DelayedReturn| (other.how, other.address) == (lost.how, lost.address);
            let kept = || {
                all.iter()
                    .filter(same_test)
                    .filter(|it| it.outcome == SessionOutcome::Resumed)
            };
            let earlier_loss = all.iter().filter(same_test).any(|it| {
                it.outcome == SessionOutcome::Refused
                    && it.first_connection == lost.first_connection
                    && it.gap < lost.gap
            });
            if earlier_loss {
                continue;
            }
            let label = self.report.server_label(lost.address);
            let gap = humantime::format_duration(lost.gap);
            let is_kept_by_close = kept().any(|it| {
                it.gap == lost.gap && it.first_connection == FirstConnection::CloseNotify
            });
            let (code, text) = match lost.first_connection {
                FirstConnection::Idle if is_kept_by_close => (
                    Code::LostWithIdleConnection,
                    format!(
                        "{label} refused a session after {gap} in which its first connection was idle, and resumed \
                         one whose first connection had ended. The server forgets sessions with idle connections."
                    ),
                ),
                FirstConnection::Fin | FirstConnection::Reset if is_kept_by_close => (
                    Code::LostWithoutCloseNotify,
                    format!(
                        "{label} refused a session whose first connection ended without close_notify ({}), and \
                         resumed one after close_notify.",
                        lost.first_connection.as_str()
                    ),
                ),
                fate => {
                    let longest = kept()
                        .filter(|it| it.first_connection == fate && it.gap < lost.gap)
                        .map(|it| it.gap)
                        .max();
                    let known = match longest {
                        Some(longest) => humantime::format_duration(longest).to_string(),
                        None => "once".to_owned(),
                    };
                    let text = format!(
                        "{label} resumed a session after {known}, and refused one after {gap} (first connection: \
                         {}).",
                        fate.as_str()
                    )
                    .replace("after once", "at once");
                    (Code::LostAfterGap, text)
                }
            };
            self.add(code, Some(lost.how), vec![lost.address], text);
        }
    }

    /// Tickets that were not offered, because their lifetime was over.
    fn expired(&mut self) {
        for expired in self
            .report
            .delayed
            .iter()
            .filter(|made| made.outcome == SessionOutcome::NotOffered)
        {
            let promised = self.report.promised_lifetime(expired.how, expired.address);
            if let Some(promised) = promised.filter(|promised| *promised <= expired.age) {
                let deed = format!(
                    "promised to accept tickets for {}, so a client does not offer them later.",
                    humantime::format_duration(promised)
                );
                self.observe(Code::LostAfterGap, Some(expired.how), expired.address, deed);
            }
        }
    }
}
