//! The books: everything that must hold after every block, computed anew from the tables.

use super::settlement::escrow_account;
use super::state::{Record, State};
use crate::api::{Amount, ContractState, Invariants};

impl State {
    /// Checks that no token came or went, that each contract's money is where it says, and that the indices are what
    /// the tables make them.
    pub fn invariants(&self) -> Invariants {
        let mut violations = Vec::new();
        let balances = self
            .balances
            .values()
            .try_fold(0, |sum: Amount, b| sum.checked_add(*b));
        if balances != Some(self.supply()) {
            violations.push(format!(
                "supply {} is not the sum of balances {balances:?}",
                self.supply()
            ));
        }
        let rewards = super::rewards::rewards_of(0, self.counters.rewarded);
        if self.counters.minted.checked_add(self.counters.carried) != Some(rewards) {
            violations.push(format!(
                "{} minted and {} carried over are not the {rewards} of {} reward blocks",
                self.counters.minted, self.counters.carried, self.counters.rewarded
            ));
        }
        for record in self.contracts.values() {
            self.check_contract(record, &mut violations);
        }
        for account in self
            .balances
            .keys()
            .filter(|account| account.owner == self.ledger)
        {
            let id = crate::bytes::Bytes(*account.effective_subaccount());
            if !self.contracts.contains_key(&id) {
                violations.push(format!("the ledger's account {account} belongs to no contract"));
            }
        }
        if self.recomputed_index() != self.index {
            violations.push("an index differs from its tables".to_owned());
        }
        Invariants {
            supply: self.supply(),
            balances: balances.unwrap_or(Amount::MAX),
            contracts: self.contracts.len() as u64,
            violations,
        }
    }

    fn check_contract(&self, record: &Record, violations: &mut Vec<String>) {
        let contract = &record.contract;
        let id = contract.id;
        let money = contract.escrow;
        let mut must = |holds: bool, what: String| {
            if !holds {
                violations.push(format!("contract {id}: {what}"));
            }
        };
        let parts = money
            .held
            .checked_add(money.released)
            .and_then(|sum| sum.checked_add(money.refunded));
        must(
            parts == Some(money.funded),
            format!("funded {} is not held + released + refunded", money.funded),
        );
        let paid = money
            .to_provider
            .checked_add(money.to_dao)
            .and_then(|sum| sum.checked_add(money.to_fees));
        must(
            paid == Some(money.released),
            format!("released {} is not provider + DAO + fees", money.released),
        );
        let escrow = self.balance(&escrow_account(self.ledger, &id));
        must(
            escrow == money.held,
            format!("held {} but its escrow account has {escrow}", money.held),
        );
        let ended = matches!(contract.state, ContractState::Ended(_));
        must(
            ended == contract.deadline.is_none(),
            "has no deadline, or ended and has one".to_owned(),
        );
        must(!ended || money.held == 0, "ended with money in escrow".to_owned());
        must(
            ended == contract.ended_at.is_some(),
            "its end has no time".to_owned(),
        );
        must(!contract.released || ended, "released before its end".to_owned());
        let active = contract.active_since.is_some();
        must(
            active || money.released == 0,
            "paid out before confirmation".to_owned(),
        );
        must(
            active == record.evidence.is_some(),
            "active without evidence".to_owned(),
        );
        must(
            !active || contract.grade >= contract.args.request.min_grade,
            "confirmed below its grade".to_owned(),
        );
    }
}
