//! Who is who: providers, hosts, their heartbeats [5.1].

use candid::{CandidType, Principal};
use serde::{Deserialize, Serialize};

use super::{ContractId, Digest32, TimeNs};

/// Who a provider is: providers are identifiable and bound by a legal contract [5.1].
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct ProviderProfile {
    /// Legal name, 1–200 characters.
    pub name: String,
    /// DNS domain under which the contract-derived names `<short id>.<domain>` live.
    pub domain: String,
    /// How to reach a person: an e-mail address or URL.
    pub contact: String,
    /// SHA-256 of the legal contract's text.
    pub legal_contract: Digest32,
}

/// What a provider signs, on a machine of its own, to let a host act for it. Signed as
/// `"\x16decent-host-delegation" ‖ SHA-256(Candid encoding of this)`.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct HostStatement {
    /// The ledger this is for (its canister id), so that it can't be replayed on another.
    pub ledger: Principal,
    /// The provider; a provider that the ledger doesn't know yet is registered with it.
    pub profile: ProviderProfile,
    /// The host's own key, as its self-authenticating principal.
    pub host: Principal,
    /// The statement counts for nothing from here on.
    pub expires_at: TimeNs,
}

/// A `HostStatement` with the provider's signature over it.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct HostDelegation {
    /// What was signed.
    pub statement: HostStatement,
    /// The provider's public key (DER SubjectPublicKeyInfo: Ed25519, secp256k1 or P-256); its principal is the provider.
    #[serde(with = "serde_bytes")]
    pub provider_key: Vec<u8>,
    /// Raw signature, 64 bytes.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

/// `heartbeat`.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct HeartbeatArgs {
    /// hostd's version.
    pub version: String,
    /// Contracts whose VM is in trouble but not gone.
    pub degraded: Vec<ContractId>,
    /// No new contracts, please (an operator drains the host).
    pub draining: bool,
}
