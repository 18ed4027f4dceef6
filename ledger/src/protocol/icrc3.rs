//! The token's block log, as ICRC-3 has it: one block for every change of a balance or allowance, each naming the hash of
//! the one before.
//!
//! These blocks are another chain than the ledger's own ([`super::block`]): a command makes one of those, and as many
//! here as it moves money. Nobody has to know this ledger's rules to reckon every balance out of them:
//!
//! | block | `tx.op` | made by |
//! |---|---|---|
//! | `107feecol` (ICRC-107), the first | – | the genesis: all fees go to the fees wallet |
//! | `1mint` | `mint` | the genesis' balances, block rewards |
//! | `1burn`, `2burn` | `burn` | transfers to the minting account |
//! | `1xfer`, `2xfer` | `xfer` | transfers; escrow, payouts, refunds and fees of registrations, without a fee of their own |
//! | `2approve` | `approve` | approvals |
//!
//! `tx` holds exactly what the caller gave (the standard's canonical mapping); the `fee` beside it what was charged where
//! he gave none. There are no archives: every block is here.

use std::collections::BTreeMap;

use candid::Nat;
use icrc_ledger_types::icrc::generic_value::{ICRC3Map, ICRC3Value};
use icrc_ledger_types::icrc1::account::Account;
use icrc_ledger_types::icrc3::blocks::{BlockWithId, GetBlocksRequest, GetBlocksResult, SupportedBlockType};
use serde_bytes::ByteBuf;

use super::state::State;
use crate::api::{Amount, Digest32, TimeNs};
use crate::bytes::Bytes;

/// Blocks of one answer, at most: about half a kilobyte each.
const ANSWER_MAX: usize = 1_000;
/// Ranges of one question that are looked at.
const RANGES_MAX: usize = 100;

/// What a caller gave beside accounts and amounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    /// The fee.
    pub(super) fee: Option<Amount>,
    /// `memo`, at most 64 bytes.
    pub(super) memo: Option<Vec<u8>>,
    /// `created_at_time`.
    pub(super) created_at: Option<TimeNs>,
}

/// What a block records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Where fees go from here on.
    FeeCollector(Account),
    /// New tokens.
    Mint { to: Account, amount: Amount },
    /// Tokens that are gone.
    Burn {
        from: Account,
        spender: Option<Account>,
        amount: Amount,
    },
    /// Tokens that changed hands.
    Transfer {
        from: Account,
        to: Account,
        spender: Option<Account>,
        amount: Amount,
    },
    /// A spender may take so much.
    Approve {
        from: Account,
        spender: Account,
        amount: Box<Nat>,
        expected: Option<Box<Nat>>,
        expires_at: Option<TimeNs>,
    },
}

/// A block without its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenBlock {
    pub(super) time: TimeNs,
    pub(super) entry: Entry,
    /// What was charged to whom pays.
    pub(super) fee: Amount,
    pub(super) given: Given,
}

fn nat(number: u64) -> ICRC3Value {
    ICRC3Value::Nat(number.into())
}

fn blob(bytes: &[u8]) -> ICRC3Value {
    ICRC3Value::Blob(ByteBuf::from(bytes))
}

fn text(text: &str) -> ICRC3Value {
    ICRC3Value::Text(text.to_owned())
}

/// As it was given: a default account may have its subaccount named or not.
fn account(account: &Account) -> ICRC3Value {
    let owner = blob(account.owner.as_slice());
    let subaccount = account.subaccount.as_ref().map(|subaccount| blob(subaccount));
    ICRC3Value::Array(std::iter::once(owner).chain(subaccount).collect())
}

impl TokenBlock {
    /// One that the ledger makes by itself, without a fee.
    pub(super) fn own(time: TimeNs, entry: Entry) -> Self {
        Self {
            time,
            entry,
            fee: 0,
            given: Given::default(),
        }
    }

    /// The standard's representation.
    fn value(&self, parent: Option<&Digest32>) -> ICRC3Value {
        let mut tx = ICRC3Map::new();
        let mut put = |key: &str, value: Option<ICRC3Value>| {
            tx.extend(value.map(|value| (key.to_owned(), value)));
        };
        let mut burns = false;
        match &self.entry {
            Entry::FeeCollector(to) => put("fee_collector", Some(account(to))),
            Entry::Mint { to, amount } => {
                put("op", Some(text("mint")));
                put("to", Some(account(to)));
                put("amt", Some(nat(*amount)));
            }
            Entry::Burn {
                from,
                spender,
                amount,
            } => {
                burns = true;
                put("op", Some(text("burn")));
                put("from", Some(account(from)));
                put("spender", spender.as_ref().map(account));
                put("amt", Some(nat(*amount)));
            }
            Entry::Transfer {
                from,
                to,
                spender,
                amount,
            } => {
                put("op", Some(text("xfer")));
                put("from", Some(account(from)));
                put("to", Some(account(to)));
                put("spender", spender.as_ref().map(account));
                put("amt", Some(nat(*amount)));
            }
            Entry::Approve {
                from,
                spender,
                amount,
                expected,
                expires_at,
            } => {
                let number = |number: &Nat| ICRC3Value::Nat(number.clone());
                put("op", Some(text("approve")));
                put("from", Some(account(from)));
                put("spender", Some(account(spender)));
                put("amt", Some(number(amount)));
                put("expected_allowance", expected.as_deref().map(number));
                put("expires_at", expires_at.map(nat));
            }
        }
        let Given {
            fee,
            memo,
            created_at,
        } = &self.given;
        put("fee", fee.filter(|_| !burns).map(nat));
        put("memo", memo.as_deref().map(blob));
        put("ts", created_at.map(nat));

        let mut block = BTreeMap::from([
            ("ts".to_owned(), nat(self.time)),
            ("tx".to_owned(), ICRC3Value::Map(tx)),
        ]);
        if let Some(parent) = parent {
            block.insert("phash".to_owned(), blob(&parent.0));
        }
        if self.given.fee.is_none() && self.fee > 0 {
            block.insert("fee".to_owned(), nat(self.fee));
        }
        if let Entry::FeeCollector(_) = &self.entry {
            block.insert("btype".to_owned(), text("107feecol"));
        }
        ICRC3Value::Map(block)
    }
}

/// All blocks, with the hash of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    blocks: Vec<(TokenBlock, Digest32)>,
}

impl Log {
    pub(super) fn push(&mut self, block: TokenBlock) {
        let hash = block.value(self.parent(self.blocks.len())).hash();
        self.blocks.push((block, Bytes(hash)));
    }

    /// Hash of the block before the one with that index.
    fn parent(&self, index: usize) -> Option<&Digest32> {
        Some(&self.blocks.get(index.checked_sub(1)?)?.1)
    }

    pub(super) fn len(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn block(&self, index: usize) -> Option<BlockWithId> {
        let (block, _) = self.blocks.get(index)?;
        Some(BlockWithId {
            id: (index as u64).into(),
            block: block.value(self.parent(index)),
        })
    }
}

impl State {
    /// Index and hash of the last block of the token's log.
    pub fn token_tip(&self) -> (u64, Digest32) {
        let last = self.tokens.blocks.last();
        // The genesis makes the first block.
        let hash = last.map_or(Bytes([0; 32]), |(_, hash)| *hash);
        (self.tokens.len().saturating_sub(1), hash)
    }

    /// `icrc3_get_blocks`: of each range what there is, 1,000 blocks in all.
    pub fn token_blocks(&self, ranges: &[GetBlocksRequest]) -> GetBlocksResult {
        // Larger numbers than an index lie behind the end.
        let bounded = |number: &Nat| usize::try_from(&number.0).unwrap_or(usize::MAX);
        let wanted = ranges.iter().take(RANGES_MAX).flat_map(|range| {
            let start = bounded(&range.start);
            let end = start.saturating_add(bounded(&range.length));
            start..end.min(self.tokens.blocks.len())
        });
        GetBlocksResult {
            log_length: self.tokens.len().into(),
            blocks: wanted
                .take(ANSWER_MAX)
                .filter_map(|index| self.tokens.block(index))
                .collect(),
            archived_blocks: Vec::new(),
        }
    }
}

/// `icrc3_supported_block_types`.
pub(super) fn supported_block_types() -> Vec<SupportedBlockType> {
    let types = [
        "1burn",
        "1mint",
        "1xfer",
        "2approve",
        "2burn",
        "2xfer",
        "107feecol",
    ];
    let of = |block_type: &str| SupportedBlockType {
        block_type: block_type.to_owned(),
        url: match block_type {
            "107feecol" => "https://github.com/dfinity/ICRC/blob/main/ICRCs/ICRC-107/ICRC-107.md",
            _ => "https://github.com/dfinity/ICRC-1/tree/main/standards/ICRC-3",
        }
        .to_owned(),
    };
    types.map(of).into()
}
