//! Where a contract's money goes.
//!
//! A payment goes into the contract's own escrow account. From confirmation on it accrues by the second:
//! `accrued(t) = ⌊price per hour · whole seconds / 3600⌋`. Every payout is the difference between a *total* reckoned so
//! and what was paid out before; so it doesn't matter how often anybody settles, and nothing drifts. Of the total, 2 %
//! (`fee_bps`) is withheld from the provider's payout [5.2], rounded down; of that, the DAO's part, rounded down; the
//! rest of the fee goes to the fees wallet. At the end what is left in escrow goes back to the developer.

use icrc_ledger_types::icrc1::account::Account;

use super::offering::price_of;
use super::state::Record;
use super::txn::{Txn, account, overflow};
use crate::api::{Amount, Contract, ContractId, ContractState, EndReason, LedgerError, TimeNs};

pub(super) const SECOND: TimeNs = 1_000_000_000;

/// The escrow account of a contract: a subaccount of the ledger's own, named by the contract's id.
pub(super) fn escrow_account(ledger: candid::Principal, id: &ContractId) -> Account {
    Account {
        owner: ledger,
        subaccount: Some(id.0),
    }
}

/// `bps` basis points of an amount, rounded down. At most the amount for `bps ≤ 10000`, which the genesis ensures.
pub(super) fn basis_points(amount: Amount, bps: u32) -> Amount {
    let part = u128::from(amount) * u128::from(bps) / 10_000; // below 2⁹⁶
    Amount::try_from(part).unwrap_or(Amount::MAX)
}

/// What has accrued at `at`: 0 before confirmation, the whole at the end of the paid period, and never more.
pub(super) fn accrued(contract: &Contract, at: TimeNs) -> Amount {
    let Some(since) = contract.active_since else {
        return 0;
    };
    let seconds = (at.saturating_sub(since) / SECOND).min(contract.period_s);
    // Not more than the price of the whole period, which fitted when it was paid.
    price_of(contract.price_per_hour, seconds)
        .unwrap_or(contract.escrow.funded)
        .min(contract.escrow.funded)
}

impl Txn<'_> {
    /// Takes a payment into escrow.
    pub(super) fn fund(&mut self, record: &mut Record, amount: Amount) -> Result<(), LedgerError> {
        let contract = &mut record.contract;
        let escrow = escrow_account(self.state.ledger, &contract.id);
        self.pay(account(contract.developer), escrow, amount)?;
        contract.escrow.funded = contract
            .escrow
            .funded
            .checked_add(amount)
            .ok_or_else(|| overflow("escrow"))?;
        contract.escrow.held = contract
            .escrow
            .held
            .checked_add(amount)
            .ok_or_else(|| overflow("escrow"))?;
        Ok(())
    }

    /// Pays out what has accrued at `at` and wasn't paid yet.
    pub(super) fn pay_accrued(&mut self, record: &mut Record, at: TimeNs) -> Result<(), LedgerError> {
        let total = accrued(&record.contract, at);
        let contract = &mut record.contract;
        let mut money = contract.escrow;
        let Some(due) = total.checked_sub(money.released).filter(|due| *due > 0) else {
            return Ok(());
        };
        let parameters = &self.state.genesis.parameters;
        let fee = basis_points(total, parameters.fee_bps);
        let dao = basis_points(fee, parameters.dao_bps);
        // Totals only grow, and `total ≥ fee ≥ dao`: none of these goes below zero unless the books are broken.
        let broken = || overflow("escrow");
        let to_dao = dao.checked_sub(money.to_dao).ok_or_else(broken)?;
        let to_fees = fee
            .checked_sub(dao)
            .and_then(|rest| rest.checked_sub(money.to_fees))
            .ok_or_else(broken)?;
        let to_provider = due
            .checked_sub(to_dao)
            .and_then(|rest| rest.checked_sub(to_fees))
            .ok_or_else(broken)?;
        money.held = money.held.checked_sub(due).ok_or_else(broken)?;
        money.released = total;
        money.to_dao = dao;
        money.to_fees = money.to_fees.checked_add(to_fees).ok_or_else(broken)?;
        money.to_provider = money.to_provider.checked_add(to_provider).ok_or_else(broken)?;
        contract.escrow = money;
        let escrow = escrow_account(self.state.ledger, &contract.id);
        self.pay(escrow, account(contract.provider), to_provider)?;
        self.pay(escrow, account(self.state.genesis.dao_wallet), to_dao)?;
        self.pay(escrow, account(self.state.genesis.fees_wallet), to_fees)?;
        self.gain_reputation(record)
    }

    /// Ends a contract at `at`: pays what has accrued until then, gives the rest back.
    pub(super) fn end(
        &mut self,
        record: &mut Record,
        reason: EndReason,
        at: TimeNs,
    ) -> Result<(), LedgerError> {
        self.pay_accrued(record, at)?;
        let contract = &mut record.contract;
        let rest = contract.escrow.held;
        let escrow = escrow_account(self.state.ledger, &contract.id);
        self.pay(escrow, account(contract.developer), rest)?;
        contract.escrow.held = 0;
        contract.escrow.refunded = contract
            .escrow
            .refunded
            .checked_add(rest)
            .ok_or_else(|| overflow("escrow"))?;
        contract.state = ContractState::Ended(reason);
        contract.deadline = None;
        contract.ended_at = Some(at);
        contract.nonce = None;
        Ok(())
    }

    /// Does what the contract's deadline asks for. Always takes the deadline away, so that `tick` comes to an end; if
    /// the books were broken, `invariants` shows the contract.
    pub(super) fn push_overdue(&mut self, id: ContractId) {
        let Some(before) = self.contracts.get(&id).cloned() else {
            return;
        };
        let mut record = before.clone();
        let at = record.contract.deadline.unwrap_or(self.now);
        let done = match record.contract.state {
            ContractState::Requested => self.end(&mut record, EndReason::AcceptTimeout, at),
            ContractState::Accepted => self.end(&mut record, EndReason::ConfirmTimeout, at),
            ContractState::Active => self.end(&mut record, EndReason::PeriodOver, at),
            ContractState::Ended(_) => Ok(()),
        };
        if done.is_err() {
            record = before;
        }
        record.contract.deadline = None;
        self.contracts.put(id, record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn basis_points_round_down() {
        for (amount, bps, expected) in [
            (0, 200, 0),
            (49, 200, 0),
            (50, 200, 1),
            (99, 200, 1),
            (u64::MAX, 10_000, u64::MAX),
            (7, 0, 0),
        ] {
            assert_eq!(basis_points(amount, bps), expected, "{amount} {bps}");
        }
    }

    proptest! {
        /// The fee's parts never shrink as the total grows, so no later payout can be negative.
        #[test]
        fn fee_and_its_parts_grow_with_the_total(a in any::<u64>(), more in any::<u32>(), fee in 0u32..=10_000, dao in 0u32..=10_000) {
            let b = a.saturating_add(u64::from(more));
            let split = |total| { let f = basis_points(total, fee); let d = basis_points(f, dao); (total - f, d, f - d) };
            let (x, y) = (split(a), split(b));
            prop_assert!(x.0 <= y.0 && x.1 <= y.1 && x.2 <= y.2);
        }
    }
}
