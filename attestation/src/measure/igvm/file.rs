//! The IGVM file format, versions 1 and 2 (defined by the crate `igvm_defs`): a fixed header, structures of type, length
//! and value, and data that these point at. Read as far as an SEV-SNP guest's launch needs it.
//!
//! A parser of its own, since the crate `igvm` panics on odd files.

use super::super::PAGE;
use super::IgvmError;

const FILE_MAX: usize = 1 << 30;
const HEADER_MAX: usize = 32 << 20;
const HEADER_V1: usize = 24;
const HEADER_V2: usize = 32;
/// A structure that may be ignored by who doesn't know it.
const OPTIONAL: u32 = 1 << 31;
const PLATFORM_SEV_SNP: u8 = 2;
const FLAG_2_MIB: u32 = 1;
const FLAG_UNMEASURED: u32 = 2;

/// Types of structures (`IgvmVariableHeaderType`).
pub(super) mod kind {
    pub(in super::super) const SUPPORTED_PLATFORM: u32 = 0x1;
    pub(in super::super) const GUEST_POLICY: u32 = 0x101;
    pub(in super::super) const RELOCATABLE_REGION: u32 = 0x102;
    pub(in super::super) const VERSION_STRING: u32 = 0x107;
    pub(in super::super) const PARAMETER_AREA: u32 = 0x301;
    pub(in super::super) const PAGE_DATA: u32 = 0x302;
    pub(in super::super) const PARAMETER_INSERT: u32 = 0x303;
    pub(in super::super) const VP_CONTEXT: u32 = 0x304;
    pub(in super::super) const REQUIRED_MEMORY: u32 = 0x305;
    pub(in super::super) const VP_COUNT: u32 = 0x307;
    pub(in super::super) const SNP_ID_BLOCK: u32 = 0x30b;
    pub(in super::super) const MEMORY_MAP: u32 = 0x30c;
    pub(in super::super) const ERROR_RANGE: u32 = 0x30d;
    pub(in super::super) const COMMAND_LINE: u32 = 0x30e;
    pub(in super::super) const VBS_MEASUREMENT: u32 = 0x311;
    pub(in super::super) const ENVIRONMENT_INFO: u32 = 0x313;
}

/// What a page holds when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    Data(&'a [u8; PAGE]),
    Zeros,
    Unmeasured,
    Secrets,
    Cpuid,
    /// CPUID leaves that depend on XCR0 and XSS.
    CpuidXf,
}

/// What the loader is to do, in this order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Directive<'a> {
    Page {
        gpa: u64,
        content: Content<'a>,
    },
    /// Memory that is filled by `Parameter`s, and loaded by `Insert`.
    Area {
        index: u32,
        len: u64,
    },
    Parameter {
        area: u32,
    },
    Insert {
        gpa: u64,
        area: u32,
    },
    Vcpu {
        gpa: u64,
        index: u16,
        state: &'a [u8; PAGE],
    },
    IdBlock(&'a [u8; ID_BLOCK_LEN]),
    /// Nothing that is loaded.
    Other,
}

pub(super) const ID_BLOCK_LEN: usize = 696;

/// The parts of a file that are for SEV-SNP.
#[derive(Debug)]
pub(super) struct IgvmFile<'a> {
    pub(super) policy: Option<u64>,
    /// It serves other platforms, too.
    pub(super) many_platforms: bool,
    /// With the type of each.
    pub(super) directives: Vec<(u32, Directive<'a>)>,
}

/// The three sections of a header, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Platforms,
    Initialization,
    Directives,
}

/// One structure, and where it lies.
#[derive(Clone, Copy)]
struct Structure<'a> {
    at: usize,
    kind: u32,
    value: &'a [u8],
}

impl<'a> IgvmFile<'a> {
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, IgvmError> {
        let (headers, data_start) = headers(file)?;
        let structures = structures(headers, data_start - headers.len())?;
        let structures = &structures;
        let section = |section| structures.iter().filter(move |one| one.section() == section);
        let mask = snp_mask(section(Section::Platforms))?;
        let mut parsed = Self {
            policy: None,
            many_platforms: section(Section::Platforms).count() > 1,
            directives: Vec::new(),
        };
        for structure in section(Section::Initialization) {
            parsed.initialization(structure, mask)?;
        }
        for structure in section(Section::Directives) {
            match Directive::parse(structure, mask, file, data_start)? {
                Some(directive) => parsed.directives.push((structure.kind, directive)),
                None if parsed.many_platforms => {}
                None => return Err(malformed(structure.at, "a structure for no platform")),
            }
        }
        Ok(parsed)
    }

    fn initialization(&mut self, structure: &Structure<'_>, mask: u32) -> Result<(), IgvmError> {
        match structure.kind {
            kind::GUEST_POLICY => {
                let value = structure.sized::<16>()?;
                if u32_at(value, 8) & mask == 0 {
                    return Ok(());
                }
                match self.policy.replace(u64_at(value, 0)) {
                    None => Ok(()),
                    Some(_) => Err(malformed(structure.at, "a second guest policy")),
                }
            }
            // Where a loader may move it to, and documents about it.
            kind::RELOCATABLE_REGION..=kind::VERSION_STRING => Ok(()),
            _ => Err(structure.unknown()),
        }
    }
}

impl<'a> Directive<'a> {
    /// `None`: for other platforms.
    fn parse(
        structure: &Structure<'a>,
        mask: u32,
        file: &'a [u8],
        data_start: usize,
    ) -> Result<Option<Self>, IgvmError> {
        let at = structure.at;
        let ours = |other: u32| other & mask != 0;
        let page_aligned = |gpa: u64| {
            (gpa.is_multiple_of(PAGE as u64) && gpa < 1 << 52)
                .then_some(gpa)
                .ok_or(malformed(at, "an address that is no page's"))
        };
        let page_at = |offset: u32| {
            let offset = offset as usize;
            file.get(offset..)
                .filter(|_| offset >= data_start)
                .and_then(<[u8]>::first_chunk::<PAGE>)
                .ok_or(malformed(at, "data that lie outside of the file's"))
        };
        Ok(Some(match structure.kind {
            kind::PAGE_DATA => {
                let value = structure.sized::<24>()?;
                if !ours(u32_at(value, 8)) {
                    return Ok(None);
                }
                let (offset, flags) = (u32_at(value, 12), u32_at(value, 16));
                let data = (offset != 0).then(|| page_at(offset)).transpose()?;
                if flags & FLAG_2_MIB != 0 {
                    return Err(malformed(at, "a page of 2 MiB: no loader takes these"));
                }
                if flags & !FLAG_UNMEASURED != 0 {
                    return Err(malformed(at, "a page that is shared, or has unknown flags"));
                }
                let content = match (u32_at(value, 20), data) {
                    (0, _) if flags & FLAG_UNMEASURED != 0 => Content::Unmeasured,
                    (0, Some(data)) => Content::Data(data),
                    (0, None) => Content::Zeros,
                    (1, _) => Content::Secrets,
                    (2, _) => Content::Cpuid,
                    (3, _) => Content::CpuidXf,
                    _ => return Err(malformed(at, "a page of an unknown type")),
                };
                let gpa = page_aligned(u64_at(value, 0))?;
                Self::Page { gpa, content }
            }
            kind::PARAMETER_AREA => {
                let value = structure.sized::<16>()?;
                Self::Area {
                    len: page_aligned(u64_at(value, 0))?,
                    index: u32_at(value, 8),
                }
            }
            kind::PARAMETER_INSERT => {
                let value = structure.sized::<16>()?;
                if !ours(u32_at(value, 8)) {
                    return Ok(None);
                }
                Self::Insert {
                    gpa: page_aligned(u64_at(value, 0))?,
                    area: u32_at(value, 12),
                }
            }
            kind::VP_CONTEXT => {
                let value = structure.sized::<20>()?;
                if !ours(u32_at(value, 8)) {
                    return Ok(None);
                }
                Self::Vcpu {
                    gpa: page_aligned(u64_at(value, 0))?,
                    index: u16::from_le_bytes([value[16], value[17]]),
                    state: page_at(u32_at(value, 12))?,
                }
            }
            kind::SNP_ID_BLOCK => {
                let value = structure.sized::<ID_BLOCK_LEN>()?;
                if !ours(u32_at(value, 0)) {
                    return Ok(None);
                }
                Self::IdBlock(value)
            }
            kind::REQUIRED_MEMORY => {
                let value = structure.sized::<24>()?;
                if !ours(u32_at(value, 8)) {
                    return Ok(None);
                }
                page_aligned(u64_at(value, 0))?;
                Self::Other
            }
            kind::ERROR_RANGE => {
                let value = structure.sized::<16>()?;
                if !ours(u32_at(value, 8)) {
                    return Ok(None);
                }
                Self::Other
            }
            kind::VBS_MEASUREMENT => match structure.value.first_chunk::<4>() {
                Some(other) if !ours(u32::from_le_bytes(*other)) => return Ok(None),
                _ => return Err(malformed(at, "Hyper-V's measurement for SEV-SNP")),
            },
            kind::VP_COUNT..=kind::ENVIRONMENT_INFO => {
                let value = structure.sized::<8>()?;
                Self::Parameter {
                    area: u32_at(value, 0),
                }
            }
            _ => return Err(structure.unknown()),
        }))
    }
}

impl<'a> Structure<'a> {
    /// The value, if it has that length.
    fn sized<const N: usize>(&self) -> Result<&'a [u8; N], IgvmError> {
        let value = self.value.try_into();
        value.map_err(|_| malformed(self.at, "a structure of an impossible length"))
    }

    fn section(&self) -> Section {
        match self.kind {
            0x1..=0x100 => Section::Platforms,
            0x101..=0x200 => Section::Initialization,
            _ => Section::Directives,
        }
    }

    fn unknown(&self) -> IgvmError {
        IgvmError::Unknown {
            kind: self.kind,
            at: self.at,
        }
    }
}

fn malformed(at: usize, what: &'static str) -> IgvmError {
    IgvmError::Malformed { at, what }
}

/// Of a value whose length is known.
fn u32_at(value: &[u8], at: usize) -> u32 {
    value[at..]
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(value: &[u8], at: usize) -> u64 {
    value[at..]
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The structures' bytes, and where the data begin.
fn headers(file: &[u8]) -> Result<(&[u8], usize), IgvmError> {
    if !file.starts_with(b"IGVM") {
        return Err(IgvmError::NotIgvm);
    }
    if file.len() < HEADER_V1 || file.len() > FILE_MAX {
        return Err(IgvmError::Length { len: file.len() });
    }
    let fixed_len = match u32_at(file, 4) {
        1 => HEADER_V1,
        2 if file.len() < HEADER_V2 => return Err(IgvmError::Length { len: file.len() }),
        2 if (u32_at(file, 24), u32_at(file, 28)) == (0, PAGE as u32) => HEADER_V2,
        2 => return Err(IgvmError::Architecture),
        version => return Err(IgvmError::Version(version)),
    };
    let (start, len) = (u32_at(file, 8) as usize, u32_at(file, 12) as usize);
    if u32_at(file, 16) as usize != file.len() {
        return Err(malformed(16, "it has another length than its header says"));
    }
    if start < fixed_len || !start.is_multiple_of(8) || len > HEADER_MAX {
        return Err(malformed(8, "structures that lie nowhere, or too many of them"));
    }
    let headers = file
        .get(start..start + len)
        .ok_or(malformed(8, "structures that end behind the file"))?;
    let mut crc = Crc32::default();
    crc.update(&file[..20]);
    crc.update(&[0; 4]);
    crc.update(&file[HEADER_V1..fixed_len]);
    crc.update(headers);
    if crc.finish() != u32_at(file, 20) {
        return Err(IgvmError::Checksum);
    }
    Ok((headers, start + len))
}

/// Cuts them, in the order that the format asks for: platforms, initialization, directives. Ones that may be ignored are
/// left out.
fn structures(headers: &[u8], start: usize) -> Result<Vec<Structure<'_>>, IgvmError> {
    let mut structures: Vec<Structure<'_>> = Vec::new();
    let mut rest = headers;
    while !rest.is_empty() {
        let at = start + headers.len() - rest.len();
        let (head, behind) = rest
            .split_first_chunk::<8>()
            .ok_or(malformed(at, "half a structure"))?;
        let (kind, len) = (u32_at(head, 0), u32_at(head, 4) as usize);
        let value = behind
            .get(..len)
            .ok_or(malformed(at, "a structure that ends behind the others"))?;
        let padding = behind[len..]
            .get(..len.next_multiple_of(8) - len)
            .ok_or(malformed(at, "a structure without its padding"))?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(malformed(at, "padding that isn't zero"));
        }
        rest = &behind[len + padding.len()..];
        if kind & OPTIONAL != 0 {
            continue;
        }
        let structure = Structure { at, kind, value };
        if structures
            .last()
            .is_some_and(|last| last.section() > structure.section())
        {
            return Err(malformed(at, "a structure in the wrong section"));
        }
        structures.push(structure);
    }
    Ok(structures)
}

/// The bit that marks what is for SEV-SNP.
fn snp_mask<'s, 'a: 's>(platforms: impl Iterator<Item = &'s Structure<'a>>) -> Result<u32, IgvmError> {
    let (mut snp, mut all) = (None, 0);
    for platform in platforms {
        if platform.kind != kind::SUPPORTED_PLATFORM {
            return Err(platform.unknown());
        }
        let value = platform.sized::<16>()?;
        let mask = u32_at(value, 0);
        if !mask.is_power_of_two() || all & mask != 0 {
            return Err(malformed(platform.at, "a platform without a bit of its own"));
        }
        all |= mask;
        if value[5] == PLATFORM_SEV_SNP && snp.replace(mask).is_some() {
            return Err(malformed(platform.at, "SEV-SNP twice"));
        }
    }
    snp.ok_or(IgvmError::NotSnp)
}

/// CRC-32 as in gzip.
struct Crc32(u32);

impl Default for Crc32 {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut n = 0;
        while n < 256 {
            let mut value = n as u32;
            let mut bit = 0;
            while bit < 8 {
                value = value >> 1 ^ (value & 1).wrapping_neg() & 0xedb8_8320;
                bit += 1;
            }
            table[n] = value;
            n += 1;
        }
        table
    };

    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 >> 8 ^ Self::TABLE[((self.0 ^ u32::from(*byte)) & 0xff) as usize];
        }
    }

    fn finish(&self) -> u32 {
        !self.0
    }
}
