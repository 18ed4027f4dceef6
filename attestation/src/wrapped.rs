//! CPU evidence in what others put around it. Only reports, quotes and certificates are taken out; nobody signed the rest.
//!
//! ```text
//! { "quote": hex or base64, … }                                             what guests' agents answer (dstack, trustee)
//! { "attestation_report": hex or base64, "cert_chain": { "vcek": … } }      a report with its certificates
//! { "platform": …, "evidence": { one of these } }
//! { "attestation": hex }                                                    dstack's own encoding (SCALE), as text
//! 00 00 quote …  or  00 03 report [certificate …] …                         the same in bytes
//! ```
//!
//! Such an answer holds a quote as the quoting service's buffer has it, so zeros behind its end are cut off here: these
//! forms are many for one quote anyhow.

use serde_json::Value;

use crate::kind::decode_text;
use crate::snp::REPORT_LEN;
use crate::{CpuEvidence, Endorsements, tdx};

const LEN_MAX: usize = 1024 * 1024;
const CERTIFICATES_MAX: usize = 16;

/// Takes evidence out of `content`, if it is one of these forms.
pub(crate) fn recognise(content: &[u8]) -> Option<CpuEvidence> {
    if content.len() > LEN_MAX {
        return None;
    }
    if content.starts_with(&[0]) {
        return dstack(content);
    }
    let json: Value = serde_json::from_slice(content).ok()?;
    let inner = json.get("platform").and(json.get("evidence")).unwrap_or(&json);
    let bytes = |name: &str| inner.get(name)?.as_str().and_then(decode_text);
    if let Some(quote) = bytes("quote") {
        return tdx_quote(&quote);
    }
    if let Some(report) = bytes("attestation_report") {
        let chain = inner.get("cert_chain");
        let listed = chain.and_then(Value::as_array).into_iter().flatten();
        let named = chain
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(|map| map.values());
        let certificates = listed.chain(named).filter_map(Value::as_str);
        let certificates = certificates.take(CERTIFICATES_MAX).map(str::as_bytes);
        return snp_report(report, certificates);
    }
    dstack(&bytes("attestation")?)
}

fn tdx_quote(quote: &[u8]) -> Option<CpuEvidence> {
    let quote = tdx::without_padding(quote);
    tdx::recognise(quote).then(|| CpuEvidence::Tdx {
        quote: quote.to_vec(),
        event_log: None,
    })
}

/// Certificates that can't be read are none: the verdict says which one is missing.
fn snp_report<'a>(report: Vec<u8>, certificates: impl Iterator<Item = &'a [u8]>) -> Option<CpuEvidence> {
    let mut read = Endorsements::none();
    for certificate in certificates {
        let _ = read.add(certificate);
    }
    let certificates = read.certificates().map(<[u8]>::to_vec).collect();
    (report.len() == REPORT_LEN).then_some(CpuEvidence::SevSnp { report, certificates })
}

/// dstack's encoding: version 0, the kind, byte strings with their lengths.
fn dstack(content: &[u8]) -> Option<CpuEvidence> {
    let (head, mut rest) = content.split_first_chunk::<2>()?;
    match head {
        [0, 0] => tdx_quote(byte_string(&mut rest)?),
        [0, 3] => {
            let report = byte_string(&mut rest)?.to_vec();
            let count = number(&mut rest)?.min(CERTIFICATES_MAX);
            let certificates: Option<Vec<&[u8]>> = (0..count).map(|_| byte_string(&mut rest)).collect();
            snp_report(report, certificates?.into_iter())
        }
        _ => None,
    }
}

fn byte_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = number(rest)?;
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

/// SCALE's compact number: the low two bits say how many bytes it has (1, 2 or 4).
fn number(rest: &mut &[u8]) -> Option<usize> {
    let len = match rest.first()? & 3 {
        0 => 1,
        1 => 2,
        2 => 4,
        _ => return None,
    };
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    let mut bytes = [0; 4];
    bytes[..len].copy_from_slice(taken);
    usize::try_from(u32::from_le_bytes(bytes) >> 2).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report_of(cpu: Option<CpuEvidence>) -> Option<(Vec<u8>, usize)> {
        match cpu? {
            CpuEvidence::SevSnp { report, certificates } => Some((report, certificates.len())),
            _ => None,
        }
    }

    #[test]
    fn reports_are_found_in_json_and_in_dstacks_encoding() {
        let report = vec![7; REPORT_LEN];
        let hex = hex::encode(&report);
        // 1184 in two bytes, then no certificates.
        let dstack = [&[0, 3, 0x81, 0x12][..], &report, &[0]].concat();
        for (row, content) in [
            (
                "bare",
                format!(r#"{{"attestation_report":"{hex}"}}"#).into_bytes(),
            ),
            (
                "with unreadable certificates",
                format!(r#"{{"attestation_report":"{hex}","cert_chain":{{"vcek":"AA"}}}}"#).into_bytes(),
            ),
            (
                "enveloped",
                format!(r#"{{"platform":"snp","evidence":{{"attestation_report":"{hex}"}}}}"#).into_bytes(),
            ),
            ("dstack's", dstack.clone()),
            (
                "dstack's as text",
                format!(r#"{{"attestation":"{}"}}"#, hex::encode(&dstack)).into_bytes(),
            ),
        ] {
            assert_eq!(report_of(recognise(&content)), Some((report.clone(), 0)), "{row}");
        }
        for (row, content) in [
            ("nothing", &b""[..]),
            ("an empty object", b"{}"),
            ("a number", br#"{"attestation_report":5}"#),
            ("a short report", br#"{"attestation_report":"00"}"#),
            ("another platform's", &[0, 2, 4, 1]),
            ("a length beyond the end", &[0, 3, 0x81, 0x12, 7]),
            ("a long length", &[0, 3, 0xfe, 0xff, 0xff, 0xff]),
            ("cut before the certificates", &dstack[..dstack.len() - 1]),
        ] {
            assert_eq!(recognise(content), None, "{row}");
        }
    }
}
