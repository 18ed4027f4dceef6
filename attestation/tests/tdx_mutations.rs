//! What must be refused, and with which reason: the rows M30–M46 of the collection that the vectors come from, on
//! recorded quotes. What only Intel could sign is in `tdx_simulated.rs`, M47 and M48 in `tdx_vectors.rs`, M49, about event
//! logs, in `eventlog.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::LazyLock;

use attestation::tdx::TdxPolicy;
use attestation::{
    AnyEvidence, AttestationResult, Endorsements, Policy, Reason, Roots, Trust, Verdict, verify_any,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

fn read(path: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    std::fs::read(folder.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A quote with its collateral and a time at which both are good.
struct Good {
    quote: Vec<u8>,
    collateral: Vec<u8>,
    endorsements: Endorsements,
    at: u64,
    /// Length of what the attestation key signs.
    signed: usize,
}

fn good(quote: &str, collateral: &str, at: u64, signed: usize) -> Good {
    let collateral = read(&format!("tdx/{collateral}"));
    Good {
        quote: read(&format!("tdx/{quote}")),
        endorsements: given(&[&collateral]),
        collateral,
        at,
        signed,
    }
}

/// Versions 4 and 5; bodies TD 1.0 and TD 1.5ex.
static GOOD: LazyLock<[Good; 3]> = LazyLock::new(|| {
    let near = "tdx-v4-near-b9e238b2";
    let matter = "tdx-v4-matterlabs-55d278a9";
    let ex = "dcapqvl-td15ex/tdx_quote_td15ex";
    [
        good(
            &format!("{near}/quote.bin"),
            &format!("{near}/collateral-2026-03-11.json"),
            1_773_198_539,
            632,
        ),
        good(
            &format!("{matter}/quote.bin"),
            &format!("{matter}/collateral-2024-12-17.json"),
            1_734_396_600,
            632,
        ),
        good(ex, &format!("{ex}_collateral.json"), 1_792_454_400, 54 + 885),
    ]
});

fn given(contents: &[&[u8]]) -> Endorsements {
    let mut endorsements = Endorsements::none();
    for content in contents {
        endorsements.add(content).unwrap();
    }
    endorsements
}

fn judge(quote: &[u8], endorsements: &Endorsements, at: u64) -> AttestationResult {
    let evidence = AnyEvidence::parse(quote).unwrap_or_else(|e| panic!("{e}"));
    verify_any(&evidence, endorsements, &Roots::pinned(), &Policy::default(), at)
}

#[track_caller]
fn assert_refused(result: &AttestationResult, reason: Reason, row: &str) {
    assert_eq!(result.verdict, Verdict::Refused, "{row}:\n{result}");
    assert!(
        result.reasons().contains(&reason),
        "{row}: wanted {reason:?}:\n{result}"
    );
}

/// Where a part of the signature data lies, counted from the end of what is signed.
const OUTER_TYPE: usize = 4 + 128;
const OUTER_LEN: usize = OUTER_TYPE + 2;
const QE_REPORT: usize = OUTER_LEN + 4;
const QE_AUTH_LEN: usize = QE_REPORT + 384 + 64;
const INNER_TYPE: usize = QE_AUTH_LEN + 2 + 32;
const INNER_LEN: usize = INNER_TYPE + 2;
const CHAIN: usize = INNER_LEN + 4;

impl Good {
    fn chain(&self) -> String {
        String::from_utf8(self.quote[self.signed + CHAIN..].to_vec()).unwrap()
    }

    /// The quote with another chain, and all lengths as they must be.
    fn with_chain(&self, chain: &[u8]) -> Vec<u8> {
        let s = self.signed;
        let mut quote = self.quote[..s + CHAIN].to_vec();
        quote.extend(chain);
        for at in [s, s + OUTER_LEN, s + INNER_LEN] {
            let len = (quote.len() - at - 4) as u32;
            quote[at..at + 4].copy_from_slice(&len.to_le_bytes());
        }
        quote
    }

    fn certificates(&self) -> Vec<String> {
        let end = "-----END CERTIFICATE-----\n";
        let chain = self.chain();
        let blocks = chain.split_inclusive(end).filter(|block| block.contains("BEGIN"));
        blocks.map(str::to_owned).collect()
    }
}

#[test]
fn the_unchanged_quotes_are_verified() {
    for good in &*GOOD {
        let result = judge(&good.quote, &good.endorsements, good.at);
        assert_eq!(result.verdict, Verdict::Verified, "{result}");
        let again = judge(
            &good.with_chain(good.chain().as_bytes()),
            &good.endorsements,
            good.at,
        );
        assert_eq!(again, result);
    }
}

/// Without collateral, which costs time: an unnoticed flip would then be indeterminate.
fn judge_alone(quote: &[u8], at: u64) -> AttestationResult {
    judge(quote, &Endorsements::none(), at)
}

#[test]
fn m30_a_flip_of_any_signed_bit_is_noticed() {
    for good in &*GOOD {
        assert_eq!(judge_alone(&good.quote, good.at).verdict, Verdict::Indeterminate);
        for at in 0..good.signed {
            // Every bit of what says how the rest is read; elsewhere one, another for each byte.
            let reading = (0..28).contains(&at) || (48..54).contains(&at);
            for bit in if reading { 0..8 } else { at % 8..at % 8 + 1 } {
                let mut quote = good.quote.clone();
                quote[at] ^= 1 << bit;
                let result = judge_alone(&quote, good.at);
                assert_refused(&result, Reason::SignatureInvalid, &format!("byte {at} bit {bit}"));
            }
        }
    }
}

#[test]
fn m31_a_flip_of_any_other_bit_is_noticed() {
    for (n, good) in GOOD.iter().enumerate() {
        // The chains' text differs little from quote to quote: all of one, some bytes of the others.
        let whole = good.signed..good.signed + CHAIN;
        let chain = (good.signed + CHAIN..good.quote.len()).step_by(if n == 0 { 1 } else { 9 });
        for at in whole.chain(chain) {
            let mut quote = good.quote.clone();
            quote[at] ^= 1 << (at % 7);
            let result = judge_alone(&quote, good.at);
            assert_eq!(result.verdict, Verdict::Refused, "byte {at}:\n{result}");
            let place = at - good.signed;
            let unsigned = [0..4, OUTER_TYPE..QE_REPORT, INNER_TYPE..CHAIN];
            if unsigned.iter().any(|part| part.contains(&place)) {
                assert_refused(&result, Reason::Malformed, &format!("byte {at}"));
            }
            if (QE_REPORT..QE_REPORT + 384).contains(&place) {
                assert_refused(&result, Reason::SignatureInvalid, &format!("byte {at}"));
            }
        }
    }
}

#[test]
fn m31_lengths_and_ends_are_exact() {
    let good = &GOOD[0];
    for (row, more) in [
        ("zero", vec![0]),
        ("zeros", vec![0; 3064]),
        ("garbage", b"trailing".to_vec()),
    ] {
        let quote = [&good.quote[..], &more].concat();
        assert_refused(
            &judge(&quote, &good.endorsements, good.at),
            Reason::Malformed,
            row,
        );
        let tdx = TdxPolicy {
            allow_padding: true,
            ..TdxPolicy::default()
        };
        let policy = Policy {
            tdx,
            ..Policy::default()
        };
        let evidence = AnyEvidence::parse(&quote).unwrap();
        let result = verify_any(&evidence, &good.endorsements, &Roots::pinned(), &policy, good.at);
        assert_eq!(result.is_verified(), row != "garbage", "{row}:\n{result}");
    }
    // Bytes inside the lengths, behind the parts.
    for (row, lens) in [("inner", vec![0]), ("outer", vec![0, OUTER_LEN])] {
        let mut quote = good.quote.clone();
        quote.push(0);
        for len in lens {
            let at = good.signed + len;
            let old = u32::from_le_bytes(quote[at..at + 4].try_into().unwrap());
            quote[at..at + 4].copy_from_slice(&(old + 1).to_le_bytes());
        }
        assert_refused(
            &judge(&quote, &good.endorsements, good.at),
            Reason::Malformed,
            row,
        );
    }
}

#[test]
fn m31_the_chains_text_is_exact() {
    let good = &GOOD[0];
    let chain = good.chain();
    for (row, text) in [
        ("a comment", format!("PCK:\n{chain}")),
        (
            "a line between",
            chain.replacen("-----\n-----BEGIN", "-----\n\n-----BEGIN", 1),
        ),
        ("spaces", chain.replacen("-----\nM", "-----\n M", 1)),
        (
            "another line length",
            chain.replacen("-----\nMII", "-----\nMII\n", 1),
        ),
        ("another label", chain.replace("CERTIFICATE", "X509 CERTIFICATE")),
        ("two ends", format!("{chain}\0")),
        ("nothing", String::new()),
        ("no text", "\u{1}\u{2}".to_owned()),
    ] {
        let result = judge(&good.with_chain(text.as_bytes()), &good.endorsements, good.at);
        let reasons = result.reasons();
        assert_eq!(result.verdict, Verdict::Refused, "{row}");
        assert!(
            reasons.contains(&Reason::Malformed) || reasons.contains(&Reason::ChainInvalid),
            "{row}: {reasons:?}"
        );
    }
}

#[test]
fn m31_truncated_quotes_are_refused() {
    for good in &*GOOD {
        for len in 0..good.quote.len() {
            // The first bytes alone say nothing about what they are; then nothing is verified either.
            let Ok(evidence) = AnyEvidence::parse(&good.quote[..len]) else {
                assert!(len < 8, "{len}");
                continue;
            };
            let result = verify_any(
                &evidence,
                &good.endorsements,
                &Roots::pinned(),
                &Policy::default(),
                good.at,
            );
            assert_refused(&result, Reason::Malformed, &format!("{len} bytes"));
        }
    }
}

#[test]
fn m33_a_td_without_sept_ve_disable_needs_an_exception() {
    let collateral = read("tdx/tdx-v4-intel-f51db4d1/collateral-2024-12-17.json");
    let quote = read("tdx/tdx-v4-intel-f51db4d1/quote.bin");
    assert_refused(
        &judge(&quote, &given(&[&collateral]), 1_734_396_600),
        Reason::TdAttributes,
        "f51db4d1",
    );
    let tdx = TdxPolicy {
        allow_sept_ve: true,
        ..TdxPolicy::default()
    };
    let policy = Policy {
        tdx,
        ..Policy::default()
    };
    let evidence = AnyEvidence::parse(&quote).unwrap();
    let result = verify_any(
        &evidence,
        &given(&[&collateral]),
        &Roots::pinned(),
        &policy,
        1_734_396_600,
    );
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
}

#[test]
fn m34_m35_perfmon_and_service_tds_are_refused() {
    let at = 1_735_979_219;
    let collateral = read("tdx/tdx-v4-automatanetwork-f8f82dc7/collateral-2025-01-04.json");
    let perfmon = judge(
        &read("tdx/tdx-v4-automatanetwork-f8f82dc7/quote.bin"),
        &given(&[&collateral]),
        at,
    );
    assert_refused(&perfmon, Reason::TdAttributes, "f8f82dc7");
    assert_refused(&perfmon, Reason::TcbUnrecognised, "f8f82dc7");
    assert!(perfmon.to_string().contains("perfmon set"), "{perfmon}");
    // Row M35's vector isn't here; 586c2be0 has a service TD, too.
    let service = judge(
        &read("tdx/tdx-v5-automatanetwork-586c2be0/quote.bin"),
        &given(&[&collateral]),
        at,
    );
    assert_refused(&service, Reason::ServiceTdPresent, "586c2be0");
}

#[test]
fn m36_other_roots_are_not_trusted() {
    for quote in ["tdx-v5-google-4fbd4361/quote.bin", "neg-intel-testroot/quote.dat"] {
        let result = judge(
            &read(&format!("tdx/{quote}")),
            &Endorsements::none(),
            1_700_000_000,
        );
        assert_eq!(result.reasons(), [Reason::UntrustedRoot], "{quote}:\n{result}");
        assert_eq!(result.trust, Trust::None);
    }
    // Intel's test tool: its chain holds if somebody trusts its root, and then its random fields are judged.
    let folder = "tdx/neg-intel-testroot";
    let files = [
        "tcbInfo.json",
        "qeIdentity.json",
        "tcbSignChain.pem",
        "rootCaCrl.der",
        "intermediateCaCrl.der",
    ];
    let files: Vec<Vec<u8>> = files
        .iter()
        .map(|file| read(&format!("{folder}/{file}")))
        .collect();
    let endorsements = given(&files.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let pem = String::from_utf8(read(&format!("{folder}/trustedRootCaCert.pem"))).unwrap();
    let base64: String = pem.lines().filter(|line| !line.contains("---")).collect();
    let roots = Roots::pinned()
        .with_test_root(&STANDARD.decode(base64).unwrap())
        .unwrap();
    let evidence = AnyEvidence::parse(&read(&format!("{folder}/quote.dat"))).unwrap();
    let result = verify_any(
        &evidence,
        &endorsements,
        &roots,
        &Policy::default(),
        1_640_995_200,
    );
    assert_eq!(result.trust, Trust::TestRoot, "{result}");
    for check in [
        "authenticate.chain",
        "authenticate.signature",
        "collateral.tcb-info-signature",
    ] {
        assert!(
            result.checks.iter().any(|c| c.id == check && !c.is_failed()),
            "{check}:\n{result}"
        );
    }
}

#[test]
fn m37_a_tcb_recovery_moves_the_bar() {
    // Row M37's vector isn't here; this one was up to date in March and isn't in August, by new collateral.
    let quote = read("tdx/tdx-v4-lunaldev-3ab56d67/quote.bin");
    let march = read("tdx/tdx-v4-lunaldev-3ab56d67/collateral-2026-03-31.json");
    let august = read("tdx/tdx-v4-lunaldev-3ab56d67/collateral-2026-08-28.json");
    // Both are given: the time decides.
    let both = given(&[&august, &march]);
    let then = judge(&quote, &both, 1_774_941_757);
    assert_eq!(then.verdict, Verdict::Verified, "{then}");
    assert_eq!(then.claims["tcb"]["status"], "UpToDate");
    let later = judge(&quote, &both, 1_787_894_484);
    assert_eq!(later.reasons(), [Reason::OutOfDate], "{later}");
    assert!(later.to_string().contains("INTEL-SA-01192"), "{later}");
}

fn v3(good: &Good) -> Value {
    serde_json::from_slice(&good.collateral).unwrap()
}

fn judge_v3(good: &Good, collateral: &Value) -> AttestationResult {
    judge(&good.quote, &given(&[collateral.to_string().as_bytes()]), good.at)
}

#[test]
fn m38_collateral_of_another_platform_or_kind_is_refused() {
    let matter = &GOOD[1]; // FMSPC 00806f050000
    let other = read("tdx/tdx-v4-automatanetwork-f8f82dc7/collateral-2025-01-04.json"); // 90c06f000000
    let other: Value = serde_json::from_slice(&other).unwrap();
    let sgx: Value = serde_json::from_slice(&read(
        "collateral/tcbInfo-SGX-00606a000000-2025-08-15-8fdd553e2c2c0d0b.json",
    ))
    .unwrap();
    let mut swapped = v3(matter);
    for field in ["tcb_info", "tcb_info_signature"] {
        swapped[field] = other[field].clone();
    }
    assert_refused(
        &judge_v3(matter, &swapped),
        Reason::CollateralMismatch,
        "another FMSPC",
    );
    let mut swapped = v3(matter);
    swapped["tcb_info"] = json!(sgx["tcbInfo"].to_string());
    swapped["tcb_info_signature"] = sgx["signature"].clone();
    assert_refused(
        &judge_v3(matter, &swapped),
        Reason::CollateralMismatch,
        "SGX's TCB info",
    );
    let qe: Value = serde_json::from_slice(&read(
        "collateral/enclaveIdentity-QE--2025-08-15-fac5d94982759102.json",
    ))
    .unwrap();
    let mut swapped = v3(matter);
    swapped["qe_identity"] = json!(qe["enclaveIdentity"].to_string());
    swapped["qe_identity_signature"] = qe["signature"].clone();
    assert_refused(
        &judge_v3(matter, &swapped),
        Reason::CollateralMismatch,
        "SGX's QE",
    );
}

#[test]
fn m39_m43_collateral_is_signed_byte_by_byte() {
    for good in &*GOOD {
        for name in ["tcb_info", "qe_identity"] {
            let whole = v3(good);
            let text = whole[name].as_str().unwrap();
            let signature = format!("{name}_signature");
            let value: Value = serde_json::from_str(text).unwrap();
            let mut changed = value.clone();
            if name == "qe_identity" {
                changed["mrsigner"] = json!("00".repeat(32));
            } else {
                changed["tcbEvaluationDataNumber"] = json!(99);
            }
            for (row, text) in [
                ("a space", text.replacen(':', ": ", 1)),
                ("a line break at the end", format!("{text}\n")),
                ("serialised anew", format!("{value:#}")),
                ("changed", changed.to_string()),
            ] {
                let mut edited = whole.clone();
                edited[name] = json!(text);
                assert_refused(
                    &judge_v3(good, &edited),
                    Reason::CollateralSignatureInvalid,
                    &format!("{name}: {row}"),
                );
            }
            for (row, hex) in [
                ("none", json!("")),
                ("half", json!("00".repeat(32))),
                ("null", Value::Null),
            ] {
                let mut edited = whole.clone();
                edited[&signature] = hex;
                assert_refused(
                    &judge_v3(good, &edited),
                    Reason::CollateralSignatureInvalid,
                    &format!("{name}: {row}"),
                );
            }
        }
    }
}

#[test]
fn m39_space_around_what_is_signed_means_nothing() {
    let good = &GOOD[0];
    let whole = v3(good);
    let text = |name: &str| whole[name].as_str().unwrap();
    let info = format!(
        "\u{feff}\r\n{{ \"signature\": \"{}\",\n\t\"tcbInfo\" : {} }}\n",
        text("tcb_info_signature"),
        text("tcb_info")
    );
    let mut rest = whole.clone();
    rest["tcb_info"] = json!("{}");
    let endorsements = given(&[info.as_bytes(), rest.to_string().as_bytes()]);
    let result = judge(&good.quote, &endorsements, good.at);
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
}

#[test]
fn m44_only_a_whole_chain_in_its_order_counts() {
    let good = &GOOD[0];
    let certs = good.certificates();
    let [leaf, ca, root] = [&certs[0], &certs[1], &certs[2]];
    let other = GOOD[1].certificates();
    for (row, chain) in [
        ("no leaf", vec![ca, root]),
        ("reversed", vec![root, ca, leaf]),
        ("no root", vec![leaf, ca]),
        ("leaf alone", vec![leaf]),
        ("another behind", vec![leaf, ca, root, &other[0]]),
        ("another between", vec![leaf, &other[0], ca, root]),
        ("the leaf twice", vec![leaf, leaf, root]),
        ("two roots", vec![leaf, root, root]),
        ("another leaf", vec![&other[0], ca, root]),
        ("nine", vec![leaf; 9]),
    ] {
        let chain: String = chain.into_iter().map(String::as_str).collect();
        let result = judge(&good.with_chain(chain.as_bytes()), &good.endorsements, good.at);
        assert_eq!(result.verdict, Verdict::Refused, "{row}:\n{result}");
        let want = match row {
            "another leaf" => Reason::SignatureInvalid, // it is Intel's, too, but didn't sign this
            "nine" => Reason::Malformed,
            _ => Reason::ChainInvalid,
        };
        assert_refused(&result, want, row);
    }
}

#[test]
fn m45_the_crl_of_another_ca_is_not_the_platforms() {
    let good = &GOOD[0];
    let processor = read("collateral/crl-Intel-SGX-PCK-Processor-CA-2025-06-19-5b07d32995f53ee0.der");
    let mut swapped = v3(good);
    swapped["pck_crl"] = json!(hex::encode(&processor));
    assert_refused(
        &judge_v3(good, &swapped),
        Reason::CollateralMismatch,
        "Processor CA",
    );
    let mut forged = hex::decode(v3(good)["pck_crl"].as_str().unwrap()).unwrap();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    swapped["pck_crl"] = json!(hex::encode(&forged));
    assert_refused(&judge_v3(good, &swapped), Reason::CrlInvalid, "a forged CRL");
}

#[test]
fn m46_reports_for_the_own_machine_and_of_enclaves_are_no_quotes() {
    for file in [
        "tdx/tdreport/lunal-tdreport.bin",
        "tdx/tdreport/google-report.bin",
        "sgx/sgx-v3-automatanetwork-07c203b5/quote.bin",
    ] {
        let result = judge(&read(file), &Endorsements::none(), 1_700_000_000);
        assert_eq!(result.verdict, Verdict::Refused, "{file}");
        assert_eq!(result.reasons(), [Reason::NotAQuote], "{file}:\n{result}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Bytes overwritten, cut out and put in anywhere: nothing panics, nothing but the quote itself is verified.
    #[test]
    fn no_changed_quote_is_verified(
        which in 0usize..3,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..6, proptest::collection::vec(any::<u8>(), 0..6)), 1..4),
    ) {
        let good = &GOOD[which];
        let mut quote = good.quote.clone();
        for (at, cut, put) in edits {
            let at = at.index(quote.len());
            let end = (at + cut).min(quote.len());
            quote.splice(at..end, put);
        }
        if let Ok(evidence) = AnyEvidence::parse(&quote) {
            let result = verify_any(&evidence, &good.endorsements, &Roots::pinned(), &Policy::default(), good.at);
            prop_assert_eq!(result.is_verified(), quote == good.quote);
        }
    }

    /// Collateral with bytes overwritten: nothing panics, and what is verified rests on the same signed texts.
    #[test]
    fn no_changed_collateral_makes_another_verdict(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let good = &GOOD[0];
        let mut collateral = good.collateral.clone();
        let at = at.index(collateral.len());
        collateral[at] = byte;
        let mut endorsements = Endorsements::none();
        if endorsements.add(&collateral).is_ok() {
            let result = judge(&good.quote, &endorsements, good.at);
            if result.is_verified() {
                let unchanged = judge(&good.quote, &good.endorsements, good.at);
                prop_assert_eq!(result.claims, unchanged.claims);
            }
        }
    }
}
