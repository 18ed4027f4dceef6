//! Verifications a second: ours, other verifiers, and the floor: the signature checks that nobody can leave out.
//!
//! `cargo bench -p attestation-peers`. *warm*: what makers signed was seen before (their certificates and collateral come
//! again with every piece of evidence), and our verifier remembers it by content. *cold*: nothing was.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

#[path = "../../tests/common/mod.rs"]
mod common;

use attestation::{
    AnyEvidence, AttestationResult, Endorsements, Policy, Roots, forget_signatures, verify_any,
};
use attestation_peers::{SevChain, collateral, dcap};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair, RsaKeyPair, UnparsedPublicKey};
use common::{Case, cases, vectors};
use divan::{Bencher, black_box};

const SNP: &str = "snp/genoa-v3-msft/report.bin";
const TDX: &str = "tdx/tdx-v4-near-b9e238b2/quote.bin";
const GPU: &str = "gpu/gh100-nvtrust-gpu_evidence0-42b177/report.bin";

fn main() {
    divan::main();
}

fn case(evidence: &str) -> Case {
    let verified = |case: &Case| case.evidence == evidence && case.verdict == "verified";
    cases().into_iter().find(verified).unwrap()
}

/// From bytes to result, as the command does it.
struct Ours {
    evidence: Vec<u8>,
    files: Vec<Vec<u8>>,
    at: u64,
    roots: Roots,
    policy: Policy,
}

impl Ours {
    fn of(evidence: &str, keep: impl Fn(&str) -> bool) -> Self {
        let mut case = case(evidence);
        case.endorsements.retain(|path| keep(path));
        Self {
            evidence: case.evidence(),
            files: case.endorsement_files(),
            at: case.at(),
            roots: Roots::pinned(),
            policy: Policy::default(),
        }
    }

    fn judge(&self, endorsements: &Endorsements) -> AttestationResult {
        let evidence = AnyEvidence::parse(black_box(&self.evidence)).unwrap();
        verify_any(&evidence, endorsements, &self.roots, &self.policy, self.at)
    }

    /// Endorsements read once, as a service holds them.
    fn endorsements(&self) -> Endorsements {
        let mut endorsements = Endorsements::none();
        self.files.iter().for_each(|file| endorsements.add(file).unwrap());
        endorsements
    }
}

fn cold(bencher: Bencher<'_, '_>, ours: &Ours) {
    let endorsements = ours.endorsements();
    assert!(ours.judge(&endorsements).is_verified());
    bencher
        .with_inputs(forget_signatures)
        .bench_values(|()| ours.judge(&endorsements));
}

fn warm(bencher: Bencher<'_, '_>, ours: &Ours) {
    let endorsements = ours.endorsements();
    assert!(ours.judge(&endorsements).is_verified());
    bencher.bench(|| ours.judge(&endorsements));
}

mod snp {
    use super::*;

    fn ours() -> Ours {
        Ours::of(SNP, |path| path.contains("vek.der"))
    }

    #[divan::bench]
    fn ours_cold(bencher: Bencher<'_, '_>) {
        cold(bencher, &ours());
    }

    #[divan::bench]
    fn ours_warm(bencher: Bencher<'_, '_>) {
        warm(bencher, &ours());
    }

    fn sev() -> (SevChain, Vec<u8>) {
        let file = |path: &str| std::fs::read(vectors().join(path)).unwrap();
        let chain = SevChain::new(
            &file("snp/ca/genoa/ark.der"),
            &file("snp/ca/genoa/ask.der"),
            &file("snp/genoa-v3-msft/vek.der"),
        );
        (chain.unwrap(), file(SNP))
    }

    #[divan::bench]
    fn sev_crate(bencher: Bencher<'_, '_>) {
        let (chain, report) = sev();
        chain.verify(&report).unwrap();
        bencher.bench(|| chain.verify(black_box(&report)));
    }

    /// VEK by its pinned issuer, report by the VEK: RSA and P-384.
    #[divan::bench]
    fn floor_cold(bencher: Bencher<'_, '_>) {
        let (rsa, p384) = (Signed::rsa_4096(), Signed::p384());
        bencher.bench(|| rsa.check() && p384.check());
    }

    /// The report by the VEK: P-384.
    #[divan::bench]
    fn floor_warm(bencher: Bencher<'_, '_>) {
        let p384 = Signed::p384();
        bencher.bench(|| p384.check());
    }
}

mod tdx {
    use super::*;

    fn ours() -> Ours {
        Ours::of(TDX, |_| true)
    }

    #[divan::bench]
    fn ours_cold(bencher: Bencher<'_, '_>) {
        cold(bencher, &ours());
    }

    #[divan::bench]
    fn ours_warm(bencher: Bencher<'_, '_>) {
        warm(bencher, &ours());
    }

    #[divan::bench]
    fn dcap_qvl(bencher: Bencher<'_, '_>) {
        let case = case(TDX);
        let (quote, given) = (case.evidence(), collateral(&case.endorsement_files()[0]).unwrap());
        dcap(&quote, &given, case.at()).unwrap();
        bencher.bench(|| dcap(black_box(&quote), &given, case.at()));
    }

    /// PCK chain 2, CRLs 2, TCB signing certificate 1, collateral 2, quoting enclave's report and quote 2.
    #[divan::bench]
    fn floor_cold(bencher: Bencher<'_, '_>) {
        let p256 = Signed::p256();
        bencher.bench(|| (0..9).all(|_| p256.check()));
    }

    /// Quoting enclave's report and quote.
    #[divan::bench]
    fn floor_warm(bencher: Bencher<'_, '_>) {
        let p256 = Signed::p256();
        bencher.bench(|| (0..2).all(|_| p256.check()));
    }
}

mod gpu {
    use super::*;

    fn ours() -> Ours {
        Ours::of(GPU, |_| true)
    }

    #[divan::bench]
    fn ours_cold(bencher: Bencher<'_, '_>) {
        cold(bencher, &ours());
    }

    #[divan::bench]
    fn ours_warm(bencher: Bencher<'_, '_>) {
        warm(bencher, &ours());
    }

    /// Four certificates below the root and the report.
    #[divan::bench]
    fn floor_cold(bencher: Bencher<'_, '_>) {
        let p384 = Signed::p384();
        bencher.bench(|| (0..5).all(|_| p384.check()));
    }

    #[divan::bench]
    fn floor_warm(bencher: Bencher<'_, '_>) {
        let p384 = Signed::p384();
        bencher.bench(|| p384.check());
    }
}

/// A signature over as many bytes as a report has.
struct Signed {
    algorithm: &'static dyn signature::VerificationAlgorithm,
    key: Vec<u8>,
    signature: Vec<u8>,
}

const MESSAGE: [u8; 672] = [7; 672];

impl Signed {
    fn ecdsa(
        signing: &'static signature::EcdsaSigningAlgorithm,
        algorithm: &'static dyn signature::VerificationAlgorithm,
    ) -> Self {
        let key = EcdsaKeyPair::generate(signing).unwrap();
        let signature = key
            .sign(&SystemRandom::new(), &MESSAGE)
            .unwrap()
            .as_ref()
            .to_vec();
        let key = key.public_key().as_ref().to_vec();
        Self {
            algorithm,
            key,
            signature,
        }
    }

    fn p256() -> Self {
        Self::ecdsa(
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            &signature::ECDSA_P256_SHA256_FIXED,
        )
    }

    fn p384() -> Self {
        Self::ecdsa(
            &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            &signature::ECDSA_P384_SHA384_FIXED,
        )
    }

    fn rsa_4096() -> Self {
        let key = RsaKeyPair::generate(KeySize::Rsa4096).unwrap();
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(
            &signature::RSA_PSS_SHA384,
            &SystemRandom::new(),
            &MESSAGE,
            &mut signature,
        )
        .unwrap();
        let algorithm = &signature::RSA_PSS_2048_8192_SHA384;
        Self {
            algorithm,
            key: key.public_key().as_ref().to_vec(),
            signature,
        }
    }

    fn check(&self) -> bool {
        let key = UnparsedPublicKey::new(self.algorithm, black_box(&self.key));
        key.verify(&MESSAGE, &self.signature).is_ok()
    }
}
