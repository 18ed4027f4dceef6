//! AMD's key distribution service (AMD 57230, section 4).

use super::Needs;
use super::document::{Document, Window};
use crate::Roots;
use crate::endorsements::{Endorsements, pem_blocks};
use crate::roots::{RootKind, amd_intermediates};
use crate::snp::{Product, Report, TcbVersion, VekKind, vek};
use crate::x509::{Cert, Crl, find_path};

/// What an SNP report needs. `certificates`: those that came with it.
pub(super) fn needs(
    report: &[u8],
    certificates: &[Vec<u8>],
    known: &Endorsements,
    told: Option<Product>,
    needs: &mut Needs,
) {
    let Ok(report) = Report::parse(report) else {
        return needs.lack("a report of another length than an SNP report's");
    };
    let Some(kind) = report.signing_key() else {
        return needs.lack("the report isn't signed by a VCEK or VLEK");
    };
    let veks: Vec<Cert> = certificates
        .iter()
        .map(Vec::as_slice)
        .chain(known.certificates())
        .filter_map(|der| Cert::parse(der).ok())
        .filter(|cert| vek::kind(cert) == Some(kind))
        .collect();
    // A report of version 2 doesn't say its product; its certificate does.
    let issued = || veks.iter().find_map(|vek| vek::issued_by(&vek.issuer_cn));
    let Some(product) = report.product().or_else(|| Some(issued()?.1)).or(told) else {
        return needs.lack(
            "the report doesn't say which product it is from (version 2), and there is no certificate that does: name it \
             (`--product milan` or `genoa`)",
        );
    };
    needs.want(Document::AmdChain { product, vek: kind });
    needs.want(Document::AmdCrl { product, vek: kind });
    let tcb = report.reported_tcb(product);
    let chip_id = report.chip_id();
    let own = |cert: &Cert| {
        let same = |id: vek::HardwareId| id.as_chip_id() == chip_id;
        kind == VekKind::Vlek || vek::hardware_id(cert).is_ok_and(same)
    };
    let there = veks
        .iter()
        .any(|cert| own(cert) && vek::tcb(cert, product) == Ok(tcb));
    match kind {
        _ if there => {}
        VekKind::Vlek => needs.lack("the VLEK certificate: only the cloud provider has it"),
        VekKind::Vcek if chip_id.iter().all(|byte| *byte == 0) => {
            needs.lack("the VCEK certificate: the report hides its chip's id, so nobody can ask for it");
        }
        VekKind::Vcek => needs.want(Document::vcek(product, &chip_id, tcb)),
    }
}

pub(super) fn path(vek: VekKind) -> &'static str {
    match vek {
        VekKind::Vcek => "vcek",
        VekKind::Vlek => "vlek",
    }
}

/// The TCB version as the service wants it: two digits at least, decimal.
pub(super) fn query(product: Product, tcb: &str) -> String {
    let Some(tcb) = parse_tcb(product, tcb) else {
        return String::new(); // the service says no, and the check would
    };
    let fmc = tcb.fmc.map(|fmc| format!("fmcSPL={fmc:02}&")).unwrap_or_default();
    format!(
        "{fmc}blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
        tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode
    )
}

fn parse_tcb(product: Product, tcb: &str) -> Option<TcbVersion> {
    let bytes: [u8; 8] = hex::decode(tcb).ok()?.try_into().ok()?;
    Some(TcbVersion::from_bytes(bytes, product))
}

pub(super) fn check_vcek(
    content: &[u8],
    product: Product,
    chip_id: &str,
    tcb: &str,
    mut pool: Vec<Cert>,
    roots: &Roots,
    at: u64,
) -> Result<Window, String> {
    let cert = Cert::parse(content).map_err(|e| format!("not a certificate: {e}"))?;
    if vek::kind(&cert) != Some(VekKind::Vcek) {
        return Err(format!("a certificate of `{}`, not a VCEK", cert.subject_cn));
    }
    let id = vek::hardware_id(&cert).map_err(|e| e.what)?.as_chip_id();
    let wanted = hex::decode(chip_id).unwrap_or_default();
    if wanted.is_empty() || !id.starts_with(&wanted) || id[wanted.len()..].iter().any(|byte| *byte != 0) {
        return Err(format!("the VCEK of another chip ({}…)", hex::encode(&id[..8])));
    }
    let name = vek::product_name(&cert).map_err(|e| e.what)?;
    if !product.owns_name(&name) {
        return Err(format!("the VCEK of another product ({name})"));
    }
    let found = vek::tcb(&cert, product).map_err(|e| e.what)?;
    if parse_tcb(product, tcb) != Some(found) {
        return Err(format!("the VCEK of another TCB version ({found})"));
    }
    pool.extend_from_slice(amd_intermediates());
    let roots: Vec<_> = roots.of(RootKind::Amd).collect();
    find_path(&cert, &pool, &roots, at).map_err(|e| format!("not signed by AMD: {}", e.found))?;
    Ok(validity(&cert))
}

pub(super) fn check_chain(
    content: &[u8],
    product: Product,
    vek: VekKind,
    roots: &Roots,
    at: u64,
) -> Result<Window, String> {
    let text = std::str::from_utf8(content).map_err(|_| "not PEM")?;
    let blocks = pem_blocks(text).map_err(|e| e.to_string())?;
    let parse = |(_, der): &(&str, Vec<u8>)| Cert::parse(der).map_err(|e| format!("not a certificate: {e}"));
    let certs = blocks.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let own = |cert: &&Cert| vek::issued_by(&cert.subject_cn) == Some((vek, product));
    let intermediate = certs
        .iter()
        .find(own)
        .ok_or("not the intermediate that was asked for")?;
    let roots: Vec<_> = roots.of(RootKind::Amd).collect();
    find_path(intermediate, &[], &roots, at).map_err(|e| format!("not signed by AMD: {}", e.found))?;
    Ok(validity(intermediate))
}

pub(super) fn check_crl(content: &[u8], product: Product, roots: &Roots) -> Result<Window, String> {
    let crl = Crl::parse(content).map_err(|e| format!("not a CRL: {e}"))?;
    let own = format!("ARK-{product}");
    let genuine = roots
        .of(RootKind::Amd)
        .any(|root| root.cert.subject == crl.issuer && crl.signed.is_signed_by(&root.cert.key));
    match crl.issuer_cn == own && genuine {
        true => Ok(window(&crl)),
        false => Err(format!("not a CRL signed by {own}, but by `{}`", crl.issuer_cn)),
    }
}

pub(super) fn validity(cert: &Cert) -> Window {
    Window {
        from: cert.not_before,
        until: Some(cert.not_after),
    }
}

/// A CRL is good until the second before its end.
pub(super) fn window(crl: &Crl) -> Window {
    Window {
        from: crl.this_update,
        until: crl.next_update.map(|next| next.saturating_sub(1)),
    }
}
