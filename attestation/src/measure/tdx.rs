//! Reference values of TDX: `MRTD` and `RTMR0` to `RTMR2`, computed from what will be launched.
//!
//! | register | holds | computed from |
//! |---|---|---|
//! | `MRTD` | the pages added before the launch | the firmware, by its TDVF metadata |
//! | `RTMR0` | what the VMM tells the firmware | memory size (TD HOB), the firmware's variables, the VMM's ACPI tables |
//! | `RTMR1` | what is booted | the kernel or unified kernel image |
//! | `RTMR2` | with which arguments | command line and initrd, or the image's sections |
//!
//! `RTMR0` is the VMM's: QEMU's tables depend on its version, machine type, vCPUs and devices, so they are an input
//! (fw_cfg's `etc/table-loader`, `etc/acpi/rsdp`, `etc/acpi/tables`), and Cloud Hypervisor, which describes the machine in
//! the HOB itself, isn't covered: take its `RTMR0` from the event log of a boot that you trust. `RTMR3` is left to
//! software in the TD.
//!
//! Formats: Intel, "TDX Virtual Firmware Design Guide" (metadata, measurements) and "TDX Module Base Specification",
//! chapter "Measurement and Attestation"; QEMU, `hw/i386/tdvf-hob.c`; edk2, `OvmfPkg`; systemd, `systemd-stub(7)`.

use sha2::{Digest, Sha384};

use super::firmware::{self, FirmwareError};
use super::pe::{Pe, PeError};
use super::{PAGE, guid_bytes};

const TDX_METADATA: [u8; 16] = guid_bytes(0xe47a6535_984a_4798_865e_4685a7bf8ec2);
const SECTIONS_MAX: usize = 64;
/// What one `TDH.MR.EXTEND` measures.
const CHUNK: usize = 256;
const EXTENDED: u32 = 1;
const ADDED_LATER: u32 = 2;
const KIND_VARIABLES: u32 = 1;
const KIND_TD_HOB: u32 = 2;
const KIND_TEMPORARY: u32 = 3;
/// Memory in all sections together: a bound on the work that a strange firmware can cause.
const SECTIONS_LEN_MAX: u64 = 256 << 20;
/// QEMU's q35: from this size on, memory is split, and 2 GiB lie below the hole.
const SPLIT_FROM: u64 = 0xb000_0000;
const LOW_MAX: u64 = 0x8000_0000;
const HIGH_START: u64 = 1 << 32;
const MEMORY_MAX: u64 = 1 << 46;

const GLOBAL_VARIABLE: [u8; 16] = guid_bytes(0x8be4df61_93ca_11d2_aa0d_00e098032b8c);
const IMAGE_SECURITY: [u8; 16] = guid_bytes(0xd719b2cb_3d3a_4596_a3bc_dad00e67656f);
/// OVMF's one boot option when nothing else is there: its own menu, in its own firmware volume.
const BOOT_0000: &[u8] = b"\x09\x01\0\0\x2c\0U\0i\0A\0p\0p\0\0\0\x04\x07\x14\0\xc9\xbd\xb8\x7c\xeb\xf8\x34\x4f\xaa\xea\
    \x3e\xe4\xaf\x65\x16\xa1\x04\x06\x14\0\x21\xaa\x2c\x46\x14\x76\x03\x45\x83\x6e\x8a\xb6\xf4\x66\x23\x31\x7f\xff\x04\0";
const SEPARATOR: &[u8] = &[0; 4];
const CALLING: &[u8] = b"Calling EFI Application from Boot Option";
const EXIT: [&[u8]; 2] = [
    b"Exit Boot Services Invocation",
    b"Exit Boot Services Returned with Success",
];
/// The sections that systemd-stub measures, in its order.
const UKI_SECTIONS: [&str; 14] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey",
    ".profile", ".dtbauto", ".hwids", ".efifw",
];

/// In which order a VMM adds and measures the pages of one section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageOrder {
    /// Each page is measured when it is added: Linux since 6.16, Cloud Hypervisor.
    #[default]
    Interleaved,
    /// All pages are added, then all measured: earlier kernels out of tree.
    TwoPass,
}

/// The ACPI tables that QEMU gives its firmware, as `fw_cfg` has them.
#[derive(Clone, Copy, Debug)]
pub struct AcpiTables<'a> {
    /// `etc/table-loader`.
    pub loader: &'a [u8],
    /// `etc/acpi/rsdp`.
    pub rsdp: &'a [u8],
    /// `etc/acpi/tables`.
    pub tables: &'a [u8],
}

/// What QEMU tells the firmware.
#[derive(Clone, Copy, Debug)]
pub struct QemuMachine<'a> {
    /// Bytes of RAM.
    pub memory: u64,
    /// Its tables.
    pub acpi: AcpiTables<'a>,
}

/// What is booted.
#[derive(Clone, Copy, Debug)]
pub enum TdxBoot<'a> {
    /// A kernel that the VMM hands over (`-kernel`).
    Direct {
        /// The kernel file, an EFI image.
        kernel: &'a [u8],
        /// The initrd file.
        initrd: Option<&'a [u8]>,
        /// Its command line, without what the firmware puts before it.
        cmdline: &'a str,
    },
    /// A unified kernel image that the firmware finds on a disk as its removable-media loader.
    Uki {
        /// The image.
        uki: &'a [u8],
        /// SHA-384 of the disk's `EV_EFI_GPT_EVENT`; `None`: the disk has no GPT.
        gpt: Option<[u8; 48]>,
        /// Whether the stub lets the firmware load the kernel inside, which then measures it, too: it depends on
        /// systemd's version.
        inner_kernel: bool,
    },
}

/// Reference values; what wasn't given can't be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdxMeasurements {
    /// `MRTD`.
    pub mr_td: [u8; 48],
    /// `RTMR0`.
    pub rtmr0: Option<[u8; 48]>,
    /// `RTMR1`.
    pub rtmr1: Option<[u8; 48]>,
    /// `RTMR2`.
    pub rtmr2: Option<[u8; 48]>,
}

/// No reference values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TdxMeasureError {
    /// The firmware has no table, or a strange one.
    #[error("firmware: {0}")]
    Firmware(FirmwareError),
    /// No TDVF metadata.
    #[error("the firmware has no TDX metadata: this build of OVMF can't launch a TD")]
    NoMetadata,
    /// Metadata that contradict themselves.
    #[error("malformed TDX metadata: {0}")]
    Metadata(&'static str),
    /// A machine that doesn't exist.
    #[error("{0} bytes of memory: expected whole pages, more than the firmware needs, at most 64 TiB")]
    Memory(u64),
    /// The kernel.
    #[error("kernel: {0}")]
    Kernel(PeError),
    /// A unified kernel image without a kernel.
    #[error("an image without a .linux section isn't a unified kernel image")]
    NotAUki,
}

// Not `#[from]`: the cause is in the message already.
impl From<FirmwareError> for TdxMeasureError {
    fn from(e: FirmwareError) -> Self {
        Self::Firmware(e)
    }
}

impl From<PeError> for TdxMeasureError {
    fn from(e: PeError) -> Self {
        Self::Kernel(e)
    }
}

impl TdxMeasurements {
    /// The one value that [`crate::tdx::measurement`] makes of all four.
    pub fn measurement(&self) -> Option<[u8; 48]> {
        let rtmrs = [self.rtmr0?, self.rtmr1?, self.rtmr2?, [0; 48]];
        Some(crate::tdx::measurement(self.mr_td, rtmrs))
    }
}

/// Computes what can be computed from what is given.
pub fn tdx(
    firmware: &[u8],
    order: PageOrder,
    machine: Option<QemuMachine<'_>>,
    boot: Option<TdxBoot<'_>>,
) -> Result<TdxMeasurements, TdxMeasureError> {
    let firmware = Tdvf::parse(firmware)?;
    let (rtmr1, rtmr2) = boot.map(boot_registers).transpose()?.unzip();
    Ok(TdxMeasurements {
        mr_td: firmware.mr_td(order),
        rtmr0: machine.map(|machine| firmware.rtmr0(machine)).transpose()?,
        rtmr1,
        rtmr2,
    })
}

struct Section {
    data_start: usize,
    data_len: usize,
    gpa: u64,
    len: u64,
    kind: u32,
    attributes: u32,
}

/// OVMF with TDVF metadata.
struct Tdvf<'a> {
    image: &'a [u8],
    sections: Vec<Section>,
}

impl<'a> Tdvf<'a> {
    fn parse(image: &'a [u8]) -> Result<Self, TdxMeasureError> {
        let offset = firmware::entry(image, TDX_METADATA)?.ok_or(TdxMeasureError::NoMetadata)?;
        let bad = TdxMeasureError::Metadata;
        let offset = offset
            .try_into()
            .map(u32::from_le_bytes)
            .map_err(|_| bad("an offset of other than four bytes"))?;
        let start = image
            .len()
            .checked_sub(offset as usize)
            .ok_or(bad("it lies outside of the image"))?;
        let metadata = &image[start..];
        let number = |at: usize| {
            let found = metadata.get(at..).and_then(|rest| rest.first_chunk());
            found.copied().map(u32::from_le_bytes).ok_or(bad("it is cut off"))
        };
        let wide =
            |at: usize| Ok::<_, TdxMeasureError>(u64::from(number(at)?) | u64::from(number(at + 4)?) << 32);
        let count = number(12)? as usize;
        if !metadata.starts_with(b"TDVF") || number(8)? != 1 || count > SECTIONS_MAX {
            return Err(bad("not a TDVF descriptor of version 1"));
        }
        let section = |n: usize| {
            let at = 16 + 32 * n;
            let section = Section {
                data_start: number(at)? as usize,
                data_len: number(at + 4)? as usize,
                gpa: wide(at + 8)?,
                len: wide(at + 16)?,
                kind: number(at + 24)?,
                attributes: number(at + 28)?,
            };
            let whole = (section.gpa | section.len).is_multiple_of(PAGE as u64);
            let data_len = section.data_len as u64;
            let measured_whole = section.attributes & EXTENDED == 0 || data_len == section.len;
            let inside = section.data_start + section.data_len <= image.len();
            let ends = section
                .gpa
                .checked_add(section.len)
                .is_some_and(|end| end <= MEMORY_MAX);
            let sound = whole && measured_whole && inside && ends && data_len <= section.len;
            if sound {
                Ok(section)
            } else {
                Err(bad("a section that doesn't fit the image"))
            }
        };
        let sections = (0..count).map(section).collect::<Result<Vec<_>, _>>()?;
        if sections
            .iter()
            .map(|section| section.len.min(SECTIONS_LEN_MAX))
            .sum::<u64>()
            > SECTIONS_LEN_MAX
        {
            return Err(bad("sections of more than 256 MiB"));
        }
        Ok(Self { image, sections })
    }

    fn mr_td(&self, order: PageOrder) -> [u8; 48] {
        let mut sha = Sha384::new();
        for section in &self.sections {
            let pages = || (0..section.len).step_by(PAGE);
            let add = section.attributes & ADDED_LATER == 0;
            let extend = section.attributes & EXTENDED != 0;
            for page in pages() {
                if add {
                    operation(&mut sha, b"MEM.PAGE.ADD", section.gpa + page);
                }
                if extend && order == PageOrder::Interleaved {
                    self.extend(&mut sha, section, page);
                }
            }
            if extend && order == PageOrder::TwoPass {
                pages().for_each(|page| self.extend(&mut sha, section, page));
            }
        }
        sha.finalize().into()
    }

    /// One page, chunk by chunk. Measured sections are wholly backed by the image.
    fn extend(&self, sha: &mut Sha384, section: &Section, page: u64) {
        let start = section.data_start + page as usize;
        for (n, chunk) in self.image[start..start + PAGE].chunks(CHUNK).enumerate() {
            operation(sha, b"MR.EXTEND", section.gpa + page + (n * CHUNK) as u64);
            sha.update(chunk);
        }
    }

    fn rtmr0(&self, machine: QemuMachine<'_>) -> Result<[u8; 48], TdxMeasureError> {
        let mut digests = vec![Sha384::digest(self.td_hob(machine.memory)?)];
        let variables = self
            .sections
            .iter()
            .filter(|section| section.kind == KIND_VARIABLES);
        digests.extend(variables.map(|section| {
            Sha384::digest(&self.image[section.data_start..section.data_start + section.data_len])
        }));
        for (vendor, name) in [
            (GLOBAL_VARIABLE, "SecureBoot"),
            (GLOBAL_VARIABLE, "PK"),
            (GLOBAL_VARIABLE, "KEK"),
            (IMAGE_SECURITY, "db"),
            (IMAGE_SECURITY, "dbx"),
        ] {
            digests.push(Sha384::digest(empty_variable(vendor, name)));
        }
        let AcpiTables { loader, rsdp, tables } = machine.acpi;
        let boot_order = &[0, 0][..];
        digests.extend([SEPARATOR, loader, rsdp, tables, boot_order, BOOT_0000].map(Sha384::digest));
        Ok(register(digests.iter().map(|digest| digest.as_slice())))
    }

    /// The list of memory that QEMU gives the firmware, as far as that measures it: without its end mark.
    fn td_hob(&self, memory: u64) -> Result<Vec<u8>, TdxMeasureError> {
        let bad = TdxMeasureError::Metadata;
        let mut given: Vec<&Section> = Vec::new();
        given.extend(
            self.sections
                .iter()
                .filter(|section| matches!(section.kind, KIND_TD_HOB | KIND_TEMPORARY)),
        );
        given.sort_by_key(|section| section.gpa);
        let hob = given
            .iter()
            .find(|section| section.kind == KIND_TD_HOB)
            .ok_or(bad("no section for the TD HOB"))?;
        let low = if memory >= SPLIT_FROM { LOW_MAX } else { memory };
        let mut list = Vec::new();
        let mut at = 0;
        for section in &given {
            let gap = section.gpa.checked_sub(at).ok_or(bad("sections that overlap"))?;
            if gap > 0 {
                resource(&mut list, Resource::Unaccepted, at, gap);
            }
            resource(&mut list, Resource::Memory, section.gpa, section.len);
            at = section.gpa + section.len;
        }
        if at >= low || !memory.is_multiple_of(PAGE as u64) || memory > MEMORY_MAX {
            return Err(TdxMeasureError::Memory(memory));
        }
        resource(&mut list, Resource::Unaccepted, at, low - at);
        if memory > low {
            resource(&mut list, Resource::Unaccepted, HIGH_START, memory - low);
        }
        const HEAD: usize = 56;
        const END_MARK: u64 = 8;
        let mut head = vec![0; HEAD];
        head[0] = 1; // EFI_HOB_TYPE_HANDOFF
        head[2] = HEAD as u8;
        head[8] = 9; // version
        let end = hob.gpa + (HEAD + list.len()) as u64 + END_MARK;
        head[48..].copy_from_slice(&end.to_le_bytes());
        head.extend(list);
        Ok(head)
    }
}

/// What `TDH.MEM.PAGE.ADD` and `TDH.MR.EXTEND` put into `MRTD`: 128 bytes of name and address.
fn operation(sha: &mut Sha384, name: &[u8], gpa: u64) {
    let mut buffer = [0; 128];
    buffer[..name.len()].copy_from_slice(name);
    buffer[16..24].copy_from_slice(&gpa.to_le_bytes());
    sha.update(buffer);
}

#[derive(Clone, Copy)]
enum Resource {
    Memory = 0,
    Unaccepted = 7,
}

/// `EFI_HOB_RESOURCE_DESCRIPTOR` (Platform Initialization specification, volume 3).
fn resource(list: &mut Vec<u8>, kind: Resource, start: u64, len: u64) {
    list.extend([3, 0, 0x30, 0, 0, 0, 0, 0]);
    list.extend([0; 16]);
    list.extend((kind as u32).to_le_bytes());
    list.extend(7u32.to_le_bytes()); // present, initialised, tested
    list.extend(start.to_le_bytes());
    list.extend(len.to_le_bytes());
}

/// `UEFI_VARIABLE_DATA` of a variable that isn't set.
fn empty_variable(vendor: [u8; 16], name: &str) -> Vec<u8> {
    let mut data = vendor.to_vec();
    data.extend((name.len() as u64).to_le_bytes());
    data.extend(0u64.to_le_bytes());
    data.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    data
}

/// `RTMR1` and `RTMR2`.
fn boot_registers(boot: TdxBoot<'_>) -> Result<([u8; 48], [u8; 48]), TdxMeasureError> {
    let sha384 = |data: &[u8]| <[u8; 48]>::from(Sha384::digest(data));
    match boot {
        TdxBoot::Direct {
            kernel,
            initrd,
            cmdline,
        } => {
            // The firmware loads the kernel before it calls it, and tells it where the initrd is.
            let mut booted = vec![Pe::parse(kernel)?.authenticode()?];
            booted.extend([CALLING, SEPARATOR, EXIT[0], EXIT[1]].map(sha384));
            let options = load_options(cmdline, initrd.is_some());
            let arguments: Vec<[u8; 48]> = [Some(options.as_slice()), initrd]
                .into_iter()
                .flatten()
                .map(sha384)
                .collect();
            Ok((register(booted.iter()), register(arguments.iter())))
        }
        TdxBoot::Uki {
            uki,
            gpt,
            inner_kernel,
        } => {
            let image = Pe::parse(uki)?;
            let kernel = image.section(".linux").ok_or(TdxMeasureError::NotAUki)?;
            let mut booted = vec![sha384(CALLING), sha384(SEPARATOR)];
            booted.extend(gpt);
            booted.push(image.authenticode()?);
            if inner_kernel {
                booted.push(Pe::parse(kernel)?.authenticode()?);
            }
            booted.extend(EXIT.map(sha384));
            let mut arguments = Vec::new();
            for name in UKI_SECTIONS {
                if let Some(content) = image.section(name) {
                    arguments.push(sha384(&[name.as_bytes(), &[0]].concat()));
                    arguments.push(sha384(content));
                }
            }
            Ok((register(booted.iter()), register(arguments.iter())))
        }
    }
}

/// What the firmware hands to the kernel: where the initrd is, and the command line.
fn load_options(cmdline: &str, initrd: bool) -> Vec<u8> {
    let prefix = if initrd { "initrd=initrd " } else { "" };
    let text = format!("{prefix}{cmdline}\0");
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A register after these digests.
fn register<T: AsRef<[u8]>>(digests: impl Iterator<Item = T>) -> [u8; 48] {
    digests.fold([0; 48], |value, digest| {
        Sha384::new()
            .chain_update(value)
            .chain_update(digest)
            .finalize()
            .into()
    })
}

#[cfg(test)]
mod tests;
