//! Every recorded piece of evidence with the verdict that is known for it (`tests/vectors/CASES.tsv`).

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "for tests, and not every one needs all of it"
)]

use std::path::{Path, PathBuf};

use attestation::{
    AnyEvidence, AttestationResult, Endorsements, Policy, Roots, refuse_malformed, verify_any,
};

/// One line of `CASES.tsv`.
pub(crate) struct Case {
    /// The file, relative to `tests/vectors`.
    pub(crate) evidence: String,
    /// Files and folders, likewise.
    pub(crate) endorsements: Vec<String>,
    /// As written: Unix seconds, or a date.
    pub(crate) at: String,
    /// Files of test roots.
    pub(crate) roots: Vec<String>,
    /// `verified`, `refused`, `indeterminate`.
    pub(crate) verdict: String,
    /// In the order of the result.
    pub(crate) reasons: Vec<String>,
}

/// Where recorded evidence lies.
pub(crate) fn vectors() -> PathBuf {
    // Also for packages beside this one.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = here.join("tests/vectors");
    if own.is_dir() {
        own
    } else {
        here.join("../tests/vectors")
    }
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(vectors().join("CASES.tsv")).unwrap();
    let words = |field: &str| field.split_whitespace().map(str::to_owned).collect();
    let case = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [evidence, endorsements, at, roots, verdict, reasons] => Case {
            evidence: evidence.to_owned(),
            endorsements: words(endorsements),
            at: at.to_owned(),
            roots: words(roots),
            verdict: verdict.to_owned(),
            reasons: words(reasons),
        },
        _ => panic!("not a case: {line}"),
    };
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(case)
        .collect()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Case {
    /// The evidence as it lies there.
    pub(crate) fn evidence(&self) -> Vec<u8> {
        read(&vectors().join(&self.evidence))
    }

    /// The content of every endorsement.
    pub(crate) fn endorsement_files(&self) -> Vec<Vec<u8>> {
        let mut files = Vec::new();
        for path in self.endorsements.iter().map(|path| vectors().join(path)) {
            if !path.is_dir() {
                files.push(read(&path));
                continue;
            }
            let mut paths: Vec<PathBuf> = std::fs::read_dir(path)
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect();
            paths.sort();
            let contents = paths.iter().filter(|path| path.is_file()).map(|path| read(path));
            files.extend(contents.filter(|content| Endorsements::none().add(content).is_ok()));
        }
        files
    }

    /// Unix seconds.
    pub(crate) fn at(&self) -> u64 {
        self.at.parse().unwrap_or_else(|_| {
            let full: der::DateTime = format!("{}T00:00:00Z", self.at).parse().unwrap();
            full.unix_duration().as_secs()
        })
    }

    /// The verifier's answer under the default policy.
    pub(crate) fn judge(&self) -> AttestationResult {
        self.judge_bytes(&self.evidence())
    }

    /// The answer for other bytes in the evidence's place.
    pub(crate) fn judge_bytes(&self, evidence: &[u8]) -> AttestationResult {
        let mut endorsements = Endorsements::none();
        for content in self.endorsement_files() {
            endorsements
                .add(&content)
                .unwrap_or_else(|error| panic!("{}: {error}", self.evidence));
        }
        let mut roots = Roots::pinned();
        for path in &self.roots {
            let mut root = Endorsements::none();
            root.add(&read(&vectors().join(path))).unwrap();
            roots = roots.with_test_root(root.certificates().next().unwrap()).unwrap();
        }
        match AnyEvidence::parse(evidence) {
            Ok(evidence) => verify_any(&evidence, &endorsements, &roots, &Policy::default(), self.at()),
            Err(error) => refuse_malformed(&error.to_string(), self.at()),
        }
    }
}
