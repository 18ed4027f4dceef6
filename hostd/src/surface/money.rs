//! What this host earns, as the ledger tells it.
//!
//! Sums are over the contracts that the ledger showed last. Balance, reputation and the ledger's clock are asked for when
//! somebody looks, and kept for [`KEPT`]; what didn't come is unknown, with the reason.

use std::time::Duration;

use ledger::api::{Amount, Contract, ContractState, LedgerInfo, Rewards, TimeNs};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::App;
use super::model::{ContractMoney, Money};
use crate::inventory::Probe;

/// How long an answer of the ledger is shown before it is asked again.
const KEPT: Duration = Duration::from_secs(15);

/// How long the ledger may take: somebody waits.
const PATIENCE: Duration = Duration::from_secs(5);

const SECOND: TimeNs = 1_000_000_000;

/// What the ledger answered.
#[derive(Clone, Debug)]
struct Answers {
    at: Instant,
    info: Probe<LedgerInfo>,
    balance: Probe<Amount>,
    reputation: Probe<u64>,
    rewards: Probe<Rewards>,
}

/// The last answers. An async mutex: whoever comes second waits for the first one's answer instead of asking again.
#[derive(Debug, Default)]
pub struct Accounts(Mutex<Option<Answers>>);

async fn ask<T>(work: impl Future<Output = Result<T, crate::ports::LedgerCallError>>) -> Probe<T> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(Ok(value)) => Probe::Known(value),
        Ok(Err(error)) => Probe::Unknown(error.to_string()),
        Err(_) => Probe::Unknown(format!("the ledger gave no answer in {PATIENCE:?}")),
    }
}

/// What has accrued, by the ledger's rule: per whole second since confirmation, never more than was paid.
fn accrued(contract: &Contract, now: TimeNs) -> Amount {
    let (Some(since), ContractState::Active) = (contract.active_since, contract.state) else {
        return contract.escrow.released;
    };
    let seconds = (now.saturating_sub(since) / SECOND).min(contract.period_s);
    let amount = u128::from(contract.price_per_hour) * u128::from(seconds) / 3600;
    Amount::try_from(amount).unwrap_or(Amount::MAX).clamp(
        contract.escrow.released,
        contract.escrow.funded.max(contract.escrow.released),
    )
}

/// The money of one contract. `now` is the ledger's time, if it is known.
fn of_contract(contract: &Contract, now: Option<TimeNs>) -> ContractMoney {
    ContractMoney {
        price_per_hour: contract.price_per_hour,
        held: contract.escrow.held,
        paid_out: contract.escrow.to_provider,
        accrued: now.map(|now| accrued(contract, now) - contract.escrow.released),
        refunded: contract.escrow.refunded,
        active_since_ms: contract.active_since.map(ms),
        deadline_ms: contract.deadline.map(ms),
    }
}

fn ms(at: TimeNs) -> i64 {
    i64::try_from(at / 1_000_000).unwrap_or(i64::MAX)
}

fn sum(amounts: impl Iterator<Item = Amount>) -> Amount {
    amounts.fold(0, Amount::saturating_add)
}

/// What the provider gets when the reward block that runs is shared, if nobody else checks in.
fn next_reward(rewards: &Probe<Rewards>) -> Probe<Amount> {
    match rewards {
        Probe::Known(rewards) => match rewards.own_weight {
            Some(weight) => Probe::Known(rewards.share(weight)),
            None => Probe::Unknown("not checked in (`decent provider check-in`)".to_owned()),
        },
        Probe::Unknown(why) => Probe::Unknown(why.clone()),
    }
}

/// Adds up. Pure.
fn money(provider: &str, contracts: Option<&[Contract]>, answers: &Answers) -> Money {
    let unheard = || Probe::Unknown("the ledger hasn't answered yet".to_owned());
    let now = match &answers.info {
        Probe::Known(info) => {
            let since = u64::try_from(answers.at.elapsed().as_nanos()).unwrap_or(u64::MAX);
            Ok(info
                .now
                .saturating_add(since.saturating_mul(info.clock_rate.into())))
        }
        Probe::Unknown(why) => Err(why.clone()),
    };
    let total = |of: fn(&Contract) -> Amount| match contracts {
        Some(contracts) => Probe::Known(sum(contracts.iter().map(of))),
        None => unheard(),
    };
    let active = |contract: &&Contract| contract.state == ContractState::Active;
    Money {
        provider: provider.to_owned(),
        escrow: total(|contract| contract.escrow.held),
        paid_out: total(|contract| contract.escrow.to_provider),
        per_hour: match contracts {
            Some(list) => Probe::Known(sum(list.iter().filter(active).map(|c| c.price_per_hour))),
            None => unheard(),
        },
        accrued: match (contracts, &now) {
            (None, _) => unheard(),
            (Some(_), Err(why)) => Probe::Unknown(format!("the ledger's clock isn't known: {why}")),
            (Some(list), Ok(now)) => {
                Probe::Known(sum(list.iter().map(|c| accrued(c, *now) - c.escrow.released)))
            }
        },
        balance: answers.balance.clone(),
        reputation: answers.reputation.clone(),
        next_reward: next_reward(&answers.rewards),
        contracts: contracts
            .unwrap_or_default()
            .iter()
            .map(|c| (c.id.to_string(), of_contract(c, now.as_ref().ok().copied())))
            .collect(),
    }
}

impl App {
    async fn answers(&self) -> Answers {
        let mut kept = self.accounts.0.lock().await;
        if let Some(answers) = kept.as_ref().filter(|answers| answers.at.elapsed() < KEPT) {
            return answers.clone();
        }
        let ledger = &self.ctx.host.ledger;
        let (info, balance, reputation, rewards) = tokio::join!(
            ask(ledger.info()),
            ask(ledger.balance(self.provider)),
            ask(ledger.reputation(self.provider)),
            ask(ledger.rewards()),
        );
        let answers = Answers {
            at: Instant::now(),
            info,
            balance,
            reputation,
            rewards,
        };
        kept.insert(answers).clone()
    }

    /// What this host earns.
    pub(super) async fn money(&self) -> Money {
        let answers = self.answers().await;
        let sight = self.handle.sight.borrow().clone();
        let contracts = sight.contracts.as_ref().map(|list| list.as_slice());
        money(&self.provider.to_text(), contracts, &answers)
    }
}
