//! Follows the handshake of one connection in the bytes of both sides, until the balancer has learned all that
//! these bytes show.

use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Instant;

use sessile_proto::hello::TLS_1_2;
use sessile_proto::watch::{Completion, CompletionWatch, Kind, Learned, Outcome, Watch};

use super::outcome::RoutedConnection;
use super::state::BalancerState;

/// The handshake of a connection through the balancer.
pub(super) struct Handshake<'a> {
    state: &'a BalancerState,
    connection: &'a RoutedConnection,
    watch: Watch,
    /// `None` if the connection does not teach its address, or not any more.
    completion: Option<CompletionWatch>,
    has_answered: bool,
    /// True after the outcome was reported.
    pub(super) has_outcome: bool,
}

impl<'a> Handshake<'a> {
    pub(super) const fn new(
        state: &'a BalancerState,
        connection: &'a RoutedConnection,
        watch: Watch,
        completion: Option<CompletionWatch>,
    ) -> Self {
        Self {
            state,
            connection,
            watch,
            completion,
            has_answered: false,
            has_outcome: false,
        }
    }

    /// Takes bytes of the server before the client gets them. Breaks when no more bytes are needed.
    pub(super) fn take_server_bytes(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        if !self.has_answered {
            self.has_answered = true;
            self.connection.server.record_answer(Instant::now());
        }
        if let Some(completion) = &mut self.completion {
            completion.push_server(bytes);
        }
        if let Some(outcome) = self.watch.push(bytes) {
            self.report(&outcome);
        }
        if !self.has_outcome {
            return Continue(());
        }
        let Some(completion) = &self.completion else {
            return Break(());
        };
        match completion.result() {
            Completion::Pending => return Continue(()),
            Completion::Complete => self.connection.learn_address(self.state),
            Completion::Unknown => {}
        }
        self.completion = None;
        Break(())
    }

    /// Takes bytes of the client. Breaks when no more bytes are needed.
    pub(super) fn take_client_bytes(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        let Some(completion) = &mut self.completion else {
            return Break(());
        };
        completion.push_client(bytes);
        if completion.awaits_client() {
            Continue(())
        } else {
            Break(())
        }
    }

    fn report(&mut self, outcome: &Outcome) {
        self.has_outcome = true;
        let selected_identity = self.watch.selected_identity();
        self.connection
            .report_handshake(self.state, outcome, selected_identity);
        if outcome.version <= TLS_1_2 {
            self.completion = None;
            if proves_a_ticket(outcome) {
                self.connection.learn_address(self.state);
            }
        }
    }
}

/// True if the client has a new ticket of TLS 1.2. In a full handshake, the server's ChangeCipherSpec shows that
/// the server has verified the client's Finished.
fn proves_a_ticket(outcome: &Outcome) -> bool {
    let is_full = matches!(outcome.kind, Kind::Refused | Kind::NotOffered);
    let mut learned = outcome.learned.iter();
    is_full && learned.any(|learned| matches!(learned, Learned::Ticket(_)))
}
