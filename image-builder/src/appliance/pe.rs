//! The little of PE/COFF that measuring a unified kernel image needs: its sections, and its Authenticode digest.
//!
//! Formats: Microsoft "PE Format" and "Windows Authenticode Portable Executable Signature Format"; for the kernel image
//! "UAPI.5 Unified Kernel Image". Every offset comes from the file and is checked.

use sha2::{Digest, Sha256};

/// Why bytes aren't a usable PE file for x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a PE32+ file, or a damaged one")]
pub struct PeError;

/// One section: name and content, as long as it is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// The name, such as `.cmdline`.
    pub name: &'a str,
    /// The content.
    pub content: &'a [u8],
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<usize, PeError> {
    let field = at
        .checked_add(N)
        .and_then(|end| bytes.get(at..end))
        .ok_or(PeError)?;
    Ok(field
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

/// Offset of the PE header.
fn header(file: &[u8]) -> Result<usize, PeError> {
    let header = number::<4>(file, 0x3c)?;
    let magic = file.get(header..).and_then(|rest| rest.get(..4)) == Some(b"PE\0\0");
    if file.starts_with(b"MZ") && magic && number::<2>(file, header + 24)? == 0x20b {
        Ok(header)
    } else {
        Err(PeError)
    }
}

/// All sections in the order of the file.
pub fn sections(file: &[u8]) -> Result<Vec<Section<'_>>, PeError> {
    let header = header(file)?;
    let count = number::<2>(file, header + 6)?;
    let table = header + 24 + number::<2>(file, header + 20)?;
    (0..count)
        .map(|index| {
            let at = table + index * 40;
            let name = file.get(at..at + 8).ok_or(PeError)?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let (size, raw, start) = (
                number::<4>(file, at + 8)?,
                number::<4>(file, at + 16)?,
                number::<4>(file, at + 20)?,
            );
            let content = start
                .checked_add(size.min(raw))
                .and_then(|end| file.get(start..end));
            Ok(Section {
                name: std::str::from_utf8(name).map_err(|_| PeError)?,
                content: content.ok_or(PeError)?,
            })
        })
        .collect()
}

/// SHA-256 over the file without its checksum and its signatures: what signatures sign, and what firmware measures when
/// it starts the program.
pub fn authenticode(file: &[u8]) -> Result<[u8; 32], PeError> {
    let header = header(file)?;
    let checksum = header + 24 + 64;
    // The fifth data directory, behind 112 bytes of the optional header.
    let directory = header + 24 + 112 + 4 * 8;
    let (start, size) = (number::<4>(file, directory)?, number::<4>(file, directory + 4)?);
    let (end, rest) = if start == 0 || size == 0 {
        (file.len(), &[][..])
    } else {
        let behind = start
            .checked_add(size)
            .and_then(|end| file.get(end..))
            .ok_or(PeError)?;
        (start, behind)
    };
    let mut hash = Sha256::new();
    for part in [0..checksum, checksum + 4..directory, directory + 8..end] {
        hash.update(file.get(part).ok_or(PeError)?);
    }
    hash.update(rest);
    // A file is signed as if it ended at a multiple of 8 bytes.
    if rest.is_empty() && end == file.len() {
        hash.update(vec![0; end.next_multiple_of(8) - end]);
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE32+ file with two sections, and room for a signature at the end.
    fn file() -> Vec<u8> {
        let mut file = vec![0u8; 0x400];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x40;
        file[0x40..0x44].copy_from_slice(b"PE\0\0");
        file[0x46] = 2;
        file[0x54] = 240;
        file[0x58..0x5a].copy_from_slice(&0x20bu16.to_le_bytes());
        for (index, (name, content)) in [(".osrel", "os"), (".cmdline", "quiet")].iter().enumerate() {
            let at = 0x58 + 240 + index * 40;
            file[at..at + name.len()].copy_from_slice(name.as_bytes());
            let start = 0x200 + index * 0x100;
            file[at + 8] = content.len() as u8;
            file[at + 16..at + 20].copy_from_slice(&0x100u32.to_le_bytes());
            file[at + 20..at + 24].copy_from_slice(&(start as u32).to_le_bytes());
            file[start..start + content.len()].copy_from_slice(content.as_bytes());
        }
        file
    }

    #[test]
    fn sections_are_as_long_as_in_memory() {
        let file = file();
        let sections: Vec<_> = sections(&file)
            .unwrap()
            .iter()
            .map(|s| (s.name, s.content))
            .collect();
        assert_eq!(sections, [(".osrel", &b"os"[..]), (".cmdline", b"quiet")]);
    }

    #[test]
    fn the_digest_leaves_out_checksum_and_signature_and_nothing_else() {
        let plain = file();
        let digest = authenticode(&plain).unwrap();
        let mut signed = plain.clone();
        signed[0x58 + 64] = 7;
        signed[0x58 + 144..0x58 + 148].copy_from_slice(&0x400u32.to_le_bytes());
        signed[0x58 + 148] = 16;
        signed.extend([9; 16]);
        assert_eq!(authenticode(&signed), Ok(digest));
        for at in [0x10, 0x58 + 63, 0x58 + 68, 0x201, 0x3ff] {
            let mut other = signed.clone();
            other[at] ^= 1;
            assert_ne!(authenticode(&other), Ok(digest), "byte {at:#x}");
        }
    }

    #[test]
    fn damaged_files_are_errors_wherever_they_are_cut() {
        let file = file();
        for length in 0..0x300 {
            assert_eq!(sections(&file[..length]), Err(PeError), "cut at {length}");
        }
        let mut wild = file.clone();
        wild[0x3c..0x40].fill(0xff);
        assert_eq!(authenticode(&wild), Err(PeError));
    }
}
