//! Debian packages, by mmdebstrap: sources in, one tar and the list of packages in it out. Cached by content.
//!
//! Packages and their dependencies are downloaded and verified against the archive's signature. [`Setup::Unpacked`] ends
//! there: no maintainer script runs, so nothing of the build machine and no clock gets into the result, and neither
//! mounts nor loop devices are needed. [`Setup::Configured`] runs the scripts, in namespaces of their own: users, links
//! and caches are then as on an installed Debian.
//!
//! An entry of the cache is named by the SHA-256 of all that decides about it: suite, sources, packages and, if there
//! is one, the lock. Without a lock an entry stays what it was on the day it was made; `--refresh` makes it anew.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::config::{Mirror, PackageName, Suite};
use crate::manifest::sha256;

/// Why packages couldn't be had.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// mmdebstrap isn't there.
    #[error("cannot run mmdebstrap; apt-get install mmdebstrap")]
    Missing(#[source] std::io::Error),
    /// mmdebstrap failed; its last lines say why.
    #[error("mmdebstrap could not get {packages} of {suite}:\n{log}")]
    Failed {
        /// The suite.
        suite: Suite,
        /// The packages asked for.
        packages: String,
        /// The end of its output.
        log: String,
    },
    /// A file of the cache can't be read or written.
    #[error("cannot use the cache at {path}; choose another with --cache")]
    Cache {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The lock file can't be read.
    #[error("cannot use the lock file {path}; `--write-lock` makes a new one")]
    Lock {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What came isn't what the lock says.
    #[error("packages differ from the lock file, nothing was built:\n  {}", .0.join("\n  "))]
    Differs(Vec<String>),
}

/// One package that went into an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// The package's name.
    pub package: String,
    /// Its exact version.
    pub version: String,
    /// SHA-256 of its `.deb`.
    pub sha256: String,
}

/// The lock file: for each set of packages the exact versions, with digests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Sets by name: `root`, `kernel`, `firmware`.
    pub sets: BTreeMap<String, Vec<Locked>>,
}

impl Lock {
    /// Reads the lock file.
    pub fn read(path: &Path) -> Result<Self, AptError> {
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| AptError::Lock {
            path: path.to_owned(),
            source,
        };
        let text = fs::read_to_string(path).map_err(|e| fail(e.into()))?;
        toml::from_str(&text).map_err(|e| fail(e.into()))
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut text = "# Written by `image-builder … --write-lock`.\n".to_owned();
        for (set, packages) in &self.sets {
            for locked in packages {
                let Locked {
                    package,
                    version,
                    sha256,
                } = locked;
                text.push_str(&format!(
                    "[[sets.{set}]]\npackage = \"{package}\"\nversion = \"{version}\"\nsha256 = \"{sha256}\"\n"
                ));
            }
        }
        text
    }
}

/// A set of packages to get.
#[derive(Debug)]
pub struct Request<'a> {
    /// Names the set in the lock file.
    pub set: &'a str,
    /// The suite.
    pub suite: &'a Suite,
    /// The mirror, or this machine's sources.
    pub mirror: Option<&'a Mirror>,
    /// The packages; their dependencies come along.
    pub packages: &'a [PackageName],
    /// Whether the suite's index may be older than its own date allows.
    pub allow_expired: bool,
    /// Whether maintainer scripts run.
    pub setup: Setup,
    /// Where from.
    pub components: Components,
    /// Whether another suite than this machine's brings its updates and security fixes along; its own always does.
    pub fixes: bool,
    /// Exact versions of all, or nothing.
    pub lock: Option<&'a [Locked]>,
}

/// How far packages are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// Unpacked only.
    Unpacked,
    /// Unpacked and configured, with Debian's essential packages.
    Configured,
}

/// What was got: a tar in the cache, and what is in it.
#[derive(Debug)]
pub struct Fetched {
    /// The unpacked packages as one tar.
    pub tar: PathBuf,
    /// Every package in it, sorted.
    pub packages: Vec<Locked>,
    /// Whether it was in the cache.
    pub cached: bool,
}

/// The parts of Debian's archive that a set comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Components {
    /// Debian itself.
    Main,
    /// Also what processors and devices load, which may be handed on but not changed.
    Firmware,
}

impl Components {
    fn names(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Firmware => "main non-free-firmware",
        }
    }
}

/// The name under which mmdebstrap's hook leaves the digests inside the tar. Not a path of any package.
pub const DIGESTS: &str = "image-builder.sha256";

/// Packages of one cache directory.
#[derive(Debug)]
pub struct Apt {
    /// The cache directory; made when needed.
    pub cache: PathBuf,
    /// Whether entries of the cache are made anew.
    pub refresh: bool,
}

impl Apt {
    /// Gets a set of packages, from the cache if it is there.
    pub fn fetch(&self, request: &Request<'_>) -> Result<Fetched, AptError> {
        let sources = if request.fixes {
            sources_with_fixes(request.suite, request.mirror, &host_sources(), request.components)
        } else {
            sources(request.suite, request.mirror, &host_sources(), request.components)
        };
        let wanted = wanted(request);
        let version = match request.setup {
            Setup::Unpacked => "1",
            Setup::Configured => "configured 1",
        };
        let key =
            sha256(format!("{version}\n{}\n{sources}\n{}", request.suite, wanted.join("\n")).as_bytes());
        let tar = self.cache.join(format!("{}-{}.tar", request.set, &key[..32]));
        let list = tar.with_extension("toml");
        let fail = |path: &Path, source| AptError::Cache {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(&self.cache).map_err(|e| fail(&self.cache, e))?;
        if !self.refresh && tar.exists() && list.exists() {
            let mut known = Lock::read(&list)?;
            let packages = known.sets.remove(request.set).unwrap_or_default();
            check(request.lock, &packages)?;
            return Ok(Fetched {
                tar,
                packages,
                cached: true,
            });
        }
        let partial = tempfile::Builder::new()
            .prefix(".partial-")
            .suffix(".tar")
            .tempfile_in(&self.cache)
            .map_err(|e| fail(&self.cache, e))?;
        run(request, &sources, &wanted, partial.path())?;
        let packages = digests(partial.path()).map_err(|e| fail(partial.path(), e))?;
        check(request.lock, &packages)?;
        let lock = Lock {
            sets: BTreeMap::from([(request.set.to_owned(), packages.clone())]),
        };
        partial.persist(&tar).map_err(|e| fail(&tar, e.error))?;
        fs::write(&list, lock.to_text()).map_err(|e| fail(&list, e))?;
        Ok(Fetched {
            tar,
            packages,
            cached: false,
        })
    }
}

fn wanted(request: &Request<'_>) -> Vec<String> {
    match request.lock {
        Some(lock) => lock
            .iter()
            .map(|locked| format!("{}={}", locked.package, locked.version))
            .collect(),
        None => request.packages.iter().map(ToString::to_string).collect(),
    }
}

fn check(lock: Option<&[Locked]>, found: &[Locked]) -> Result<(), AptError> {
    let Some(lock) = lock else { return Ok(()) };
    let by_name = |list: &[Locked]| -> BTreeMap<String, Locked> {
        list.iter()
            .map(|locked| (locked.package.clone(), locked.clone()))
            .collect()
    };
    let (lock, found) = (by_name(lock), by_name(found));
    let mut differences = Vec::new();
    for (name, wanted) in &lock {
        match found.get(name) {
            None => differences.push(format!("{name}: in the lock, but not needed any more")),
            Some(found) if found != wanted => differences.push(format!(
                "{name}: {} with sha256 {}, the lock says {} with {}",
                found.version, found.sha256, wanted.version, wanted.sha256
            )),
            Some(_) => {}
        }
    }
    differences.extend(
        found
            .keys()
            .filter(|name| !lock.contains_key(*name))
            .map(|n| format!("{n}: not in the lock")),
    );
    if differences.is_empty() {
        Ok(())
    } else {
        Err(AptError::Differs(differences))
    }
}

fn run(request: &Request<'_>, sources: &str, wanted: &[String], tar: &Path) -> Result<(), AptError> {
    // Debian's essential packages are unpacked and their archives removed before the others are fetched.
    let hook = format!("cd \"$1\"/var/cache/apt/archives && sha256sum *.deb >> \"$1\"/{DIGESTS}");
    let mut child = Command::new("mmdebstrap")
        .args(["--format=tar", "--architectures=amd64"])
        .args(match request.setup {
            Setup::Unpacked => &["--variant=extract", "--mode=auto"][..],
            Setup::Configured => &["--variant=essential", "--mode=unshare"],
        })
        .arg(format!("--components={}", request.components.names()))
        .arg(format!("--include={}", wanted.join(",")))
        .arg(format!("--extract-hook={hook}"))
        .args((request.setup == Setup::Configured).then(|| format!("--customize-hook={hook}")))
        .args(["--skip=check/empty", request.suite.as_str()])
        .arg(tar)
        .args((!sources.is_empty()).then_some("-"))
        .args(
            request
                .allow_expired
                .then_some("--aptopt=Acquire::Check-Valid-Until \"false\""),
        )
        .env("SOURCE_DATE_EPOCH", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(AptError::Missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // When it ended early, its status and its log say more than a broken pipe.
        let _ = stdin.write_all(sources.as_bytes());
    }
    let output = child.wait_with_output().map_err(AptError::Missing)?;
    if output.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = log.lines().collect();
    Err(AptError::Failed {
        suite: request.suite.clone(),
        packages: wanted.join(", "),
        log: lines[lines.len().saturating_sub(12)..].join("\n"),
    })
}

/// Reads the list that the hook left in the tar: `DIGEST  NAME_VERSION_ARCH.deb` a line.
fn digests(tar: &Path) -> std::io::Result<Vec<Locked>> {
    use std::io::Read;
    let mut archive = tar::Archive::new(fs::File::open(tar)?);
    let mut text = String::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path_bytes().strip_prefix(b"./").unwrap_or_default() == DIGESTS.as_bytes() {
            entry.read_to_string(&mut text)?;
        }
    }
    let mut packages: Vec<Locked> = text.lines().filter_map(digest_line).collect();
    packages.sort();
    packages.dedup();
    if packages.is_empty() {
        return Err(std::io::Error::other(
            "mmdebstrap left no list of packages in the tar",
        ));
    }
    Ok(packages)
}

fn digest_line(line: &str) -> Option<Locked> {
    let (sha256, file) = line.split_once("  ")?;
    let mut parts = file.strip_suffix(".deb")?.splitn(3, '_');
    let (package, version) = (parts.next()?, parts.next()?);
    // apt writes the colon of an epoch as %3a in file names.
    Some(Locked {
        package: package.to_owned(),
        version: version.replace("%3a", ":"),
        sha256: sha256.to_owned(),
    })
}

/// The text of this machine's apt sources, as deb822 and as one-line files.
fn host_sources() -> Vec<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        more.sort();
        files.extend(
            more.into_iter()
                .filter(|p| p.extension().is_some_and(|e| e == "list" || e == "sources")),
        );
    }
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect()
}

/// The sources for `suite`, in one-line style: the given mirror, or what this machine's apt uses for Debian. Empty on
/// a machine that has none; mmdebstrap then uses its own default.
///
/// The signature is checked with Debian's own keyring whatever the machine trusts besides.
fn sources(suite: &Suite, mirror: Option<&Mirror>, host: &[String], components: Components) -> String {
    const KEYRING: &str = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    let line = |uri: &str, suite: &str| format!("deb {KEYRING} {uri} {suite} {}\n", components.names());
    if let Some(mirror) = mirror {
        return line(mirror.as_str(), suite.as_str());
    }
    let entries: Vec<(String, String)> = host.iter().flat_map(|text| source_entries(text)).collect();
    let own = [
        suite.to_string(),
        format!("{suite}-updates"),
        format!("{suite}-security"),
    ];
    let mut lines: Vec<String> = entries
        .iter()
        .filter(|(_, s)| own.contains(s))
        .map(|(uri, s)| line(uri, s))
        .collect();
    if lines.is_empty() {
        // Another suite than the machine's own: the mirror that serves the machine serves it too.
        let uri = entries
            .iter()
            .find(|(_, s)| !s.contains('-') && !s.contains('/'))
            .map(|(uri, _)| uri);
        lines.extend(uri.map(|uri| line(uri, suite.as_str())));
    }
    lines.sort();
    lines.dedup();
    lines.concat()
}

/// The same with the suite's updates and security fixes, from the mirrors that serve this machine's own.
fn sources_with_fixes(
    suite: &Suite,
    mirror: Option<&Mirror>,
    host: &[String],
    components: Components,
) -> String {
    let base = sources(suite, mirror, host, components);
    if mirror.is_some() {
        return base;
    }
    let others = host
        .iter()
        .flat_map(|text| source_entries(text))
        .filter_map(|(uri, own)| {
            let kind = ["updates", "security"]
                .into_iter()
                .find(|kind| own.ends_with(kind))?;
            let mirror = uri.parse().ok()?;
            let suite = format!("{suite}-{kind}").parse().ok()?;
            Some(sources(&suite, Some(&mirror), &[], components))
        });
    let lines: std::collections::BTreeSet<String> = std::iter::once(base.clone())
        .chain(others)
        .flat_map(|text| text.lines().map(|line| format!("{line}\n")).collect::<Vec<_>>())
        .collect();
    lines.into_iter().collect()
}

/// `(URI, suite)` pairs of the binary `main` sources in a sources file of either style.
fn source_entries(text: &str) -> Vec<(String, String)> {
    let mut entries = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("deb "))
    {
        let mut words = line.split_whitespace().skip(1).skip_while({
            let mut inside = line
                .split_whitespace()
                .nth(1)
                .is_some_and(|word| word.starts_with('['));
            move |word| {
                let skip = inside;
                if word.ends_with(']') {
                    inside = false;
                }
                skip
            }
        });
        if let (Some(uri), Some(suite)) = (words.next(), words.next())
            && words.any(|component| component == "main")
        {
            entries.push((uri.to_owned(), suite.to_owned()));
        }
    }
    for stanza in text.split("\n\n") {
        let field = |name: &str| -> Vec<String> {
            stanza
                .lines()
                .filter(|line| !line.starts_with('#'))
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| value.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default()
        };
        let disabled = field("Enabled").first().is_some_and(|value| value == "no");
        let debian = field("Signed-By")
            .iter()
            .any(|key| key.contains("debian-archive-keyring"));
        if disabled || !debian || !field("Types").contains(&"deb".to_owned()) {
            continue;
        }
        for uri in field("URIs") {
            entries.extend(field("Suites").into_iter().map(|suite| (uri.clone(), suite)));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# old\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n\
        Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
        Types: deb\nURIs: http://mirror.test/security\nSuites: bookworm-security\nComponents: main\n\
        Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
        Types: deb\nURIs: http://else.test/node\nSuites: bookworm\nComponents: main\nSigned-By: /etc/else.gpg\n";

    fn suites(suite: &str, mirror: Option<&str>, host: &str) -> Vec<String> {
        let mirror = mirror.map(|m| m.parse().unwrap());
        sources(
            &suite.parse().unwrap(),
            mirror.as_ref(),
            &[host.to_owned()],
            Components::Main,
        )
        .lines()
        .map(|line| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" "))
        .collect()
    }

    #[test]
    fn sources_come_from_the_machine_and_only_from_debian() {
        let one_line = "deb [arch=amd64 signed-by=/x] http://m.test/d bookworm main contrib\n# deb http://no bookworm main\n";
        type Row<'a> = (&'a str, &'a str, Option<&'a str>, &'a str, &'a [&'a str]);
        let table: [Row<'_>; 5] = [
            (
                "deb822",
                "bookworm",
                None,
                DEB822,
                &[
                    "http://mirror.test/debian bookworm main",
                    "http://mirror.test/debian bookworm-updates main",
                    "http://mirror.test/security bookworm-security main",
                ],
            ),
            (
                "one line",
                "bookworm",
                None,
                one_line,
                &["http://m.test/d bookworm main"],
            ),
            (
                "other suite",
                "forky",
                None,
                DEB822,
                &["http://mirror.test/debian forky main"],
            ),
            (
                "given mirror",
                "bookworm",
                Some("http://own.test/d"),
                DEB822,
                &["http://own.test/d bookworm main"],
            ),
            ("none", "bookworm", None, "", &[]),
        ];
        for (row, suite, mirror, host, wanted) in table {
            assert_eq!(suites(suite, mirror, host), wanted, "{row}");
        }
    }

    #[test]
    fn a_configured_system_gets_updates_and_security_fixes() {
        let text = sources_with_fixes(
            &"trixie".parse().unwrap(),
            None,
            &[DEB822.to_owned()],
            Components::Main,
        );
        let suites: Vec<&str> = text.lines().map(|line| line.split(' ').nth(3).unwrap()).collect();
        assert_eq!(suites, ["trixie", "trixie-updates", "trixie-security"]);
    }

    #[test]
    fn a_digest_line_gives_package_version_and_digest() {
        let locked = digest_line("00ff  libtommath1_1%3a1.2.0-6+deb12u1_amd64.deb").unwrap();
        assert_eq!(
            (&*locked.package, &*locked.version, &*locked.sha256),
            ("libtommath1", "1:1.2.0-6+deb12u1", "00ff")
        );
        assert_eq!(digest_line("nonsense"), None);
    }

    #[test]
    fn a_package_that_differs_from_the_lock_is_named() {
        let locked = |package: &str, version: &str| Locked {
            package: package.to_owned(),
            version: version.to_owned(),
            sha256: "aa".to_owned(),
        };
        let lock = [locked("a", "1"), locked("b", "1"), locked("c", "1")];
        assert!(check(Some(&lock), &lock).is_ok());
        assert!(check(None, &lock).is_ok());
        let Err(AptError::Differs(text)) = check(
            Some(&lock),
            &[locked("a", "1"), locked("b", "2"), locked("d", "1")],
        ) else {
            panic!("accepted")
        };
        assert_eq!(text.len(), 3, "{text:?}");
    }

    #[test]
    fn a_lock_file_reads_back_as_written() {
        let packages = vec![Locked {
            package: "a".into(),
            version: "1:2~3".into(),
            sha256: "00".into(),
        }];
        let lock = Lock {
            sets: BTreeMap::from([("root".to_owned(), packages)]),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, lock.to_text()).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock);
        fs::write(&path, "[[sets.root]]\nname = \"a\"\n").unwrap();
        assert!(matches!(Lock::read(&path), Err(AptError::Lock { .. })));
    }
}
