//! What the API says: the types of its JSON, used by the server and by the command line alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::events::LogEvent;
use crate::host_evidence::HostTrust;
use crate::inventory::Probe;
use crate::journal::{Maintenance, Quarantined, Removal, Step, StepLine};
use crate::names::OwnName;
use crate::ports::NetCounters;
use crate::update::{UpdateStatus, Version};

/// The host at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The host's name from its config.
    pub name: String,
    /// hostd's version.
    pub version: String,
    /// Since when this hostd runs, ms since the Unix epoch.
    pub started_ms: i64,
    /// Whether new contracts can be served.
    pub ready: bool,
    /// Why not; empty when ready.
    pub not_ready: Vec<String>,
    /// Whether the host takes no new contracts, drained or in maintenance.
    pub draining: bool,
    /// Why it is in maintenance; `None`: it isn't.
    #[serde(default)]
    pub maintenance: Option<Maintenance>,
    /// The appliance's image and its update; `None`: this isn't the appliance.
    #[serde(default)]
    pub update: Option<UpdateStatus>,
    /// The ledger.
    pub ledger: LedgerStatus,
    /// What the host may promise, what is promised, what is left.
    pub capacity: CapacityStatus,
    /// Contracts here, by what they are at.
    pub contracts: ContractCounts,
    /// VMM adapters, the preferred one first.
    pub vmms: Vec<VmmStatus>,
    /// Objects with our names that the journal doesn't know: never touched.
    pub quarantine: Vec<Quarantined>,
    /// Whether confidential kinds are simulated here.
    pub test_platform: bool,
    /// What the ledger makes of this host's own evidence; `None`: no TPM is configured.
    #[serde(default)]
    pub host_trust: Option<HostTrust>,
}

/// The ledger, as seen from here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LedgerStatus {
    /// Where.
    pub url: String,
    /// Its canister id.
    pub canister_id: String,
    /// This host's principal.
    pub host: String,
    /// Height it showed last.
    pub height: u64,
    /// Milliseconds since its last answer; `None`: never.
    pub heard_ms_ago: Option<u64>,
    /// Why it doesn't answer now.
    pub trouble: Option<String>,
    /// This host's offering, once published.
    pub offering: Option<u64>,
    /// Why host or offering aren't registered yet.
    pub registration_trouble: Option<String>,
}

/// One kind of capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Share {
    /// In all.
    pub total: u64,
    /// Promised to contracts.
    pub used: u64,
}

/// Capacity, added up from the journal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CapacityStatus {
    /// vCPUs.
    pub vcpus: Share,
    /// MiB of memory.
    pub memory_mib: Share,
    /// GiB of storage.
    pub storage_gib: Share,
    /// GPUs.
    pub gpus: Share,
    /// Leased ports.
    pub ports: Share,
}

/// How many contracts are at what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContractCounts {
    /// Being set up.
    pub provisioning: u64,
    /// All steps done.
    pub running: u64,
    /// Being removed.
    pub removing: u64,
    /// Something is wrong with them that hostd may not decide (also counted above).
    pub degraded: u64,
    /// Have a name of their own that isn't routed (also counted above).
    pub names_not_routed: u64,
}

/// An adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmmStatus {
    /// Its name.
    pub name: String,
    /// What it found.
    pub version: String,
    /// Each kind: empty, or the reason against it.
    pub kinds: BTreeMap<String, String>,
}

/// One contract in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ContractLine {
    /// Its id.
    pub id: String,
    /// `provisioning`, `running`, `removing`, `finished`.
    pub phase: String,
    /// What the ledger says.
    pub ledger: String,
    /// What hostd is doing.
    pub activity: String,
    /// VM kind.
    pub kind: String,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// The VM's slot.
    pub slot: Option<u16>,
    /// How well the ledger has it confirmed: `unconfirmed`, `host-signed`, `host-verified`, `hardware-verified`; `None`: the
    /// ledger doesn't show it now.
    #[serde(default)]
    pub grade: Option<String>,
    /// Its leased ports, as `tcp 20001→22`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Its GPUs' PCI addresses.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// Names that lead to it.
    pub names: Vec<String>,
    /// The name that the tenant brought, and what it is at.
    pub own_name: Option<OwnName>,
    /// Why it is degraded.
    pub degraded: Option<String>,
    /// The last failure that is being tried again.
    pub last_error: Option<String>,
    /// When it was first seen, ms since the Unix epoch.
    pub opened_ms: i64,
}

/// Everything about one contract: what is generated for it, and what happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// In short.
    pub line: ContractLine,
    /// The tenant.
    pub developer: String,
    /// The request as paid. User data and keys are only counted.
    #[schema(value_type = Object)]
    pub request: serde_json::Value,
    /// What it holds of the host.
    #[schema(value_type = Object)]
    pub allocation: Option<crate::allocator::Allocation>,
    /// Steps with times and attempts.
    pub steps: BTreeMap<Step, StepLine>,
    /// Why it is removed.
    pub removal: Option<Removal>,
    /// Which process its VM is.
    #[schema(value_type = Object)]
    pub process: Option<crate::vmm::VmmProcess>,
    /// Whether exactly this process lives.
    pub alive: Option<bool>,
    /// How the developer reaches it.
    #[schema(value_type = Object)]
    pub endpoint: Option<ledger::api::Endpoint>,
    /// Generated configuration: the VMM's, nftables', HAProxy's.
    pub configs: Vec<Text>,
    /// The evidence handed in: its size and SHA-256.
    pub evidence: Option<EvidenceFacts>,
}

/// A named text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Text {
    /// What it is.
    pub name: String,
    /// It.
    pub text: String,
}

/// What there is of evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EvidenceFacts {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: String,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// In short.
    pub line: ContractLine,
    /// Adapter that runs it.
    pub adapter: Option<String>,
    /// Process id.
    pub pid: Option<i32>,
    /// Whether exactly that process lives.
    pub alive: bool,
    /// The VMM's counters.
    #[schema(value_type = Object)]
    pub counters: Option<crate::vmm::VmCounters>,
    /// Its traffic.
    pub traffic: Option<NetCounters>,
    /// Why counters are missing.
    pub trouble: Vec<String>,
}

/// `POST /v1/contracts/{id}/end`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndRequest {
    /// Why, for the developer: 1–400 characters.
    pub reason: String,
}

/// What this host earns. Amounts are in the token's smallest unit (1 DCT = 10⁹).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Money {
    /// The provider's principal: who is paid.
    pub provider: String,
    /// Held in escrow for contracts here.
    #[schema(value_type = Object)]
    pub escrow: Probe<u64>,
    /// Earned by contracts here and not paid out yet (fees not taken off).
    #[schema(value_type = Object)]
    pub accrued: Probe<u64>,
    /// Paid out to the provider by the contracts that are still here.
    #[schema(value_type = Object)]
    pub paid_out: Probe<u64>,
    /// What the active contracts earn in an hour.
    #[schema(value_type = Object)]
    pub per_hour: Probe<u64>,
    /// The provider's balance.
    #[schema(value_type = Object)]
    pub balance: Probe<u64>,
    /// The provider's reputation, base units.
    #[schema(value_type = Object)]
    pub reputation: Probe<u64>,
    /// The next block reward.
    #[schema(value_type = Object)]
    pub next_reward: Probe<u64>,
    /// Each contract that the ledger shows.
    pub contracts: BTreeMap<String, ContractMoney>,
}

/// The money of one contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContractMoney {
    /// Price.
    pub price_per_hour: u64,
    /// In escrow.
    pub held: u64,
    /// Paid out to the provider.
    pub paid_out: u64,
    /// Earned and not paid out yet; `None`: the ledger's clock isn't known.
    pub accrued: Option<u64>,
    /// Given back to the developer.
    pub refunded: u64,
    /// Since when it earns, ms since the Unix epoch by the ledger's clock.
    pub active_since_ms: Option<i64>,
    /// When its state ends by itself, ms since the Unix epoch by the ledger's clock.
    pub deadline_ms: Option<i64>,
}

/// What the ledger found in a contract's evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EvidenceView {
    /// What is on the ledger; `None` with `why`.
    pub verdict: Option<EvidenceVerdict>,
    /// Why there is no verdict to show.
    pub why: Option<String>,
    /// Why the ledger refused evidence of this contract last.
    pub refusals: Vec<String>,
}

/// What the ledger verified.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EvidenceVerdict {
    /// The grade it gave.
    pub grade: String,
    /// Whose roots it trusted; a test root says so.
    pub trust: String,
    /// When, ms since the Unix epoch by the ledger's clock.
    pub at_ms: i64,
    /// The attestation result: every claim that was checked.
    #[schema(value_type = Object)]
    pub result: serde_json::Value,
}

/// The log's last events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    /// Which start of hostd they are of, ms since the Unix epoch: numbers begin anew with each.
    pub started_ms: i64,
    /// Oldest first.
    pub events: Vec<LogEvent>,
}

/// `POST /v1/maintenance`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceRequest {
    /// Why, for the log and for whoever looks: 1–400 characters; `None` ends the maintenance.
    pub reason: Option<String>,
}

/// `POST /v1/update/stage`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StageRequest {
    /// Which version; `None`: the newest.
    #[schema(value_type = Option<String>)]
    pub version: Option<Version>,
    /// Whether it may be older than one that was good here.
    pub allow_older: bool,
}

/// `POST /v1/update/apply`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApplyRequest {
    /// Whether VMs of contracts may be shut down for it.
    pub force_with_vms: bool,
}

/// `POST /v1/update/rollback`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Why, for the log and for whoever looks: 1–400 characters.
    pub reason: String,
    /// Whether VMs of contracts may be shut down for it.
    #[serde(default)]
    pub force_with_vms: bool,
}

/// The version that an order about updates is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Staging {
    /// Which.
    #[schema(value_type = String)]
    pub version: Version,
}

/// `POST /v1/drain`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Take no new contracts; or take them again.
    pub draining: bool,
}

/// Why a request was not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What is wrong, and what would help.
    pub error: String,
}
