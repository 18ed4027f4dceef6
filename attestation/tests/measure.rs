//! Launch digests against published ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use attestation::measure::{DirectBoot, SnpLaunch, VcpuType, Vmm, snp};
use serde_json::Value;

#[test]
fn launch_digests_equal_the_published_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/measure");
    let cases: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let mut checked = 0;
    for case in cases
        .as_array()
        .unwrap()
        .iter()
        .filter(|case| case["mode"] == "SEV_SNP")
    {
        let file = case["ovmf_file"].as_str().unwrap().rsplit('/').next().unwrap();
        let firmware = std::fs::read(folder.join(file)).unwrap();
        // The kernel and the initrd of these cases are empty files.
        let append = || case["append"].as_str().unwrap_or_default();
        let launch = SnpLaunch {
            firmware: &firmware,
            vcpus: case["vcpus"].as_u64().unwrap() as u32,
            vcpu: VcpuType(case["vcpu_sig"].as_u64().unwrap_or(0) as u32),
            direct_boot: case["kernel"]
                .is_string()
                .then(|| DirectBoot::new(b"", Some(b""), append())),
            guest_features: case["guest_features"].as_u64().unwrap(),
            vmm: match case["vmm_type"].as_str() {
                Some("ec2") => Vmm::Ec2,
                Some("gce") => Vmm::Gce,
                _ => Vmm::Qemu,
            },
            firmware_digest: case["snp_ovmf_hash_str"]
                .as_str()
                .map(|digest| hex::decode(digest).unwrap().try_into().unwrap()),
        };
        assert_eq!(
            hex::encode(snp(&launch).unwrap()),
            case["launch_digest"],
            "{case}"
        );
        checked += 1;
    }
    assert_eq!(checked, 17);
}

#[test]
fn strange_firmware_is_refused_and_never_panics() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/measure");
    let good = std::fs::read(folder.join("ovmf_AmdSev_suffix.bin")).unwrap();
    let measure = |firmware: &[u8]| {
        snp(&SnpLaunch {
            firmware,
            vcpus: 1,
            vcpu: "EPYC-v4".parse().unwrap(),
            direct_boot: Some(DirectBoot::new(b"k", None, "c")),
            guest_features: 1,
            vmm: Vmm::Qemu,
            firmware_digest: None,
        })
    };
    measure(&good).unwrap();
    for bad in [&[][..], &[0; 4096], &[0xff; 8192], &good[..4095]] {
        measure(bad).unwrap_err();
    }
    // Every byte of the metadata and the table, three ways.
    for at in 0xa00..good.len() {
        for value in [0, 0x7f, 0xff] {
            let mut image = good.clone();
            image[at] = value;
            let _ = measure(&image);
        }
    }
}
