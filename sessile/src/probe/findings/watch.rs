//! Findings about what happened while the probe watched.

use std::net::SocketAddr;
use std::time::Duration;

use humantime::{format_duration, format_rfc3339_seconds};
use sessile_proto::verdict::How;

use super::Found;
use crate::probe::events::{ProbeEvent, Watched};
use crate::probe::finding::Code;

/// The time after which a key of TLS 1.2 tickets is old. Who steals the key reads all connections of its time.
const OLD_KEY: Duration = Duration::from_secs(24 * 60 * 60);

impl Found<'_> {
    pub(super) fn watched(&mut self) {
        let Some(watched) = &self.report.watched else {
            return;
        };
        for &address in &self.report.addresses {
            for tested in &self.report.mechanisms {
                self.losses(watched, tested.how, address);
            }
        }
        for age in &watched.key_ages {
            if age.how == How::Ticket && age.age > OLD_KEY {
                let hours = Duration::from_secs(age.age.as_secs() / 3600 * 3600);
                let deed = format!(
                    "sealed TLS 1.2 tickets with the same key for {}. Who gets the key reads all connections of this \
                     time.",
                    format_duration(hours)
                );
                self.observe(Code::OldTicketKey, Some(age.how), age.address, deed);
            }
        }
    }

    fn losses(&mut self, watched: &Watched, how: How, address: SocketAddr) {
        let losses = || {
            watched
                .losses()
                .filter(|event| (event.how, event.address) == (Some(how), address))
        };
        let Some(first) = losses().next() else { return };
        let with_other_key = losses().filter(|event| has_other_key(event)).count();
        let count = losses().count();
        let times = match count {
            1 => "once".to_owned(),
            count => format!("{count} times"),
        };
        let mut deed = format!(
            "lost its sessions {times} while the probe watched, first at {}.",
            format_rfc3339_seconds(first.at)
        );
        deed += match with_other_key {
            0 => " The ticket key did not change: a restart or a full cache can be the cause.",
            changed if changed == count => {
                " The ticket key changed at the same time: the server restarted or reloaded without its keys, or the \
                 key before was not kept."
            }
            _ => " The ticket key changed at some of these times.",
        };
        self.observe(Code::LostWhileWatched, Some(how), address, deed);
    }
}

fn has_other_key(event: &ProbeEvent) -> bool {
    event.event.keys().is_some()
}
