//! `manifest.json`: what an image directory holds. The image's id is the SHA-256 of the file's bytes, so whoever knows
//! the id knows every byte that a VM of this image starts with.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The file's name inside an image directory.
pub const FILE_NAME: &str = "manifest.json";

/// One file beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Its name in the directory.
    pub file: String,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
    /// Length in bytes.
    pub size: u64,
}

impl ImageFile {
    /// Describes `content` under the name `file`.
    pub fn of(file: &str, content: &[u8]) -> Self {
        Self {
            file: file.to_owned(),
            sha256: sha256(content),
            size: content.len() as u64,
        }
    }
}

/// The manifest, version 1. The order of the fields is the order in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always 1.
    pub version: u32,
    /// The image's name, for people.
    pub name: String,
    /// The kernel, a bzImage.
    pub kernel: ImageFile,
    /// The compressed cpio archive that is the whole system.
    pub initrd: ImageFile,
    /// The kernel's command line, the same for every contract.
    pub cmdline: String,
    /// UEFI firmware for confidential VMs.
    pub firmware: Option<ImageFile>,
    /// A root file system; tenant images have none, their root is the initrd.
    pub root: Option<ImageFile>,
    /// What the guest agent says about its version.
    pub agent_version: String,
}

impl Manifest {
    /// The file's exact bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            serde_json::to_vec_pretty(self).expect("strings, numbers and options always serialise");
        bytes.push(b'\n');
        bytes
    }

    /// SHA-256 of [`Manifest::to_bytes`], in hex.
    pub fn image_id(&self) -> String {
        sha256(&self.to_bytes())
    }

    /// Compares every file in `dir` with the manifest; says each one that differs. Empty when all agree.
    pub fn differences(&self, dir: &Path) -> Vec<String> {
        [
            Some(&self.kernel),
            Some(&self.initrd),
            self.firmware.as_ref(),
            self.root.as_ref(),
        ]
        .into_iter()
        .flatten()
        .filter_map(|wanted| match std::fs::read(dir.join(&wanted.file)) {
            Err(error) => Some(format!("{}: {error}", wanted.file)),
            Ok(content) => {
                let found = ImageFile::of(&wanted.file, &content);
                (found != *wanted).then(|| {
                    format!(
                        "{}: sha256 {} instead of {}",
                        wanted.file, found.sha256, wanted.sha256
                    )
                })
            }
        })
        .collect()
    }
}

/// SHA-256 in lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        Manifest {
            version: 1,
            name: "tenant-demo".to_owned(),
            kernel: ImageFile::of("vmlinuz", b"kernel"),
            initrd: ImageFile::of("initrd", b"initrd"),
            cmdline: "console=ttyS0 quiet".to_owned(),
            firmware: None,
            root: None,
            agent_version: "attest 0.1.0".to_owned(),
        }
    }

    #[test]
    fn the_manifest_keeps_its_bytes() {
        insta::assert_snapshot!(String::from_utf8(sample().to_bytes()).unwrap());
        insta::assert_snapshot!(sample().image_id(), @"238935ef2ca03b478dd26626aab0238235af26aba209cd3357802a85634b9cdc");
    }

    #[test]
    fn a_manifest_with_an_unknown_key_is_refused() {
        let text = String::from_utf8(sample().to_bytes()).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), sample());
        let more = text.replacen('{', "{\"extra\": 1,", 1);
        assert!(
            serde_json::from_str::<Manifest>(&more)
                .unwrap_err()
                .to_string()
                .contains("unknown field")
        );
    }

    #[test]
    fn every_file_that_differs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmlinuz"), b"kernel").unwrap();
        std::fs::write(dir.path().join("initrd"), b"initrd, changed").unwrap();
        let mut manifest = sample();
        manifest.firmware = Some(ImageFile::of("OVMF.fd", b"firmware"));
        let differences = manifest.differences(dir.path());
        assert_eq!(differences.len(), 2, "{differences:?}");
        assert!(
            differences[0].starts_with("initrd: sha256") && differences[1].starts_with("OVMF.fd: No such")
        );
    }
}
