//! `hostd.toml`: read once, at the start, into typed and bounded values.
//!
//! Unknown keys are refused. Every error names file, line and key; all faults are listed, not just the first
//! (`hostd config check`). The commented example is `hostd/hostd.example.toml`; a test keeps it valid.

mod check;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attestation::fetch::{Sources, SourcesError};
use ledger::api::{Amount, VmKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(crate) use self::check::{line_of, toml_fault};
use crate::names::Pace;
use crate::storage::StorageConfig;

/// One thing that is wrong in a config file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Line, from 1; 0 when it is no single line's fault.
    pub line: usize,
    /// `section.key`.
    pub key: String,
    /// What is wrong, and what would be right.
    pub why: String,
}

/// The config can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {path}")]
    Read {
        /// Path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It isn't a valid config: every fault.
    #[error("{}", .faults.iter().map(|f| render(.path, f)).collect::<Vec<_>>().join("\n"))]
    Invalid {
        /// Path.
        path: PathBuf,
        /// At least one.
        faults: Vec<Fault>,
    },
}

/// A fault with its place, for people.
pub(crate) fn render(path: &Path, fault: &Fault) -> String {
    let Fault { line, key, why } = fault;
    match (line, key.as_str()) {
        (0, "") => format!("{}: {why}", path.display()),
        (0, key) => format!("{}: {key}: {why}", path.display()),
        (line, "") => format!("{}:{line}: {why}", path.display()),
        (line, key) => format!("{}:{line}: {key}: {why}", path.display()),
    }
}

/// The whole file. Holding one proves that every value is inside its bounds, not that the machine fits it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This machine.
    pub host: HostConfig,
    /// Which ledger, and as whom.
    pub ledger: LedgerConfig,
    /// Tenant networks: netns' own settings.
    pub network: netns::Config,
    /// Names that tenants bring.
    #[serde(default)]
    pub names: NamesConfig,
    /// Where the makers' certificates and lists come from.
    #[serde(default)]
    pub endorsements: EndorsementsConfig,
    /// Quotes of this host's TPM.
    #[serde(default)]
    pub host_evidence: HostEvidenceConfig,
    /// Images and disks: the store's own settings.
    pub storage: StorageConfig,
    /// Virtual machine monitors.
    #[serde(default)]
    pub vmm: VmmConfig,
    /// What is sold.
    pub offering: OfferingConfig,
    /// How long steps may take.
    #[serde(default)]
    pub deadlines: DeadlineConfig,
    /// Updates of the appliance.
    #[serde(default)]
    pub update: UpdateConfig,
}

/// When the machine reboots into a staged update by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ApplyPolicy {
    /// Never: an operator stages and applies.
    #[default]
    Never,
    /// Updates are staged as they come, and applied as soon as no contract is here.
    Drained,
    /// The same, but with contracts too, `notice_s` after the ledger was told: they end with it.
    Now,
}

/// `[update]`: where the appliance's updates come from, and when they are applied.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateConfig {
    /// `https://…` of a folder that `image-builder update-repo` made, or its absolute path on this machine. A stick whose
    /// FAT file system is labelled DC_UPDATE is `/run/update`.
    pub source: Option<String>,
    /// When the machine reboots by itself.
    pub apply: ApplyPolicy,
    /// Seconds between the ledger's hearing of it and a reboot with contracts (`apply = "now"`).
    pub notice_s: u64,
    /// Seconds between two looks for a new version, unless `apply` is `never`.
    pub check_s: u64,
    /// Whether a new image is good without having heard the ledger: for hosts that are meant to be without one.
    pub offline: bool,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            source: None,
            apply: ApplyPolicy::Never,
            notice_s: 86_400,
            check_s: 21_600,
            offline: false,
        }
    }
}

/// `[host]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// For people: shown in status and logs.
    pub name: String,
    /// Journal and what else must survive a reboot.
    pub state_dir: PathBuf,
    /// Sockets and what must not survive one.
    pub run_dir: PathBuf,
    /// Socket of the API; default `<run_dir>/hostd.sock`.
    pub socket: Option<PathBuf>,
    /// Group that may use the socket; default: root's.
    pub socket_group: Option<String>,
    /// Confidential kinds are simulated here; published with the offering. Never on real hosts.
    #[serde(default)]
    pub test_platform: bool,
    /// Seconds between heartbeats.
    #[serde(default = "default_heartbeat_s")]
    pub heartbeat_s: u64,
}

fn default_heartbeat_s() -> u64 {
    30
}

impl HostConfig {
    /// Where the API listens.
    pub fn socket(&self) -> PathBuf {
        self.socket
            .clone()
            .unwrap_or_else(|| self.run_dir.join("hostd.sock"))
    }
}

/// `[ledger]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerConfig {
    /// `https://…` or, for a ledger on this machine or in a test, `http://…`.
    pub url: String,
    /// Canister id, text form.
    pub canister_id: String,
    /// The pinned root key: DER, hexadecimal.
    pub root_key: Option<String>,
    /// The pinned root key in a file: DER as it is, or hexadecimal.
    pub root_key_file: Option<PathBuf>,
    /// The host's own key: a PEM file, or the file of a key in the TPM ([`crate::hostkey`]).
    pub host_key: PathBuf,
    /// The TPM of such a key, as tpm2-tss names it.
    #[serde(default = "default_tpm")]
    pub tpm: String,
    /// The provider's delegation to this host, as `decent` writes it.
    pub delegation: PathBuf,
}

/// The kernel's resource manager of the first TPM.
pub(crate) fn default_tpm() -> String {
    "device:/dev/tpmrm0".into()
}

/// `[names]`: how names that tenants bring are proved, by TXT records.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NamesConfig {
    /// Resolvers to ask, port 53 by UDP and TCP; empty: those of /etc/resolv.conf. Whoever can forge their answers can have
    /// names routed: use one that validates DNSSEC, on this machine or behind a network that you trust.
    pub nameservers: Vec<IpAddr>,
    /// Longest pause between two looks for a record that isn't there, seconds.
    pub retry_max_s: u64,
    /// Between two looks at a record that is, seconds.
    pub recheck_s: u64,
}

impl Default for NamesConfig {
    fn default() -> Self {
        Self {
            nameservers: Vec::new(),
            retry_max_s: 300,
            recheck_s: 3600,
        }
    }
}

impl NamesConfig {
    /// As the prover takes it.
    pub fn pace(&self) -> Pace {
        let retry_max = Duration::from_secs(self.retry_max_s);
        let pace = Pace::default();
        Pace {
            retry_min: pace.retry_min.min(retry_max),
            retry_max,
            recheck: Duration::from_secs(self.recheck_s),
        }
    }
}

/// `[endorsements]`: the makers' certificates, revocation lists and collateral that guests' evidence needs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndorsementsConfig {
    /// Whether they are fetched; else only what lies in `<state_dir>/endorsements` is used.
    pub fetch: bool,
    /// AMD's key distribution service, or a mirror.
    pub kds: Option<String>,
    /// Intel's provisioning certification service, or a PCCS.
    pub pcs: Option<String>,
    /// NVIDIA's service of reference manifests.
    pub rim: Option<String>,
    /// NVIDIA's OCSP responder.
    pub ocsp: Option<String>,
    /// This machine's TDX platform, so that its TCB info is there before the first guest.
    pub fmspc: Option<Fmspc>,
    /// The root (DER) of the simulated platform. Only with `host.test_platform`; without it such a host keeps nothing.
    pub test_root: Option<PathBuf>,
}

impl Default for EndorsementsConfig {
    fn default() -> Self {
        let [kds, pcs, rim, ocsp] = [const { None }; 4];
        Self {
            fetch: true,
            kds,
            pcs,
            rim,
            ocsp,
            fmspc: None,
            test_root: None,
        }
    }
}

/// Family, model, stepping, platform and custom SKU of an Intel platform, as its PCK certificate names it: 6 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Fmspc([u8; 6]);

impl std::fmt::Display for Fmspc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::str::FromStr for Fmspc {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(format!("`{text}` is no FMSPC: 12 hexadecimal digits")),
        }
    }
}

impl TryFrom<String> for Fmspc {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl EndorsementsConfig {
    /// The makers' own addresses, but those that are given.
    pub fn sources(&self) -> Result<Sources, SourcesError> {
        let [kds, pcs, rim, ocsp] = [&self.kds, &self.pcs, &self.rim, &self.ocsp].map(Option::as_deref);
        Sources::new(kds, pcs, rim, ocsp)
    }
}

/// `[host_evidence]`: what this host shows of itself, for the grade `host-verified`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostEvidenceConfig {
    /// The TPM, as tpm2-tss names it (`device:/dev/tpmrm0`); without one the host's word is all there is.
    pub tpm: Option<String>,
    /// Signed reference values of the images that this host may run: files, or folders of `*.json`.
    pub references: Vec<PathBuf>,
    /// The firmware's event log.
    pub firmware_log: PathBuf,
    /// systemd's event log.
    pub userspace_log: PathBuf,
}

impl Default for HostEvidenceConfig {
    fn default() -> Self {
        Self {
            tpm: None,
            references: Vec::new(),
            firmware_log: "/sys/kernel/security/tpm0/binary_bios_measurements".into(),
            userspace_log: "/run/log/systemd/tpm2-measure.log".into(),
        }
    }
}

/// `[vmm]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// Adapters, the preferred one first: a contract goes to the first that can host its kind.
    #[serde(default = "default_prefer")]
    pub prefer: Vec<Adapter>,
    /// Cloud Hypervisor.
    #[serde(default)]
    pub cloud_hypervisor: CloudHypervisorConfig,
    /// QEMU through libvirt.
    #[serde(default)]
    pub libvirt: LibvirtConfig,
    /// VMMs run as uid and gid `uid_base + slot`; 0: as root, where the adapter has no other way.
    #[serde(default)]
    pub uid_base: u32,
    /// Back guests with the pool of 2 MiB pages.
    #[serde(default)]
    pub hugepages: bool,
    /// MiB of 2 MiB pages that `hostd hugepages` reserves at boot, before hostd starts; 0: what the kernel's command line
    /// reserved.
    #[serde(default)]
    pub reserve_hugepages_mib: u32,
    /// Launches at the same time; more wait. Default: the number of CPUs, at least 2.
    pub parallel_launches: Option<usize>,
}

impl Default for VmmConfig {
    fn default() -> Self {
        Self {
            prefer: default_prefer(),
            cloud_hypervisor: CloudHypervisorConfig::default(),
            libvirt: LibvirtConfig::default(),
            uid_base: 0,
            hugepages: false,
            reserve_hugepages_mib: 0,
            parallel_launches: None,
        }
    }
}

fn default_prefer() -> Vec<Adapter> {
    vec![Adapter::CloudHypervisor, Adapter::Libvirt]
}

/// A VMM adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adapter {
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// QEMU through libvirt.
    Libvirt,
}

/// `[vmm.cloud_hypervisor]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloudHypervisorConfig {
    /// The program; default: `cloud-hypervisor` on PATH.
    pub binary: Option<PathBuf>,
    /// Believe that guests can run, whatever the CPU says: for the fake server of the tests. Needs `host.test_platform`.
    #[serde(default)]
    pub assume_kvm: bool,
}

/// `[vmm.libvirt]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibvirtConfig {
    /// Connection URI.
    #[serde(default = "default_libvirt_uri")]
    pub uri: String,
    /// A QEMU of your own, in place of libvirt's choice.
    pub emulator: Option<PathBuf>,
}

impl Default for LibvirtConfig {
    fn default() -> Self {
        Self {
            uri: default_libvirt_uri(),
            emulator: None,
        }
    }
}

fn default_libvirt_uri() -> String {
    "qemu:///system".into()
}

/// `[offering]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferingConfig {
    /// A few words for people.
    pub title: String,
    /// Where the machine stands.
    pub region: String,
    /// Kinds to sell; default: all that the machine can host.
    pub kinds: Option<Vec<Kind>>,
    /// Prices.
    pub prices: Prices,
    /// Longest period of a contract.
    #[serde(default = "default_max_period_s")]
    pub max_period_s: u64,
    /// Most storage of one VM; without it: as much as there is.
    pub storage_per_vm_gib: Option<u64>,
    /// GiB for a contract that asks for unlimited storage.
    #[serde(default = "default_disk_gib")]
    pub default_disk_gib: u64,
    /// Bandwidth of one VM; without it: not limited.
    pub bandwidth_mbps: Option<u64>,
    /// The least reputation of a developer.
    #[serde(default)]
    pub min_developer_reputation: u64,
    /// What to sell in place of what the inventory finds.
    #[serde(default)]
    pub capacity: CapacityOverride,
}

fn default_disk_gib() -> u64 {
    20
}

fn default_max_period_s() -> u64 {
    365 * 24 * 3600
}

/// `[offering.capacity]`: each in place of the inventory's figure.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapacityOverride {
    /// vCPUs.
    pub vcpus: Option<u32>,
    /// MiB of memory.
    pub memory_mib: Option<u64>,
    /// GiB of storage.
    pub storage_gib: Option<u64>,
    /// GPUs (never more than there are).
    pub gpus: Option<u32>,
}

/// `[offering.prices]`: 10⁻⁹ DCT an hour.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// For any VM.
    pub vm_hour: Amount,
    /// For each vCPU.
    pub vcpu_hour: Amount,
    /// For each GiB of memory.
    pub memory_gib_hour: Amount,
    /// For each GiB of storage.
    pub storage_gib_hour: Amount,
    /// For each GPU.
    #[serde(default)]
    pub gpu_hour: Amount,
}

/// A VM kind, as the config spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Plain.
    Plain,
    /// AMD SEV-SNP.
    SevSnp,
    /// Intel TDX.
    Tdx,
}

impl From<Kind> for VmKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Plain => Self::Plain,
            Kind::SevSnp => Self::SevSnp,
            Kind::Tdx => Self::Tdx,
        }
    }
}

/// `[deadlines]`: seconds. What depends on the VM's memory grows with it: encrypting, pinning and clearing memory takes
/// time in proportion, and one figure for all VMs kills the large ones.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadlineConfig {
    /// Until the VMM says that the VM runs.
    pub launch_s: u64,
    /// More for each GiB of memory.
    pub launch_per_gib_s: u64,
    /// From there until the guest agent has brought evidence.
    pub boot_s: u64,
    /// More for each GiB of memory.
    pub boot_per_gib_s: u64,
    /// Image, disk and seed.
    pub disk_s: u64,
    /// From the power button to the plug.
    pub graceful_stop_s: u64,
}

impl Default for DeadlineConfig {
    fn default() -> Self {
        Self {
            launch_s: 60,
            launch_per_gib_s: 2,
            boot_s: 240,
            boot_per_gib_s: 4,
            disk_s: 900,
            graceful_stop_s: 30,
        }
    }
}

impl DeadlineConfig {
    fn grown(base_s: u64, per_gib_s: u64, memory_mib: u64) -> Duration {
        Duration::from_secs(base_s.saturating_add(per_gib_s.saturating_mul(memory_mib.div_ceil(1024))))
    }

    /// Until the VMM says that the VM runs.
    pub fn launch(&self, memory_mib: u64) -> Duration {
        Self::grown(self.launch_s, self.launch_per_gib_s, memory_mib)
    }

    /// From there until evidence is here.
    pub fn boot(&self, memory_mib: u64) -> Duration {
        Self::grown(self.boot_s, self.boot_per_gib_s, memory_mib)
    }

    /// Image, disk and seed.
    pub fn disk(&self) -> Duration {
        Duration::from_secs(self.disk_s)
    }

    /// From the power button to the plug.
    pub fn graceful_stop(&self) -> Duration {
        Duration::from_secs(self.graceful_stop_s)
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|faults| ConfigError::Invalid {
            path: path.to_owned(),
            faults,
        })
    }

    /// Checks a text.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let config: Self = toml::from_str(text).map_err(|error| vec![check::toml_fault(text, &error)])?;
        let faults = check::faults(&config, text);
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(faults)
        }
    }
}
