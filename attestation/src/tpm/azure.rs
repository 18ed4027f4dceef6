//! Azure's confidential VMs: the CPU's report is about Microsoft's paravisor (HCL), which is the VM's virtual TPM.
//!
//! ```text
//! CPU maker's root ─ … ─▶ SNP report or TDX quote ── REPORT_DATA = hash(runtime data) ──▶ runtime data (JSON)
//!                                                       names HCLAkPub ──▶ signs the virtual TPM's quote ──▶ PCRs, nonce
//! ```
//!
//! The paravisor's report (`HCLA`, little-endian; Microsoft, "Guest attestation for confidential VMs"): header of 32 bytes,
//! the hardware's report of 1,184 bytes, a header of 20 bytes, the runtime data. On SNP the hardware's report is the signed
//! one; on TDX it is a TDREPORT, which only that machine can check, so a quote must come beside it.
//!
//! Evidence comes as JSON in the forms that the attesters of Confidential Containers give, or as the bare report.

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::{Value, json};

use super::appraise::{self, Expected, Logs};
use super::attest::Quote;
use super::authenticate::{Authentic, signed_values};
use super::evidence::PcrValues;
use super::key::rsa_key;
use super::signature::Signature;
use super::{pcr_claims, quote_check, quote_claims, unappraised};
use crate::eventlog::HashAlg;
use crate::result::{Appraisal, Check, Outcome, Part, Reason, Trust};
use crate::x509::PublicKey;
use crate::{Endorsements, GuestKeys, Policy, Roots, snp, tdx};

const START: &[u8; 4] = b"HCLA";
const HEADER_LEN: usize = 32;
const HARDWARE_REPORT_LEN: usize = 1184;
const RUNTIME_HEADER_LEN: usize = 20;
const REPORT_LEN_MAX: usize = 64 * 1024;
const BYTES_MAX: usize = 256 * 1024;
const PCRS: usize = 24;
const RUNTIME_DATA: &str = "authenticate.runtime-data";

/// Evidence of an Azure VM. Holding one proves only that the envelope could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureEvidence {
    /// The paravisor's report.
    pub hcl_report: Vec<u8>,
    /// The virtual TPM's quote, if there is one.
    pub quote: Option<VtpmQuote>,
    /// DER: VCEK and whatever came with it.
    pub certificates: Vec<Vec<u8>>,
    /// The TDX quote, for VMs on TDX.
    pub td_quote: Option<Vec<u8>>,
    /// The envelope (its version 2) says that the runtime data hold what the quote holds as qualifying data.
    pub user_data_bound: bool,
}

/// A quote of the virtual TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VtpmQuote {
    /// `TPMS_ATTEST`.
    pub message: Vec<u8>,
    /// RSASSA with SHA-256 over it, without the TPM's structure around.
    pub signature: Vec<u8>,
    /// Values of the PCRs of the SHA-256 bank, from PCR 0 on.
    pub pcrs: Vec<Vec<u8>>,
}

#[cfg(feature = "fetch")]
impl AzureEvidence {
    /// The SNP report inside, if it is an SNP machine's.
    pub(crate) fn snp_report(&self) -> Option<&[u8]> {
        let hcl = parse_hcl(&self.hcl_report).ok()?;
        let snp = matches!(hcl.platform, Platform::Snp);
        hcl.hardware.get(..crate::snp::REPORT_LEN).filter(|_| snp)
    }
}

/// Takes a paravisor's report or a JSON that holds one.
pub(super) fn recognise(content: &[u8]) -> Option<Result<AzureEvidence, String>> {
    if content.starts_with(START) {
        return Some(Ok(AzureEvidence {
            hcl_report: content.to_vec(),
            quote: None,
            certificates: Vec::new(),
            td_quote: None,
            user_data_bound: false,
        }));
    }
    if !content.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let json: Value = serde_json::from_slice(content).ok()?;
    // The evidence, or an envelope around it that names the platform.
    let json = match (json.get("platform").and_then(Value::as_str), json.get("evidence")) {
        (Some("az-snp" | "az-tdx" | "az-snp-vtpm" | "az-tdx-vtpm"), Some(inner)) => inner,
        _ => &json,
    };
    let report = json.get("hcl_report").or_else(|| {
        let quoted = json.get("quote")?.get("message").is_some();
        json.get("report").filter(|_| quoted)
    })?;
    Some(from_json(json, report))
}

fn from_json(json: &Value, report: &Value) -> Result<AzureEvidence, String> {
    let user_data_bound = match json.get("version") {
        None => false,
        Some(version) => match version.as_u64() {
            Some(1) => false,
            Some(2) => true,
            _ => return Err(format!("version {version}; this verifier knows versions 1 and 2")),
        },
    };
    let optional = |name: &str| json.get(name).filter(|value| !value.is_null());
    let quote = optional("tpm_quote").or_else(|| optional("quote"));
    let vcek = optional("vcek").map(|vcek| certificates(vcek).map_err(|e| format!("`vcek`: {e}")));
    let td_quote = optional("td_quote").map(|quote| bytes(quote).map_err(|e| format!("`td_quote`: {e}")));
    Ok(AzureEvidence {
        hcl_report: bytes(report).map_err(|e| format!("the paravisor's report: {e}"))?,
        quote: quote.map(vtpm_quote).transpose()?,
        certificates: vcek.transpose()?.unwrap_or_default(),
        td_quote: td_quote.transpose()?,
        user_data_bound,
    })
}

fn vtpm_quote(json: &Value) -> Result<VtpmQuote, String> {
    let field = |name: &str| {
        let value = json
            .get(name)
            .ok_or_else(|| format!("the quote has no `{name}`"))?;
        bytes(value).map_err(|e| format!("the quote's `{name}`: {e}"))
    };
    let pcrs = json
        .get("pcrs")
        .and_then(Value::as_array)
        .ok_or("the quote has no list `pcrs`")?;
    if pcrs.len() > PCRS {
        return Err(format!("{} PCR values (at most {PCRS})", pcrs.len()));
    }
    Ok(VtpmQuote {
        message: field("message")?,
        signature: field("signature")?,
        pcrs: pcrs.iter().map(bytes).collect::<Result<_, _>>()?,
    })
}

/// Bytes in JSON: a list of numbers, hexadecimal, or base64 in either alphabet.
fn bytes(value: &Value) -> Result<Vec<u8>, String> {
    let found = match value {
        Value::Array(list) => {
            let byte = |value: &Value| value.as_u64().and_then(|byte| u8::try_from(byte).ok());
            list.iter()
                .map(byte)
                .collect::<Option<Vec<u8>>>()
                .ok_or("a list of something else than bytes")?
        }
        Value::String(text) => {
            let lenient =
                GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
            let base64 = |alphabet| GeneralPurpose::new(alphabet, lenient).decode(text).ok();
            let decoded = hex::decode(text).ok();
            let decoded = decoded
                .or_else(|| base64(&alphabet::URL_SAFE))
                .or_else(|| base64(&alphabet::STANDARD));
            decoded.ok_or("neither hexadecimal nor base64")?
        }
        _ => return Err("neither a list of bytes nor text".to_owned()),
    };
    match found.len() {
        0..=BYTES_MAX => Ok(found),
        len => Err(format!("{len} bytes (at most {BYTES_MAX})")),
    }
}

/// A certificate in any of these forms, or certificates in PEM.
fn certificates(value: &Value) -> Result<Vec<Vec<u8>>, String> {
    let mut read = Endorsements::none();
    let added = match value.as_str().filter(|text| text.contains("-----BEGIN ")) {
        Some(pem) => read.add(pem.as_bytes()),
        None => read.add(&bytes(value)?),
    };
    added.map_err(|e| e.to_string())?;
    Ok(read.certificates().map(<[u8]>::to_vec).collect())
}

/// The paravisor's report, cut into its parts.
struct HclReport<'a> {
    platform: Platform,
    hardware: &'a [u8],
    runtime_hash: HashAlg,
    runtime: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Platform {
    Snp,
    Tdx,
}

/// The runtime data, as far as it is used.
#[derive(Deserialize)]
struct RuntimeData {
    keys: Vec<Jwk>,
    #[serde(rename = "vm-configuration", default)]
    vm_configuration: Value,
    #[serde(rename = "user-data", default)]
    user_data: String,
}

#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

fn parse_hcl(report: &[u8]) -> Result<HclReport<'_>, (Reason, String)> {
    let malformed = |what: &str| (Reason::Malformed, what.to_owned());
    let word = |at: usize| {
        let bytes = report.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(u32::from_le_bytes)
            .ok_or_else(|| malformed("it ends inside a header"))
    };
    let size = |at: usize| word(at).map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    if !report.starts_with(START) || report.len() > REPORT_LEN_MAX {
        return Err(malformed("not a paravisor's report (HCLA) of at most 64 KiB"));
    }
    match (word(4)?, word(12)?) {
        (1 | 2, 2) => {} // request 2: hardware report
        (version, request) => {
            let what = format!(
                "version {version}, request type {request}; known are versions 1 and 2, request type 2"
            );
            return Err((Reason::UnsupportedVersion, what));
        }
    }
    let runtime_at = HEADER_LEN + HARDWARE_REPORT_LEN;
    let (whole, with_header, len) = (size(8)?, size(runtime_at)?, size(runtime_at + 16)?);
    let reserved = &report[16..HEADER_LEN];
    let platform = match (word(runtime_at + 4)?, word(runtime_at + 8)?) {
        (1, 2) => Platform::Snp,
        (1, 4) => Platform::Tdx,
        (version, kind) => {
            let what = format!(
                "runtime data of version {version} for hardware report type {kind}; known is version 1 for 2 (SNP) and 4 (TDX)"
            );
            return Err((Reason::UnsupportedVersion, what));
        }
    };
    let runtime_hash = match word(runtime_at + 12)? {
        1 => HashAlg::Sha256,
        2 => HashAlg::Sha384,
        3 => HashAlg::Sha512,
        other => return Err((Reason::UnsupportedAlgorithm, format!("hash type {other}"))),
    };
    let start = runtime_at + RUNTIME_HEADER_LEN;
    let end = start.checked_add(len).filter(|end| *end <= report.len());
    let end = end.ok_or_else(|| malformed("runtime data longer than the report"))?;
    let sizes_agree = with_header == RUNTIME_HEADER_LEN + len && whole == end;
    if !sizes_agree || reserved.iter().chain(&report[end..]).any(|byte| *byte != 0) {
        return Err(malformed(
            "sizes that contradict each other, or reserved bytes that aren't zero",
        ));
    }
    Ok(HclReport {
        platform,
        hardware: &report[HEADER_LEN..runtime_at],
        runtime_hash,
        runtime: &report[start..end],
    })
}

impl HclReport<'_> {
    /// What the hardware's report must hold.
    fn report_data(&self) -> [u8; 64] {
        let mut data = [0; 64];
        let hash = self.runtime_hash.digest(&[self.runtime]).unwrap_or_default();
        data[..hash.len()].copy_from_slice(&hash);
        data
    }

    fn runtime_data(&self) -> Result<RuntimeData, String> {
        serde_json::from_slice(self.runtime).map_err(|e| e.to_string())
    }
}

impl RuntimeData {
    /// The virtual TPM's attestation key.
    fn ak(&self) -> Result<PublicKey, String> {
        let mut named = self.keys.iter().filter(|key| key.kid == "HCLAkPub");
        let (Some(key), None) = (named.next(), named.next()) else {
            return Err("the runtime data doesn't name one key HCLAkPub".to_owned());
        };
        let strict = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let number = |text: &str| GeneralPurpose::new(&alphabet::URL_SAFE, strict).decode(text).ok();
        let exponent = number(&key.e).filter(|e| (1..=4).contains(&e.len()));
        let exponent = exponent.map(|e| e.iter().fold(0, |n, byte| n << 8 | u32::from(*byte)));
        let modulus = number(&key.n).filter(|n| (256..=512).contains(&n.len()) && n[0] >= 0x80);
        let rsa = modulus.zip(exponent).filter(|(_, e)| key.kty == "RSA" && *e >= 3);
        rsa.and_then(|(n, e)| rsa_key(&n, e))
            .ok_or_else(|| "HCLAkPub isn't an RSA key of 2048 to 4096 bits".to_owned())
    }
}

/// All stages of Azure's evidence: the CPU's report, the runtime data that it binds, the vTPM's quote.
pub(crate) fn verify_azure(
    evidence: &AzureEvidence,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> Appraisal {
    let hcl = match parse_hcl(&evidence.hcl_report) {
        Ok(hcl) => hcl,
        Err((reason, what)) => {
            let check = Check::of("format.hcl-report", false, reason, "a paravisor's report", what);
            return Appraisal {
                checks: vec![check],
                trust: Trust::None,
                warnings: Vec::new(),
                claims: Value::Null,
            };
        }
    };
    let mut cpu = cpu(&hcl, evidence, endorsements, roots, policy, at);
    let bound = cpu
        .checks
        .iter()
        .any(|check| check.id == RUNTIME_DATA && check.outcome == Outcome::Passed);
    let mut claims = azure_claims(evidence);
    let (vtpm, proven) = vtpm(&hcl, evidence, endorsements, policy, bound);
    claims["cpu"] = cpu.claims;
    claims["proven"] = proven;
    let mut checks = vec![Check::passed("format.hcl-report", format!("{:?}", hcl.platform))];
    checks.append(&mut cpu.checks);
    checks.extend(vtpm.into_iter().map(|check| Check {
        part: Part::Vtpm,
        ..check
    }));
    Appraisal {
        checks,
        trust: cpu.trust,
        warnings: cpu.warnings,
        claims,
    }
}

/// The CPU's part. What its `REPORT_DATA` must be is the runtime data's hash; freshness is the quote's.
fn cpu(
    hcl: &HclReport<'_>,
    evidence: &AzureEvidence,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> Appraisal {
    let mut policy = policy.clone();
    policy.report_data = Some(hcl.report_data());
    // Azure's service gives quotes in a buffer of fixed size.
    policy.tdx.allow_padding = true;
    let keys = GuestKeys::default();
    let mut appraisal = match (hcl.platform, &evidence.td_quote) {
        (Platform::Snp, _) => {
            let certificates = &evidence.certificates;
            snp::verify(
                hcl.hardware,
                certificates,
                &keys,
                endorsements,
                roots,
                &policy,
                at,
            )
        }
        (Platform::Tdx, Some(quote)) => tdx::verify(quote, None, &keys, endorsements, roots, &policy, at),
        (Platform::Tdx, None) => {
            let found = "a TDREPORT, which only the machine it comes from can check";
            let checks = vec![
                Check::of(
                    "format.kind",
                    false,
                    Reason::NotAQuote,
                    "a TDX quote beside it",
                    found,
                ),
                Check::not_checked("appraise.report-data", "there is no quote", ""),
            ];
            Appraisal {
                checks,
                trust: Trust::None,
                warnings: Vec::new(),
                claims: Value::Null,
            }
        }
    };
    for check in &mut appraisal.checks {
        if check.id == "appraise.report-data" {
            check.id = RUNTIME_DATA;
            if let Outcome::Failed(reason) = &mut check.outcome {
                *reason = Reason::RuntimeDataMismatch;
            }
        }
    }
    appraisal
}

/// The virtual TPM's part, and what it proves. `bound`: the CPU vouches for the runtime data, so for its key.
fn vtpm(
    hcl: &HclReport<'_>,
    evidence: &AzureEvidence,
    endorsements: &Endorsements,
    policy: &Policy,
    bound: bool,
) -> (Vec<Check>, Value) {
    let unproven = |mut checks: Vec<Check>| {
        checks.extend(unappraised());
        (checks, Value::Null)
    };
    let runtime = match hcl.runtime_data() {
        Ok(runtime) => runtime,
        Err(e) => {
            let check = Check::of(
                "format.runtime-data",
                false,
                Reason::Malformed,
                "JSON with keys",
                e,
            );
            return unproven(vec![check]);
        }
    };
    let Some(VtpmQuote {
        message,
        signature,
        pcrs,
    }) = &evidence.quote
    else {
        let why = "the evidence has no quote of the virtual TPM";
        let not = appraise::CHECKS.iter().map(|id| Check::not_checked(id, why, ""));
        let mut checks: Vec<Check> = not.collect();
        // Without a quote, what the guest put into the report says how fresh it is.
        if let (true, Some(expected)) = (bound, policy.report_data) {
            let expected = hex::encode(expected);
            let found = runtime.user_data.to_ascii_lowercase();
            checks[0] = Check::of(
                checks[0].id,
                expected == found,
                Reason::ReportDataMismatch,
                expected,
                found,
            );
        }
        return (checks, Value::Null);
    };
    let quote = Quote::parse(message);
    let mut checks = vec![quote_check(&quote)];
    let ak = runtime.ak();
    checks.push(match (&ak, bound) {
        (Ok(_), true) => Check::passed("authenticate.ak", "HCLAkPub of the runtime data"),
        (Ok(_), false) => {
            let why = "the hardware's report doesn't prove the runtime data that names the key";
            Check::not_checked("authenticate.ak", why, "HCLAkPub of the runtime data")
        }
        (Err(e), _) => Check::of("authenticate.ak", false, Reason::Malformed, "an RSA key", e),
    });
    checks.push(Check::not_checked(
        "authenticate.ak-attributes",
        "the runtime data names the key without its TPM attributes: the paravisor vouches for them",
        "",
    ));
    let (Ok(quote), Ok(ak)) = (quote, ak) else {
        return unproven(checks);
    };
    let values: PcrValues = match quote.selections.as_slice() {
        [only] if only.pcrs.len() == pcrs.len() => {
            let values = only.pcrs.iter().copied().zip(pcrs.iter().cloned()).collect();
            [(only.bank, values)].into()
        }
        _ => PcrValues::new(),
    };
    let signature = Signature::rsassa_sha256(signature);
    let signed = signed_values(&quote, &signature, &ak, &values);
    let authentic = bound && signed.iter().all(|check| check.outcome == Outcome::Passed);
    checks.extend(signed);
    if !authentic {
        return unproven(checks);
    }
    let authentic = Authentic {
        quote,
        pcrs: values,
        firmware_known: true,
    };
    let expected = Expected {
        exact: None,
        padded: policy.report_data.as_ref(),
    };
    let (appraised, proven) = appraise::appraise(
        &authentic,
        Logs::default(),
        &endorsements.tpm,
        expected,
        &policy.tpm,
    );
    checks.extend(appraised);
    super::part_of_a_vm(&mut checks);
    if evidence.user_data_bound {
        let user_data = hex::decode(&runtime.user_data).unwrap_or_default();
        let rest = user_data.strip_prefix(authentic.quote.extra_data.as_slice());
        let holds = rest.is_some_and(|rest| rest.iter().all(|byte| *byte == 0));
        let expected = format!("{} and zeros", hex::encode(&authentic.quote.extra_data));
        let reason = Reason::RuntimeDataMismatch;
        checks.push(Check::of(
            "authenticate.user-data",
            holds,
            reason,
            expected,
            &runtime.user_data,
        ));
    }
    (checks, proven)
}

/// Every field, decoded; nothing is verified.
pub(crate) fn azure_claims(evidence: &AzureEvidence) -> Value {
    let hcl = match parse_hcl(&evidence.hcl_report) {
        Ok(hcl) => {
            let runtime = hcl.runtime_data();
            json!({
                "platform": format!("{:?}", hcl.platform).to_lowercase(),
                "runtime_data_hash": hex::encode(hcl.report_data()),
                "vm_configuration": runtime.as_ref().ok().map(|runtime| runtime.vm_configuration.clone()),
                "user_data": runtime.as_ref().ok().map(|runtime| runtime.user_data.clone()),
                "unreadable": runtime.err(),
            })
        }
        Err((_, what)) => json!({ "unreadable": what }),
    };
    let vtpm = evidence
        .quote
        .as_ref()
        .map(|quote| match Quote::parse(&quote.message) {
            Ok(parsed) => {
                let pcrs = quote
                    .pcrs
                    .iter()
                    .cloned()
                    .zip(0u8..)
                    .map(|(value, pcr)| (pcr, value));
                let mut claims = quote_claims(&parsed);
                claims["pcrs"] = pcr_claims(&PcrValues::from([(HashAlg::Sha256, pcrs.collect())]));
                claims
            }
            Err(e) => json!({ "unreadable": e.to_string() }),
        });
    json!({ "hcl": hcl, "vtpm": vtpm })
}
