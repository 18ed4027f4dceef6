//! What the kernel loads into processors and devices.
//!
//! Microcode must be there before anything else runs: it goes into the kernel image, as an uncompressed archive before
//! the initrd (kernel `Documentation/arch/x86/microcode.rst`, section `.ucode` of UAPI.5), and is measured and signed with
//! it. All other files lie in the root, among them the SEV firmware that the driver `ccp` loads.

use std::collections::BTreeSet;

use crate::cpio;
use crate::tree::{Tree, TreeError};

const FOLDER: &str = "usr/lib/firmware/";

/// Each maker's folder, and the file that the kernel looks for. The kernel finds its processor's part in it.
const MICROCODE: [(&str, &str); 2] = [
    ("amd-ucode/", "kernel/x86/microcode/AuthenticAMD.bin"),
    ("intel-ucode/", "kernel/x86/microcode/GenuineIntel.bin"),
];

/// Whether a path of a package is firmware for the root.
pub fn is_for_root(path: &str) -> bool {
    path.strip_prefix(FOLDER)
        .is_some_and(|rest| !MICROCODE.iter().any(|(folder, _)| rest.starts_with(folder)))
}

/// The archive of the microcode in unpacked packages, or `None` if there is none.
pub fn microcode(packages: &Tree) -> Result<Option<Vec<u8>>, TreeError> {
    let mut archive = Tree::default();
    for (folder, target) in MICROCODE {
        // Debian has the same file under the names of several processors.
        let mut seen = BTreeSet::new();
        let parts = packages.iter().filter_map(|(path, _)| {
            let name = path.strip_prefix(FOLDER)?.strip_prefix(folder)?;
            let wanted = !name.ends_with(".asc") && !name.ends_with("README");
            wanted.then(|| packages.file(path)).flatten()
        });
        let content: Vec<u8> = parts
            .filter(|part| seen.insert(*part))
            .flatten()
            .copied()
            .collect();
        if !content.is_empty() {
            archive.add_file(target, 0o644, content)?;
        }
    }
    let empty = archive.iter().next().is_none();
    Ok((!empty).then(|| cpio::write(&archive, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microcode_goes_before_the_initrd_once_each_and_the_rest_into_the_root() {
        let mut tree = Tree::default();
        for (path, content) in [
            ("usr/lib/firmware/amd-ucode/microcode_amd.bin", "A"),
            ("usr/lib/firmware/amd-ucode/microcode_amd.bin.asc", "signature"),
            ("usr/lib/firmware/amd-ucode/microcode_amd_fam19h.bin", "B"),
            ("usr/lib/firmware/intel-ucode/06-8f-07", "C"),
            ("usr/lib/firmware/intel-ucode/06-8f-08", "C"),
            ("usr/lib/firmware/intel-ucode/06-cf-02", "D"),
            ("usr/lib/firmware/amd/amd_sev_fam19h_model0xh.sbin", "E"),
            ("usr/share/doc/amd64-microcode/copyright", "F"),
        ] {
            tree.add_file(path, 0o644, content.to_owned()).unwrap();
        }
        let archive = microcode(&tree).unwrap().unwrap();
        let text = String::from_utf8_lossy(&archive);
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what} in {text}"));
        // Contents follow their names, which end with zeros up to four bytes.
        assert!(at("kernel/x86/microcode/AuthenticAMD.bin\0") < at("AB\0\0"));
        assert!(at("kernel/x86/microcode/GenuineIntel.bin\0") < at("CD\0\0"));
        assert!(!text.contains("signature"));
        let root = tree
            .iter()
            .map(|(path, _)| path)
            .filter(|path| is_for_root(path) && tree.file(path).is_some());
        let root: Vec<&str> = root.collect();
        assert_eq!(root, ["usr/lib/firmware/amd/amd_sev_fam19h_model0xh.sbin"]);
        assert_eq!(microcode(&Tree::default()).unwrap(), None);
    }
}
