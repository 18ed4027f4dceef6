//! The public ledger: what holds money, contracts and reputations.
//!
//! | module | what |
//! |---|---|
//! | [`api`] | the Candid types and method names that everything here speaks |
//! | [`crypto`] | public keys, their principals, and signatures of the three kinds that the Internet Computer knows |
//! | [`protocol`] | the rules: a deterministic state machine over blocks |
//! | [`client`] | the typed client on `ic-agent` that hostd and `decent` use |
pub mod api;
mod bytes;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "crypto")]
pub mod crypto;
#[cfg(feature = "protocol")]
pub mod protocol;
