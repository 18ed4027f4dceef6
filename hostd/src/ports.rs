//! What hostd needs from the rest of the machine and from the ledger: one narrow trait for each.
//!
//! The supervisor holds a [`Host`], a bundle of these, and knows nothing of sockets, netlink or files. Each trait has
//! two implementations: the real one in `wiring` (or `vmm`), and the simulated host of the tests, which can die
//! between any two calls. **Every method may be called again after a crash at any point and ends in the same place**;
//! removal of what isn't there is a success.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use candid::Principal;
use ledger::api::{
    Amount, AtRest, Confirmation, Contract, ContractId, Digest32, EvidenceRecord, HeartbeatArgs,
    HostDelegation, HostEvidenceArgs, HostInfo, HostVerified, ImageRef, LedgerError, LedgerInfo, OfferingId,
    OfferingSpec, Rewards, SubmitEvidenceArgs,
};

use crate::vmm::{AgentChannel, Taps, Vmm, VmmProcess};

/// Why a call to the ledger brought nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerCallError {
    /// The ledger answered, and the answer is no.
    #[error("the ledger refused {call}: {answer}")]
    Refused {
        /// Method.
        call: &'static str,
        /// Its answer.
        answer: LedgerError,
    },
    /// No answer that counts: connection, time-out, a certificate that doesn't verify. Trying again may help.
    #[error("no answer from the ledger to {call}: {why}")]
    Unreachable {
        /// Method.
        call: &'static str,
        /// What the transport said.
        why: String,
    },
}

impl LedgerCallError {
    /// The ledger's own word, if it spoke.
    pub fn answer(&self) -> Option<&LedgerError> {
        match self {
            Self::Refused { answer, .. } => Some(answer),
            Self::Unreachable { .. } => None,
        }
    }

    /// Whether the same call may pass later without anything else being changed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// The ledger, as this host speaks to it (with the host's own key).
#[async_trait]
pub trait LedgerPort: Send + Sync {
    /// What must be known of it.
    async fn info(&self) -> Result<LedgerInfo, LedgerCallError>;
    /// Registers this host under its provider's delegation. Again with the same delegation: nothing changes.
    async fn register_host(&self, delegation: &HostDelegation) -> Result<(), LedgerCallError>;
    /// Publishes what this host sells, in place of what it sold before.
    async fn publish_offering(&self, spec: &OfferingSpec) -> Result<OfferingId, LedgerCallError>;
    /// Answers as soon as the ledger's height is above `after`, or at the timeout. A hint to look again, never a fact.
    async fn wait(&self, after: u64, timeout: Duration) -> Result<u64, LedgerCallError>;
    /// Every contract of this host that isn't released yet.
    async fn host_contracts(&self) -> Result<Vec<Contract>, LedgerCallError>;
    /// One contract.
    async fn contract(&self, id: ContractId) -> Result<Contract, LedgerCallError>;
    /// Takes a requested contract.
    async fn accept(&self, id: ContractId) -> Result<(), LedgerCallError>;
    /// Refuses a requested contract; the escrow is refunded.
    async fn refuse(&self, id: ContractId, reason: &str) -> Result<(), LedgerCallError>;
    /// The nonce that the next evidence must be bound to.
    async fn contract_nonce(&self, id: ContractId) -> Result<Digest32, LedgerCallError>;
    /// Hands in evidence; an `Ok` makes the contract active.
    async fn submit_evidence(&self, args: &SubmitEvidenceArgs) -> Result<Confirmation, LedgerCallError>;
    /// The VM is no more: accrual stops, the rest is refunded.
    async fn vm_gone(&self, id: ContractId, reason: &str) -> Result<(), LedgerCallError>;
    /// This host holds nothing of the contract any more.
    async fn released(&self, id: ContractId) -> Result<(), LedgerCallError>;
    /// What an account holds.
    async fn balance(&self, account: Principal) -> Result<Amount, LedgerCallError>;
    /// An account's reputation, base units.
    async fn reputation(&self, account: Principal) -> Result<u64, LedgerCallError>;
    /// `rewards`: the reward block that runs now.
    async fn rewards(&self) -> Result<Rewards, LedgerCallError>;
    /// The evidence of a contract that the ledger verified last, and what it found.
    async fn evidence(&self, id: ContractId) -> Result<EvidenceRecord, LedgerCallError>;
    /// What everybody may see of a host.
    async fn host(&self, host: Principal) -> Result<HostInfo, LedgerCallError>;
    /// The nonce that this host's own evidence must be bound to.
    async fn host_nonce(&self) -> Result<Digest32, LedgerCallError>;
    /// Hands in this host's own evidence.
    async fn submit_host_evidence(&self, args: &HostEvidenceArgs) -> Result<HostVerified, LedgerCallError>;
    /// A sign of life.
    async fn heartbeat(&self, args: &HeartbeatArgs) -> Result<(), LedgerCallError>;
}

/// The machine's network did not take the desired state, or shows something else afterwards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tenant network did not take the desired state: {why}")]
pub struct NetError {
    /// What failed.
    pub why: String,
    /// Whose network may not be as desired.
    pub whose: Whose,
}

/// How far a failure of the tenant network reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Everybody's.
    Everybody,
    /// These tenants'.
    Tenants(BTreeSet<netns::TenantId>),
    /// Everything is as desired but the ingress: nobody is reached by his name.
    Ingress,
}

impl NetError {
    /// Of everybody.
    pub fn of_all(why: impl ToString) -> Self {
        Self {
            why: why.to_string(),
            whose: Whose::Everybody,
        }
    }

    /// Whether a tenant's network may not be as desired.
    pub fn affects(&self, tenant: &netns::TenantId) -> bool {
        match &self.whose {
            Whose::Everybody | Whose::Ingress => true,
            Whose::Tenants(tenants) => tenants.contains(tenant),
        }
    }
}

/// How closely the network is looked at before it is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Only what differs from the state desired before.
    Changes,
    /// Everything, as after a start or for repair.
    All,
}

/// Traffic of one VM since its network was made.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
pub struct NetCounters {
    /// Bytes from the VM.
    pub from_vm_bytes: u64,
    /// Bytes to the VM.
    pub to_vm_bytes: u64,
}

/// Tenant networks, port leases and routes, always handed over whole.
#[async_trait]
pub trait NetPort: Send + Sync {
    /// Makes the machine's tenant networks be exactly `desired`.
    async fn converge(&self, desired: &netns::Desired, look: Look) -> Result<(), NetError>;
    /// Ends every connection through a slot's leases and routes.
    async fn end_sessions(&self, slot: u16) -> Result<(), NetError>;
    /// Traffic of a slot.
    async fn counters(&self, slot: u16) -> Result<NetCounters, NetError>;
    /// What is generated for `desired` (nftables, HAProxy), as named texts for `explain`.
    fn render(&self, desired: &netns::Desired) -> Vec<(String, String)>;
    /// Address of the VM in a slot.
    fn ip4(&self, slot: u16) -> Ipv4Addr;
}

/// Files of a checked image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFiles {
    /// Firmware that measures the rest, for confidential kinds.
    pub firmware: Option<PathBuf>,
    /// bzImage.
    pub kernel: PathBuf,
    /// Initrd.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, the same for every contract.
    pub cmdline: String,
}

/// Room for disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Free bytes of the file system (statvfs, for unprivileged users), less what is kept free.
    pub available_bytes: u64,
    /// Blocks that contracts' disks already hold, bytes.
    pub used_bytes: u64,
}

/// What the NoCloud seed disk of a VM says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedSpec {
    /// The contract's salt.
    pub salt: ledger::api::Digest32,
    /// OpenSSH public keys of the developer.
    pub ssh_public_keys: Vec<String>,
    /// cloud-init user data, verbatim.
    pub user_data: Vec<u8>,
    /// Host name inside the VM.
    pub hostname: String,
    /// Names that lead to the VM.
    pub tls_names: Vec<String>,
    /// Its interface.
    pub nic: crate::vmm::Nic,
    /// Name servers.
    pub nameservers: Vec<Ipv4Addr>,
}

/// Why storage could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// What was asked for can't be had here: no use trying again.
    #[error("{0}")]
    Refused(String),
    /// The operating system or the network failed; `0` says what and why. Trying again may help.
    #[error("{0}")]
    Failed(String),
}

impl StorageError {
    /// Whether the same call may pass later without anything else being changed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// Images, disks and seeds.
#[async_trait]
pub trait StoragePort: Send + Sync {
    /// Has the image here, checked against its digest.
    async fn ensure_image(&self, image: &ImageRef) -> Result<ImageFiles, StorageError>;
    /// Makes the contract's data disk, or finds it; never shrinks and never empties one that is there.
    /// `uid` owns it (0: root).
    async fn create_disk(
        &self,
        id: ContractId,
        gib: u64,
        at_rest: AtRest,
        uid: u32,
    ) -> Result<PathBuf, StorageError>;
    /// Writes the contract's seed disk anew. `uid` owns it.
    async fn write_seed(&self, id: ContractId, seed: &SeedSpec, uid: u32) -> Result<PathBuf, StorageError>;
    /// Destroys disk and seed of the contract.
    async fn wipe(&self, id: ContractId) -> Result<(), StorageError>;
    /// Contracts of which there is a disk or seed.
    async fn disks(&self) -> Result<Vec<ContractId>, StorageError>;
    /// Room.
    async fn space(&self) -> Result<Space, StorageError>;
}

/// DNS, as this host's resolver answers it.
#[async_trait]
pub trait DnsPort: Send + Sync {
    /// The texts of the TXT records at a name (their strings joined), aliases followed.
    async fn texts(&self, name: &str) -> crate::names::Answer;
}

/// Whole devices (GPUs) that are handed to VMs.
#[async_trait]
pub trait DevicePort: Send + Sync {
    /// Makes the device ready for a VM (bound to `vfio-pci`). `address` is a PCI address.
    async fn hand_over(&self, address: &str) -> io::Result<()>;
    /// Gives it back to the host.
    async fn take_back(&self, address: &str) -> io::Result<()>;
}

/// Why the guest agent brought no evidence.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody there yet, or it stopped in the middle: the guest may still be booting.
    #[error("the guest agent does not answer: {0}")]
    Silent(String),
    /// It answered something that isn't the protocol.
    #[error("the guest agent answered garbage: {0}")]
    Garbage(String),
    /// It answered that it can't.
    #[error("the guest agent reports: {0}")]
    Reported(String),
}

/// The agent in the VM.
#[async_trait]
pub trait AgentPort: Send + Sync {
    /// Asks once, within `within`. The answer is CBOR of `attestation::Composite`, parsed once but not believed.
    async fn evidence(
        &self,
        channel: &AgentChannel,
        ask: &EvidenceAsk,
        within: Duration,
    ) -> Result<Vec<u8>, AgentError>;
}

/// What evidence must be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvidenceAsk {
    /// Canister id bytes of the ledger.
    pub ledger: Vec<u8>,
    /// The contract.
    pub contract: ContractId,
    /// The ledger's nonce.
    pub nonce: Digest32,
}

/// This machine's TPM.
#[async_trait]
pub trait QuotePort: Send + Sync {
    /// Quotes PCR 0 to 15 with `data` as qualifying data, and adds the event logs. The error is a sentence.
    async fn quote(&self, data: [u8; 32]) -> Result<attestation::tpm::TpmEvidence, String>;
}

/// VMM processes, as facts of the machine.
#[async_trait]
pub trait ProcessPort: Send + Sync {
    /// Whether exactly this process (boot, pid, start time) lives.
    fn is_alive(&self, process: &VmmProcess) -> bool;
    /// Returns when it has ended; at once if it doesn't live.
    async fn exited(&self, process: &VmmProcess);
}

/// Everything outside of hostd that a contract touches.
#[derive(Clone)]
pub struct Host {
    /// Money and facts.
    pub ledger: Arc<dyn LedgerPort>,
    /// Networks.
    pub net: Arc<dyn NetPort>,
    /// Taps for VMMs.
    pub taps: Arc<dyn Taps>,
    /// Images and disks.
    pub storage: Arc<dyn StoragePort>,
    /// GPUs.
    pub devices: Arc<dyn DevicePort>,
    /// Adapters, the preferred one first.
    pub vmms: Vec<Arc<dyn Vmm>>,
    /// Guest agents.
    pub agent: Arc<dyn AgentPort>,
    /// Processes.
    pub processes: Arc<dyn ProcessPort>,
}
