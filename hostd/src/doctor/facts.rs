//! What `doctor` looks at, and the looking.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpStream, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ledger::api::VmKind;
use serde::{Deserialize, Serialize};

use super::clock;
use crate::inventory::{self, Inventory, Probe};
use crate::storage::{EncryptionSupport, Space};
use crate::vmm::VmmSupport;

/// What this host is configured to do: it decides what is a fault and what only a fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wants {
    /// Kinds of VM that the offering names.
    pub kinds: BTreeSet<VmKind>,
    /// Whether the offering sells GPUs.
    pub gpus: bool,
    /// Whether the offering promises encryption at rest.
    pub encryption: bool,
    /// Whether VMs get their memory from hugepages.
    pub hugepages: bool,
    /// MiB of hugepages that the config reserves.
    #[serde(default)]
    pub reserve_hugepages_mib: u32,
    /// Whether confidential kinds are simulated (tests and demos).
    pub test_platform: bool,
}

/// What only the caller can find out.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// `/`, or a made-up tree.
    pub root: PathBuf,
    /// From the configuration.
    pub wants: Wants,
    /// Configured paths of tools by name, where they aren't the usual ones.
    pub tool_paths: BTreeMap<String, PathBuf>,
    /// What each adapter says of itself.
    pub vmms: Vec<(String, VmmSupport)>,
    /// The ledger.
    pub ledger: LedgerFact,
    /// Room in `storage.dir`.
    pub storage: Probe<Space>,
    /// Whether disks can be encrypted.
    pub encryption: EncryptionSupport,
    /// Whether the daemon runs: then HAProxy should hold its ports, otherwise nobody.
    pub running: bool,
    /// HTTPS and HTTP ports of the ingress.
    pub ingress_ports: Vec<u16>,
    /// Public ports for leases.
    pub lease_ports: RangeInclusive<u16>,
    /// Public address of the ingress.
    pub public_ip4: Ipv4Addr,
    /// Names that must resolve, and what they must lead to where that is known.
    pub dns_names: Vec<(String, Option<Ipv4Addr>)>,
    /// The makers' documents that evidence of this machine needs.
    pub endorsements: Vec<EndorsementFact>,
}

/// A maker's document that evidence of this machine needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndorsementFact {
    /// Which, for people.
    pub document: String,
    /// Whether it is there, genuine and good now.
    pub there: bool,
    /// When it ends, Unix seconds, if it does.
    pub until: Option<u64>,
}

/// How a maker's document stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// There, and good for long enough.
    Current,
    /// It ends soon and should have been renewed: documents are two days before their end, every hour.
    Ending,
    /// Not there.
    Missing,
}

impl EndorsementFact {
    /// `now`: Unix seconds.
    pub fn standing(&self, now: u64) -> Standing {
        const RENEWED_S: u64 = 36 * 3600;
        match self.until {
            _ if !self.there => Standing::Missing,
            Some(until) if until < now.saturating_add(RENEWED_S) => Standing::Ending,
            _ => Standing::Current,
        }
    }
}

/// Everything that the checks look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// What the host is configured to do.
    pub wants: Wants,
    /// The machine.
    pub inventory: Inventory,
    /// Effective user id.
    pub uid: u32,
    /// Whether systemd is PID 1.
    pub systemd: bool,
    /// Control groups.
    pub cgroup: Cgroup,
    /// Where each tool lies, if it does.
    pub tools: BTreeMap<String, Option<PathBuf>>,
    /// Device nodes.
    pub devices: Devices,
    /// Whether disks can be encrypted.
    pub encryption: EncryptionSupport,
    /// Room for disks and images.
    pub storage: Probe<Space>,
    /// `net.ipv4.ip_forward`.
    pub ip_forward: Probe<u8>,
    /// Whether the clock is steered.
    pub clock_synchronized: Probe<bool>,
    /// What each adapter says of itself.
    pub vmms: Vec<(String, VmmSupport)>,
    /// The ledger.
    pub ledger: LedgerFact,
    /// Whether the daemon runs.
    pub running: bool,
    /// The ingress's ports, and whether somebody listens there.
    pub ingress: Vec<PortUse>,
    /// Ingress ports that this host reaches by its public address, or why it doesn't.
    pub reachable: Vec<(u16, Probe<()>)>,
    /// Names that must resolve.
    pub dns: Vec<DnsFact>,
    /// What the kernel says of the processors' known faults (`/sys/devices/system/cpu/vulnerabilities`).
    pub vulnerabilities: BTreeMap<String, String>,
    /// Ports of the lease range that some process of the host listens on.
    pub leased_range_in_use: Vec<u16>,
    /// The makers' documents that evidence of this machine needs.
    pub endorsements: Vec<EndorsementFact>,
    /// Now, Unix seconds.
    pub now: u64,
}

/// Versions of control groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cgroup {
    /// Version 2 at `/sys/fs/cgroup`, with these controllers.
    V2(BTreeSet<String>),
    /// Version 1 (version 2 may be mounted beside it, without controllers).
    V1,
    /// Not mounted.
    None,
}

/// Device nodes that VMs and networks need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    /// `/dev/net/tun`.
    pub tun: bool,
    /// `/dev/vhost-vsock`.
    pub vhost_vsock: bool,
    /// `/dev/vhost-net`.
    pub vhost_net: bool,
    /// `/dev/vfio/vfio`.
    pub vfio: bool,
}

/// A port and whether somebody listens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortUse {
    /// TCP port.
    pub port: u16,
    /// Whether some process listens.
    pub listening: bool,
}

/// A name and what this host's resolver answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsFact {
    /// The name.
    pub name: String,
    /// What it must lead to, where that is known.
    pub want: Option<Ipv4Addr>,
    /// What it leads to.
    pub found: Probe<BTreeSet<IpAddr>>,
}

/// How it stands with the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LedgerFact {
    /// No `[ledger]` was configured, or nobody asked.
    NotAsked,
    /// No verified answer.
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        why: String,
    },
    /// It answered, and the answer's certificate is that of the pinned key.
    Reachable {
        /// Where.
        url: String,
        /// How long it took, ms.
        round_trip_ms: u64,
        /// Name from its genesis.
        name: String,
        /// Whether it calls itself a demo.
        demo: bool,
        /// How many test roots it trusts.
        test_roots: usize,
        /// Our clock minus the ledger's, ms; `None` where its clock runs faster than real time.
        skew_ms: Option<i64>,
    },
}

/// Tools by what they are for. The names are those of Debian's binaries.
pub(super) const TOOLS: [&str; 7] = [
    "cloud-hypervisor",
    "cryptsetup",
    "haproxy",
    "libvirtd",
    "nft",
    "qemu-img",
    "qemu-system-x86_64",
];

const TOOL_DIRS: [&str; 6] = [
    "usr/local/sbin",
    "usr/local/bin",
    "usr/sbin",
    "usr/bin",
    "sbin",
    "bin",
];

/// Looks at everything, changes nothing. May block for some seconds (NVML, a slow disk).
pub fn gather(mut inputs: Inputs) -> Facts {
    let dns = std::mem::take(&mut inputs.dns_names);
    let root = &inputs.root;
    let exists = |path: &str| root.join(path).exists();
    let listening = listening_ports(root);
    Facts {
        inventory: inventory::take(root),
        uid: nix::unistd::geteuid().as_raw(),
        systemd: exists("run/systemd/system"),
        cgroup: cgroup(root),
        tools: TOOLS
            .iter()
            .map(|name| ((*name).to_owned(), tool(&inputs, name)))
            .collect(),
        devices: Devices {
            tun: exists("dev/net/tun"),
            vhost_vsock: exists("dev/vhost-vsock"),
            vhost_net: exists("dev/vhost-net"),
            vfio: exists("dev/vfio/vfio"),
        },
        ip_forward: read(root, "proc/sys/net/ipv4/ip_forward"),
        clock_synchronized: clock::synchronized(),
        ingress: inputs
            .ingress_ports
            .iter()
            .map(|&port| PortUse {
                port,
                listening: listening.contains(&port),
            })
            .collect(),
        leased_range_in_use: listening
            .iter()
            .copied()
            .filter(|port| inputs.lease_ports.contains(port))
            .collect(),
        reachable: if inputs.running {
            reachable(inputs.public_ip4, &inputs.ingress_ports)
        } else {
            Vec::new()
        },
        dns: dns.into_iter().map(resolve).collect(),
        vulnerabilities: vulnerabilities(root),
        wants: inputs.wants,
        encryption: inputs.encryption,
        storage: inputs.storage,
        vmms: inputs.vmms,
        ledger: inputs.ledger,
        running: inputs.running,
        endorsements: inputs.endorsements,
        now: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    }
}

fn tool(inputs: &Inputs, name: &str) -> Option<PathBuf> {
    match inputs.tool_paths.get(name) {
        Some(configured) => configured.exists().then(|| configured.clone()),
        None => TOOL_DIRS
            .iter()
            .map(|dir| inputs.root.join(dir).join(name))
            .find(|path| path.exists()),
    }
}

fn read<T: std::str::FromStr>(root: &Path, path: &str) -> Probe<T> {
    match fs::read_to_string(root.join(path)) {
        Ok(text) => text
            .trim()
            .parse()
            .map_or_else(|_| Probe::Unknown(format!("/{path}: {text:.40?}")), Probe::Known),
        Err(e) => Probe::Unknown(format!("/{path}: {e}")),
    }
}

/// The longest wait for one name or one connection.
const ANSWER: Duration = Duration::from_secs(3);

fn reachable(address: Ipv4Addr, ports: &[u16]) -> Vec<(u16, Probe<()>)> {
    let connect = |&port: &u16| {
        let answer = TcpStream::connect_timeout(&(address, port).into(), ANSWER);
        let probe = answer.map_or_else(
            |e| Probe::Unknown(format!("{address}:{port}: {e}")),
            |_| Probe::Known(()),
        );
        (port, probe)
    };
    ports.iter().map(connect).collect()
}

/// Asks the system's resolver, on a thread of its own: it has no time limit that we could set.
fn resolve((name, want): (String, Option<Ipv4Addr>)) -> DnsFact {
    let (send, receive) = std::sync::mpsc::channel();
    let asked = name.clone();
    std::thread::spawn(move || {
        send.send(
            (asked.as_str(), 0)
                .to_socket_addrs()
                .map(Iterator::collect::<Vec<_>>),
        )
    });
    let found = match receive.recv_timeout(ANSWER) {
        Ok(Ok(addresses)) => Probe::Known(addresses.into_iter().map(|address| address.ip()).collect()),
        Ok(Err(error)) => Probe::Unknown(error.to_string()),
        Err(_) => Probe::Unknown(format!("the resolver gave no answer in {ANSWER:?}")),
    };
    DnsFact { name, want, found }
}

fn vulnerabilities(root: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(root.join("sys/devices/system/cpu/vulnerabilities"));
    let files = entries.into_iter().flatten().flatten();
    files
        .filter_map(|file| {
            let text = fs::read_to_string(file.path()).ok()?;
            Some((file.file_name().into_string().ok()?, text.trim().to_owned()))
        })
        .collect()
}

fn cgroup(root: &Path) -> Cgroup {
    match fs::read_to_string(root.join("sys/fs/cgroup/cgroup.controllers")) {
        Ok(controllers) => Cgroup::V2(controllers.split_whitespace().map(str::to_owned).collect()),
        Err(_)
            if root.join("sys/fs/cgroup/memory").exists() || root.join("sys/fs/cgroup/unified").exists() =>
        {
            Cgroup::V1
        }
        Err(_) => Cgroup::None,
    }
}

/// TCP ports that anybody of this network namespace listens on (proc_net(5), state 0A).
pub(super) fn listening_ports(root: &Path) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for file in ["proc/net/tcp", "proc/net/tcp6"] {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next().unwrap_or_default(), fields.nth(1));
            let port = local
                .rsplit(':')
                .next()
                .and_then(|hex| u16::from_str_radix(hex, 16).ok());
            if state == Some("0A") {
                ports.extend(port);
            }
        }
    }
    ports
}
