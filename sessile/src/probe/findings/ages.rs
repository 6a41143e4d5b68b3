//! Findings about the ages at which servers refuse sessions.

use std::time::Duration;

use humantime::format_duration;
use sessile_proto::age_search::FoundAge;

use super::Found;
use crate::probe::finding::Code;

impl Found<'_> {
    pub(super) fn session_ages(&mut self) {
        for age in &self.report.session_ages {
            let Some(found) = age.found else { continue };
            let (code, deed) = match found {
                FoundAge::NotReached { .. } => continue,
                FoundAge::Contradictory { kept, refused } => (
                    Code::LostAfterGap,
                    format!(
                        "refused a session after {}, and resumed an older one after {}. The age alone does not \
                         decide: a full cache or several servers at the address can be the cause.",
                        format_duration(whole(refused)),
                        format_duration(whole(kept)),
                    ),
                ),
                FoundAge::Between { refused, .. } if self.report.is_lost_when_idle(age) => (
                    Code::LostWithIdleConnection,
                    format!(
                        "refused a session after {} in which its first connection was idle, and resumed sessions of \
                         that age whose first connection had ended. The server forgets sessions with idle \
                         connections.",
                        format_duration(whole(refused))
                    ),
                ),
                FoundAge::Between { refused, .. } => {
                    let promised = self.report.promised_lifetime(age.how, age.address);
                    let Some(promised) = promised.filter(|promised| refused < *promised) else {
                        continue;
                    };
                    let deed = format!(
                        "promised to accept tickets for {}, and refused one after {}.",
                        format_duration(promised),
                        format_duration(whole(refused))
                    );
                    (Code::LostBeforeLifetime, deed)
                }
            };
            self.observe(code, Some(age.how), age.address, deed);
        }
    }
}

/// The duration without parts of a millisecond.
fn whole(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
