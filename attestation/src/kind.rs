//! Which kind of evidence bytes are: known by their content, never by a name.
//!
//! Raw formats come as they are, and as text: hexadecimal, base64 (both alphabets, padded or not), a PEM block.

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde_json::{Value, json};

use crate::nvidia::{self, GpuEvidence};
use crate::snp::{REPORT_LEN, Report, SIGNED_LEN, certificate_claims};
use crate::tpm::{self, AzureEvidence, TpmEvidence};
use crate::{Composite, CpuEvidence, Evidence, EvidenceError, GuestKeys, snp, tdx, wrapped};

/// The first bytes of [`Composite::to_cbor`]: a map of three or more fields, whose first key is 0.
const CBOR_STARTS: [[u8; 2]; 3] = [[0xa3, 0], [0xa4, 0], [0xa5, 0]];

/// Evidence of any kind that this verifier knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnyEvidence {
    /// A VM's, perhaps with its GPUs and its host: our encoding, or a raw SNP report or TDX quote.
    Vm(Box<Composite>),
    /// One or more GPUs', on their own.
    Gpu(Vec<GpuEvidence>),
    /// A TPM's quote, on its own.
    Tpm(TpmEvidence),
    /// An Azure VM's: CPU report and virtual TPM.
    Azure(AzureEvidence),
}

/// Why bytes are no evidence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnyEvidenceError {
    /// Of no kind that is known.
    #[error(
        "{len} bytes that are no evidence of a known kind (an SNP report has {REPORT_LEN} bytes; TDX quotes, GPU and \
         TPM evidence and this program's own begin differently)"
    )]
    Unknown {
        /// Bytes found.
        len: usize,
    },
    /// This program's own encoding, malformed.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// A known kind, malformed.
    #[error("malformed {kind}: {what}")]
    Malformed {
        /// Which kind.
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
}

impl AnyEvidence {
    /// Finds out what `content` is. What is known but malformed inside is for [`crate::verify_any`] to say.
    pub fn parse(content: &[u8]) -> Result<Self, AnyEvidenceError> {
        // Some editors put a mark before text.
        let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
        if let Some(found) = Self::parse_raw(content) {
            return found;
        }
        let unknown = AnyEvidenceError::Unknown { len: content.len() };
        std::str::from_utf8(content)
            .ok()
            .and_then(decode_text)
            .and_then(|bytes| Self::parse_raw(&bytes))
            .unwrap_or(Err(unknown))
    }

    fn parse_raw(content: &[u8]) -> Option<Result<Self, AnyEvidenceError>> {
        let malformed = |kind| move |what| AnyEvidenceError::Malformed { kind, what };
        // What says its kind comes before what only its length tells.
        if CBOR_STARTS.iter().any(|start| content.starts_with(start)) {
            let composite = Composite::from_cbor(content);
            return Some(composite.map(|c| Self::Vm(Box::new(c))).map_err(Into::into));
        }
        if let Some(found) = tpm::recognise(content) {
            return Some(match found {
                Ok(tpm::Recognised::Tpm(evidence)) => Ok(Self::Tpm(evidence)),
                Ok(tpm::Recognised::Azure(evidence)) => Ok(Self::Azure(evidence)),
                Err(what) => Err(malformed("TPM evidence")(what)),
            });
        }
        if content.len() == REPORT_LEN && !tdx::recognise(content) {
            let (report, certificates) = (content.to_vec(), Vec::new());
            return Some(Ok(vm(CpuEvidence::SevSnp { report, certificates })));
        }
        if tdx::recognise(content) {
            let (quote, event_log) = (content.to_vec(), None);
            return Some(Ok(vm(CpuEvidence::Tdx { quote, event_log })));
        }
        if let Some(gpus) = nvidia::recognise(content) {
            return Some(gpus.map(Self::Gpu).map_err(malformed("GPU evidence")));
        }
        wrapped::recognise(content).map(|cpu| Ok(vm(cpu)))
    }

    /// Every field, decoded; nothing is verified.
    pub fn claims(&self) -> Value {
        match self {
            Self::Vm(composite) => {
                let mut claims = vm_claims(&composite.vm);
                if !composite.gpus.is_empty() {
                    claims["gpus"] = composite.gpus.iter().map(nvidia::claims).collect();
                }
                if let Some(host) = &composite.host {
                    claims["host"] = tpm::claims(host);
                }
                claims
            }
            Self::Gpu(gpus) => json!({ "gpus": gpus.iter().map(nvidia::claims).collect::<Vec<_>>() }),
            Self::Tpm(evidence) => json!({ "tpm": tpm::claims(evidence) }),
            Self::Azure(evidence) => json!({ "azure": tpm::azure_claims(evidence) }),
        }
    }
}

fn vm(cpu: CpuEvidence) -> AnyEvidence {
    let guest_keys = GuestKeys::default();
    AnyEvidence::Vm(Box::new(Evidence { cpu, guest_keys }.into()))
}

/// Bytes to look at: text as it is, anything else in base64.
pub(crate) fn shown(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "text": text }),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// What text stands for; `None`: it is no such text.
pub(crate) fn decode_text(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_start_matches('\u{feff}').trim();
    let body = match text
        .strip_prefix("-----BEGIN ")
        .and_then(|rest| rest.split_once("-----"))
    {
        Some((label, rest)) => rest.split_once(&format!("-----END {label}-----"))?.0,
        None => text.strip_prefix("0x").unwrap_or(text),
    };
    let body: String = body.split_ascii_whitespace().collect();
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let base64 = |alphabet| GeneralPurpose::new(alphabet, lenient).decode(&body).ok();
    let decoded = hex::decode(&body).ok();
    decoded
        .or_else(|| base64(&alphabet::STANDARD))
        .or_else(|| base64(&alphabet::URL_SAFE))
}

fn vm_claims(evidence: &Evidence) -> Value {
    let cpu = match &evidence.cpu {
        CpuEvidence::None => json!({ "kind": "none" }),
        CpuEvidence::SevSnp { report, certificates } => snp_claims(report, certificates),
        CpuEvidence::Tdx { quote, .. } => tdx::claims(quote),
    };
    let keys = &evidence.guest_keys;
    json!({
        "cpu": cpu,
        "guest_keys": {
            "ssh_host_key": keys.ssh_host_key.as_ref().map(|key| key.as_str()),
            "tls_spki": keys.tls_spki.as_ref().map(hex::encode),
            "wireguard": keys.wireguard.map(hex::encode),
            "settings": keys.settings.map(hex::encode),
            "digest": hex::encode(keys.digest()),
        },
    })
}

fn snp_claims(report: &[u8], certificates: &[Vec<u8>]) -> Value {
    let report = match Report::parse(report) {
        Ok(report) => report,
        Err(e) => return json!({ "unreadable": e.to_string() }),
    };
    let certificates: Vec<Value> = certificates.iter().map(|der| certificate_claims(der)).collect();
    // A version 2 report doesn't say its product; its certificate's issuer does.
    let product = report.product().or_else(|| {
        let named = certificates
            .iter()
            .find_map(|certificate| certificate["product"].as_str());
        snp::Product::ALL
            .into_iter()
            .find(|product| Some(product.name()) == named)
    });
    let mut claims = report.claims(product);
    claims["signature"] = json!(hex::encode(&report.raw()[SIGNED_LEN..][..144]));
    claims["certificates"] = json!(certificates);
    claims
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    #[test]
    fn evidence_is_known_by_its_content() {
        let report = vec![7; REPORT_LEN];
        let raw = AnyEvidence::parse(&report).unwrap();
        let AnyEvidence::Vm(composite) = &raw else {
            panic!("{raw:?}")
        };
        let evidence = &composite.vm;
        let base64 = STANDARD.encode(&report);
        let pem = format!("-----BEGIN REPORT-----\r\n{base64}\r\n-----END REPORT-----\r\n");
        for (form, content) in [
            ("hex", hex::encode(&report).into_bytes()),
            (
                "hex in upper case with a line break",
                format!("0x{}\n", hex::encode_upper(&report)).into_bytes(),
            ),
            ("base64", base64.clone().into_bytes()),
            (
                "base64 in an URL's alphabet",
                URL_SAFE_NO_PAD.encode(&report).into_bytes(),
            ),
            ("PEM", pem.into_bytes()),
            ("a mark before text", format!("\u{feff}{base64}").into_bytes()),
            (
                "lines of 60 characters",
                hex::encode(&report)
                    .as_bytes()
                    .chunks(60)
                    .flat_map(|line| [line, b"\r\n"].concat())
                    .collect(),
            ),
            ("our encoding", evidence.to_cbor()),
            (
                "our encoding as hex",
                hex::encode(evidence.to_cbor()).into_bytes(),
            ),
        ] {
            assert_eq!(AnyEvidence::parse(&content).as_ref(), Ok(&raw), "{form}");
        }
        let truncated = AnyEvidence::parse(&evidence.to_cbor()[..100]);
        assert!(
            matches!(truncated, Err(AnyEvidenceError::Evidence(_))),
            "{truncated:?}"
        );
        for unknown in [&b""[..], b"zz", &report[1..], "\u{e9}".as_bytes()] {
            let len = unknown.len();
            assert_eq!(
                AnyEvidence::parse(unknown),
                Err(AnyEvidenceError::Unknown { len })
            );
        }
    }
}
