//! Processors, memory, hugepages, NUMA nodes.

use std::collections::{BTreeMap, BTreeSet};

use attestation::snp::Product;
use serde::{Deserialize, Serialize};

use super::{Probe, Tree};

/// Flags of `/proc/cpuinfo` that say something about VMs.
const FLAGS: [&str; 20] = [
    "aes",
    "avx512f",
    "amx_tile",
    "ept",
    "hypervisor",
    "mktme",
    "npt",
    "pdpe1gb",
    "sev",
    "sev_es",
    "sev_snp",
    "sgx",
    "sme",
    "svm",
    "tdx_guest",
    "tdx_host_platform",
    "tme",
    "vmx",
    "x2apic",
    "vnmi",
];

/// The machine's processors, which are all of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// `AuthenticAMD`, `GenuineIntel`.
    pub vendor: String,
    /// Model name.
    pub name: String,
    /// CPUID family.
    pub family: u32,
    /// CPUID model.
    pub model: u32,
    /// CPUID stepping.
    pub stepping: u32,
    /// Microcode revision.
    pub microcode: Option<String>,
    /// Hardware threads that are online.
    pub threads: u32,
    /// Cores.
    pub cores: u32,
    /// Sockets.
    pub sockets: u32,
    /// Physical address bits: they bound BARs + RAM of a VM.
    pub physical_address_bits: Option<u32>,
    /// The flags that say something about VMs.
    pub flags: BTreeSet<String>,
}

impl Cpu {
    /// Whether it has a flag of `/proc/cpuinfo`.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }

    /// AMD's line of server processors, if it is one that SNP knows.
    pub fn epyc(&self) -> Option<Product> {
        let [family, model] = [self.family, self.model].map(|n| u8::try_from(n).ok());
        Product::from_cpuid(family?, model?).filter(|_| self.vendor == "AuthenticAMD")
    }
}

/// The machine's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All that the kernel manages, bytes.
    pub total_bytes: Probe<u64>,
    /// What could be given to new processes without swapping, bytes.
    pub available_bytes: Probe<u64>,
}

/// A pool of hugepages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hugepages {
    /// Size of one page, KiB.
    pub size_kib: u64,
    /// NUMA node; `None` where the kernel has no NUMA.
    pub node: Option<u32>,
    /// Pages in the pool.
    pub total: u64,
    /// Of them free.
    pub free: u64,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaNode {
    /// Its number.
    pub id: u32,
    /// Its CPUs, as the kernel writes lists: `0-31,64-95`.
    pub cpus: String,
    /// Its memory, bytes.
    pub memory_bytes: Probe<u64>,
}

pub(super) fn cpu(tree: &Tree<'_>) -> Cpu {
    let text = tree.text("proc/cpuinfo").unwrap_or_default();
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut threads, mut cores, mut sockets) = (0, BTreeSet::new(), BTreeSet::new());
    for block in text.split("\n\n") {
        let fields: BTreeMap<&str, &str> = block
            .lines()
            .filter_map(|l| l.split_once(':'))
            .map(|(k, v)| (k.trim(), v.trim()))
            .collect();
        if !fields.contains_key("processor") {
            continue;
        }
        threads += 1;
        let socket = fields.get("physical id").copied().unwrap_or("0");
        sockets.insert(socket);
        // Without a topology in the kernel each thread counts as a core.
        cores.insert((
            socket,
            fields
                .get("core id")
                .or(fields.get("processor"))
                .copied()
                .unwrap_or_default(),
        ));
        if first.is_empty() {
            first = fields;
        }
    }
    let text = |key: &str| first.get(key).copied().unwrap_or_default().to_owned();
    let number = |key: &str| first.get(key).and_then(|v| v.parse().ok()).unwrap_or_default();
    let all: BTreeSet<&str> = first
        .get("flags")
        .copied()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    Cpu {
        vendor: text("vendor_id"),
        name: text("model name"),
        family: number("cpu family"),
        model: number("model"),
        stepping: number("stepping"),
        microcode: first.get("microcode").map(|&m| m.to_owned()),
        threads,
        cores: u32::try_from(cores.len()).unwrap_or(u32::MAX),
        sockets: u32::try_from(sockets.len()).unwrap_or(u32::MAX),
        // "48 bits physical, 48 bits virtual"
        physical_address_bits: first
            .get("address sizes")
            .and_then(|v| v.split(' ').next()?.parse().ok()),
        flags: FLAGS
            .into_iter()
            .filter(|flag| all.contains(flag))
            .map(str::to_owned)
            .collect(),
    }
}

pub(super) fn memory(tree: &Tree<'_>) -> Memory {
    let text = tree.read("proc/meminfo");
    let field = |name: &str| match &text {
        Ok(text) => meminfo_bytes(text, name),
        Err(e) => Probe::Unknown(format!("/proc/meminfo: {e}")),
    };
    Memory {
        total_bytes: field("MemTotal:"),
        available_bytes: field("MemAvailable:"),
    }
}

/// A field of `/proc/meminfo`, or of a node's `meminfo`, whose lines begin with `Node N`.
fn meminfo_bytes(text: &str, name: &str) -> Probe<u64> {
    let value = text.lines().find_map(|line| {
        let (_, after) = line.split_once(name)?;
        after
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    });
    value.map_or_else(|| Probe::Unknown(format!("meminfo has no {name}")), Probe::Known)
}

pub(super) fn numa(tree: &Tree<'_>) -> Vec<NumaNode> {
    nodes(tree)
        .into_iter()
        .map(|id| {
            let dir = format!("sys/devices/system/node/node{id}");
            NumaNode {
                id,
                cpus: tree.text(&format!("{dir}/cpulist")).unwrap_or_default(),
                memory_bytes: match tree.read(&format!("{dir}/meminfo")) {
                    Ok(text) => meminfo_bytes(&text, "MemTotal:"),
                    Err(e) => Probe::Unknown(format!("/{dir}/meminfo: {e}")),
                },
            }
        })
        .collect()
}

fn nodes(tree: &Tree<'_>) -> Vec<u32> {
    let names = tree.list("sys/devices/system/node");
    names
        .iter()
        .filter_map(|name| name.strip_prefix("node")?.parse().ok())
        .collect()
}

pub(super) fn hugepages(tree: &Tree<'_>) -> Vec<Hugepages> {
    let nodes = nodes(tree);
    if nodes.is_empty() {
        return pools(tree, "sys/kernel/mm/hugepages", None);
    }
    nodes
        .into_iter()
        .flat_map(|node| {
            pools(
                tree,
                &format!("sys/devices/system/node/node{node}/hugepages"),
                Some(node),
            )
        })
        .collect()
}

fn pools(tree: &Tree<'_>, dir: &str, node: Option<u32>) -> Vec<Hugepages> {
    tree.list(dir)
        .into_iter()
        .filter_map(|name| {
            Some(Hugepages {
                size_kib: name
                    .strip_prefix("hugepages-")?
                    .strip_suffix("kB")?
                    .parse()
                    .ok()?,
                node,
                total: tree.number(&format!("{dir}/{name}/nr_hugepages"))?,
                free: tree.number(&format!("{dir}/{name}/free_hugepages"))?,
            })
        })
        .collect()
}
