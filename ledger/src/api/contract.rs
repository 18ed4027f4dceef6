//! Contracts: what is rented, where it stands, its money and its evidence [5.2, 5.3].

use candid::{CandidType, Principal};
use serde::{Deserialize, Serialize};

use super::{Amount, ContractId, Digest32, Grade, Measurement, OfferingId, Request, TimeNs};

/// An image by the SHA-256 of its manifest, and where the manifest can be had. Files are named relative to the URL.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct ImageRef {
    /// SHA-256 of the manifest's bytes: this alone decides what boots.
    pub manifest: Digest32,
    /// `https://…/manifest.json` (hosts may allow `http` and `file` for tests).
    pub url: String,
}

/// Transport protocol of a port lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, CandidType, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    #[serde(rename = "tcp")]
    Tcp,
    /// UDP.
    #[serde(rename = "udp")]
    Udp,
}

/// A port of the VM that shall be reachable from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, CandidType, Serialize, Deserialize)]
pub struct PortRequest {
    /// TCP or UDP.
    pub transport: Transport,
    /// The port in the VM.
    pub port: u16,
}

/// A floor for each component of an SNP TCB version; a component left out is not looked at (AMD 56860, TCB_VERSION).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct TcbFloor {
    /// FMC security version (Turin on).
    pub fmc: Option<u8>,
    /// Bootloader.
    pub bootloader: Option<u8>,
    /// TEE (PSP OS).
    pub tee: Option<u8>,
    /// SNP firmware.
    pub snp: Option<u8>,
    /// Microcode.
    pub microcode: Option<u8>,
}

/// A paid request.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct RentArgs {
    /// What was matched.
    pub request: Request,
    /// The offering picked.
    pub offering: OfferingId,
    /// What shall boot.
    pub image: ImageRef,
    /// OpenSSH public keys, one each, at most 16.
    pub ssh_public_keys: Vec<String>,
    /// cloud-init user data, at most `USER_DATA_MAX` bytes. The ledger is public: no secrets here.
    #[serde(with = "serde_bytes")]
    pub user_data: Vec<u8>,
    /// A DNS name to route to the VM beside the derived one, while DNS proves it ([`crate::name_proof`]); asking for it gives
    /// no right to it.
    pub tls_name: Option<String>,
    /// Ports to lease, at most 16.
    pub ports: Vec<PortRequest>,
    /// Launch measurements the developer accepts; at least one for confidential kinds.
    pub allowed_measurements: Vec<Measurement>,
    /// TCB floor for SEV-SNP.
    pub min_tcb: TcbFloor,
    /// The most that may go to escrow now.
    pub max_total: Amount,
    /// Chosen by the caller: the same arguments by the same caller are one contract (a retry is answered, not charged).
    pub memo: u64,
}

/// Where a contract stands. Every state but `Ended` has a deadline and an exit with the money accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub enum ContractState {
    /// Paid into escrow; the host has until `deadline` to accept.
    #[serde(rename = "requested")]
    Requested,
    /// Accepted; the host has until `deadline` to have evidence verified.
    #[serde(rename = "accepted")]
    Accepted,
    /// Evidence verified: the clock runs until `deadline` (the end of the paid period).
    #[serde(rename = "active")]
    Active,
    /// Over. The host still has to release what it holds.
    #[serde(rename = "ended")]
    Ended(EndReason),
}

/// Why a contract ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub enum EndReason {
    /// The host refused: all refunded.
    #[serde(rename = "refused")]
    Refused,
    /// Not accepted in time: all refunded.
    #[serde(rename = "accept-timeout")]
    AcceptTimeout,
    /// Evidence not verified in time: all refunded.
    #[serde(rename = "confirm-timeout")]
    ConfirmTimeout,
    /// The developer cancelled: unused escrow refunded.
    #[serde(rename = "cancelled")]
    Cancelled,
    /// The paid period is over.
    #[serde(rename = "period-over")]
    PeriodOver,
    /// The host reported the VM gone: accrual stopped there, the rest refunded.
    #[serde(rename = "vm-gone")]
    VmGone,
}

/// A leased port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct LeasedPort {
    /// TCP or UDP.
    pub transport: Transport,
    /// The port on the host's public address.
    pub public_port: u16,
    /// The port in the VM.
    pub vm_port: u16,
}

/// How the developer reaches the VM. The host says so; what proves the machine is the evidence's key set.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Endpoint {
    /// Public address of the host.
    pub address: String,
    /// Names routed to the VM by SNI and Host header.
    pub names: Vec<String>,
    /// Leased ports.
    pub ports: Vec<LeasedPort>,
}

/// Where the contract's money is. Always `funded = held + released + refunded`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Escrow {
    /// Paid in.
    pub funded: Amount,
    /// Still in escrow.
    pub held: Amount,
    /// Paid out for time used (provider's part + fee).
    pub released: Amount,
    /// Paid back.
    pub refunded: Amount,
    /// Of `released`: what the provider got.
    pub to_provider: Amount,
    /// Of `released`: the fee's part for the DAO.
    pub to_dao: Amount,
    /// Of `released`: the rest of the fee.
    pub to_fees: Amount,
}

/// A contract as the ledger keeps it. `user_data` is only shown to its host and its developer.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Contract {
    /// Its name: `attestation::contract_id` of `salt` and of the digest of SSH keys and user data, so that a launch that
    /// is bound to it is bound to them.
    pub id: ContractId,
    /// What makes the id unique beside the settings.
    pub salt: Digest32,
    /// Who rents.
    pub developer: Principal,
    /// From whom.
    pub provider: Principal,
    /// On which host.
    pub host: Principal,
    /// The paid request.
    pub args: RentArgs,
    /// Where it stands.
    pub state: ContractState,
    /// When the next thing must have happened; see `ContractState`.
    pub deadline: Option<TimeNs>,
    /// When it was paid.
    pub created_at: TimeNs,
    /// When evidence was verified.
    pub active_since: Option<TimeNs>,
    /// When it ended.
    pub ended_at: Option<TimeNs>,
    /// Price per hour, fixed at the request.
    pub price_per_hour: Amount,
    /// Paid seconds, with extensions.
    pub period_s: u64,
    /// The money.
    pub escrow: Escrow,
    /// The nonce that the next evidence must be bound to.
    pub nonce: Option<Digest32>,
    /// What was reached.
    pub grade: Grade,
    /// How to reach the VM.
    pub endpoint: Option<Endpoint>,
    /// Why the last evidence was refused; at the end also the host's reason of `refuse` or `vm_gone`.
    pub refusals: Vec<String>,
    /// Whether the host has let go of everything.
    pub released: bool,
}

/// `refuse`.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct RefuseArgs {
    /// Which contract.
    pub contract: ContractId,
    /// Why, for the developer; at most 500 characters.
    pub reason: String,
}

/// `submit_evidence`.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct SubmitEvidenceArgs {
    /// Which contract.
    pub contract: ContractId,
    /// CBOR of `attestation::Composite` (a VM, alone or with its GPUs or its host), or of an `attestation::Bundle` of
    /// that and its makers' endorsements; at most `EVIDENCE_MAX` bytes.
    #[serde(with = "serde_bytes")]
    pub evidence: Vec<u8>,
    /// How the VM is reached.
    pub endpoint: Endpoint,
}

/// Evidence that was verified.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Confirmation {
    /// The grade reached.
    pub grade: Grade,
    /// What the chain rests on: `pinned`, `test-root`, `policy` (an attestation key that the provider named), or `none`
    /// where only the host speaks.
    pub trust: String,
    /// The attestation result (EAR) as JSON.
    pub result: String,
}

/// The last verified evidence of a contract, for anyone to verify again.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct EvidenceRecord {
    /// As submitted.
    #[serde(with = "serde_bytes")]
    pub evidence: Vec<u8>,
    /// The nonce it is bound to.
    pub nonce: Digest32,
    /// When the ledger verified it.
    pub at: TimeNs,
    /// What the ledger found.
    pub confirmation: Confirmation,
}

/// `extend`: the same flow as renting, with access kept [5.3].
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct ExtendArgs {
    /// Which contract.
    pub contract: ContractId,
    /// Additional seconds, at least 1.
    pub period_s: u64,
    /// The most that may go to escrow now.
    pub max_total: Amount,
    /// The same extension by the same caller with the same memo happens once.
    pub memo: u64,
}

/// `vm_gone`.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct VmGoneArgs {
    /// Which contract.
    pub contract: ContractId,
    /// What happened, for the developer; at most 500 characters.
    pub reason: String,
}
