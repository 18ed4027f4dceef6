//! The module as a host runs it: the same answers as natively, and at a bounded cost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use attestation::{AnyEvidence, Bundle, Endorsements, Policy, Roots, refuse_malformed, verify_any};
use common::cases;

/// What judging one SNP report with AMD's revocation list, or one TDX quote with its collateral, may cost: in fuel of
/// wasmi, which takes several operators that follow each other for one instruction.
const FUEL_MAX: u64 = 60_000_000;
/// The same in fuel of wasmtime: one for each operator.
const OPERATORS_MAX: u64 = 140_000_000;

/// Builds the module as `cargo build --release` does, beside this test's own build.
fn built() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wasm");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "attestation-wasm"])
        .args(["--target", "wasm32-unknown-unknown", "--target-dir"])
        .arg(&target)
        .current_dir(root)
        .env_remove("RUSTFLAGS")
        .status()
        .unwrap();
    assert!(
        status.success(),
        "needs `rustup target add wasm32-unknown-unknown`"
    );
    target.join("wasm32-unknown-unknown/release/attestation_wasm.wasm")
}

/// A host, written once for two engines: they agree in nearly everything.
macro_rules! host {
    ($engine:ident, $new:expr) => {
        mod $engine {
            use $engine::{Config, Engine, Instance, Memory, Module, Store, TypedFunc};

            /// A fresh instance for every question, so that nothing is warm.
            pub(super) struct Host {
                engine: Engine,
                pub(super) module: Module,
            }

            impl Host {
                pub(super) fn load() -> Self {
                    let mut config = Config::default();
                    config.consume_fuel(true);
                    let engine: Engine = $new(&config);
                    let module = Module::new(&engine, std::fs::read(super::built()).unwrap()).unwrap();
                    Self { engine, module }
                }

                /// The answer, and the fuel that it took.
                pub(super) fn ask(
                    &self,
                    evidence: &[u8],
                    policy: &[u8],
                    at: u64,
                ) -> (serde_json::Value, u64) {
                    const FUEL: u64 = 10_000_000_000;
                    let mut store = Store::new(&self.engine, ());
                    store.set_fuel(FUEL).unwrap();
                    let instance = Instance::new(&mut store, &self.module, &[]).unwrap();
                    let memory: Memory = instance.get_memory(&mut store, "memory").unwrap();
                    let allocate: TypedFunc<i32, i32> =
                        instance.get_typed_func(&mut store, "allocate").unwrap();
                    let verify: TypedFunc<(i32, i32, i32, i32, i64), i32> =
                        instance.get_typed_func(&mut store, "verify").unwrap();
                    let answer_len: TypedFunc<(), i32> =
                        instance.get_typed_func(&mut store, "answer_len").unwrap();
                    let mut give = |bytes: &[u8]| {
                        let address = allocate.call(&mut store, bytes.len() as i32).unwrap();
                        memory.write(&mut store, address as usize, bytes).unwrap();
                        (address, bytes.len() as i32)
                    };
                    let ((evidence, evidence_len), (policy, policy_len)) = (give(evidence), give(policy));
                    let before = store.get_fuel().unwrap();
                    let question = (evidence, evidence_len, policy, policy_len, at as i64);
                    let address = verify.call(&mut store, question).unwrap();
                    let spent = before - store.get_fuel().unwrap();
                    let len = answer_len.call(&mut store, ()).unwrap();
                    let answer = &memory.data(&store)[address as usize..][..len as usize];
                    (serde_json::from_slice(answer).unwrap(), spent)
                }
            }
        }
    };
}

host!(wasmi, Engine::new);
host!(wasmtime, |config: &Config| Engine::new(config).unwrap());

/// The native answer.
fn natively(bundle: &Bundle, at: u64) -> serde_json::Value {
    let mut endorsements = Endorsements::none();
    bundle.add_to(&mut endorsements).unwrap();
    match AnyEvidence::parse(&bundle.evidence) {
        Ok(evidence) => {
            verify_any(&evidence, &endorsements, &Roots::pinned(), &Policy::default(), at).to_json()
        }
        Err(error) => refuse_malformed(&error.to_string(), at).to_json(),
    }
}

#[test]
fn the_module_answers_as_the_native_verifier_does() {
    let host = wasmtime::Host::load();
    let counting = wasmi::Host::load();
    assert_eq!(host.module.imports().count(), 0, "it needs nothing of its host");
    let mut answered = 0;
    // The module takes no test roots.
    for case in cases().into_iter().filter(|case| case.roots.is_empty()) {
        let (evidence, endorsements) = (case.evidence(), case.endorsement_files());
        let bundle = Bundle {
            evidence,
            endorsements,
        };
        let (answer, spent) = host.ask(&bundle.to_cbor(), b"", case.at());
        assert_eq!(answer, natively(&bundle, case.at()), "{}", case.evidence);
        assert_eq!(answer["verdict"], case.verdict.as_str(), "{}", case.evidence);
        let bounded = case.evidence.starts_with("snp/") || case.evidence.starts_with("tdx/");
        assert!(
            !bounded || spent < OPERATORS_MAX,
            "{}: {spent} operators",
            case.evidence
        );
        let mut fuel = None;
        if bounded && case.verdict == "verified" {
            let (same, spent) = counting.ask(&bundle.to_cbor(), b"", case.at());
            assert_eq!(same, answer, "{}", case.evidence);
            assert!(spent < FUEL_MAX, "{}: {spent} fuel of wasmi", case.evidence);
            fuel = Some(spent);
        }
        println!(
            "{}: {}, {} M operators{}",
            case.evidence,
            case.verdict,
            spent / 1_000_000,
            fuel.map_or(String::new(), |fuel| format!(
                ", {} M fuel of wasmi",
                fuel / 1_000_000
            ))
        );
        answered += 1;
    }
    assert!(answered > 40, "{answered}");
}

#[test]
fn odd_questions_have_answers() {
    let host = wasmtime::Host::load();
    let case = cases()
        .into_iter()
        .find(|case| case.verdict == "verified")
        .unwrap();
    let (evidence, endorsements) = (case.evidence(), case.endorsement_files());
    let bundle = Bundle {
        evidence,
        endorsements,
    };
    let mut cut = bundle.clone();
    cut.evidence.pop();
    assert_eq!(
        host.ask(&cut.to_cbor(), b"", case.at()).0,
        natively(&cut, case.at())
    );
    assert_eq!(host.ask(b"", b"", 0).0["reasons"][0], "Malformed");
    let (answer, _) = host.ask(&bundle.to_cbor(), br#"{"max_vmpl": 3}"#, case.at());
    assert_eq!(answer["verdict"], "verified");
    let (answer, _) = host.ask(&bundle.to_cbor(), br#"{"max_vmlp": 3}"#, case.at());
    assert!(answer["error"].as_str().unwrap().contains("max_vmlp"), "{answer}");
}
