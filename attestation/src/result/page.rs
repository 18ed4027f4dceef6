//! The result as a page for a person, and the words for its parts.

use std::fmt;

use super::{AttestationResult, Grade, Outcome, Part, Trust, Verdict};

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => f.write_str("main"),
            Self::Gpu(n) => write!(f, "gpu {n}"),
            Self::Host => f.write_str("host"),
            Self::Vtpm => f.write_str("vtpm"),
        }
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unconfirmed => "unconfirmed",
            Self::HostSigned => "host-signed",
            Self::HostVerified => "host-verified",
            Self::HardwareVerified => "hardware-verified",
        })
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pinned => "pinned",
            Self::Policy => "policy",
            Self::TestRoot => "test-root",
            Self::None => "none",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verified => "VERIFIED",
            Self::Refused => "REFUSED",
            Self::Indeterminate => "CAN'T TELL",
        })
    }
}

/// The page for a person: the verdict first, then what is wrong, then every check.
impl fmt::Display for AttestationResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}  grade {}, trust {}, at {}",
            self.verdict,
            self.grade,
            self.trust,
            crate::show::time(self.at)
        )?;
        if self.trust == Trust::TestRoot {
            writeln!(
                f,
                "\n  !! TEST ROOT: this rests on a root that was named for this run, not on the maker's."
            )?;
            writeln!(
                f,
                "  !! Whoever holds that root's key can make such evidence without any hardware."
            )?;
        }
        for failure in self.failures() {
            writeln!(f, "  ✗ {failure}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  ! {warning}")?;
        }
        writeln!(f)?;
        let width = self.checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
        for check in &self.checks {
            let (mark, text) = match &check.outcome {
                Outcome::Passed => ("ok", check.found.clone()),
                Outcome::Failed(reason) => (
                    "FAIL",
                    format!("{reason:?}: expected {}, found {}", check.expected, check.found),
                ),
                Outcome::NotChecked(why) if check.found.is_empty() => ("-", format!("not checked: {why}")),
                Outcome::NotChecked(why) => ("-", format!("not checked: {why} (found {})", check.found)),
                Outcome::Missing(reason, why) => ("?", format!("{reason:?}: {why}")),
            };
            writeln!(f, "  {mark:4} {:width$}  {text}", check.id)?;
        }
        Ok(())
    }
}
