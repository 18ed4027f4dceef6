//! Virtual machine monitors: one small trait, two adapters (`cloud_hypervisor`, `libvirt`).
//!
//! An adapter turns a [`VmSpec`] into a running VMM process that outlives hostd, finds it again after a restart, and
//! ends it. It decides nothing: what a VM looks like is the spec's, when it starts or ends is the supervisor's.
//! Every method may be called again after a crash at any point and ends in the same place.

pub mod check;
pub mod cloud_hypervisor;
pub mod libvirt;
pub mod machine;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ledger::api::{ContractId, VmKind};
use serde::{Deserialize, Serialize};

/// Everything an adapter needs to start one VM; pure data, kept in the journal, shown by `hostd explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The contract this VM is for; host objects are named after it.
    pub id: ContractId,
    /// What isolates it.
    pub kind: VmKind,
    /// vCPUs at boot.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Back the memory with hugepages.
    pub hugepages: Hugepages,
    /// What is booted.
    pub boot: Boot,
    /// In order: they become `vda`, `vdb`, …
    pub disks: Vec<Disk>,
    /// Its one network interface.
    pub nic: Nic,
    /// SNP `HOST_DATA`: the contract id (confidential kinds only).
    pub host_data: Option<[u8; 32]>,
    /// Devices handed through by VFIO, as PCI addresses (`0000:01:00.0`).
    pub vfio: Vec<String>,
    /// A folder of the VM's own (0700, owned by `uid`): sockets, console log.
    pub run_dir: PathBuf,
    /// The uid and gid that the VMM runs as, where the adapter can choose (0: stay root).
    pub uid: u32,
}

/// Memory backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hugepages {
    /// Ordinary pages.
    No,
    /// 2 MiB pages, reserved up front.
    Size2M,
}

/// Direct kernel boot; for confidential kinds with the firmware that measures it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// OVMF (QEMU) or an IGVM file (Cloud Hypervisor) for confidential kinds.
    pub firmware: Option<PathBuf>,
    /// bzImage.
    pub kernel: PathBuf,
    /// Initrd.
    pub initrd: Option<PathBuf>,
    /// Kernel command line. The same for all contracts of an image, since it is measured.
    pub cmdline: String,
}

/// A raw disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// File or block device.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub access: Access,
    /// Serial number, at most 20 bytes; the guest finds its disks by it (`data`, `cidata`).
    pub serial: String,
}

/// What the guest may do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read only.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// The VM's end of its tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The VM's number on this host (netns derives every name and address from it).
    pub slot: u16,
    /// MAC address, `02:…`.
    pub mac: String,
    /// Address of the VM.
    pub ip4: Ipv4Addr,
}

/// Which process a VM is. Written to the journal; enough to tell it from any other process ever (pid reuse, reboot).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmProcess {
    /// The adapter that started it.
    pub adapter: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Process id.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, clock ticks since boot.
    pub start_time: u64,
    /// API socket (Cloud Hypervisor) or domain name (libvirt).
    pub control: String,
}

/// What the machine shows of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Nothing: no process, no definition.
    Absent,
    /// Some of it (defined but not running, half started, not answering): undo before another try.
    Partial(String),
    /// It runs.
    Running(VmmProcess),
}

/// Whether an adapter can host a kind here, and if not, why (shown by `hostd doctor` and in the inventory).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmSupport {
    /// E.g. `cloud-hypervisor v53.0` or `QEMU 7.2.22, libvirt 9.0.0, TCG`.
    pub version: String,
    /// Each kind: `Ok` or the reason against it.
    pub kinds: Vec<(VmKind, Result<(), String>)>,
}

/// What each adapter can host here.
pub async fn support(vmms: &[Arc<dyn Vmm>]) -> Vec<VmmSupport> {
    let mut found = Vec::with_capacity(vmms.len());
    for vmm in vmms {
        found.push(vmm.support().await);
    }
    found
}

/// Counters of one VM since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmCounters {
    /// CPU time of the VMM with its guest, µs.
    pub cpu_us: u64,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// Read from disks, bytes.
    pub disk_read_bytes: u64,
    /// Written to disks, bytes.
    pub disk_written_bytes: u64,
}

/// How to reach the guest agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentChannel {
    /// A unix socket that is the guest's virtio-serial port `org.decentcloud.agent.0` (QEMU): connect and speak.
    Serial(PathBuf),
    /// Cloud Hypervisor's vsock socket: connect, send `CONNECT <port>\n`, read `OK …\n`, then speak.
    Vsock {
        /// The unix socket.
        socket: PathBuf,
        /// The agent's port.
        port: u32,
    },
}

/// The vsock port that the guest agent listens on.
pub const AGENT_VSOCK_PORT: u32 = 4040;

/// Name of the agent's virtio-serial port.
pub const AGENT_SERIAL_PORT: &str = "org.decentcloud.agent.0";

/// What went wrong. The caller undoes the step; `is_transient` says whether trying again can help.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The adapter can't do what the spec asks, here or at all.
    #[error("{adapter} can't host this VM: {why}")]
    Unsupported {
        /// Which adapter.
        adapter: &'static str,
        /// What is missing, and what would help.
        why: String,
    },
    /// The spec holds something that no VMM could be given, or given safely.
    #[error("the VM's {field} can't be used: {why}")]
    Spec {
        /// Which part.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The service that runs VMs can't be reached; the VMs themselves may well be alive.
    #[error("cannot reach {service}: {why}")]
    Unreachable {
        /// Which, and where.
        service: String,
        /// What connecting said.
        why: String,
    },
    /// The VMM didn't keep a security-relevant field: the VM must not start.
    #[error("{field} was asked as {wanted}, but the VMM shows {found}; refusing to start the VM")]
    ReadBack {
        /// JSON path in the VMM's configuration.
        field: String,
        /// Asked.
        wanted: String,
        /// Read back.
        found: String,
    },
    /// The VMM answered with an error.
    #[error("{call} failed: {answer}")]
    Refused {
        /// API call.
        call: &'static str,
        /// What it said.
        answer: String,
    },
    /// No answer inside the deadline. The VM may well be alive (Cloud Hypervisor's API waits behind long calls).
    #[error("{call} gave no answer in {after:?}")]
    Timeout {
        /// API call.
        call: &'static str,
        /// Deadline.
        after: Duration,
    },
    /// The VMM process ended.
    #[error("the VMM ended{}", .log.as_deref().map(|l| format!("; its last words: {l}")).unwrap_or_default())]
    Died {
        /// Tail of its log.
        log: Option<String>,
    },
    /// The operating system refused.
    #[error("cannot {what}")]
    Os {
        /// What we tried.
        what: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl VmmError {
    /// Whether the same call may pass later without anything else being changed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Unreachable { .. })
    }
}

/// Hands taps to VMMs. Implemented by `netns::Network`; an adapter uses one of the two ways.
#[async_trait]
pub trait Taps: Send + Sync {
    /// Opens the tap of `slot` inside its tenant's namespace (multi-queue off, `IFF_VNET_HDR` on) and gives the fd away.
    async fn open(&self, slot: u16) -> std::io::Result<std::os::fd::OwnedFd>;
    /// Moves the tap into hostd's own namespace, for a VMM that opens it by name; returns the name.
    async fn lend(&self, slot: u16) -> std::io::Result<String>;
    /// Moves it back and puts its addresses and guards in place again. Nothing to do if it is where it belongs.
    async fn take_back(&self, slot: u16) -> std::io::Result<()>;
}

/// One way to run VMs.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// `cloud-hypervisor` or `libvirt`.
    fn name(&self) -> &'static str;
    /// What this machine can host with it. Never trusts `/dev/kvm` alone (FACTS 1).
    async fn support(&self) -> VmmSupport;
    /// The configuration that `launch` would hand over, as text (JSON or XML). Pure; no secrets in it.
    fn render(&self, spec: &VmSpec) -> String;
    /// Starts the VM: process, configuration, read-back and compare, boot. On an error nothing of it is left.
    async fn launch(&self, spec: &VmSpec, taps: &dyn Taps) -> Result<VmmProcess, VmmError>;
    /// What the machine shows of it. `known` is what the journal has, if anything.
    async fn observe(&self, spec: &VmSpec, known: Option<&VmmProcess>) -> Observed;
    /// Where the guest agent answers.
    fn agent(&self, spec: &VmSpec) -> AgentChannel;
    /// File that receives the serial console (bounded in size).
    fn console_log(&self, spec: &VmSpec) -> PathBuf;
    /// Presses the power button and waits until the VM is off or `within` has passed; then ends it the hard way.
    /// Afterwards nothing of the VMM is left: process, definition, cgroup, sockets.
    async fn stop(&self, spec: &VmSpec, known: Option<&VmmProcess>, within: Duration)
    -> Result<(), VmmError>;
    /// Counters.
    async fn counters(&self, spec: &VmSpec, process: &VmmProcess) -> Result<VmCounters, VmmError>;
    /// Changes vCPUs or memory of a running VM where the VMM can.
    async fn resize(
        &self,
        spec: &VmSpec,
        vcpus: Option<u32>,
        memory_mib: Option<u64>,
    ) -> Result<(), VmmError>;
}

#[cfg(test)]
pub(crate) mod test_spec {
    use super::*;

    /// An ordinary VM.
    pub(crate) fn spec() -> VmSpec {
        let mut id = [0xab; 32];
        id[..8].copy_from_slice(&[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
        let disk = |path: &str, access, serial: &str| Disk {
            path: path.into(),
            access,
            serial: serial.to_owned(),
        };
        VmSpec {
            id: ContractId::from_slice(&id).unwrap(),
            kind: VmKind::Plain,
            vcpus: 2,
            memory_mib: 1024,
            hugepages: Hugepages::No,
            boot: Boot {
                firmware: None,
                kernel: "/var/lib/hostd/images/1f/vmlinuz".into(),
                initrd: Some("/var/lib/hostd/images/1f/initrd".into()),
                cmdline: "console=ttyS0 console=hvc0 panic=-1".to_owned(),
            },
            disks: vec![
                disk("/var/lib/hostd/disks/0123.raw", Access::ReadWrite, "data"),
                disk("/var/lib/hostd/seeds/0123.img", Access::ReadOnly, "cidata"),
            ],
            nic: Nic {
                slot: 3,
                mac: "02:dc:00:00:00:03".to_owned(),
                ip4: Ipv4Addr::new(100, 64, 0, 3),
            },
            host_data: None,
            vfio: Vec::new(),
            run_dir: "/run/hostd/vm/0123456789abcdef".into(),
            uid: 0,
        }
    }

    /// The same as a confidential VM.
    pub(crate) fn confidential(kind: VmKind) -> VmSpec {
        let spec = spec();
        VmSpec {
            kind,
            host_data: Some(spec.id.0),
            boot: Boot {
                firmware: Some("/var/lib/hostd/images/1f/OVMF.fd".into()),
                ..spec.boot.clone()
            },
            ..spec
        }
    }
}
