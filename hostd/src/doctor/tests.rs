//! One healthy host, and every way in which it can be ill.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ledger::api::VmKind;

use super::facts::TOOLS;
use super::*;
use crate::inventory::tests::{genoa, gpu_host, software_virtualized_vm};
use crate::inventory::{Boot, Image, Probe, Readiness};
use crate::storage::{EncryptionSupport, Space};
use crate::vmm::VmmSupport;

const GIB: u64 = 1 << 30;
/// 2026-09-01.
const NOW: u64 = 1_788_220_800;

fn wants(kinds: &[VmKind]) -> Wants {
    Wants {
        kinds: kinds.iter().copied().collect(),
        gpus: false,
        encryption: false,
        hugepages: false,
        reserve_hugepages_mib: 0,
        test_platform: false,
    }
}

/// A Genoa host that offers plain and SEV-SNP VMs, with the daemon running.
fn healthy() -> Facts {
    let kinds = vec![
        (VmKind::Plain, Ok(())),
        (VmKind::SevSnp, Ok(())),
        (VmKind::Tdx, Err("needs QEMU".to_owned())),
    ];
    let mut inventory = genoa().take();
    inventory.disks.retain(|d| d.name != "sda");
    inventory.boot = Boot {
        secure_boot: Probe::Known(true),
        setup_mode: Probe::Known(false),
        event_log_bytes: Probe::Known(38_000),
        on_trial: false,
        image: Some(Image {
            id: "provider-os".into(),
            version: Some("7".into()),
        }),
        firmware: None,
    };
    Facts {
        wants: Wants {
            hugepages: true,
            reserve_hugepages_mib: 0,
            ..wants(&[VmKind::Plain, VmKind::SevSnp])
        },
        inventory,
        uid: 0,
        systemd: true,
        cgroup: Cgroup::V2(["cpu", "io", "memory", "pids"].map(str::to_owned).into()),
        tools: TOOLS
            .iter()
            .map(|t| ((*t).to_owned(), Some(PathBuf::from(format!("/usr/bin/{t}")))))
            .collect(),
        devices: Devices {
            tun: true,
            vhost_vsock: true,
            vhost_net: true,
            vfio: true,
        },
        encryption: EncryptionSupport::Luks2,
        storage: Probe::Known(Space {
            total_bytes: 3500 * GIB,
            available_bytes: 3000 * GIB,
            used_bytes: 100 * GIB,
        }),
        ip_forward: Probe::Known(1),
        clock_synchronized: Probe::Known(true),
        vmms: vec![(
            "cloud-hypervisor".into(),
            VmmSupport {
                version: "cloud-hypervisor v53.0".into(),
                kinds,
            },
        )],
        ledger: LedgerFact::Reachable {
            url: "https://ledger.example".into(),
            round_trip_ms: 40,
            name: "decent-cloud".into(),
            demo: false,
            test_roots: 0,
            skew_ms: Some(-12),
        },
        running: true,
        ingress: [443, 80]
            .map(|port| PortUse {
                port,
                listening: true,
            })
            .into(),
        reachable: vec![(443, Probe::Known(())), (80, Probe::Known(()))],
        dns: vec![
            DnsFact {
                name: "ledger.example".into(),
                want: None,
                found: Probe::Known(["198.51.100.7".parse().unwrap()].into()),
            },
            DnsFact {
                name: "hostd-doctor.provider.example".into(),
                want: Some("203.0.113.1".parse().unwrap()),
                found: Probe::Known(["203.0.113.1".parse().unwrap()].into()),
            },
        ],
        vulnerabilities: [("spectre_v2".to_owned(), "Mitigation: Retpolines".to_owned())].into(),
        leased_range_in_use: vec![],
        endorsements: [
            ("VCEK of Genoa", None),
            ("AMD's vcek CRL for Genoa", Some(NOW + 20 * 86_400)),
        ]
        .map(|(document, until)| EndorsementFact {
            document: document.into(),
            there: true,
            until,
        })
        .into(),
        now: NOW,
    }
}

/// The machine of a demo: everything simulated or emulated, and still in order.
fn demo() -> Facts {
    let kinds = vec![(VmKind::Plain, Ok(())), (VmKind::SevSnp, Ok(()))];
    Facts {
        wants: Wants {
            test_platform: true,
            ..wants(&[VmKind::Plain, VmKind::SevSnp])
        },
        inventory: software_virtualized_vm().take(),
        systemd: false,
        cgroup: Cgroup::V1,
        encryption: EncryptionSupport::Unavailable {
            reasons: vec!["the kernel has no device-mapper".into()],
        },
        vmms: vec![(
            "libvirt".into(),
            VmmSupport {
                version: "QEMU 7.2.22, libvirt 9.0.0, TCG".into(),
                kinds,
            },
        )],
        ledger: LedgerFact::Reachable {
            url: "http://203.0.113.2:8000".into(),
            round_trip_ms: 3,
            name: "demo".into(),
            demo: true,
            test_roots: 1,
            skew_ms: None,
        },
        ..healthy()
    }
}

fn find<'a>(report: &'a Report, id: &str) -> &'a Finding {
    report
        .walk()
        .into_iter()
        .map(|(_, f)| f)
        .find(|f| f.id == id)
        .unwrap_or_else(|| panic!("no finding {id}"))
}

#[test]
fn reports_read_as_their_golden_files_show() {
    insta::assert_snapshot!("healthy", examine(&healthy()).table(120));
    insta::assert_snapshot!("demo", examine(&demo()).table(100));
    let mut ill = healthy();
    ill.inventory = gpu_host().take();
    ill.wants.gpus = true;
    ill.inventory.sev_snp = software_virtualized_vm().take().sev_snp;
    ill.ledger = LedgerFact::Unreachable {
        url: "https://ledger.example".into(),
        why: "connection refused".into(),
    };
    ill.tools.insert("nft".into(), None);
    insta::assert_snapshot!("ill", examine(&ill).table(80));
    insta::assert_json_snapshot!("ill_json", examine(&ill).findings.last());
}

#[test]
fn a_healthy_host_exits_0_a_demo_1_and_a_broken_one_2() {
    assert_eq!(
        (examine(&healthy()).exit_code(), examine(&healthy()).worst()),
        (0, Severity::Ok)
    );
    assert_eq!(examine(&demo()).exit_code(), 1);
    let mut broken = healthy();
    broken.uid = 1000;
    assert_eq!(examine(&broken).exit_code(), 2);
}

#[test]
fn every_fault_is_found_under_its_id_with_something_to_do() {
    use Severity::{Fail, Info, Warn};
    type Change = fn(&mut Facts);
    let table: &[(&str, Severity, &str, Change)] = &[
        ("machine", Fail, "root", |f| f.uid = 1000),
        ("machine.kernel", Warn, "6.1", |f| {
            f.inventory.kernel.release = Probe::Known("5.15.0".into())
        }),
        ("machine.systemd", Warn, "systemd", |f| f.systemd = false),
        ("machine.cgroup", Warn, "unified", |f| f.cgroup = Cgroup::V1),
        ("machine.cgroup", Warn, "unified", |f| f.cgroup = Cgroup::None),
        ("machine.cgroup", Warn, "controllers", |f| {
            f.cgroup = Cgroup::V2(BTreeSet::from(["cpu".to_owned()]))
        }),
        ("machine.clock", Warn, "timesyncd", |f| {
            f.clock_synchronized = Probe::Known(false)
        }),
        ("machine.tpm", Info, "fTPM", |f| f.inventory.tpm = None),
        ("machine.secure-boot", Warn, "Secure Boot = Enabled", |f| {
            f.inventory.boot.secure_boot = Probe::Known(false)
        }),
        ("machine.secure-boot", Warn, "setup mode", |f| {
            f.inventory.boot.secure_boot = Probe::Known(false);
            f.inventory.boot.setup_mode = Probe::Known(true);
        }),
        ("machine.secure-boot", Info, "CSM Support", |f| {
            f.inventory.boot.image = None;
            f.inventory.boot.secure_boot = Probe::Unknown("no UEFI".into());
        }),
        ("machine.measured-boot", Warn, "SHA256 PCR Bank", |f| {
            f.inventory.boot.event_log_bytes = Probe::Known(0)
        }),
        ("machine.measured-boot", Info, "securityfs", |f| {
            f.inventory.boot.event_log_bytes = Probe::Unknown("gone".into())
        }),
        ("machine.microcode", Warn, "AGESA", |f| {
            drop(
                f.vulnerabilities
                    .insert("tsa".into(), "Vulnerable: no microcode".into()),
            )
        }),
        ("machine.update", Warn, "systemd-bless-boot", |f| {
            f.inventory.boot.on_trial = true
        }),
        ("network.dns.ledger.example", Fail, "resolv.conf", |f| {
            f.dns[0].found = Probe::Unknown("NXDOMAIN".into())
        }),
        (
            "network.dns.hostd-doctor.provider.example",
            Warn,
            "*.provider.example A 203.0.113.1",
            |f| f.dns[1].found = Probe::Known(["198.51.100.9".parse().unwrap()].into()),
        ),
        ("network.reachable", Warn, "firewall", |f| {
            f.reachable[0].1 = Probe::Unknown("203.0.113.1:443: timed out".into())
        }),
        ("kvm", Fail, "", |f| {
            f.inventory.kvm = software_virtualized_vm().take().kvm
        }),
        ("kvm.cpu-flag", Fail, "nested", |f| {
            f.inventory.kvm = software_virtualized_vm().take().kvm
        }),
        ("kvm.sev-snp", Fail, "offering", |f| {
            f.inventory.sev_snp = software_virtualized_vm().take().sev_snp
        }),
        ("kvm.sev-snp.device", Fail, "modprobe ccp", |f| {
            let machine = genoa();
            std::fs::remove_file(machine.path("dev/sev")).unwrap();
            f.inventory.sev_snp = machine.take().sev_snp;
        }),
        ("kvm.vhost", Info, "vhost_vsock", |f| {
            f.devices.vhost_vsock = false
        }),
        ("hugepages", Fail, "hugepagesz", |f| f.inventory.hugepages.clear()),
        ("hugepages", Warn, "vmm.reserve_hugepages_mib", |f| {
            f.wants.reserve_hugepages_mib = u32::MAX
        }),
        ("hugepages", Info, "nr_hugepages=0", |f| f.wants.hugepages = false),
        ("iommu", Fail, "VT-d", |f| {
            f.wants.gpus = true;
            f.inventory.iommu_groups.clear();
        }),
        ("iommu.gpus", Fail, "", |f| f.wants.gpus = true),
        ("vmm", Fail, "cloud-hypervisor v53", |f| f.vmms.clear()),
        ("vmm.kinds.tdx", Fail, "offering", |f| {
            f.wants.kinds.extend([VmKind::Tdx])
        }),
        ("storage", Fail, "storage.dir", |f| {
            f.storage = Probe::Unknown("no such folder".into())
        }),
        ("storage", Warn, "keep_free", |f| {
            f.storage = Probe::Known(Space {
                total_bytes: 100 * GIB,
                available_bytes: GIB,
                used_bytes: 0,
            });
        }),
        ("storage.encryption", Fail, "cryptsetup", |f| {
            f.wants.encryption = true;
            f.encryption = EncryptionSupport::Unavailable {
                reasons: vec!["no device-mapper".into()],
            };
        }),
        ("storage.disks", Warn, "smartctl", |f| {
            f.inventory.disks[0].bytes = Probe::Unknown("?".into())
        }),
        ("network", Fail, "nftables", |f| {
            drop(f.tools.insert("nft".into(), None))
        }),
        ("network", Fail, "modprobe tun", |f| f.devices.tun = false),
        ("network.ip-forward", Fail, "sysctl.d", |f| {
            f.ip_forward = Probe::Known(0)
        }),
        ("network.haproxy", Fail, "apt install haproxy", |f| {
            drop(f.tools.insert("haproxy".into(), None))
        }),
        ("network.ingress", Fail, "HAProxy should", |f| {
            f.ingress[0].listening = false
        }),
        ("network.ingress", Fail, "ss -ltnp", |f| f.running = false),
        ("network.leases", Warn, "ss -ltnp", |f| {
            f.leased_range_in_use = vec![20022]
        }),
        ("ledger", Fail, "root_key", |f| {
            f.ledger = LedgerFact::Unreachable {
                url: "https://x".into(),
                why: "refused".into(),
            };
        }),
        ("endorsements", Warn, "kdsintf.amd.com", |f| {
            f.endorsements[0].there = false
        }),
        ("endorsements", Warn, "mirrors named in [endorsements]", |f| {
            f.endorsements[1].until = Some(NOW + 3_600);
        }),
        ("ledger.clock", Fail, "set the clock", |f| skew(f, -300_000)),
        ("ledger.clock", Warn, "NTP", |f| skew(f, 6_000)),
    ];
    for (id, severity, fix, change) in table {
        let mut facts = healthy();
        change(&mut facts);
        let report = examine(&facts);
        let finding = find(&report, id);
        assert_eq!(finding.severity, *severity, "{id}: {finding:?}");
        let told = finding.fix.as_deref().unwrap_or_default();
        assert!(told.contains(fix), "{id}: {told}");
        let has_parts = finding
            .children
            .iter()
            .any(|c| c.severity == *severity && c.fix.is_some());
        assert!(!told.is_empty() || has_parts, "{id} says nothing to do");
    }
}

fn skew(facts: &mut Facts, ms: i64) {
    if let LedgerFact::Reachable { skew_ms, .. } = &mut facts.ledger {
        *skew_ms = Some(ms);
    }
}

#[test]
fn what_hangs_on_a_failed_check_is_skipped_and_not_a_second_fault() {
    let mut facts = healthy();
    facts.tools.insert("nft".into(), None);
    facts.tools.insert("haproxy".into(), None);
    let report = examine(&facts);
    assert_eq!(find(&report, "network").severity, Severity::Fail);
    assert_eq!(find(&report, "network.haproxy").severity, Severity::Skipped);
    assert!(
        find(&report, "network.haproxy")
            .finding
            .contains("since network failed")
    );
    assert_eq!(
        report
            .walk()
            .iter()
            .filter(|(_, f)| f.severity == Severity::Fail)
            .count(),
        1
    );
}

#[test]
fn what_is_not_offered_is_no_fault_and_what_is_simulated_says_so() {
    let mut facts = healthy();
    facts.wants = wants(&[VmKind::Plain]);
    facts.inventory.kvm = software_virtualized_vm().take().kvm;
    facts.inventory.sev_snp = Readiness::NotThisMachine {
        why: "an old CPU".into(),
    };
    let report = examine(&facts);
    assert_eq!(find(&report, "kvm").severity, Severity::Warn);
    assert_eq!(find(&report, "kvm.sev-snp").severity, Severity::Ok);
    let demo = examine(&demo());
    let snp = find(&demo, "kvm.sev-snp");
    assert!(
        snp.finding.contains("simulated") && snp.finding.contains("test root"),
        "{snp:?}"
    );
}

#[test]
fn every_id_is_there_once() {
    for facts in [healthy(), demo()] {
        let report = examine(&facts);
        let ids: Vec<&str> = report.walk().into_iter().map(|(_, f)| f.id.as_str()).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    }
}

#[test]
fn no_line_of_a_table_is_wider_than_asked_unless_one_word_is() {
    for width in [60, 80, 120] {
        for line in examine(&demo()).table(width).lines() {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
    }
}

#[test]
fn gathering_reads_a_made_up_tree_and_this_very_machine() {
    let tcp = "  sl  local_address rem_address   st\n\
               0: 0100007F:1F90 00000000:0000 0A 0\n   1: 00000000:01BB 00000000:0000 0A 0\n   2: 0100007F:0050 0100007F:1234 01 0\n";
    let machine = genoa();
    machine.put(&[
        ("proc/net/tcp", tcp),
        (
            "proc/net/tcp6",
            "header\n 0: 00000000000000000000000000000000:4E20 0:0 0A 0",
        ),
        ("proc/sys/net/ipv4/ip_forward", "1"),
        ("sys/fs/cgroup/cgroup.controllers", "cpu io memory pids"),
        ("usr/sbin/nft", ""),
        (
            "sys/devices/system/cpu/vulnerabilities/tsa",
            "Mitigation: Clear CPU buffers",
        ),
        ("opt/ch", ""),
        ("run/systemd/system/x", ""),
        ("dev/vhost-vsock", ""),
    ]);
    let inputs = |root: PathBuf| Inputs {
        wants: wants(&[VmKind::Plain]),
        tool_paths: BTreeMap::from([("cloud-hypervisor".to_owned(), root.join("opt/ch"))]),
        root,
        vmms: vec![],
        ledger: LedgerFact::NotAsked,
        storage: Probe::Unknown("not opened".into()),
        encryption: EncryptionSupport::Luks2,
        running: false,
        ingress_ports: vec![443, 80],
        lease_ports: 20000..=29999,
        public_ip4: "203.0.113.1".parse().unwrap(),
        dns_names: vec![("localhost".into(), Some("127.0.0.1".parse().unwrap()))],
        endorsements: vec![],
    };
    let facts = gather(inputs(machine.path("")));
    assert_eq!(
        facts.ingress,
        [
            PortUse {
                port: 443,
                listening: true
            },
            PortUse {
                port: 80,
                listening: false
            }
        ]
    );
    assert_eq!(facts.leased_range_in_use, [20000]);
    assert!(
        facts.dns[0]
            .found
            .known()
            .is_some_and(|found| found.contains(&"127.0.0.1".parse().unwrap()))
    );
    assert_eq!(facts.vulnerabilities["tsa"], "Mitigation: Clear CPU buffers");
    assert_eq!((facts.ip_forward, facts.systemd), (Probe::Known(1), true));
    assert!(
        facts.tools["nft"].is_some()
            && facts.tools["cloud-hypervisor"].is_some()
            && facts.tools["haproxy"].is_none()
    );
    assert!(facts.devices.vhost_vsock && !facts.devices.tun);
    let real = gather(inputs(PathBuf::from("/")));
    assert!(
        real.clock_synchronized.known().is_some(),
        "{:?}",
        real.clock_synchronized
    );
    examine(&real).table(80);
}
