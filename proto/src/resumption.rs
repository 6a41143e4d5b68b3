//! Decides whether a session resumes, and which sessions a handshake gives to its client.
//!
//! Inputs: the policy of a site, the offers of a hello, the answers of a store, and the present time.
//! Outputs: sessions for the TLS library, a reason for each refusal, new sessions, and the verdict. The
//! TLS library does the cryptography, and the caller talks to the store.

mod early_data;
mod giving;
mod handshake;
mod offers;
mod policy;
mod store_key;

pub use early_data::{ConsumedSession, EarlyDataPlan, EarlyDataRequest, EarlyDataTerms, TicketAge};
pub use handshake::{Candidate, Decision, Fetched, Inputs, NewSession, Progress, Resumption};
pub use offers::{Offers, stored_sessions};
pub use policy::{Cache, Policy, Tickets};
pub use store_key::StoreKey;

#[cfg(test)]
mod tests;
