//! Every recorded piece of evidence gets the verdict that is known for it, and docs/attestation.md shows it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use attestation::Reason;
use common::{Case, cases, vectors};

fn doc() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/attestation.md")
}

fn words<T: ToString>(list: impl IntoIterator<Item = T>) -> Vec<String> {
    list.into_iter().map(|word| word.to_string()).collect()
}

#[test]
fn every_vector_gets_its_verdict() {
    let wrong: Vec<String> = cases()
        .iter()
        .filter_map(|case| {
            let result = case.judge();
            let reasons = words(result.reasons().iter().map(|reason| format!("{reason:?}")));
            let verdict = format!("{:?}", result.verdict).to_lowercase();
            let right = verdict == case.verdict && reasons == case.reasons;
            (!right).then(|| {
                format!(
                    "{} with {:?} at {}: expected {} {:?}, found {verdict} {reasons:?}: {:#?}",
                    case.evidence,
                    case.endorsements,
                    case.at,
                    case.verdict,
                    case.reasons,
                    result.failures()
                )
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Recorded evidence that no case is about would be there for nothing.
#[test]
fn no_recorded_evidence_is_left_out() {
    let about: BTreeSet<String> = cases().into_iter().map(|case| case.evidence).collect();
    let sources = std::fs::read_to_string(vectors().join("SOURCES")).unwrap();
    let recorded: Vec<&str> = sources
        .lines()
        .filter_map(|line| line.split('\t').next())
        .filter(|path| {
            let name = path.rsplit('/').next().unwrap();
            ["report.bin", "quote.bin", "quote.dat"].contains(&name) || path.starts_with("azure/")
        })
        .collect();
    assert!(recorded.len() > 30, "{recorded:?}");
    for path in recorded {
        assert!(about.contains(path), "{path} is in no case");
    }
}

fn table(cases: &[Case]) -> String {
    let mut table = String::from("| evidence | at | verdict | reasons |\n|---|---|---|---|\n");
    for case in cases {
        let root = if case.roots.is_empty() {
            ""
        } else {
            " (test root named)"
        };
        let (verdict, reasons) = (&case.verdict, case.reasons.join(", "));
        let at = case.judge().to_string();
        let at = at
            .lines()
            .next()
            .unwrap()
            .rsplit(" at ")
            .next()
            .unwrap()
            .to_owned();
        // Manifests and chains from elsewhere are what such a case is about.
        let elsewhere = |path: &&String| path.starts_with("gpu/rim") || path.starts_with("gpu/trustee");
        let with: Vec<&str> = case
            .endorsements
            .iter()
            .filter(elsewhere)
            .map(|path| path.trim_start_matches("gpu/"))
            .collect();
        let with = match with.is_empty() {
            true => String::new(),
            false => format!(" with {}", with.join(", ")),
        };
        table += &format!(
            "| {}{root}{with} | {at} | {verdict} | {reasons} |\n",
            case.evidence
        );
    }
    table
}

/// Every reason that JSON can name, with its meaning.
fn reasons() -> String {
    let rows = Reason::ALL.iter().map(|reason| {
        let name = serde_json::to_value(reason).unwrap();
        format!("| `{}` | {} |\n", name.as_str().unwrap(), reason.meaning())
    });
    std::iter::once("| reason | meaning |\n|---|---|\n".to_owned())
        .chain(rows)
        .collect()
}

/// With `UPDATE_DOCS=1` it writes the tables instead.
#[test]
fn the_docs_show_these_verdicts_and_all_reasons() {
    let text = std::fs::read_to_string(doc()).unwrap();
    let mut fresh = text.clone();
    for (name, table) in [("table", table(&cases())), ("reasons", reasons())] {
        let begin = format!("<!-- {name}: made by attestation/tests/table.rs -->\n");
        let end = format!("<!-- end of {name} -->");
        let (before, rest) = fresh
            .split_once(&begin)
            .expect("the place where the table begins");
        let (_, after) = rest.split_once(&end).expect("the place where the table ends");
        fresh = format!("{before}{begin}{table}{end}{after}");
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(doc(), &fresh).unwrap();
    }
    let shown = std::fs::read_to_string(doc()).unwrap();
    assert!(
        shown == fresh,
        "docs/attestation.md is stale: run with UPDATE_DOCS=1"
    );
}

/// The forged and awkward cases that are known of today's verifiers: each is a test somewhere, named by its id.
#[test]
fn every_mutation_is_a_test() {
    let text = std::fs::read_to_string(doc()).unwrap();
    let ids: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| M")?.split(' ').next())
        .filter(|id| id.len() == 2 && id.bytes().all(|c| c.is_ascii_digit()))
        .collect();
    assert_eq!(ids.len(), 51, "the list in docs/attestation.md: {ids:?}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    let mut folders = vec![folder.join("tests"), folder.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let tests: BTreeSet<&str> = sources
        .lines()
        .filter_map(|line| line.trim().strip_prefix("fn ")?.split('(').next())
        .flat_map(|name| name.split('_'))
        .collect();
    for id in ids {
        assert!(
            tests.contains(format!("m{id}").as_str()),
            "no test whose name has m{id}"
        );
    }
}
