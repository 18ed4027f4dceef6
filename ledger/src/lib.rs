//! The public ledger: what holds money, contracts and reputations.
//!
//! | module | what |
//! |---|---|
//! | [`api`] | the Candid types and method names that everything here speaks |
//! | [`protocol`] | the paper's rules as a deterministic state machine over blocks |
//! | [`node`] | `ledgerd`: one node behind the Internet Computer's HTTP interface |
//! | [`client`] | the typed client on `ic-agent` that hostd and `decent` use |
//! | [`name_proof`] | the DNS record by which a developer proves a name |
//! | [`crypto`] | public keys, their principals, and signatures of the three kinds that the Internet Computer knows |
pub mod api;
mod bytes;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "crypto")]
pub mod crypto;
pub mod name_proof;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "protocol")]
pub mod protocol;
