//! What evidence of this machine will need, known before there is any.
//!
//! | machine | asked | documents |
//! |---|---|---|
//! | SEV-SNP | `/dev/sev`: `SEV_GET_ID2`, `SNP_PLATFORM_STATUS` (Linux, `virt/coco/sev-guest.rst`; AMD 56860, 8.3) | AMD's chain and CRL, and the VCEK of this chip at the TCB that it reports |
//! | TDX | the config: only the SGX side of a platform knows its FMSPC | Intel's CRLs, the quoting enclave's identity, and TCB info if the FMSPC is told |
//!
//! A GPU that is handed to guests isn't asked: the manifests that it needs go by the guest's driver, so the first
//! evidence names them.

use attestation::fetch::{Document, PckCa};
use attestation::snp::{TcbVersion, VekKind};
use sev::firmware::host::Firmware;

use crate::config::Fmspc;
use crate::inventory::Inventory;

/// The documents, those first that others are checked with. Waits for the chip's firmware.
pub fn documents(inventory: &Inventory, fmspc: Option<Fmspc>) -> Vec<Document> {
    let mut documents = Vec::new();
    if let (true, Some(product)) = (inventory.sev_snp.is_ready(), inventory.cpu.epyc()) {
        let vek = VekKind::Vcek;
        documents.push(Document::AmdChain { product, vek });
        documents.push(Document::AmdCrl { product, vek });
        match chip() {
            Ok((chip_id, tcb)) => documents.push(Document::vcek(product, &chip_id, tcb)),
            Err(error) => tracing::warn!(error, "the chip's certificate waits for the first evidence"),
        }
    }
    if inventory.tdx.is_ready() {
        documents.extend(intel(fmspc));
    }
    documents
}

fn intel(fmspc: Option<Fmspc>) -> Vec<Document> {
    let mut documents = vec![
        Document::QeIdentity,
        Document::PckCrl { ca: PckCa::Platform },
        Document::IntelRootCrl,
    ];
    documents.extend(fmspc.map(|fmspc| Document::TcbInfo {
        fmspc: fmspc.to_string(),
    }));
    documents
}

/// `CHIP_ID` and the TCB version that reports of this chip give. The error is a sentence.
fn chip() -> Result<(Vec<u8>, TcbVersion), String> {
    let mut firmware = Firmware::open().map_err(|e| format!("/dev/sev: {e}"))?;
    let identifier = firmware
        .get_identifier()
        .map_err(|e| format!("SEV_GET_ID2: {e}"))?;
    let status = firmware
        .snp_platform_status()
        .map_err(|e| format!("SNP_PLATFORM_STATUS: {e}"))?;
    let sev::firmware::host::TcbVersion {
        fmc,
        bootloader,
        tee,
        snp,
        microcode,
    } = status.reported_tcb_version;
    let tcb = TcbVersion {
        fmc,
        bootloader,
        tee,
        snp,
        microcode,
    };
    Ok((identifier.into(), tcb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tdx_host_gets_its_tcb_info_when_its_platform_is_told() {
        assert_eq!(intel(None).len(), 3);
        let told = intel(Some("50806F000000".parse().unwrap()));
        assert_eq!(told[3].to_string(), "TDX TCB info for FMSPC 50806f000000");
        for wrong in ["", "50806F0000", "50806F00000000", "50806F00000g"] {
            let error = wrong.parse::<Fmspc>().unwrap_err();
            assert!(error.contains("12 hexadecimal digits"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_machine_without_the_device_says_so() {
        if !std::path::Path::new("/dev/sev").exists() {
            assert!(chip().unwrap_err().starts_with("/dev/sev: "));
        }
    }
}
