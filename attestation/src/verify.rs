//! The whole way from evidence to a result.

use serde_json::Value;

use crate::nvidia::{GpuEvidence, Twice};
use crate::result::{Appraisal, AttestationResult, Check, Grade, Reason, Trust};
use crate::tpm::TpmEvidence;
use crate::{
    AnyEvidence, Composite, CpuEvidence, Endorsements, Evidence, Part, Policy, Roots, binding, nvidia, snp,
    tdx, tpm,
};

/// Appraises a VM's evidence: pure, total, and the same for everyone with the same arguments. `at`: Unix seconds.
pub fn verify(
    evidence: &Evidence,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> AttestationResult {
    judge_vm(
        &Parts::of_vm(evidence),
        &Context {
            endorsements,
            roots,
            policy,
            at,
        },
    )
}

/// Appraises a VM with its GPUs and its host, and draws one verdict: every part must hold, and be bound to the VM's
/// `REPORT_DATA`. Like [`verify`].
pub fn verify_composite(
    evidence: &Composite,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> AttestationResult {
    let parts = Parts {
        vm: &evidence.vm,
        gpus: &evidence.gpus,
        host: evidence.host.as_ref(),
    };
    judge_vm(
        &parts,
        &Context {
            endorsements,
            roots,
            policy,
            at,
        },
    )
}

/// What is judged together.
struct Parts<'a> {
    vm: &'a Evidence,
    gpus: &'a [GpuEvidence],
    host: Option<&'a TpmEvidence>,
}

impl<'a> Parts<'a> {
    fn of_vm(vm: &'a Evidence) -> Self {
        let (gpus, host) = (&[][..], None);
        Self { vm, gpus, host }
    }
}

/// What it is judged by.
struct Context<'a> {
    endorsements: &'a Endorsements,
    roots: &'a Roots,
    policy: &'a Policy,
    at: u64,
}

impl Context<'_> {
    fn conclude(&self, appraisal: Appraisal, grade: Grade) -> AttestationResult {
        let required = self.policy.required.iter().copied();
        AttestationResult::conclude(appraisal, required, grade, self.at)
    }
}

fn judge_vm(parts: &Parts<'_>, context: &Context<'_>) -> AttestationResult {
    let Context {
        endorsements,
        roots,
        policy,
        at,
    } = *context;
    let keys = &parts.vm.guest_keys;
    let (mut main, grade) = match &parts.vm.cpu {
        CpuEvidence::SevSnp { report, certificates } => {
            let appraisal = snp::verify(report, certificates, keys, endorsements, roots, policy, at);
            (appraisal, Grade::HardwareVerified)
        }
        CpuEvidence::Tdx { quote, event_log } => {
            let appraisal = tdx::verify(quote, event_log.as_deref(), keys, endorsements, roots, policy, at);
            (appraisal, Grade::HardwareVerified)
        }
        CpuEvidence::None => {
            let grade = parts.host.map_or(Grade::HostSigned, |_| Grade::HostVerified);
            (without_report(policy, grade), grade)
        }
    };
    main.checks.extend(gpu_count(parts.gpus, policy));
    if parts.gpus.is_empty() && parts.host.is_none() {
        return context.conclude(main, grade);
    }
    let report_data = report_data(&parts.vm.cpu, policy);
    let gpu_nonce = report_data.map(|data| binding::gpu_nonce(&data));
    let qualifying = report_data.map(|data| binding::host_qualifying_data(&data));
    let mut all = vec![(Part::Main, main)];
    let mut gpus = judge_gpus(
        parts.gpus,
        gpu_nonce,
        endorsements,
        roots,
        policy,
        at,
        Twice::Refused,
    );
    // Beside a VM's CPU, whose TCB is what a required floor is about, a GPU's driver is a line of its own.
    let lines = gpus.iter_mut().flat_map(|gpu| &mut gpu.checks);
    for line in lines.filter(|line| line.id == "appraise.tcb-floor") {
        line.id = "appraise.driver";
    }
    all.extend(gpus.into_iter().enumerate().map(|(n, gpu)| (Part::Gpu(n), gpu)));
    all.extend(parts.host.map(|host| {
        let expected = qualifying.as_ref().map(<[u8; 32]>::as_slice);
        (
            Part::Host,
            tpm::verify(host, expected, endorsements, roots, policy, at),
        )
    }));
    // Nothing stands behind a VM without a report; what its parts rest on is what counts.
    if parts.vm.cpu == CpuEvidence::None && parts.host.is_some() {
        all[0].1.trust = Trust::Pinned;
    }
    context.conclude(Appraisal::of_parts(all), grade)
}

/// What a VM's GPUs and host are bound to: the `REPORT_DATA` that its report carries; for a VM without one, the value
/// that the caller expects.
fn report_data(cpu: &CpuEvidence, policy: &Policy) -> Option<[u8; 64]> {
    match cpu {
        CpuEvidence::SevSnp { report, .. } => {
            snp::Report::parse(report).ok().map(|report| report.report_data())
        }
        CpuEvidence::Tdx { quote, .. } => tdx::report_data(quote),
        CpuEvidence::None => policy.report_data,
    }
}

/// Whether the VM shows as many GPUs as it must.
fn gpu_count(gpus: &[GpuEvidence], policy: &Policy) -> Option<Check> {
    const ID: &str = "appraise.gpus";
    let found = gpus.len();
    match policy.gpus {
        Some(asked) => Some(Check::of(
            ID,
            found == asked,
            Reason::GpuCountMismatch,
            asked,
            found,
        )),
        None if found == 0 => None,
        None => Some(Check::not_checked(
            ID,
            "nobody said how many GPUs there must be",
            found,
        )),
    }
}

/// Appraises evidence of any kind; like [`verify`].
pub fn verify_any(
    evidence: &AnyEvidence,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> AttestationResult {
    let (appraisal, grade) = match evidence {
        AnyEvidence::Vm(evidence) => return verify_composite(evidence, endorsements, roots, policy, at),
        AnyEvidence::Gpu(gpus) => (
            several_gpus(gpus, endorsements, roots, policy, at),
            Grade::HardwareVerified,
        ),
        AnyEvidence::Tpm(quote) => {
            let appraisal = tpm::verify(quote, None, endorsements, roots, policy, at);
            (appraisal, Grade::HostVerified)
        }
        AnyEvidence::Azure(azure) => {
            let appraisal = tpm::verify_azure(azure, endorsements, roots, policy, at);
            (appraisal, Grade::HardwareVerified)
        }
    };
    AttestationResult::conclude(appraisal, policy.required.iter().copied(), grade, at)
}

/// GPUs that nobody bound to a VM; the expected nonce is the policy's.
fn several_gpus(
    gpus: &[nvidia::GpuEvidence],
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
) -> Appraisal {
    let twice = policy.gpus.map_or(Twice::Named, |_| Twice::Refused);
    let mut all = judge_gpus(gpus, None, endorsements, roots, policy, at, twice);
    match all.len() {
        1 => all.remove(0),
        _ => Appraisal::of_parts(all.into_iter().enumerate().map(|(n, one)| (Part::Gpu(n), one))),
    }
}

/// Each GPU by itself, and that none passes for two.
fn judge_gpus(
    gpus: &[GpuEvidence],
    nonce: Option<[u8; 32]>,
    endorsements: &Endorsements,
    roots: &Roots,
    policy: &Policy,
    at: u64,
    twice: Twice,
) -> Vec<Appraisal> {
    let one = |gpu| nvidia::verify(gpu, nonce, endorsements, roots, policy, at);
    let mut all = gpus.iter().map(one).collect::<Vec<_>>();
    nvidia::tell_apart(&mut all, twice);
    all
}

/// A VM for which only its host speaks: by its word, or by its TPM. That can be enough, but only for a policy that says
/// so.
fn without_report(policy: &Policy, grade: Grade) -> Appraisal {
    let mut checks = vec![Check::of(
        "grade",
        policy.min_grade <= grade,
        Reason::NoHardwareEvidence,
        policy.min_grade,
        grade,
    )];
    let mut warnings = Vec::new();
    if grade == Grade::HostSigned {
        let nothing = "an ordinary VM has no report";
        checks.extend([
            Check::not_checked("authenticate.signature", nothing, ""),
            Check::not_checked("authenticate.revocation", nothing, ""),
            Check::not_checked("appraise.report-data", "the keys are only the host's word", ""),
            Check::not_checked("appraise.host-data", nothing, ""),
            Check::not_checked("appraise.contract-id", nothing, ""),
            Check::not_checked("appraise.measurement", nothing, ""),
            Check::not_checked("appraise.tcb-floor", nothing, ""),
        ]);
        warnings.push("no hardware speaks for this VM: everything here is its host's word".to_owned());
    }
    checks.push(Check::not_checked(
        "appraise.settings",
        "the settings are only the host's word",
        "",
    ));
    Appraisal {
        checks,
        trust: Trust::None,
        warnings,
        claims: Value::Null,
    }
}

/// The result for bytes that are no evidence.
pub fn refuse_malformed(why: &str, at: u64) -> AttestationResult {
    let check = Check::of(
        "format.evidence",
        false,
        Reason::Malformed,
        "well-formed evidence",
        why,
    );
    without_evidence(vec![check], at)
}

/// The result when there are no bytes to judge: a file that can't be read.
pub fn unreadable(why: &str, at: u64) -> AttestationResult {
    without_evidence(Vec::new(), at).with_unreadable(why)
}

fn without_evidence(checks: Vec<Check>, at: u64) -> AttestationResult {
    let appraisal = Appraisal {
        checks,
        trust: Trust::None,
        warnings: Vec::new(),
        claims: Value::Null,
    };
    AttestationResult::conclude(appraisal, [], Grade::Unconfirmed, at)
}
