//! What is done with bytes from outside; used by the libFuzzer targets and by `attestation/tests/fuzz.rs`.

use attestation::{AnyEvidence, Bundle, Endorsements, Policy, Roots, verify_any};

/// A time inside most recorded windows: 2026-03-15.
const AT: u64 = 1_773_532_800;

/// Evidence of any kind: read, shown, judged. Without endorsements nothing of a CPU's is ever verified.
pub(crate) fn evidence(bytes: &[u8]) {
    if let Ok(evidence) = AnyEvidence::parse(bytes) {
        evidence.claims();
        let result = verify_any(
            &evidence,
            &Endorsements::none(),
            &Roots::pinned(),
            &Policy::default(),
            AT,
        );
        let _ = (result.to_json(), result.to_string());
    }
}

/// One file of endorsements.
pub(crate) fn endorsements(bytes: &[u8]) {
    let _ = Endorsements::none().add(bytes);
}

/// Evidence with endorsements: what the whole verifier is given.
pub(crate) fn bundle(bytes: &[u8]) {
    let Ok(bundle) = Bundle::from_cbor(bytes) else {
        return;
    };
    assert_eq!(bundle.to_cbor(), bytes, "one bundle has one encoding");
    let mut given = Endorsements::none();
    if bundle.add_to(&mut given).is_err() {
        return;
    }
    if let Ok(evidence) = AnyEvidence::parse(&bundle.evidence) {
        let result = verify_any(&evidence, &given, &Roots::pinned(), &Policy::default(), AT);
        let _ = result.to_json();
    }
}
