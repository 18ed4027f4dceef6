//! The inventory for people: one short page.

use super::{Gpu, Inventory, Probe, Readiness};

const GIB: u64 = 1 << 30;
const LABEL_COLUMNS: usize = 11;

impl Inventory {
    /// A dozen lines; what isn't known says so. Lines are wrapped at words to `width` columns.
    pub fn page(&self, width: usize) -> String {
        let rows = [
            ("cpu", self.cpu_line()),
            ("memory", self.memory_line()),
            ("hugepages", self.hugepages_line()),
            ("numa", self.numa_line()),
            ("disks", self.disks_line()),
            ("iommu", self.iommu_line()),
            ("gpus", self.gpus_line()),
            ("kvm", readiness(&self.kvm)),
            ("sev-snp", readiness(&self.sev_snp)),
            ("tdx", readiness(&self.tdx)),
            ("tpm", self.tpm_line()),
            ("kernel", self.kernel_line()),
        ];
        rows.iter()
            .map(|(label, text)| wrap(label, text, width))
            .collect()
    }

    fn cpu_line(&self) -> String {
        let cpu = &self.cpu;
        let name = if cpu.name.is_empty() { "unknown" } else { &cpu.name };
        let generation = cpu
            .epyc()
            .map(|product| format!(" ({product})"))
            .unwrap_or_default();
        let flags: Vec<&str> = cpu.flags.iter().map(String::as_str).collect();
        format!(
            "{name}{generation}: {}, {}, {}; {}",
            count(cpu.sockets, "socket"),
            count(cpu.cores, "core"),
            count(cpu.threads, "thread"),
            if flags.is_empty() {
                "no flags of note".to_owned()
            } else {
                flags.join(" ")
            },
        )
    }

    fn memory_line(&self) -> String {
        format!(
            "{}, {} available",
            bytes(&self.memory.total_bytes),
            bytes(&self.memory.available_bytes)
        )
    }

    fn hugepages_line(&self) -> String {
        let pools = self.hugepages.iter().filter(|pool| pool.total > 0).map(|pool| {
            let node = pool.node.map(|n| format!(" on node {n}")).unwrap_or_default();
            let size = if pool.size_kib >= 1 << 20 {
                "1 GiB"
            } else {
                "2 MiB"
            };
            format!("{} of {size}{node} ({} free)", pool.total, pool.free)
        });
        list(pools, "none reserved")
    }

    fn numa_line(&self) -> String {
        let nodes = self
            .numa
            .iter()
            .map(|n| format!("node {}: CPUs {}, {}", n.id, n.cpus, bytes(&n.memory_bytes)));
        list(nodes, "one node")
    }

    fn disks_line(&self) -> String {
        let disks = self.disks.iter().map(|disk| {
            let kind = match disk.rotational {
                Some(true) => ", spinning",
                Some(false) => ", solid state",
                None => "",
            };
            let model = disk
                .model
                .as_deref()
                .map(|m| format!(", {m}"))
                .unwrap_or_default();
            format!("{} {}{kind}{model}", disk.name, bytes(&disk.bytes))
        });
        list(disks, "none")
    }

    fn iommu_line(&self) -> String {
        let devices: usize = self.iommu_groups.iter().map(|group| group.devices.len()).sum();
        match self.iommu_groups.len() {
            0 => "off: devices can't be handed to VMs".to_owned(),
            groups => format!("{}, {}", count(groups, "group"), count(devices, "device")),
        }
    }

    fn gpus_line(&self) -> String {
        list(
            self.gpus.iter().filter(|gpu| gpu.is_compute()).map(gpu_line),
            "none that compute",
        )
    }

    fn tpm_line(&self) -> String {
        match &self.tpm {
            None => "none".to_owned(),
            Some(tpm) => match &tpm.version {
                Probe::Known(version) => format!("{}, version {version}", tpm.name),
                Probe::Unknown(why) => format!("{}, version unknown ({why})", tpm.name),
            },
        }
    }

    fn kernel_line(&self) -> String {
        let place = self
            .hypervisor
            .as_ref()
            .map(|h| format!(", in a VM ({h})"))
            .unwrap_or_default();
        match &self.kernel.release {
            Probe::Known(release) => format!("Linux {release}{place}"),
            Probe::Unknown(why) => format!("unknown ({why}){place}"),
        }
    }
}

fn gpu_line(gpu: &Gpu) -> String {
    let name = match &gpu.name {
        Probe::Known(name) => name.clone(),
        Probe::Unknown(why) => format!(
            "{:04x}:{:04x}, name unknown ({why})",
            gpu.pci.vendor, gpu.pci.device
        ),
    };
    let memory = gpu
        .memory_bytes
        .known()
        .map(|b| format!(", {} GiB", b / GIB))
        .unwrap_or_default();
    let driver = gpu.pci.driver.as_deref().unwrap_or("no driver");
    format!("{} {name}{memory}, {driver}", gpu.pci.address)
}

fn readiness(readiness: &Readiness) -> String {
    match readiness {
        Readiness::Ready { warnings } if warnings.is_empty() => "ready".to_owned(),
        Readiness::Ready { warnings } => format!("ready; {}", warnings.join("; ")),
        Readiness::NotReady { missing } => {
            let found: Vec<&str> = missing.iter().map(|m| m.found.as_str()).collect();
            format!("not ready: {}", found.join("; "))
        }
        Readiness::NotThisMachine { why } => format!("not here: {why}"),
    }
}

fn bytes(value: &Probe<u64>) -> String {
    match value {
        Probe::Known(bytes) if *bytes < GIB => format!("{} MiB", bytes >> 20),
        Probe::Known(bytes) => format!("{} GiB", bytes / GIB),
        Probe::Unknown(why) => format!("of unknown size ({why})"),
    }
}

fn count(n: impl TryInto<u64>, what: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX); // only for a usize above 64 bits
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}

fn list(items: impl Iterator<Item = String>, none: &str) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() {
        none.to_owned()
    } else {
        items.join(" · ")
    }
}

fn wrap(label: &str, text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut line = format!("{label:LABEL_COLUMNS$}");
    let mut fresh = true;
    for word in text.split_whitespace() {
        if !fresh && line.chars().count() + 1 + word.chars().count() > width {
            out.push_str(&line);
            out.push('\n');
            line = " ".repeat(LABEL_COLUMNS);
            fresh = true;
        }
        if !fresh {
            line.push(' ');
        }
        line.push_str(word);
        fresh = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
    out
}
