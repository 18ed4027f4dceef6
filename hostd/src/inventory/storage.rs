//! Whole disks.

use serde::{Deserialize, Serialize};

use super::{Probe, Tree};

/// Block devices that are no disks of the machine.
const NOT_DISKS: [&str; 9] = ["dm-", "drbd", "fd", "loop", "md", "nbd", "ram", "sr", "zram"];

/// A whole disk, not a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// `nvme0n1`.
    pub name: String,
    /// Bytes.
    pub bytes: Probe<u64>,
    /// Whether it spins.
    pub rotational: Option<bool>,
    /// Model, if the disk tells it.
    pub model: Option<String>,
    /// Whether discarded blocks reach the device.
    pub discard: Option<bool>,
}

pub(super) fn disks(tree: &Tree<'_>) -> Vec<BlockDevice> {
    let names = tree.list("sys/block");
    names
        .into_iter()
        .filter(|name| !NOT_DISKS.iter().any(|prefix| name.starts_with(prefix)))
        .map(|name| {
            let file = |path: &str| format!("sys/block/{name}/{path}");
            BlockDevice {
                // The kernel counts sectors of 512 bytes here, whatever the disk's own.
                bytes: match tree.probe::<u64>(&file("size")) {
                    Probe::Known(sectors) => Probe::Known(sectors.saturating_mul(512)),
                    unknown => unknown,
                },
                rotational: tree.number(&file("queue/rotational")).map(|n| n != 0),
                model: tree.text(&file("device/model")),
                discard: tree.number(&file("queue/discard_max_bytes")).map(|n| n != 0),
                name,
            }
        })
        .collect()
}
