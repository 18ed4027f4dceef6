//! Reading the TPM's structures: big-endian numbers, and sized buffers that say their length (TPM 2.0 Part 2, "TPM2B").

/// Why bytes are not the structure that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{structure}: {what}")]
pub struct WireError {
    /// Which structure: `TPMS_ATTEST`, ….
    pub structure: &'static str,
    /// What is wrong.
    pub what: String,
}

/// A cursor over one structure. What it gives out borrows from the bytes: nothing is allocated on a length's word.
pub(super) struct Reader<'a> {
    structure: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(structure: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            structure,
            rest: bytes,
        }
    }

    pub(super) fn wrong(&self, what: impl Into<String>) -> WireError {
        WireError {
            structure: self.structure,
            what: what.into(),
        }
    }

    pub(super) fn take(&mut self, len: usize, field: &str) -> Result<&'a [u8], WireError> {
        match self.rest.split_at_checked(len) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(self.wrong(format!(
                "`{field}` needs {len} bytes and {} are left",
                self.rest.len()
            ))),
        }
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, field)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self, field: &str) -> Result<u8, WireError> {
        self.array(field).map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self, field: &str) -> Result<u16, WireError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, field: &str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, field: &str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// A TPM2B: its length, then its content of at most `max` bytes.
    pub(super) fn sized(&mut self, max: usize, field: &str) -> Result<&'a [u8], WireError> {
        let len = usize::from(self.u16(field)?);
        if len > max {
            return Err(self.wrong(format!("`{field}` has {len} bytes (at most {max})")));
        }
        self.take(len, field)
    }

    /// Nothing may be left over.
    pub(super) fn finish(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            len => Err(self.wrong(format!("{len} bytes behind its end"))),
        }
    }
}
