//! The same evidence before ours and before other verifiers: every disagreement is one that docs/attestation.md explains.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use attestation::{AttestationResult, Outcome, Verdict};
use attestation_peers::{SevChain, SnpGuest, collateral, dcap};
use common::{Case, cases, vectors};

/// Reports and quotes of which every n-th byte is flipped: primes, so that every field is met over several vectors.
const SNP_STRIDE: usize = 3;
const TDX_STRIDE: usize = 17;

/// Reserved bytes of TCB versions, which `sev` is known not to look at.
const SEV_LEAVES_OUT: [Range<usize>; 4] = [0x3a..0x3e, 0x182..0x186, 0x1e2..0x1e6, 0x1f2..0x1f6];

/// Where in a report (AMD 56860, `ATTESTATION_REPORT`) a byte lies.
fn field(at: usize) -> &'static str {
    match at {
        0x38..0x40 | 0x180..0x188 | 0x1e0..0x1e8 | 0x1f0..0x1f8 => "reserved bytes of a TCB version",
        0x2a0.. => "bytes behind the signed part",
        _ => "elsewhere",
    }
}

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

/// What other verifiers are given: AMD's CA of the report's product, and the key beside the report (DER).
struct Chain {
    product: &'static str,
    ark: Vec<u8>,
    intermediate: Vec<u8>,
    vek: Vec<u8>,
    is_vlek: bool,
}

fn chain(case: &Case) -> Option<Chain> {
    let folder = case.evidence.strip_prefix("snp/")?.split('/').next()?;
    let product = match folder.split('-').next()? {
        "genoa" => "genoa",
        "turin" => "turin",
        _ => "milan",
    };
    let is_vlek = folder.contains("vlek");
    let file = |path: String| std::fs::read(vectors().join(path)).unwrap();
    let signer = if is_vlek { "asvk" } else { "ask" };
    Some(Chain {
        product,
        ark: file(format!("snp/ca/{product}/ark.der")),
        intermediate: file(format!("snp/ca/{product}/{signer}.der")),
        vek: file(case.endorsements.first()?.clone()),
        is_vlek,
    })
}

fn sev_chain(case: &Case) -> Option<SevChain> {
    let chain = chain(case)?;
    let sev = SevChain::new(&chain.ark, &chain.intermediate, &chain.vek);
    Some(sev.unwrap_or_else(|error| panic!("{}: {error}", case.evidence)))
}

/// The program that `make peers` builds.
fn snpguest() -> PathBuf {
    let path = std::env::var_os("DC_SNPGUEST").map(PathBuf::from);
    path.expect("DC_SNPGUEST=the program snpguest 0.11.0; `make peers` builds it and runs this test")
}

impl Chain {
    /// As `snpguest` reads it.
    fn write(&self, folder: &Path) {
        let [signer, key] = if self.is_vlek {
            ["asvk.der", "vlek.der"]
        } else {
            ["ask.der", "vcek.der"]
        };
        for (name, content) in [
            ("ark.der", &self.ark),
            (signer, &self.intermediate),
            (key, &self.vek),
        ] {
            std::fs::write(folder.join(name), content).unwrap();
        }
    }
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

/// Flips every `stride`-th byte of three reports, and those that are known; ours refuses each, and what `peer` accepts is
/// where it is known to be. `peer`: gives a case's judge.
fn flipped_snp_reports<J: FnMut(&[u8]) -> bool>(stride: usize, peer: impl Fn(&Case) -> J) {
    let mut tally = Tally::default();
    for name in ["milan-v3-msft", "genoa-v3-msft", "turin-v5-msft"] {
        let mut case = cases()
            .into_iter()
            .find(|case| case.evidence == format!("snp/{name}/report.bin") && case.verdict == "verified")
            .unwrap();
        case.endorsements.truncate(1);
        let mut accepts = peer(&case);
        let good = case.evidence();
        let known = SEV_LEAVES_OUT.into_iter().flatten();
        for at in (0..good.len()).step_by(stride).chain(known) {
            let mut report = good.clone();
            report[at] ^= 1;
            assert!(
                !is_authentic(&case.judge_bytes(&report)),
                "{name}: a flip at {at:#x}"
            );
            if accepts(&report) {
                tally.add(field(at));
            }
        }
    }
    let fields: Vec<&str> = tally.0.keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        ["bytes behind the signed part", "reserved bytes of a TCB version"],
        "{tally:?}"
    );
    println!("flips that the peer accepts and we refuse: {tally:?}");
}

#[test]
fn flipped_snp_reports_before_sev() {
    flipped_snp_reports(SNP_STRIDE, |case| {
        let chain = sev_chain(case).unwrap();
        move |report: &[u8]| chain.verify(report).is_ok()
    });
}

#[test]
fn recorded_snp_reports_before_snpguest() {
    let program = snpguest();
    let mut disagreements = Vec::new();
    let mut compared = 0;
    for case in cases() {
        let Some(chain) = chain(&case) else { continue };
        compared += 1;
        let folder = tempfile::tempdir().unwrap();
        chain.write(folder.path());
        let report = vectors().join(&case.evidence);
        let peer = SnpGuest {
            program: &program,
            certificates: folder.path(),
        };
        // Reports of version 2 don't say their product, and the program doesn't take it from the certificate.
        let is_v2 = case.evidence()[..4] == [2, 0, 0, 0];
        let product = is_v2.then_some(chain.product);
        if is_v2 && case.verdict == "verified" {
            assert!(
                peer.report(&report, None).is_err(),
                "{} without -p",
                case.evidence
            );
        }
        let theirs = peer.certificates().and_then(|()| peer.report(&report, product));
        let ours = is_authentic(&case.judge());
        if ours != theirs.is_ok() {
            let row = format!(
                "{} at {}: ours {ours}, snpguest {theirs:?}",
                case.evidence, case.at
            );
            disagreements.push(row);
        }
    }
    assert!(compared >= 17, "{compared}");
    // As `sev`, it looks at no dates, and is given the right CA where our case gives a wrong one.
    let explained = [
        "snp/milan-v3-aws-vlek-trustee-vmpl1/report.bin at 2026-09-01: ours false, snpguest Ok(())",
        "snp/turin-v5-msft/report.bin at 2026-09-01: ours false, snpguest Ok(())",
    ];
    assert_eq!(disagreements, explained);
}

/// A process for each flip: fewer of them.
#[test]
fn flipped_snp_reports_before_snpguest() {
    let program = snpguest();
    flipped_snp_reports(13, |case| {
        let folder = tempfile::tempdir().unwrap();
        chain(case).unwrap().write(folder.path());
        let program = program.clone();
        move |report: &[u8]| {
            let path = folder.path().join("report.bin");
            std::fs::write(&path, report).unwrap();
            let peer = SnpGuest {
                program: &program,
                certificates: folder.path(),
            };
            peer.report(&path, None).is_ok()
        }
    });
}

#[test]
fn snpguest_believes_a_report_whose_chain_it_would_refuse() {
    let program = snpguest();
    let case = cases()
        .into_iter()
        .find(|case| case.evidence.starts_with("snp/turin-v5-msft") && case.verdict == "verified")
        .unwrap();
    let milan = vectors().join("snp/ca/milan");
    let foreign = Chain {
        ark: std::fs::read(milan.join("ark.der")).unwrap(),
        intermediate: std::fs::read(milan.join("ask.der")).unwrap(),
        ..chain(&case).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    foreign.write(folder.path());
    let peer = SnpGuest {
        program: &program,
        certificates: folder.path(),
    };
    assert!(peer.certificates().is_err());
    assert_eq!(peer.report(&vectors().join(&case.evidence), None), Ok(()));
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
