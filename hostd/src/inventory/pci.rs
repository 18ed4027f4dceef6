//! PCI devices and IOMMU groups.

use serde::{Deserialize, Serialize};

use super::Tree;

const DEVICES: &str = "sys/bus/pci/devices";

/// A PCI device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// `0000:41:00.0`.
    pub address: String,
    /// Vendor id, e.g. 0x10de.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class code, 24 bits: base class, sub-class, programming interface.
    pub class: u32,
    /// The driver that has it.
    pub driver: Option<String>,
    /// NUMA node it hangs on.
    pub numa_node: Option<u32>,
    /// Its IOMMU group.
    pub iommu_group: Option<u32>,
}

/// Devices that can only be handed to a VM together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IommuGroup {
    /// Its number.
    pub id: u32,
    /// PCI addresses of its devices.
    pub devices: Vec<String>,
}

pub(super) fn iommu_groups(tree: &Tree<'_>) -> Vec<IommuGroup> {
    let ids = tree.list("sys/kernel/iommu_groups");
    ids.iter()
        .filter_map(|name| {
            let id = name.parse().ok()?;
            Some(IommuGroup {
                id,
                devices: tree.list(&format!("sys/kernel/iommu_groups/{name}/devices")),
            })
        })
        .collect()
}

/// All devices whose base class is `base`.
pub(super) fn devices_of_class(tree: &Tree<'_>, base: u8) -> Vec<PciDevice> {
    let addresses = tree.list(DEVICES);
    addresses
        .into_iter()
        .filter_map(|a| device(tree, a))
        .filter(|d| d.class >> 16 == u32::from(base))
        .collect()
}

fn device(tree: &Tree<'_>, address: String) -> Option<PciDevice> {
    let file = |name: &str| format!("{DEVICES}/{address}/{name}");
    let hex = |name: &str| u32::from_str_radix(tree.text(&file(name))?.strip_prefix("0x")?, 16).ok();
    Some(PciDevice {
        vendor: u16::try_from(hex("vendor")?).ok()?,
        device: u16::try_from(hex("device")?).ok()?,
        class: hex("class")?,
        driver: tree.link_name(&file("driver")),
        // -1: the firmware doesn't say.
        numa_node: tree.text(&file("numa_node")).and_then(|n| n.parse().ok()),
        iommu_group: tree.link_name(&file("iommu_group")).and_then(|n| n.parse().ok()),
        address,
    })
}
