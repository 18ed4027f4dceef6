//! The state: tables, the indices derived from them, and how commands and blocks change it.

use std::collections::{BTreeMap, BTreeSet};

use candid::Principal;
use icrc_ledger_types::icrc1::account::Account;
use serde::{Deserialize, Serialize};

use super::block::{Block, hash};
use super::command::{Command, Reject, Reply, TICK, committed_reply, encode_reply};
use super::genesis::{Genesis, GenesisError};
use super::icrc3::{Entry, Log, TokenBlock};
use super::token::Allowance;
use super::txn::{Changes, Txn, account, not_allowed};
use crate::api::{
    Amount, Contract, ContractId, ContractState, Digest32, EvidenceRecord, HostVerified, LedgerError,
    OfferingId, OfferingSpec, Penalty, ProviderProfile, Reputation, Ticked, TimeNs, TpmName, UpdateNotice,
};

/// A provider [5.1].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Provider {
    pub(super) profile: ProviderProfile,
    pub(super) registered_at: TimeNs,
}

/// A host: one machine of a provider, acting by a key of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Host {
    pub(super) provider: Principal,
    pub(super) delegated_until: TimeNs,
    pub(super) draining: bool,
    pub(super) version: String,
    pub(super) degraded: BTreeSet<ContractId>,
    pub(super) heard_at: TimeNs,
    #[serde(default)]
    pub(super) update: Option<UpdateNotice>,
    pub(super) offering: Option<OfferingId>,
    pub(super) attestation_key: Option<TpmName>,
    /// The nonce that its next evidence must be bound to.
    pub(super) nonce: Option<Digest32>,
    /// When the last nonce was made.
    pub(super) nonce_at: Option<TimeNs>,
    pub(super) verified: Option<HostVerified>,
    /// Why its last evidence was refused.
    pub(super) refusals: Vec<String>,
}

/// An offering without what is computed for each answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredOffering {
    pub(super) provider: Principal,
    pub(super) host: Principal,
    pub(super) spec: OfferingSpec,
}

/// A contract, and what only the ledger needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) contract: Contract,
    /// The name `<short id>.<provider domain>` as it was at the request.
    pub(super) derived_name: String,
    pub(super) evidence: Option<EvidenceRecord>,
    /// Refused submissions.
    pub(super) refused: u32,
    /// Extensions by memo: their period.
    pub(super) extensions: BTreeMap<u64, u64>,
    /// Reputation that this contract gave to each side.
    pub(super) reputation: u64,
    /// Penalties by who spent on them and memo.
    pub(super) penalties: BTreeMap<(Principal, u64), PenaltyRecord>,
}

/// A penalty, and what it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PenaltyRecord {
    /// Of the arguments.
    pub(super) digest: Digest32,
    pub(super) penalty: Penalty,
}

/// The tables' single numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counters {
    pub(super) supply: Amount,
    pub(super) next_offering: OfferingId,
    /// Minted as block rewards.
    pub(super) minted: Amount,
    /// Reward blocks that were shared or carried over.
    pub(super) rewarded: u64,
    /// Of their rewards, what wasn't minted.
    pub(super) carried: Amount,
}

/// Where the chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chain {
    height: u64,
    tip: Digest32,
    time: TimeNs,
}

/// What is looked up often; always computable from the tables, and compared with them by `invariants`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) deadlines: BTreeSet<(TimeNs, ContractId)>,
    /// Contracts whose host hasn't let go yet: they count against its capacity.
    pub(super) unreleased: BTreeMap<Principal, BTreeSet<ContractId>>,
    /// Contracts by developer and by provider, oldest first.
    pub(super) of_account: BTreeMap<Principal, BTreeSet<(TimeNs, ContractId)>>,
    /// Derived DNS names of contracts that haven't ended. The names that tenants bring are nobody's here.
    pub(super) names: BTreeMap<String, ContractId>,
    /// Providers by domain.
    pub(super) domains: BTreeMap<String, Principal>,
}

/// The whole ledger at one height.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub(super) genesis: Genesis,
    pub(super) ledger: Principal,
    chain: Chain,
    pub(super) counters: Counters,
    pub(super) balances: BTreeMap<Account, Amount>,
    /// What the second account may take from the first.
    pub(super) allowances: BTreeMap<(Account, Account), Allowance>,
    pub(super) providers: BTreeMap<Principal, Provider>,
    pub(super) developers: BTreeMap<Principal, TimeNs>,
    pub(super) hosts: BTreeMap<Principal, Host>,
    /// Host keys that their provider never wants to hear of again, and since when: by provider, and host.
    pub(super) retired: BTreeMap<(Principal, Principal), TimeNs>,
    /// The last verified evidence of each host; it is too long to stand in `hosts`.
    pub(super) host_evidence: BTreeMap<Principal, EvidenceRecord>,
    pub(super) offerings: BTreeMap<OfferingId, StoredOffering>,
    pub(super) contracts: BTreeMap<ContractId, Record>,
    pub(super) memos: BTreeMap<(Principal, u64), (Digest32, ContractId)>,
    pub(super) chips: BTreeMap<Digest32, Principal>,
    pub(super) reputations: BTreeMap<Principal, Reputation>,
    /// Transfers that a repetition would be a duplicate of: by their `created_at_time` and content.
    pub(super) transfers: BTreeMap<(TimeNs, Digest32), u64>,
    /// Weights of who takes part in a reward block that wasn't paid yet, by block: there is never more than one.
    pub(super) check_ins: BTreeMap<(u64, Principal), u64>,
    /// The token's own log (ICRC-3).
    pub(super) tokens: Log,
    pub(super) index: Index,
    blocks: Vec<Block>,
}

/// A block doesn't continue this state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block {height} does not continue the ledger at height {at}: {why}")]
pub struct ReplayError {
    /// The block's height.
    pub height: u64,
    /// The state's.
    pub at: u64,
    /// What differs.
    pub why: String,
}

impl State {
    /// The ledger `ledger` (its canister id) before its first block.
    pub fn new(genesis: Genesis, ledger: Principal) -> Result<Self, GenesisError> {
        genesis.check()?;
        if [genesis.dao_wallet, genesis.fees_wallet].contains(&ledger) {
            return Err(GenesisError {
                field: "dao_wallet, fees_wallet".into(),
                why: "must not be the ledger itself: its accounts hold escrow".into(),
            });
        }
        super::evidence::roots(&genesis).map_err(|why| GenesisError {
            field: "test_roots".into(),
            why,
        })?;
        let time = genesis.start().unwrap_or(0); // checked just now
        let mut balances = BTreeMap::new();
        let mut supply: Amount = 0;
        let mut tokens = Log::default();
        let fees = account(genesis.fees_wallet);
        tokens.push(TokenBlock::own(time, Entry::FeeCollector(fees)));
        for balance in &genesis.balances {
            if balance.owner == ledger {
                return Err(GenesisError {
                    field: "balances".into(),
                    why: "the ledger's own accounts hold escrow and start empty".into(),
                });
            }
            // Their sum was checked to stay below 21 million DCT.
            supply = supply.saturating_add(balance.amount);
            let held = balances.entry(account(balance.owner)).or_insert(0);
            *held = balance.amount.saturating_add(*held);
            let (to, amount) = (account(balance.owner), balance.amount);
            tokens.push(TokenBlock::own(time, Entry::Mint { to, amount }));
        }
        let chain = Chain {
            height: 0,
            tip: genesis.hash(ledger),
            time,
        };
        Ok(Self {
            genesis,
            ledger,
            chain,
            counters: Counters {
                supply,
                next_offering: 1,
                minted: 0,
                rewarded: 0,
                carried: 0,
            },
            balances,
            allowances: BTreeMap::new(),
            providers: BTreeMap::new(),
            developers: BTreeMap::new(),
            hosts: BTreeMap::new(),
            retired: BTreeMap::new(),
            host_evidence: BTreeMap::new(),
            offerings: BTreeMap::new(),
            contracts: BTreeMap::new(),
            memos: BTreeMap::new(),
            chips: BTreeMap::new(),
            reputations: BTreeMap::new(),
            transfers: BTreeMap::new(),
            check_ins: BTreeMap::new(),
            tokens,
            index: Index::default(),
            blocks: Vec::new(),
        })
    }

    /// Blocks so far.
    pub fn height(&self) -> u64 {
        self.chain.height
    }

    /// Hash of the last block; of the genesis before the first.
    pub fn tip(&self) -> Digest32 {
        self.chain.tip
    }

    /// Time of the last block; the genesis' start before the first. A call's `now` below it counts as this.
    pub fn time(&self) -> TimeNs {
        self.chain.time
    }

    /// The ledger's canister id.
    pub fn ledger(&self) -> Principal {
        self.ledger
    }

    /// What it started from.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The blocks made since this was last asked, oldest first. A node makes them durable before it answers the call.
    pub fn take_blocks(&mut self) -> Vec<Block> {
        std::mem::take(&mut self.blocks)
    }

    /// When `tick` next has something to do.
    pub fn next_deadline(&self) -> Option<TimeNs> {
        let contract = self.index.deadlines.first().map(|(deadline, _)| *deadline);
        let reward = self.open_reward().map(|(_, end)| end);
        contract.into_iter().chain(reward).min()
    }

    /// Pushes every step that is overdue at `now`, in the order of deadlines, and gives the time that counts. What
    /// happens doesn't depend on how late it is noticed: money is reckoned up to the deadline itself.
    pub fn tick(&mut self, now: TimeNs) -> TimeNs {
        let now = now.max(self.chain.time);
        let due: Vec<ContractId> = self
            .index
            .deadlines
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .map(|(_, id)| *id)
            .collect();
        let reward = self.open_reward().filter(|(_, end)| *end <= now);
        if !due.is_empty() || reward.is_some() {
            let mut txn = Txn::new(self, now);
            for id in &due {
                txn.push_overdue(*id);
            }
            let payouts = reward.map_or_else(Vec::new, |(block, _)| txn.share_reward(block));
            let changes = txn.finish();
            let ledger = self.ledger;
            let ticked = Ticked { ended: due, payouts };
            self.commit(ledger, &Command::Tick, now, changes, &Ok(Reply::Ticked(ticked)));
        }
        now
    }

    /// Applies one command at the ledger's time `now`, after everything overdue. On an error nothing has changed, but
    /// for one case: refused evidence is kept on record (the contract's `refusals`), money unmoved.
    pub fn apply(&mut self, caller: Principal, command: Command, now: TimeNs) -> Result<Reply, LedgerError> {
        let now = self.tick(now);
        if caller == Principal::anonymous() {
            return Err(not_allowed(
                "sign the call: the anonymous principal belongs to everyone",
            ));
        }
        if command == Command::Tick || caller == self.ledger {
            return Err(not_allowed("only the ledger itself does that"));
        }
        let mut txn = Txn::new(self, now);
        let result = txn.execute(caller, &command);
        let keep = match &result {
            Ok(Reply::Transfer(Err(_)) | Reply::Approve(Err(_)) | Reply::TransferFrom(Err(_))) => false,
            Ok(_) | Err(LedgerError::EvidenceRefused { .. }) => true,
            Err(_) => false,
        };
        let changes = txn.finish();
        if keep && !changes.is_empty() {
            self.commit(caller, &command, now, changes, &result);
        }
        result
    }

    /// The same for a call as it came over the wire; the answer is Candid, also where it is a `LedgerError`.
    pub fn call(
        &mut self,
        caller: Principal,
        method: &str,
        argument: &[u8],
        now: TimeNs,
    ) -> Result<Vec<u8>, Reject> {
        let command = Command::decode(method, argument)?;
        Ok(encode_reply(&self.apply(caller, command, now)))
    }

    /// Applies a stored block, if it is the one that comes next and says what this ledger says too. After an error
    /// the state is of no further use: its blocks aren't those that were stored.
    pub fn replay(&mut self, block: &Block) -> Result<(), ReplayError> {
        let at = self.chain.height;
        let differs = |why: &str| ReplayError {
            height: block.height,
            at,
            why: why.to_owned(),
        };
        if block.height != at {
            return Err(differs("another height"));
        }
        if block.parent != self.chain.tip {
            return Err(differs("its parent is not the last block (or not this genesis)"));
        }
        if !self.blocks.is_empty() {
            return Err(differs("blocks made meanwhile were not taken"));
        }
        if block.time < self.chain.time {
            return Err(differs("its time is before the last block's"));
        }
        if block.method == TICK {
            self.tick(block.time);
        } else {
            let command =
                Command::decode(&block.method, &block.argument).map_err(|e| differs(&e.to_string()))?;
            // Refused evidence is an error on record; other errors make no block, which is seen below.
            let _ = self.apply(block.caller, command, block.time);
        }
        let made = self.take_blocks();
        if made.as_slice() == std::slice::from_ref(block) {
            return Ok(());
        }
        Err(differs(
            "applying its command gives another block: it was altered, or made by other rules",
        ))
    }

    fn commit(
        &mut self,
        caller: Principal,
        command: &Command,
        now: TimeNs,
        changes: Changes,
        result: &Result<Reply, LedgerError>,
    ) {
        self.absorb(changes);
        let (method, argument) = command.encode();
        let block = Block {
            height: self.chain.height,
            parent: self.chain.tip,
            time: now,
            caller,
            method: method.to_owned(),
            argument,
            reply: hash(&[&committed_reply(result)]),
        };
        // 2⁶⁴ blocks at a million a second take 585,000 years.
        self.chain = Chain {
            height: self.chain.height.saturating_add(1),
            tip: block.hash(),
            time: now,
        };
        self.blocks.push(block);
    }

    fn absorb(&mut self, changes: Changes) {
        fn merge<K: Ord, V>(table: &mut BTreeMap<K, V>, writes: BTreeMap<K, Option<V>>) {
            for (key, value) in writes {
                match value {
                    Some(value) => {
                        table.insert(key, value);
                    }
                    None => {
                        table.remove(&key);
                    }
                }
            }
        }
        for (id, new) in &changes.contracts {
            self.index.contract(self.contracts.get(id), new.as_ref());
        }
        for (owner, new) in &changes.providers {
            self.index
                .provider(*owner, self.providers.get(owner), new.as_ref());
        }
        self.counters = changes.counters;
        merge(&mut self.balances, changes.balances);
        merge(&mut self.allowances, changes.allowances);
        merge(&mut self.providers, changes.providers);
        merge(&mut self.developers, changes.developers);
        merge(&mut self.hosts, changes.hosts);
        merge(&mut self.retired, changes.retired);
        merge(&mut self.host_evidence, changes.host_evidence);
        merge(&mut self.offerings, changes.offerings);
        merge(&mut self.contracts, changes.contracts);
        merge(&mut self.memos, changes.memos);
        merge(&mut self.chips, changes.chips);
        merge(&mut self.reputations, changes.reputations);
        merge(&mut self.transfers, changes.transfers);
        merge(&mut self.check_ins, changes.check_ins);
        for block in changes.tokens {
            self.tokens.push(block);
        }
    }

    /// The index computed anew.
    pub(super) fn recomputed_index(&self) -> Index {
        let mut index = Index::default();
        for record in self.contracts.values() {
            index.contract(None, Some(record));
        }
        for (owner, provider) in &self.providers {
            index.provider(*owner, None, Some(provider));
        }
        index
    }
}

impl Index {
    fn contract(&mut self, old: Option<&Record>, new: Option<&Record>) {
        if let Some(Record {
            contract,
            derived_name,
            ..
        }) = old
        {
            if let Some(deadline) = contract.deadline {
                self.deadlines.remove(&(deadline, contract.id));
            }
            if let Some(set) = self.unreleased.get_mut(&contract.host) {
                set.remove(&contract.id);
                if set.is_empty() {
                    self.unreleased.remove(&contract.host);
                }
            }
            if self.names.get(derived_name) == Some(&contract.id) {
                self.names.remove(derived_name);
            }
        }
        if let Some(Record {
            contract,
            derived_name,
            ..
        }) = new
        {
            if let Some(deadline) = contract.deadline {
                self.deadlines.insert((deadline, contract.id));
            }
            if !contract.released {
                self.unreleased
                    .entry(contract.host)
                    .or_default()
                    .insert(contract.id);
            }
            for owner in [contract.developer, contract.provider] {
                self.of_account
                    .entry(owner)
                    .or_default()
                    .insert((contract.created_at, contract.id));
            }
            if !matches!(contract.state, ContractState::Ended(_)) {
                self.names.insert(derived_name.clone(), contract.id);
            }
        }
    }

    fn provider(&mut self, owner: Principal, old: Option<&Provider>, new: Option<&Provider>) {
        if let Some(old) = old {
            self.domains.remove(&old.profile.domain);
        }
        if let Some(new) = new {
            self.domains.insert(new.profile.domain.clone(), owner);
        }
    }
}
