//! `tenant.toml`, parsed once into bounded, checked values.
//!
//! [`Config::parse`] is the only door: holding a [`Config`] proves that every name in it is safe as an argument of
//! apt, that paths inside the image are relative and have no `..`, and that the command line is one line.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

/// The commented configuration that `image-builder init` writes; also the one in the repository.
pub const TEMPLATE: &str = include_str!("../tenant/tenant.toml");

/// A configuration that can't be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {path}; `image-builder init` writes a commented one")]
    Read {
        /// Where it was looked for.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a missing key, or a value that isn't allowed. The cause names line and column.
    #[error("{path} is not a valid configuration")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Values that are each fine but don't go together.
    #[error("{path}: {reason}")]
    Conflict {
        /// The file.
        path: PathBuf,
        /// What doesn't fit, and what to do.
        reason: String,
    },
}

/// A value that isn't what its key wants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {wanted}")]
pub struct ValueError {
    value: String,
    wanted: &'static str,
}

macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $wanted:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl FromStr for $name {
            type Err = ValueError;
            fn from_str(value: &str) -> Result<Self, ValueError> {
                let check: fn(&str) -> bool = $check;
                if check(value) {
                    Ok(Self(value.to_owned()))
                } else {
                    Err(ValueError { value: value.chars().take(80).collect(), wanted: $wanted })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ValueError;
            fn try_from(value: String) -> Result<Self, ValueError> {
                value.parse()
            }
        }

        impl $name {
            /// The checked text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn word(value: &str, max: usize, extra: &str) -> bool {
    (1..=max).contains(&value.len())
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
}

checked_string!(
    /// The image's name: it goes into the manifest, never into a path.
    ImageName, "a name of 1 to 64 letters, digits, `-`, `.` and `_`", |v| word(v, 64, "-._")
);
checked_string!(
    /// A Debian suite, such as `bookworm`; safe as a word of a sources line.
    Suite, "a Debian suite such as `bookworm`", |v| word(v, 64, "-.")
);
checked_string!(
    /// A Debian package name (Debian policy 5.6.1), without version; safe as an argument of apt.
    PackageName, "a Debian package name (lower-case letters, digits, `+`, `-`, `.`)",
    |v| v.len() >= 2 && word(v, 128, "+-.") && !v.contains(|c: char| c.is_ascii_uppercase())
);
checked_string!(
    /// A kernel module's name, with `_` and not `-`, as the kernel itself writes it.
    ModuleName, "a kernel module name (letters, digits, `_`)", |v| word(v, 64, "_")
);
checked_string!(
    /// A path inside the image: relative, no `.` or `..`, no double slash.
    ImagePath, "a relative path without `..`, such as `usr/share/doc`", is_image_path
);
checked_string!(
    /// A kernel command line: one line of printable ASCII, at most 2,047 bytes (the kernel's limit on x86).
    Cmdline, "one line of at most 2047 printable ASCII characters",
    |v| v.len() <= 2047 && v.bytes().all(|b| (0x20..0x7f).contains(&b)) && v.trim() == v
);
checked_string!(
    /// The address of a package mirror; safe as a word of a sources line.
    Mirror, "a mirror's URL that starts with http://, https:// or file:/",
    |v| v.len() <= 512
        && ["http://", "https://", "file:/"].iter().any(|scheme| v.starts_with(scheme))
        && v.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'[' && b != b']')
);

checked_string!(
    /// A SHA-256 digest in lower-case hex.
    Sha256Hex,
    "a SHA-256 digest of 64 lower-case hex digits",
    |v| v.len() == 64 && v.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
);

checked_string!(
    /// A version such as `0.4.0`: parts of file names and partition labels, ordered as systemd orders versions.
    Version, "a version of 1 to 24 letters, digits, `.` and `~` that starts with a digit",
    |v| word(v, 24, ".~") && v.starts_with(|c: char| c.is_ascii_digit())
);
checked_string!(
    /// The name of a kernel option without `CONFIG_`.
    ConfigOption, "a kernel option such as `KVM_AMD_SEV` (without CONFIG_)",
    |v| word(v, 64, "_") && !v.contains(|c: char| c.is_ascii_lowercase())
);

fn is_image_path(value: &str) -> bool {
    value.len() <= 512
        && !value.contains(['\0', '\n', '\\'])
        && value
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// How the initrd is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard, level 15.
    Zstd,
    /// LZ4 in the legacy frame that the kernel reads.
    Lz4,
}

/// Where the firmware comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// A file of a Debian package, which may be of another suite than the rest.
    Package {
        /// The suite.
        suite: Suite,
        /// The package.
        package: PackageName,
        /// The file inside the package.
        file: ImagePath,
        /// Whether the suite's index may be older than its own date allows.
        allow_expired: bool,
    },
    /// A file of this machine.
    Path(PathBuf),
}

/// A checked `tenant.toml`. Paths are as written, joined to the directory of the file they stand in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Goes into the manifest.
    pub name: ImageName,
    /// The Debian suite of kernel and userland.
    pub suite: Suite,
    /// The mirror, or the sources of this machine's apt.
    pub mirror: Option<Mirror>,
    /// The userland, sorted and without doubles.
    pub packages: Vec<PackageName>,
    /// What is left out of the userland.
    pub exclude: Vec<ImagePath>,
    /// The lock file.
    pub lock: Option<PathBuf>,
    /// The kernel package.
    pub kernel: PackageName,
    /// Modules loaded at boot, in this order.
    pub modules: Vec<ModuleName>,
    /// Modules in the image that aren't loaded.
    pub modules_available: Vec<ModuleName>,
    /// The kernel's command line.
    pub cmdline: Cmdline,
    /// How the initrd is compressed.
    pub compression: Compression,
    /// The guest agent, a static binary.
    pub agent: PathBuf,
    /// The seed reader, a static binary.
    pub guest_setup: PathBuf,
    /// What collects the GPUs' evidence for the agent, for images that have NVIDIA's driver.
    pub gpu_collector: Option<PathBuf>,
    /// The image directory.
    pub output: PathBuf,
    /// The firmware, or none for images that only plain VMs boot.
    pub firmware: Option<Firmware>,
    /// What the firmware must be.
    pub firmware_sha256: Option<Sha256Hex>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: ImageName,
    suite: Suite,
    mirror: Option<Mirror>,
    packages: Vec<PackageName>,
    #[serde(default)]
    exclude: Vec<ImagePath>,
    lock: Option<PathBuf>,
    kernel: PackageName,
    modules: Vec<ModuleName>,
    #[serde(default)]
    modules_available: Vec<ModuleName>,
    cmdline: Cmdline,
    compression: Compression,
    agent: PathBuf,
    guest_setup: PathBuf,
    gpu_collector: Option<PathBuf>,
    output: PathBuf,
    firmware: Option<FirmwareFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FirmwareFile {
    suite: Option<Suite>,
    package: Option<PackageName>,
    file: Option<ImagePath>,
    allow_expired: Option<bool>,
    path: Option<PathBuf>,
    sha256: Option<Sha256Hex>,
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Checks `text`, which stands in the file at `path`: relative paths in it start from that file's directory.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let conflict = |reason: &str| ConfigError::Conflict {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        if file.packages.is_empty() {
            return Err(conflict("`packages` is empty; the image needs at least busybox"));
        }
        let base = path.parent().unwrap_or(Path::new(""));
        let firmware_sha256 = file
            .firmware
            .as_ref()
            .and_then(|firmware| firmware.sha256.clone());
        let firmware = match file.firmware {
            None => None,
            Some(FirmwareFile {
                suite: None,
                package: None,
                file: None,
                allow_expired: None,
                path: Some(path),
                ..
            }) => Some(Firmware::Path(base.join(path))),
            Some(FirmwareFile {
                suite: Some(suite),
                package: Some(package),
                file: Some(file),
                allow_expired,
                path: None,
                ..
            }) => Some(Firmware::Package {
                suite,
                package,
                file,
                allow_expired: allow_expired.unwrap_or(false),
            }),
            Some(_) => {
                return Err(conflict(
                    "[firmware] wants either `path`, or `suite`, `package` and `file` together",
                ));
            }
        };
        let mut packages = file.packages;
        packages.sort();
        packages.dedup();
        Ok(Self {
            name: file.name,
            suite: file.suite,
            mirror: file.mirror,
            packages,
            exclude: file.exclude,
            lock: file.lock.map(|lock| base.join(lock)),
            kernel: file.kernel,
            modules: file.modules,
            modules_available: file.modules_available,
            cmdline: file.cmdline,
            compression: file.compression,
            agent: base.join(file.agent),
            guest_setup: base.join(file.guest_setup),
            gpu_collector: file.gpu_collector.map(|program| base.join(program)),
            output: base.join(file.output),
            firmware,
            firmware_sha256,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(String) -> String) -> Result<Config, ConfigError> {
        Config::parse(&change(TEMPLATE.to_owned()), Path::new("/etc/dc/tenant.toml"))
    }

    fn chain(error: &ConfigError) -> String {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        text
    }

    #[test]
    fn the_template_is_a_valid_configuration_with_paths_beside_the_file() {
        let config = with(|text| text).unwrap();
        assert_eq!(config.suite.as_str(), "bookworm");
        assert_eq!(config.output, Path::new("/etc/dc/../../build/tenant"));
        assert!(matches!(config.firmware, Some(Firmware::Package { .. })));
        assert!(config.lock.is_none());
    }

    #[test]
    fn what_is_wrong_is_refused_and_named() {
        type Change = fn(String) -> String;
        let table: [(&str, Change, &str); 11] = [
            (
                "unknown key",
                |t| format!("colour = \"red\"\n{t}"),
                "unknown field `colour`",
            ),
            (
                "unknown key in a table",
                |t| format!("{t}\nversion = 1\n"),
                "unknown field `version`",
            ),
            (
                "missing key",
                |t| t.replace("kernel = ", "# "),
                "missing field `kernel`",
            ),
            (
                "option as package",
                |t| t.replace("\"nginx\"", "\"--force-yes\""),
                "is not a Debian package name",
            ),
            (
                "shell in suite",
                |t| t.replace("\"bookworm\"", "\"a b; c\""),
                "is not a Debian suite",
            ),
            (
                "path up",
                |t| t.replace("\"usr/share/doc\"", "\"../etc\""),
                "is not a relative path",
            ),
            (
                "absolute path",
                |t| t.replace("\"usr/share/doc\"", "\"/etc\""),
                "is not a relative path",
            ),
            (
                "two-line cmdline",
                |t| t.replace("quiet loglevel", "\\nquiet"),
                "is not one line",
            ),
            (
                "compression",
                |t| t.replace("= \"lz4\"", "= \"gzip\""),
                "unknown variant `gzip`",
            ),
            (
                "half a firmware",
                |t| t.replace("suite = \"forky\"", ""),
                "either `path`, or",
            ),
            ("not toml", |t| format!("{t}]"), "TOML parse error at line"),
        ];
        for (row, change, wanted) in table {
            let text = chain(&with(change).expect_err(row));
            assert!(text.contains(wanted), "{row}: {text}");
            assert!(text.contains("/etc/dc/tenant.toml"), "{row}: {text}");
        }
    }

    #[test]
    fn packages_are_sorted_so_that_their_order_changes_nothing() {
        let config = with(|t| t.replace("\"nginx\",", "\"zlib1g\", \"nginx\", \"nginx\",")).unwrap();
        let names: Vec<_> = config.packages.iter().map(PackageName::as_str).collect();
        assert!(
            names.is_sorted() && names.iter().filter(|n| **n == "nginx").count() == 1,
            "{names:?}"
        );
    }
}
