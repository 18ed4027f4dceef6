//! Intel's provisioning certification service (PCS API version 4), or a PCCS in front of it.

use super::Needs;
use super::amd::window;
use super::document::{Document, PckCa, Window};
use crate::Roots;
use crate::kind::decode_text;
use crate::roots::RootKind;
use crate::tdx::{answered_qe_identity, answered_tcb_info, platform};
use crate::x509::{Cert, Crl, find_path};

/// What a TDX quote needs.
pub(super) fn needs(quote: &[u8], needs: &mut Needs) {
    match platform(quote) {
        Ok((fmspc, issuer)) => {
            let fmspc = hex::encode(fmspc);
            needs.want(Document::TcbInfo { fmspc });
            needs.want(Document::QeIdentity);
            let cas = [PckCa::Processor, PckCa::Platform];
            match cas.into_iter().find(|ca| ca.common_name() == issuer) {
                Some(ca) => needs.want(Document::PckCrl { ca }),
                None => needs.lack("the PCK CRL: the quote's PCK certificate has an issuer that isn't known"),
            }
            needs.want(Document::IntelRootCrl);
        }
        Err(what) => needs.lack(what),
    }
}

pub(super) fn check_tcb_info(
    content: &[u8],
    fmspc: &str,
    pool: &[Cert],
    roots: &Roots,
    at: u64,
) -> Result<Window, String> {
    let (found, (from, until)) = answered_tcb_info(content, pool, roots, at)?;
    match hex::encode(found) == fmspc {
        true => Ok(Window {
            from,
            until: Some(until),
        }),
        false => Err(format!(
            "the TCB info of another platform (FMSPC {})",
            hex::encode(found)
        )),
    }
}

pub(super) fn check_qe_identity(
    content: &[u8],
    pool: &[Cert],
    roots: &Roots,
    at: u64,
) -> Result<Window, String> {
    let (from, until) = answered_qe_identity(content, pool, roots, at)?;
    Ok(Window {
        from,
        until: Some(until),
    })
}

pub(super) fn check_pck_crl(
    content: &mut Vec<u8>,
    ca: PckCa,
    pool: &[Cert],
    roots: &Roots,
    at: u64,
) -> Result<Window, String> {
    let crl = parse(content)?;
    if crl.issuer_cn != ca.common_name() {
        return Err(format!("the CRL of another issuer (`{}`)", crl.issuer_cn));
    }
    let roots: Vec<_> = roots.of(RootKind::Intel).collect();
    let signed = |cert: &&Cert| cert.subject == crl.issuer && crl.signed.is_signed_by(&cert.key);
    let signer = pool
        .iter()
        .find(signed)
        .ok_or("none of the issuer's certificates that came with it signed it")?;
    find_path(signer, pool, &roots, at).map_err(|e| format!("not signed by Intel: {}", e.found))?;
    Ok(window(&crl))
}

pub(super) fn check_root_crl(content: &mut Vec<u8>, roots: &Roots) -> Result<Window, String> {
    let crl = parse(content)?;
    let genuine = roots
        .of(RootKind::Intel)
        .any(|root| root.cert.subject == crl.issuer && crl.signed.is_signed_by(&root.cert.key));
    match genuine {
        true => Ok(window(&crl)),
        false => Err(format!("not signed by Intel's root, but by `{}`", crl.issuer_cn)),
    }
}

/// DER; a PCCS gives hexadecimal.
fn parse(content: &mut Vec<u8>) -> Result<Crl, String> {
    if let Some(der) = std::str::from_utf8(content).ok().and_then(decode_text) {
        *content = der;
    }
    Crl::parse(content).map_err(|e| format!("not a CRL: {e}"))
}
