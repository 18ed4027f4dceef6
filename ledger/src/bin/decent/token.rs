//! Tokens: ICRC-1 and ICRC-2.

use anyhow::Context;
use candid::{Nat, Principal};
use icrc_ledger_types::icrc::generic_value::ICRC3Value;
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc1::transfer::{TransferArg, TransferError};
use icrc_ledger_types::icrc2::approve::{ApproveArgs, ApproveError};
use icrc_ledger_types::icrc2::transfer_from::{TransferFromArgs, TransferFromError};
use ledger::client::ClientError;
use serde::Serialize;
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

    pub(crate) async fn history(&self, last: u64, of: Option<Account>) -> anyhow::Result<()> {
        let found = self.reader()?.token_history(last).await?;
        let of = of.map(|account| account.to_string());
        let found: Vec<Movement> = found
            .iter()
            .map(|(index, block)| Movement::of(*index, block))
            .filter(|one| of.as_ref().is_none_or(|account| one.concerns(account)))
            .collect();
        self.print(&found, || movements(&found))
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

/// A block of the token's log.
#[derive(Serialize)]
struct Movement {
    block: u64,
    time: u64,
    /// `xfer`, `mint`, `burn`, `approve`, or the block's type.
    operation: String,
    from: Option<String>,
    to: Option<String>,
    spender: Option<String>,
    amount: Option<Nat>,
    fee: Option<Nat>,
}

impl Movement {
    /// What the block says, as far as it is of a kind that is known here.
    fn of(block: u64, value: &ICRC3Value) -> Self {
        let field = |value: &ICRC3Value, name: &str| match value {
            ICRC3Value::Map(fields) => fields.get(name).cloned(),
            _ => None,
        };
        let tx = field(value, "tx").unwrap_or_else(|| value.clone());
        let text = |value| match value {
            Some(ICRC3Value::Text(text)) => Some(text),
            _ => None,
        };
        let number = |value| match value {
            Some(ICRC3Value::Nat(number)) => Some(number),
            _ => None,
        };
        let who = |name| Some(account(&field(&tx, name)?)?.to_string());
        Self {
            block,
            time: number(field(value, "ts"))
                .and_then(|at| u64::try_from(at.0).ok())
                .unwrap_or(0),
            operation: text(field(value, "btype"))
                .or_else(|| text(field(&tx, "op")))
                .unwrap_or_default(),
            from: who("from"),
            to: who("to").or_else(|| who("fee_collector")),
            spender: who("spender"),
            amount: number(field(&tx, "amt")),
            fee: number(field(value, "fee")).or_else(|| number(field(&tx, "fee"))),
        }
    }

    fn concerns(&self, account: &str) -> bool {
        let named = [&self.from, &self.to, &self.spender];
        named.into_iter().flatten().any(|one| one == account)
    }
}

/// An account as the log has it: the owner, and a subaccount.
fn account(value: &ICRC3Value) -> Option<Account> {
    let ICRC3Value::Array(parts) = value else {
        return None;
    };
    let bytes = |part: &ICRC3Value| match part {
        ICRC3Value::Blob(bytes) => Some(bytes.to_vec()),
        _ => None,
    };
    let subaccount = match parts.get(1) {
        Some(part) => Some(bytes(part)?.try_into().ok()?),
        None => None,
    };
    Some(Account {
        owner: Principal::try_from_slice(&bytes(parts.first()?)?).ok()?,
        subaccount,
    })
}

fn movements(found: &[Movement]) -> String {
    let dct = |amount: &Option<Nat>| {
        amount.as_ref().map_or("-".to_owned(), |amount| {
            u64::try_from(&amount.0).map_or("all".to_owned(), show::dct)
        })
    };
    let text = |text: &Option<String>| text.as_deref().map_or("-".to_owned(), show::clean);
    let mut rows = vec![show::row(&[
        "BLOCK",
        "TIME",
        "WHAT",
        "AMOUNT",
        "FEE",
        "FROM",
        "TO OR SPENDER",
    ])];
    rows.extend(found.iter().map(|one| {
        vec![
            one.block.to_string(),
            show::time(one.time),
            show::clean(&one.operation),
            dct(&one.amount),
            dct(&one.fee),
            text(&one.from),
            text(if one.to.is_some() { &one.to } else { &one.spender }),
        ]
    }));
    show::table(&rows)
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
