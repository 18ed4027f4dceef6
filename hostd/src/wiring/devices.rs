//! Devices for VMs, through sysfs: `driver_override` names the driver, `unbind` and `drivers_probe` change it.
//!
//! Documentation/ABI/testing/sysfs-bus-pci of the kernel. Binding by vendor id is never used: it would take every card of
//! that kind at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::ports::DevicePort;

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

    fn driver(&self, address: &str) -> Option<String> {
        let link = fs::read_link(self.pci.join("devices").join(address).join("driver")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    fn bind(&self, address: &str, driver: Option<&str>) -> io::Result<()> {
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
        let device = self.pci.join("devices").join(address);
        if driver.is_some() && self.driver(address).as_deref() == driver {
            return Ok(());
        }
        // A newline clears the override.
        fs::write(device.join("driver_override"), driver.unwrap_or("\n"))?;
        if self.driver(address).is_some() {
            fs::write(device.join("driver/unbind"), address)?;
        }
        fs::write(self.pci.join("drivers_probe"), address)?;
        match driver {
            Some(wanted) if self.driver(address).as_deref() != Some(wanted) => {
                Err(io::Error::other(format!(
                    "{address} isn't bound to {wanted}; is the module loaded, and the whole IOMMU group free?"
                )))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl DevicePort for Vfio {
    async fn hand_over(&self, address: &str) -> io::Result<()> {
        self.bind(address, Some("vfio-pci"))
    }

    async fn take_back(&self, address: &str) -> io::Result<()> {
        if self.driver(address).as_deref() == Some("vfio-pci") {
            self.bind(address, None)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_device_that_does_not_bind_is_an_error_and_a_path_is_no_address() {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("bus/pci/devices/0000:01:00.0");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(root.path().join("drivers/vfio-pci")).unwrap();
        fs::write(device.join("driver_override"), "").unwrap();
        fs::write(root.path().join("bus/pci/drivers_probe"), "").unwrap();
        let vfio = Vfio::new(root.path());
        // Nobody binds it in this tree.
        assert!(
            vfio.hand_over("0000:01:00.0")
                .await
                .unwrap_err()
                .to_string()
                .contains("isn't bound")
        );
        assert_eq!(
            fs::read_to_string(device.join("driver_override")).unwrap(),
            "vfio-pci"
        );
        std::os::unix::fs::symlink(root.path().join("drivers/vfio-pci"), device.join("driver")).unwrap();
        vfio.hand_over("0000:01:00.0").await.unwrap();
        assert!(
            vfio.hand_over("../../etc")
                .await
                .unwrap_err()
                .to_string()
                .contains("isn't a PCI address")
        );
    }
}
