//! The kinds of findings of a probe, how severe they are, and their remedies.

use std::net::SocketAddr;

use sessile_proto::verdict::How;
use strum::{IntoStaticStr, VariantArray};

use super::remedies::Remedy;

/// Something that the operator of the farm can change, or has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub code: Code,
    /// The mechanisms that show it. Empty if it does not depend on a mechanism.
    pub mechanisms: Vec<How>,
    /// The servers that show it.
    pub servers: Vec<SocketAddr>,
    /// A sentence with the evidence.
    pub text: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Severity {
    /// Connections fail, or sessions are not safe.
    Critical,
    /// Clients pay for full handshakes, or others can have a request of a client executed again.
    Warning,
    /// Good to know.
    Notice,
}

/// The kind of a finding. The words are part of the JSON report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Code {
    /// A server ends handshakes that offer its own sessions.
    EndsResumption,
    /// A session of a name without client certificates resumes for a name that requests them.
    SkipsClientCertificate,
    /// A server seals tickets with a key that everybody can guess.
    WeakTicketKey,
    /// A session is gone while its first connection is idle, but not if that connection ended.
    LostWithIdleConnection,
    /// A session is gone after a gap.
    LostAfterGap,
    /// A server refuses a ticket before the end of the lifetime that it promised.
    LostBeforeLifetime,
    /// A server lost its sessions while the probe watched.
    LostWhileWatched,
    /// A server seals TLS 1.2 tickets with the same key for more than a day.
    OldTicketKey,
    /// Servers do not resume each other's tickets.
    NoSharedTicketKeys,
    /// Servers seal tickets with the same key, and refuse each other's tickets.
    RefusesSharedKeys,
    /// Servers do not resume each other's session IDs.
    NoSharedCache,
    /// A server resumes the sessions of another server, but not the other way round.
    OneWayKeys,
    /// A server resumes only some of the sessions of another server.
    ResumesSometimes,
    /// Several servers with one address share nothing.
    SeveralServersAtAddress,
    /// A server refuses its own sessions.
    ForgetsOwnSessions,
    /// A server promises to accept tickets for more than seven days.
    LifetimeOverSevenDays,
    /// A server accepts the same early data twice, and answers both times.
    EarlyDataReplayed,
    /// A server accepts a client with its certificate, and refuses it when its session resumes.
    ForgetsClientCertificate,
    /// A server requires a client certificate, and the probe has none that it accepts.
    ClientCertificateRequired,
    /// A server requests a client certificate, and finishes handshakes without one.
    ClientCertificateRequested,
    /// Handshakes with a server fail.
    AddressFails,
    /// No server offers a way to resume.
    NoMechanism,
    /// Some servers offer a mechanism, others do not.
    NotOfferedByAll,
    /// A session of one name resumes for another name, which has other rules or another certificate.
    ResumesForOtherName,
    /// A session is gone if its first connection ended without close_notify.
    LostWithoutCloseNotify,
    /// TLS 1.3 tickets come with full handshakes only.
    TicketsInFullHandshakesOnly,
    /// A resumed TLS 1.2 handshake gives a new ticket.
    RenewsTls12Ticket,
    /// A server accepts the same early data twice, and does not answer before the end of the handshake.
    AcceptsEarlyDataTwice,
    /// A server promises to accept tickets after the end of its certificate.
    OutlivesCertificate,
    /// A server gives the same TLS 1.3 ticket in several handshakes.
    RepeatsTickets,
    /// Session IDs are given, but never accepted, and tickets resume.
    UnusableSessionIds,
}

impl Finding {
    /// How bad the finding is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self.code {
            Code::EndsResumption | Code::SkipsClientCertificate | Code::WeakTicketKey => {
                Severity::Critical
            }
            Code::NoSharedTicketKeys
            | Code::RefusesSharedKeys
            | Code::NoSharedCache
            | Code::LifetimeOverSevenDays
            | Code::EarlyDataReplayed
            | Code::LostWithIdleConnection
            | Code::LostAfterGap
            | Code::LostBeforeLifetime
            | Code::LostWhileWatched
            | Code::OldTicketKey
            | Code::OneWayKeys
            | Code::ResumesSometimes
            | Code::SeveralServersAtAddress
            | Code::ForgetsOwnSessions
            | Code::ForgetsClientCertificate
            | Code::ClientCertificateRequired
            | Code::AddressFails
            | Code::NoMechanism
            | Code::NotOfferedByAll => Severity::Warning,
            Code::ClientCertificateRequested
            | Code::ResumesForOtherName
            | Code::LostWithoutCloseNotify
            | Code::TicketsInFullHandshakesOnly
            | Code::RenewsTls12Ticket
            | Code::AcceptsEarlyDataTwice
            | Code::OutlivesCertificate
            | Code::RepeatsTickets
            | Code::UnusableSessionIds => Severity::Notice,
        }
    }

    /// What the operator can do.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self.code {
            Code::EndsResumption => Remedy::MendResumption,
            Code::ResumesSometimes if self.mechanisms == [How::SessionId] => Remedy::ShareCache,
            Code::NoSharedTicketKeys | Code::ResumesSometimes => Remedy::ShareTicketKeys,
            Code::NoSharedCache => Remedy::ShareCache,
            Code::LostWhileWatched | Code::OldTicketKey => Remedy::RotateKeys,
            Code::WeakTicketKey => Remedy::RandomTicketKey,
            Code::RefusesSharedKeys => Remedy::SameContext,
            Code::LifetimeOverSevenDays => Remedy::ShorterLifetime,
            Code::EarlyDataReplayed | Code::AcceptsEarlyDataTwice => Remedy::RefuseReplays,
            Code::LostWithIdleConnection => Remedy::KeepIdleSessions,
            Code::LostAfterGap | Code::LostBeforeLifetime => Remedy::LongerLifetime,
            Code::OneWayKeys => Remedy::DistributeNewKey,
            Code::SeveralServersAtAddress => Remedy::AskEachServer,
            Code::ForgetsOwnSessions if self.mechanisms == [How::SessionId] => Remedy::EnableCache,
            Code::ForgetsOwnSessions => Remedy::AskEachServer,
            Code::ClientCertificateRequired | Code::ClientCertificateRequested => {
                Remedy::GiveCertificate
            }
            Code::SkipsClientCertificate | Code::ResumesForOtherName => Remedy::SeparateNames,
            Code::NoMechanism => Remedy::EnableTickets,
            Code::NotOfferedByAll => Remedy::SameSettings,
            Code::AddressFails
            | Code::ForgetsClientCertificate
            | Code::TicketsInFullHandshakesOnly
            | Code::LostWithoutCloseNotify
            | Code::RenewsTls12Ticket
            | Code::OutlivesCertificate
            | Code::RepeatsTickets
            | Code::UnusableSessionIds => Remedy::None,
        }
    }
}
