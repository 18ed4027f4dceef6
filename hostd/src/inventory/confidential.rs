//! Whether KVM, SEV-SNP and TDX can be used, and every reason why not.
//!
//! Sources: the kernel's `Documentation/virt/kvm/x86/amd-memory-encryption.rst` and `Documentation/arch/x86/tdx.rst`,
//! AMD's SNP host set-up notes and Intel's TDX enabling guide for the names of firmware settings. Board makers rename
//! them; ours are those of the reference firmware.

use attestation::snp::Product;
use serde::{Deserialize, Serialize};

use super::cpu::Cpu;
use super::pci::IommuGroup;
use super::{Kernel, Tree};

/// Whether something can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// As far as the machine tells. Each warning is something to look at.
    Ready {
        /// What is odd.
        warnings: Vec<String>,
    },
    /// All that is missing, in the order to repair it.
    NotReady {
        /// Never empty.
        missing: Vec<Missing>,
    },
    /// The machine is of another make: nothing to repair.
    NotThisMachine {
        /// Why.
        why: String,
    },
}

impl Readiness {
    /// Whether it can be used.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    fn of(missing: Vec<Missing>, warnings: Vec<String>) -> Self {
        if missing.is_empty() {
            Self::Ready { warnings }
        } else {
            Self::NotReady { missing }
        }
    }
}

/// One thing that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Short and stable, e.g. `cpu-flag`.
    pub id: String,
    /// What was seen.
    pub found: String,
    /// What to do.
    pub fix: String,
}

fn missing(id: &str, found: impl Into<String>, fix: impl Into<String>) -> Missing {
    Missing {
        id: id.to_owned(),
        found: found.into(),
        fix: fix.into(),
    }
}

pub(super) fn kvm(tree: &Tree<'_>, cpu: &Cpu) -> Readiness {
    let device = tree.exists("dev/kvm");
    let module = match () {
        () if cpu.has("svm") => "kvm_amd",
        () if cpu.has("vmx") => "kvm_intel",
        () => {
            let kvm = if device { "/dev/kvm is there, but " } else { "" };
            return Readiness::NotReady {
                missing: vec![missing(
                    "cpu-flag",
                    format!("{kvm}/proc/cpuinfo shows neither svm nor vmx: ordinary guests wouldn't run"),
                    if cpu.has("hypervisor") {
                        "this machine is a VM: let its hypervisor pass nested virtualization through, or rent VMs under \
                         TCG (slow) by libvirt"
                    } else {
                        "enable SVM Mode (AMD) or Intel Virtualization Technology (VMX) in the firmware"
                    },
                )],
            };
        }
    };
    if device {
        return Readiness::Ready { warnings: vec![] };
    }
    let loaded = tree.exists(&format!("sys/module/{module}"));
    let found = if loaded {
        "the module is loaded, but /dev/kvm is missing"
    } else {
        "/dev/kvm is missing"
    };
    Readiness::NotReady {
        missing: vec![missing(
            "device",
            found,
            format!("modprobe {module}; then look at dmesg | grep -i kvm"),
        )],
    }
}

pub(super) fn sev_snp(
    tree: &Tree<'_>,
    cpu: &Cpu,
    kernel: &Kernel,
    hypervisor: Option<&str>,
    iommu_groups: &[IommuGroup],
) -> Readiness {
    if let Some(why) = not_bare_metal(cpu, "AuthenticAMD", hypervisor) {
        return Readiness::NotThisMachine { why };
    }
    let Some(product) = cpu.epyc() else {
        let why = format!("{} has no SEV-SNP (EPYC 7003 “Milan” or newer has)", cpu.name);
        return Readiness::NotThisMachine { why };
    };
    let mut lacks = Vec::new();
    let mut warnings = Vec::new();
    if kernel.version().is_some_and(|v| v < (6, 11)) {
        let release = kernel.release.known().cloned().unwrap_or_default();
        lacks.push(missing(
            "kernel",
            format!("kernel {release}"),
            "run Linux 6.11 or newer: the first with SNP host support in KVM",
        ));
    }
    if !cpu.has("sev") || !cpu.has("sme") {
        lacks.push(missing(
            "firmware-sme",
            "/proc/cpuinfo lacks sme or sev",
            "in the firmware (AMD CBS → CPU Common Options): SMEE = Enabled, SEV Control = Enabled",
        ));
    }
    if !cpu.has("sev_es") {
        lacks.push(missing(
            "firmware-asids",
            "/proc/cpuinfo lacks sev_es",
            "in the firmware (AMD CBS → CPU Common Options): SEV-ES ASID Space Limit Control = Manual, SEV-ES ASID Space \
             Limit = 100 (one more than the number of SEV-ES and SNP guests)",
        ));
    }
    if !cpu.has("sev_snp") {
        lacks.push(missing(
            "firmware-snp",
            "/proc/cpuinfo lacks sev_snp",
            "in the firmware: AMD CBS → NBIO Common Options → SEV-SNP Support = Enabled; AMD CBS → CPU Common Options → SNP \
             Memory (RMP Table) Coverage = Enabled. If both are on, dmesg | grep -i -e sev -e rmp says what the kernel missed",
        ));
    }
    if iommu_groups.is_empty() {
        lacks.push(missing("iommu", "no IOMMU groups", "in the firmware (AMD CBS → NBIO Common Options): IOMMU = Enabled; and no amd_iommu=off on the kernel's command line"));
    }
    for word in ["iommu=pt", "iommu.passthrough=1", "amd_iommu=off", "iommu=off"] {
        if kernel.has(word) {
            lacks.push(missing(
                "iommu-passthrough",
                format!("{word} on the kernel's command line"),
                format!(
                    "remove {word}: the kernel refuses SNP unless the IOMMU translates (iommu.passthrough=0)"
                ),
            ));
        }
    }
    for name in ["sev", "sev_es", "sev_snp"] {
        let value = tree.text(&format!("sys/module/kvm_amd/parameters/{name}"));
        if !matches!(value.as_deref(), Some("Y" | "1")) {
            let found = value.map_or_else(
                || format!("kvm_amd has no parameter {name}"),
                |v| format!("kvm_amd.{name} = {v}"),
            );
            lacks.push(missing(
                "kvm-amd",
                found,
                "load kvm_amd with sev=1 sev_es=1 sev_snp=1 (the default where firmware and kernel allow it)",
            ));
            break; // each needs the one before it
        }
    }
    if !tree.exists("dev/sev") {
        lacks.push(missing(
            "device",
            "/dev/sev is missing",
            "modprobe ccp; dmesg | grep -i ccp tells whether the PSP's firmware answered",
        ));
    }
    if product == Product::Milan {
        warnings.push("Milan: a tenant may refuse it, since its root VCEK seed was extracted in software (docs/threat-model.md)".into());
    }
    Readiness::of(lacks, warnings)
}

pub(super) fn tdx(tree: &Tree<'_>, cpu: &Cpu, kernel: &Kernel, hypervisor: Option<&str>) -> Readiness {
    if let Some(why) = not_bare_metal(cpu, "GenuineIntel", hypervisor) {
        return Readiness::NotThisMachine { why };
    }
    let mut lacks = Vec::new();
    let mut warnings = Vec::new();
    if kernel.version().is_some_and(|v| v < (6, 16)) {
        let release = kernel.release.known().cloned().unwrap_or_default();
        lacks.push(missing(
            "kernel",
            format!("kernel {release}"),
            "run Linux 6.16 or newer: the first with TDX host support in KVM",
        ));
    }
    if !cpu.has("tme") {
        lacks.push(missing(
            "firmware-tme",
            "/proc/cpuinfo lacks tme",
            "in the firmware: Memory Encryption (TME) = Enabled, Total Memory Encryption Multi-Tenant (TME-MT) = Enabled, \
             TME-MT memory integrity = Disabled",
        ));
    }
    if !cpu.has("tdx_host_platform") {
        lacks.push(missing(
            "firmware-tdx",
            "/proc/cpuinfo lacks tdx_host_platform",
            "in the firmware: Trust Domain Extension (TDX) = Enabled, TME-MT/TDX key split = a non-zero value, TDX Secure \
             Arbitration Mode Loader (SEAM Loader) = Enabled. A CPU before the 4th generation Xeon has no TDX",
        ));
    }
    if !cpu.has("sgx") {
        lacks.push(missing(
            "firmware-sgx",
            "/proc/cpuinfo lacks sgx",
            "in the firmware: SW Guard Extensions (SGX) = Enabled: quotes are signed by an SGX enclave",
        ));
    }
    if !kernel.has("nohibernate") && tree.text("sys/power/disk").is_some_and(|d| d != "[disabled]") {
        lacks.push(missing(
            "hibernation",
            "hibernation is possible",
            "add nohibernate to the kernel's command line: TDX and hibernation exclude each other",
        ));
    }
    let value = tree.text("sys/module/kvm_intel/parameters/tdx");
    if !matches!(value.as_deref(), Some("Y" | "1")) {
        let found = value.map_or_else(
            || "kvm_intel has no parameter tdx".to_owned(),
            |v| format!("kvm_intel.tdx = {v}"),
        );
        lacks.push(missing(
            "kvm-intel",
            found,
            "load kvm_intel with tdx=1; dmesg | grep -i tdx must say `TDX module initialized`",
        ));
    }
    warnings.push("quotes also need a quote generation service (QGS) and a PCCS on the host; the inventory can't see them".into());
    Readiness::of(lacks, warnings)
}

fn not_bare_metal(cpu: &Cpu, vendor: &str, hypervisor: Option<&str>) -> Option<String> {
    if cpu.vendor != vendor {
        return Some(format!(
            "the CPU is {}, not {vendor}",
            if cpu.vendor.is_empty() {
                "unknown"
            } else {
                &cpu.vendor
            }
        ));
    }
    hypervisor
        .map(|name| format!("this machine is itself a VM ({name}); confidential VMs start from bare metal"))
}
