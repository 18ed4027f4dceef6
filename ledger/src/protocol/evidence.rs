//! The door to the verifier: what evidence proves about one contract (DESIGN 4, bindings).
//!
//! For a confidential kind all of this must hold, or the money doesn't move: the chain leads to a pinned root, or to a
//! test root that the genesis names (then `trust` says `test-root`); `HOST_DATA` is the contract id; `REPORT_DATA` is
//! [`attestation::Binding`] of this ledger, the contract, its nonce and the guest's keys and settings; the settings are
//! the contract's SSH keys and user data, and the id is the one that salt and settings give; the measurement is one of the contract's; no part of the TCB version is below
//! the floor; no debugging, no migration agent, VMPL 0; and as many GPUs as were paid for, no device twice, each bound to
//! `REPORT_DATA` by its nonce and measured as NVIDIA's manifests say, which the host submits along. A plain VM's evidence is its host's word, given by the signed
//! call itself.

use std::collections::BTreeMap;

use attestation::eventlog::HashAlg;
use attestation::snp::{Product, TcbFloor, TcbFloors};
use attestation::tpm::{AkPin, ReferenceKey, TpmEvidence, TpmPolicy};
use attestation::{
    AnyEvidence, AttestationResult, Binding, Bundle, Composite, CpuEvidence, Endorsements, HostBinding,
    Policy, Requirement, Roots,
};
use candid::Principal;

use super::block::hash;
use super::contract::settings_of;
use super::genesis::Genesis;
use super::offering::grade_name;
use super::settlement::SECOND;
use crate::api::{Confirmation, Contract, Digest32, Grade, ProductFloors, TimeNs, TpmName, VmKind};

/// Where `CHIP_ID` stands in a report of every version (AMD 56860, ATTESTATION_REPORT).
const CHIP_ID: std::ops::Range<usize> = 0x1a0..0x1e0;

/// What a host's quote must cover: firmware, boot loader, Secure Boot, kernel image, and what may be added to its command
/// line and root (systemd-stub(7): PCR 12 and 13).
const HOST_PCRS: [u8; 11] = [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13];

/// Evidence that proves enough.
pub(super) struct Appraised {
    pub(super) confirmation: Confirmation,
    /// Names the chip, where the evidence does; under a test root it is another name than under a real one.
    pub(super) chip: Option<Digest32>,
    /// Why the host's quote, which the contract does without, doesn't count.
    pub(super) host_refusals: Vec<String>,
}

/// A host's evidence that proves enough.
pub(super) struct HostAppraised {
    /// The image's name.
    pub(super) image: String,
    pub(super) confirmation: Confirmation,
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

/// What a host submits: evidence in its one encoding, alone or with endorsements, which are believed as far as their
/// signatures go.
fn read<T, E: ToString>(
    bytes: &[u8],
    parse: fn(&[u8]) -> Result<T, E>,
) -> Result<(T, Endorsements), Refusal> {
    let no_evidence = |why: String| refused(format!("not evidence: {why}"));
    let parse = |bytes: &[u8]| parse(bytes).map_err(|error| no_evidence(error.to_string()));
    let mut endorsements = Endorsements::none();
    if !Bundle::is_one(bytes) {
        return Ok((parse(bytes)?, endorsements));
    }
    let bundle = Bundle::from_cbor(bytes).map_err(|error| no_evidence(error.to_string()))?;
    let added = bundle.add_to(&mut endorsements);
    added.map_err(|error| no_evidence(error.to_string()))?;
    Ok((parse(&bundle.evidence)?, endorsements))
}

/// Bytes that aren't evidence, or not of the right kind.
fn refused(why: String) -> Refusal {
    Refusal {
        reasons: vec![why],
        result: String::new(),
    }
}

/// A verdict's failed checks.
fn refusal(verdict: &AttestationResult) -> Refusal {
    let mut reasons = verdict.failures();
    if reasons.is_empty() {
        reasons.push("the evidence could not be judged".to_owned());
    }
    Refusal {
        reasons,
        result: verdict.to_json().to_string(),
    }
}

/// What evidence is judged by.
pub(super) struct Judge<'a> {
    pub(super) genesis: &'a Genesis,
    pub(super) ledger: Principal,
    /// The attestation key of the host that submits, as its provider's delegation names it.
    pub(super) attestation_key: Option<TpmName>,
    /// The ledger's time.
    pub(super) now: TimeNs,
}

impl Judge<'_> {
    fn roots(&self) -> Result<Roots, Refusal> {
        roots(self.genesis).map_err(|error| refused(format!("this ledger's genesis: {error}")))
    }

    /// What is asked of a host's TPM: the provider's delegation names its key, nothing is taken without an event log and
    /// Secure Boot, and PCRs are as a known image's signed reference values say.
    fn tpm_policy(&self) -> Result<TpmPolicy, Refusal> {
        let name = self.attestation_key.ok_or_else(|| {
            refused("AkMismatch: the provider's delegation names no attestation key of this host".to_owned())
        })?;
        let images = &self.genesis.host_images;
        if images.keys.is_empty() {
            return Err(refused(
                "ReferenceMissing: this ledger's genesis names no key that signs reference values of images"
                    .to_owned(),
            ));
        }
        Ok(TpmPolicy {
            allowed_aks: Some(vec![AkPin::Name(name.0.to_vec())]),
            required_pcrs: [(HashAlg::Sha256, HOST_PCRS.into())].into(),
            reference_keys: images
                .keys
                .iter()
                .filter_map(|pem| ReferenceKey::parse(pem.as_bytes())) // all of them: the genesis was checked
                .collect(),
            refused_images: images.refused.iter().cloned().collect(),
            require_event_log: true,
            require_secure_boot: true,
            ..TpmPolicy::default()
        })
    }

    /// Verifies a host's own evidence.
    pub(super) fn host(
        &self,
        host: Principal,
        nonce: &Digest32,
        bytes: &[u8],
    ) -> Result<HostAppraised, Refusal> {
        let (evidence, endorsements) = read(bytes, TpmEvidence::from_cbor)?;
        let binding = HostBinding {
            ledger: self.ledger.as_slice(),
            host: host.as_slice(),
            nonce: nonce.0,
        };
        let policy = Policy {
            tpm: TpmPolicy {
                nonce: Some(binding.qualifying_data().to_vec()),
                ..self.tpm_policy()?
            },
            min_grade: attestation::Grade::HostVerified,
            required: [Requirement::Freshness, Requirement::Measurement].into(),
            ..Policy::default()
        };
        let (evidence, at) = (AnyEvidence::Tpm(evidence), self.now / SECOND);
        let verdict = attestation::verify_any(&evidence, &endorsements, &self.roots()?, &policy, at);
        let image = verdict
            .claims
            .pointer("/proven/image/name")
            .and_then(|name| name.as_str());
        match image.filter(|_| verdict.is_verified()) {
            None => Err(refusal(&verdict)),
            Some(image) => Ok(HostAppraised {
                image: image.to_owned(),
                confirmation: Confirmation {
                    grade: Grade::HostVerified,
                    trust: verdict.trust.to_string(),
                    result: verdict.to_json().to_string(),
                },
            }),
        }
    }

    /// Verifies a contract's evidence. Where a host's quote doesn't hold and the contract does without, the quote is left
    /// out, and why it didn't hold is on record.
    pub(super) fn contract(
        &self,
        contract: &Contract,
        nonce: &Digest32,
        bytes: &[u8],
    ) -> Result<Appraised, Refusal> {
        let (evidence, endorsements) = read(bytes, Composite::from_cbor)?;
        let whole = self.vm(contract, nonce, &evidence, &endorsements);
        match whole {
            Err(refusal)
                if evidence.host.is_some() && contract.args.request.min_grade <= Grade::HostSigned =>
            {
                let alone = Composite {
                    host: None,
                    ..evidence
                };
                let alone = self.vm(contract, nonce, &alone, &endorsements)?;
                let why = refusal
                    .reasons
                    .into_iter()
                    .map(|why| format!("the host's quote: {why}"));
                Ok(Appraised {
                    host_refusals: why.collect(),
                    ..alone
                })
            }
            other => other,
        }
    }

    fn vm(
        &self,
        contract: &Contract,
        nonce: &Digest32,
        evidence: &Composite,
        endorsements: &Endorsements,
    ) -> Result<Appraised, Refusal> {
        let (vm, gpus) = (&evidence.vm, contract.args.request.gpus as usize);
        let kind = contract.args.request.kind;
        if kind == VmKind::Plain && (vm.cpu != CpuEvidence::None || !evidence.gpus.is_empty()) {
            return Err(refused(
                "a plain contract takes its host's word or quote, not a CPU's or GPU's report".to_owned(),
            ));
        }
        if kind != VmKind::Plain && evidence.host.is_some() {
            return Err(refused(
                "a confidential contract takes its CPU's report, not its host's quote".to_owned(),
            ));
        }
        let binding = Binding {
            ledger: self.ledger.as_slice(),
            contract: contract.id.0,
            nonce: nonce.0,
        };
        let policy = match kind {
            VmKind::Plain => Policy {
                report_data: Some(binding.report_data(&vm.guest_keys)),
                min_grade: match contract.args.request.min_grade {
                    Grade::Unconfirmed | Grade::HostSigned => attestation::Grade::HostSigned,
                    Grade::HostVerified => attestation::Grade::HostVerified,
                    Grade::HardwareVerified => attestation::Grade::HardwareVerified,
                },
                tpm: match &evidence.host {
                    Some(_) => self.tpm_policy()?,
                    None => TpmPolicy::default(),
                },
                ..Policy::default()
            },
            VmKind::SevSnp | VmKind::Tdx => Policy {
                allowed_measurements: Some(contract.args.allowed_measurements.iter().map(|m| m.0).collect()),
                host_data: Some(contract.id.0),
                report_data: Some(binding.report_data(&vm.guest_keys)),
                salt: Some(contract.salt.0),
                settings: Some(settings_of(&contract.args)),
                min_tcb: TcbFloors::all(floor(contract.args.min_tcb)),
                product_tcb: floors(&self.genesis.min_tcb),
                gpus: Some(gpus),
                min_grade: attestation::Grade::HardwareVerified,
                required: [
                    Requirement::Freshness,
                    Requirement::Measurement,
                    Requirement::Revocation,
                    Requirement::Tcb,
                ]
                .into(),
                ..Policy::default()
            },
        };
        let at = self.now / SECOND;
        let verdict = attestation::verify_composite(evidence, endorsements, &self.roots()?, &policy, at);
        if !verdict.is_verified() {
            return Err(refusal(&verdict));
        }
        let result = verdict.to_json().to_string();
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
            host_refusals: Vec::new(),
        })
    }
}

fn floor(floor: crate::api::TcbFloor) -> TcbFloor {
    TcbFloor {
        fmc: floor.fmc,
        bootloader: floor.bootloader,
        tee: floor.tee,
        snp: floor.snp,
        microcode: floor.microcode,
    }
}

fn floors(floors: &ProductFloors) -> BTreeMap<Product, TcbFloor> {
    let all = [
        (Product::Milan, floors.milan),
        (Product::Genoa, floors.genoa),
        (Product::Turin, floors.turin),
    ];
    all.into_iter()
        .filter_map(|(product, one)| Some((product, floor(one?))))
        .collect()
}
