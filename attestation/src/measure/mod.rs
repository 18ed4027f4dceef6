//! Reference values: the SNP launch digest, computed from what will be launched, a firmware by [`snp()`] or an IGVM file by
//! [`snp_igvm`]; TDX's registers by [`tdx()`].
//!
//! The chip extends its digest page by page, in the order in which the VMM adds pages (AMD 56860, `SNP_LAUNCH_UPDATE`):
//! the firmware, the sections that the firmware's SEV metadata names, among them the page with the hashes of kernel,
//! initrd and command line, and last one VMSA per vCPU. The digest doesn't see the VM's disks, memory size or devices.
//!
//! Checked against published digests (`tests/vectors/measure`), and by hand against `sev-snp-measure`.

mod firmware;
mod igvm;
mod pe;
mod tdx;
mod vmsa;

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256, Sha384};

pub use firmware::FirmwareError;
use firmware::{Firmware, Section, SectionKind};
pub use igvm::{IgvmError, IgvmIdBlock, IgvmLaunch, IgvmLoader, IgvmMeasurement, snp_igvm};
pub use pe::PeError;
pub use tdx::{AcpiTables, PageOrder, QemuMachine, TdxBoot, TdxMeasureError, TdxMeasurements, tdx};
pub use vmsa::Vmm;

const PAGE: usize = 4096;
/// More than any firmware asks for; a bound on the work that a strange one can cause.
const SECTION_LEN_MAX: u32 = 64 << 20;
const VCPUS_MAX: u32 = 4096;

/// SNP active, and nothing else: what QEMU and KVM set since Linux 6.10.
pub const GUEST_FEATURES: u64 = 0x1;

/// What will be launched.
#[derive(Clone, Debug)]
pub struct SnpLaunch<'a> {
    /// OVMF with SEV metadata, as the VMM loads it.
    pub firmware: &'a [u8],
    /// vCPUs at the launch.
    pub vcpus: u32,
    /// Their type.
    pub vcpu: VcpuType,
    /// Kernel, initrd and command line, where the VMM boots them directly with `kernel-hashes=on`.
    pub direct_boot: Option<DirectBoot>,
    /// `SEV_FEATURES` of the VMSAs; [`GUEST_FEATURES`] unless the host is unusual.
    pub guest_features: u64,
    /// Which VMM sets up the vCPUs.
    pub vmm: Vmm,
    /// The digest of the firmware's own pages, if it is known; `firmware` then only gives the metadata.
    pub firmware_digest: Option<[u8; 48]>,
}

/// Digests of what is booted directly, as QEMU puts them before the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectBoot {
    /// SHA-256 of the kernel file.
    pub kernel: [u8; 32],
    /// SHA-256 of the initrd file; of nothing without one.
    pub initrd: [u8; 32],
    /// SHA-256 of the command line with a zero byte behind it.
    pub cmdline: [u8; 32],
}

/// A vCPU's CPUID signature (leaf 1, EAX): the only thing about its type that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuType(pub u32);

/// No launch digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The firmware has no SEV metadata, or strange ones.
    #[error("firmware: {0}")]
    Firmware(#[from] FirmwareError),
    /// A kernel, but a firmware that doesn't check it.
    #[error(
        "this firmware can't measure a kernel (no SNP_KERNEL_HASHES section): use an AmdSev build of OVMF \
         (Debian package ovmf-amdsev)"
    )]
    NoKernelHashes,
    /// The IGVM file isn't one that can be launched so.
    #[error(transparent)]
    Igvm(#[from] IgvmError),
    /// Impossible number of vCPUs.
    #[error("{0} vCPUs: expected 1 to {VCPUS_MAX}")]
    Vcpus(u32),
    /// A name that isn't known.
    #[error("unknown vCPU type `{0}`; known: {names}", names = VcpuType::names())]
    VcpuType(String),
}

impl DirectBoot {
    /// From the files' contents.
    pub fn new(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Self {
        Self::from_digests(
            Sha256::digest(kernel).into(),
            Sha256::digest(initrd.unwrap_or_default()).into(),
            cmdline,
        )
    }

    /// From digests of the files, where they are known.
    pub fn from_digests(kernel: [u8; 32], initrd: [u8; 32], cmdline: &str) -> Self {
        let cmdline = Sha256::new()
            .chain_update(cmdline)
            .chain_update([0])
            .finalize()
            .into();
        Self {
            kernel,
            initrd,
            cmdline,
        }
    }

    /// QEMU's table: a GUID and its length, then the same for each entry; 168 bytes, padded to 176.
    fn table(&self) -> Vec<u8> {
        const HEADER: u128 = 0x9438d606_4f22_4cc9_b479_a793d411fd21;
        const ENTRIES: [u128; 3] = [
            0x97d02dd8_bd20_4c94_aa78_e7714d36ab2a, // command line
            0x44baf731_3a2f_4bd7_9af1_41e29169781d, // initrd
            0x4de79437_abd2_427f_b835_d5b172d2045b, // kernel
        ];
        let mut table = guid_bytes(HEADER).to_vec();
        table.extend(168u16.to_le_bytes());
        for (guid, hash) in ENTRIES.into_iter().zip([self.cmdline, self.initrd, self.kernel]) {
            table.extend(guid_bytes(guid));
            table.extend(50u16.to_le_bytes());
            table.extend(hash);
        }
        table.resize(176, 0);
        table
    }
}

/// A GUID as it lies in memory: the first three fields little-endian.
const fn guid_bytes(guid: u128) -> [u8; 16] {
    let g = guid.to_be_bytes();
    [
        g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15],
    ]
}

/// QEMU's names (`builtin_x86_defs`) with family, model and stepping.
const VCPU_TYPES: [(&str, [u32; 3]); 17] = [
    ("EPYC", [0x17, 1, 2]),
    ("EPYC-v1", [0x17, 1, 2]),
    ("EPYC-v2", [0x17, 1, 2]),
    ("EPYC-v3", [0x17, 1, 2]),
    ("EPYC-v4", [0x17, 1, 2]),
    ("EPYC-IBPB", [0x17, 1, 2]),
    ("EPYC-Rome", [0x17, 0x31, 0]),
    ("EPYC-Rome-v1", [0x17, 0x31, 0]),
    ("EPYC-Rome-v2", [0x17, 0x31, 0]),
    ("EPYC-Rome-v3", [0x17, 0x31, 0]),
    ("EPYC-Milan", [0x19, 1, 1]),
    ("EPYC-Milan-v1", [0x19, 1, 1]),
    ("EPYC-Milan-v2", [0x19, 1, 1]),
    ("EPYC-Genoa", [0x19, 0x11, 0]),
    ("EPYC-Genoa-v1", [0x19, 0x11, 0]),
    ("EPYC-Turin", [0x1a, 0, 0]),
    ("EPYC-Turin-v1", [0x1a, 0, 0]),
];

impl VcpuType {
    /// From family, model and stepping (AMD 25481, `CPUID Fn0000_0001_EAX`).
    pub const fn from_family(family: u32, model: u32, stepping: u32) -> Self {
        let (base, extended) = if family > 0xf {
            (0xf, family - 0xf)
        } else {
            (family, 0)
        };
        Self(extended << 20 | (model >> 4 & 0xf) << 16 | base << 8 | (model & 0xf) << 4 | stepping & 0xf)
    }

    fn names() -> String {
        VCPU_TYPES.map(|(name, _)| name).join(", ")
    }
}

impl FromStr for VcpuType {
    type Err = MeasureError;

    fn from_str(name: &str) -> Result<Self, MeasureError> {
        let known = VCPU_TYPES.iter().find(|(known, _)| *known == name);
        let (_, [family, model, stepping]) =
            known.ok_or_else(|| MeasureError::VcpuType(name.escape_default().take(64).collect()))?;
        Ok(Self::from_family(*family, *model, *stepping))
    }
}

impl fmt::Display for VcpuType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// The launch digest: what the chip will report as `MEASUREMENT`.
pub fn snp(launch: &SnpLaunch<'_>) -> Result<[u8; 48], MeasureError> {
    if !(1..=VCPUS_MAX).contains(&launch.vcpus) {
        return Err(MeasureError::Vcpus(launch.vcpus));
    }
    let firmware = Firmware::parse(launch.firmware)?;
    let mut context = Context {
        digest: launch.firmware_digest.unwrap_or([0; 48]),
    };
    if launch.firmware_digest.is_none() {
        context.normal_pages(firmware.gpa(), launch.firmware);
    }
    let sections = firmware.sections();
    if launch.direct_boot.is_some() && !sections.iter().any(|s| s.kind == SectionKind::KernelHashes) {
        return Err(MeasureError::NoKernelHashes);
    }
    for section in sections {
        update_section(&mut context, section, launch, &firmware)?;
    }
    if launch.vmm == Vmm::Ec2 {
        for section in sections.iter().filter(|s| s.kind == SectionKind::Cpuid) {
            context.page(PageKind::Cpuid, section.gpa.into(), [0; 48]);
        }
    }
    let vmsa = |eip| vmsa::page(eip, launch.guest_features, launch.vcpu, launch.vmm);
    context.vmsa(vmsa::VMSA_GPA, &vmsa(vmsa::BSP_EIP));
    let others = vmsa(firmware.ap_eip());
    for _ in 1..launch.vcpus {
        context.vmsa(vmsa::VMSA_GPA, &others);
    }
    Ok(context.digest)
}

fn update_section(
    context: &mut Context,
    section: &Section,
    launch: &SnpLaunch<'_>,
    firmware: &Firmware<'_>,
) -> Result<(), MeasureError> {
    let gpa = u64::from(section.gpa);
    match section.kind {
        SectionKind::Memory if launch.vmm == Vmm::Gce => context.blank_pages(PageKind::Unmeasured, section),
        SectionKind::Memory | SectionKind::SvsmCaa => context.blank_pages(PageKind::Zero, section),
        SectionKind::Secrets => context.page(PageKind::Secrets, gpa, [0; 48]),
        SectionKind::Cpuid if launch.vmm == Vmm::Ec2 => {} // EC2 adds it last
        SectionKind::Cpuid => context.page(PageKind::Cpuid, gpa, [0; 48]),
        SectionKind::KernelHashes => match &launch.direct_boot {
            Some(boot) => {
                let mut page = vec![0; PAGE];
                let table = boot.table();
                let offset = firmware.hash_table_offset()?;
                page.get_mut(offset..offset + table.len())
                    .ok_or(FirmwareError::HashTable)?
                    .copy_from_slice(&table);
                context.normal_pages(gpa, &page);
            }
            None => context.blank_pages(PageKind::Zero, section),
        },
    }
    Ok(())
}

/// `PAGE_INFO.PAGE_TYPE` (AMD 56860).
#[derive(Clone, Copy, Debug)]
enum PageKind {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Unmeasured = 4,
    Secrets = 5,
    Cpuid = 6,
}

/// The chip's running digest.
struct Context {
    digest: [u8; 48],
}

impl Context {
    /// Extends the digest by one page (AMD 56860, `PAGE_INFO`, 112 bytes).
    fn page(&mut self, kind: PageKind, gpa: u64, contents: [u8; 48]) {
        let head = [0x70, 0, kind as u8, 0, 0, 0, 0, 0]; // length, type, no IMI page, no rights for VMPL 3–1
        self.digest = Sha384::new()
            .chain_update(self.digest)
            .chain_update(contents)
            .chain_update(head)
            .chain_update(gpa.to_le_bytes())
            .finalize()
            .into();
    }

    fn normal_pages(&mut self, gpa: u64, bytes: &[u8]) {
        for (n, page) in bytes.chunks(PAGE).enumerate() {
            self.page(
                PageKind::Normal,
                gpa + (n * PAGE) as u64,
                Sha384::digest(page).into(),
            );
        }
    }

    fn vmsa(&mut self, gpa: u64, vmsa: &[u8; PAGE]) {
        self.page(PageKind::Vmsa, gpa, Sha384::digest(vmsa).into());
    }

    fn blank_pages(&mut self, kind: PageKind, section: &Section) {
        for offset in (0..section.len).step_by(PAGE) {
            self.page(kind, u64::from(section.gpa) + u64::from(offset), [0; 48]);
        }
    }
}
