//! What is done with bytes from outside; used by the libFuzzer targets and by `attestation/tests/fuzz.rs`.

use std::sync::LazyLock;

use attestation::eventlog::{EventLog, HashAlg, userspace};
use attestation::measure::{
    self, DirectBoot, IgvmLaunch, IgvmLoader, PageOrder, SnpLaunch, TdxBoot, VcpuType, Vmm,
};
use attestation::{AnyEvidence, Bundle, Endorsements, Policy, Roots, verify_any};

/// A time inside most recorded windows: 2026-03-15.
const AT: u64 = 1_773_532_800;

/// Evidence that endorsements are tried on: one piece of each maker's, genuine.
static GENUINE: LazyLock<Vec<AnyEvidence>> = LazyLock::new(|| {
    let recorded: [&[u8]; 3] = [
        include_bytes!("../tests/vectors/snp/genoa-v3-msft/report.bin"),
        include_bytes!("../tests/vectors/tdx/tdx-v4-near-b9e238b2/quote.bin"),
        include_bytes!("../tests/vectors/gpu/json/hopper_evidence.json"),
    ];
    let parse = |content| AnyEvidence::parse(content).expect("recorded evidence can be read");
    recorded.into_iter().map(parse).collect()
});

fn judge(evidence: &AnyEvidence, endorsements: &Endorsements) {
    let result = verify_any(evidence, endorsements, &Roots::pinned(), &Policy::default(), AT);
    let _ = (result.to_json(), result.to_string());
}

/// Evidence of any kind: read, shown, judged. Without endorsements nothing of a CPU's is ever verified.
pub(crate) fn evidence(bytes: &[u8]) {
    if let Ok(evidence) = AnyEvidence::parse(bytes) {
        evidence.claims();
        judge(&evidence, &Endorsements::none());
    }
}

/// One file of endorsements, and evidence judged with it.
pub(crate) fn endorsements(bytes: &[u8]) {
    let mut given = Endorsements::none();
    if given.add(bytes).is_ok() {
        GENUINE.iter().for_each(|evidence| judge(evidence, &given));
    }
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
        judge(&evidence, &given);
    }
}

/// The firmware's event log, and systemd's.
pub(crate) fn event_log(bytes: &[u8]) {
    for log in [EventLog::parse(bytes), EventLog::parse_padded(bytes)]
        .into_iter()
        .flatten()
    {
        for algorithm in log.algorithms() {
            let _ = log.replay(*algorithm);
            for event in log.events() {
                let _ = (event.kind_name(), event.data_is_measured(*algorithm));
            }
        }
    }
    if let Ok(records) = userspace::parse(bytes) {
        let _ = userspace::replay(&records, HashAlg::Sha256, &mut Default::default());
    }
}

/// Files that reference values are computed from.
pub(crate) fn firmware(bytes: &[u8]) {
    let direct_boot = Some(DirectBoot::new(bytes, None, ""));
    let vcpu = VcpuType(0x0080_0f12);
    let _ = measure::snp(&SnpLaunch {
        firmware: bytes,
        vcpus: 1,
        vcpu,
        direct_boot,
        guest_features: 1,
        vmm: Vmm::Qemu,
        firmware_digest: Some([0; 48]),
    });
    for loader in [IgvmLoader::Qemu, IgvmLoader::CloudHypervisor] {
        let _ = measure::snp_igvm(&IgvmLaunch {
            file: bytes,
            loader,
            vcpus: Some(1),
            vcpu,
            direct_boot,
        });
    }
    let uki = TdxBoot::Uki {
        uki: bytes,
        gpt: None,
        inner_kernel: true,
    };
    let _ = measure::tdx(bytes, PageOrder::default(), None, Some(uki));
}
