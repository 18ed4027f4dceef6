//! Intel TDX: `parse → authenticate → appraise`.
//!
//! | stage | takes | proves |
//! |---|---|---|
//! | `quote` | bytes | the parts of a quote (version 4 or 5) lie where they must |
//! | `authenticate` | quote, collateral, roots, time | Intel's keys signed exactly these bytes; which collateral is genuine and current |
//! | `appraise` | the above, policy | the TD is what the policy asks for, on a platform that Intel's collateral finds up to date |
//! | `rtmr` | event log | the firmware's log replays to the run-time measurements |
//!
//! Formats: Intel's "TDX DCAP Quote Generation and Verification Library" (quotes), PCS API v4 (collateral), "SGX PCK
//! Certificate and CRL Profile" (certificates), TDX module ABI 348551 (the TD report). A quote names its platform by
//! FMSPC; without Intel's collateral for it nobody can tell whether that platform's firmware is sound, so then the
//! verdict is open, and the result names what is missing.

mod appraise;
mod authenticate;
mod collateral;
mod pck;
mod policy;
mod quote;
mod rtmr;
mod tcb;
#[cfg(feature = "fetch")]
mod wanted;

use serde_json::{Value, json};
use sha2::{Digest, Sha384};

pub(crate) use collateral::Collateral;
#[cfg(feature = "sim")]
pub(crate) use pck::forget;
pub use policy::TdxPolicy;
pub(crate) use policy::TdxPolicyFile;
pub(crate) use quote::recognise;
pub use tcb::TcbStatus;
#[cfg(feature = "fetch")]
pub(crate) use wanted::{answered_qe_identity, answered_tcb_info, platform};

use crate::result::{Appraisal, Check, Trust};
use crate::show;
use crate::x509::Cert;
use crate::{Endorsements, GuestKeys, Policy, Roots};
use pck::Platform;
use quote::Quote;

/// One value for everything that was measured until the operating system ran: SHA-384(`MRTD` ‖ `RTMR0` ‖ `RTMR1` ‖
/// `RTMR2`). `RTMR3` is the operating system's own.
pub fn measurement(mr_td: [u8; 48], [rtmr0, rtmr1, rtmr2, _]: [[u8; 48]; 4]) -> [u8; 48] {
    let mut sha = Sha384::new();
    for register in [mr_td, rtmr0, rtmr1, rtmr2] {
        sha.update(register);
    }
    sha.finalize().into()
}

/// All stages. `quote`: raw; `event_log`: a CCEL, if there is one.
pub(crate) fn verify(
    quote: &[u8],
    event_log: Option<&[u8]>,
    keys: &GuestKeys,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> Appraisal {
    let quote = match Quote::parse(quote) {
        Ok(quote) => quote,
        Err((reason, found)) => {
            let expected = "a TDX quote of version 4 or 5";
            let mut checks = vec![Check::of("format.quote", false, reason, expected, found)];
            checks.extend(unappraised());
            return Appraisal {
                checks,
                trust: Trust::None,
                warnings: Vec::new(),
                claims: Value::Null,
            };
        }
    };
    let mut claims = quote.claims();
    let mut authentication =
        authenticate::authenticate(&quote, endorsements, roots, policy.tdx.allow_padding, at);
    let mut checks = std::mem::take(&mut authentication.checks);
    if let Some(platform) = &authentication.platform {
        claims["platform"] = platform.claims();
    }
    if authentication.authentic {
        let (appraised, tcb) = appraise::appraise(&quote, &authentication, policy);
        checks.extend(appraised);
        let given = endorsements.tdx.event_logs.iter().map(Vec::as_slice);
        checks.push(rtmr::check(
            event_log.into_iter().chain(given),
            quote.body().rtmrs(),
        ));
        checks.push(crate::compare::contract_id(policy));
        checks.push(crate::compare::settings(keys, policy));
        if let Some(tcb) = tcb {
            claims["tcb"] = json!({
                "status": tcb.level.status,
                "advisories": tcb.level.advisories,
                "date": tcb.level.date.map(show::time),
                "evaluation_data_number": tcb.evaluation_number,
            });
        }
    } else {
        checks.extend(unappraised());
    }
    Appraisal {
        checks,
        trust: authentication.trust,
        warnings: Vec::new(),
        claims,
    }
}

/// The appraisal of a quote that isn't authentic: named, and not made.
fn unappraised() -> impl Iterator<Item = Check> {
    let not = |id| Check::not_checked(id, "the quote isn't authentic, so what it says doesn't count", "");
    appraise::CHECKS
        .into_iter()
        .chain(["appraise.event-log", "appraise.contract-id", "appraise.settings"])
        .map(not)
}

/// Every field, decoded; nothing is verified.
pub(crate) fn claims(quote: &[u8]) -> Value {
    let quote = match Quote::parse(quote) {
        Ok(quote) => quote,
        Err((_, what)) => return json!({ "unreadable": what }),
    };
    let mut claims = quote.claims();
    let leaf = pck::chain(quote.pck_chain).ok();
    let leaf = leaf.and_then(|chain| Cert::parse(chain.first()?).ok());
    if let Some(leaf) = leaf {
        let platform = Platform::of(&leaf).ok();
        claims["platform"] = platform.map_or(Value::Null, |platform| platform.claims());
        claims["pck_issuer"] = json!(leaf.issuer_cn);
    }
    claims
}

/// A quote without the zeros that a buffer of fixed size has behind it. What is no quote stays as it is.
pub(crate) fn without_padding(quote: &[u8]) -> &[u8] {
    let padding = Quote::parse(quote).map_or(0, |quote| quote.padding());
    &quote[..quote.len() - padding]
}

/// The `REPORTDATA` of a quote that may be believed or not; `None`: bytes that are no quote.
pub(crate) fn report_data(quote: &[u8]) -> Option<[u8; 64]> {
    let quote = Quote::parse(quote).ok()?;
    Some(quote.body().report_data())
}
