//! The SNP launch digest of an IGVM file: which pages a loader adds to the guest, in what order, and in what state the
//! vCPUs start, all in one file.
//!
//! Loaders differ where the format leaves them free, or where they leave the format; so the digest is one for a
//! [`IgvmLoader`]. Checked against `igvmmeasure` (COCONUT-SVSM), and against the digest of the firmware that a file was made
//! from.

mod file;

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha384};

use super::vmsa::{self, VMSA_GPA};
use super::{Context, DirectBoot, MeasureError, PAGE, PageKind, VCPUS_MAX, VcpuType};
use crate::crypto::CRYPTO;
use file::{Content, Directive, ID_BLOCK_LEN, IgvmFile, kind};

/// 2 GiB of pages: a bound on the work that a strange file can cause.
const PAGES_MAX: usize = 1 << 19;
/// Where Cloud Hypervisor puts the hashes of kernel, initrd and command line: where AmdSev's OVMF and stage0 look.
const KERNEL_HASHES: (u64, usize) = (0x10000, 0xc00);
const KERNEL_HASHES_LEN: usize = 0x400;

/// Who loads the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IgvmLoader {
    /// Whoever keeps to the format's definition, as Hyper-V and OpenVMM: everything in the file's order, the vCPUs' states
    /// as they are and at the addresses that the file names, a page without data as a page of zeros.
    #[default]
    Format,
    /// QEMU 10.1 and later with KVM: KVM adds the vCPUs' states last, at an address of its own. vCPUs without a state
    /// start as after a reset.
    Qemu,
    /// Cloud Hypervisor 53 with KVM: as QEMU, but a page without data is the chip's own zero page, a state gives
    /// KVM some registers only, every vCPU needs one, and the hashes of a kernel that is given are put into the page at
    /// 0x10000.
    CloudHypervisor,
}

/// What will be launched.
#[derive(Clone, Debug)]
pub struct IgvmLaunch<'a> {
    /// The file's content.
    pub file: &'a [u8],
    /// Who loads it.
    pub loader: IgvmLoader,
    /// vCPUs at the launch; without: as many as the file has states for.
    pub vcpus: Option<u32>,
    /// The type of those without a state (QEMU).
    pub vcpu: VcpuType,
    /// Kernel, initrd and command line that the VMM is given beside the file (Cloud Hypervisor).
    pub direct_boot: Option<DirectBoot>,
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgvmMeasurement {
    /// The launch digest: what the chip will report as `MEASUREMENT`.
    pub digest: [u8; 48],
    /// The guest policy that the file asks for.
    pub policy: Option<u64>,
    /// `SEV_FEATURES` of the first vCPU.
    pub guest_features: u64,
    /// How many vCPUs are measured.
    pub vcpus: u32,
    /// How many pages are loaded.
    pub pages: usize,
    /// The ID block that goes to the chip with the launch.
    pub id_block: Option<IgvmIdBlock>,
}

/// An ID block (AMD 56860, `SNP_LAUNCH_FINISH`): the chip refuses a launch that it doesn't fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgvmIdBlock {
    /// The digest that its author expects.
    pub digest: [u8; 48],
    /// `FAMILY_ID` of the report.
    pub family_id: [u8; 16],
    /// `IMAGE_ID` of the report.
    pub image_id: [u8; 16],
    /// `GUEST_SVN` of the report.
    pub guest_svn: u32,
    /// `ID_KEY_DIGEST` of the report.
    pub id_key_digest: [u8; 48],
    /// `AUTHOR_KEY_DIGEST` of the report, where an author's key vouches for the ID key.
    pub author_key_digest: Option<[u8; 48]>,
    /// Whether its signatures hold.
    pub signed: bool,
}

/// A file that can't be launched, or not by that loader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IgvmError {
    /// Something else.
    #[error("not an IGVM file")]
    NotIgvm,
    /// Too short or too long.
    #[error("{len} bytes: expected a header, and at most 1 GiB")]
    Length {
        /// Bytes found.
        len: usize,
    },
    /// A version of the format that isn't known.
    #[error("version {0} of the format, which isn't known: expected 1 or 2")]
    Version(u32),
    /// No x86-64 or no pages of 4 KiB.
    #[error("made for another architecture or another size of pages")]
    Architecture,
    /// Damaged.
    #[error("the checksum of its headers is wrong")]
    Checksum,
    /// It contradicts itself or the format.
    #[error("malformed at byte {at}: {what}")]
    Malformed {
        /// Offset in the file.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// It needs a loader that knows more.
    #[error("a structure of type {kind:#x} at byte {at}, which isn't known and can't be ignored")]
    Unknown {
        /// Its type.
        kind: u32,
        /// Offset in the file.
        at: usize,
    },
    /// No platform in it is SEV-SNP.
    #[error("not made for SEV-SNP")]
    NotSnp,
    /// The chip would refuse the second time.
    #[error("the page at {gpa:#x} is loaded twice")]
    Twice {
        /// Guest physical address.
        gpa: u64,
    },
    /// More pages than fit any guest's start.
    #[error("more than {PAGES_MAX} pages")]
    TooLarge,
    /// A parameter area that isn't there (any more), or is there twice.
    #[error("parameter area {0} is used before it is made, or made or loaded twice")]
    Area(u32),
    /// Two states for one vCPU.
    #[error("two states for vCPU {0}")]
    VcpuTwice(u16),
    /// Nothing says how a vCPU starts.
    #[error("no state for vCPU {0}")]
    NoVcpu(u32),
    /// Two ID blocks.
    #[error("two ID blocks")]
    IdBlockTwice,
    /// The loader can't do it.
    #[error("this loader can't launch it: {0}")]
    Loader(&'static str),
}

/// The launch digest of an IGVM file, and what else it says about the guest.
pub fn snp_igvm(launch: &IgvmLaunch<'_>) -> Result<IgvmMeasurement, MeasureError> {
    if let Some(vcpus) = launch.vcpus.filter(|n| !(1..=VCPUS_MAX).contains(n)) {
        return Err(MeasureError::Vcpus(vcpus));
    }
    let file = IgvmFile::parse(launch.file)?;
    check_loader(launch, &file)?;
    let mut loading = Loading::new(launch);
    for (_, directive) in &file.directives {
        loading.follow(directive)?;
    }
    Ok(loading.finish(file.policy)?)
}

/// What of a format-conforming file a loader doesn't take.
fn check_loader(launch: &IgvmLaunch<'_>, file: &IgvmFile<'_>) -> Result<(), IgvmError> {
    let cloud_hypervisor = launch.loader == IgvmLoader::CloudHypervisor;
    if launch.direct_boot.is_some() && !cloud_hypervisor {
        return Err(IgvmError::Loader(
            "only Cloud Hypervisor measures a kernel beside the file",
        ));
    }
    if !cloud_hypervisor {
        return Ok(());
    }
    if file.many_platforms {
        return Err(IgvmError::Loader(
            "the file is for other platforms, too, and Cloud Hypervisor loads their parts as well",
        ));
    }
    let taken = |kind: &u32| match *kind {
        kind::PARAMETER_AREA..=kind::REQUIRED_MEMORY => true,
        kind => [
            kind::VP_COUNT,
            kind::SNP_ID_BLOCK,
            kind::MEMORY_MAP,
            kind::COMMAND_LINE,
        ]
        .contains(&kind),
    };
    if !file.directives.iter().all(|(kind, _)| taken(kind)) {
        return Err(IgvmError::Loader(
            "the file has parameters that Cloud Hypervisor doesn't know",
        ));
    }
    Ok(())
}

/// A launch under way.
struct Loading<'a, 'l> {
    launch: &'l IgvmLaunch<'l>,
    context: Context,
    /// Pages that are loaded.
    pages: BTreeSet<u64>,
    /// Lengths of the parameter areas; none: it was loaded.
    areas: BTreeMap<u32, Option<u64>>,
    vcpus: BTreeMap<u16, &'a [u8; PAGE]>,
    id_block: Option<&'a [u8; ID_BLOCK_LEN]>,
}

impl<'a, 'l> Loading<'a, 'l> {
    fn new(launch: &'l IgvmLaunch<'l>) -> Self {
        Self {
            launch,
            context: Context { digest: [0; 48] },
            pages: BTreeSet::new(),
            areas: BTreeMap::new(),
            vcpus: BTreeMap::new(),
            id_block: None,
        }
    }

    fn follow(&mut self, directive: &Directive<'a>) -> Result<(), IgvmError> {
        match *directive {
            Directive::Page { gpa, content } => self.page(gpa, content),
            Directive::Area { index, len } => match self.areas.insert(index, Some(len)) {
                None => Ok(()),
                Some(_) => Err(IgvmError::Area(index)),
            },
            Directive::Parameter { area } => match self.areas.get(&area) {
                Some(Some(_)) => Ok(()),
                _ => Err(IgvmError::Area(area)),
            },
            Directive::Insert { gpa, area } => {
                let len = self.areas.get_mut(&area).and_then(Option::take);
                self.unmeasured(gpa, len.ok_or(IgvmError::Area(area))?)
            }
            Directive::Vcpu { gpa, index, state } => self.vcpu(gpa, index, state),
            Directive::IdBlock(block) => match self.id_block.replace(block) {
                None => Ok(()),
                Some(_) => Err(IgvmError::IdBlockTwice),
            },
            Directive::Other => Ok(()),
        }
    }

    fn load(&mut self, gpa: u64) -> Result<(), IgvmError> {
        if self.pages.len() == PAGES_MAX {
            return Err(IgvmError::TooLarge);
        }
        match self.pages.insert(gpa) {
            true => Ok(()),
            false => Err(IgvmError::Twice { gpa }),
        }
    }

    fn page(&mut self, gpa: u64, content: Content<'_>) -> Result<(), IgvmError> {
        self.load(gpa)?;
        let cloud_hypervisor = self.launch.loader == IgvmLoader::CloudHypervisor;
        if gpa == KERNEL_HASHES.0
            && let Some(boot) = &self.launch.direct_boot
        {
            let page = match content {
                Content::Data(data) => *data,
                Content::Zeros => [0; PAGE],
                _ => {
                    return Err(IgvmError::Loader(
                        "no page for data at 0x10000, where the kernel's hashes go",
                    ));
                }
            };
            self.context.normal_pages(gpa, &with_hashes(page, boot));
            return Ok(());
        }
        match content {
            Content::Data(data) => self.context.normal_pages(gpa, data),
            Content::Zeros if cloud_hypervisor => self.context.page(PageKind::Zero, gpa, [0; 48]),
            Content::Zeros => self.context.normal_pages(gpa, &[0; PAGE]),
            Content::Unmeasured => self.context.page(PageKind::Unmeasured, gpa, [0; 48]),
            Content::Secrets => self.context.page(PageKind::Secrets, gpa, [0; 48]),
            Content::CpuidXf if cloud_hypervisor => {
                return Err(IgvmError::Loader("a page of CPUID leaves that depend on XCR0"));
            }
            Content::Cpuid | Content::CpuidXf => self.context.page(PageKind::Cpuid, gpa, [0; 48]),
        }
        Ok(())
    }

    /// Parameters come from the host, and aren't measured.
    fn unmeasured(&mut self, gpa: u64, len: u64) -> Result<(), IgvmError> {
        if len / PAGE as u64 > PAGES_MAX as u64 {
            return Err(IgvmError::TooLarge);
        }
        for gpa in (gpa..gpa + len).step_by(PAGE) {
            if gpa == KERNEL_HASHES.0 && self.launch.direct_boot.is_some() {
                return Err(IgvmError::Loader(
                    "parameters at 0x10000, where the kernel's hashes go",
                ));
            }
            self.load(gpa)?;
            self.context.page(PageKind::Unmeasured, gpa, [0; 48]);
        }
        Ok(())
    }

    fn vcpu(&mut self, gpa: u64, index: u16, state: &'a [u8; PAGE]) -> Result<(), IgvmError> {
        if self.vcpus.insert(index, state).is_some() {
            return Err(IgvmError::VcpuTwice(index));
        }
        let launched = self.launch.vcpus.is_none_or(|vcpus| u32::from(index) < vcpus);
        match self.launch.loader {
            IgvmLoader::Format if launched => self.context.vmsa(gpa, state),
            IgvmLoader::Qemu if !vmsa::is_kvms(state) || gpa != VMSA_GPA || index != 0 => {
                return Err(IgvmError::Loader(
                    "with QEMU, only the first vCPU has a state, at 0xfffffffff000, with CR4.MCE and EFER.SVME set",
                ));
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(mut self, policy: Option<u64>) -> Result<IgvmMeasurement, IgvmError> {
        let loader = self.launch.loader;
        if loader == IgvmLoader::CloudHypervisor
            && let Some(boot) = &self.launch.direct_boot
            && !self.pages.contains(&KERNEL_HASHES.0)
        {
            self.context
                .normal_pages(KERNEL_HASHES.0, &with_hashes([0; PAGE], boot));
        }
        let first = *self.vcpus.get(&0).ok_or(IgvmError::NoVcpu(0))?;
        let guest_features = vmsa::guest_features(first);
        let last = self.vcpus.keys().last().map_or(0, |index| u32::from(*index));
        let vcpus = self.launch.vcpus.unwrap_or(last + 1);
        for index in 0..vcpus {
            let state = u16::try_from(index).ok().and_then(|index| self.vcpus.get(&index));
            let page = match (loader, state) {
                (IgvmLoader::Format, Some(_)) => continue, // where the file has it
                (IgvmLoader::Qemu, Some(state)) => **state,
                (IgvmLoader::Qemu, None) => {
                    vmsa::page(vmsa::BSP_EIP, guest_features, self.launch.vcpu, vmsa::Vmm::Qemu)
                }
                (IgvmLoader::CloudHypervisor, Some(state)) => vmsa::from_registers(state, guest_features | 1),
                (_, None) => return Err(IgvmError::NoVcpu(index)),
            };
            self.context.vmsa(VMSA_GPA, &page);
        }
        Ok(IgvmMeasurement {
            digest: self.context.digest,
            policy,
            guest_features,
            vcpus,
            pages: self.pages.len(),
            id_block: self
                .id_block
                .map(|block| IgvmIdBlock::read(block, policy.unwrap_or(0))),
        })
    }
}

fn with_hashes(mut page: [u8; PAGE], boot: &DirectBoot) -> [u8; PAGE] {
    let mut block = boot.table();
    block.resize(KERNEL_HASHES_LEN, 0);
    page[KERNEL_HASHES.1..][..KERNEL_HASHES_LEN].copy_from_slice(&block);
    page
}

impl IgvmIdBlock {
    fn read(block: &[u8; ID_BLOCK_LEN], policy: u64) -> Self {
        let [id_signature, id_key, author_signature, author_key] =
            [104..248, 248..400, 400..544, 544..696].map(|range| &block[range]);
        let version = &block[88..92];
        // What the key signs: digest, family, image, version, SVN, policy (AMD 56860, table "ID Block").
        let message = [&block[8..96], &policy.to_le_bytes()].concat();
        let id_key = chip_key(id_key);
        let author_key = (block[4] == 1).then(|| chip_key(author_key));
        let algorithm = |at: usize| block[at..at + 4] == [1, 0, 0, 0];
        let by_id_key = algorithm(96) && version == [1, 0, 0, 0] && holds(&id_key, &message, id_signature);
        let by_author = |key: &Vec<u8>| algorithm(100) && holds(key, &id_key, author_signature);
        Self {
            digest: part(block, 8),
            family_id: part(block, 56),
            image_id: part(block, 72),
            guest_svn: u32::from_le_bytes(part(block, 92)),
            id_key_digest: Sha384::digest(&id_key).into(),
            author_key_digest: author_key.as_ref().map(|key| Sha384::digest(key).into()),
            signed: by_id_key && author_key.as_ref().is_none_or(by_author),
        }
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| bytes[at + n])
}

/// A key as the chip gets it (AMD 56860, chapter 10): curve, X, Y, zeros; 1,028 bytes. The file has 4 bytes more behind the
/// curve.
fn chip_key(key: &[u8]) -> Vec<u8> {
    let mut chip_key = [&key[..4], &key[8..152]].concat();
    chip_key.resize(1028, 0);
    chip_key
}

/// Whether an ECDSA P-384 signature (R and S, little-endian, 72 bytes each) holds.
fn holds(chip_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    const P384: [u8; 4] = [2, 0, 0, 0];
    let numbers = |bytes: &[u8]| {
        let (number, rest) = bytes.split_at(48);
        let zero = rest[..24].iter().all(|byte| *byte == 0);
        zero.then(|| number.iter().rev().copied().collect::<Vec<u8>>())
    };
    let both = |bytes: &[u8]| Some([numbers(bytes)?, numbers(&bytes[72..])?].concat());
    let (Some(point), Some(signature)) = (both(&chip_key[4..]), both(signature)) else {
        return false;
    };
    chip_key[..4] == P384 && CRYPTO.p384_sha384(&[&[4][..], &point].concat(), message, &part(&signature, 0))
}
