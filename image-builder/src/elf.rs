//! The little of ELF that the builder must know: is a binary static, and what does a kernel module say about itself.
//!
//! Format: System V ABI, ELF-64 object file format. Every offset comes from the file and is checked.

/// Why bytes aren't a usable 64-bit little-endian ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not ELF, not 64 bits, not little-endian.
    #[error("not a 64-bit little-endian ELF file")]
    Kind,
    /// A header points outside the file.
    #[error("the ELF file is cut off or damaged")]
    Damaged,
}

const PT_INTERP: u64 = 3;

fn number(bytes: &[u8], at: u64, width: usize) -> Result<u64, ElfError> {
    let at = usize::try_from(at).map_err(|_| ElfError::Damaged)?;
    let field = at
        .checked_add(width)
        .and_then(|end| bytes.get(at..end))
        .ok_or(ElfError::Damaged)?;
    Ok(field
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn check_kind(bytes: &[u8]) -> Result<(), ElfError> {
    if bytes.get(..6) == Some(b"\x7fELF\x02\x01") {
        Ok(())
    } else {
        Err(ElfError::Kind)
    }
}

/// Whether the program needs a dynamic loader, which a static image hasn't.
pub fn needs_loader(bytes: &[u8]) -> Result<bool, ElfError> {
    check_kind(bytes)?;
    let (table, size, count) = (
        number(bytes, 32, 8)?,
        number(bytes, 54, 2)?,
        number(bytes, 56, 2)?,
    );
    for index in 0..count {
        let header = table.checked_add(index * size).ok_or(ElfError::Damaged)?;
        if number(bytes, header, 4)? == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The content of the section called `name`, if there is one.
pub fn section<'a>(bytes: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, ElfError> {
    check_kind(bytes)?;
    let table = number(bytes, 40, 8)?;
    let (size, count, names) = (
        number(bytes, 58, 2)?,
        number(bytes, 60, 2)?,
        number(bytes, 62, 2)?,
    );
    let header = |index: u64| table.checked_add(index * size).ok_or(ElfError::Damaged);
    let content = |index: u64| -> Result<&'a [u8], ElfError> {
        let header = header(index)?;
        let (start, length) = (number(bytes, header + 24, 8)?, number(bytes, header + 32, 8)?);
        let start = usize::try_from(start).map_err(|_| ElfError::Damaged)?;
        let length = usize::try_from(length).map_err(|_| ElfError::Damaged)?;
        start
            .checked_add(length)
            .and_then(|end| bytes.get(start..end))
            .ok_or(ElfError::Damaged)
    };
    let strings = content(names)?;
    for index in 0..count {
        let at = usize::try_from(number(bytes, header(index)?, 4)?).map_err(|_| ElfError::Damaged)?;
        let text = strings.get(at..).ok_or(ElfError::Damaged)?;
        if text
            .strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
        {
            return content(index).map(Some);
        }
    }
    Ok(None)
}

/// The names of the libraries that a program or library needs (`DT_NEEDED`).
pub fn needed(bytes: &[u8]) -> Result<Vec<String>, ElfError> {
    const DT_NEEDED: u64 = 1;
    let (Some(dynamic), Some(strings)) = (section(bytes, ".dynamic")?, section(bytes, ".dynstr")?) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in dynamic.chunks_exact(16) {
        if number(entry, 0, 8)? == DT_NEEDED {
            let at = usize::try_from(number(entry, 8, 8)?).map_err(|_| ElfError::Damaged)?;
            let name = strings.get(at..).ok_or(ElfError::Damaged)?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            names.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_the_c_library() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        assert!(needed(&bytes).unwrap().contains(&"libc.so.6".to_owned()));
    }

    #[test]
    fn this_test_is_dynamic_and_has_a_text_section() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(needs_loader(&bytes), Ok(true));
        assert!(
            section(&bytes, ".text")
                .unwrap()
                .is_some_and(|text| text.len() > 1000)
        );
        assert_eq!(section(&bytes, ".tex"), Ok(None));
    }

    #[test]
    fn damaged_files_are_errors_wherever_they_are_cut() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(needs_loader(b"#!/bin/sh\n"), Err(ElfError::Kind));
        for length in 0..512 {
            // The program headers may be whole already; the section table stands at the very end.
            let _ = needs_loader(&bytes[..length]);
            assert!(section(&bytes[..length], ".text").is_err(), "cut at {length}");
        }
        let mut wild = bytes[..64].to_vec();
        wild[40..48].fill(0xff);
        assert_eq!(section(&wild, ".text"), Err(ElfError::Damaged));
    }
}
