//! `hostd device`: PCI cards between the host and VMs, without the daemon.

use std::fmt::Write as _;
use std::path::Path;

use clap::Subcommand;

use super::{Failure, show};
use crate::ports::DevicePort;
use crate::wiring::{Device, Vfio};

#[derive(Subcommand)]
#[command(after_help = "\
hostd hands GPUs over by itself when a contract with one begins, and takes them back when it ends. This is for trying it, and
for bringing back a card that something else left at vfio-pci. A card goes with all its functions, and comes back reset.")]
pub(super) enum Verb {
    /// Every card: driver, IOMMU group, and whether it can be handed to a VM
    List,
    /// Take it from the host's driver, so that a VM can have it
    HandOver {
        /// PCI address, such as 0000:41:00.0
        address: String,
    },
    /// Reset it and give it to the host's driver again; refused while a VM has it
    TakeBack {
        /// PCI address, such as 0000:41:00.0
        address: String,
    },
}

pub(super) async fn run(verb: &Verb, json: bool) -> Result<(), Failure> {
    let vfio = Vfio::new(Path::new("/sys"));
    let refused = |error: std::io::Error| Failure::Refused(error.to_string());
    match verb {
        Verb::List => return show(json, &vfio.devices().map_err(refused)?, |devices| table(devices)),
        Verb::HandOver { address } => vfio.hand_over(address).await.map_err(refused)?,
        Verb::TakeBack { address } => {
            if let Some(pid) = vfio.user(address).map_err(refused)? {
                return Err(Failure::Refused(format!(
                    "process {pid} has {address}: end its VM first"
                )));
            }
            vfio.take_back(address).await.map_err(refused)?;
        }
    }
    Ok(())
}

fn table(devices: &[Device]) -> String {
    let mut text = format!(
        "{:14}{:10}{:18}{:8}TO A VM\n",
        "ADDRESS", "CLASS", "DRIVER", "GROUP"
    );
    for device in devices {
        let group = device.iommu_group.map(|group| group.to_string());
        let _ = writeln!(
            text,
            "{:14}{:10}{:18}{:8}{}",
            device.address,
            device.class,
            device.driver.as_deref().unwrap_or("-"),
            group.as_deref().unwrap_or("-"),
            device.obstacle.as_deref().unwrap_or("yes"),
        );
    }
    text
}
