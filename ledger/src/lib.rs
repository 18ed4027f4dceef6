//! The public ledger: what holds money, contracts and reputations.
pub mod api;
mod bytes;
