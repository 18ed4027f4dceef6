//! Block rewards: the only way in which tokens come into being [5.4].
//!
//! Time is cut into reward blocks of ten minutes from the genesis on. A block's reward is 50 DCT, halved every 210,000
//! blocks, so that all 36 eras together give 20,999,999.99685 DCT. Providers take part in the block that runs by a signed
//! check-in of their own; at its end the reward is shared by weight, ⌊√reputation⌋ + 1, so that newcomers can start. The
//! weight is that of the moment of checking in.
//!
//! Taking part costs 1/100 of the block's reward. Nobody needs tokens for it beforehand: it is kept from the share, at most
//! all of it, and goes to the fees wallet. What nobody takes, and what rounding leaves, is carried over to the next block
//! that has participants.
//!
//! A reward is shared as of its block's end, however late that is noticed: nothing that happens after it counts.

use candid::Principal;

use super::settlement::{SECOND, basis_points};
use super::state::State;
use super::txn::{Txn, account, not_allowed};
use crate::api::{Amount, CheckIn, DCT, LedgerError, Payout, Rewards, TimeNs};

/// How long a reward block is.
const BLOCK: TimeNs = 600 * SECOND;
/// Blocks from one halving to the next.
const ERA: u64 = 210_000;
const FIRST_REWARD: Amount = 50 * DCT;

/// The reward of one block.
fn reward(block: u64) -> Amount {
    u32::try_from(block / ERA)
        .ok()
        .and_then(|era| FIRST_REWARD.checked_shr(era))
        .unwrap_or(0)
}

/// The rewards of the blocks `from..to` together.
pub(super) fn rewards_of(from: u64, to: u64) -> Amount {
    let mut sum: Amount = 0;
    let mut block = from;
    while block < to && reward(block) > 0 {
        let end = ((block / ERA).saturating_add(1)).saturating_mul(ERA).min(to);
        // All of them together are below 2⁵⁵.
        sum = sum.saturating_add(reward(block).saturating_mul(end.saturating_sub(block)));
        block = end;
    }
    sum
}

impl State {
    fn genesis_time(&self) -> TimeNs {
        self.genesis.start().unwrap_or(0) // checked when the state was made
    }

    fn reward_block(&self, now: TimeNs) -> u64 {
        now.saturating_sub(self.genesis_time()) / BLOCK
    }

    fn end_of(&self, block: u64) -> TimeNs {
        self.genesis_time()
            .saturating_add(block.saturating_add(1).saturating_mul(BLOCK))
    }

    fn check_in_fee(&self, block: u64) -> Amount {
        basis_points(reward(block), self.genesis.parameters.check_in_bps)
    }

    /// What the participants of `block` share: its reward, and what was carried over.
    fn pool(&self, block: u64) -> Amount {
        let since = rewards_of(self.counters.rewarded, block.saturating_add(1));
        self.counters.carried.saturating_add(since)
    }

    /// The block that somebody takes part in and that hasn't been paid, with its end.
    pub(super) fn open_reward(&self) -> Option<(u64, TimeNs)> {
        let ((block, _), _) = self.check_ins.first_key_value()?;
        Some((*block, self.end_of(*block)))
    }

    /// `rewards`.
    pub fn rewards(&self, caller: Principal, now: TimeNs) -> Rewards {
        let block = self.reward_block(now);
        let own = self.hosts.get(&caller).map_or(caller, |host| host.provider);
        let weights = self.check_ins.range((block, Principal::from_slice(&[]))..);
        let halved = (block / ERA).saturating_add(1).saturating_mul(ERA);
        Rewards {
            block,
            ends_at: self.end_of(block),
            reward: reward(block),
            pool: self.pool(block),
            fee: self.check_in_fee(block),
            participants: weights.clone().count() as u64,
            weights: weights.map(|(_, weight)| *weight).fold(0, u64::saturating_add),
            own_weight: self.check_ins.get(&(block, own)).copied(),
            minted: self.counters.minted,
            cap: rewards_of(0, u64::MAX),
            halves_at: self.end_of(halved.saturating_sub(1)),
        }
    }
}

impl Txn<'_> {
    pub(super) fn check_in(&mut self, caller: Principal) -> Result<CheckIn, LedgerError> {
        if self.providers.get(&caller).is_none() {
            return Err(not_allowed(
                "only registered providers take part in block rewards, each by a call of its own",
            ));
        }
        let block = self.state.reward_block(self.now);
        if self.state.pool(block) == 0 {
            return Err(not_allowed("every token has been minted"));
        }
        let weight = match self.check_ins.get(&(block, caller)) {
            Some(weight) => *weight,
            None => {
                let score = self.reputations.get(&caller).map_or(0, |r| r.score);
                let weight = score.isqrt().saturating_add(1);
                self.check_ins.put((block, caller), weight);
                weight
            }
        };
        Ok(CheckIn {
            block,
            ends_at: self.state.end_of(block),
            weight,
            fee: self.state.check_in_fee(block),
        })
    }

    /// Shares the reward of `block`, which is over, among those who took part.
    pub(super) fn share_reward(&mut self, block: u64) -> Vec<Payout> {
        let pool = self.state.pool(block);
        let fee = self.state.check_in_fee(block);
        let weights: Vec<(Principal, u64)> = self
            .state
            .check_ins
            .iter()
            .map(|((_, who), weight)| (*who, *weight))
            .collect();
        let total: u128 = weights.iter().map(|(_, weight)| u128::from(*weight)).sum();
        let (mut left, mut fees) = (pool, 0);
        let mut payouts = Vec::with_capacity(weights.len().saturating_add(1));
        for (who, weight) in weights {
            self.check_ins.remove((block, who));
            // Below 2⁵⁵ · 2³³.
            let share = u128::from(pool) * u128::from(weight) / total.max(1);
            let share = Amount::try_from(share).unwrap_or(0);
            let kept = fee.min(share);
            let amount = share.saturating_sub(kept);
            payouts.push(Payout { to: who, amount });
            left = left.saturating_sub(share);
            fees = kept.saturating_add(fees);
        }
        payouts.push(Payout {
            to: self.state.genesis.fees_wallet,
            amount: fees,
        });
        payouts.retain(|payout| payout.amount > 0);
        for payout in &payouts {
            // What a broken balance can't take isn't minted, and carried over.
            if self.mint(account(payout.to), payout.amount).is_err() {
                left = left.saturating_add(payout.amount);
            }
        }
        self.counters.rewarded = block.saturating_add(1);
        self.counters.carried = left;
        payouts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_eras_together_give_the_papers_cap() {
        let mut sum = 0;
        for era in 0..36 {
            let expected = 50_000_000_000_u64 / 2_u64.pow(era);
            for block in [u64::from(era) * ERA, u64::from(era) * ERA + ERA - 1] {
                assert_eq!(reward(block), expected, "block {block}");
            }
            sum += expected * ERA;
        }
        assert_eq!(reward(36 * ERA), 0);
        assert_eq!(reward(u64::MAX), 0);
        assert_eq!(sum, 20_999_999_996_850_000);
        assert_eq!(rewards_of(0, u64::MAX), sum);
    }

    #[test]
    fn a_range_of_blocks_gives_what_its_blocks_give() {
        for (from, to) in [
            (0, 0),
            (0, 1),
            (5, 5),
            (7, 3),
            (ERA - 2, ERA + 2),
            (3, 2 * ERA + 5),
            (35 * ERA, 37 * ERA),
        ] {
            assert_eq!(
                rewards_of(from, to),
                (from..to).map(reward).sum::<u64>(),
                "{from}..{to}"
            );
        }
    }
}
