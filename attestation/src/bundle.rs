//! Evidence and endorsements in one file, so that a verdict can be repeated years later and elsewhere.
//!
//! ```text
//! bundle = { 0: "decent-cloud bundle v1", 1: evidence: bytes, 2: [* endorsement: bytes] }     CBOR, deterministic
//! ```
//!
//! Evidence and endorsements are kept byte for byte as they came: signatures are over bytes.

use minicbor::Decoder;
use serde_json::{Value, json};

use crate::cbor::Writer;
use crate::evidence::{At, bytes, field, length, malformed};
use crate::kind::shown;
use crate::{Endorsements, EndorsementsError, EvidenceError};

/// The first field's value.
const MAGIC: &str = "decent-cloud bundle v1";
const EVIDENCE_LEN_MAX: usize = 4 * 1024 * 1024;
const ENDORSEMENTS_MAX: u64 = 2048;
const ENDORSEMENT_LEN_MAX: usize = 4 * 1024 * 1024;

/// Evidence with what its maker's endorsements were at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Evidence of any kind, as [`crate::AnyEvidence::parse`] takes it.
    pub evidence: Vec<u8>,
    /// Files, as [`Endorsements::add`] takes them.
    pub endorsements: Vec<Vec<u8>>,
}

/// Why bytes are no bundle.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Not the CBOR that this format asks for.
    #[error("malformed bundle: {0}")]
    Malformed(#[from] EvidenceError),
    /// Something in it isn't an endorsement.
    #[error("endorsement {index} of the bundle")]
    Endorsement {
        /// Its place, from 0.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: EndorsementsError,
    },
}

impl Bundle {
    /// The longest encoded bundle that is read, in bytes.
    pub const LEN_MAX: usize = 64 * 1024 * 1024;

    /// Whether bytes begin as a bundle does.
    pub fn is_one(content: &[u8]) -> bool {
        let mut start = Writer::default();
        start.map(3).uint(0).text(MAGIC);
        content.starts_with(&start.into_bytes())
    }

    /// The one encoding of this bundle.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut cbor = Writer::default();
        cbor.map(3).uint(0).text(MAGIC).uint(1).bytes(&self.evidence);
        cbor.uint(2).array(self.endorsements.len());
        for endorsement in &self.endorsements {
            cbor.bytes(endorsement);
        }
        cbor.into_bytes()
    }

    /// Reads a bundle from outside. Accepts exactly what [`Bundle::to_cbor`] makes, within bounds.
    pub fn from_cbor(cbor: &[u8]) -> Result<Self, BundleError> {
        if cbor.len() > Self::LEN_MAX {
            return Err(EvidenceError::TooLong { len: cbor.len() }.into());
        }
        let d = &mut Decoder::new(cbor);
        if length(d, "a bundle", 3, Decoder::map)? != 3 {
            return Err(malformed(d, "a bundle has three fields").into());
        }
        field(d, 0)?;
        if d.str().at(d, "the format's name")? != MAGIC {
            return Err(malformed(d, format!("a bundle begins with {MAGIC:?}")).into());
        }
        field(d, 1)?;
        let evidence = bytes(d, "the evidence", EVIDENCE_LEN_MAX)?;
        field(d, 2)?;
        let count = length(d, "the endorsements", ENDORSEMENTS_MAX, Decoder::array)?;
        let endorsements = (0..count)
            .map(|_| bytes(d, "an endorsement", ENDORSEMENT_LEN_MAX))
            .collect::<Result<_, _>>()?;
        let bundle = Self {
            evidence,
            endorsements,
        };
        if bundle.to_cbor() != cbor {
            return Err(EvidenceError::NotCanonical.into());
        }
        Ok(bundle)
    }

    /// Adds the bundle's endorsements to those that a caller has.
    pub fn add_to(&self, endorsements: &mut Endorsements) -> Result<(), BundleError> {
        for (index, content) in self.endorsements.iter().enumerate() {
            let added = endorsements.add(content);
            added.map_err(|source| BundleError::Endorsement { index, source })?;
        }
        Ok(())
    }

    /// The bundle to look at: texts as they are, bytes in base64.
    pub fn to_json(&self) -> Value {
        json!({
            "format": MAGIC,
            "evidence": shown(&self.evidence),
            "endorsements": self.endorsements.iter().map(|file| shown(file)).collect::<Vec<_>>(),
        })
    }
}
