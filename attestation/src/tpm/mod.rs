//! TPM 2.0: quotes with event logs, the evidence of hosts; `parse → authenticate → appraise`.
//!
//! | stage | takes | gives | proves |
//! |---|---|---|---|
//! | [`TpmEvidence::from_cbor`], [`Quote::parse`], … | bytes | typed parts | the formats |
//! | `authenticate` | quote, signature, key, certificates, PCR values | an authentic quote | a key that the policy trusts signed it, and the values are the quoted ones |
//! | `appraise` | authentic quote, logs, reference values, policy | checks | it is fresh, covers enough, and the machine booted what it should |
//!
//! Formats: TPM 2.0 Library (Parts 1 to 3), TCG PC Client Platform Firmware Profile for the event log. No TPM maker's root
//! is pinned: the policy names attestation keys ([`AkPin`]) or roots ([`TpmPolicy::roots`]), or a test root is named.
//!
//! What a quote can't show: that the TPM sits in the machine that somebody thinks of (a quote can be relayed), and physical
//! attacks on the TPM's bus.
//!
//! Azure's confidential VMs give a quote of a *virtual* TPM, whose key the CPU's report vouches for; it goes through the
//! same stages.

mod appraise;
mod attest;
mod authenticate;
mod azure;
#[cfg(feature = "native")]
mod credential;
#[cfg(feature = "tpm")]
mod device;
mod evidence;
mod json;
mod key;
mod policy;
mod reference;
mod signature;
mod wire;

pub use attest::{ClockInfo, PcrSelection, QUALIFYING_DATA_LEN_MAX, Quote, QuoteError};
pub use azure::AzureEvidence;
#[cfg(feature = "native")]
pub use credential::{Credential, CredentialError, make_credential};
#[cfg(feature = "tpm")]
pub use device::{EventLogFiles, TpmDevice, TpmDeviceError};
pub use evidence::{PcrValues, TPM_EVIDENCE_LEN_MAX, TpmEvidence};
pub use key::AttestationKey;
pub use policy::{AkPin, ReferenceKey, TpmPolicy};
pub use reference::{REFERENCE_PAYLOAD_TYPE, reference_to_sign};
pub use signature::{Signature, SignatureError};
pub use wire::WireError;

pub(crate) use azure::{azure_claims, verify_azure};
pub(crate) use policy::TpmPolicyFile;
pub(crate) use reference::TpmReferences;

use serde_json::{Value, json};

use crate::result::{Appraisal, Check, Outcome, Reason, Trust};
use crate::{Endorsements, Policy, Roots};
use appraise::{Expected, Logs};

/// What [`recognise`] can find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recognised {
    Tpm(TpmEvidence),
    Azure(AzureEvidence),
}

/// Takes a file's content (text is already decoded from hex or base64) if it is TPM evidence or Azure's.
pub(crate) fn recognise(content: &[u8]) -> Option<Result<Recognised, String>> {
    if content.starts_with(&evidence::START) {
        return Some(TpmEvidence::from_cbor(content).map(Recognised::Tpm));
    }
    if let Some(found) = json::recognise(content) {
        return Some(found.map(Recognised::Tpm));
    }
    azure::recognise(content).map(|found| found.map(Recognised::Azure))
}

/// All stages. `qualifying_data`: what the quote must hold, if the caller knows.
pub(crate) fn verify(
    evidence: &TpmEvidence,
    qualifying_data: Option<&[u8]>,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> Appraisal {
    let (mut checks, parsed) = parse(evidence);
    let mut claims = claims(evidence);
    let Some((quote, signature, ak)) = parsed else {
        checks.extend(unappraised());
        return Appraisal {
            checks,
            trust: Trust::None,
            warnings: Vec::new(),
            claims,
        };
    };
    let parts = (&quote, &signature, &ak);
    let authentication = authenticate::authenticate(parts, evidence, endorsements, roots, &policy.tpm, at);
    checks.extend(authentication.checks);
    let mut warnings = Vec::new();
    match &authentication.authentic {
        Some(authentic) => {
            let logs = Logs {
                firmware: evidence.firmware_log.as_deref(),
                userspace: evidence.userspace_log.as_deref(),
            };
            let expected = Expected {
                exact: qualifying_data,
                // What a VM's evidence binds isn't what its host's quote holds: the caller then said what that is.
                padded: policy.report_data.as_ref().filter(|_| qualifying_data.is_none()),
            };
            let references = &endorsements.tpm;
            let (appraised, proven) = appraise::appraise(authentic, logs, references, expected, &policy.tpm);
            let compared = |check: &Check| {
                check.id == "appraise.measurement" && !matches!(check.outcome, Outcome::NotChecked(_))
            };
            if !appraised.iter().any(compared) {
                warnings.push(
                    "no PCR was compared with a reference value: this shows whose TPM it is, not what was booted".to_owned(),
                );
            }
            checks.extend(appraised);
            claims["proven"] = proven;
        }
        None => checks.extend(unappraised()),
    }
    if qualifying_data.is_some() {
        part_of_a_vm(&mut checks);
    }
    Appraisal {
        checks,
        trust: authentication.trust,
        warnings,
        claims,
    }
}

/// Beside a VM's CPU, whose TCB is what a required floor is about, the TPM's firmware is a line of its own.
fn part_of_a_vm(checks: &mut [Check]) {
    for check in checks.iter_mut().filter(|check| check.id == "appraise.tcb-floor") {
        check.id = "appraise.firmware";
    }
}

/// The parts that are signed and that sign, each with a line.
fn parse(evidence: &TpmEvidence) -> (Vec<Check>, Option<(Quote, Signature, AttestationKey)>) {
    let quote = Quote::parse(&evidence.quote);
    let signature = Signature::parse(&evidence.signature);
    let ak = AttestationKey::parse(&evidence.ak);
    let checks = vec![
        quote_check(&quote),
        match &signature {
            Ok(signature) => Check::passed("format.signature", signature.shown()),
            Err(e) => {
                let reason = match e {
                    SignatureError::Malformed(_) => Reason::Malformed,
                    SignatureError::Unsupported { .. } => Reason::UnsupportedAlgorithm,
                };
                Check::of("format.signature", false, reason, "a TPMT_SIGNATURE", e)
            }
        },
        match &ak {
            Ok(_) => Check::passed("format.ak", "a public key"),
            Err(e) => Check::of("format.ak", false, Reason::Malformed, "a public key", e),
        },
    ];
    let parts = quote.ok().zip(signature.ok()).zip(ak.ok());
    (
        checks,
        parts.map(|((quote, signature), ak)| (quote, signature, ak)),
    )
}

fn quote_check(quote: &Result<Quote, QuoteError>) -> Check {
    let (reason, found) = match quote {
        Ok(_) => return Check::passed("format.quote", "a TPMS_ATTEST of a quote"),
        Err(e @ QuoteError::Malformed(_)) => (Reason::Malformed, e),
        Err(e @ QuoteError::Magic(_)) => (Reason::NotTpmGenerated, e),
        Err(e @ QuoteError::Type(_)) => (Reason::NotAQuote, e),
    };
    Check::of("format.quote", false, reason, "a TPMS_ATTEST of a quote", found)
}

/// The appraisal of a quote that isn't authentic: named, and not made.
fn unappraised() -> impl Iterator<Item = Check> {
    let why = "the quote isn't authentic, so what it says doesn't count";
    appraise::CHECKS
        .into_iter()
        .map(move |id| Check::not_checked(id, why, ""))
}

/// Every field, decoded; nothing is verified.
pub(crate) fn claims(evidence: &TpmEvidence) -> Value {
    let quote = match Quote::parse(&evidence.quote) {
        Ok(quote) => quote_claims(&quote),
        Err(e) => json!({ "unreadable": e.to_string() }),
    };
    let ak = match AttestationKey::parse(&evidence.ak) {
        Ok(ak) => json!({
            "name": ak.name().map(hex::encode),
            "spki_sha256": hex::encode(ak.spki_sha256()),
        }),
        Err(e) => json!({ "unreadable": e.to_string() }),
    };
    let signature = match Signature::parse(&evidence.signature) {
        Ok(signature) => json!(signature.shown()),
        Err(e) => json!({ "unreadable": e.to_string() }),
    };
    json!({
        "quote": quote,
        "ak": ak,
        "signature": signature,
        "certificates": evidence.certificates.len(),
        "pcrs": pcr_claims(&evidence.pcrs),
        "firmware_log_bytes": evidence.firmware_log.as_ref().map(Vec::len),
        "userspace_log_bytes": evidence.userspace_log.as_ref().map(Vec::len),
    })
}

fn quote_claims(quote: &Quote) -> Value {
    json!({
        "qualified_signer": hex::encode(&quote.qualified_signer),
        "extra_data": hex::encode(&quote.extra_data),
        "clock_ms": quote.clock.clock,
        "reset_count": quote.clock.reset_count,
        "restart_count": quote.clock.restart_count,
        "clock_safe": quote.clock.safe,
        "firmware_version": format!("{:016x}", quote.firmware_version),
        "pcr_digest": hex::encode(&quote.pcr_digest),
    })
}

fn pcr_claims(pcrs: &PcrValues) -> Value {
    let banks = pcrs.iter().map(|(bank, values)| {
        let values = values
            .iter()
            .map(|(pcr, value)| (pcr.to_string(), json!(hex::encode(value))));
        (bank.name().to_owned(), Value::Object(values.collect()))
    });
    Value::Object(banks.collect())
}
