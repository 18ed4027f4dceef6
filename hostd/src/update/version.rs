//! Versions of images, compared as systemd-boot and systemd-sysupdate do (UAPI.10, "Version Format Specification").

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version as it may stand in file names and partition labels: 1–64 of `A–Z a–z 0–9 . - ~ ^`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(String);

/// A text that is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} isn't a version (1–64 of A–Z a–z 0–9 . - ~ ^)")]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let known = |c: char| c.is_ascii_alphanumeric() || ".-~^".contains(c);
        match (1..=64).contains(&text.len()) && text.chars().all(known) {
            true => Ok(Self(text.to_owned())),
            false => Err(VersionError(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for Version {
    type Error = VersionError;

    fn try_from(text: String) -> Result<Self, VersionError> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Version {
    /// Whether this one is older than `other`. Two spellings may be neither older nor newer than each other.
    pub fn is_older_than(&self, other: &Self) -> bool {
        compare(&self.0, &other.0) == Ordering::Less
    }
}

/// Splits off what `wanted` holds for.
fn leading(text: &str, wanted: fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !wanted(c)).unwrap_or(text.len()))
}

fn compare(mut a: &str, mut b: &str) -> Ordering {
    let counts = |c: char| c.is_ascii_alphanumeric() || "-~^.".contains(c);
    loop {
        (a, b) = (
            a.trim_start_matches(|c| !counts(c)),
            b.trim_start_matches(|c| !counts(c)),
        );
        // A part that begins so is older than none at all; the rest is newer than none, the last one the least so.
        for (mark, with) in [
            ('~', Ordering::Less),
            ('-', Ordering::Less),
            ('^', Ordering::Less),
            ('.', Ordering::Less),
        ] {
            let ends = (mark != '~', a.is_empty(), b.is_empty());
            match (a.strip_prefix(mark), b.strip_prefix(mark), ends) {
                (Some(x), Some(y), _) => (a, b) = (x, y),
                (None, None, _) => continue,
                (Some(_), None, (true, _, true)) => return Ordering::Greater,
                (None, Some(_), (true, true, _)) => return Ordering::Less,
                (Some(_), None, _) => return with,
                (None, Some(_), _) => return with.reverse(),
            }
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        if digits(a) || digits(b) {
            let ((x, after_a), (y, after_b)) = (
                leading(a, |c| c.is_ascii_digit()),
                leading(b, |c| c.is_ascii_digit()),
            );
            // No number is older than any.
            let plain = |text: &str| text.trim_start_matches('0').to_owned();
            let (p, q) = (plain(x), plain(y));
            match x
                .is_empty()
                .cmp(&y.is_empty())
                .reverse()
                .then(p.len().cmp(&q.len()))
                .then(p.cmp(&q))
            {
                Ordering::Equal => (a, b) = (after_a, after_b),
                other => return other,
            }
        } else {
            let ((x, after_a), (y, after_b)) = (
                leading(a, |c| c.is_ascii_alphabetic()),
                leading(b, |c| c.is_ascii_alphabetic()),
            );
            match x.cmp(y) {
                Ordering::Equal => (a, b) = (after_a, after_b),
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order is that of the specification's example, and what `systemd-analyze compare-versions` says.
    #[test]
    fn versions_stand_in_the_order_of_the_specification() {
        let order = [
            "~",
            "",
            "0",
            "0.0.9",
            "1~rc1",
            "1",
            "1-1",
            "1.0",
            "1.2.3",
            "1.2.3a",
            "1.2.10",
            "9",
            "10",
            "122.1~rc1",
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^patched",
            "123.1",
            "123a",
            "124",
        ];
        for (i, a) in order.iter().enumerate() {
            for (j, b) in order.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a:?} and {b:?}");
            }
        }
    }

    #[test]
    fn what_could_be_a_path_or_an_option_is_no_version() {
        for bad in ["", "a/b", "1 2", "1\n", "ä", "1+3-0", &"1".repeat(65), "1_2"] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
        assert!("0.2.0~rc1".parse::<Version>().is_ok());
    }
}
