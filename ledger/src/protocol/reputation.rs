//! Reputation: earned by settled payments, spent to penalise [3.1, 5.2]. It can't be bought, sold or given away.
//!
//! Earning: 1 % of what was paid out, in base units, to both sides [5.2], at most `reputation_cap` by one contract however
//! often it is settled or extended; nobody gains any by paying themselves.
//!
//! Spending: a side of a contract may spend x to lower the other side's by 200 % of x. Neither falls below zero: nobody can
//! spend what they don't have, and nobody loses more than they have. Both see it in their history with the reason.

use candid::Principal;

use super::block::hash;
use super::command::encode;
use super::settlement::basis_points;
use super::state::{PenaltyRecord, Record};
use super::text;
use super::txn::{Txn, invalid, not_allowed, not_found, overflow};
use crate::api::{ContractId, LedgerError, PenaliseArgs, Penalty, Reputation, ReputationChange};

/// The most penalties by one side of a contract: what one contract is worth fits in few words.
const PENALTIES_MAX: usize = 4;

impl Txn<'_> {
    /// Gives both sides the reputation that the contract's payouts so far are worth.
    pub(super) fn gain_reputation(&mut self, record: &mut Record) -> Result<(), LedgerError> {
        let contract = &record.contract;
        let parameters = &self.state.genesis.parameters;
        let worth =
            basis_points(contract.escrow.released, parameters.reputation_bps).min(parameters.reputation_cap);
        let Some(delta) = worth.checked_sub(record.reputation).filter(|delta| *delta > 0) else {
            return Ok(());
        };
        if contract.developer == contract.provider {
            return Ok(());
        }
        let reason = format!(
            "1/{} of a settled payment",
            10_000 / parameters.reputation_bps.max(1)
        );
        let delta = i64::try_from(delta).map_err(|_| overflow("reputation"))?;
        let (id, sides) = (contract.id, [contract.developer, contract.provider]);
        record.reputation = worth;
        for who in sides {
            self.change_reputation(who, delta, &reason, id)?;
        }
        Ok(())
    }

    /// One line for each contract and reason in a row, however often it is settled.
    fn change_reputation(
        &mut self,
        who: Principal,
        delta: i64,
        reason: &str,
        contract: ContractId,
    ) -> Result<(), LedgerError> {
        let mut reputation = self.reputations.get(&who).cloned().unwrap_or(Reputation {
            score: 0,
            history: Vec::new(),
        });
        reputation.score = reputation
            .score
            .checked_add_signed(delta)
            .ok_or_else(|| overflow("reputation"))?;
        let same = |last: &&mut ReputationChange| last.contract == Some(contract) && last.reason == reason;
        match reputation.history.last_mut().filter(same) {
            Some(last) => {
                last.at = self.now;
                last.delta = last
                    .delta
                    .checked_add(delta)
                    .ok_or_else(|| overflow("reputation"))?;
            }
            None => reputation.history.push(ReputationChange {
                at: self.now,
                delta,
                reason: reason.to_owned(),
                contract: Some(contract),
            }),
        }
        self.reputations.put(who, reputation);
        Ok(())
    }

    pub(super) fn penalise(
        &mut self,
        caller: Principal,
        args: &PenaliseArgs,
    ) -> Result<Penalty, LedgerError> {
        text::words(&args.reason, 1, 200).map_err(|why| invalid("reason", why))?;
        let id = args.contract;
        let mut record = self
            .contracts
            .get(&id)
            .cloned()
            .ok_or_else(|| not_found(format!("contract {id}")))?;
        let contract = &record.contract;
        let other = match caller {
            _ if contract.developer == contract.provider => None,
            caller if caller == contract.developer => Some(contract.provider),
            caller if caller == contract.provider => Some(contract.developer),
            _ => None,
        };
        let other =
            other.ok_or_else(|| not_allowed("only a side of the contract penalises, and only the other"))?;
        let digest = hash(&[b"\x0ddecent-penalty", &encode(args)]);
        if let Some(known) = record.penalties.get(&(caller, args.memo)) {
            return match known.digest == digest {
                true => Ok(known.penalty),
                false => Err(invalid("memo", "another penalty of yours has it")),
            };
        }
        let by_caller = record.penalties.keys().filter(|(who, _)| *who == caller).count();
        if by_caller >= PENALTIES_MAX {
            return Err(not_allowed("four penalties by one side of a contract are enough"));
        }
        let score = |who| self.reputations.get(&who).map_or(0, |r| r.score);
        let (own, others) = (score(caller), score(other));
        if args.amount == 0 || args.amount > own {
            return Err(invalid(
                "amount",
                format!("from 1 to your own reputation, {own} base units"),
            ));
        }
        let factor = u128::from(self.state.genesis.parameters.penalty_bps);
        let lost = u128::from(args.amount) * factor / 10_000; // below 2⁹⁶
        let lost = u64::try_from(lost).unwrap_or(u64::MAX).min(others);
        let penalty = Penalty {
            spent: args.amount,
            lost,
        };
        let down = |amount: u64| {
            let amount = i64::try_from(amount).map_err(|_| overflow("reputation"))?;
            amount.checked_neg().ok_or_else(|| overflow("reputation"))
        };
        let (spent, lost) = (down(penalty.spent)?, down(penalty.lost)?);
        self.change_reputation(caller, spent, &format!("spent to penalise: {}", args.reason), id)?;
        self.change_reputation(other, lost, &format!("penalised: {}", args.reason), id)?;
        record
            .penalties
            .insert((caller, args.memo), PenaltyRecord { digest, penalty });
        self.contracts.put(id, record);
        Ok(penalty)
    }
}
