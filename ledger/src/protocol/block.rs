//! Blocks: one for every command that changed something, each naming the hash of the one before.
//!
//! The canonical bytes of a block, which are stored and hashed as they are (integers big-endian):
//!
//! | field | bytes |
//! |---|---|
//! | `"DCB1"` | 4 |
//! | height | 8 |
//! | parent: hash of the block before, or of the genesis for height 0 | 32 |
//! | time, nanoseconds of the ledger's clock | 8 |
//! | caller: length, principal | 1 + 0…29 |
//! | method: length, name | 1 + 1…64 |
//! | argument: length, Candid | 4 + n |
//! | SHA-256 of the Candid reply without its words for people | 32 |
//!
//! hash = SHA-256(`"\x0ddecent-block"` ‖ those bytes). The argument is the canonical re-encoding of what the caller
//! sent, so replaying the blocks over the genesis gives the same state, the same replies and the same hashes.

use candid::Principal;
use sha2::{Digest, Sha256};

use crate::api::{Digest32, TimeNs};
use crate::bytes::Bytes;

const MAGIC: &[u8; 4] = b"DCB1";
const HASH_DOMAIN: &[u8] = b"\x0ddecent-block";

/// The longest argument that a block holds, bytes.
pub const ARGUMENT_MAX: usize = 1 << 20;

/// One applied command. Holding one proves its form only; `State::replay` proves its place in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Blocks before this one.
    pub height: u64,
    /// Hash of the block before; for height 0 that of the genesis.
    pub parent: Digest32,
    /// The ledger's time at which the command was applied.
    pub time: TimeNs,
    /// Who sent it; the ledger's own id for `tick`.
    pub caller: Principal,
    /// Method name.
    pub method: String,
    /// Candid argument.
    pub argument: Vec<u8>,
    /// SHA-256 of the Candid reply, its words for people (`result`, `reasons`, `refusals`) left empty.
    pub reply: Digest32,
}

/// The bytes aren't those of a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// They end within a field, or don't end after the last.
    #[error("the block ends in {field}, or has bytes after its end")]
    Length {
        /// Which.
        field: &'static str,
    },
    /// A field has a value that no block has.
    #[error("{field} isn't that of a block")]
    Value {
        /// Which.
        field: &'static str,
    },
}

impl Block {
    /// The canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let caller = self.caller.as_slice();
        let mut out = Vec::with_capacity(96 + caller.len() + self.method.len() + self.argument.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.height.to_be_bytes());
        out.extend_from_slice(&self.parent.0);
        out.extend_from_slice(&self.time.to_be_bytes());
        out.push(caller.len() as u8); // a principal has at most 29 bytes
        out.extend_from_slice(caller);
        out.push(self.method.len() as u8); // method names are ours, all shorter than 64
        out.extend_from_slice(self.method.as_bytes());
        out.extend_from_slice(&(self.argument.len() as u32).to_be_bytes()); // at most ARGUMENT_MAX
        out.extend_from_slice(&self.argument);
        out.extend_from_slice(&self.reply.0);
        out
    }

    /// Reads what `to_bytes` wrote, and nothing else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BlockError> {
        let mut rest = Reader(bytes);
        if rest.take(4, "magic")? != MAGIC {
            return Err(BlockError::Value { field: "magic" });
        }
        let height = u64::from_be_bytes(rest.array("height")?);
        let parent = Bytes(rest.array("parent")?);
        let time = u64::from_be_bytes(rest.array("time")?);
        let [caller_len] = rest.array("caller")?;
        let caller = Principal::try_from_slice(rest.take(usize::from(caller_len), "caller")?)
            .map_err(|_| BlockError::Value { field: "caller" })?;
        let [method_len] = rest.array("method")?;
        if !(1..=64).contains(&method_len) {
            return Err(BlockError::Value { field: "method" });
        }
        let method = std::str::from_utf8(rest.take(usize::from(method_len), "method")?)
            .map_err(|_| BlockError::Value { field: "method" })?
            .to_owned();
        let argument_len = u32::from_be_bytes(rest.array("argument")?) as usize;
        if argument_len > ARGUMENT_MAX {
            return Err(BlockError::Value { field: "argument" });
        }
        let argument = rest.take(argument_len, "argument")?.to_vec();
        let reply = Bytes(rest.array("reply")?);
        if !rest.0.is_empty() {
            return Err(BlockError::Length { field: "reply" });
        }
        Ok(Self {
            height,
            parent,
            time,
            caller,
            method,
            argument,
            reply,
        })
    }

    /// What the next block names as its parent.
    pub fn hash(&self) -> Digest32 {
        hash(&[HASH_DOMAIN, &self.to_bytes()])
    }
}

/// SHA-256 over parts that the caller made unambiguous (a domain first, fixed lengths or one tail).
pub(crate) fn hash(parts: &[&[u8]]) -> Digest32 {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update(part);
    }
    Bytes(sha.finalize().into())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], BlockError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(BlockError::Length { field })?;
        self.0 = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], BlockError> {
        self.take(N, field)?
            .try_into()
            .map_err(|_| BlockError::Length { field })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Block {
        Block {
            height: 7,
            parent: Bytes([1; 32]),
            time: 99,
            caller: Principal::anonymous(),
            method: "rent".into(),
            argument: vec![1, 2, 3],
            reply: Bytes([2; 32]),
        }
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_seen() {
        let block = block();
        let bytes = block.to_bytes();
        assert_eq!(Block::from_bytes(&bytes).unwrap(), block);
        for len in 0..bytes.len() {
            assert!(Block::from_bytes(&bytes[..len]).is_err(), "cut at {len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Either it is no block, or it is another block with another hash.
            if let Ok(other) = Block::from_bytes(&bad) {
                assert_ne!(other.hash(), block.hash(), "bit {bit}");
                assert_eq!(other.to_bytes(), bad, "bit {bit}: two encodings of one block");
            }
        }
        assert!(Block::from_bytes(&[bytes, vec![0]].concat()).is_err());
    }
}
