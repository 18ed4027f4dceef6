//! TPM evidence as the attester of Confidential Containers gives it.
//!
//! ```text
//! { "ak_public": base64 of SubjectPublicKeyInfo,
//!   "tpm_quote": { "message": base64 of TPMS_ATTEST, "signature": base64 of TPMT_SIGNATURE, "pcrs": [ hex, … ] } }
//! ```
//!
//! The list has the values of one bank from PCR 0 on; those that weren't quoted are left out here.

use serde::Deserialize;

use super::attest::Quote;
use super::evidence::{PcrValues, TPM_EVIDENCE_LEN_MAX, TpmEvidence};
use crate::kind::decode_text;

const PCRS_MAX: usize = 32;

#[derive(Deserialize)]
struct Evidence {
    ak_public: String,
    tpm_quote: TpmQuote,
}

#[derive(Deserialize)]
struct TpmQuote {
    message: String,
    signature: String,
    pcrs: Vec<String>,
}

/// Takes such a file's content; the error is a sentence.
pub(super) fn recognise(content: &[u8]) -> Option<Result<TpmEvidence, String>> {
    if content.len() > TPM_EVIDENCE_LEN_MAX || !content.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let Evidence { ak_public, tpm_quote } = serde_json::from_slice(content).ok()?;
    Some(read(&ak_public, &tpm_quote))
}

fn read(ak: &str, json: &TpmQuote) -> Result<TpmEvidence, String> {
    let bytes = |name: &str, text: &str| {
        decode_text(text).ok_or_else(|| format!("`{name}` is neither base64 nor hex"))
    };
    let quote = bytes("message", &json.message)?;
    if json.pcrs.len() > PCRS_MAX {
        return Err(format!("{} PCR values (at most {PCRS_MAX})", json.pcrs.len()));
    }
    let values: Option<Vec<Vec<u8>>> = json.pcrs.iter().map(|value| hex::decode(value).ok()).collect();
    let values = values.ok_or("a PCR value that isn't hex")?;
    // An unreadable quote is the verdict's to refuse.
    let parsed = Quote::parse(&quote);
    let pcrs = match parsed.as_ref().map(|quote| quote.selections.as_slice()) {
        Ok([only]) => {
            let quoted = only
                .pcrs
                .iter()
                .filter_map(|pcr| Some((*pcr, values.get(usize::from(*pcr))?.clone())));
            PcrValues::from([(only.bank, quoted.collect())])
        }
        _ => PcrValues::new(),
    };
    Ok(TpmEvidence {
        signature: bytes("signature", &json.signature)?,
        ak: bytes("ak_public", ak)?,
        pcrs,
        quote,
        ..TpmEvidence::default()
    })
}
