//! Mutations that know the formats' shapes, thrown at every parser and at the whole verifier: no panic, nothing verified
//! that its maker didn't sign.
//!
//! The seeds are the recorded vectors. By default a few seconds each, with a fixed seed, so that a failure repeats;
//! `FUZZ_SECONDS=60` goes on for longer. The same bodies, guided by coverage, are libFuzzer targets in
//! `attestation/fuzz` (`make fuzz`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../fuzz/bodies.rs"]
mod bodies;
mod common;

use std::time::{Duration, Instant};

use common::cases;

/// SplitMix64 (Steele, Lea, Flood 2014): enough to choose mutations by.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// One to four changes: bits, lengths and counts at their edges, parts cut, doubled, or taken from another seed.
fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        let len = random.below(64).min(bytes.len() - at);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes[at..at + len].fill(0xff),
            3 => bytes.truncate(at),
            4 => {
                bytes.drain(at..at + len);
            }
            5 => {
                let part = bytes[at..at + len].to_vec();
                bytes.splice(at..at, part);
            }
            6 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let part = &other[from..(from + len).min(other.len())];
                bytes.splice(at..at + len, part.iter().copied());
            }
            _ => {
                // A length or a count, in any order of bytes.
                let value = [0u32, 1, 0xffff, 0x7fff_ffff, 0xffff_ffff, bytes.len() as u32][random.below(6)];
                let field = if random.below(2) == 0 {
                    value.to_le_bytes()
                } else {
                    value.to_be_bytes()
                };
                let end = (at + 4).min(bytes.len());
                bytes[at..end].copy_from_slice(&field[..end - at]);
            }
        }
    }
    bytes
}

fn fuzz(name: &str, seeds: &[Vec<u8>], body: impl Fn(&[u8])) {
    let seconds = std::env::var("FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(3);
    let mut random = Random(0x5eed);
    seeds.iter().for_each(|seed| body(seed));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut inputs = 0;
    while Instant::now() < end {
        let bytes = mutate(&mut random, seeds);
        let started = Instant::now();
        body(&bytes);
        assert!(
            started.elapsed().as_secs() < 20,
            "{name}: {} bytes took too long",
            bytes.len()
        );
        inputs += 1;
    }
    println!("{name}: {inputs} inputs from {} seeds", seeds.len());
    assert!(inputs > 0);
}

fn evidence_of(kind: &str) -> Vec<Vec<u8>> {
    let seeds: Vec<Vec<u8>> = cases()
        .iter()
        .filter(|case| case.evidence.starts_with(kind))
        .map(common::Case::evidence)
        .collect();
    assert!(!seeds.is_empty(), "{kind}");
    seeds
}

#[test]
fn evidence_of_any_kind_is_read_and_judged_without_panic() {
    for kind in ["snp/", "tdx/", "gpu/", "azure/", "wrapped/", "tpm/"] {
        fuzz(kind, &evidence_of(kind), bodies::evidence);
    }
}

#[test]
fn endorsements_are_read_without_panic() {
    let mut seeds: Vec<Vec<u8>> = cases().iter().flat_map(common::Case::endorsement_files).collect();
    seeds.sort();
    seeds.dedup();
    fuzz("endorsements", &seeds, bodies::endorsements);
}

fn recorded(folder: &str) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(common::vectors().join(folder)).unwrap();
    let files = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file());
    files.map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn event_logs_are_replayed_without_panic() {
    fuzz("event logs", &recorded("ccel"), bodies::event_log);
}

#[test]
fn firmware_is_measured_without_panic() {
    fuzz("firmware", &recorded("measure"), bodies::firmware);
}

#[test]
fn our_own_encodings_are_read_without_panic() {
    let bundles: Vec<Vec<u8>> = cases()
        .iter()
        .map(|case| {
            let (evidence, endorsements) = (case.evidence(), case.endorsement_files());
            attestation::Bundle {
                evidence,
                endorsements,
            }
            .to_cbor()
        })
        .collect();
    fuzz("bundles", &bundles, bodies::bundle);
    let vms: Vec<Vec<u8>> = evidence_of("snp/")
        .into_iter()
        .map(|report| {
            let certificates = vec![vec![0x30; 40]];
            let cpu = attestation::CpuEvidence::SevSnp { report, certificates };
            let guest_keys = attestation::GuestKeys::default();
            let vm = attestation::Evidence { cpu, guest_keys };
            let gpus = vec![attestation::nvidia::GpuEvidence::new(
                vec![1; 40],
                vec![vec![2; 40]],
            )];
            attestation::Composite { vm, gpus, host: None }.to_cbor()
        })
        .collect();
    fuzz("composites", &vms, bodies::evidence);
}

#[test]
fn changed_evidence_with_good_endorsements_is_never_verified_unless_it_says_the_same() {
    for prefix in ["snp/genoa-v3-msft", "tdx/tdx-v4-near", "gpu/gb100-sdk"] {
        let wanted = |case: &&common::Case| case.evidence.starts_with(prefix) && case.verdict == "verified";
        let all = cases();
        let case = all.iter().find(wanted).unwrap();
        let good = case.judge().claims;
        fuzz(prefix, &[case.evidence()], |bytes| {
            let result = case.judge_bytes(bytes);
            assert!(
                !result.is_verified() || result.claims == good,
                "{prefix}: {}",
                hex::encode(bytes)
            );
        });
    }
}
