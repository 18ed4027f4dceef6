//! Who is who: providers, hosts, their heartbeats [5.1].

use candid::{CandidType, Principal};
use serde::{Deserialize, Serialize};

use super::{ContractId, Digest32, Grade, TimeNs, TpmName};

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
    /// The name of the host's attestation key, which its TPM quotes with. Without one the host is never
    /// `host-verified`. The provider vouches that this key lives in the TPM of that machine.
    pub attestation_key: Option<TpmName>,
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

/// `submit_host_evidence`.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct HostEvidenceArgs {
    /// CBOR of `attestation::tpm::TpmEvidence` whose quote holds `attestation::HostBinding` of the ledger's last nonce
    /// for this host, or of an `attestation::Bundle` of that and signed reference values; at most `EVIDENCE_MAX` bytes.
    #[serde(with = "serde_bytes")]
    pub evidence: Vec<u8>,
}

/// What a host's last evidence proved.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct HostVerified {
    /// The image that it runs, by the name that the signed reference values have.
    pub image: String,
    /// When the ledger verified it.
    pub at: TimeNs,
    /// It counts until then: so long after its nonce was made.
    pub until: TimeNs,
}

/// A host, for anyone to see.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct HostInfo {
    /// Its key's principal.
    pub host: Principal,
    /// Whose it is.
    pub provider: Principal,
    /// hostd's version, as the host says.
    pub version: String,
    /// It takes no new contracts.
    pub draining: bool,
    /// When it was last heard of, to a minute.
    pub heard_at: TimeNs,
    /// Its provider's delegation ends then.
    pub delegated_until: TimeNs,
    /// The attestation key that the delegation names.
    pub attestation_key: Option<TpmName>,
    /// What its last evidence proved; it may be over (`until`).
    pub verified: Option<HostVerified>,
    /// Why its last evidence was refused.
    pub refusals: Vec<String>,
    /// Its image, and when it may be away for the next one.
    pub update: Option<UpdateNotice>,
}

impl HostInfo {
    /// What a plain VM on this host can be confirmed as, at the ledger's time `now`.
    pub fn grade(&self, now: TimeNs) -> Grade {
        match &self.verified {
            Some(verified) if now < verified.until => Grade::HostVerified,
            _ => Grade::HostSigned,
        }
    }
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
    /// What becomes of the host's image; `None`: its system isn't updated by hostd.
    #[serde(default)]
    pub update: Option<UpdateNotice>,
}

/// A host's image, and when the host may be away for the next one. A reboot ends the contracts that are there.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct UpdateNotice {
    /// The version that runs, 1–64 characters.
    pub running: String,
    /// The version that the next boot tries, if one is there.
    pub next: Option<String>,
    /// From when on the host may reboot into it, by the host's clock; `None`: not while contracts are here.
    pub away_from: Option<TimeNs>,
    /// The version that was tried last and didn't prove itself, so that the host returned to `running`.
    pub returned: Option<String>,
}
