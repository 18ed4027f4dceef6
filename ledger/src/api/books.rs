//! The ledger itself, its books, and reputation [5.2].

use candid::{CandidType, Principal};
use serde::{Deserialize, Serialize};

use super::{Amount, ContractId, Digest32, TimeNs};

/// What a client must know of the ledger it talks to.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct LedgerInfo {
    /// Name from the genesis.
    pub name: String,
    /// Its canister id: the ledger id of DESIGN's bindings.
    pub ledger: Principal,
    /// Whether genesis calls itself a demo (balances out of nothing, test roots, a fast clock).
    pub demo: bool,
    /// The ledger's clock runs so many times as fast as the wall clock (1 outside of demos).
    pub clock_rate: u32,
    /// The ledger's time now.
    pub now: TimeNs,
    /// SHA-256 of each test root (DER certificate) that the genesis names; empty outside of tests and demos.
    pub test_roots: Vec<Digest32>,
    /// Blocks so far.
    pub height: u64,
    /// Hash of the last block.
    pub tip: Digest32,
    /// Fee of a payment in basis points [5.2].
    pub fee_bps: u32,
    /// Of that fee, the DAO's part in basis points.
    pub dao_bps: u32,
    /// Fee of an ICRC-1 transfer.
    pub transfer_fee: Amount,
}

/// A change of somebody's reputation.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct ReputationChange {
    /// When.
    pub at: TimeNs,
    /// By how much, base units.
    pub delta: i64,
    /// Why.
    pub reason: String,
    /// The contract it came from.
    pub contract: Option<ContractId>,
}

/// Somebody's reputation with its history, newest last.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Reputation {
    /// Now, base units.
    pub score: u64,
    /// How it came about.
    pub history: Vec<ReputationChange>,
}

/// The books: computed anew from all accounts and contracts when asked.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Invariants {
    /// Tokens that exist.
    pub supply: Amount,
    /// Sum over all accounts, escrow accounts included.
    pub balances: Amount,
    /// Contracts looked at.
    pub contracts: u64,
    /// What doesn't hold, in words; empty: all holds.
    pub violations: Vec<String>,
}
