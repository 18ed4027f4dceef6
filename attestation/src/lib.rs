//! Evidence in, verdict out.
//!
//! A verifier for the evidence that confidential VMs give about themselves, in the words of RATS (RFC 9334):
//!
//! | word | here |
//! |---|---|
//! | evidence | [`Evidence`]: what the CPU says about the VM, and what the VM says of itself: its keys, and the settings it applied |
//! | composite evidence | [`Composite`]: a VM with its GPUs and its host, one verdict over all |
//! | endorsements | [`Endorsements`]: the maker's certificates and revocation lists |
//! | trust anchors | [`Roots`]: the makers' root keys, pinned; a test root only by name, and it taints the result |
//! | appraisal policy, reference values | [`Policy`] |
//! | attestation result | [`AttestationResult`]: every check on a line of its own, a verdict, a grade |
//!
//! [`verify`] is a function of its arguments: it has no clock, no network, no randomness. Whoever has the same bytes can
//! repeat a verdict years later. Inside, `parse → authenticate → appraise → result` are types of their own, so that
//! bytes which nobody authenticated can't be appraised.
//!
//! | module | for |
//! |---|---|
//! | [`snp`] | AMD SEV-SNP: the report's fields, its certificates, its revocation lists |
//! | [`tdx`] | Intel TDX: quotes and Intel's collateral |
//! | [`nvidia`] | NVIDIA GPUs: SPDM evidence, reference manifests |
//! | [`tpm`] | TPM 2.0: the quote of a host, and of Azure's virtual TPM |
//! | [`measure`] | reference values: the SNP launch digest of firmware + kernel + initrd + command line, or of an IGVM file |
//! | [`eventlog`] | what was measured, in what order: the firmware's log, CCEL, systemd's |
//! | `fetch` (feature) | getting endorsements from their makers: the one part that knows a network |
//! | [`agent`] | how a host asks the agent in a VM for evidence |
//! | `sim` (feature) | a platform that issues real-format evidence under its own root |
//!
//! What evidence can't show: physical attacks on the memory bus, and who owns the machine.

mod binding;
mod bundle;
mod cbor;
mod compare;
mod composite;
mod crypto;
mod endorsements;
mod evidence;
mod kind;
mod memory;
mod policy;
mod result;
mod roots;
mod settings;
mod show;
mod verify;
mod wrapped;
mod x509;

pub mod agent;
pub mod eventlog;
#[cfg(feature = "fetch")]
pub mod fetch;
pub mod measure;
pub mod nvidia;
#[cfg(feature = "sim")]
pub mod sim;
pub mod snp;
pub mod tdx;
pub mod tpm;

pub use binding::{
    Binding, GPU_NONCE_DOMAIN, HOST_EVIDENCE_DOMAIN, HOST_QUOTE_DOMAIN, HostBinding, REPORT_DATA_DOMAIN,
    gpu_nonce, host_qualifying_data,
};
pub use bundle::{Bundle, BundleError};
pub use composite::{COMPOSITE_LEN_MAX, Composite, gpus_from_cbor, gpus_to_cbor};
#[cfg(feature = "sim")]
pub use crypto::forget_signatures;
pub use endorsements::{Endorsements, EndorsementsError};
pub use evidence::{
    CpuEvidence, EVIDENCE_LEN_MAX, Evidence, EvidenceError, GuestKeys, SshHostKey, SshHostKeyError,
};
pub use kind::{AnyEvidence, AnyEvidenceError};
pub use policy::{Policy, PolicyError, PolicyFile, Requirement};
pub use result::{AttestationResult, Check, Grade, Outcome, Part, Reason, Trust, Verdict};
pub use roots::{Roots, RootsError};
pub use settings::{CONTRACT_DOMAIN, SETTINGS_DOMAIN, contract_id, settings_digest};
pub use verify::{refuse_malformed, unreadable, verify, verify_any, verify_composite};
