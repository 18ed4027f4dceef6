//! What is wrong with this host, and what to do about it.
//!
//! ```text
//! gather (looks, changes nothing) ─▶ Facts ─▶ examine (pure) ─▶ Report ─▶ table for people · JSON · exit code
//! ```
//! A report is a tree: what hangs on a failed check is skipped, not reported as a second fault. Severities: `ok`;
//! `info`, worth knowing; `warn`, works but not as it should (exit code 1); `fail`, something that this host is
//! configured to do doesn't work (exit code 2). Whether a missing thing is a `fail` depends on [`Wants`]: a host that
//! sells only plain VMs isn't broken for want of SEV-SNP.

mod checks;
mod clock;
mod facts;
mod render;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use facts::{
    Cgroup, Devices, DnsFact, EndorsementFact, Facts, Inputs, LedgerFact, PortUse, Standing, Wants, gather,
};

/// How bad it is, mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Not looked at, since what it hangs on failed.
    Skipped,
    /// As it should be.
    Ok,
    /// Worth knowing.
    Info,
    /// Works, but not as it should.
    Warn,
    /// Doesn't work.
    Fail,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable, dotted by the place in the tree: `kvm.sev-snp.firmware-sme`.
    pub id: String,
    /// How bad.
    pub severity: Severity,
    /// One sentence.
    pub finding: String,
    /// What was seen, where.
    pub evidence: String,
    /// What to do; nothing when all is well.
    pub fix: Option<String>,
    /// What hangs on it.
    pub children: Vec<Finding>,
}

/// All findings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The top of the tree.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Every finding, parents before children, with its depth.
    pub fn walk(&self) -> Vec<(usize, &Finding)> {
        fn add<'a>(found: &mut Vec<(usize, &'a Finding)>, depth: usize, findings: &'a [Finding]) {
            for finding in findings {
                found.push((depth, finding));
                add(found, depth + 1, &finding.children);
            }
        }
        let mut found = Vec::new();
        add(&mut found, 0, &self.findings);
        found
    }

    /// The worst of all.
    pub fn worst(&self) -> Severity {
        self.walk()
            .into_iter()
            .map(|(_, f)| f.severity)
            .max()
            .unwrap_or(Severity::Ok)
    }

    /// 0: nothing to do; 1: warnings; 2: something doesn't work.
    pub fn exit_code(&self) -> u8 {
        match self.worst() {
            Severity::Fail => 2,
            Severity::Warn => 1,
            Severity::Skipped | Severity::Ok | Severity::Info => 0,
        }
    }

    /// For people: one line a finding; what isn't well gets its evidence and fix below it. Lines fit `width` columns.
    pub fn table(&self, width: usize) -> String {
        render::table(self, width)
    }
}

/// Looks at the facts. Pure: the same facts give the same report.
pub fn examine(facts: &Facts) -> Report {
    Report {
        findings: checks::TREE.iter().map(|check| run(check, facts, "")).collect(),
    }
}

/// A check and what hangs on it.
struct Check {
    id: &'static str,
    run: fn(&Facts) -> Outcome,
    children: &'static [Check],
}

/// What a check says; `parts` become children of their own, one for each thing to repair.
struct Outcome {
    severity: Severity,
    finding: String,
    evidence: String,
    fix: Option<String>,
    parts: Vec<Part>,
}

struct Part {
    id: String,
    severity: Severity,
    finding: String,
    fix: Option<String>,
}

fn run(check: &Check, facts: &Facts, prefix: &str) -> Finding {
    let id = format!("{prefix}{}", check.id);
    let outcome = (check.run)(facts);
    let below = format!("{id}.");
    let parts = outcome.parts.into_iter().map(|part| Finding {
        id: format!("{below}{}", part.id),
        severity: part.severity,
        finding: part.finding,
        evidence: String::new(),
        fix: part.fix,
        children: vec![],
    });
    let broken = outcome.severity == Severity::Fail;
    let children = check.children.iter().map(|c| {
        if broken {
            skip(c, &below, &id)
        } else {
            run(c, facts, &below)
        }
    });
    Finding {
        severity: outcome.severity,
        finding: outcome.finding,
        evidence: outcome.evidence,
        fix: outcome.fix,
        children: parts.chain(children).collect(),
        id,
    }
}

fn skip(check: &Check, prefix: &str, because: &str) -> Finding {
    let id = format!("{prefix}{}", check.id);
    let below = format!("{id}.");
    Finding {
        severity: Severity::Skipped,
        finding: format!("not looked at, since {because} failed"),
        evidence: String::new(),
        fix: None,
        children: check.children.iter().map(|c| skip(c, &below, because)).collect(),
        id,
    }
}
