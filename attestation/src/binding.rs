//! What ties a report to one contract, one moment and one set of keys (DESIGN 4).

use sha2::{Digest, Sha256, Sha512};

use crate::GuestKeys;

/// First bytes of what `REPORT_DATA` hashes: no other protocol's report can pass for one of ours.
pub const REPORT_DATA_DOMAIN: &[u8] = b"decent-cloud report-data v1\0";

/// First bytes of what a GPU's nonce hashes.
pub const GPU_NONCE_DOMAIN: &[u8] = b"decent-cloud gpu-nonce v1\0";

/// First bytes of what the qualifying data of a host's TPM quote hashes.
pub const HOST_QUOTE_DOMAIN: &[u8] = b"decent-cloud host-quote v1\0";

/// First bytes of what the qualifying data of a host's own TPM quote hashes: one that speaks for no contract.
pub const HOST_EVIDENCE_DOMAIN: &[u8] = b"decent-cloud host-evidence v1\0";

/// The nonce that binds a GPU's evidence to the VM whose report carries `report_data`: SHA-256(domain ‖ report data).
/// Through that it is bound to the same contract, ledger, nonce and keys.
pub fn gpu_nonce(report_data: &[u8; 64]) -> [u8; 32] {
    derived(GPU_NONCE_DOMAIN, report_data)
}

/// The qualifying data that binds a host's TPM quote to the VM whose report carries `report_data` (for a VM without one:
/// to the `REPORT_DATA` that it would carry): SHA-256(domain ‖ report data).
pub fn host_qualifying_data(report_data: &[u8; 64]) -> [u8; 32] {
    derived(HOST_QUOTE_DOMAIN, report_data)
}

fn derived(domain: &[u8], report_data: &[u8; 64]) -> [u8; 32] {
    Sha256::new()
        .chain_update(domain)
        .chain_update(report_data)
        .finalize()
        .into()
}

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

/// What a host's own TPM quote, which speaks for no contract, is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostBinding<'a> {
    /// The ledger: bytes of its canister id (at most 29).
    pub ledger: &'a [u8],
    /// The host: bytes of its principal (at most 29).
    pub host: &'a [u8],
    /// The ledger's nonce for this host.
    pub nonce: [u8; 32],
}

impl HostBinding<'_> {
    /// `SHA-256(domain ‖ u32 BE length of ledger ‖ ledger ‖ u32 BE length of host ‖ host ‖ nonce)`.
    pub fn qualifying_data(&self) -> [u8; 32] {
        let mut sha = Sha256::new().chain_update(HOST_EVIDENCE_DOMAIN);
        for part in [self.ledger, self.host] {
            sha.update((part.len() as u32).to_be_bytes());
            sha.update(part);
        }
        sha.chain_update(self.nonce).finalize().into()
    }
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
