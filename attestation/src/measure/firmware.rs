//! What OVMF says about itself to a VMM: the table of GUIDs at its end (edk2, `OvmfPkg/ResetVector`), with the SEV
//! metadata that names the pages to add before the launch.

use super::{PAGE, SECTION_LEN_MAX, guid_bytes};

const FOOTER: [u8; 16] = guid_bytes(0x96b582de_1fb2_45f7_baea_a366c55a082d);
const HASH_TABLE: [u8; 16] = guid_bytes(0x7255371f_3a3b_4b04_927b_1da6efa8d454);
const RESET_BLOCK: [u8; 16] = guid_bytes(0x00f771de_1a7e_4fcb_890e_68c77e2fb44e);
const SEV_METADATA: [u8; 16] = guid_bytes(0xdc886566_984a_4798_a75e_5585a7bf67cc);
/// The reset vector lies behind the table.
const TABLE_END: usize = 32;
const ENTRY_HEAD: usize = 18;
const SECTIONS_MAX: u32 = 64;
const LEN_MAX: usize = 64 << 20;

/// Bytes that are no firmware for SNP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FirmwareError {
    /// Not whole pages, or too large.
    #[error("{len} bytes: expected whole pages, at most 64 MiB")]
    Length {
        /// Bytes found.
        len: usize,
    },
    /// No table at its end.
    #[error("no OVMF table at its end: not an OVMF image, or its variables file is appended")]
    NoTable,
    /// A table that contradicts itself.
    #[error("a malformed OVMF table")]
    Table,
    /// No SEV metadata.
    #[error("no SEV metadata: this build of OVMF can't launch an SNP guest")]
    NoMetadata,
    /// Metadata that contradict themselves.
    #[error("malformed SEV metadata (section {section})")]
    Metadata {
        /// Which one.
        section: u32,
    },
    /// A hash page without a place for the hashes.
    #[error("a section for kernel hashes, but no place in it for the table")]
    HashTable,
}

/// What a section is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SectionKind {
    Memory,
    Secrets,
    Cpuid,
    SvsmCaa,
    KernelHashes,
}

/// Pages to add before the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) gpa: u32,
    pub(super) len: u32,
    pub(super) kind: SectionKind,
}

/// An OVMF image with SEV metadata.
pub(super) struct Firmware<'a> {
    image: &'a [u8],
    ap_eip: u32,
    hash_table_gpa: u32,
    sections: Vec<Section>,
}

impl<'a> Firmware<'a> {
    pub(super) fn parse(image: &'a [u8]) -> Result<Self, FirmwareError> {
        if image.is_empty() || !image.len().is_multiple_of(PAGE) || image.len() > LEN_MAX {
            return Err(FirmwareError::Length { len: image.len() });
        }
        let entries = table(image)?;
        let find = |guid| {
            entries
                .iter()
                .find(|(known, _)| *known == guid)
                .map(|(_, data)| *data)
        };
        let number = |guid| find(guid).and_then(|data| u32_at(data, 0));
        let ap_eip = number(RESET_BLOCK).ok_or(FirmwareError::NoMetadata)?;
        let offset = number(SEV_METADATA).ok_or(FirmwareError::NoMetadata)? as usize;
        let start = image.len().checked_sub(offset).ok_or(FirmwareError::Table)?;
        Ok(Self {
            image,
            ap_eip,
            hash_table_gpa: number(HASH_TABLE).unwrap_or(0),
            sections: sections(&image[start..])?,
        })
    }

    /// It ends at 4 GiB.
    pub(super) fn gpa(&self) -> u64 {
        (1 << 32) - self.image.len() as u64
    }

    /// Where all vCPUs but the first start.
    pub(super) fn ap_eip(&self) -> u32 {
        self.ap_eip
    }

    pub(super) fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Where in its page the table of kernel hashes lies.
    pub(super) fn hash_table_offset(&self) -> Result<usize, FirmwareError> {
        match self.hash_table_gpa as usize {
            0 => Err(FirmwareError::HashTable),
            gpa => Ok(gpa % PAGE),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The data of one entry of the table, if it is there.
pub(super) fn entry(image: &[u8], guid: [u8; 16]) -> Result<Option<&[u8]>, FirmwareError> {
    if image.len() < PAGE || !image.len().is_multiple_of(PAGE) || image.len() > LEN_MAX {
        return Err(FirmwareError::Length { len: image.len() });
    }
    let found = table(image)?.into_iter().find(|(known, _)| *known == guid);
    Ok(found.map(|(_, data)| data))
}

/// GUID and data.
type Entry<'a> = ([u8; 16], &'a [u8]);

/// The entries, from the last to the first; each is its data, its whole length (u16), its GUID.
fn table(image: &[u8]) -> Result<Vec<Entry<'_>>, FirmwareError> {
    let end = image.len() - TABLE_END;
    let (rest, len, guid) = entry_head(&image[..end]).ok_or(FirmwareError::NoTable)?;
    if guid != FOOTER {
        return Err(FirmwareError::NoTable);
    }
    let mut rest = len
        .checked_sub(ENTRY_HEAD)
        .and_then(|len| rest.get(rest.len().checked_sub(len)?..))
        .ok_or(FirmwareError::Table)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (before, len, guid) = entry_head(rest).ok_or(FirmwareError::Table)?;
        let start = rest
            .len()
            .checked_sub(len)
            .filter(|_| len >= ENTRY_HEAD)
            .ok_or(FirmwareError::Table)?;
        entries.push((guid, &before[start..]));
        rest = &rest[..start];
    }
    Ok(entries)
}

fn entry_head(bytes: &[u8]) -> Option<(&[u8], usize, [u8; 16])> {
    let (rest, guid) = bytes.split_last_chunk::<16>()?;
    let (rest, len) = rest.split_last_chunk::<2>()?;
    Some((rest, u16::from_le_bytes(*len).into(), *guid))
}

fn sections(metadata: &[u8]) -> Result<Vec<Section>, FirmwareError> {
    let header = |at| u32_at(metadata, at).ok_or(FirmwareError::Metadata { section: 0 });
    let count = header(12)?;
    if !metadata.starts_with(b"ASEV") || header(8)? != 1 || count > SECTIONS_MAX {
        return Err(FirmwareError::Metadata { section: 0 });
    }
    let section = |n: u32| {
        let at = 16 + 12 * n as usize;
        let (gpa, len) = (u32_at(metadata, at)?, u32_at(metadata, at + 4)?);
        let kind = match u32_at(metadata, at + 8)? {
            1 => SectionKind::Memory,
            2 => SectionKind::Secrets,
            3 => SectionKind::Cpuid,
            4 => SectionKind::SvsmCaa,
            0x10 => SectionKind::KernelHashes,
            _ => return None,
        };
        let whole = (gpa | len).is_multiple_of(PAGE as u32) && (1..=SECTION_LEN_MAX).contains(&len);
        let one = len as usize == PAGE || kind != SectionKind::KernelHashes;
        (whole && one && gpa.checked_add(len).is_some()).then_some(Section { gpa, len, kind })
    };
    (0..count)
        .map(|n| section(n).ok_or(FirmwareError::Metadata { section: n }))
        .collect()
}
