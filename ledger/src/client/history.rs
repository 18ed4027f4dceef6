//! The token's log (ICRC-3), checked by whoever reads it: the ledger signs the last block's hash, and each block names the
//! hash of the one before.

use ic_agent::Certificate;
use ic_agent::hash_tree::{HashTree, LookupResult};
use icrc_ledger_types::icrc::generic_value::ICRC3Value;
use icrc_ledger_types::icrc3::blocks::{GetBlocksRequest, GetBlocksResult, ICRC3DataCertificate};

use super::{Arguments::One, Client, ClientError, NOTHING};
use crate::api::Digest32;
use crate::bytes::Bytes;

const TIP: &str = "icrc3_get_tip_certificate";
const BLOCKS: &str = "icrc3_get_blocks";
/// Blocks of one question.
const AT_ONCE: u64 = 500;

fn untrusted(method: &'static str, why: impl Into<String>) -> ClientError {
    let why = why.into();
    ClientError::Untrusted { method, why }
}

fn value<'a>(tree: &'a HashTree<Vec<u8>>, path: &[&[u8]]) -> Option<&'a [u8]> {
    match tree.lookup_path(path) {
        LookupResult::Found(value) => Some(value),
        _ => None,
    }
}

impl Client {
    /// Index and hash of the last block, verified against the pinned root key.
    pub async fn token_tip(&self) -> Result<(u64, Digest32), ClientError> {
        let answer: Option<ICRC3DataCertificate> = self.query(TIP, NOTHING).await?;
        let answer = answer.ok_or_else(|| untrusted(TIP, "no certificate"))?;
        let unreadable = |error: serde_cbor::Error| untrusted(TIP, error.to_string());
        let certificate: Certificate = serde_cbor::from_slice(&answer.certificate).map_err(unreadable)?;
        let tips: HashTree<Vec<u8>> = serde_cbor::from_slice(&answer.hash_tree).map_err(unreadable)?;
        self.agent()
            .verify(&certificate, self.canister_id())
            .map_err(|error| ClientError::from_agent(TIP, error))?;
        let canister = self.canister_id();
        let certified = [b"canister", canister.as_slice(), b"certified_data"];
        if value(&certificate.tree, &certified) != Some(&tips.digest()[..]) {
            return Err(untrusted(TIP, "the hash tree is not the certified one"));
        }
        let leaf = |label: &str| {
            let found = value(&tips, &[label.as_bytes()]);
            found.ok_or_else(|| untrusted(TIP, format!("the hash tree has no {label}")))
        };
        let index = leb128::read::unsigned(&mut leaf("last_block_index")?);
        let hash = leaf("last_block_hash")?.try_into();
        match (index, hash) {
            (Ok(index), Ok(hash)) => Ok((index, Bytes(hash))),
            _ => Err(untrusted(TIP, "the hash tree's leaves have another form")),
        }
    }

    /// The last `count` blocks with their indices, newest first, every one verified.
    pub async fn token_history(&self, count: u64) -> Result<Vec<(u64, ICRC3Value)>, ClientError> {
        let (last, mut hash) = self.token_tip().await?;
        let mut found = Vec::new();
        // Blocks below this index are still wanted.
        let mut end = last.saturating_add(1);
        let first = end.saturating_sub(count);
        while end > first {
            let start = end.saturating_sub(AT_ONCE).max(first);
            let blocks = self.token_blocks(start, end - start).await?;
            for (index, block) in (start..end).rev().zip(blocks.into_iter().rev()) {
                if block.clone().hash() != hash.0 {
                    return Err(untrusted(
                        BLOCKS,
                        format!("block {index} is not the certified one"),
                    ));
                }
                let parent = match &block {
                    ICRC3Value::Map(fields) => fields.get("phash"),
                    _ => None,
                };
                match (parent, index) {
                    (Some(ICRC3Value::Blob(parent)), 1..) if parent.len() == 32 => {
                        hash.0.copy_from_slice(parent);
                    }
                    (None, 0) => {}
                    _ => return Err(untrusted(BLOCKS, format!("block {index} names no parent"))),
                }
                found.push((index, block));
            }
            end = start;
        }
        Ok(found)
    }

    /// Exactly these blocks, as the node says.
    async fn token_blocks(&self, start: u64, length: u64) -> Result<Vec<ICRC3Value>, ClientError> {
        let range = GetBlocksRequest {
            start: start.into(),
            length: length.into(),
        };
        let answer: GetBlocksResult = self.query(BLOCKS, One(vec![range])).await?;
        let whole = answer.blocks.len() as u64 == length
            && (start..)
                .zip(&answer.blocks)
                .all(|(index, block)| block.id == index);
        match whole {
            true => Ok(answer.blocks.into_iter().map(|block| block.block).collect()),
            false => Err(untrusted(BLOCKS, "blocks that it has certified are missing")),
        }
    }
}
