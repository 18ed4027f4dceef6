//! Recorded GPU and NVSwitch evidence against the verdict that is known for it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use attestation::nvidia::judge_manifest;
use attestation::{
    AnyEvidence, AttestationResult, Check, Endorsements, Outcome, Policy, Reason, Roots, Trust, Verdict,
    verify_any,
};

/// 2026-09-01: inside the newest manifests' windows.
const AT: u64 = 1_788_220_800;
/// 2025-06-01: inside the older manifests' windows.
const AT_2025: u64 = 1_748_736_000;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/gpu")
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(vectors().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn judge(evidence: &str, endorsements: &[&str], at: u64) -> AttestationResult {
    let mut given = Endorsements::none();
    for path in endorsements {
        given.add(&read(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    let evidence = AnyEvidence::parse(&read(evidence)).unwrap();
    verify_any(&evidence, &given, &Roots::pinned(), &Policy::default(), at)
}

#[track_caller]
fn assert_verdict(row: &str, result: &AttestationResult, want: &[Reason]) {
    let verdict = if want.is_empty() {
        Verdict::Verified
    } else {
        Verdict::Refused
    };
    assert_eq!(
        (result.verdict, &result.reasons()[..]),
        (verdict, want),
        "{row}:\n{result}"
    );
    if want.is_empty() {
        assert_eq!(result.trust, Trust::Pinned, "{row}");
    }
}

#[test]
fn recorded_reports_get_the_verdict_that_is_known_for_them() {
    use Reason::*;
    let mut count = 0;
    for folder in std::fs::read_dir(vectors()).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        if !name.contains('-') {
            continue;
        }
        let result = judge(&format!("{name}/report.bin"), &[&format!("{name}/chain.pem")], AT);
        let want: &[Reason] = match name.as_str() {
            "neg-gh100-sdk-hopperInvalidSignature-53e055" => &[SignatureInvalid, FwidMismatch],
            "neg-ls10-sdk-switchInvalidSignature" => &[SignatureInvalid],
            _ => &[],
        };
        assert_verdict(&name, &result, want);
        assert!(
            result.not_checked().any(|(id, _)| id == "appraise.measurement"),
            "{name}"
        );
        assert!(
            result
                .not_checked()
                .any(|(id, _)| id == "authenticate.revocation"),
            "{name}"
        );
        count += 1;
    }
    assert_eq!(count, 22);
}

#[test]
fn reports_with_manifests_get_the_verdict_that_is_known_for_them() {
    use Reason::*;
    let switch = "ls10-sdk-multi_switch_ls100-352fc9";
    let hopper_535 = "gh100-sdk-hopper-535.86.09";
    let any_hopper = "gh100-nvtrust-hopper-c438e7";
    for (name, rims, at, want) in [
        (
            switch,
            &["switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml"][..],
            AT,
            &[][..],
        ),
        (
            hopper_535,
            &["1010_0200_882_96005E0001_PROD.swidtag"],
            AT_2025,
            &[],
        ),
        (
            hopper_535,
            &["1010_0200_882_96005E0001_PROD.swidtag"],
            AT,
            &[RimExpired],
        ),
        // With a forged one beside it that isn't needed.
        (
            switch,
            &[
                "incorrect_signature_driver_rim.xml",
                "switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml",
            ],
            AT,
            &[],
        ),
        // Genuine, and of another driver or VBIOS: not used, even where its time is over.
        (any_hopper, &["NV_GPU_DRIVER_GH100_550.144.03.xml"], AT, &[]),
        (
            any_hopper,
            &[
                "Driver_RIM_test_no_gpu.swidtag",
                "g520_0200_885_9600740001_PROD.swidtag",
            ],
            AT,
            &[],
        ),
        // M63.
        (
            "gh100-sdk-hopperExpired",
            &["NV_GPU_DRIVER_GH100_570.124.03_expired.xml"],
            AT,
            &[RimSignatureInvalid, RimExpired, MeasurementMismatch],
        ),
        (
            hopper_535,
            &["NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml"],
            AT,
            &[RimSignatureInvalid, MeasurementMismatch],
        ),
        (
            hopper_535,
            &["NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml"],
            AT_2025,
            &[MeasurementMismatch],
        ),
        (
            switch,
            &["NV_SWITCH_BIOS_5612_0002_890_9610550001_measurement_mismatch.xml"],
            AT_2025,
            &[RimSignatureInvalid, MeasurementMismatch],
        ),
        (
            switch,
            &["NV_SWITCH_BIOS_5612_0002_890_9610550001_invalid_signature.xml"],
            AT_2025,
            &[RimSignatureInvalid, MeasurementMismatch],
        ),
        (
            any_hopper,
            &["incorrect_signature_driver_rim.xml"],
            AT,
            &[RimSignatureInvalid],
        ),
        (
            any_hopper,
            &["incorrect_cert_chain_driver_rim.xml"],
            AT,
            &[RimSignatureInvalid, ChainInvalid],
        ),
    ] {
        let paths: Vec<String> = rims.iter().map(|rim| format!("rim/{rim}")).collect();
        let chain = format!("{name}/chain.pem");
        let given: Vec<&str> = [chain.as_str()]
            .into_iter()
            .chain(paths.iter().map(String::as_str))
            .collect();
        let result = judge(&format!("{name}/report.bin"), &given, at);
        assert_verdict(&format!("{name} {rims:?}"), &result, want);
    }
}

#[test]
fn the_measurements_of_a_switch_are_those_that_nvidia_published() {
    let name = "ls10-sdk-multi_switch_ls100-352fc9";
    let rim = "rim/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml";
    let result = judge(
        &format!("{name}/report.bin"),
        &[&format!("{name}/chain.pem"), rim],
        AT,
    );
    assert!(
        !result.not_checked().any(|(id, _)| id == "appraise.measurement"),
        "{result}"
    );
    assert_eq!(result.claims["measres"], "success");
    assert_eq!(result.claims["dbgstat"], "disabled");
    assert_eq!(result.claims["oemid"], "5703");
}

#[test]
fn nvidias_own_files_are_read() {
    for (file, devices) in [
        ("hopper_evidence.json", 1),
        ("multi_gpu_hopper.json", 4),
        ("switch_evidence_ls10.json", 1),
    ] {
        let path = format!("json/{file}");
        let AnyEvidence::Gpu(gpus) = AnyEvidence::parse(&read(&path)).unwrap() else {
            panic!("{file}")
        };
        assert_eq!(gpus.len(), devices, "{file}");
        assert_verdict(file, &judge(&path, &[], AT), &[]);
    }
}

/// The forms of other verifiers, made from NVIDIA's.
#[test]
fn other_json_around_reports_is_read_alike() {
    let list: serde_json::Value = serde_json::from_slice(&read("json/hopper_evidence.json")).unwrap();
    let item = &list[0];
    let report = hex_of(&item["evidence"]);
    let trustee = serde_json::json!({ "device_evidence_list": [
        { "arch": "Hopper", "uuid": "unknown", "evidence": report, "certificate": item["certificate"] }
    ] });
    let service = serde_json::json!({
        "nonce": item["nonce"], "arch": "HOPPER", "claims_version": "3.0",
        "evidence_list": [{ "evidence": item["evidence"], "certificate": item["certificate"] }],
    });
    let old = serde_json::json!([{ "attestationReportHexStr": report, "certChainBase64Encoded": item["certificate"] }]);
    let want = AnyEvidence::parse(&serde_json::to_vec(item).unwrap()).unwrap();
    for (form, file) in [
        ("trustee", &trustee),
        ("the service's request", &service),
        ("nvtrust 1", &old),
    ] {
        let AnyEvidence::Gpu(gpus) = AnyEvidence::parse(&serde_json::to_vec_pretty(file).unwrap()).unwrap()
        else {
            panic!("{form}")
        };
        let AnyEvidence::Gpu(want) = &want else {
            panic!("{form}")
        };
        assert_eq!(
            (&gpus[0].report, &gpus[0].certificates),
            (&want[0].report, &want[0].certificates),
            "{form}"
        );
        let evidence = AnyEvidence::Gpu(gpus);
        let result = verify_any(
            &evidence,
            &Endorsements::none(),
            &Roots::pinned(),
            &Policy::default(),
            AT,
        );
        assert_verdict(form, &result, &[]);
    }
}

fn hex_of(base64: &serde_json::Value) -> String {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(base64.as_str().unwrap())
        .unwrap();
    hex::encode(bytes)
}

#[test]
fn recorded_chains_are_judged_by_what_they_lack() {
    use Reason::*;
    let report = "gh100-nvtrust-hopper-c438e7/report.bin";
    for (case, want) in [
        ("hopper_cert_chain_case1.txt", &[][..]),
        ("hopper_cert_chain_case2.txt", &[ChainInvalid]),
        ("hopper_cert_chain_case3.txt", &[ChainInvalid]),
        ("hopper_cert_chain_case4.txt", &[ChainInvalid]),
    ] {
        assert_verdict(case, &judge(report, &[&format!("trustee/{case}")], AT), want);
    }
    // A report in hex, with the zero byte that some drivers put behind it.
    let coco = judge(
        "trustee/hopper_coco_report1.txt",
        &["trustee/hopper_coco_certs1.txt"],
        AT,
    );
    assert_verdict("hopper_coco_report1", &coco, &[]);
}

#[test]
fn the_claims_of_a_report_are_those_that_others_read() {
    let want: serde_json::Value =
        serde_json::from_slice(&read("trustee/hopperAttestationReport-claims.txt")).unwrap();
    let evidence = AnyEvidence::parse(&read("gh100-nvtrust-hopper-c438e7/report.bin")).unwrap();
    let shown = &evidence.claims()["gpus"][0];
    let config = &want["config"];
    assert_eq!(shown["x-nvidia-gpu-driver-version"], config["driver_version"]);
    let vbios = shown["x-nvidia-gpu-vbios-version"]
        .as_str()
        .unwrap()
        .to_lowercase();
    assert_eq!(vbios, config["vbios_version"].as_str().unwrap());
    for (own, theirs) in [
        ("project", "project"),
        ("project-sku", "project_sku"),
        ("chip-sku", "chip_sku"),
    ] {
        assert_eq!(shown["opaque"][own], config[theirs], "{own}");
    }
    assert_eq!(shown["opaque"]["board-id"], config["board_id"]);
    assert_eq!(shown["fwid"], config["fwid"]);
    let measurements = shown["measurements"].as_array().unwrap();
    assert_eq!(measurements.len(), 64);
    for measurement in measurements {
        assert_eq!(
            measurement["value"],
            want["measurements"][measurement["index"].to_string()]
        );
    }
    assert_eq!(shown["rim-ids"][1], "NV_GPU_VBIOS_1010_0200_882_96009F0001");
}

/// Every recorded manifest by itself: NVIDIA's are genuine, and valid in their time; the bad ones say what is wrong.
#[test]
fn recorded_manifests_are_judged_by_their_signatures() {
    use Reason::*;
    let mut count = 0;
    for file in std::fs::read_dir(vectors().join("rim")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let at = match name.as_str() {
            "switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml" => AT,
            _ => AT_2025,
        };
        let checks = judge_manifest(&read(&format!("rim/{name}")), &Roots::pinned(), at);
        let failed = |check: &Check| match check.outcome {
            Outcome::Failed(reason) => Some(reason),
            _ => None,
        };
        let reasons: Vec<Reason> = checks.iter().filter_map(failed).collect();
        let want: &[Reason] = match name.as_str() {
            "incorrect_cert_chain_driver_rim.xml" => &[RimSignatureInvalid, ChainInvalid],
            "NV_GPU_DRIVER_GH100_570.124.03_expired.xml" => &[RimSignatureInvalid, RimExpired],
            "incorrect_signature_driver_rim.xml"
            | "NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml"
            | "NV_SWITCH_BIOS_5612_0002_890_9610550001_invalid_signature.xml"
            | "NV_SWITCH_BIOS_5612_0002_890_9610550001_measurement_mismatch.xml" => &[RimSignatureInvalid],
            _ => &[],
        };
        assert_eq!(reasons, want, "{name}: {checks:?}");
        count += 1;
    }
    assert_eq!(count, 35);
    let late = judge_manifest(
        &read("rim/1010_0200_882_96005E0001_PROD.swidtag"),
        &Roots::pinned(),
        AT,
    );
    assert!(
        late.iter()
            .any(|check| check.outcome == Outcome::Failed(RimExpired))
    );
    let none = judge_manifest(b"no manifest", &Roots::pinned(), AT);
    assert!(
        none.iter()
            .any(|check| check.outcome == Outcome::Failed(RimMalformed))
    );
}

#[test]
fn a_chain_may_come_as_base64_as_nvidias_tools_hand_it_out() {
    use base64::Engine;
    let name = "gh100-nvtrust-hopper-c438e7";
    let chain = base64::engine::general_purpose::STANDARD.encode(read(&format!("{name}/chain.pem")));
    let mut given = Endorsements::none();
    given.add(chain.as_bytes()).unwrap();
    let evidence = AnyEvidence::parse(&read(&format!("{name}/report.bin"))).unwrap();
    let result = verify_any(&evidence, &given, &Roots::pinned(), &Policy::default(), AT);
    assert_verdict(name, &result, &[]);
}
