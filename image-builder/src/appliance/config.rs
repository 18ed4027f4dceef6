//! `image.toml`, parsed once into bounded, checked values.
//!
//! [`Config::parse`] is the only door. Holding a [`Config`] proves that names are safe as arguments of apt and as parts
//! of paths and partition labels, that paths inside the image are relative and have no `..`, that there is a default
//! profile, that no profile is named twice, and that no command line turns off what the image promises.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::{
    Cmdline, ConfigError, ConfigOption, ImageName, ImagePath, Mirror, ModuleName, PackageName, Sha256Hex,
    Suite, Version,
};

/// The commented configuration that `image-builder init image.toml` writes; also the one in the repository.
pub const TEMPLATE: &str = include_str!("../../appliance/image.toml");

/// A program of somebody else, pinned.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "ProgramText")]
pub struct Program {
    /// Where it comes from.
    pub from: Source,
    /// What it must be.
    pub sha256: Sha256Hex,
    /// Where it goes in the image.
    pub to: ImagePath,
}

/// Where a program comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file of this machine.
    File(PathBuf),
    /// A server; it is asked once.
    Url(HttpsUrl),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgramText {
    path: Option<PathBuf>,
    url: Option<HttpsUrl>,
    sha256: Sha256Hex,
    to: ImagePath,
}

impl TryFrom<ProgramText> for Program {
    type Error = String;
    fn try_from(text: ProgramText) -> Result<Self, String> {
        let from = match (text.path, text.url) {
            (Some(path), None) => Source::File(path),
            (None, Some(url)) => Source::Url(url),
            _ => return Err(format!("{} wants `path` or `url`, one of them", text.to)),
        };
        Ok(Self {
            from,
            sha256: text.sha256,
            to: text.to,
        })
    }
}

/// Which kernel, and what it must be able to do.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// The kernel package.
    pub package: PackageName,
    /// Directories of modules that are left out, relative to `kernel/`.
    #[serde(default)]
    pub exclude: Vec<ImagePath>,
    /// Modules of the initrd.
    pub initrd: Vec<ModuleName>,
    /// Options without which nothing is built.
    #[serde(default)]
    pub required_config: Vec<ConfigOption>,
    /// Options that each kind of VM needs.
    #[serde(default)]
    pub vm_kinds: BTreeMap<String, Vec<ConfigOption>>,
}

/// One signed command line.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its short name, for `--profile` and the reference values.
    pub name: ImageName,
    /// What the boot menu shows.
    pub title: String,
    /// The command line, without `roothash=`.
    pub cmdline: Cmdline,
    /// Whether reference values are signed for it.
    #[serde(default = "yes")]
    pub trusted: bool,
}

fn yes() -> bool {
    true
}

/// Settings that a host without any gets from the network.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// Where.
    pub url: HttpsUrl,
    /// What they must be: the image is measured, so nobody on the way can change them.
    pub sha256: Sha256Hex,
    /// Certificates (PEM) of the only authorities that may speak for the server; without, the public ones.
    pub ca: Option<PathBuf>,
}

/// An `https://` address of at most 1,000 printable ASCII characters without spaces, quotes and backslashes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HttpsUrl(String);

impl HttpsUrl {
    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HttpsUrl {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b'\\');
        let rest = text.strip_prefix("https://").unwrap_or_default();
        if rest.is_empty() || text.len() > 1000 || !text.bytes().all(plain) {
            return Err(format!("{text:?} is not an address that begins with https://"));
        }
        Ok(Self(text))
    }
}

/// Sizes of the partitions, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The EFI system partition: small ones fill up with two kernels.
    pub esp_mib: u32,
    /// One slot of the root file system.
    pub root_mib: u32,
    /// One slot of its hash tree.
    pub verity_mib: u32,
}

/// A checked `image.toml`. Paths are as written, joined to the directory of the file they stand in.
#[derive(Clone, Debug)]
pub struct Config {
    /// The image's name.
    pub name: ImageName,
    /// Its version.
    pub version: Version,
    /// The Debian suite.
    pub suite: Suite,
    /// The mirror, or the sources of this machine's apt.
    pub mirror: Option<Mirror>,
    /// The system's packages, sorted and without doubles, those of QEMU among them.
    pub packages: Vec<PackageName>,
    /// Packages of what the kernel loads into processors and devices.
    pub packages_firmware: Vec<PackageName>,
    /// What is left out.
    pub exclude: Vec<ImagePath>,
    /// The lock file.
    pub lock: Option<PathBuf>,
    /// The host daemon.
    pub hostd: PathBuf,
    /// Programs of others.
    pub programs: Vec<Program>,
    /// Where the image goes.
    pub output: PathBuf,
    /// The folder of the keys.
    pub keys: PathBuf,
    /// The kernel.
    pub kernel: Kernel,
    /// The command lines; the first is the default.
    pub profiles: Vec<Profile>,
    /// Where hosts without settings get them.
    pub seed: Option<Seed>,
    /// The layout.
    pub disk: Disk,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: ImageName,
    version: Version,
    suite: Suite,
    mirror: Option<Mirror>,
    packages: Vec<PackageName>,
    #[serde(default)]
    packages_qemu: Vec<PackageName>,
    #[serde(default)]
    packages_firmware: Vec<PackageName>,
    #[serde(default)]
    exclude: Vec<ImagePath>,
    lock: Option<PathBuf>,
    hostd: PathBuf,
    #[serde(default)]
    program: Vec<Program>,
    output: PathBuf,
    keys: PathBuf,
    kernel: Kernel,
    profile: Vec<Profile>,
    seed: Option<Seed>,
    disk: Disk,
}

/// The label of a root partition, `NAME_VERSION`, must fit into GPT's 36 characters, and `verity` before it too.
const LABEL_LEN_MAX: usize = 29;
const PROFILES_MAX: usize = 8;

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
        if let Some(reason) = conflict(&file) {
            return Err(ConfigError::Conflict {
                path: path.to_owned(),
                reason,
            });
        }
        let base = path.parent().unwrap_or(Path::new(""));
        let packages: BTreeSet<_> = file.packages.into_iter().chain(file.packages_qemu).collect();
        let programs = file.program.into_iter().map(|program| Program {
            from: match program.from {
                Source::File(path) => Source::File(base.join(path)),
                url => url,
            },
            ..program
        });
        Ok(Self {
            name: file.name,
            version: file.version,
            suite: file.suite,
            mirror: file.mirror,
            packages: packages.into_iter().collect(),
            packages_firmware: file.packages_firmware,
            exclude: file.exclude,
            lock: file.lock.map(|lock| base.join(lock)),
            hostd: base.join(file.hostd),
            programs: programs.collect(),
            output: base.join(file.output),
            keys: base.join(file.keys),
            kernel: file.kernel,
            profiles: file.profile,
            seed: file.seed.map(|seed| Seed {
                ca: seed.ca.map(|ca| base.join(ca)),
                ..seed
            }),
            disk: file.disk,
        })
    }

    /// `NAME_VERSION`: the label of the root's slot, and the stem of every file's name.
    pub fn label(&self) -> String {
        format!("{}_{}", self.name, self.version)
    }
}

fn conflict(file: &File) -> Option<String> {
    let label = file.name.as_str().len() + 1 + file.version.as_str().len();
    if label > LABEL_LEN_MAX {
        return Some(format!(
            "`name` and `version` have {label} characters together; partition labels hold {LABEL_LEN_MAX}"
        ));
    }
    if !(1..=PROFILES_MAX).contains(&file.profile.len()) {
        return Some(format!("1 to {PROFILES_MAX} [[profile]] are possible"));
    }
    let mut names = BTreeSet::new();
    for profile in &file.profile {
        if !names.insert(&profile.name) {
            return Some(format!("the profile {} stands there twice", profile.name));
        }
        if profile.title.is_empty()
            || profile.title.len() > 64
            || profile.title.contains(|c: char| c.is_control())
        {
            return Some(format!(
                "the title of the profile {} wants 1 to 64 characters",
                profile.name
            ));
        }
        let words: Vec<&str> = profile.cmdline.as_str().split(' ').collect();
        for (word, reason) in [
            ("iommu=pt", "turns SEV-SNP off"),
            ("amd_iommu=on", "is no option of the kernel"),
        ] {
            if words.contains(&word) {
                return Some(format!("the profile {}: {word} {reason}", profile.name));
            }
        }
        if words
            .iter()
            .any(|word| word.starts_with("roothash=") || word.starts_with("root="))
        {
            return Some(format!(
                "the profile {}: `roothash=` is added by the build",
                profile.name
            ));
        }
        if profile.trusted && !words.contains(&"systemd.import_credentials=no") {
            return Some(format!(
                "the profile {} lacks systemd.import_credentials=no: whoever controls the firmware could hand in units; \
                 add it, or say `trusted = false`",
                profile.name
            ));
        }
    }
    let disk = file.disk;
    if !(256..=4096).contains(&disk.esp_mib) {
        return Some("`esp_mib` wants 256 to 4096: it holds two kernels with room to replace one".to_owned());
    }
    if !(256..=16384).contains(&disk.root_mib) || !(8..=1024).contains(&disk.verity_mib) {
        return Some("`root_mib` wants 256 to 16384, `verity_mib` 8 to 1024".to_owned());
    }
    // SHA-256 over blocks of 4 KiB: one digest of 32 bytes a block, and the levels above it.
    if disk.verity_mib < disk.root_mib.div_ceil(126) + 1 {
        return Some(format!(
            "`verity_mib` wants at least {} for a root of {} MiB",
            disk.root_mib.div_ceil(126) + 1,
            disk.root_mib
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/x/image.toml"))
    }

    #[test]
    fn the_template_is_valid_and_its_paths_start_beside_it() {
        let config = parse(TEMPLATE).unwrap();
        assert_eq!(config.label(), "decent-cloud_0.1.0");
        assert_eq!(config.keys, Path::new("/etc/x/../../build/keys"));
        assert_eq!(config.profiles[0].name.as_str(), "plain");
        assert!(
            config
                .profiles
                .iter()
                .all(|p| p.trusted == (p.name.as_str() != "debug"))
        );
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        for (from, to, wanted) in [
            ("suite =", "sweet =", "unknown field `sweet`"),
            ("\"trixie\"", "\"tri xie\"", "not a Debian suite"),
            ("version = \"0.1.0\"", "version = \"a/b\"", "not a version"),
            (
                "name = \"decent-cloud\"",
                "name = \"a-very-long-name-of-an-image\"",
                "characters together",
            ),
            ("name = \"amd-snp\"", "name = \"plain\"", "stands there twice"),
            ("kvm_amd.sev=1", "iommu=pt", "iommu=pt turns SEV-SNP off"),
            ("nohibernate", "root=/dev/sda", "`roothash=` is added"),
            (
                "trusted = false",
                "trusted = true",
                "lacks systemd.import_credentials=no",
            ),
            (
                "# [seed]\n# url = \"https",
                "[seed]\nurl = \"http",
                "begins with https://",
            ),
            (
                "# path = \"/opt/cloud-hypervisor-v53-static\"\n# sha256 = \"…\"\n# to = \"usr/bin/cloud-hypervisor\"\n",
                &format!(
                    "[[program]]\nsha256 = \"{}\"\nto = \"usr/bin/x\"\n",
                    "0".repeat(64)
                ),
                "wants `path` or `url`, one of them",
            ),
            ("esp_mib = 1024", "esp_mib = 100", "`esp_mib` wants"),
            (
                "verity_mib = 64",
                "verity_mib = 8",
                "`verity_mib` wants at least 10",
            ),
            ("\"EROFS_FS\"", "\"CONFIG_erofs\"", "not a kernel option"),
        ] {
            assert!(TEMPLATE.contains(from), "{from}");
            let error = parse(&TEMPLATE.replacen(from, to, 1)).expect_err(to);
            let source = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            let text = format!("{error}: {source}");
            assert!(text.contains(wanted), "{to}: {text}");
        }
    }
}
