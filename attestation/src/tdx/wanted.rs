//! What a quote needs of Intel's service, and what its answers are worth.

use super::authenticate::Signers;
use super::collateral::{Collateral, SignedText};
use super::pck::{self, Platform};
use super::quote::Quote;
use crate::Roots;
use crate::roots::RootKind;
use crate::x509::Cert;

/// FMSPC of the platform that made a quote, and the common name of its PCK certificate's issuer: what Intel's service
/// wants to know. The error is a sentence.
pub(crate) fn platform(quote: &[u8]) -> Result<([u8; 6], String), String> {
    let quote = Quote::parse(quote).map_err(|(_, what)| what)?;
    let chain = pck::chain(quote.pck_chain)?;
    let pck = chain.first().ok_or("a quote without a PCK certificate")?;
    let pck = Cert::parse(pck).map_err(|e| format!("an unreadable PCK certificate: {e}"))?;
    let platform = Platform::of(&pck).map_err(|(_, what)| what)?;
    Ok((platform.fmspc, pck.issuer_cn))
}

/// The platform that a TCB info is about, and its window (Unix seconds, inclusive), if Intel signed it.
pub(crate) fn answered_tcb_info(
    content: &[u8],
    pool: &[Cert],
    roots: &Roots,
    at: u64,
) -> Result<([u8; 6], (u64, u64)), String> {
    let collateral = read(content)?;
    let [document] = &collateral.tcb_infos[..] else {
        return Err("not a TCB info".to_owned());
    };
    let head = document.head.as_ref().map_err(String::clone)?;
    if document.info.as_ref().map_err(String::clone)?.is_none() {
        return Err("a TCB info, but not for TDX".to_owned());
    }
    is_intels(&document.signed, pool, roots, at)?;
    let window = head.window();
    Ok((head.fmspc.0, (window.from, window.to)))
}

/// The window (Unix seconds, inclusive) of a quoting enclave's identity, if it is TDX's and Intel signed it.
pub(crate) fn answered_qe_identity(
    content: &[u8],
    pool: &[Cert],
    roots: &Roots,
    at: u64,
) -> Result<(u64, u64), String> {
    let collateral = read(content)?;
    let [document] = &collateral.qe_identities[..] else {
        return Err("not an identity of a quoting enclave".to_owned());
    };
    let identity = document.identity.as_ref().map_err(String::clone)?;
    if !identity.is_td_qe() {
        return Err("the identity of another enclave than TDX's quoting enclave".to_owned());
    }
    is_intels(&document.signed, pool, roots, at)?;
    let window = identity.window();
    Ok((window.from, window.to))
}

fn read(content: &[u8]) -> Result<Collateral, String> {
    let mut collateral = Collateral::default();
    match collateral.recognise(content) {
        Some(Ok(_)) => Ok(collateral),
        Some(Err(e)) => Err(e.to_string()),
        None => Err("not what Intel's service answers".to_owned()),
    }
}

fn is_intels(text: &SignedText, pool: &[Cert], roots: &Roots, at: u64) -> Result<(), String> {
    let signed = |root: &Cert| Signers::gather(pool.iter(), root, at).signer_of(text).is_some();
    match roots.of(RootKind::Intel).any(|root| signed(&root.cert)) {
        true => Ok(()),
        false => Err("not signed by Intel".to_owned()),
    }
}
