//! Tokens: ICRC-1 and ICRC-2.

use anyhow::Context;
use candid::Nat;
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::{TransferArg, TransferError};
use icrc_ledger_types::icrc2::approve::{ApproveArgs, ApproveError};
use icrc_ledger_types::icrc2::transfer_from::{TransferFromArgs, TransferFromError};
use ledger::client::ClientError;
use serde_json::json;

use crate::run::{Session, random, repeat};
use crate::{parse, show};

impl Session {
    fn account_or_own(&self, account: Option<Account>) -> anyhow::Result<Account> {
        match account {
            Some(account) => Ok(account),
            None => Ok(Account {
                owner: self.own_key()?.principal(),
                subaccount: None,
            }),
        }
    }

    pub(crate) async fn balance(&self, account: Option<Account>) -> anyhow::Result<()> {
        let account = self.account_or_own(account)?;
        let balance = self.reader()?.balance_of(account).await?;
        self.print(
            &json!({ "account": account.to_string(), "balance": balance }),
            || format!("{}\n", show::dct(balance)),
        )
    }

    pub(crate) async fn transfer(
        &self,
        from: Option<Account>,
        to: Account,
        amount: u64,
    ) -> anyhow::Result<()> {
        let client = self.signer()?;
        // With a time and a memo the ledger recognises the same call when it comes again (ICRC-1 deduplication).
        let created_at_time = Some(client.info().await?.now);
        let memo = Some(random()?.to_be_bytes().to_vec().into());
        let block = match from {
            None => {
                let transfer = TransferArg {
                    from_subaccount: None,
                    to,
                    fee: None,
                    created_at_time,
                    memo,
                    amount: Nat::from(amount),
                };
                repeat(|| client.transfer(transfer.clone())).await
            }
            Some(from) => {
                let transfer = TransferFromArgs {
                    spender_subaccount: None,
                    from,
                    to,
                    fee: None,
                    created_at_time,
                    memo,
                    amount: Nat::from(amount),
                };
                repeat(|| client.transfer_from(transfer.clone())).await
            }
        };
        let block = once(block)?;
        self.print(&json!({ "block": block }), || {
            format!("{} sent to {to}, block {block}\n", show::dct(amount))
        })
    }

    pub(crate) async fn approve(
        &self,
        spender: Account,
        amount: u64,
        expires: Option<parse::Expiry>,
    ) -> anyhow::Result<()> {
        let client = self.signer()?;
        let expires_at = match expires {
            Some(expires) => Some(self.time_of(expires).await?),
            None => None,
        };
        let approval = ApproveArgs {
            from_subaccount: None,
            spender,
            amount: Nat::from(amount),
            expected_allowance: None,
            expires_at,
            fee: None,
            memo: Some(random()?.to_be_bytes().to_vec().into()),
            created_at_time: Some(client.info().await?.now),
        };
        let block = once(repeat(|| client.approve(approval.clone())).await)?;
        self.print(&json!({ "block": block, "expires_at": expires_at }), || {
            format!("{spender} may spend {}, block {block}\n", show::dct(amount))
        })
    }

    pub(crate) async fn allowance(&self, of: Option<Account>, spender: Account) -> anyhow::Result<()> {
        let account = self.account_or_own(of)?;
        let (allowance, expires_at) = self.reader()?.allowance(account, spender).await?;
        let answer = json!({ "account": account.to_string(), "spender": spender.to_string(), "allowance": allowance, "expires_at": expires_at });
        self.print(&answer, || {
            let until = expires_at.map(|at| format!(", until {}", show::time(at)));
            format!("{}{}\n", show::dct(allowance), until.unwrap_or_default())
        })
    }
}

/// The block of a call that may have been made twice.
fn once(result: Result<u64, ClientError>) -> anyhow::Result<u64> {
    match result {
        Err(
            ClientError::Transfer(TransferError::Duplicate { duplicate_of })
            | ClientError::TransferFrom(TransferFromError::Duplicate { duplicate_of })
            | ClientError::Approve(ApproveError::Duplicate { duplicate_of }),
        ) => u64::try_from(duplicate_of.0).context("a block's index does not fit 64 bits"),
        other => Ok(other?),
    }
}
