//! How the machine was started: secure boot, measured boot, the image, the firmware.
//!
//! Sources: UEFI specification 2.10, section 3.3 (the variables `SecureBoot` and `SetupMode`: one byte, after four bytes
//! of attributes in efivarfs); the Boot Loader Interface of systemd (`LoaderBootCountPath`: there while a boot is on trial);
//! os-release(5) (`IMAGE_ID`, `IMAGE_VERSION`).

use serde::{Deserialize, Serialize};

use super::{Probe, Tree};

const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
const BLESSED: &str = "run/systemd/units/invocation:systemd-bless-boot.service";
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// How the machine was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Whether the firmware refuses unsigned boot programs.
    pub secure_boot: Probe<bool>,
    /// Whether anybody may put their own keys into the firmware.
    pub setup_mode: Probe<bool>,
    /// Bytes of the firmware's event log; it says what the TPM's PCRs are made of.
    pub event_log_bytes: Probe<u64>,
    /// Whether this boot is one of a fresh image that still has to prove itself.
    pub on_trial: bool,
    /// The appliance's image and its version; `None`: this isn't the appliance.
    pub image: Option<Image>,
    /// The firmware's vendor, version and date, as far as it tells them.
    pub firmware: Option<String>,
}

/// The image that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `IMAGE_ID`.
    pub id: String,
    /// `IMAGE_VERSION`.
    pub version: Option<String>,
}

pub(super) fn boot(tree: &Tree<'_>) -> Boot {
    Boot {
        secure_boot: flag(tree, "SecureBoot"),
        setup_mode: flag(tree, "SetupMode"),
        event_log_bytes: event_log(tree),
        on_trial: trial(tree),
        image: image(tree),
        firmware: firmware(tree),
    }
}

/// Whether this boot's tries were counted, and systemd-bless-boot.service hasn't marked the image good since: systemd keeps
/// a link for each unit that is active.
fn trial(tree: &Tree<'_>) -> bool {
    tree.exists(&format!("sys/firmware/efi/efivars/LoaderBootCountPath-{LOADER}"))
        && std::fs::symlink_metadata(tree.0.join(BLESSED)).is_err()
}

/// The same now, below `root`.
pub(crate) fn on_trial(root: &std::path::Path) -> bool {
    trial(&Tree(root))
}

/// A UEFI variable of one byte.
fn flag(tree: &Tree<'_>, name: &str) -> Probe<bool> {
    if !tree.exists("sys/firmware/efi") {
        return Probe::Unknown("the machine wasn't started by UEFI".into());
    }
    let path = format!("sys/firmware/efi/efivars/{name}-{GLOBAL}");
    match tree.bytes(&path) {
        Ok(bytes) => match bytes[..] {
            [_, _, _, _, value @ (0 | 1)] => Probe::Known(value == 1),
            _ => Probe::Unknown(format!("/{path} isn't a flag ({} bytes)", bytes.len())),
        },
        Err(error) => Probe::Unknown(format!("/{path}: {error}")),
    }
}

fn event_log(tree: &Tree<'_>) -> Probe<u64> {
    let path = "sys/kernel/security/tpm0/binary_bios_measurements";
    match tree.bytes(path) {
        Ok(bytes) => Probe::Known(bytes.len() as u64),
        Err(error) => Probe::Unknown(format!("/{path}: {error}")),
    }
}

fn image(tree: &Tree<'_>) -> Option<Image> {
    let text = tree
        .text("etc/os-release")
        .or_else(|| tree.text("usr/lib/os-release"))?;
    let value = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        let value = line.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    Some(Image {
        id: value("IMAGE_ID")?,
        version: value("IMAGE_VERSION"),
    })
}

fn firmware(tree: &Tree<'_>) -> Option<String> {
    let parts: Vec<String> = ["bios_vendor", "bios_version", "bios_date"]
        .into_iter()
        .filter_map(|name| tree.text(&format!("sys/class/dmi/id/{name}")))
        .collect();
    (!parts.is_empty()).then(|| parts.join(" "))
}
