//! EFI images (PE/COFF): their Authenticode digest, and the sections of a unified kernel image.
//!
//! Formats: Microsoft, "PE Format"; "Windows Authenticode Portable Executable Signature Format", "Calculating the PE Image
//! Hash"; as edk2's `DxeTpmMeasureBootLib` does it.

use sha2::{Digest, Sha384};

const SECTIONS_MAX: u16 = 96;
const SECTION_LEN: usize = 40;
/// Index of the certificate table among the data directories: where signatures lie, which no digest covers.
const SECURITY: u32 = 4;

/// Why bytes are no EFI image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeError {
    /// No PE image at all.
    #[error("not an EFI image (PE/COFF)")]
    NotPe,
    /// Headers that contradict each other or the file's length.
    #[error("a malformed EFI image: {0}")]
    Malformed(&'static str),
}

struct Section {
    name: [u8; 8],
    virtual_len: usize,
    raw_start: usize,
    raw_len: usize,
}

/// An EFI image whose headers make sense.
pub(super) struct Pe<'a> {
    image: &'a [u8],
    checksum: usize,
    /// Where the certificate table's directory entry lies, if there is one.
    security: Option<usize>,
    headers_len: usize,
    certificates_len: usize,
    sections: Vec<Section>,
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, PeError> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().map(u16::from_le_bytes).ok_or(PeError::NotPe)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize, PeError> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    Ok(found.copied().map(u32::from_le_bytes).ok_or(PeError::NotPe)? as usize)
}

impl<'a> Pe<'a> {
    pub(super) fn parse(image: &'a [u8]) -> Result<Self, PeError> {
        if !image.starts_with(b"MZ") {
            return Err(PeError::NotPe);
        }
        let pe = u32_at(image, 0x3c)?;
        if image.get(pe..).is_none_or(|rest| !rest.starts_with(b"PE\0\0")) {
            return Err(PeError::NotPe);
        }
        let coff = pe + 4;
        let (count, optional_len) = (u16_at(image, coff + 2)?, usize::from(u16_at(image, coff + 16)?));
        if count > SECTIONS_MAX {
            return Err(PeError::Malformed("too many sections"));
        }
        let optional = coff + 20;
        let directories = match u16_at(image, optional)? {
            0x10b => optional + 92,
            0x20b => optional + 108,
            _ => return Err(PeError::NotPe),
        };
        let checksum = optional + 64;
        let headers_len = u32_at(image, optional + 60)?;
        let entry = directories + 4 + 8 * SECURITY as usize;
        let security = (u32_at(image, directories)? > SECURITY as usize).then_some(entry);
        let certificates_len = security.map_or(Ok(0), |entry| u32_at(image, entry + 4))?;
        if headers_len > image.len() || headers_len < security.map_or(checksum + 4, |entry| entry + 8) {
            return Err(PeError::Malformed("SizeOfHeaders"));
        }
        let section = |n: usize| {
            let at = optional + optional_len + SECTION_LEN * n;
            let name = image
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .ok_or(PeError::NotPe)?;
            let (raw_start, raw_len) = (u32_at(image, at + 20)?, u32_at(image, at + 16)?);
            if raw_start + raw_len > image.len() {
                return Err(PeError::Malformed("a section behind the end of the file"));
            }
            Ok(Section {
                name: *name,
                virtual_len: u32_at(image, at + 8)?,
                raw_start,
                raw_len,
            })
        };
        let sections = (0..count.into()).map(section).collect::<Result<_, _>>()?;
        Ok(Self {
            image,
            checksum,
            security,
            headers_len,
            certificates_len,
            sections,
        })
    }

    /// SHA-384 of everything but the checksum and the signatures.
    pub(super) fn authenticode(&self) -> Result<[u8; 48], PeError> {
        let mut sha = Sha384::new();
        sha.update(&self.image[..self.checksum]);
        match self.security {
            Some(entry) => {
                sha.update(&self.image[self.checksum + 4..entry]);
                sha.update(&self.image[entry + 8..self.headers_len]);
            }
            None => sha.update(&self.image[self.checksum + 4..self.headers_len]),
        }
        let mut ordered: Vec<&Section> = self
            .sections
            .iter()
            .filter(|section| section.raw_len > 0)
            .collect();
        ordered.sort_by_key(|section| section.raw_start);
        let mut hashed = self.headers_len;
        for section in ordered {
            sha.update(&self.image[section.raw_start..section.raw_start + section.raw_len]);
            hashed += section.raw_len;
        }
        if hashed < self.image.len() {
            let end = self
                .image
                .len()
                .checked_sub(self.certificates_len)
                .filter(|end| *end >= hashed);
            let end = end.ok_or(PeError::Malformed(
                "a certificate table that is longer than the rest",
            ))?;
            sha.update(&self.image[hashed..end]);
        }
        Ok(sha.finalize().into())
    }

    /// A section's content as it lies in memory, without padding.
    pub(super) fn section(&self, name: &str) -> Option<&'a [u8]> {
        let found = self.sections.iter().find(|section| {
            let len = section
                .name
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(section.name.len());
            section.name[..len] == *name.as_bytes()
        })?;
        let len = found.virtual_len.min(found.raw_len);
        self.image.get(found.raw_start..found.raw_start + len)
    }
}
