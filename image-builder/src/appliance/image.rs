//! `image.json`: what a build gave. It stands beside the files it describes; `verify` compares them with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flash::Wanted;
use serde::{Deserialize, Serialize};

use crate::apt::Locked;
use crate::manifest::ImageFile;

/// The file's name inside the output directory.
pub const FILE_NAME: &str = "image.json";

/// A description of an image that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file or one that it names can't be read.
    #[error("cannot read {path}; `image-builder build` makes an image")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It isn't a description of an image.
    #[error("{path} does not describe an image of this builder's version")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        #[source]
        source: serde_json::Error,
    },
    /// A file isn't what the description says.
    #[error("{0} is damaged: its sha256 is not the one in image.json")]
    Damaged(PathBuf),
}

/// One signed command line and what it makes the TPM say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The whole command line.
    pub cmdline: String,
    /// The signed reference values, if the profile is trusted.
    pub reference: Option<ImageFile>,
    /// PCR 11 of the SHA-256 bank after each phase of the boot.
    pub pcr_11: Vec<String>,
}

/// The description, version 1. The order of the fields is the order in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Always 1.
    pub version: u32,
    /// The image's name.
    pub name: String,
    /// The image's version.
    pub image_version: String,
    /// The disk, compressed with Zstandard.
    pub disk: ImageFile,
    /// SHA-256 of the disk before compression: what a flashed device holds.
    pub disk_sha256: String,
    /// Length of the disk before compression.
    pub disk_size: u64,
    /// The signed kernel image.
    pub uki: ImageFile,
    /// The root file system.
    pub root: ImageFile,
    /// Its hash tree.
    pub verity: ImageFile,
    /// The top of the hash tree.
    pub root_hash: String,
    /// The kernel image with the root in its initrd, if it was asked for.
    pub live: Option<ImageFile>,
    /// The ISO image, if it was asked for.
    pub iso: Option<ImageFile>,
    /// PCR 4 of the SHA-256 bank.
    pub pcr_4: String,
    /// PCR 7 of the SHA-256 bank.
    pub pcr_7: String,
    /// All command lines; the first is the default.
    pub profiles: Vec<Profile>,
    /// The kernel's release.
    pub kernel: String,
    /// Kinds of VM that the kernel can't host, with what it lacks.
    pub cannot_host: BTreeMap<String, Vec<String>>,
    /// SHA-256 of hostd.
    pub hostd_sha256: String,
    /// Every Debian package in the image.
    pub packages: Vec<Locked>,
}

impl Image {
    /// Reads the description in `dir`.
    pub fn read(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join(FILE_NAME);
        let text = std::fs::read(&path).map_err(|source| ImageError::Read {
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| ImageError::Parse { path, source })
    }

    /// What a flashed device holds.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            size: self.disk_size,
            sha256: self.disk_sha256.clone(),
        }
    }

    /// The disk of the image in `dir`, unpacked as it is read. The whole file is looked at first.
    pub fn disk(&self, dir: &Path) -> Result<impl std::io::Read, ImageError> {
        let path = dir.join(&self.disk.file);
        let fail = |source| ImageError::Read {
            path: path.clone(),
            source,
        };
        if describe(dir, &self.disk.file).map_err(fail)? != self.disk {
            return Err(ImageError::Damaged(path));
        }
        std::fs::File::open(&path)
            .and_then(zstd::Decoder::new)
            .map_err(fail)
    }

    /// The file's exact bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("strings, numbers and options always serialise");
        bytes.push(b'\n');
        bytes
    }

    /// Every file beside the description.
    pub fn files(&self) -> impl Iterator<Item = &ImageFile> {
        let references = self
            .profiles
            .iter()
            .filter_map(|profile| profile.reference.as_ref());
        [
            Some(&self.disk),
            Some(&self.uki),
            Some(&self.root),
            Some(&self.verity),
            self.live.as_ref(),
            self.iso.as_ref(),
        ]
        .into_iter()
        .flatten()
        .chain(references)
    }
}

/// Describes a file of the output directory.
pub fn describe(dir: &Path, name: &str) -> std::io::Result<ImageFile> {
    let (sha256, size) = flash::digest(std::fs::File::open(dir.join(name))?)?;
    Ok(ImageFile {
        file: name.to_owned(),
        sha256,
        size,
    })
}
