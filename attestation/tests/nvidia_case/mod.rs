//! What the tests of GPU evidence share: recorded files, and a simulated device with everything about it that a test may
//! change.

#![allow(dead_code, reason = "no test needs all of it")]
#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that cannot go on fails; a module of tests"
)]

use std::path::Path;
use std::sync::LazyLock;

use attestation::nvidia::{GpuEvidence, GpuPolicy, Stated};
use attestation::sim::{Gpu, GpuFacts, RimFacts};
use attestation::{AnyEvidence, AttestationResult, Endorsements, Policy, Reason, Roots, Verdict, verify_any};

/// 2026-09-01.
pub const AT: u64 = 1_788_220_800;
/// A response's window around [`AT`].
pub const FRESH: [&str; 2] = ["20260831000000Z", "20260902000000Z"];

pub static GPU: LazyLock<Gpu> = LazyLock::new(|| Gpu::create(None).unwrap());

pub fn read(path: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/gpu");
    std::fs::read(folder.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

pub fn endorsements(files: &[&[u8]]) -> Endorsements {
    let mut given = Endorsements::none();
    for file in files {
        given.add(file).unwrap();
    }
    given
}

pub fn recorded(report: &[u8], endorsements: &Endorsements, policy: &Policy) -> AttestationResult {
    let evidence = AnyEvidence::Gpu(vec![GpuEvidence {
        report: report.to_vec(),
        ..GpuEvidence::default()
    }]);
    verify_any(&evidence, endorsements, &Roots::pinned(), policy, AT)
}

#[track_caller]
pub fn assert_refused(result: &AttestationResult, reason: Reason, row: &str) {
    assert_eq!(result.verdict, Verdict::Refused, "{row}:\n{result}");
    assert!(
        result.reasons().contains(&reason),
        "{row}: wanted {reason:?}:\n{result}"
    );
}

/// Everything about a simulated device that a test may change.
pub struct Case {
    pub gpu: &'static Gpu,
    pub facts: GpuFacts,
    pub policy: Policy,
    pub endorsements: Vec<Vec<u8>>,
    pub stated: Stated,
    pub at: u64,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            gpu: &GPU,
            facts: GpuFacts::default(),
            policy: Policy::default(),
            endorsements: Vec::new(),
            stated: Stated::default(),
            at: AT,
        }
    }
}

impl Case {
    pub fn judge(&self) -> AttestationResult {
        let report = self.gpu.report(&self.facts).unwrap();
        let certificates = self.gpu.chain();
        let evidence = GpuEvidence {
            report,
            certificates,
            stated: self.stated.clone(),
        };
        let files: Vec<&[u8]> = self.endorsements.iter().map(Vec::as_slice).collect();
        let roots = Roots::pinned().with_test_root(self.gpu.root()).unwrap();
        verify_any(
            &AnyEvidence::Gpu(vec![evidence]),
            &endorsements(&files),
            &roots,
            &self.policy,
            self.at,
        )
    }

    pub fn with_gpu_policy(gpu: GpuPolicy) -> Self {
        Self {
            policy: Policy {
                gpu,
                ..Policy::default()
            },
            ..Self::default()
        }
    }
}

/// A manifest of the default device's driver, in which indexes 1 and 2 count.
pub fn driver() -> RimFacts {
    RimFacts {
        product: "GH100".to_owned(),
        version: "590.12".to_owned(),
        measurements: vec![
            (0, false, vec![vec![0xee; 48]]),
            (1, true, vec![vec![1; 48]]),
            (2, true, vec![vec![0xee; 48], vec![2; 48]]),
        ],
    }
}

pub fn vbios() -> RimFacts {
    RimFacts {
        version: "96.00.9F.00.01".to_owned(),
        measurements: vec![(3, true, vec![vec![3; 48]])],
        ..driver()
    }
}

pub fn rims(rims: &[RimFacts]) -> Vec<Vec<u8>> {
    rims.iter()
        .map(|rim| GPU.rim(rim).unwrap().into_bytes())
        .collect()
}
