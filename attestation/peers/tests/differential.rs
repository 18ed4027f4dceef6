//! The same evidence before ours and before other verifiers: every disagreement is one that docs/attestation.md explains.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;

use attestation::{AttestationResult, Outcome, Verdict};
use attestation_peers::{SevChain, collateral, dcap};
use common::{Case, cases, vectors};

/// Reports and quotes of which every n-th byte is flipped: primes, so that every field is met over several vectors.
const SNP_STRIDE: usize = 3;
const TDX_STRIDE: usize = 17;

fn is_authentic(result: &AttestationResult) -> bool {
    let about = |id: &str| id.starts_with("format.") || id.starts_with("authenticate.");
    !result
        .checks
        .iter()
        .any(|check| about(check.id) && matches!(check.outcome, Outcome::Failed(_) | Outcome::Missing(..)))
}

/// Counts rows of one kind.
#[derive(Default, Debug, PartialEq, Eq)]
struct Tally(BTreeMap<String, usize>);

impl Tally {
    fn add(&mut self, row: impl Into<String>) {
        *self.0.entry(row.into()).or_default() += 1;
    }
}

/// The chain that `sev` is given: AMD's CA of the report's product, and the key beside the report.
fn sev_chain(case: &Case) -> Option<SevChain> {
    let folder = case.evidence.strip_prefix("snp/")?.split('/').next()?;
    let product = folder
        .strip_prefix("neg-azure")
        .map_or(folder.split('-').next()?, |_| "milan");
    let file = |path: String| std::fs::read(vectors().join(path)).unwrap();
    let signer = if folder.contains("vlek") { "asvk" } else { "ask" };
    let ark = file(format!("snp/ca/{product}/ark.der"));
    let ask = file(format!("snp/ca/{product}/{signer}.der"));
    let vek = file(case.endorsements.first()?.clone());
    Some(SevChain::new(&ark, &ask, &vek).unwrap_or_else(|error| panic!("{}: {error}", case.evidence)))
}

#[test]
fn recorded_snp_reports_before_sev() {
    let mut disagreements = Vec::new();
    let mut compared = 0;
    for case in cases() {
        let Some(chain) = sev_chain(&case) else { continue };
        compared += 1;
        let (ours, theirs) = (
            is_authentic(&case.judge()),
            chain.verify(&case.evidence()).is_ok(),
        );
        if ours != theirs {
            let row = format!("{} at {}: ours {ours}, sev {theirs}", case.evidence, case.at);
            disagreements.push(row);
        }
    }
    assert!(compared >= 17, "{compared}");
    // `sev` looks at no dates, and is given the right CA where our case gives a wrong one.
    let explained = [
        "snp/milan-v3-aws-vlek-trustee-vmpl1/report.bin at 2026-09-01: ours false, sev true",
        "snp/turin-v5-msft/report.bin at 2026-09-01: ours false, sev true",
    ];
    assert_eq!(disagreements, explained);
}

#[test]
fn flipped_snp_reports_before_sev() {
    let mut tally = Tally::default();
    for name in ["milan-v3-msft", "genoa-v3-msft", "turin-v5-msft"] {
        let mut case = cases()
            .into_iter()
            .find(|case| case.evidence == format!("snp/{name}/report.bin") && case.verdict == "verified")
            .unwrap();
        case.endorsements.truncate(1);
        let chain = sev_chain(&case).unwrap();
        let good = case.evidence();
        // Beside every third byte, those that `sev` is known not to look at.
        let known = [0x3a..0x3e, 0x182..0x186, 0x1e2..0x1e6, 0x1f2..0x1f6]
            .into_iter()
            .flatten();
        for at in (0..good.len()).step_by(SNP_STRIDE).chain(known) {
            let mut report = good.clone();
            report[at] ^= 1;
            let (ours, theirs) = (
                is_authentic(&case.judge_bytes(&report)),
                chain.verify(&report).is_ok(),
            );
            assert!(!ours, "{name}: a flip at {at:#x}");
            if theirs {
                let field = match at {
                    0x38..0x40 | 0x180..0x188 | 0x1e0..0x1e8 | 0x1f0..0x1f8 => {
                        "reserved bytes of a TCB version"
                    }
                    0x2a0.. => "bytes behind the signed part",
                    _ => "elsewhere",
                };
                tally.add(field);
            }
        }
    }
    let fields: Vec<&str> = tally.0.keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        ["bytes behind the signed part", "reserved bytes of a TCB version"],
        "{tally:?}"
    );
    println!("flips that sev accepts and we refuse: {tally:?}");
}

#[test]
fn recorded_tdx_quotes_before_dcap_qvl() {
    let mut disagreements = Vec::new();
    let mut compared = 0;
    for case in cases() {
        let json = case
            .endorsements
            .first()
            .filter(|path| path.contains("ollateral") && path.ends_with(".json"));
        let (true, Some(_)) = (case.evidence.starts_with("tdx/"), json) else {
            continue;
        };
        compared += 1;
        let given = collateral(&case.endorsement_files()[0]).unwrap();
        let (ours, theirs) = (case.judge(), dcap(&case.evidence(), &given, case.at()));
        let reasons: Vec<String> = ours
            .reasons()
            .iter()
            .map(|reason| format!("{reason:?}"))
            .collect();
        let agreed = match &theirs {
            Ok(status) if status == "UpToDate" || status == "SWHardeningNeeded" => {
                ours.verdict == Verdict::Verified
            }
            Ok(status) => ours.verdict == Verdict::Refused && reasons.contains(status),
            Err(_) => ours.verdict == Verdict::Refused,
        };
        if !agreed {
            disagreements.push(format!(
                "{} at {}: ours {reasons:?}, dcap-qvl {theirs:?}",
                case.evidence, case.at
            ));
        }
        println!(
            "{} at {}: ours {:?} {reasons:?}, dcap-qvl {theirs:?}",
            case.evidence, case.at, ours.verdict
        );
    }
    assert!(compared >= 20, "{compared}");
    assert_eq!(disagreements, Vec::<String>::new());
}

#[test]
fn flipped_tdx_quotes_before_dcap_qvl() {
    let mut tally = Tally::default();
    let wanted = [
        "tdx-v4-lunaldev-3ab56d67",
        "tdx-v4-near-b9e238b2",
        "tdx-v4-phalanetwork-f1c85033",
    ];
    for name in wanted {
        let case = cases()
            .into_iter()
            .find(|case| case.evidence == format!("tdx/{name}/quote.bin") && case.verdict == "verified")
            .unwrap();
        let (good, given) = (case.evidence(), collateral(&case.endorsement_files()[0]).unwrap());
        let signed = signed_len(&good);
        for at in (0..good.len()).step_by(TDX_STRIDE) {
            let mut quote = good.clone();
            quote[at] ^= 1;
            compare(
                &case,
                &quote,
                &given,
                if at < signed {
                    "signed bytes"
                } else {
                    "certification data"
                },
                &mut tally,
            );
        }
        let longer = [&good[..], &[1]].concat();
        compare(&case, &longer, &given, "a byte behind the end", &mut tally);
        let mut outer_type = good.clone();
        outer_type[signed + 4 + 64 + 64] ^= 1;
        compare(
            &case,
            &outer_type,
            &given,
            "the outer certification type",
            &mut tally,
        );
    }
    println!("changes that dcap-qvl accepts and we refuse: {tally:?}");
    assert!(!tally.0.contains_key("signed bytes"), "{tally:?}");
    for known in [
        "a byte behind the end",
        "certification data",
        "the outer certification type",
    ] {
        assert!(
            tally.0.contains_key(known),
            "{known} is known of dcap-qvl 0.7.1: {tally:?}"
        );
    }
}

/// Header and body of a quote of version 4.
fn signed_len(quote: &[u8]) -> usize {
    assert_eq!(quote[..2], [4, 0]);
    48 + 584
}

fn compare(case: &Case, quote: &[u8], given: &dcap_qvl::QuoteCollateralV3, what: &str, tally: &mut Tally) {
    let ours = case.judge_bytes(quote);
    assert_ne!(ours.verdict, Verdict::Verified, "{}: {what}", case.evidence);
    if dcap(quote, given, case.at()).is_ok() {
        tally.add(what);
    }
}
