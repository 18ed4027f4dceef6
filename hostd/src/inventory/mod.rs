//! What this machine is: taken from sysfs, procfs and NVML, without changing anything.
//!
//! [`take`] never fails. What can't be read is [`Probe::Unknown`] with the reason and is never taken for zero: a hanging
//! `nvidia-smi` read as "0 GPUs" once made another marketplace delete all its leases (FACTS 2).
//!
//! The root folder is an argument, so that every machine we know can be a folder in a test. Readiness for confidential
//! VMs is told as *every* missing part, each with what to do about it: a person repairs the machine from this list.
//!
//! What this can't know: whether firmware lies about itself, and whether KVM really runs a guest (the VMM adapters try
//! that). `/dev/kvm` alone proves nothing (FACTS 1), so `kvm` also needs the CPU's own flag.

pub(crate) mod boot;
mod confidential;
mod cpu;
mod gpu;
mod page;
mod pci;
mod storage;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use boot::{Boot, Image};
pub use confidential::{Missing, Readiness};
pub use cpu::{Cpu, Hugepages, Memory, NumaNode};
pub use gpu::{Gpu, GpuMode, NvmlGpu};
pub use pci::{IommuGroup, PciDevice};
pub use storage::BlockDevice;

/// A fact, or why it isn't known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe<T> {
    /// Looked at.
    Known(T),
    /// Couldn't be found out, and why. Not zero, not "no".
    Unknown(String),
}

impl<T> Probe<T> {
    /// The fact, if it is one.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Kernel release and command line.
    pub kernel: Kernel,
    /// The hypervisor that this machine itself runs under, if it does.
    pub hypervisor: Option<String>,
    /// Processors.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Hugepage pools, by size and NUMA node.
    pub hugepages: Vec<Hugepages>,
    /// NUMA nodes.
    pub numa: Vec<NumaNode>,
    /// Whole disks.
    pub disks: Vec<BlockDevice>,
    /// IOMMU groups with their devices; empty: no IOMMU in use.
    pub iommu_groups: Vec<IommuGroup>,
    /// Display and 3D controllers (PCI class 03).
    pub gpus: Vec<Gpu>,
    /// Whether ordinary VMs can run with hardware virtualization.
    pub kvm: Readiness,
    /// Whether AMD SEV-SNP VMs can run.
    pub sev_snp: Readiness,
    /// Whether Intel TDX VMs can run.
    pub tdx: Readiness,
    /// The TPM.
    pub tpm: Option<Tpm>,
    /// How it was started.
    pub boot: Boot,
}

/// The running kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// E.g. `6.12.48-amd64`.
    pub release: Probe<String>,
    /// Its command line.
    pub cmdline: String,
}

impl Kernel {
    /// Whether a word stands on the command line.
    pub fn has(&self, word: &str) -> bool {
        self.cmdline.split_whitespace().any(|w| w == word)
    }

    /// Major and minor version.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.release.known()?.split(['.', '-']);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// A trusted platform module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tpm {
    /// `tpm0`.
    pub name: String,
    /// Major version of the specification: 1 or 2.
    pub version: Probe<u32>,
}

/// Looks at the machine under `root` (`/`; a made-up tree in tests), with NVML where it is built in.
pub fn take(root: &Path) -> Inventory {
    // NVML speaks to the real driver, which a made-up tree doesn't have.
    let nvml = if root == Path::new("/") {
        gpu::ask_nvml
    } else {
        gpu::no_nvml
    };
    take_with(root, nvml)
}

/// The whole disks of the machine under `root`, alone.
pub fn disks(root: &Path) -> Vec<BlockDevice> {
    storage::disks(&Tree(root))
}

/// As [`take`], with another source in NVML's place.
pub fn take_with(root: &Path, nvml: fn() -> Result<Vec<NvmlGpu>, String>) -> Inventory {
    let tree = Tree(root);
    let kernel = Kernel {
        release: tree.probe("proc/sys/kernel/osrelease"),
        cmdline: tree.text("proc/cmdline").unwrap_or_default(),
    };
    let cpu = cpu::cpu(&tree);
    let hypervisor = hypervisor(&tree, &cpu);
    let iommu_groups = pci::iommu_groups(&tree);
    Inventory {
        memory: cpu::memory(&tree),
        hugepages: cpu::hugepages(&tree),
        numa: cpu::numa(&tree),
        disks: storage::disks(&tree),
        gpus: gpu::gpus(&tree, nvml),
        kvm: confidential::kvm(&tree, &cpu),
        sev_snp: confidential::sev_snp(&tree, &cpu, &kernel, hypervisor.as_deref(), &iommu_groups),
        tdx: confidential::tdx(&tree, &cpu, &kernel, hypervisor.as_deref()),
        tpm: tpm(&tree),
        boot: boot::boot(&tree),
        kernel,
        hypervisor,
        cpu,
        iommu_groups,
    }
}

fn hypervisor(tree: &Tree<'_>, cpu: &Cpu) -> Option<String> {
    if !cpu.has("hypervisor") {
        return None;
    }
    let product = tree.text("sys/class/dmi/id/product_name");
    Some(
        tree.text("sys/hypervisor/type")
            .or(product)
            .unwrap_or_else(|| "unnamed".into()),
    )
}

fn tpm(tree: &Tree<'_>) -> Option<Tpm> {
    let name = tree
        .list("sys/class/tpm")
        .into_iter()
        .find(|n| n.starts_with("tpm") && !n.starts_with("tpmrm"))?;
    let version = tree.probe(&format!("sys/class/tpm/{name}/tpm_version_major"));
    Some(Tpm { name, version })
}

/// The machine's files under a root. Every read is bounded; a file that isn't there is `None`.
struct Tree<'a>(&'a Path);

/// `/proc/cpuinfo` of a machine with 1,024 threads is below 2 MiB; nothing else here comes near.
const FILE_BYTES_MAX: u64 = 4 << 20;

impl Tree<'_> {
    fn bytes(&self, path: &str) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.0.join(path))?
            .take(FILE_BYTES_MAX)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read(&self, path: &str) -> std::io::Result<String> {
        let bytes = self.bytes(path)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The trimmed text; `None` also when it is empty.
    fn text(&self, path: &str) -> Option<String> {
        self.read(path).ok().filter(|text| !text.is_empty())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    fn probe<T: std::str::FromStr>(&self, path: &str) -> Probe<T> {
        match self.read(path) {
            Ok(text) => match text.parse() {
                Ok(value) => Probe::Known(value),
                Err(_) => Probe::Unknown(format!("/{path} has unexpected content: {text:.60?}")),
            },
            Err(e) => Probe::Unknown(format!("/{path}: {e}")),
        }
    }

    fn exists(&self, path: &str) -> bool {
        self.0.join(path).exists()
    }

    /// Names in a folder, numbers in their order.
    fn list(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.join(path))
            .into_iter()
            .flatten()
            .flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort_by_key(|name| {
            let digits = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
            let number = name[digits..].parse::<u64>().unwrap_or(u64::MAX);
            (name[..digits].to_owned(), number, name.clone())
        });
        names
    }

    /// Last part of the path that a symbolic link points to.
    fn link_name(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.0.join(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}
