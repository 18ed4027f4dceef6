//! The token: ICRC-1 [5.4].
//!
//! - 9 decimals; amounts on the wire are unbounded naturals, here 64 bits: whatever is larger can't be there.
//! - The fee of a transfer goes to the fees wallet; a transfer to the minting account burns, without a fee.
//! - The minting account is the ledger's own default account. Nobody can sign for the ledger, so nobody mints by a
//!   transfer. Its other subaccounts hold escrow, one for each contract; a transfer into one is refused, since
//!   `held = balance of the escrow account` must hold.
//! - A transfer with `created_at_time` is deduplicated over the standard's window: 24 hours, 2 minutes of drift.

use candid::{Nat, Principal};
use icrc_ledger_types::icrc::generic_metadata_value::MetadataValue;
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::{TransferArg, TransferError};

use super::block::hash;
use super::command::encode;
use super::state::State;
use super::txn::Txn;
use crate::api::{Amount, DECIMALS, TimeNs};

const SECOND: TimeNs = 1_000_000_000;
/// How long a transfer is remembered.
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

impl Txn<'_> {
    pub(super) fn transfer(&mut self, caller: Principal, args: &TransferArg) -> Result<Nat, TransferError> {
        let from = Account {
            owner: caller,
            subaccount: args.from_subaccount,
        };
        let minting = self.state.minting_account();
        let burns = args.to == minting;
        let generic = |code: u32, message: &str| TransferError::GenericError {
            error_code: Nat::from(code),
            message: message.to_owned(),
        };
        if args.to.owner == self.state.ledger && !burns {
            return Err(generic(
                1,
                "the ledger's subaccounts hold the escrow of contracts: pay with `rent` or `extend`",
            ));
        }
        if args.to.owner == Principal::anonymous() {
            return Err(generic(
                2,
                "nobody could ever move tokens of the anonymous principal again",
            ));
        }
        if args.memo.as_ref().is_some_and(|memo| memo.0.len() > MEMO_MAX) {
            return Err(generic(3, "the memo is longer than 64 bytes"));
        }
        let fee = if burns {
            0
        } else {
            self.state.genesis.parameters.transfer_fee
        };
        if args
            .fee
            .as_ref()
            .is_some_and(|offered| small(offered) != Some(fee))
        {
            return Err(TransferError::BadFee {
                expected_fee: fee.into(),
            });
        }
        let remembered = self.fresh(caller, args)?;
        let balance = self.balance(&from);
        let short = || TransferError::InsufficientFunds {
            balance: balance.into(),
        };
        let amount = small(&args.amount).ok_or_else(short)?;
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
            self.pay(from, args.to, amount)
                .and_then(|()| self.pay(from, fees, fee))
        };
        done.map_err(|_| short())?;
        let height = self.state.height();
        self.forget_old();
        if let Some(key) = remembered {
            self.transfers.put(key, height);
        }
        // A transfer of nothing without a fee is a block too: its index is the answer.
        self.balances.put(from, self.balance(&from));
        if self.balance(&from) == 0 {
            self.balances.remove(from);
        }
        Ok(height.into())
    }

    /// Under which key to remember the transfer, if it isn't one that is remembered already.
    fn fresh(
        &self,
        caller: Principal,
        args: &TransferArg,
    ) -> Result<Option<(TimeNs, crate::api::Digest32)>, TransferError> {
        let Some(created) = args.created_at_time else {
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
        let key = (
            created,
            hash(&[b"\x0fdecent-transfer", &encode(&caller), &encode(args)]),
        );
        match self.transfers.get(&key) {
            Some(block) => Err(TransferError::Duplicate {
                duplicate_of: (*block).into(),
            }),
            None => Ok(Some(key)),
        }
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
