//! One command's changes, held beside the state until it is known that all of them are wanted.
//!
//! Rules read and write through a [`Txn`]; the [`State`] below it stays as it was until `absorb`. So a command that
//! is refused halfway, for whatever reason, has changed nothing: no rule has to undo anything.

use std::collections::BTreeMap;

use candid::Principal;
use icrc_ledger_types::icrc1::account::Account;

use super::icrc3::{Entry, TokenBlock};
use super::state::{Counters, Host, Provider, Record, State, StoredOffering};
use super::token::Allowance;
use crate::api::{Amount, ContractId, Digest32, EvidenceRecord, LedgerError, OfferingId, Reputation, TimeNs};

/// A table as one command sees it.
pub(super) struct Overlay<'a, K, V> {
    base: &'a BTreeMap<K, V>,
    writes: BTreeMap<K, Option<V>>,
}

impl<'a, K: Ord + Clone, V: Clone> Overlay<'a, K, V> {
    fn over(base: &'a BTreeMap<K, V>) -> Self {
        Self {
            base,
            writes: BTreeMap::new(),
        }
    }
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        match self.writes.get(key) {
            Some(written) => written.as_ref(),
            None => self.base.get(key),
        }
    }
    /// What the command itself has put so far.
    pub(super) fn written(&self) -> impl Iterator<Item = &V> {
        self.writes.values().flatten()
    }
    pub(super) fn put(&mut self, key: K, value: V) {
        self.writes.insert(key, Some(value));
    }
    pub(super) fn remove(&mut self, key: K) {
        self.writes.insert(key, None);
    }
}

/// What a command writes.
pub(super) struct Changes {
    pub(super) counters: Counters,
    pub(super) balances: BTreeMap<Account, Option<Amount>>,
    pub(super) allowances: BTreeMap<(Account, Account), Option<Allowance>>,
    pub(super) providers: BTreeMap<Principal, Option<Provider>>,
    pub(super) developers: BTreeMap<Principal, Option<TimeNs>>,
    pub(super) hosts: BTreeMap<Principal, Option<Host>>,
    pub(super) retired: BTreeMap<(Principal, Principal), Option<TimeNs>>,
    pub(super) host_evidence: BTreeMap<Principal, Option<EvidenceRecord>>,
    pub(super) offerings: BTreeMap<OfferingId, Option<StoredOffering>>,
    pub(super) contracts: BTreeMap<ContractId, Option<Record>>,
    pub(super) memos: BTreeMap<(Principal, u64), Option<(Digest32, ContractId)>>,
    pub(super) chips: BTreeMap<Digest32, Option<Principal>>,
    pub(super) reputations: BTreeMap<Principal, Option<Reputation>>,
    pub(super) transfers: BTreeMap<(TimeNs, Digest32), Option<u64>>,
    pub(super) check_ins: BTreeMap<(u64, Principal), Option<u64>>,
    /// New blocks of the token's log.
    pub(super) tokens: Vec<TokenBlock>,
    dirty: bool,
}

impl Changes {
    /// Whether nothing was written: a retry of something done already. Such a command makes no block.
    pub(super) fn is_empty(&self) -> bool {
        !self.dirty
    }
}

/// The state as one command sees and changes it.
pub(super) struct Txn<'a> {
    /// What held before; for reading what this command can't have changed.
    pub(super) state: &'a State,
    /// The ledger's time.
    pub(super) now: TimeNs,
    pub(super) counters: Counters,
    pub(super) balances: Overlay<'a, Account, Amount>,
    pub(super) allowances: Overlay<'a, (Account, Account), Allowance>,
    pub(super) providers: Overlay<'a, Principal, Provider>,
    pub(super) developers: Overlay<'a, Principal, TimeNs>,
    pub(super) hosts: Overlay<'a, Principal, Host>,
    pub(super) retired: Overlay<'a, (Principal, Principal), TimeNs>,
    pub(super) host_evidence: Overlay<'a, Principal, EvidenceRecord>,
    pub(super) offerings: Overlay<'a, OfferingId, StoredOffering>,
    pub(super) contracts: Overlay<'a, ContractId, Record>,
    pub(super) memos: Overlay<'a, (Principal, u64), (Digest32, ContractId)>,
    pub(super) chips: Overlay<'a, Digest32, Principal>,
    pub(super) reputations: Overlay<'a, Principal, Reputation>,
    pub(super) transfers: Overlay<'a, (TimeNs, Digest32), u64>,
    pub(super) check_ins: Overlay<'a, (u64, Principal), u64>,
    pub(super) tokens: Vec<TokenBlock>,
}

impl<'a> Txn<'a> {
    pub(super) fn new(state: &'a State, now: TimeNs) -> Self {
        Self {
            state,
            now,
            counters: state.counters,
            balances: Overlay::over(&state.balances),
            allowances: Overlay::over(&state.allowances),
            providers: Overlay::over(&state.providers),
            developers: Overlay::over(&state.developers),
            hosts: Overlay::over(&state.hosts),
            retired: Overlay::over(&state.retired),
            host_evidence: Overlay::over(&state.host_evidence),
            offerings: Overlay::over(&state.offerings),
            contracts: Overlay::over(&state.contracts),
            memos: Overlay::over(&state.memos),
            chips: Overlay::over(&state.chips),
            reputations: Overlay::over(&state.reputations),
            transfers: Overlay::over(&state.transfers),
            check_ins: Overlay::over(&state.check_ins),
            tokens: Vec::new(),
        }
    }

    /// Ends the command and lets go of the state.
    pub(super) fn finish(self) -> Changes {
        let dirty = self.counters != self.state.counters
            || !self.balances.writes.is_empty()
            || !self.allowances.writes.is_empty()
            || !self.providers.writes.is_empty()
            || !self.developers.writes.is_empty()
            || !self.hosts.writes.is_empty()
            || !self.retired.writes.is_empty()
            || !self.host_evidence.writes.is_empty()
            || !self.offerings.writes.is_empty()
            || !self.contracts.writes.is_empty()
            || !self.memos.writes.is_empty()
            || !self.chips.writes.is_empty()
            || !self.reputations.writes.is_empty()
            || !self.transfers.writes.is_empty()
            || !self.check_ins.writes.is_empty()
            || !self.tokens.is_empty();
        Changes {
            counters: self.counters,
            balances: self.balances.writes,
            allowances: self.allowances.writes,
            providers: self.providers.writes,
            developers: self.developers.writes,
            hosts: self.hosts.writes,
            retired: self.retired.writes,
            host_evidence: self.host_evidence.writes,
            offerings: self.offerings.writes,
            contracts: self.contracts.writes,
            memos: self.memos.writes,
            chips: self.chips.writes,
            reputations: self.reputations.writes,
            transfers: self.transfers.writes,
            check_ins: self.check_ins.writes,
            tokens: self.tokens,
            dirty,
        }
    }

    /// What an account holds.
    pub(super) fn balance(&self, account: &Account) -> Amount {
        self.balances.get(account).copied().unwrap_or(0)
    }

    fn set_balance(&mut self, account: Account, amount: Amount) {
        if amount == 0 {
            self.balances.remove(account);
        } else {
            self.balances.put(account, amount);
        }
    }

    /// Puts a block of the ledger's own into the token's log.
    fn log(&mut self, entry: Entry) {
        self.tokens.push(TokenBlock::own(self.now, entry));
    }

    /// Moves money, and logs it as a transfer without a fee. Both sides or neither; 0 is nothing.
    pub(super) fn pay(&mut self, from: Account, to: Account, amount: Amount) -> Result<(), LedgerError> {
        if amount == 0 {
            return Ok(());
        }
        self.shift(from, to, amount)?;
        self.log(Entry::Transfer {
            from,
            to,
            spender: None,
            amount,
        });
        Ok(())
    }

    /// Moves money. Both sides or neither; the log is the caller's part.
    pub(super) fn shift(&mut self, from: Account, to: Account, amount: Amount) -> Result<(), LedgerError> {
        let there = self.balance(&from);
        let left = there.checked_sub(amount).ok_or(LedgerError::InsufficientFunds {
            balance: there,
            needed: amount,
        })?;
        self.set_balance(from, left);
        let sum = self
            .balance(&to)
            .checked_add(amount)
            .ok_or_else(|| overflow("balance"))?;
        self.set_balance(to, sum);
        Ok(())
    }

    /// Makes money: block rewards only.
    pub(super) fn mint(&mut self, to: Account, amount: Amount) -> Result<(), LedgerError> {
        let add = |sum: Amount, what| sum.checked_add(amount).ok_or_else(|| overflow(what));
        let supply = add(self.counters.supply, "supply")?;
        let minted = add(self.counters.minted, "supply")?;
        let balance = add(self.balance(&to), "balance")?;
        self.counters.supply = supply;
        self.counters.minted = minted;
        self.set_balance(to, balance);
        self.log(Entry::Mint { to, amount });
        Ok(())
    }

    /// Destroys money; the log is the caller's part.
    pub(super) fn burn(&mut self, from: Account, amount: Amount) -> Result<(), LedgerError> {
        let there = self.balance(&from);
        let left = there.checked_sub(amount).ok_or(LedgerError::InsufficientFunds {
            balance: there,
            needed: amount,
        })?;
        self.set_balance(from, left);
        self.counters.supply = self
            .counters
            .supply
            .checked_sub(amount)
            .ok_or_else(|| overflow("supply"))?;
        Ok(())
    }
}

/// The default account of a principal.
pub(super) fn account(owner: Principal) -> Account {
    Account {
        owner,
        subaccount: None,
    }
}

/// A sum that doesn't fit 64 bits.
pub(super) fn overflow(field: &str) -> LedgerError {
    invalid(field, "too large: the sum does not fit 64 bits")
}

/// A wrong field.
pub(super) fn invalid(field: &str, why: impl Into<String>) -> LedgerError {
    LedgerError::Invalid {
        field: field.to_owned(),
        why: why.into(),
    }
}

/// A caller who may not.
pub(super) fn not_allowed(why: impl Into<String>) -> LedgerError {
    LedgerError::NotAllowed { why: why.into() }
}

/// Something that isn't there.
pub(super) fn not_found(what: impl Into<String>) -> LedgerError {
    LedgerError::NotFound { what: what.into() }
}
