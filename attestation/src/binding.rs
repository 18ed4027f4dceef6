//! What ties a report to one contract, one moment and one set of keys (DESIGN 4).

use sha2::{Digest, Sha512};

use crate::GuestKeys;

/// First bytes of what `REPORT_DATA` hashes: no other protocol's report can pass for one of ours.
pub const REPORT_DATA_DOMAIN: &[u8] = b"decent-cloud report-data v1\0";

/// Everything but the VM's own keys that `REPORT_DATA` binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding<'a> {
    /// The ledger: bytes of its canister id (at most 29).
    pub ledger: &'a [u8],
    /// The contract's id; also the launch's `HOST_DATA`.
    pub contract: [u8; 32],
    /// The ledger's nonce: proves that the report is younger than the question.
    pub nonce: [u8; 32],
}

impl Binding<'_> {
    /// `SHA-512(domain ‖ u32 BE length of ledger ‖ ledger ‖ contract ‖ nonce ‖ digest of keys)`.
    pub fn report_data(&self, keys: &GuestKeys) -> [u8; 64] {
        Sha512::new()
            .chain_update(REPORT_DATA_DOMAIN)
            .chain_update((self.ledger.len() as u32).to_be_bytes())
            .chain_update(self.ledger)
            .chain_update(self.contract)
            .chain_update(self.nonce)
            .chain_update(keys.digest())
            .finalize()
            .into()
    }
}
