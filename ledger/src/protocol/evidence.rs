//! The door to the verifier: what evidence proves about one contract (DESIGN 4, bindings).
//!
//! For a confidential kind all of this must hold, or the money doesn't move: the chain leads to a pinned root, or to a
//! test root that the genesis names (then `trust` says `test-root`); `HOST_DATA` is the contract id; `REPORT_DATA` is
//! [`attestation::Binding`] of this ledger, the contract, its nonce and the guest's keys and settings; the settings are
//! the contract's SSH keys and user data, and the id is the one that salt and settings give; the measurement is one of the contract's; no part of the TCB version is below
//! the floor; no debugging, no migration agent, VMPL 0; and as many GPUs as were paid for, no device twice, each bound to
//! `REPORT_DATA` by its nonce and measured as NVIDIA's manifests say, which the host submits along. A plain VM's evidence is its host's word, given by the signed
//! call itself.

use attestation::snp::{TcbFloor, TcbFloors};
use attestation::{Binding, Bundle, Composite, CpuEvidence, Endorsements, Policy, Requirement, Roots};
use candid::Principal;

use super::block::hash;
use super::contract::settings_of;
use super::genesis::Genesis;
use super::offering::grade_name;
use super::settlement::SECOND;
use crate::api::{Confirmation, Contract, Digest32, Grade, TimeNs, VmKind};

/// Where `CHIP_ID` stands in a report of every version (AMD 56860, ATTESTATION_REPORT).
const CHIP_ID: std::ops::Range<usize> = 0x1a0..0x1e0;

/// Evidence that proves enough.
pub(super) struct Appraised {
    pub(super) confirmation: Confirmation,
    /// Names the chip, where the evidence does; under a test root it is another name than under a real one.
    pub(super) chip: Option<Digest32>,
}

/// Evidence that doesn't.
pub(super) struct Refusal {
    /// Every failed check.
    pub(super) reasons: Vec<String>,
    /// The attestation result as JSON; empty when the bytes aren't evidence at all.
    pub(super) result: String,
}

/// The roots that a ledger of this genesis trusts.
pub(super) fn roots(genesis: &Genesis) -> Result<Roots, String> {
    genesis
        .test_roots
        .iter()
        .try_fold(Roots::pinned(), |roots, root| {
            roots.with_test_root(&root.0).map_err(|error| error.to_string())
        })
}

/// What a host submits: a VM's evidence, alone or with its makers' endorsements, which are believed as far as their
/// signatures go.
fn read(bytes: &[u8]) -> Result<(Composite, Endorsements), String> {
    let mut endorsements = Endorsements::none();
    let evidence = match Bundle::is_one(bytes) {
        false => Composite::from_cbor(bytes),
        true => {
            let bundle = Bundle::from_cbor(bytes).map_err(|error| error.to_string())?;
            let added = bundle.add_to(&mut endorsements);
            added.map_err(|error| error.to_string())?;
            Composite::from_cbor(&bundle.evidence)
        }
    };
    Ok((evidence.map_err(|error| error.to_string())?, endorsements))
}

/// Verifies `bytes` for the contract at the ledger's time `now`.
pub(super) fn appraise(
    genesis: &Genesis,
    ledger: Principal,
    contract: &Contract,
    nonce: &Digest32,
    bytes: &[u8],
    now: TimeNs,
) -> Result<Appraised, Refusal> {
    let refused = |why: String| Refusal {
        reasons: vec![why],
        result: String::new(),
    };
    let (evidence, endorsements) = read(bytes).map_err(|why| refused(format!("not evidence: {why}")))?;
    if evidence.host.is_some() {
        return Err(refused("this ledger takes no host's quote".to_owned()));
    }
    let (vm, gpus) = (&evidence.vm, contract.args.request.gpus as usize);
    let kind = contract.args.request.kind;
    if kind == VmKind::Plain && (vm.cpu != CpuEvidence::None || !evidence.gpus.is_empty()) {
        return Err(refused(
            "a plain contract takes its host's word, not a CPU's or GPU's report".to_owned(),
        ));
    }
    let roots = roots(genesis).map_err(|error| refused(format!("this ledger's genesis: {error}")))?;
    let binding = Binding {
        ledger: ledger.as_slice(),
        contract: contract.id.0,
        nonce: nonce.0,
    };
    let policy = match kind {
        VmKind::Plain => Policy {
            min_grade: attestation::Grade::HostSigned,
            ..Policy::default()
        },
        VmKind::SevSnp | VmKind::Tdx => {
            let floor = contract.args.min_tcb;
            Policy {
                allowed_measurements: Some(contract.args.allowed_measurements.iter().map(|m| m.0).collect()),
                host_data: Some(contract.id.0),
                report_data: Some(binding.report_data(&vm.guest_keys)),
                salt: Some(contract.salt.0),
                settings: Some(settings_of(&contract.args)),
                min_tcb: TcbFloors::all(TcbFloor {
                    fmc: floor.fmc,
                    bootloader: floor.bootloader,
                    tee: floor.tee,
                    snp: floor.snp,
                    microcode: floor.microcode,
                }),
                gpus: Some(gpus),
                min_grade: attestation::Grade::HardwareVerified,
                required: [
                    Requirement::Freshness,
                    Requirement::Measurement,
                    Requirement::Revocation,
                ]
                .into(),
                ..Policy::default()
            }
        }
    };
    let verdict = attestation::verify_composite(&evidence, &endorsements, &roots, &policy, now / SECOND);
    let result = verdict.to_json().to_string();
    if !verdict.is_verified() {
        let mut reasons = verdict.failures();
        if reasons.is_empty() {
            reasons.push("the evidence could not be judged".to_owned());
        }
        return Err(Refusal { reasons, result });
    }
    let grade = match verdict.grade {
        attestation::Grade::Unconfirmed => Grade::Unconfirmed,
        attestation::Grade::HostSigned => Grade::HostSigned,
        attestation::Grade::HostVerified => Grade::HostVerified,
        attestation::Grade::HardwareVerified => Grade::HardwareVerified,
    };
    // Whatever the verifier says, a contract is never confirmed below what was paid for.
    let least = contract.args.request.min_grade.max(Grade::HostSigned);
    if grade < least {
        let why = format!(
            "grade: expected at least {}, found {}",
            grade_name(least),
            grade_name(grade)
        );
        return Err(Refusal {
            reasons: vec![why],
            result,
        });
    }
    let trust = verdict.trust.to_string();
    let chip = match &vm.cpu {
        CpuEvidence::SevSnp { report, .. } => report
            .get(CHIP_ID)
            .filter(|id| id.iter().any(|byte| *byte != 0)) // all zero: masked, or signed by a VLEK
            .map(|id| hash(&[b"\x0bdecent-chip", trust.as_bytes(), b"\0", id])),
        CpuEvidence::Tdx { .. } | CpuEvidence::None => None,
    };
    Ok(Appraised {
        confirmation: Confirmation { grade, trust, result },
        chip,
    })
}
