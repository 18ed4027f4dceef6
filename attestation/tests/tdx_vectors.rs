//! Recorded TDX quotes with Intel's collateral of their time: verdicts, statuses, windows, forms.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use attestation::tdx::TcbStatus;
use attestation::{
    AnyEvidence, AttestationResult, Endorsements, Grade, Outcome, Policy, Reason, Requirement, Roots, Trust,
    Verdict, verify_any,
};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(folder().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn judge_by(quote: &[u8], given: &[Vec<u8>], policy: &Policy, at: u64) -> AttestationResult {
    let mut endorsements = Endorsements::none();
    for content in given {
        endorsements.add(content).unwrap();
    }
    let evidence = AnyEvidence::parse(quote).unwrap();
    verify_any(&evidence, &endorsements, &Roots::pinned(), policy, at)
}

fn judge(quote: &str, given: &[&str], at: u64) -> AttestationResult {
    let given: Vec<Vec<u8>> = given.iter().map(|path| read(path)).collect();
    judge_by(&read(quote), &given, &Policy::default(), at)
}

fn time(text: &str) -> u64 {
    text.parse::<der::DateTime>().unwrap().unix_duration().as_secs()
}

struct Row {
    quote: &'static str,
    collateral: &'static str,
    /// Inside the window in which everything given is valid.
    at: u64,
    /// The window: both ends inclusive, but at the second a CRL may be over.
    window: [&'static str; 2],
    reasons: &'static [Reason],
    status: Option<TcbStatus>,
    advisories: &'static [&'static str],
}

const fn row(
    quote: &'static str,
    collateral: &'static str,
    at: u64,
    window: [&'static str; 2],
    reasons: &'static [Reason],
    status: Option<TcbStatus>,
    advisories: &'static [&'static str],
) -> Row {
    Row {
        quote,
        collateral,
        at,
        window,
        reasons,
        status,
        advisories,
    }
}

const OLD: Option<TcbStatus> = Some(TcbStatus::OutOfDate);
const GOOD: Option<TcbStatus> = Some(TcbStatus::UpToDate);
const AUGUST: [&str; 4] = [
    "INTEL-SA-01192",
    "INTEL-SA-01245",
    "INTEL-SA-01312",
    "INTEL-SA-01313",
];

#[rustfmt::skip]
const ROWS: [Row; 22] = [
    row("tdx-v4-automatanetwork-4b23198a", "2024-12-17", 1_734_396_600, ["2024-12-05T12:16:52Z", "2024-12-28T13:23:09Z"], &[Reason::OutOfDate], OLD, &["INTEL-SA-00960", "INTEL-SA-00982", "INTEL-SA-00986"]),
    row("tdx-v4-automatanetwork-f8f82dc7", "2025-01-04", 1_735_979_219, ["2024-12-20T08:31:38Z", "2025-01-19T08:22:20Z"], &[Reason::TdAttributes, Reason::TcbUnrecognised], None, &[]),
    row("tdx-v4-confidentialcontainers-a187b0da", "2024-12-17", 1_734_396_600, ["2024-12-05T12:16:52Z", "2024-12-28T13:23:09Z"], &[Reason::TdAttributes, Reason::OutOfDate], OLD, &["INTEL-SA-00960", "INTEL-SA-00982", "INTEL-SA-00986"]),
    row("tdx-v4-confidentialcontainers-b789d779", "2025-11-04", 1_762_257_384, ["2025-10-27T13:07:17Z", "2025-11-12T10:45:32Z"], &[Reason::OutOfDate], OLD, &[]),
    row("tdx-v4-confidentialcontainers-b789d779", "2026-03-09", 1_773_069_049, ["2026-02-26T19:40:23Z", "2026-03-20T10:41:15Z"], &[Reason::OutOfDate], OLD, &[]),
    row("tdx-v4-dstacktee-149ed840", "2025-07-04", 1_751_624_191, ["2025-06-19T10:32:27Z", "2025-07-19T10:00:35Z"], &[Reason::TcbUnrecognised], None, &[]),
    row("tdx-v4-dstacktee-cbdb5b2f", "2025-10-21", 1_761_057_484, ["2025-10-13T10:46:47Z", "2025-10-29T18:29:22Z"], &[], GOOD, &[]),
    row("tdx-v4-fraunhoferaisec-8ea48ded", "2025-10-21", 1_761_057_484, ["2025-10-13T10:46:47Z", "2025-10-29T18:29:22Z"], &[], GOOD, &[]),
    row("tdx-v4-google-3507b5f7", "2023-06-28", 1_687_939_438, ["2023-06-18T08:42:58Z", "2023-07-08T07:24:59Z"], &[Reason::TdAttributes, Reason::TcbUnrecognised], None, &[]),
    row("tdx-v4-google-3507b5f7", "2026-03-31", 1_774_995_904, ["2026-03-16T22:34:05Z", "2026-04-15T22:16:03Z"], &[Reason::TdAttributes, Reason::TcbUnrecognised], None, &[]),
    row("tdx-v4-intel-f51db4d1", "2024-12-17", 1_734_396_600, ["2024-12-05T12:16:52Z", "2024-12-28T13:23:09Z"], &[Reason::TdAttributes], GOOD, &[]),
    row("tdx-v4-lunaldev-1a260f89", "2025-03-14", 1_741_918_403, ["2025-03-13T00:47:46Z", "2025-03-15T03:39:00Z"], &[], GOOD, &[]),
    row("tdx-v4-lunaldev-3ab56d67", "2026-03-31", 1_774_941_757, ["2026-03-30T19:08:31Z", "2026-03-31T19:36:43Z"], &[], GOOD, &[]),
    row("tdx-v4-lunaldev-3ab56d67", "2026-08-28", 1_787_894_484, ["2026-08-13T10:45:38Z", "2026-09-11T23:57:11Z"], &[Reason::OutOfDate], OLD, &AUGUST),
    row("tdx-v4-matterlabs-55d278a9", "2024-12-17", 1_734_396_600, ["2024-12-05T12:16:52Z", "2024-12-28T13:23:09Z"], &[], GOOD, &[]),
    row("tdx-v4-near-b9e238b2", "2026-03-11", 1_773_198_539, ["2026-03-01T19:36:43Z", "2026-03-20T10:41:15Z"], &[], GOOD, &[]),
    row("tdx-v4-near-b9e238b2", "2026-08-28", 1_787_894_484, ["2026-08-13T10:45:38Z", "2026-09-11T23:57:11Z"], &[], GOOD, &[]),
    row("tdx-v4-nearai-d20fa00e", "2025-09-17", 1_758_093_775, ["2025-09-02T07:41:59Z", "2025-10-02T07:03:51Z"], &[], GOOD, &[]),
    row("tdx-v4-phalanetwork-f1c85033", "2025-07-04", 1_751_624_191, ["2025-06-19T10:32:27Z", "2025-07-19T10:00:35Z"], &[], GOOD, &[]),
    row("tdx-v4-phalanetwork-f1c85033", "2026-08-28", 1_787_894_484, ["2026-08-13T10:45:38Z", "2026-09-11T23:57:11Z"], &[Reason::OutOfDate], OLD, &AUGUST),
    row("tdx-v5-automatanetwork-586c2be0", "2025-01-04", 1_735_979_219, ["2024-12-20T08:31:38Z", "2025-01-19T08:22:20Z"], &[Reason::ServiceTdPresent, Reason::TcbUnrecognised], None, &[]),
    row("dcapqvl-td15ex", "", 1_792_454_400, ["2026-10-08T00:28:26Z", "2026-11-06T23:45:11Z"], &[], GOOD, &[]),
];

impl Row {
    fn paths(&self) -> (String, String) {
        match self.collateral {
            "" => (
                format!("tdx/{}/tdx_quote_td15ex", self.quote),
                format!("tdx/{}/tdx_quote_td15ex_collateral.json", self.quote),
            ),
            date => (
                format!("tdx/{}/quote.bin", self.quote),
                format!("tdx/{}/collateral-{date}.json", self.quote),
            ),
        }
    }

    fn judge(&self, at: u64) -> AttestationResult {
        let (quote, collateral) = self.paths();
        judge(&quote, &[&collateral], at)
    }
}

#[test]
fn recorded_quotes_get_the_verdicts_that_intels_collateral_of_the_time_gives() {
    for row in &ROWS {
        let result = row.judge(row.at);
        let name = format!("{} {}", row.quote, row.collateral);
        assert_eq!(result.reasons(), row.reasons, "{name}:\n{result}");
        let verdict = if row.reasons.is_empty() {
            Verdict::Verified
        } else {
            Verdict::Refused
        };
        assert_eq!(result.verdict, verdict, "{name}:\n{result}");
        assert_eq!(result.trust, Trust::Pinned, "{name}");
        let tcb = &result.claims["tcb"];
        assert_eq!(tcb["status"], json!(row.status), "{name}: {tcb}");
        if row.status.is_some() {
            assert_eq!(tcb["advisories"], json!(row.advisories), "{name}");
        }
        let grade = if row.reasons.is_empty() {
            Grade::HardwareVerified
        } else {
            Grade::Unconfirmed
        };
        assert_eq!(result.grade, grade, "{name}");
    }
}

#[test]
fn outside_of_its_window_collateral_is_refused_at_every_edge() {
    for row in &ROWS {
        let [from, to] = row.window.map(time);
        let inside = row.judge(row.at).reasons();
        let name = format!("{} {}", row.quote, row.collateral);
        assert_eq!(row.judge(from).reasons(), inside, "{name} begins");
        assert_eq!(row.judge(to - 1).reasons(), inside, "{name} isn't over");
        let early = row.judge(from - 1);
        assert_eq!(early.verdict, Verdict::Refused, "{name} before:\n{early}");
        let reasons = early.reasons();
        assert!(
            reasons.contains(&Reason::CollateralNotYetValid)
                || reasons.contains(&Reason::CertificateNotYetValid),
            "{name} before: {reasons:?}"
        );
        for at in [to + 1, time("2100-01-01T00:00:00Z")] {
            let late = row.judge(at);
            assert_eq!(late.verdict, Verdict::Refused, "{name} at {at}:\n{late}");
            assert!(
                late.reasons().contains(&Reason::CollateralExpired),
                "{name} at {at}"
            );
        }
        assert!(
            row.judge(0).reasons().contains(&Reason::CollateralNotYetValid),
            "{name} in 1970"
        );
    }
}

#[test]
fn without_collateral_nobody_can_tell_and_the_result_says_what_is_missing() {
    let quote = "tdx/tdx-v4-near-b9e238b2/quote.bin";
    let result = judge(quote, &[], 1_773_198_539);
    assert_eq!(result.verdict, Verdict::Indeterminate, "{result}");
    assert_eq!(result.reasons(), [Reason::CollateralMissing]);
    let text = result.to_string();
    assert!(
        text.contains("tcb?fmspc=b0c06f000000") && text.contains("qe/identity"),
        "{text}"
    );
    // What is wrong with the TD itself is told all the same.
    let result = judge("tdx/tdx-v4-intel-f51db4d1/quote.bin", &[], 1_734_396_600);
    assert_eq!(result.verdict, Verdict::Refused, "{result}");
    assert_eq!(
        result.reasons(),
        [Reason::CollateralMissing, Reason::TdAttributes]
    );
}

/// The parts of a `QuoteCollateralV3` as Intel's service gives them: one file each.
fn parts(collateral: &str) -> Vec<Vec<u8>> {
    let file: Value = serde_json::from_slice(&read(collateral)).unwrap();
    let text = |name: &str| file[name].as_str().unwrap().to_owned();
    let document = |key: &str, body: &str| {
        format!(
            "{{\"{key}\":{},\"signature\":\"{}\"}}",
            text(body),
            text(&format!("{body}_signature"))
        )
    };
    vec![
        document("tcbInfo", "tcb_info").into_bytes(),
        document("enclaveIdentity", "qe_identity").into_bytes(),
        text("tcb_info_issuer_chain").into_bytes(),
        hex::decode(text("root_ca_crl")).unwrap(),
        hex::decode(text("pck_crl")).unwrap(),
    ]
}

#[test]
fn collateral_may_come_in_parts_and_missing_parts_are_named() {
    let quote = read("tdx/tdx-v4-near-b9e238b2/quote.bin");
    let all = parts("tdx/tdx-v4-near-b9e238b2/collateral-2026-03-11.json");
    let [info, identity, chain, root_crl, pck_crl] = <[Vec<u8>; 5]>::try_from(all.clone()).unwrap();
    let judge = |given: &[Vec<u8>], required: &[Requirement]| {
        let required = required.iter().copied().collect();
        let policy = Policy {
            required,
            ..Policy::default()
        };
        let result = judge_by(&quote, given, &policy, 1_773_198_539);
        (result.verdict, result.reasons())
    };
    let needed = [Requirement::Revocation, Requirement::Tcb];
    let verified = (Verdict::Verified, vec![]);
    let open = |reason| (Verdict::Indeterminate, vec![reason]);
    assert_eq!(judge(&all, &needed), verified);
    // The issuer's certificate is shipped.
    assert_eq!(
        judge(&[info.clone(), identity.clone()], &[Requirement::Tcb]),
        verified
    );
    for (row, given) in [
        ("no CRL", vec![info.clone(), identity.clone(), chain.clone()]),
        (
            "no root CRL",
            vec![info.clone(), identity.clone(), pck_crl.clone()],
        ),
        (
            "no PCK CRL",
            vec![info.clone(), identity.clone(), root_crl.clone()],
        ),
    ] {
        assert_eq!(judge(&given, &[]), verified, "{row}");
        assert_eq!(judge(&given, &needed), open(Reason::CrlMissing), "{row}");
    }
    assert_eq!(
        judge(&[info, root_crl.clone()], &[]),
        open(Reason::CollateralMissing)
    );
    assert_eq!(
        judge(&[identity, chain, root_crl, pck_crl], &[]),
        open(Reason::CollateralMissing)
    );
}

#[test]
fn a_whole_folder_of_collateral_is_sifted() {
    let mut given: Vec<Vec<u8>> = Vec::new();
    for path in std::fs::read_dir(folder().join("collateral")).unwrap() {
        given.push(std::fs::read(path.unwrap().path()).unwrap());
    }
    let quote = read("tdx/tdx-v4-matterlabs-55d278a9/quote.bin");
    let required = [Requirement::Revocation, Requirement::Tcb].into();
    let policy = Policy {
        required,
        ..Policy::default()
    };
    let result = judge_by(&quote, &given, &policy, 1_734_396_600);
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
    // What another root signed under the same names changes nothing, nor does other times' collateral.
    for file in [
        "tcbInfo.json",
        "qeIdentity.json",
        "tcbSignChain.pem",
        "pckSignChain.pem",
        "rootCaCrl.der",
        "intermediateCaCrl.der",
    ] {
        given.insert(0, read(&format!("tdx/neg-intel-testroot/{file}")));
    }
    given.push(read("tdx/tdx-v4-near-b9e238b2/collateral-2026-03-11.json"));
    given.insert(0, read("tdx/tdx-v4-lunaldev-1a260f89/collateral-2025-03-14.json"));
    let result = judge_by(&quote, &given, &policy, 1_734_396_600);
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
}

#[test]
fn a_quote_may_be_text() {
    use base64::Engine;
    let raw = read("tdx/tdx-v4-near-b9e238b2/quote.bin");
    let collateral = vec![read("tdx/tdx-v4-near-b9e238b2/collateral-2026-03-11.json")];
    for text in [
        hex::encode(&raw),
        format!("0x{}\n", hex::encode_upper(&raw)),
        base64::engine::general_purpose::STANDARD.encode(&raw),
    ] {
        let result = judge_by(text.as_bytes(), &collateral, &Policy::default(), 1_773_198_539);
        assert_eq!(result.verdict, Verdict::Verified, "{result}");
    }
}

#[test]
fn m47_m48_event_logs_are_replayed() {
    let near = 1_774_941_757;
    let quote = "tdx/tdx-v4-lunaldev-3ab56d67/quote.bin";
    let collateral = "tdx/tdx-v4-lunaldev-3ab56d67/collateral-2026-03-31.json";
    let line = |result: &AttestationResult| {
        let check = result
            .checks
            .iter()
            .find(|check| check.id == "appraise.event-log")
            .unwrap();
        check.outcome.clone()
    };
    let none = judge(quote, &[collateral], near);
    assert!(matches!(line(&none), Outcome::NotChecked(_)), "{none}");
    let own = judge(quote, &[collateral, "ccel/lunal-live2.ccel"], near);
    assert_eq!(
        (own.verdict, line(&own)),
        (Verdict::Verified, Outcome::Passed),
        "{own}"
    );
    let other = judge(quote, &[collateral, "ccel/google-cos113.ccel"], near);
    assert_eq!(other.reasons(), [Reason::RtmrMismatch], "{other}");
    assert!(
        other.to_string().contains("rtmr0") && other.to_string().contains("rtmr2"),
        "{other}"
    );
    let both = judge(
        quote,
        &[collateral, "ccel/google-cos113.ccel", "ccel/lunal-live2.ccel"],
        near,
    );
    assert_eq!(both.verdict, Verdict::Verified, "{both}");
    let log = read("ccel/lunal-live2.ccel");
    for len in [48, 100, 1000, 2119] {
        let given = [read(collateral), log[..len].to_vec()];
        let cut = judge_by(&read(quote), &given, &Policy::default(), near);
        assert_eq!(cut.reasons(), [Reason::Malformed], "{len} bytes:\n{cut}");
    }
}
