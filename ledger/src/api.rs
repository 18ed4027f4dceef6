//! The Candid types and method names that the ledger speaks: one definition for the protocol, the node, the client,
//! hostd and `decent`.
//!
//! Amounts are in the token's smallest unit (10⁻⁹ DCT), times in nanoseconds of the *ledger's* clock since the Unix
//! epoch, durations in seconds. Sections in brackets are those of the Decent Cloud paper.
//!
//! | method | kind | who may call |
//! |---|---|---|
//! | `icrc1_*` | query, update | anyone; a transfer moves the caller's own tokens |
//! | `ledger_info()` | query | anyone |
//! | `register_provider(ProviderProfile)`, `register_developer()` | update | the account itself |
//! | `register_host(HostDelegation)` | update | the host key that the delegation names |
//! | `publish_offering(OfferingSpec)`, `withdraw_offering(nat64)` | update | the host, for itself |
//! | `match_offerings(Request)`, `why_not(Request)` | query | anyone |
//! | `rent(RentArgs)` | update | a developer; money goes to escrow |
//! | `accept(ContractId)`, `refuse(RefuseArgs)` | update | the contract's host |
//! | `contract_nonce(ContractId)` | update | the contract's host or developer |
//! | `submit_evidence(SubmitEvidenceArgs)` | update | the contract's host |
//! | `extend(ExtendArgs)`, `cancel(ContractId)` | update | the contract's developer |
//! | `vm_gone(VmGoneArgs)`, `released(ContractId)`, `heartbeat(HeartbeatArgs)` | update | the contract's host |
//! | `settle(ContractId)` | update | anyone: pushes an overdue step, pays what has accrued |
//! | `contract(ContractId)` → `Contract`, `evidence(ContractId)` → `EvidenceRecord` | query | anyone |
//! | `host_contracts(principal)` → every contract of that host that is not yet `released` | query | the host |
//! | `account_contracts(principal)`, `reputation(principal)`, `offerings()`, `invariants()` | query | anyone |
//!
//! Every update answers `Result<T, LedgerError>` (Candid `variant { Ok; Err }`), and so do the queries that can miss:
//!
//! | T | methods |
//! |---|---|
//! | `()` | `register_*`, `withdraw_offering`, `accept`, `refuse`, `vm_gone`, `released`, `heartbeat` |
//! | `OfferingId`, `ContractId`, `Digest32`, `Confirmation` | `publish_offering`, `rent`, `contract_nonce`, `submit_evidence` |
//! | `Contract` (as it is now) | `extend`, `cancel`, `settle` |
//! | `Vec<Match>`, `Vec<WhyNot>`, `Contract`, `EvidenceRecord` | queries `match_offerings`, `why_not`, `contract`, `evidence` |
//!
//! The other queries answer plainly: `LedgerInfo`, `Vec<Contract>`, `Reputation`, `Vec<Offering>`, `Invariants`.
//! Enum variants are renamed one by one: `candid`'s derive doesn't know serde's `rename_all`, and a type that names its
//! variants otherwise than its decoder can't be read back.
//! Beside the standard interface a node offers `GET /dc/v1/wait?after=HEIGHT&timeout_ms=N`: it answers
//! `{"height": H}` as soon as H > HEIGHT, or at the timeout. It is a hint to query again, never a fact.

use candid::{CandidType, Principal};
use serde::{Deserialize, Serialize};

pub use crate::bytes::{Bytes, BytesError};

/// Tokens in the smallest unit: 10⁻⁹ DCT. The whole supply is below 2⁵⁵, so `u64` holds every sum of balances.
pub type Amount = u64;

/// Nanoseconds of the ledger's clock since the Unix epoch.
pub type TimeNs = u64;

/// Names one contract. 32 bytes, so that it fits SNP's `HOST_DATA` as it is (DESIGN: bindings).
pub type ContractId = Bytes<32>;

/// SHA-256.
pub type Digest32 = Bytes<32>;

/// An SNP launch digest (AMD 56860, `MEASUREMENT`) or a TDX MRTD: SHA-384.
pub type Measurement = Bytes<48>;

/// Numbers an offering, in order of publication.
pub type OfferingId = u64;

/// Decimals of DCT (ICRC-1 `icrc1_decimals`) [5.4].
pub const DECIMALS: u8 = 9;

/// One DCT in its smallest unit.
pub const DCT: Amount = 1_000_000_000;

/// The largest cloud-init user data of a contract, in bytes.
pub const USER_DATA_MAX: usize = 64 * 1024;

/// The largest evidence that `submit_evidence` takes, in bytes: room for a VM with a full board of GPUs.
pub const EVIDENCE_MAX: usize = 512 * 1024;

/// What isolates the VM from its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, CandidType, Serialize, Deserialize)]
pub enum VmKind {
    /// The hypervisor only.
    #[serde(rename = "plain")]
    Plain,
    /// AMD SEV-SNP.
    #[serde(rename = "sev-snp")]
    SevSnp,
    /// Intel TDX.
    #[serde(rename = "tdx")]
    Tdx,
}

/// How well a contract's provisioning is confirmed, worst first (DESIGN 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, CandidType, Serialize, Deserialize)]
pub enum Grade {
    /// Nobody said anything yet.
    #[serde(rename = "unconfirmed")]
    Unconfirmed,
    /// Only the provider's word.
    #[serde(rename = "host-signed")]
    HostSigned,
    /// The host's TPM quote proves which provider OS runs the VM.
    #[serde(rename = "host-verified")]
    HostVerified,
    /// The CPU's own report proves what runs in the VM.
    #[serde(rename = "hardware-verified")]
    HardwareVerified,
}

/// An amount of something that the paper lets a developer leave open [5.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub enum Quota {
    /// Without limit.
    #[serde(rename = "unlimited")]
    Unlimited,
    /// So many units (GiB of storage, Mbit/s of bandwidth).
    #[serde(rename = "limited")]
    Limited(u64),
}

/// Whether the VM's disk must be encrypted on the host with a key of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub enum AtRest {
    /// The host decides.
    #[serde(rename = "any")]
    Any,
    /// LUKS2 or no contract.
    #[serde(rename = "encrypted")]
    Encrypted,
}

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

/// What one host has in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Capacity {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory for VMs, MiB.
    pub memory_mib: u64,
    /// Storage for VM disks, GiB.
    pub storage_gib: u64,
    /// Whole GPUs.
    pub gpus: u32,
}

/// Prices per hour, each in 10⁻⁹ DCT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct PriceList {
    /// For any VM.
    pub vm_hour: Amount,
    /// For each vCPU.
    pub vcpu_hour: Amount,
    /// For each GiB of memory (begun ones count).
    pub memory_gib_hour: Amount,
    /// For each GiB of storage.
    pub storage_gib_hour: Amount,
    /// For each GPU.
    pub gpu_hour: Amount,
}

/// What a host sells.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct OfferingSpec {
    /// A few words for people, at most 200 characters.
    pub title: String,
    /// Where the machine stands, e.g. `eu-ch`.
    pub region: String,
    /// Kinds of VM that the host can launch.
    pub kinds: Vec<VmKind>,
    /// All that the host may promise; contracts not yet released count against it.
    pub capacity: Capacity,
    /// The most storage one VM may have; `Unlimited`: as much as the capacity leaves.
    pub storage_per_vm: Quota,
    /// Bandwidth of one VM, Mbit/s.
    pub bandwidth_mbps: Quota,
    /// GPU model (NVML's name) when `capacity.gpus` > 0.
    pub gpu_model: Option<String>,
    /// Whether disks can be encrypted with a key of their own.
    pub at_rest: AtRest,
    /// The best grade the host can reach for a contract.
    pub best_grade: Grade,
    /// Whether confidential kinds are simulated by a test platform. Never set on real hosts.
    pub test_platform: bool,
    /// Prices.
    pub prices: PriceList,
    /// The least reputation a developer must have, base units.
    pub min_developer_reputation: u64,
    /// The longest period of one contract, seconds.
    pub max_period_s: u64,
}

/// What a developer looks for: all request fields of the paper [5.3], and what this product adds.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Request {
    /// The most the developer pays per hour, all in.
    pub max_price_per_hour: Amount,
    /// Virtual CPUs, at least 1.
    pub vcpus: u32,
    /// Memory, MiB, at least 64.
    pub memory_mib: u64,
    /// Disk, GiB. `Unlimited`: an offering without a limit per VM; the host gives what its configuration names as the default.
    pub storage_gib: Quota,
    /// Bandwidth, Mbit/s.
    pub bandwidth_mbps: Quota,
    /// The least reputation of the provider, base units.
    pub min_provider_reputation: u64,
    /// How long, seconds, at least 1.
    pub period_s: u64,
    /// What isolates the VM.
    pub kind: VmKind,
    /// The least grade of confirmation; the contract is never confirmed below it.
    pub min_grade: Grade,
    /// Encryption at rest.
    pub at_rest: AtRest,
    /// Whole GPUs.
    pub gpus: u32,
    /// Region, if it matters.
    pub region: Option<String>,
}

/// An offering that fits a request, and what it would cost.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Match {
    /// Which.
    pub offering: Offering,
    /// Price per hour for exactly this request.
    pub price_per_hour: Amount,
    /// Price of the whole period.
    pub total: Amount,
}

/// An offering as the ledger keeps it.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Offering {
    /// Its number.
    pub id: OfferingId,
    /// Whose.
    pub provider: Principal,
    /// On which host.
    pub host: Principal,
    /// The provider's name, for people.
    pub provider_name: String,
    /// The provider's reputation, base units.
    pub provider_reputation: u64,
    /// What the ledger still has free of `spec.capacity`.
    pub free: Capacity,
    /// What was published.
    pub spec: OfferingSpec,
}

/// One reason why an offering doesn't fit a request.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Mismatch {
    /// The request's field.
    pub field: String,
    /// What the request asks, in words.
    pub wanted: String,
    /// What the offering has, in words.
    pub offered: String,
}

/// An offering that doesn't fit, with every reason.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct WhyNot {
    /// Which.
    pub offering: Offering,
    /// All of them, never only the first.
    pub reasons: Vec<Mismatch>,
}

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
    /// CBOR of `attestation::Composite` (a VM, alone or with its GPUs), or of an `attestation::Bundle` of that and its
    /// makers' endorsements; at most `EVIDENCE_MAX` bytes.
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
    /// What the chain rests on: `pinned`, `test-root`, or `none` where only the host speaks.
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

/// What a client must know of the ledger it talks to.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct LedgerInfo {
    /// Name from the genesis.
    pub name: String,
    /// Its canister id: the ledger id of DESIGN's bindings.
    pub ledger: Principal,
    /// Whether genesis calls itself a demo (balances out of nothing, test roots, a fast clock).
    pub demo: bool,
    /// The ledger's clock runs so many times as fast as the wall clock (1 outside of demos).
    pub clock_rate: u32,
    /// The ledger's time now.
    pub now: TimeNs,
    /// SHA-256 of each test root (DER certificate) that the genesis names; empty outside of tests and demos.
    pub test_roots: Vec<Digest32>,
    /// Blocks so far.
    pub height: u64,
    /// Hash of the last block.
    pub tip: Digest32,
    /// Fee of a payment in basis points [5.2].
    pub fee_bps: u32,
    /// Of that fee, the DAO's part in basis points.
    pub dao_bps: u32,
    /// Fee of an ICRC-1 transfer.
    pub transfer_fee: Amount,
}

/// A change of somebody's reputation.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct ReputationChange {
    /// When.
    pub at: TimeNs,
    /// By how much, base units.
    pub delta: i64,
    /// Why.
    pub reason: String,
    /// The contract it came from.
    pub contract: Option<ContractId>,
}

/// Somebody's reputation with its history, newest last.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Reputation {
    /// Now, base units.
    pub score: u64,
    /// How it came about.
    pub history: Vec<ReputationChange>,
}

/// The books: computed anew from all accounts and contracts when asked.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize)]
pub struct Invariants {
    /// Tokens that exist.
    pub supply: Amount,
    /// Sum over all accounts, escrow accounts included.
    pub balances: Amount,
    /// Contracts looked at.
    pub contracts: u64,
    /// What doesn't hold, in words; empty: all holds.
    pub violations: Vec<String>,
}

/// Why the ledger refused.
#[derive(Clone, Debug, PartialEq, Eq, CandidType, Serialize, Deserialize, thiserror::Error)]
pub enum LedgerError {
    /// No such thing.
    #[error("{what} not found")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The caller may not do that.
    #[error("not allowed: {why}")]
    NotAllowed {
        /// Who may.
        why: String,
    },
    /// A field of the arguments is wrong.
    #[error("{field}: {why}")]
    Invalid {
        /// Which.
        field: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Not enough money.
    #[error("insufficient funds: {needed} needed, {balance} there (10⁻⁹ DCT)")]
    InsufficientFunds {
        /// What is there.
        balance: Amount,
        /// What it takes.
        needed: Amount,
    },
    /// The contract is in another state.
    #[error("the contract is {state}; that needs {needs}")]
    WrongState {
        /// In words.
        state: String,
        /// In words.
        needs: String,
    },
    /// The offering doesn't fit the request.
    #[error("the offering doesn't fit the request: {}", reasons.iter().map(|r| format!("{} (wanted {}, offered {})", r.field, r.wanted, r.offered)).collect::<Vec<_>>().join("; "))]
    DoesNotFit {
        /// All reasons.
        reasons: Vec<Mismatch>,
    },
    /// The evidence doesn't prove what the contract asks; the money did not move.
    #[error("evidence refused: {}", reasons.join("; "))]
    EvidenceRefused {
        /// Every failed check.
        reasons: Vec<String>,
        /// The attestation result (EAR) as JSON.
        result: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_survives_candid_and_has_its_kebab_name_in_json() {
        fn both<T>(value: T, name: &str)
        where
            T: CandidType + Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
        {
            assert_eq!(
                candid::decode_one::<T>(&candid::encode_one(&value).unwrap()).unwrap(),
                value
            );
            let json = serde_json::to_string(&value).unwrap();
            assert!(json.contains(name), "{json}");
            assert_eq!(serde_json::from_str::<T>(&json).unwrap(), value);
        }
        both(VmKind::Plain, "plain");
        both(VmKind::SevSnp, "sev-snp");
        both(VmKind::Tdx, "tdx");
        both(Grade::Unconfirmed, "unconfirmed");
        both(Grade::HostSigned, "host-signed");
        both(Grade::HostVerified, "host-verified");
        both(Grade::HardwareVerified, "hardware-verified");
        both(Quota::Unlimited, "unlimited");
        both(Quota::Limited(3), "limited");
        both(AtRest::Any, "any");
        both(AtRest::Encrypted, "encrypted");
        both(Transport::Tcp, "tcp");
        both(Transport::Udp, "udp");
        both(ContractState::Requested, "requested");
        both(ContractState::Accepted, "accepted");
        both(ContractState::Active, "active");
        both(ContractState::Ended(EndReason::Refused), "refused");
        both(ContractState::Ended(EndReason::AcceptTimeout), "accept-timeout");
        both(ContractState::Ended(EndReason::ConfirmTimeout), "confirm-timeout");
        both(ContractState::Ended(EndReason::Cancelled), "cancelled");
        both(ContractState::Ended(EndReason::PeriodOver), "period-over");
        both(ContractState::Ended(EndReason::VmGone), "vm-gone");
        let refused: Result<(), LedgerError> = Err(LedgerError::EvidenceRefused {
            reasons: vec!["r".into()],
            result: "{}".into(),
        });
        both(refused, "EvidenceRefused");
    }
}
