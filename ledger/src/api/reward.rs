//! Block rewards, and reputation that is spent [3.1, 5.2, 5.4].

use candid::{CandidType, Principal};
use serde::{Deserialize, Serialize};

use super::{Amount, ContractId, TimeNs};

/// `check_in`: what the caller takes part in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct CheckIn {
    /// Number of the reward block.
    pub block: u64,
    /// When it ends and its reward is paid.
    pub ends_at: TimeNs,
    /// The caller's weight: √reputation, rounded down, and 1.
    pub weight: u64,
    /// What taking part costs at most; it is kept from the caller's share.
    pub fee: Amount,
}

/// `rewards`: the reward block that runs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Rewards {
    /// Its number.
    pub block: u64,
    /// When it ends.
    pub ends_at: TimeNs,
    /// Its own reward.
    pub reward: Amount,
    /// That, and what was carried over from blocks without participants: what will be shared, if anybody takes part.
    pub pool: Amount,
    /// What taking part costs at most.
    pub fee: Amount,
    /// How many take part so far.
    pub participants: u64,
    /// The sum of their weights.
    pub weights: u64,
    /// The weight of the caller, or of the provider whose host the caller is, if it takes part.
    pub own_weight: Option<u64>,
    /// Tokens minted so far.
    pub minted: Amount,
    /// Tokens that can ever be minted.
    pub cap: Amount,
    /// When the reward is halved next.
    pub halves_at: TimeNs,
}

impl Rewards {
    /// What somebody of `weight` would get if nobody else checked in any more: the share less the fee.
    pub fn share(&self, weight: u64) -> Amount {
        let share = u128::from(self.pool) * u128::from(weight) / u128::from(self.weights.max(1));
        let share = Amount::try_from(share).unwrap_or(Amount::MAX);
        share.saturating_sub(self.fee)
    }
}

/// A payment out of a block's reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Payout {
    /// To whom.
    pub to: Principal,
    /// How much was minted for it.
    pub amount: Amount,
}

/// What a `tick` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Ticked {
    /// Contracts that ended, in the order of their deadlines.
    pub ended: Vec<ContractId>,
    /// What a reward block that is over paid; the fees wallet is the last.
    pub payouts: Vec<Payout>,
}

/// `penalise`: spends reputation to lower that of a contract's other side.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct PenaliseArgs {
    /// A contract between the two.
    pub contract: ContractId,
    /// How much of one's own, base units.
    pub amount: u64,
    /// Why, for everybody to read; 1 to 200 characters.
    pub reason: String,
    /// The same penalty with the same memo happens once.
    pub memo: u64,
}

/// What a penalty did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Penalty {
    /// What it cost the caller, base units.
    pub spent: u64,
    /// What the other side lost, base units; no more than it had.
    pub lost: u64,
}
