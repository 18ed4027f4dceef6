//! GPUs: what PCI shows, and what NVML adds where NVIDIA's driver runs.
//!
//! PCI decides which GPUs there are; NVML only adds to them. NVML can hang for minutes behind a sick GPU, so it is asked
//! on a thread of its own and given up after [`NVML_TIMEOUT`]: then its facts are unknown, and the GPUs are still there.

use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pci::{self, PciDevice};
use super::{Probe, Tree};
use crate::wiring::Vfio;

/// A healthy NVML answers in 0.1–3 s (the first call wakes GPUs without persistence mode).
const NVML_TIMEOUT: Duration = Duration::from_secs(8);
/// PCI base class of display controllers.
const DISPLAY: u8 = 0x03;
const NVIDIA: u16 = 0x10de;

/// A display or 3D controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// What PCI shows.
    pub pci: PciDevice,
    /// Who made it, as far as known.
    pub vendor_name: Option<String>,
    /// The marketing name, by NVML.
    pub name: Probe<String>,
    /// Its memory in bytes, by NVML.
    pub memory_bytes: Probe<u64>,
    /// Whether confidential computing is on, by NVML.
    pub mode: Probe<GpuMode>,
    /// Why it can't be handed to a VM.
    pub obstacle: Option<String>,
}

impl Gpu {
    /// A compute GPU, not the board's own VGA chip.
    pub fn is_compute(&self) -> bool {
        self.pci.vendor == NVIDIA
    }

    /// Whether it can be sold.
    pub fn is_for_sale(&self) -> bool {
        self.is_compute() && self.obstacle.is_none()
    }
}

/// Whether a GPU protects what runs on it from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuMode {
    /// Ordinary, or confidential computing in a state that protects nothing yet (developer mode, not accepting work).
    Open,
    /// Confidential computing is on, in production mode, and accepting work.
    Confidential,
}

/// What NVML says about one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmlGpu {
    /// PCI address as sysfs writes it, `0000:41:00.0`.
    pub address: String,
    /// Name.
    pub name: Result<String, String>,
    /// Memory, bytes.
    pub memory_bytes: Result<u64, String>,
    /// Mode.
    pub mode: Result<GpuMode, String>,
}

pub(super) fn gpus(tree: &Tree<'_>, nvml: fn() -> Result<Vec<NvmlGpu>, String>) -> Vec<Gpu> {
    let devices = pci::devices_of_class(tree, DISPLAY);
    let answer = if devices
        .iter()
        .any(|d| d.vendor == NVIDIA && d.driver.as_deref() == Some("nvidia"))
    {
        in_time(nvml, NVML_TIMEOUT)
    } else {
        Err("no GPU is bound to the driver `nvidia`".to_owned()) // e.g. to vfio-pci, for handing it to VMs
    };
    let vfio = Vfio::new(&tree.0.join("sys"));
    let obstacle = |pci: &PciDevice| vfio.obstacle(&pci.address);
    devices
        .into_iter()
        .map(|pci| gpu(obstacle(&pci), pci, &answer))
        .collect()
}

fn gpu(obstacle: Option<String>, pci: PciDevice, answer: &Result<Vec<NvmlGpu>, String>) -> Gpu {
    let found = match answer {
        _ if pci.vendor != NVIDIA => Err("only known for NVIDIA GPUs".to_owned()),
        Ok(gpus) => gpus
            .iter()
            .find(|g| g.address == pci.address)
            .ok_or_else(|| "NVML doesn't list it".to_owned()),
        Err(why) => Err(why.clone()),
    };
    fn probe<T: Clone>(
        found: &Result<&NvmlGpu, String>,
        field: fn(&NvmlGpu) -> &Result<T, String>,
    ) -> Probe<T> {
        match found.as_ref().map(|g| field(g)) {
            Ok(Ok(value)) => Probe::Known(value.clone()),
            Ok(Err(why)) | Err(why) => Probe::Unknown(why.clone()),
        }
    }
    Gpu {
        vendor_name: vendor_name(pci.vendor).map(str::to_owned),
        name: probe(&found, |g| &g.name),
        memory_bytes: probe(&found, |g| &g.memory_bytes),
        mode: probe(&found, |g| &g.mode),
        obstacle,
        pci,
    }
}

fn vendor_name(id: u16) -> Option<&'static str> {
    Some(match id {
        NVIDIA => "NVIDIA",
        0x1002 => "AMD",
        0x8086 => "Intel",
        0x1a03 => "ASPEED",
        0x102b => "Matrox",
        0x1234 | 0x1b36 => "QEMU",
        0x1af4 => "virtio",
        _ => return None,
    })
}

/// Runs `work` on a thread of its own. One that hangs is left behind: there is no way to end it, and waiting for it
/// would stop the daemon.
pub(super) fn in_time<T: Send + 'static>(
    work: fn() -> Result<T, String>,
    limit: Duration,
) -> Result<T, String> {
    let (send, receive) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("nvml".into())
        .spawn(move || send.send(work()));
    if let Err(e) = thread {
        return Err(format!("no thread to ask NVML on: {e}"));
    }
    match receive.recv_timeout(limit) {
        Ok(answer) => answer,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(format!("NVML gave no answer in {limit:?}")),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("NVML crashed while it was asked".into()),
    }
}

/// NVML isn't asked.
pub(super) fn no_nvml() -> Result<Vec<NvmlGpu>, String> {
    Err("NVML wasn't asked".into())
}

#[cfg(not(feature = "nvml"))]
pub(super) fn ask_nvml() -> Result<Vec<NvmlGpu>, String> {
    Err("hostd was built without the feature `nvml`".into())
}

#[cfg(feature = "nvml")]
pub(super) fn ask_nvml() -> Result<Vec<NvmlGpu>, String> {
    use nvml_wrapper::Nvml;
    let words = |e: nvml_wrapper::error::NvmlError| e.to_string();
    let nvml = Nvml::init().map_err(words)?;
    let count = nvml.device_count().map_err(words)?;
    let mut gpus = Vec::new();
    for index in 0..count {
        // A GPU that fell off the bus has no address; PCI still lists it, and its facts stay unknown.
        let Ok(device) = nvml.device_by_index(index) else {
            continue;
        };
        let Ok(pci) = device.pci_info() else { continue };
        gpus.push(NvmlGpu {
            address: sysfs_address(&pci.bus_id),
            name: device.name().map_err(words),
            memory_bytes: device.memory_info().map(|m| m.total).map_err(words),
            mode: device
                .check_confidential_compute_status()
                .map(|on| if on { GpuMode::Confidential } else { GpuMode::Open })
                .map_err(words),
        });
    }
    Ok(gpus)
}

/// NVML writes the domain with eight digits and in capitals: `00000000:41:00.0`.
#[cfg_attr(
    not(any(feature = "nvml", test)),
    expect(dead_code, reason = "only NVML writes addresses like this")
)]
pub(super) fn sysfs_address(bus_id: &str) -> String {
    let lower = bus_id.to_ascii_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) if domain.len() == 8 => format!("{}:{rest}", &domain[4..]),
        _ => lower,
    }
}
