//! The ledger itself, its books, and reputation [5.2].

use candid::{CandidType, Principal};
use serde::{Deserialize, Serialize};

use super::{Amount, ContractId, Digest32, TcbFloor, TimeNs};

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
    /// What hosts must have booted for `host-verified`.
    pub host_images: HostImages,
    /// Floors for TCB versions of SEV-SNP that hold beside those of requests.
    pub min_tcb: ProductFloors,
}

/// Which images a host may run to be `host-verified`.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostImages {
    /// Who signs reference values of known versions: P-256 public keys, PEM; at most 16. Every version that one of them
    /// signed for is known, so that an old and a new one count together while hosts are being updated.
    pub keys: Vec<String>,
    /// Versions that don't count any more, by the name in their reference values; at most 256.
    pub refused: Vec<String>,
    /// How long a host's quote counts after its nonce was made, ledger seconds.
    pub valid_s: u64,
}

impl Default for HostImages {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            refused: Vec::new(),
            valid_s: 86_400,
        }
    }
}

/// A floor for each product line of SEV-SNP. Where there is none, a request must give one of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, CandidType, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProductFloors {
    /// EPYC 7003.
    pub milan: Option<TcbFloor>,
    /// EPYC 9004 and 8004.
    pub genoa: Option<TcbFloor>,
    /// EPYC 9005.
    pub turin: Option<TcbFloor>,
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
