//! The checks, as a tree. Each looks at the facts and says one sentence.

mod machine;
mod reach;

use std::collections::BTreeSet;

use ledger::api::VmKind;

use self::machine::{
    cgroup, clock, kernel, machine, measured_boot, microcode, secure_boot, systemd, tpm, update,
};
use self::reach::{dns, endorsements, reachable};
use super::facts::{Facts, LedgerFact};
use super::{Check, Outcome, Part, Severity};
use crate::inventory::{Missing, Probe, Readiness};
use crate::storage::EncryptionSupport;

/// Clocks further apart than this are close to where the ledger refuses signed requests (5 minutes).
const SKEW_FAIL_MS: i64 = 120_000;
const SKEW_WARN_MS: i64 = 5_000;
const GIB: u64 = 1 << 30;

const fn leaf(id: &'static str, run: fn(&Facts) -> Outcome) -> Check {
    Check {
        id,
        run,
        children: &[],
    }
}

/// In the order in which a machine is set up.
pub(super) const TREE: &[Check] = &[
    Check {
        id: "machine",
        run: machine,
        children: &[
            leaf("kernel", kernel),
            leaf("systemd", systemd),
            leaf("cgroup", cgroup),
            leaf("clock", clock),
            leaf("tpm", tpm),
            leaf("secure-boot", secure_boot),
            leaf("measured-boot", measured_boot),
            leaf("microcode", microcode),
            leaf("update", update),
        ],
    },
    Check {
        id: "kvm",
        run: kvm,
        children: &[
            leaf("sev-snp", |f| {
                confidential(f, VmKind::SevSnp, &f.inventory.sev_snp, "SEV-SNP")
            }),
            leaf("tdx", |f| confidential(f, VmKind::Tdx, &f.inventory.tdx, "TDX")),
            leaf("vhost", vhost),
        ],
    },
    Check {
        id: "hugepages",
        run: hugepages,
        children: &[],
    },
    Check {
        id: "iommu",
        run: iommu,
        children: &[leaf("gpus", gpus)],
    },
    Check {
        id: "vmm",
        run: vmm,
        children: &[leaf("kinds", kinds)],
    },
    Check {
        id: "storage",
        run: storage,
        children: &[leaf("encryption", encryption), leaf("disks", disks)],
    },
    Check {
        id: "network",
        run: network,
        children: &[
            leaf("ip-forward", ip_forward),
            leaf("haproxy", haproxy),
            leaf("ingress", ingress),
            leaf("leases", leases),
            leaf("dns", dns),
            leaf("reachable", reachable),
        ],
    },
    Check {
        id: "ledger",
        run: ledger,
        children: &[leaf("clock", ledger_clock), leaf("trust", ledger_trust)],
    },
    Check {
        id: "endorsements",
        run: endorsements,
        children: &[],
    },
];

fn outcome(severity: Severity, finding: impl Into<String>, evidence: impl Into<String>) -> Outcome {
    Outcome {
        severity,
        finding: finding.into(),
        evidence: evidence.into(),
        fix: None,
        parts: vec![],
    }
}

fn ok(finding: impl Into<String>) -> Outcome {
    outcome(Severity::Ok, finding, "")
}

impl Outcome {
    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    fn missing(mut self, severity: Severity, missing: &[Missing]) -> Self {
        self.parts.extend(missing.iter().map(|m| Part {
            id: m.id.clone(),
            severity,
            finding: m.found.clone(),
            fix: Some(m.fix.clone()),
        }));
        self
    }

    fn notes(mut self, warnings: &[String]) -> Self {
        self.parts
            .extend(warnings.iter().enumerate().map(|(n, warning)| Part {
                id: format!("note-{}", n + 1),
                severity: Severity::Info,
                finding: warning.clone(),
                fix: None,
            }));
        self
    }
}

fn wants_confidential(facts: &Facts) -> bool {
    !facts.wants.test_platform
        && (facts.wants.kinds.contains(&VmKind::SevSnp) || facts.wants.kinds.contains(&VmKind::Tdx))
}

fn kvm(facts: &Facts) -> Outcome {
    match &facts.inventory.kvm {
        Readiness::Ready { warnings } => {
            ok("hardware virtualization works as far as the machine tells").notes(warnings)
        }
        Readiness::NotReady { missing } => {
            let (severity, text) = if wants_confidential(facts) {
                (
                    Severity::Fail,
                    "no hardware virtualization, but confidential VMs are offered",
                )
            } else {
                (
                    Severity::Warn,
                    "no hardware virtualization: VMs run under emulation (TCG), slowly",
                )
            };
            outcome(severity, text, "").missing(severity, missing)
        }
        Readiness::NotThisMachine { why } => {
            outcome(Severity::Warn, "no hardware virtualization", why.clone())
        }
    }
}

fn confidential(facts: &Facts, kind: VmKind, readiness: &Readiness, name: &str) -> Outcome {
    let wanted = facts.wants.kinds.contains(&kind);
    let simulated = wanted && facts.wants.test_platform;
    match readiness {
        Readiness::Ready { warnings } => ok(format!("{name} is ready")).notes(warnings),
        _ if simulated => outcome(
            Severity::Info,
            format!("{name} is simulated: evidence is signed by a test root, and every output says so"),
            "offering.test_platform",
        ),
        Readiness::NotReady { missing } if wanted => {
            outcome(Severity::Fail, format!("{name} is offered but doesn't work"), "")
                .missing(Severity::Fail, missing)
        }
        Readiness::NotReady { missing } => outcome(
            Severity::Info,
            format!("{name} isn't ready (and isn't offered)"),
            "",
        )
        .missing(Severity::Info, missing),
        Readiness::NotThisMachine { why } if wanted => outcome(
            Severity::Fail,
            format!("{name} is offered, but this machine can't have it"),
            why.clone(),
        )
        .fix(format!(
            "take the kind out of the offering, or offer {name} on another host"
        )),
        Readiness::NotThisMachine { why } => ok(format!("{name} isn't for this machine: {why}")),
    }
}

fn vhost(facts: &Facts) -> Outcome {
    let devices = &facts.devices;
    let lacks: Vec<&str> = [
        (devices.vhost_vsock, "vhost_vsock"),
        (devices.vhost_net, "vhost_net"),
    ]
    .into_iter()
    .filter(|(has, _)| !has)
    .map(|(_, m)| m)
    .collect();
    if lacks.is_empty() {
        return ok("vhost-net and vhost-vsock are there");
    }
    outcome(
        Severity::Info,
        format!(
            "{} not loaded: only needed by VMs of QEMU that use it",
            lacks.join(" and ")
        ),
        "/dev/vhost-*",
    )
    .fix(format!("modprobe {}", lacks.join(" ")))
}

fn hugepages(facts: &Facts) -> Outcome {
    let pools = facts.inventory.hugepages.iter().filter(|p| p.size_kib == 2048);
    let (total, free) = pools.fold((0, 0), |(total, free), p| (total + p.total, free + p.free));
    match (facts.wants.hugepages, total) {
        (false, 0) => ok("VMs use ordinary pages"),
        (false, _) => outcome(Severity::Info, format!("{total} hugepages of 2 MiB are reserved, but VMs use ordinary pages"), "nr_hugepages")
            .fix("turn hugepages on for VMs, or give the memory back: sysctl vm.nr_hugepages=0"),
        (true, 0) => outcome(Severity::Fail, "VMs shall use hugepages, but none are reserved", "nr_hugepages = 0")
            .fix("reserve them at boot: vmm.reserve_hugepages_mib in hostd.toml, or hugepagesz=2M hugepages=N on the kernel's command line (N = MiB for VMs / 2)"),
        (true, _) if total * 2 < u64::from(facts.wants.reserve_hugepages_mib) => outcome(
            Severity::Warn,
            format!("only {} of {} MiB of hugepages could be reserved", total * 2, facts.wants.reserve_hugepages_mib),
            "nr_hugepages",
        )
        .fix("restart the machine, or lower vmm.reserve_hugepages_mib: memory was in pieces, or there is too little"),
        (true, _) => ok(format!("{free} of {total} hugepages of 2 MiB are free")),
    }
}

fn iommu(facts: &Facts) -> Outcome {
    let groups = facts.inventory.iommu_groups.len();
    if groups > 0 {
        return ok(format!("{groups} IOMMU groups"));
    }
    let wanted = facts.wants.gpus;
    let severity = if wanted { Severity::Fail } else { Severity::Info };
    outcome(severity, "no IOMMU: devices can't be handed to VMs", "/sys/kernel/iommu_groups is empty")
        .fix("enable it in the firmware (AMD: IOMMU = Enabled; Intel: VT-d = Enabled; other kernels than Debian's may need intel_iommu=on)")
}

fn gpus(facts: &Facts) -> Outcome {
    let gpus: Vec<_> = facts.inventory.gpus.iter().filter(|g| g.is_compute()).collect();
    if gpus.is_empty() {
        if !facts.wants.gpus {
            return ok("no compute GPUs");
        }
        return outcome(
            Severity::Fail,
            "GPUs are offered, but there are none",
            "/sys/bus/pci/devices, class 03",
        )
        .fix("take them out of the offering, or look whether lspci shows the cards at all");
    }
    let mut parts = Vec::new();
    for gpu in &gpus {
        let address = &gpu.pci.address;
        let part = |severity, finding, fix: &str| Part {
            id: address.clone(),
            severity,
            finding,
            fix: Some(fix.into()),
        };
        if let Some(obstacle) = &gpu.obstacle {
            let severity = if facts.wants.gpus {
                Severity::Fail
            } else {
                Severity::Warn
            };
            parts.push(part(
                severity,
                format!("isn't offered: {obstacle}"),
                "see what keeps it here with `hostd device list`",
            ));
        } else if let Some(driver) = gpu.pci.driver.as_deref().filter(|driver| *driver != "vfio-pci") {
            parts.push(part(
                if facts.wants.gpus { Severity::Warn } else { Severity::Info },
                format!("{driver} has it until a contract takes it"),
                "end what uses it on the host, or keep the driver out: modprobe.blacklist= on the kernel's command line",
            ));
        }
    }
    let worst = parts.iter().map(|p| p.severity).max().unwrap_or(Severity::Ok);
    let all = if parts.is_empty() {
        "each can be handed to a VM"
    } else {
        "not all can be handed to a VM"
    };
    Outcome {
        parts,
        ..outcome(worst, format!("{} compute GPUs, {all}", gpus.len()), "")
    }
}

fn has(facts: &Facts, tool: &str) -> bool {
    facts.tools.get(tool).is_some_and(Option::is_some)
}

fn vmm(facts: &Facts) -> Outcome {
    let usable = |(name, support): &(String, crate::vmm::VmmSupport)| {
        support
            .kinds
            .iter()
            .any(|(_, verdict)| verdict.is_ok())
            .then(|| format!("{name} ({})", support.version))
    };
    let found: Vec<String> = facts.vmms.iter().filter_map(usable).collect();
    if !found.is_empty() {
        return ok(format!("VMs run by {}", found.join(", ")));
    }
    let there: Vec<&str> = ["cloud-hypervisor", "qemu-system-x86_64", "libvirtd"]
        .into_iter()
        .filter(|tool| has(facts, tool))
        .collect();
    // Adapters tend to give the same reason for every kind.
    let reasons: BTreeSet<String> = facts
        .vmms
        .iter()
        .flat_map(|(name, s)| {
            s.kinds
                .iter()
                .filter_map(move |(_, v)| v.as_ref().err().map(|why| format!("{name}: {why}")))
        })
        .collect();
    let evidence = format!(
        "installed: {}; {}",
        if there.is_empty() {
            "none".into()
        } else {
            there.join(", ")
        },
        Vec::from_iter(reasons).join("; ")
    );
    outcome(Severity::Fail, "no adapter can run a VM here", evidence).fix(
        "with hardware virtualization: put cloud-hypervisor v53 or newer at [vmm.cloud_hypervisor] binary; without: install \
         qemu-system-x86 and libvirt-daemon-system, and start libvirtd",
    )
}

fn kinds(facts: &Facts) -> Outcome {
    let mut parts = Vec::new();
    for &kind in &facts.wants.kinds {
        let verdicts: Vec<_> = facts
            .vmms
            .iter()
            .flat_map(|(n, s)| {
                s.kinds
                    .iter()
                    .filter(|(k, _)| *k == kind)
                    .map(move |(_, v)| (n, v))
            })
            .collect();
        if !verdicts.iter().any(|(_, v)| v.is_ok()) {
            let why: Vec<String> = verdicts
                .iter()
                .filter_map(|(n, v)| v.as_ref().err().map(|e| format!("{n}: {e}")))
                .collect();
            parts.push(Part {
                id: format!("{kind:?}").to_lowercase(),
                severity: Severity::Fail,
                finding: format!(
                    "{kind:?} is offered, but no adapter can run it: {}",
                    why.join("; ")
                ),
                fix: Some("take the kind out of the offering, or repair what the reason names".into()),
            });
        }
    }
    let severity = if parts.is_empty() {
        Severity::Ok
    } else {
        Severity::Fail
    };
    let names: Vec<String> = facts.wants.kinds.iter().map(|k| format!("{k:?}")).collect();
    Outcome {
        parts,
        ..outcome(severity, format!("offered kinds: {}", names.join(", ")), "")
    }
}

fn storage(facts: &Facts) -> Outcome {
    match &facts.storage {
        Probe::Unknown(why) => outcome(Severity::Fail, "the storage folder can't be used", why.clone())
            .fix("look at storage.dir in hostd.toml: it must be a folder of root's on ext4, XFS or btrfs"),
        Probe::Known(space) if space.available_bytes < 10 * GIB => {
            let evidence = format!(
                "{} MiB of {} GiB",
                space.available_bytes >> 20,
                space.total_bytes / GIB
            );
            outcome(
                Severity::Warn,
                "little room is left for disks and images",
                evidence,
            )
            .fix("add storage, or lower storage.keep_free_bytes")
        }
        Probe::Known(space) => ok(format!(
            "{} GiB available of {} GiB, disks hold {} GiB",
            space.available_bytes / GIB,
            space.total_bytes / GIB,
            space.used_bytes / GIB
        )),
    }
}

fn encryption(facts: &Facts) -> Outcome {
    match &facts.encryption {
        EncryptionSupport::Luks2 => ok("disks can be encrypted (LUKS2)"),
        EncryptionSupport::Unavailable { reasons } => {
            let wanted = facts.wants.encryption;
            let severity = if wanted { Severity::Fail } else { Severity::Info };
            let text = if wanted {
                "encryption at rest is offered but doesn't work"
            } else {
                "disks can't be encrypted; contracts that ask for it are refused"
            };
            outcome(severity, text, reasons.join("; "))
                .fix("apt install cryptsetup-bin; modprobe dm_mod dm_crypt")
        }
    }
}

fn disks(facts: &Facts) -> Outcome {
    let disks = &facts.inventory.disks;
    let spinning: Vec<&str> = disks
        .iter()
        .filter(|d| d.rotational == Some(true))
        .map(|d| d.name.as_str())
        .collect();
    let unknown: Vec<&str> = disks
        .iter()
        .filter(|d| d.bytes.known().is_none())
        .map(|d| d.name.as_str())
        .collect();
    if !unknown.is_empty() {
        return outcome(
            Severity::Warn,
            format!("disks that don't tell their size: {}", unknown.join(", ")),
            "/sys/block",
        )
        .fix("look at dmesg and smartctl -a for these disks");
    }
    if !spinning.is_empty() {
        return outcome(
            Severity::Info,
            format!("spinning disks: {}", spinning.join(", ")),
            "/sys/block/*/queue/rotational",
        );
    }
    ok(format!("{} disks", disks.len()))
}

fn network(facts: &Facts) -> Outcome {
    let mut lacks = Vec::new();
    if !has(facts, "nft") {
        lacks.push(("nft isn't installed", "apt install nftables"));
    }
    if !facts.devices.tun {
        lacks.push(("/dev/net/tun is missing", "modprobe tun"));
    }
    if lacks.is_empty() {
        return ok("nftables and taps are there");
    }
    let (found, fixes): (Vec<&str>, Vec<&str>) = lacks.into_iter().unzip();
    outcome(Severity::Fail, "tenant networks can't be made", found.join("; ")).fix(fixes.join("; "))
}

fn ip_forward(facts: &Facts) -> Outcome {
    match (&facts.ip_forward, facts.running) {
        (Probe::Known(1), _) => ok("IPv4 forwarding is on"),
        (Probe::Known(_), false) => outcome(
            Severity::Info,
            "IPv4 forwarding is off; hostd turns it on when it starts",
            "net.ipv4.ip_forward = 0",
        ),
        (Probe::Known(_), true) => outcome(
            Severity::Fail,
            "IPv4 forwarding is off although hostd runs: no VM reaches the network",
            "net.ipv4.ip_forward = 0",
        )
        .fix("find what turned it off (/etc/sysctl.d), then restart hostd"),
        (Probe::Unknown(why), _) => outcome(
            Severity::Warn,
            "whether IPv4 is forwarded is unknown",
            why.clone(),
        ),
    }
}

fn haproxy(facts: &Facts) -> Outcome {
    if has(facts, "haproxy") {
        return ok("HAProxy is there");
    }
    outcome(
        Severity::Fail,
        "HAProxy is missing: names can't be routed to VMs",
        "not in the usual folders",
    )
    .fix("apt install haproxy, or set [network.haproxy] binary")
}

fn ingress(facts: &Facts) -> Outcome {
    let listed = |want: bool| -> Vec<String> {
        facts
            .ingress
            .iter()
            .filter(|p| p.listening == want)
            .map(|p| p.port.to_string())
            .collect()
    };
    match facts.running {
        true if !listed(false).is_empty() => outcome(
            Severity::Fail,
            format!("nobody listens on port {}", listed(false).join(", ")),
            "/proc/net/tcp",
        )
        .fix("hostd runs, so HAProxy should: look into hostd's log for what it says of HAProxy"),
        false if !listed(true).is_empty() => outcome(
            Severity::Fail,
            format!("port {} is taken before hostd runs", listed(true).join(", ")),
            "/proc/net/tcp",
        )
        .fix("ss -ltnp shows by whom; the ingress needs these ports for itself"),
        _ => ok("the ingress ports are as they should be"),
    }
}

fn leases(facts: &Facts) -> Outcome {
    if facts.leased_range_in_use.is_empty() {
        return ok("the lease ports are free");
    }
    let ports: Vec<String> = facts.leased_range_in_use.iter().map(u16::to_string).collect();
    outcome(
        Severity::Warn,
        format!(
            "processes of this host listen on lease ports: {}",
            ports.join(", ")
        ),
        "/proc/net/tcp",
    )
    .fix("ss -ltnp shows which; move them, or change [network] lease_ports: forwarded packets would win")
}

fn ledger(facts: &Facts) -> Outcome {
    match &facts.ledger {
        LedgerFact::NotAsked => outcome(Severity::Info, "the ledger wasn't asked", ""),
        LedgerFact::Unreachable { url, why } => {
            outcome(Severity::Fail, "the ledger gives no verified answer; VMs run on, but nothing new is accepted", format!("{url}: {why}"))
                .fix("curl the URL's /api/v2/status; a certificate error means that [ledger] root_key isn't this ledger's")
        }
        LedgerFact::Reachable { url, round_trip_ms, name, .. } => ok(format!("{name} at {url} answers in {round_trip_ms} ms")),
    }
}

fn ledger_clock(facts: &Facts) -> Outcome {
    let LedgerFact::Reachable { skew_ms, .. } = &facts.ledger else {
        return ok("not asked");
    };
    match skew_ms {
        None => outcome(
            Severity::Info,
            "the ledger's clock runs faster than real time",
            "a demo's",
        ),
        Some(ms) if ms.saturating_abs() >= SKEW_FAIL_MS => outcome(
            Severity::Fail,
            "our clock is so far from the ledger's that it will refuse our requests",
            format!("{ms} ms"),
        )
        .fix("set the clock (systemd-timesyncd, chrony)"),
        Some(ms) if ms.saturating_abs() >= SKEW_WARN_MS => outcome(
            Severity::Warn,
            "our clock differs from the ledger's",
            format!("{ms} ms"),
        )
        .fix("look at the clock's NTP client"),
        Some(_) => ok("our clock agrees with the ledger's"),
    }
}

fn ledger_trust(facts: &Facts) -> Outcome {
    match &facts.ledger {
        LedgerFact::Reachable { demo, test_roots, .. } if *demo || *test_roots > 0 => outcome(
            Severity::Info,
            "this ledger is a demo: its money is play money, and evidence may be signed by test roots",
            format!("demo: {demo}, test roots: {test_roots}"),
        ),
        _ => ok("the ledger trusts only the vendors' roots"),
    }
}
