//! The attestation report: an SPDM 1.1 exchange (DMTF DSP0274), `GET_MEASUREMENTS` ‖ `MEASUREMENTS`, as the device's
//! driver hands it out. The device's key signs everything in front of the signature.
//!
//! ```text
//! request   0x11 0xe0 attributes=1 operation=0xff nonce[32] slot                                37 bytes
//! response  0x11 0x60 0 slot blocks record-length[3] record nonce[32] opaque-length[2] opaque signature[96]
//! record    blocks × { index, 1 (DMTF), size[2], { type, size[2], value } }                     little-endian
//! opaque    { type[2], size[2], value }*                                                        see `opaque`
//! ```

use super::opaque::Opaque;

/// The longest report. Real ones have about 4 KiB.
pub const REPORT_LEN_MAX: usize = 64 * 1024;
const REQUEST_LEN: usize = 37;
const SIGNATURE_LEN: usize = 96;
const VERSION: u8 = 0x11;
const GET_MEASUREMENTS: u8 = 0xe0;
const MEASUREMENTS: u8 = 0x60;
const SIGNATURE_REQUESTED: u8 = 1;
const ALL_MEASUREMENTS: u8 = 0xff;
const DMTF: u8 = 1;

/// What a report's first four bytes are.
pub(crate) const MAGIC: [u8; 4] = [VERSION, GET_MEASUREMENTS, SIGNATURE_REQUESTED, ALL_MEASUREMENTS];

/// A well-formed report. Holding one proves that every length fits and that nothing is left over; who signed it is for
/// [`super::authenticate()`] to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    raw: Vec<u8>,
    nonce: [u8; 32],
    measurements: Vec<Measurement>,
    opaque: Opaque,
    signed_len: usize,
}

/// One measurement block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// SPDM's index, from 1. A reference manifest counts from 0.
    pub index: u8,
    /// `DMTFSpecMeasurementValueType`: bit 7 says that the value is no digest, the others what was measured.
    pub value_type: u8,
    /// The value: a SHA-384 digest on every known device.
    pub value: Vec<u8>,
}

/// Why bytes are no report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// Not between the least and the greatest possible length.
    #[error("a report of {len} bytes (at most {REPORT_LEN_MAX})")]
    Length {
        /// Bytes found.
        len: usize,
    },
    /// It ends inside a field.
    #[error("the report ends inside {what} at byte {at}")]
    Truncated {
        /// Where the field begins.
        at: usize,
        /// Which field.
        what: &'static str,
    },
    /// A field with a value that the format doesn't allow.
    #[error("{what} at byte {at}: expected {expected}, found {found:#x}")]
    Field {
        /// Where.
        at: usize,
        /// Which field.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: usize,
    },
    /// Bytes behind the end of a part.
    #[error("{len} bytes too many behind {what}")]
    Trailing {
        /// Which part.
        what: &'static str,
        /// How many.
        len: usize,
    },
    /// Opaque data that contradict themselves.
    #[error("opaque data: {0}")]
    Opaque(String),
    /// A form of the opaque data that is newer than this verifier.
    #[error("opaque data of version {0}; versions 0 and 1 are known")]
    OpaqueVersion(u64),
}

/// Reads forward; each step says where it failed.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], ReportError> {
        let rest = &self.bytes[self.at..];
        let taken = rest
            .get(..len)
            .ok_or(ReportError::Truncated { at: self.at, what })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ReportError> {
        let taken = self.take(N, what)?;
        Ok(*taken.first_chunk().expect("`take` gave N bytes"))
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, ReportError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, ReportError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// A byte that can only have one value.
    fn fixed(&mut self, what: &'static str, value: u8) -> Result<(), ReportError> {
        let at = self.at;
        let found = self.u8(what)?;
        require(found == value, at, what, || format!("{value:#x}"), found)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }
}

fn require(
    holds: bool,
    at: usize,
    what: &'static str,
    expected: impl Fn() -> String,
    found: impl Into<usize>,
) -> Result<(), ReportError> {
    if holds {
        return Ok(());
    }
    Err(ReportError::Field {
        at,
        what,
        expected: expected(),
        found: found.into(),
    })
}

impl Report {
    /// Reads a whole report. Some drivers round the length up to an even one: one zero byte behind an odd length is
    /// accepted, and nothing else.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        if !(REQUEST_LEN..=REPORT_LEN_MAX).contains(&bytes.len()) {
            return Err(ReportError::Length { len: bytes.len() });
        }
        let mut reader = Reader::new(bytes);
        for (what, value) in [
            ("the request's SPDM version", VERSION),
            ("the request's code", GET_MEASUREMENTS),
            ("the request's attributes", SIGNATURE_REQUESTED),
            ("the request's operation", ALL_MEASUREMENTS),
        ] {
            reader.fixed(what, value)?;
        }
        let nonce = reader.array("the request's nonce")?;
        let slot = reader.u8("the request's slot")?;
        require(slot < 8, 36, "the request's slot", || "0 to 7".to_owned(), slot)?;
        for (what, value) in [
            ("the response's SPDM version", VERSION),
            ("the response's code", MEASUREMENTS),
            ("the response's first parameter", 0),
            ("the response's slot", slot),
        ] {
            reader.fixed(what, value)?;
        }
        let blocks = reader.u8("the number of blocks")?;
        let [a, b, c] = reader.array("the record's length")?;
        let record_len = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
        let measurements = blocks_of(
            reader.take(record_len, "the measurement record")?,
            blocks,
            reader.at,
        )?;
        reader.take(32, "the response's nonce")?;
        let opaque_len = reader.u16("the length of the opaque data")?;
        let opaque = Opaque::parse(reader.take(opaque_len.into(), "the opaque data")?)?;
        let signed_len = reader.at;
        reader.take(SIGNATURE_LEN, "the signature")?;
        let padding = reader.rest();
        if !(padding.is_empty() || padding == [0] && reader.at % 2 == 1) {
            let len = padding.len();
            return Err(ReportError::Trailing {
                what: "the signature",
                len,
            });
        }
        Ok(Self {
            raw: bytes.to_vec(),
            nonce,
            measurements,
            opaque,
            signed_len,
        })
    }

    /// The bytes as they came.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The bytes that the signature covers: request and response up to the signature.
    pub fn signed(&self) -> &[u8] {
        &self.raw[..self.signed_len]
    }

    /// ECDSA P-384: r ‖ s, 48 bytes each, big-endian.
    pub fn signature(&self) -> [u8; SIGNATURE_LEN] {
        *self.raw[self.signed_len..]
            .first_chunk()
            .expect("`parse` saw the whole signature")
    }

    /// The requester's nonce.
    pub fn nonce(&self) -> [u8; 32] {
        self.nonce
    }

    /// The measurements, by ascending index.
    pub fn measurements(&self) -> &[Measurement] {
        &self.measurements
    }

    /// What the device says about itself beside its measurements.
    pub fn opaque(&self) -> &Opaque {
        &self.opaque
    }
}

/// The blocks of a record whose first byte is at `end - record.len()` of the report.
fn blocks_of(record: &[u8], count: u8, end: usize) -> Result<Vec<Measurement>, ReportError> {
    let start = end - record.len();
    require(
        count > 0,
        start - 4,
        "the number of blocks",
        || "at least 1".to_owned(),
        count,
    )?;
    let mut reader = Reader { bytes: record, at: 0 };
    let mut blocks: Vec<Measurement> = Vec::with_capacity(count.into());
    for _ in 0..count {
        let at = start + reader.at;
        let index = reader.u8("a block's index")?;
        let above = blocks.last().map_or(0, |block| block.index);
        require(
            index > above,
            at,
            "a block's index",
            || format!("above {above}"),
            index,
        )?;
        reader.fixed("a block's measurement specification", DMTF)?;
        let size = reader.u16("a block's size")?;
        let mut block = Reader::new(reader.take(size.into(), "a block")?);
        let value_type = block.u8("a measurement's type")?;
        let value_size = block.u16("a measurement's size")?;
        let value = block.take(value_size.into(), "a measurement's value")?;
        let len = block.rest().len();
        if len > 0 {
            return Err(ReportError::Trailing {
                what: "a measurement",
                len,
            });
        }
        blocks.push(Measurement {
            index,
            value_type,
            value: value.to_vec(),
        });
    }
    match reader.rest().len() {
        0 => Ok(blocks),
        len => Err(ReportError::Trailing {
            what: "the last block",
            len,
        }),
    }
}
