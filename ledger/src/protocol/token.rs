//! The token: ICRC-1 and ICRC-2 [5.4]; its log is ICRC-3's ([`super::icrc3`]).
//!
//! - 9 decimals; amounts on the wire are unbounded naturals, here 64 bits: whatever is larger can't be there.
//! - The fee of a transfer or approval goes to the fees wallet; a transfer to the minting account burns, without a fee.
//! - The minting account is the ledger's own default account. Nobody can sign for the ledger, so nobody mints by a
//!   transfer. Its other subaccounts hold escrow, one for each contract; a transfer into one is refused, since
//!   `held = balance of the escrow account` must hold. For the same reason nobody can approve a spender of escrow.
//! - A call with `created_at_time` is deduplicated over the standard's window: 24 hours, 2 minutes of drift.
//! - An allowance is what the last approval said, less what was spent with its fees; it is no promise that the tokens are
//!   there. An approval of more than 64 bits counts as all of them. One that has expired is nothing.

use candid::{CandidType, Nat, Principal};
use icrc_ledger_types::icrc::generic_metadata_value::MetadataValue;
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::{Memo, TransferArg, TransferError};
use icrc_ledger_types::icrc2::approve::{ApproveArgs, ApproveError};
use icrc_ledger_types::icrc2::transfer_from::{TransferFromArgs, TransferFromError};
use serde::{Deserialize, Serialize};

use super::block::hash;
use super::command::encode;
use super::icrc3::{Entry, Given, TokenBlock};
use super::state::State;
use super::txn::Txn;
use crate::api::{Amount, DECIMALS, Digest32, TimeNs};

const SECOND: TimeNs = 1_000_000_000;
/// How long a call is remembered.
const WINDOW: TimeNs = 24 * 3600 * SECOND;
/// How far clocks may be apart.
const DRIFT: TimeNs = 120 * SECOND;
/// Longer memos are refused; the standard asks for at least 32 bytes.
const MEMO_MAX: usize = 64;
/// The least amount that can be burned.
const BURN_MIN: Amount = 1;

/// An amount of 64 bits; `None`: larger than every balance.
fn small(amount: &Nat) -> Option<Amount> {
    Amount::try_from(&amount.0).ok()
}

/// What a spender may still take from an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Allowance {
    pub(super) amount: Amount,
    pub(super) expires_at: Option<TimeNs>,
}

impl Allowance {
    /// `None`: it has expired.
    fn at(self, now: TimeNs) -> Option<Self> {
        self.expires_at.is_none_or(|end| now < end).then_some(self)
    }
}

/// What all transfers say.
struct Movement<'a> {
    from: Account,
    to: Account,
    spender: Option<Account>,
    amount: &'a Nat,
    fee: Option<&'a Nat>,
    memo: Option<&'a Memo>,
    created_at: Option<TimeNs>,
}

/// A call that a repetition of would be a duplicate: its `created_at_time`, and its content.
type Key = (TimeNs, Digest32);

/// What the caller gave, as the log has it; fee and memo are checked already.
fn given(fee: Option<&Nat>, memo: Option<&Memo>, created_at: Option<TimeNs>) -> Given {
    Given {
        fee: fee.and_then(small),
        memo: memo.map(|memo| memo.0.to_vec()),
        created_at,
    }
}

fn generic(code: u32, message: &str) -> TransferError {
    TransferError::GenericError {
        error_code: Nat::from(code),
        message: message.to_owned(),
    }
}

/// The same refusal in the words of `icrc2_transfer_from`.
fn of_transfer_from(error: TransferError) -> TransferFromError {
    match error {
        TransferError::BadFee { expected_fee } => TransferFromError::BadFee { expected_fee },
        TransferError::BadBurn { min_burn_amount } => TransferFromError::BadBurn { min_burn_amount },
        TransferError::InsufficientFunds { balance } => TransferFromError::InsufficientFunds { balance },
        TransferError::TooOld => TransferFromError::TooOld,
        TransferError::CreatedInFuture { ledger_time } => TransferFromError::CreatedInFuture { ledger_time },
        TransferError::Duplicate { duplicate_of } => TransferFromError::Duplicate { duplicate_of },
        TransferError::TemporarilyUnavailable => TransferFromError::TemporarilyUnavailable,
        TransferError::GenericError { error_code, message } => {
            TransferFromError::GenericError { error_code, message }
        }
    }
}

/// The same refusal in the words of `icrc2_approve`, which never burns.
fn of_approve(error: TransferError) -> ApproveError {
    match error {
        TransferError::BadFee { expected_fee } => ApproveError::BadFee { expected_fee },
        TransferError::InsufficientFunds { balance } => ApproveError::InsufficientFunds { balance },
        TransferError::TooOld => ApproveError::TooOld,
        TransferError::CreatedInFuture { ledger_time } => ApproveError::CreatedInFuture { ledger_time },
        TransferError::Duplicate { duplicate_of } => ApproveError::Duplicate { duplicate_of },
        TransferError::BadBurn { .. } | TransferError::TemporarilyUnavailable => {
            ApproveError::TemporarilyUnavailable
        }
        TransferError::GenericError { error_code, message } => {
            ApproveError::GenericError { error_code, message }
        }
    }
}

impl Txn<'_> {
    /// `icrc1_transfer`.
    pub(super) fn transfer(&mut self, caller: Principal, args: &TransferArg) -> Result<Nat, TransferError> {
        let movement = Movement {
            from: Account {
                owner: caller,
                subaccount: args.from_subaccount,
            },
            to: args.to,
            spender: None,
            amount: &args.amount,
            fee: args.fee.as_ref(),
            memo: args.memo.as_ref(),
            created_at: args.created_at_time,
        };
        let fee = self.check(&movement)?;
        let key = self.fresh(args.created_at_time, b"\x0fdecent-transfer", caller, args)?;
        self.carry_out(&movement, fee)?;
        Ok(self.remember(key))
    }

    /// `icrc2_transfer_from`: the caller spends what `from` has approved, fee included. For its own account it needs nobody's
    /// approval.
    pub(super) fn transfer_from(
        &mut self,
        caller: Principal,
        args: &TransferFromArgs,
    ) -> Result<Nat, TransferFromError> {
        let spender = Account {
            owner: caller,
            subaccount: args.spender_subaccount,
        };
        let movement = Movement {
            from: args.from,
            to: args.to,
            spender: Some(spender),
            amount: &args.amount,
            fee: args.fee.as_ref(),
            memo: args.memo.as_ref(),
            created_at: args.created_at_time,
        };
        let fee = self.check(&movement).map_err(of_transfer_from)?;
        let key = self
            .fresh(args.created_at_time, b"\x14decent-transfer-from", caller, args)
            .map_err(of_transfer_from)?;
        let mut left = None;
        if spender != args.from {
            let allowed = self.allowance(&args.from, &spender);
            let short = || TransferFromError::InsufficientAllowance {
                allowance: allowed.map_or(0, |allowed| allowed.amount).into(),
            };
            let allowed = allowed.ok_or_else(short)?;
            let needed = small(&args.amount).and_then(|amount| amount.checked_add(fee));
            let amount = needed.and_then(|needed| allowed.amount.checked_sub(needed));
            left = Some(Allowance {
                amount: amount.ok_or_else(short)?,
                ..allowed
            });
        }
        self.carry_out(&movement, fee).map_err(of_transfer_from)?;
        if let Some(left) = left {
            self.set_allowance((args.from, spender), left);
        }
        Ok(self.remember(key))
    }

    /// `icrc2_approve`: `spender` may take so much from the caller's account, in place of what was said before.
    pub(super) fn approve(&mut self, caller: Principal, args: &ApproveArgs) -> Result<Nat, ApproveError> {
        let from = Account {
            owner: caller,
            subaccount: args.from_subaccount,
        };
        if args.spender.owner == caller {
            return Err(of_approve(generic(
                4,
                "what is yours you can spend without an approval",
            )));
        }
        let fee = self.state.genesis.parameters.transfer_fee;
        self.check_words(args.fee.as_ref(), fee, args.memo.as_ref())
            .map_err(of_approve)?;
        let key = self
            .fresh(args.created_at_time, b"\x0edecent-approve", caller, args)
            .map_err(of_approve)?;
        if args.expires_at.is_some_and(|end| end <= self.now) {
            return Err(ApproveError::Expired {
                ledger_time: self.now,
            });
        }
        let current = self
            .allowance(&from, &args.spender)
            .map_or(0, |allowed| allowed.amount);
        if args
            .expected_allowance
            .as_ref()
            .is_some_and(|expected| small(expected) != Some(current))
        {
            return Err(ApproveError::AllowanceChanged {
                current_allowance: current.into(),
            });
        }
        let fees = super::txn::account(self.state.genesis.fees_wallet);
        let balance = self.balance(&from);
        self.shift(from, fees, fee)
            .map_err(|_| ApproveError::InsufficientFunds {
                balance: balance.into(),
            })?;
        self.tokens.push(TokenBlock {
            time: self.now,
            entry: Entry::Approve {
                from,
                spender: args.spender,
                amount: Box::new(args.amount.clone()),
                expected: args.expected_allowance.clone().map(Box::new),
                expires_at: args.expires_at,
            },
            fee,
            given: given(args.fee.as_ref(), args.memo.as_ref(), args.created_at_time),
        });
        let allowance = Allowance {
            amount: small(&args.amount).unwrap_or(Amount::MAX),
            expires_at: args.expires_at,
        };
        self.set_allowance((from, args.spender), allowance);
        Ok(self.remember(key))
    }

    /// What `spender` may take from `from` now.
    fn allowance(&self, from: &Account, spender: &Account) -> Option<Allowance> {
        self.allowances.get(&(*from, *spender))?.at(self.now)
    }

    fn set_allowance(&mut self, key: (Account, Account), allowance: Allowance) {
        if allowance.amount == 0 {
            self.allowances.remove(key);
        } else {
            self.allowances.put(key, allowance);
        }
    }

    /// What needs no look at who pays; answers the fee that counts.
    fn check(&self, movement: &Movement<'_>) -> Result<Amount, TransferError> {
        let burns = movement.to == self.state.minting_account();
        if movement.to.owner == self.state.ledger && !burns {
            return Err(generic(
                1,
                "the ledger's subaccounts hold the escrow of contracts: pay with `rent` or `extend`",
            ));
        }
        if movement.to.owner == Principal::anonymous() {
            return Err(generic(
                2,
                "nobody could ever move tokens of the anonymous principal again",
            ));
        }
        let fee = if burns {
            0
        } else {
            self.state.genesis.parameters.transfer_fee
        };
        self.check_words(movement.fee, fee, movement.memo)?;
        Ok(fee)
    }

    fn check_words(
        &self,
        offered: Option<&Nat>,
        fee: Amount,
        memo: Option<&Memo>,
    ) -> Result<(), TransferError> {
        if memo.is_some_and(|memo| memo.0.len() > MEMO_MAX) {
            return Err(generic(3, "the memo is longer than 64 bytes"));
        }
        if offered.is_some_and(|offered| small(offered) != Some(fee)) {
            return Err(TransferError::BadFee {
                expected_fee: fee.into(),
            });
        }
        Ok(())
    }

    fn carry_out(&mut self, movement: &Movement<'_>, fee: Amount) -> Result<(), TransferError> {
        let from = movement.from;
        let burns = movement.to == self.state.minting_account();
        let balance = self.balance(&from);
        let short = || TransferError::InsufficientFunds {
            balance: balance.into(),
        };
        let amount = small(movement.amount).ok_or_else(short)?;
        if burns && amount < BURN_MIN {
            return Err(TransferError::BadBurn {
                min_burn_amount: BURN_MIN.into(),
            });
        }
        if amount.checked_add(fee).is_none_or(|total| total > balance) {
            return Err(short());
        }
        let done = if burns {
            self.burn(from, amount)
        } else {
            let fees = super::txn::account(self.state.genesis.fees_wallet);
            self.shift(from, movement.to, amount)
                .and_then(|()| self.shift(from, fees, fee))
        };
        done.map_err(|_| short())?;
        let Movement { to, spender, .. } = *movement;
        self.tokens.push(TokenBlock {
            time: self.now,
            entry: match burns {
                true => Entry::Burn {
                    from,
                    spender,
                    amount,
                },
                false => Entry::Transfer {
                    from,
                    to,
                    spender,
                    amount,
                },
            },
            fee,
            given: given(movement.fee, movement.memo, movement.created_at),
        });
        Ok(())
    }

    /// Under which key to remember the call, if it isn't one that is remembered already.
    fn fresh<T: CandidType>(
        &self,
        created: Option<TimeNs>,
        domain: &[u8],
        caller: Principal,
        args: &T,
    ) -> Result<Option<Key>, TransferError> {
        let Some(created) = created else {
            return Ok(None);
        };
        if created.saturating_add(WINDOW).saturating_add(DRIFT) < self.now {
            return Err(TransferError::TooOld);
        }
        if created > self.now.saturating_add(DRIFT) {
            return Err(TransferError::CreatedInFuture {
                ledger_time: self.now,
            });
        }
        // As given: the standard's conformance test wants `None` and the zero subaccount told apart here, though they
        // are one account.
        let key = (created, hash(&[domain, &encode(&caller), &encode(args)]));
        match self.transfers.get(&key) {
            Some(block) => Err(TransferError::Duplicate {
                duplicate_of: (*block).into(),
            }),
            None => Ok(Some(key)),
        }
    }

    /// Remembers the call for who repeats it, and answers the index of its block, which is the last, in the token's log.
    fn remember(&mut self, key: Option<Key>) -> Nat {
        let length = self.state.tokens.len().saturating_add(self.tokens.len() as u64);
        let index = length.saturating_sub(1);
        self.forget_old();
        if let Some(key) = key {
            self.transfers.put(key, index);
        }
        index.into()
    }

    fn forget_old(&mut self) {
        let old: Vec<_> = self
            .state
            .transfers
            .keys()
            .take_while(|(created, _)| created.saturating_add(WINDOW).saturating_add(DRIFT) < self.now)
            .take(64) // a few each time: the cost of one transfer stays bounded
            .copied()
            .collect();
        for key in old {
            self.transfers.remove(key);
        }
    }
}

impl State {
    /// ICRC-1 minting account: the ledger's own default account.
    pub fn minting_account(&self) -> Account {
        Account {
            owner: self.ledger,
            subaccount: None,
        }
    }

    /// What an account holds.
    pub fn balance(&self, account: &Account) -> Amount {
        self.balances.get(account).copied().unwrap_or(0)
    }

    /// What a spender may take from an account at `now`: how much, and until when.
    pub fn allowance(&self, from: &Account, spender: &Account, now: TimeNs) -> (Amount, Option<TimeNs>) {
        let allowance = self.allowances.get(&(*from, *spender)).and_then(|a| a.at(now));
        allowance.map_or((0, None), |allowance| (allowance.amount, allowance.expires_at))
    }

    /// Tokens that exist.
    pub fn supply(&self) -> Amount {
        self.counters.supply
    }

    /// ICRC-1 metadata.
    pub(super) fn metadata(&self) -> Vec<(String, MetadataValue)> {
        let fee = self.genesis.parameters.transfer_fee;
        vec![
            ("icrc1:decimals".to_owned(), MetadataValue::Nat(DECIMALS.into())),
            ("icrc1:fee".to_owned(), MetadataValue::Nat(fee.into())),
            ("icrc1:name".to_owned(), MetadataValue::Text(NAME.to_owned())),
            ("icrc1:symbol".to_owned(), MetadataValue::Text(SYMBOL.to_owned())),
            (
                "decent:demo".to_owned(),
                MetadataValue::Text(self.genesis.demo.to_string()),
            ),
        ]
    }
}

/// ICRC-1 name.
pub(super) const NAME: &str = "Decent Cloud Token";
/// ICRC-1 symbol.
pub(super) const SYMBOL: &str = "DCT";
