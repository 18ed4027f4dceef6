//! Composite evidence: what a VM shows, with the evidence of its GPUs and of its host (RFC 9334, section 3.3), and its
//! one encoding.
//!
//! ```text
//! composite = { 0..2: as evidence of one VM, ? 3: [+ gpu], ? 4: host: bytes (CBOR of a TPM's evidence) }
//! gpu       = [report: bytes, [* certificate: bytes (DER)]]
//! ```
//!
//! A VM alone is encoded as [`Evidence`] is. The parts are bound to each other through `REPORT_DATA`: a GPU's nonce
//! ([`crate::gpu_nonce`]) and the qualifying data of the host's quote ([`crate::host_qualifying_data`]) are derived from
//! it, so a part of another machine, contract or moment doesn't fit.

use minicbor::Decoder;

use crate::cbor::Writer;
use crate::evidence::{bytes, decode_certificates, encode_certificates, field, length, malformed};
use crate::nvidia::GpuEvidence;
use crate::tpm::TpmEvidence;
use crate::{Evidence, EvidenceError};

/// The longest encoded composite evidence, in bytes.
pub const COMPOSITE_LEN_MAX: usize = 2 * 1024 * 1024;
const GPUS_MAX: u64 = 32;
const GPU_REPORT_LEN_MAX: usize = 64 * 1024;
const HOST_LEN_MAX: usize = 1024 * 1024;

/// A VM with its GPUs and its host. Holding one proves only that it is well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composite {
    /// The VM itself.
    pub vm: Evidence,
    /// The GPUs that the VM was given.
    pub gpus: Vec<GpuEvidence>,
    /// The host's TPM quote.
    pub host: Option<TpmEvidence>,
}

impl From<Evidence> for Composite {
    fn from(vm: Evidence) -> Self {
        let (gpus, host) = (Vec::new(), None);
        Self { vm, gpus, host }
    }
}

impl Composite {
    /// The one encoding of this evidence.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut cbor = Writer::default();
        let more = usize::from(!self.gpus.is_empty()) + usize::from(self.host.is_some());
        self.vm.encode(&mut cbor, more);
        if !self.gpus.is_empty() {
            cbor.uint(3);
            encode_gpus(&mut cbor, &self.gpus);
        }
        if let Some(host) = &self.host {
            cbor.uint(4).bytes(&host.to_cbor());
        }
        cbor.into_bytes()
    }

    /// Reads evidence from outside: a VM's, alone or with its parts. Accepts exactly what [`Composite::to_cbor`] makes,
    /// within bounds.
    pub fn from_cbor(cbor: &[u8]) -> Result<Self, EvidenceError> {
        if cbor.len() > COMPOSITE_LEN_MAX {
            return Err(EvidenceError::TooLong { len: cbor.len() });
        }
        let d = &mut Decoder::new(cbor);
        let (vm, mut more) = Evidence::decode(d)?;
        let mut composite = Self::from(vm);
        if more == 2 || more == 1 && d.probe().u8().is_ok_and(|key| key == 3) {
            field(d, 3)?;
            more -= 1;
            composite.gpus = decode_gpus(d)?;
        }
        if more == 1 {
            field(d, 4)?;
            let host = bytes(d, "the host's evidence", HOST_LEN_MAX)?;
            let host = TpmEvidence::from_cbor(&host);
            composite.host = Some(host.map_err(|what| malformed(d, format!("the host's evidence: {what}")))?);
        }
        if composite.to_cbor() != cbor {
            return Err(EvidenceError::NotCanonical);
        }
        Ok(composite)
    }
}

/// GPUs' evidence by itself: field 3 of a composite, as a collector in the VM gives it.
pub fn gpus_to_cbor(gpus: &[GpuEvidence]) -> Vec<u8> {
    let mut cbor = Writer::default();
    encode_gpus(&mut cbor, gpus);
    cbor.into_bytes()
}

/// Reads what [`gpus_to_cbor`] made, and nothing else, within bounds.
pub fn gpus_from_cbor(cbor: &[u8]) -> Result<Vec<GpuEvidence>, EvidenceError> {
    if cbor.len() > COMPOSITE_LEN_MAX {
        return Err(EvidenceError::TooLong { len: cbor.len() });
    }
    let gpus = decode_gpus(&mut Decoder::new(cbor))?;
    if gpus_to_cbor(&gpus) != cbor {
        return Err(EvidenceError::NotCanonical);
    }
    Ok(gpus)
}

fn encode_gpus(cbor: &mut Writer, gpus: &[GpuEvidence]) {
    cbor.array(gpus.len());
    for gpu in gpus {
        cbor.array(2).bytes(&gpu.report);
        encode_certificates(cbor, &gpu.certificates);
    }
}

fn decode_gpus(d: &mut Decoder<'_>) -> Result<Vec<GpuEvidence>, EvidenceError> {
    let count = length(d, "the GPUs", GPUS_MAX, Decoder::array)?;
    (0..count).map(|_| gpu(d)).collect()
}

fn gpu(d: &mut Decoder<'_>) -> Result<GpuEvidence, EvidenceError> {
    if length(d, "a GPU's evidence", 2, Decoder::array)? != 2 {
        return Err(malformed(d, "a GPU's evidence has two parts"));
    }
    let report = bytes(d, "a GPU's report", GPU_REPORT_LEN_MAX)?;
    let certificates = decode_certificates(d)?;
    Ok(GpuEvidence::new(report, certificates))
}
