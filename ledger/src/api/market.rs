//! Offerings, requests, and how they match [5.3].

use candid::{CandidType, Principal};
use serde::{Deserialize, Serialize};

use super::{Amount, OfferingId};

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

impl Capacity {
    /// What is left beside a VM of that request; never below zero.
    pub fn without(self, request: &Request) -> Self {
        let storage_gib = match request.storage_gib {
            Quota::Limited(gib) => gib,
            Quota::Unlimited => 0, // sold with the VM, and not counted
        };
        Self {
            vcpus: self.vcpus.saturating_sub(request.vcpus),
            memory_mib: self.memory_mib.saturating_sub(request.memory_mib),
            storage_gib: self.storage_gib.saturating_sub(storage_gib),
            gpus: self.gpus.saturating_sub(request.gpus),
        }
    }
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
