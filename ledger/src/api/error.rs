//! Why the ledger refuses.

use candid::CandidType;
use serde::{Deserialize, Serialize};

use super::{Amount, Mismatch};

/// Why the ledger refused.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize, thiserror::Error)]
pub enum LedgerError {
    /// No such thing.
    #[error("{what} not found")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The caller may not do that.
    #[error("not allowed: {why}")]
    NotAllowed {
        /// Who may.
        why: String,
    },
    /// A field of the arguments is wrong.
    #[error("{field}: {why}")]
    Invalid {
        /// Which.
        field: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Not enough money.
    #[error("insufficient funds: {needed} needed, {balance} there (10⁻⁹ DCT)")]
    InsufficientFunds {
        /// What is there.
        balance: Amount,
        /// What it takes.
        needed: Amount,
    },
    /// The contract is in another state.
    #[error("the contract is {state}; that needs {needs}")]
    WrongState {
        /// In words.
        state: String,
        /// In words.
        needs: String,
    },
    /// The offering doesn't fit the request.
    #[error("the offering doesn't fit the request: {}", reasons.iter().map(|r| format!("{} (wanted {}, offered {})", r.field, r.wanted, r.offered)).collect::<Vec<_>>().join("; "))]
    DoesNotFit {
        /// All reasons.
        reasons: Vec<Mismatch>,
    },
    /// The evidence doesn't prove what the contract asks; the money did not move.
    #[error("evidence refused: {}", reasons.join("; "))]
    EvidenceRefused {
        /// Every failed check.
        reasons: Vec<String>,
        /// The attestation result (EAR) as JSON.
        result: String,
    },
}
