//! What must be refused, and with which reason, where only Intel could sign it: the simulated platform does. Rows M32,
//! M40 to M42 and M45 of the collection that the vectors come from, and every setting of the policy.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::LazyLock;

use attestation::sim::tdx::{ATTRIBUTES, CrlOf, PCK_CA_SERIAL, PCK_SERIAL, TEE_TCB_SVN, Td, TdxPlatform};
use attestation::tdx::{TcbStatus, TdxPolicy, measurement};
use attestation::{
    AnyEvidence, AttestationResult, Endorsements, Grade, Policy, Reason, Requirement, Roots, Trust, Verdict,
    verify_any,
};
use serde_json::{Value, json};

fn given(contents: &[&[u8]]) -> Endorsements {
    let mut endorsements = Endorsements::none();
    for content in contents {
        endorsements.add(content).unwrap();
    }
    endorsements
}

#[track_caller]
fn assert_refused(result: &AttestationResult, reason: Reason, row: &str) {
    assert_eq!(result.verdict, Verdict::Refused, "{row}:\n{result}");
    assert!(
        result.reasons().contains(&reason),
        "{row}: wanted {reason:?}:\n{result}"
    );
}

const AT: u64 = 1_788_220_800; // 2026-09-01
const FROM: &str = "2026-08-20T00:00:00Z";
const TO: &str = "2026-09-19T00:00:00Z";

static SIM: LazyLock<TdxPlatform> = LazyLock::new(|| TdxPlatform::create().unwrap());

fn crl(of: CrlOf, revoked: &[u32]) -> Vec<u8> {
    SIM.crl(of, revoked, "260820000000Z", "260919000000Z").unwrap()
}

fn sim_collateral(tcb_info: &Value, qe_identity: &Value) -> Endorsements {
    let text = SIM.collateral(
        tcb_info,
        qe_identity,
        &crl(CrlOf::Root, &[]),
        &crl(CrlOf::PckCa, &[]),
    );
    given(&[text.unwrap().as_bytes()])
}

fn sim_judge(quote: &[u8], endorsements: &Endorsements, policy: &Policy) -> AttestationResult {
    let roots = Roots::pinned().with_test_root(SIM.root()).unwrap();
    verify_any(
        &AnyEvidence::parse(quote).unwrap(),
        endorsements,
        &roots,
        policy,
        AT,
    )
}

fn judge_td(td: &Td, policy: &Policy) -> AttestationResult {
    let endorsements = sim_collateral(&SIM.tcb_info(FROM, TO), &SIM.qe_identity(FROM, TO));
    sim_judge(&SIM.quote(td, &[3; 64]).unwrap(), &endorsements, policy)
}

#[test]
fn a_simulated_td_is_verified_and_says_that_it_is_simulated() {
    let td = Td {
        mr_config_id: [[7; 32].as_slice(), &[0; 16]].concat().try_into().unwrap(),
        ..Td::default()
    };
    let tdx = TdxPolicy {
        allowed_mr_td: Some(vec![[1; 48]]),
        allowed_rtmrs: [Some(vec![[0; 48]]), None, None, None],
        allowed_ppids: Some(vec![SIM.ppid()]),
        min_evaluation_number: Some(20),
        ..TdxPolicy::default()
    };
    let policy = Policy {
        tdx,
        host_data: Some([7; 32]),
        report_data: Some([3; 64]),
        allowed_measurements: Some(vec![measurement([1; 48], [[0; 48]; 4])]),
        required: [
            Requirement::Freshness,
            Requirement::Measurement,
            Requirement::Revocation,
            Requirement::Tcb,
        ]
        .into(),
        ..Policy::default()
    };
    let result = judge_td(&td, &policy);
    assert_eq!(
        (result.verdict, result.trust),
        (Verdict::Verified, Trust::TestRoot),
        "{result}"
    );
    assert_eq!(result.grade, Grade::HardwareVerified);
    let evidence = AnyEvidence::parse(&SIM.quote(&td, &[3; 64]).unwrap()).unwrap();
    let pinned = verify_any(
        &evidence,
        &Endorsements::none(),
        &Roots::pinned(),
        &Policy::default(),
        AT,
    );
    assert_eq!(pinned.reasons(), [Reason::UntrustedRoot], "{pinned}");
}

#[test]
fn m32_and_every_reference_value_refuses_what_differs() {
    type Change = fn(&mut Policy);
    let rows: [(&str, Reason, u64, Change); 16] = [
        ("debug", Reason::DebugTd, ATTRIBUTES | 1, |_| {}),
        ("profiling", Reason::TdAttributes, ATTRIBUTES | 1 << 5, |_| {}),
        ("perfmon", Reason::TdAttributes, ATTRIBUTES | 1 << 63, |_| {}),
        ("migratable", Reason::TdAttributes, ATTRIBUTES | 1 << 29, |_| {}),
        (
            "a reserved bit",
            Reason::TdAttributes,
            ATTRIBUTES | 1 << 40,
            |p| p.tdx.allow_perfmon = true,
        ),
        (
            "service TD",
            Reason::ServiceTdPresent,
            ATTRIBUTES | 1 << 17,
            |_| {},
        ),
        ("PKS is missing", Reason::TdAttributes, ATTRIBUTES, |p| {
            p.tdx.required_attributes = 1 << 30
        }),
        ("XFAM", Reason::TdAttributes, ATTRIBUTES, |p| {
            p.tdx.allowed_xfam = Some(0x7)
        }),
        ("REPORTDATA", Reason::ReportDataMismatch, ATTRIBUTES, |p| {
            p.report_data = Some([4; 64])
        }),
        ("contract", Reason::HostDataMismatch, ATTRIBUTES, |p| {
            p.host_data = Some([4; 32])
        }),
        ("measurement", Reason::MeasurementMismatch, ATTRIBUTES, |p| {
            p.allowed_measurements = Some(vec![[1; 48]])
        }),
        ("MRTD", Reason::MeasurementMismatch, ATTRIBUTES, |p| {
            p.tdx.allowed_mr_td = Some(vec![])
        }),
        ("RTMR", Reason::RtmrMismatch, ATTRIBUTES, |p| {
            p.tdx.allowed_rtmrs[2] = Some(vec![[9; 48]])
        }),
        ("MRSEAM", Reason::TdxModuleMismatch, ATTRIBUTES, |p| {
            p.tdx.allowed_mr_seam = Some(vec![[9; 48]])
        }),
        ("MROWNER", Reason::MrConfigMismatch, ATTRIBUTES, |p| {
            p.tdx.mr_owner = Some([9; 48])
        }),
        ("PPID", Reason::ChipNotAllowed, ATTRIBUTES, |p| {
            p.tdx.allowed_ppids = Some(vec![[9; 16]])
        }),
    ];
    for (row, reason, attributes, change) in rows {
        let mut policy = Policy::default();
        change(&mut policy);
        let result = judge_td(
            &Td {
                attributes,
                ..Td::default()
            },
            &policy,
        );
        assert_eq!(result.reasons(), [reason], "{row}:\n{result}");
    }
    // All of them at once are all told.
    let policy = Policy {
        report_data: Some([4; 64]),
        host_data: Some([4; 32]),
        ..Policy::default()
    };
    let result = judge_td(
        &Td {
            attributes: 1 | 1 << 17,
            ..Td::default()
        },
        &policy,
    );
    let all = [
        Reason::ReportDataMismatch,
        Reason::HostDataMismatch,
        Reason::DebugTd,
        Reason::TdAttributes,
        Reason::ServiceTdPresent,
    ];
    assert_eq!(result.reasons(), all, "{result}");
}

#[test]
fn every_tcb_status_has_its_reason_and_its_exception() {
    for (status, reason) in [
        ("UpToDate", None),
        ("SWHardeningNeeded", None),
        ("ConfigurationNeeded", Some(Reason::ConfigurationNeeded)),
        (
            "ConfigurationAndSWHardeningNeeded",
            Some(Reason::ConfigurationAndSWHardeningNeeded),
        ),
        ("OutOfDate", Some(Reason::OutOfDate)),
        (
            "OutOfDateConfigurationNeeded",
            Some(Reason::OutOfDateConfigurationNeeded),
        ),
        ("Revoked", Some(Reason::Revoked)),
        ("Splendid", Some(Reason::Malformed)),
    ] {
        let mut info = SIM.tcb_info(FROM, TO);
        info["tcbLevels"][0]["tcbStatus"] = json!(status);
        info["tcbLevels"][0]["advisoryIDs"] = json!(["INTEL-SA-00009"]);
        let endorsements = sim_collateral(&info, &SIM.qe_identity(FROM, TO));
        let quote = SIM.quote(&Td::default(), &[3; 64]).unwrap();
        let result = sim_judge(&quote, &endorsements, &Policy::default());
        assert_eq!(result.reasons(), Vec::from_iter(reason), "{status}:\n{result}");
        let Ok(parsed) = serde_json::from_value::<TcbStatus>(json!(status)) else {
            continue;
        };
        let tdx = TdxPolicy {
            accepted_status: [parsed].into(),
            ..TdxPolicy::default()
        };
        let accepting = Policy {
            tdx,
            ..Policy::default()
        };
        let accepted = sim_judge(&quote, &endorsements, &accepting).is_verified();
        assert_eq!(accepted, status != "Revoked", "{status}");
        let tdx = TdxPolicy {
            accepted_status: [parsed].into(),
            refused_advisories: ["INTEL-SA-00009".to_owned()].into(),
            ..TdxPolicy::default()
        };
        let refusing = Policy {
            tdx,
            ..Policy::default()
        };
        assert_refused(
            &sim_judge(&quote, &endorsements, &refusing),
            Reason::AdvisoryRefused,
            status,
        );
    }
}

/// The simulated quote, judged with changed documents.
fn judge_documents(change: impl FnOnce(&mut Value, &mut Value)) -> AttestationResult {
    let (mut info, mut identity) = (SIM.tcb_info(FROM, TO), SIM.qe_identity(FROM, TO));
    change(&mut info, &mut identity);
    let endorsements = sim_collateral(&info, &identity);
    sim_judge(
        &SIM.quote(&Td::default(), &[3; 64]).unwrap(),
        &endorsements,
        &Policy::default(),
    )
}

#[test]
fn m41_the_order_of_levels_means_nothing() {
    let result = judge_documents(|info, identity| {
        info["tcbLevels"].as_array_mut().unwrap().reverse();
        info["tdxModuleIdentities"][0]["tcbLevels"]
            .as_array_mut()
            .unwrap()
            .reverse();
        let old = json!({ "tcb": { "isvsvn": 1 }, "tcbDate": FROM, "tcbStatus": "OutOfDate" });
        identity["tcbLevels"].as_array_mut().unwrap().insert(0, old);
    });
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
}

#[test]
fn m42_documents_of_another_shape_are_malformed() {
    type Change = fn(&mut Value, &mut Value);
    let rows: [(&str, Change); 9] = [
        ("17 components", |info, _| {
            info["tcbLevels"][0]["tcb"]["sgxtcbcomponents"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "svn": 0 }));
        }),
        ("15 components", |info, _| {
            info["tcbLevels"][1]["tcb"]["tdxtcbcomponents"]
                .as_array_mut()
                .unwrap()
                .pop();
        }),
        ("no components", |info, _| {
            drop(info["tcbLevels"][0]["tcb"].take())
        }),
        ("no module", |info, _| drop(info["tdxModule"].take())),
        ("a short FMSPC", |info, _| info["fmspc"] = json!("00")),
        ("no date", |info, _| drop(info["issueDate"].take())),
        ("a negative SVN", |info, _| {
            info["tcbLevels"][0]["tcb"]["pcesvn"] = json!(-1)
        }),
        ("a short signer", |_, identity| identity["mrsigner"] = json!("00")),
        ("another time format", |_, identity| {
            identity["nextUpdate"] = json!("19 Sep 2026")
        }),
    ];
    for (row, change) in rows {
        assert_refused(&judge_documents(change), Reason::Malformed, row);
    }
}

#[test]
fn collateral_about_others_is_a_mismatch() {
    type Change = fn(&mut Value, &mut Value);
    let rows: [(&str, Reason, Change); 11] = [
        ("TCB type", Reason::CollateralMismatch, |info, _| {
            info["tcbType"] = json!(1);
        }),
        ("PCE", Reason::CollateralMismatch, |info, _| {
            info["pceId"] = json!("0001")
        }),
        ("version", Reason::CollateralMismatch, |info, _| {
            info["version"] = json!(4)
        }),
        ("SGX", Reason::CollateralMismatch, |info, _| {
            info["id"] = json!("SGX")
        }),
        ("QE", Reason::CollateralMismatch, |_, identity| {
            identity["id"] = json!("QE")
        }),
        ("module's signer", Reason::TdxModuleMismatch, |info, _| {
            info["tdxModuleIdentities"][0]["mrsigner"] = json!("11".repeat(48));
        }),
        ("module's version", Reason::TdxModuleMismatch, |info, _| {
            info["tdxModuleIdentities"][0]["id"] = json!("TDX_03")
        }),
        ("module's SVN", Reason::TcbUnrecognised, |info, _| {
            info["tdxModuleIdentities"][0]["tcbLevels"] = json!([]);
        }),
        ("QE's product", Reason::QeIdentityMismatch, |_, identity| {
            identity["isvprodid"] = json!(1)
        }),
        ("QE's attributes", Reason::QeIdentityMismatch, |_, identity| {
            identity["attributes"] = json!("13000000000000000000000000000000");
        }),
        ("QE's SVN", Reason::TcbUnrecognised, |_, identity| {
            identity["tcbLevels"][0]["tcb"]["isvsvn"] = json!(9)
        }),
    ];
    for (row, reason, change) in rows {
        assert_refused(&judge_documents(change), reason, row);
    }
    let old = judge_documents(|_, identity| identity["tcbLevels"][0]["tcbStatus"] = json!("OutOfDate"));
    assert_eq!(old.reasons(), [Reason::OutOfDate], "an old QE:\n{old}");
    let module = judge_documents(|info, _| {
        info["tdxModuleIdentities"][0]["tcbLevels"][0]["tcb"]["isvsvn"] = json!(7);
    });
    assert_eq!(module.reasons(), [Reason::OutOfDate], "an old module:\n{module}");
}

#[test]
fn m40_each_part_has_its_own_window() {
    let past = ("2026-07-01T00:00:00Z", "2026-08-31T23:59:59Z");
    let future = ("2026-09-01T00:00:01Z", "2026-10-01T00:00:00Z");
    for (reason, (from, to)) in [
        (Reason::CollateralExpired, past),
        (Reason::CollateralNotYetValid, future),
    ] {
        let info = sim_collateral(&SIM.tcb_info(from, to), &SIM.qe_identity(FROM, TO));
        let identity = sim_collateral(&SIM.tcb_info(FROM, TO), &SIM.qe_identity(from, to));
        let utc = |time: &str| time[2..].replace(['-', ':', 'T'], "");
        let stale = |of| SIM.crl(of, &[], &utc(from), &utc(to)).unwrap();
        let with_crls = |root: &[u8], pck: &[u8]| {
            let text = SIM
                .collateral(&SIM.tcb_info(FROM, TO), &SIM.qe_identity(FROM, TO), root, pck)
                .unwrap();
            given(&[text.as_bytes()])
        };
        let root_crl = with_crls(&stale(CrlOf::Root), &crl(CrlOf::PckCa, &[]));
        let pck_crl = with_crls(&crl(CrlOf::Root, &[]), &stale(CrlOf::PckCa));
        let quote = SIM.quote(&Td::default(), &[3; 64]).unwrap();
        for (row, endorsements) in [
            ("TCB info", info),
            ("QE identity", identity),
            ("root CRL", root_crl),
            ("PCK CRL", pck_crl),
        ] {
            let result = sim_judge(&quote, &endorsements, &Policy::default());
            assert_eq!(result.reasons(), [reason], "{row}:\n{result}");
        }
    }
}

#[test]
fn m45_revoked_certificates_are_found() {
    let quote = SIM.quote(&Td::default(), &[3; 64]).unwrap();
    let judge = |root: &[u32], pck: &[u32]| {
        let (info, identity) = (SIM.tcb_info(FROM, TO), SIM.qe_identity(FROM, TO));
        let text = SIM
            .collateral(&info, &identity, &crl(CrlOf::Root, root), &crl(CrlOf::PckCa, pck))
            .unwrap();
        sim_judge(&quote, &given(&[text.as_bytes()]), &Policy::default())
    };
    assert_eq!(judge(&[7], &[8, PCK_CA_SERIAL]).verdict, Verdict::Verified);
    assert_eq!(judge(&[], &[1, PCK_SERIAL]).reasons(), [Reason::PckRevoked]);
    assert_eq!(judge(&[PCK_CA_SERIAL], &[]).reasons(), [Reason::CrlRevoked]);
    assert_eq!(
        judge(&[2], &[]).reasons(),
        [Reason::CrlRevoked],
        "the TCB signing key's certificate"
    );
}

#[test]
fn the_quoting_enclaves_report_binds_the_key_and_nothing_else() {
    let unsigned = SIM.unsigned_quote(&Td::default(), &[3; 64]);
    let endorsements = sim_collateral(&SIM.tcb_info(FROM, TO), &SIM.qe_identity(FROM, TO));
    type Change = fn(&mut [u8; 384]);
    let rows: [(&str, Reason, Change); 4] = [
        ("another key", Reason::QeBindingInvalid, |report| report[320] ^= 1),
        ("upper half", Reason::QeBindingInvalid, |report| report[383] = 1),
        ("debuggable", Reason::QeIdentityMismatch, |report| report[48] |= 2),
        ("another signer", Reason::QeIdentityMismatch, |report| {
            report[128] ^= 1
        }),
    ];
    for (row, reason, change) in rows {
        let quote = SIM.sign_quote_with(&unsigned, change).unwrap();
        let result = sim_judge(&quote, &endorsements, &Policy::default());
        assert_eq!(result.reasons(), [reason], "{row}:\n{result}");
    }
}

#[test]
fn a_td_that_outlived_an_update_of_its_module_is_told_to_relaunch() {
    let endorsements = sim_collateral(&SIM.tcb_info(FROM, TO), &SIM.qe_identity(FROM, TO));
    let judge = |launched: [u8; 16], now: [u8; 16], service_td: [u8; 48]| {
        let mut unsigned = SIM.unsigned_quote_td15(&Td::default(), &[3; 64], now, service_td);
        unsigned[54..70].copy_from_slice(&launched);
        let quote = SIM.sign_quote(&unsigned).unwrap();
        sim_judge(&quote, &endorsements, &Policy::default())
    };
    let (good, mut old, mut unknown) = (TEE_TCB_SVN, TEE_TCB_SVN, TEE_TCB_SVN);
    old[0] = 2; // the module's own SVN
    unknown[2] = 0;
    for (row, launched, now, service_td, reasons) in [
        ("current", good, good, [0; 48], vec![]),
        (
            "updated since",
            old,
            good,
            [0; 48],
            vec![Reason::TDRelaunchAdvised],
        ),
        ("never updated", old, old, [0; 48], vec![Reason::OutOfDate]),
        (
            "unknown now",
            good,
            unknown,
            [0; 48],
            vec![Reason::TcbUnrecognised],
        ),
        (
            "a service TD",
            good,
            good,
            [1; 48],
            vec![Reason::ServiceTdPresent],
        ),
    ] {
        let result = judge(launched, now, service_td);
        assert_eq!(result.reasons(), reasons, "{row}:\n{result}");
    }
}
