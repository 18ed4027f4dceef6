//! What evidence needs of NVIDIA's services, and what their answers are worth.

use super::authenticate::leaf;
use super::ocsp::{self, Answer, OcspResponse};
use super::{GpuEvidence, Report};
use crate::roots::RootKind;
use crate::x509::{Cert, find_path};
use crate::{Endorsements, Roots};

/// A certificate and its issuer's, DER.
type Pair = (Vec<u8>, Vec<u8>);

/// The names of a device's manifests, and the certificates whose revocation matters. The error is a sentence.
pub(crate) fn wants(
    evidence: &GpuEvidence,
    roots: &Roots,
    at: u64,
) -> Result<(Vec<String>, Vec<Pair>), String> {
    let report = Report::parse(&evidence.report).map_err(|e| e.to_string())?;
    let certs: Vec<Cert> = evidence
        .certificates
        .iter()
        .filter_map(|der| Cert::parse(der).ok())
        .collect();
    let Some((leaf, _)) = leaf(&report, &certs) else {
        return Err("the device's certificate chain, which has to come with its report".to_owned());
    };
    let roots: Vec<_> = roots.of(RootKind::NvidiaDevice).collect();
    let path =
        find_path(leaf, &certs, &roots, at).map_err(|e| format!("a chain to NVIDIA's root: {}", e.found))?;
    let chip = leaf.subject_cn.split(' ').next().unwrap_or_default();
    let opaque = report.opaque();
    let ids = opaque
        .driver_rim_id(chip)
        .into_iter()
        .chain(opaque.vbios_rim_id())
        .collect();
    // The leaf is the device's own: nobody but it knows of it.
    Ok((ids, pairs(&path.certs[1..])))
}

/// The certificates of manifests' signers.
pub(crate) fn manifest_chains(endorsements: &Endorsements, roots: &Roots, at: u64) -> Vec<Pair> {
    let roots: Vec<_> = roots.of(RootKind::NvidiaRim).collect();
    let chains = endorsements.gpu.rims.iter().flatten().filter_map(|rim| {
        let (leaf, rest) = rim.certs().split_first()?;
        find_path(leaf, rest, &roots, at)
            .ok()
            .map(|path| pairs(&path.certs))
    });
    chains.flatten().collect()
}

fn pairs(chain: &[&Cert]) -> Vec<Pair> {
    let pair = |pair: &[&Cert]| (pair[0].der.clone(), pair[1].der.clone());
    chain.windows(2).map(pair).collect()
}

/// When a response about a certificate is good: from, until (Unix seconds, inclusive). Whatever it says,
/// it must be genuine. The error is a sentence.
pub(crate) fn answered_ocsp(
    content: &[u8],
    cert: &Cert,
    issuer: &Cert,
    at: u64,
) -> Result<(u64, u64), String> {
    let response = OcspResponse::parse(content).map_err(|_| "no successful OCSP response")?;
    let window = response
        .window(cert, issuer)
        .ok_or("an OCSP response about another certificate")?;
    match ocsp::answer(&[response], cert, issuer, at) {
        Answer::Current(_) | Answer::Stale => Ok(window),
        Answer::Forged => Err("an OCSP response that neither the issuer nor its responder signed".to_owned()),
        Answer::None => Err("an OCSP response about another certificate".to_owned()),
    }
}
