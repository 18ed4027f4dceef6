//! Devices for VMs, through sysfs: `driver_override` names the driver, `unbind` and `drivers_probe` change it.
//!
//! Documentation/ABI/testing/sysfs-bus-pci of the kernel. Binding by vendor id is never used: it would take every card of
//! that kind at once. A card goes as a whole, with all its functions, since the IOMMU can't tell them apart; and it is reset
//! before the host or the next VM sees it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::ports::DevicePort;

/// The driver that hands a device to a VMM.
const DRIVER: &str = "vfio-pci";

/// PCI bridges (base class and sub-class): they stay with the host, and VFIO counts them as no member of a group.
const BRIDGE: &str = "0x0604";

/// A card's function, as `hostd device list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Device {
    /// PCI address.
    pub address: String,
    /// Class code, `0x` and 6 digits: base class, sub-class, programming interface.
    pub class: String,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub iommu_group: Option<u32>,
    /// Why it can't be handed to a VM.
    pub obstacle: Option<String>,
}

/// PCI devices below a sysfs root.
pub struct Vfio {
    pci: PathBuf,
}

impl Vfio {
    /// `root` is `/sys`, or a test's tree.
    pub fn new(root: &Path) -> Self {
        Self {
            pci: root.join("bus/pci"),
        }
    }

    fn device(&self, address: &str) -> PathBuf {
        self.pci.join("devices").join(address)
    }

    fn driver(&self, address: &str) -> Option<String> {
        let link = fs::read_link(self.device(address).join("driver")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    /// Every device but bridges, by address.
    pub fn devices(&self) -> io::Result<Vec<Device>> {
        let mut devices = Vec::new();
        for entry in fs::read_dir(self.pci.join("devices"))? {
            let address = entry?.file_name().to_string_lossy().into_owned();
            let class = self.class(&address);
            // Host bridges and the like have the same base class.
            if class.starts_with("0x06") {
                continue;
            }
            devices.push(Device {
                class,
                driver: self.driver(&address),
                iommu_group: self.group(&address),
                obstacle: self.obstacle(&address),
                address,
            });
        }
        devices.sort_by(|a, b| a.address.cmp(&b.address));
        Ok(devices)
    }

    /// Why the card at `address` can't be handed to a VM.
    pub fn obstacle(&self, address: &str) -> Option<String> {
        self.whole(address).err().map(|error| error.to_string())
    }

    /// A process that has the card by VFIO.
    pub fn user(&self, address: &str) -> io::Result<Option<u32>> {
        self.card(address)?;
        let Some(group) = self.group(address) else {
            return Ok(None);
        };
        let node = PathBuf::from(format!("/dev/vfio/{group}"));
        for process in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
                continue;
            };
            // Processes end while we look.
            let Ok(files) = fs::read_dir(process.path().join("fd")) else {
                continue;
            };
            if files
                .flatten()
                .any(|file| fs::read_link(file.path()).is_ok_and(|at| at == node))
            {
                return Ok(Some(pid));
            }
        }
        Ok(None)
    }

    fn class(&self, address: &str) -> String {
        let class = fs::read_to_string(self.device(address).join("class")).unwrap_or_default();
        class.trim().to_owned()
    }

    fn group(&self, address: &str) -> Option<u32> {
        let link = fs::read_link(self.device(address).join("iommu_group")).ok()?;
        link.file_name()?.to_str()?.parse().ok()
    }

    /// The functions of the card at `address`, if it may go to a VM.
    fn whole(&self, address: &str) -> io::Result<Vec<String>> {
        let card = self.card(address)?;
        if !self.can_be_reset(address) {
            return Err(io::Error::other(format!(
                "{address} has no way to be reset: what a tenant left in it would go to the next one"
            )));
        }
        Ok(card)
    }

    /// The functions of the card at `address`. Refused if its IOMMU group has devices of others: they could reach the VM's
    /// memory, and the VM theirs.
    fn card(&self, address: &str) -> io::Result<Vec<String>> {
        // The address comes from the inventory by way of the journal; still, it becomes a path.
        if !address
            .bytes()
            .all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.')
            || address.contains("..")
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{address} isn't a PCI address"),
            ));
        }
        let group = self.device(address).join("iommu_group/devices");
        let members = fs::read_dir(&group).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{address} is in no IOMMU group; switch the IOMMU on in the firmware (AMD: IOMMU, Intel: VT-d)"),
            )
        })?;
        let slot = |address: &str| address.rsplit_once('.').map(|(slot, _)| slot.to_owned());
        let (mut card, mut others) = (Vec::new(), Vec::new());
        for member in members {
            let name = member?.file_name().to_string_lossy().into_owned();
            if slot(&name) == slot(address) {
                card.push(name);
            } else if !self.class(&name).starts_with(BRIDGE) {
                others.push(name);
            }
        }
        if !others.is_empty() {
            others.sort();
            return Err(io::Error::other(format!(
                "{address} shares its IOMMU group with {}; put the card into another slot, or switch ACS on in the firmware",
                others.join(", ")
            )));
        }
        card.sort();
        Ok(card)
    }

    /// Has the kernel look for the device's driver anew; a newline clears the override.
    fn rebind(&self, address: &str, driver_override: &str) -> io::Result<()> {
        let device = self.device(address);
        fs::write(device.join("driver_override"), driver_override)?;
        if self.driver(address).is_some() {
            fs::write(device.join("driver/unbind"), address)?;
        }
        fs::write(self.pci.join("drivers_probe"), address)
    }

    /// Whether a VM could have the device, or a crash left it on the way there or back.
    fn is_away(&self, address: &str) -> bool {
        let named = fs::read_to_string(self.device(address).join("driver_override"));
        let driver = self.driver(address);
        driver.is_none()
            || driver.as_deref() == Some(DRIVER)
            || named.is_ok_and(|named| named.trim() == DRIVER)
    }

    fn can_be_reset(&self, address: &str) -> bool {
        self.device(address).join("reset").exists()
    }
}

#[async_trait]
impl DevicePort for Vfio {
    async fn hand_over(&self, address: &str) -> io::Result<()> {
        for function in self.whole(address)? {
            if self.driver(&function).as_deref() != Some(DRIVER) {
                self.rebind(&function, DRIVER)?;
            }
            if self.driver(&function).as_deref() != Some(DRIVER) {
                return Err(io::Error::other(format!(
                    "{function} isn't bound to {DRIVER}; is the module loaded?"
                )));
            }
        }
        Ok(())
    }

    async fn take_back(&self, address: &str) -> io::Result<()> {
        for function in self.card(address)? {
            if !self.is_away(&function) {
                continue;
            }
            if self.can_be_reset(&function) {
                fs::write(self.device(&function).join("reset"), "1").map_err(|error| {
                    io::Error::new(error.kind(), format!("{function} can't be reset: {error}"))
                })?;
            }
            self.rebind(&function, "\n")?;
            // A card that the host has no driver for stays without one.
            if self.driver(&function).as_deref() == Some(DRIVER) {
                return Err(io::Error::other(format!("{function} is still bound to {DRIVER}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree with devices in one IOMMU group: address, class, whether they can be reset.
    fn tree(devices: &[(&str, &str, bool)]) -> (tempfile::TempDir, Vfio) {
        let root = tempfile::tempdir().unwrap();
        let pci = root.path().join("bus/pci");
        let group = root.path().join("kernel/iommu_groups/7/devices");
        fs::create_dir_all(&group).unwrap();
        for driver in ["nvme", DRIVER] {
            fs::create_dir_all(pci.join("drivers").join(driver)).unwrap();
        }
        fs::write(pci.join("drivers_probe"), "").unwrap();
        for (address, class, reset) in devices {
            let device = pci.join("devices").join(address);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("class"), class).unwrap();
            fs::write(device.join("driver_override"), "").unwrap();
            if *reset {
                fs::write(device.join("reset"), "").unwrap();
            }
            symlink("../../../../kernel/iommu_groups/7", device.join("iommu_group")).unwrap();
            symlink(&device, group.join(address)).unwrap();
        }
        let vfio = Vfio::new(root.path());
        (root, vfio)
    }

    /// Binds a device, as the kernel would.
    fn bound(vfio: &Vfio, address: &str, driver: &str) {
        let link = vfio.device(address).join("driver");
        let _ = fs::remove_file(&link); // the first time there is none
        symlink(vfio.pci.join("drivers").join(driver), link).unwrap();
    }

    fn written(vfio: &Vfio, address: &str, file: &str) -> String {
        fs::read_to_string(vfio.device(address).join(file)).unwrap()
    }

    const CARD: &str = "0000:01:00.0";
    const AUDIO: &str = "0000:01:00.1";

    #[tokio::test]
    async fn a_card_goes_as_a_whole_and_comes_back_reset() {
        let (_root, vfio) = tree(&[
            (CARD, "0x030200", true),
            (AUDIO, "0x040300", false),
            ("0000:00:01.0", "0x060400", true),
        ]);
        // Nobody binds in this tree.
        let refused = vfio.hand_over(CARD).await.unwrap_err().to_string();
        assert!(refused.contains("isn't bound to vfio-pci"), "{refused}");
        for function in [CARD, AUDIO] {
            bound(&vfio, function, DRIVER);
        }
        vfio.hand_over(CARD).await.unwrap();
        assert_eq!(written(&vfio, CARD, "driver_override"), DRIVER);
        assert_eq!(written(&vfio, "0000:00:01.0", "driver_override"), "");

        for function in [CARD, AUDIO] {
            let refused = vfio.take_back(CARD).await.unwrap_err().to_string();
            assert!(
                refused.contains(&format!("{function} is still bound")),
                "{refused}"
            );
            assert_eq!(written(&vfio, function, "driver_override"), "\n");
            bound(&vfio, function, "nvme");
        }
        assert_eq!(written(&vfio, CARD, "reset"), "1");
        assert_eq!(written(&vfio, "0000:00:01.0", "reset"), "");
        // A crash before the old driver let it go: only the override says so.
        fs::write(vfio.device(CARD).join("driver_override"), "vfio-pci\n").unwrap();
        vfio.take_back(CARD).await.unwrap();
        assert_eq!(written(&vfio, CARD, "driver_override"), "\n");
        // What is the host's already is left alone.
        fs::write(vfio.device(CARD).join("reset"), "").unwrap();
        for function in [CARD, AUDIO] {
            bound(&vfio, function, "nvme");
        }
        vfio.take_back(CARD).await.unwrap();
        assert_eq!(written(&vfio, CARD, "reset"), "");
    }

    #[tokio::test]
    async fn what_cannot_be_handed_over_safely_is_refused() {
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str, bool)], &'a str);
        let rows: [Row<'_>; 4] = [
            ("../../etc", &[], "isn't a PCI address"),
            (CARD, &[], "is in no IOMMU group"),
            (CARD, &[(CARD, "0x030200", false)], "has no way to be reset"),
            (
                CARD,
                &[(CARD, "0x030200", true), ("0000:02:00.0", "0x020000", true)],
                "shares its IOMMU group with 0000:02:00.0",
            ),
        ];
        for (address, devices, wanted) in rows {
            let (_root, vfio) = tree(devices);
            let refused = vfio.hand_over(address).await.unwrap_err().to_string();
            assert!(refused.contains(wanted), "{refused}");
        }
    }
}
