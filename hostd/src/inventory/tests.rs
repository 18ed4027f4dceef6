//! Machines as folders. The golden files show what each inventory says; a change in them is a change for operators.

use std::path::PathBuf;
use std::time::Duration;

use super::*;

/// A machine in a temporary folder.
pub(crate) struct Machine(tempfile::TempDir);

impl Machine {
    fn new(files: &[(&str, &str)]) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine.put(files);
        machine
    }

    pub(crate) fn put(&self, files: &[(&str, &str)]) -> &Self {
        for (path, text) in files {
            let path = self.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        }
        self
    }

    fn link(&self, from: &str, to: &str) -> &Self {
        let from = self.path(from);
        std::fs::create_dir_all(from.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, from).unwrap();
        self
    }

    fn remove(&self, path: &str) -> &Self {
        std::fs::remove_file(self.path(path)).unwrap();
        self
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn pci(&self, address: &str, ids: (&str, &str, &str), driver: Option<&str>, group: &str) -> &Self {
        let dir = format!("sys/bus/pci/devices/{address}");
        let file = |name: &str| format!("{dir}/{name}");
        self.put(&[
            (&file("vendor"), ids.0),
            (&file("device"), ids.1),
            (&file("class"), ids.2),
            (&file("numa_node"), "0"),
            (&file("reset"), ""),
        ]);
        self.link(
            &file("iommu_group"),
            &format!("../../../../kernel/iommu_groups/{group}"),
        );
        self.put(&[(&format!("sys/kernel/iommu_groups/{group}/devices/{address}"), "")]);
        if let Some(driver) = driver {
            self.link(&file("driver"), &format!("../../../bus/pci/drivers/{driver}"));
        }
        self
    }

    pub(crate) fn take(&self) -> Inventory {
        take(self.0.path())
    }
}

fn cpuinfo(
    vendor: &str,
    family_model: (u32, u32),
    name: &str,
    topology: (u32, u32, u32),
    flags: &str,
) -> String {
    let (sockets, cores, threads) = topology;
    let mut text = String::new();
    let mut processor = 0;
    for _thread in 0..threads {
        for socket in 0..sockets {
            for core in 0..cores {
                text += &format!(
                    "processor\t: {processor}\nvendor_id\t: {vendor}\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: {name}\n\
                     stepping\t: 1\nmicrocode\t: 0xa101148\nphysical id\t: {socket}\ncore id\t\t: {core}\nflags\t\t: fpu {flags}\n\
                     address sizes\t: 52 bits physical, 57 bits virtual\n\n",
                    family_model.0, family_model.1
                );
                processor += 1;
            }
        }
    }
    text
}

pub(crate) fn genoa() -> Machine {
    let cpu = cpuinfo(
        "AuthenticAMD",
        (0x19, 0x11),
        "AMD EPYC 9354 32-Core Processor",
        (2, 4, 2),
        "svm npt sme sev sev_es sev_snp aes",
    );
    let machine = Machine::new(&[
        ("proc/cpuinfo", &cpu),
        (
            "proc/meminfo",
            "MemTotal:       1056563200 kB\nMemFree: 1 kB\nMemAvailable:   1040000000 kB",
        ),
        ("proc/sys/kernel/osrelease", "6.12.48+deb13-amd64"),
        ("proc/cmdline", "root=/dev/nvme0n1p2 ro quiet"),
        ("dev/kvm", ""),
        ("dev/sev", ""),
        ("sys/module/kvm_amd/parameters/sev", "Y"),
        ("sys/module/kvm_amd/parameters/sev_es", "Y"),
        ("sys/module/kvm_amd/parameters/sev_snp", "Y"),
        ("sys/devices/system/node/node0/cpulist", "0-3,8-11"),
        (
            "sys/devices/system/node/node0/meminfo",
            "Node 0 MemTotal:       528281600 kB\nNode 0 MemFree: 5 kB",
        ),
        ("sys/devices/system/node/node1/cpulist", "4-7,12-15"),
        (
            "sys/devices/system/node/node1/meminfo",
            "Node 1 MemTotal:       528281600 kB",
        ),
        (
            "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages",
            "1024",
        ),
        (
            "sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages",
            "1000",
        ),
        (
            "sys/devices/system/node/node1/hugepages/hugepages-1048576kB/nr_hugepages",
            "16",
        ),
        (
            "sys/devices/system/node/node1/hugepages/hugepages-1048576kB/free_hugepages",
            "16",
        ),
        ("sys/block/nvme0n1/size", "7501476528"),
        ("sys/block/nvme0n1/queue/rotational", "0"),
        ("sys/block/nvme0n1/queue/discard_max_bytes", "2199023255040"),
        (
            "sys/block/nvme0n1/device/model",
            "SAMSUNG MZQL23T8HCLS-00A07              ",
        ),
        ("sys/block/sda/size", "nonsense"),
        ("sys/block/loop0/size", "8"),
        ("sys/class/tpm/tpm0/tpm_version_major", "2"),
    ]);
    machine.pci(
        "0000:c3:00.0",
        ("0x1a03", "0x2000", "0x030000"),
        Some("ast"),
        "31",
    );
    machine
}

pub(crate) fn tdx_host() -> Machine {
    let flags = "vmx ept tme sgx tdx_host_platform aes";
    Machine::new(&[
        (
            "proc/cpuinfo",
            &cpuinfo(
                "GenuineIntel",
                (6, 207),
                "INTEL(R) XEON(R) PLATINUM 8568Y+",
                (1, 2, 2),
                flags,
            ),
        ),
        (
            "proc/meminfo",
            "MemTotal:       131072000 kB\nMemAvailable:   130000000 kB",
        ),
        ("proc/sys/kernel/osrelease", "6.17.2"),
        ("proc/cmdline", "nohibernate kvm_intel.tdx=1"),
        ("dev/kvm", ""),
        ("sys/module/kvm_intel/parameters/tdx", "Y"),
        ("sys/class/tpm/tpm0/tpm_version_major", "2"),
    ])
}

/// The machines that these tests run on: a VM whose host hides SVM, with a `/dev/kvm` that can't run a guest (FACTS 1).
pub(crate) fn software_virtualized_vm() -> Machine {
    Machine::new(&[
        (
            "proc/cpuinfo",
            &cpuinfo(
                "AuthenticAMD",
                (25, 17),
                "AMD EPYC",
                (1, 2, 1),
                "hypervisor aes x2apic",
            ),
        ),
        (
            "proc/meminfo",
            "MemTotal:       24684084 kB\nMemAvailable:   24121216 kB",
        ),
        ("proc/sys/kernel/osrelease", "6.18.44"),
        ("proc/cmdline", "console=ttyS0 quiet"),
        ("dev/kvm", ""),
        ("sys/block/vda/size", "541065216"),
        ("sys/block/zram0/size", "0"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0"),
    ])
}

pub(crate) fn gpu_host() -> Machine {
    let machine = genoa();
    machine
        .pci(
            "0000:41:00.0",
            ("0x10de", "0x2335", "0x030200"),
            Some("nvidia"),
            "12",
        )
        .pci(
            "0000:61:00.0",
            ("0x10de", "0x2335", "0x030200"),
            Some("vfio-pci"),
            "13",
        )
        .pci("0000:62:00.0", ("0x15b3", "0x101e", "0x020000"), None, "13");
    machine
}

fn nvml_of_the_gpu_host() -> Result<Vec<NvmlGpu>, String> {
    Ok(vec![NvmlGpu {
        address: "0000:41:00.0".into(),
        name: Ok("NVIDIA H200".into()),
        memory_bytes: Ok(150_754_820_096),
        mode: Err("this driver is too old to tell".into()),
    }])
}

#[test]
fn every_known_machine_has_the_inventory_that_its_golden_file_shows() {
    insta::assert_json_snapshot!("genoa", genoa().take());
    insta::assert_json_snapshot!("tdx_host", tdx_host().take());
    insta::assert_json_snapshot!("software_virtualized_vm", software_virtualized_vm().take());
    insta::assert_json_snapshot!(
        "gpu_host_gpus",
        take_with(gpu_host().0.path(), nvml_of_the_gpu_host).gpus
    );
}

#[test]
fn every_known_machine_fits_a_short_page() {
    let pages = [
        genoa().take(),
        tdx_host().take(),
        software_virtualized_vm().take(),
        Machine::new(&[]).take(),
    ]
    .map(|inventory| inventory.page(100));
    insta::assert_snapshot!("pages", pages.join("\n"));
    insta::assert_snapshot!(
        "page_with_gpus",
        take_with(gpu_host().0.path(), nvml_of_the_gpu_host).page(80)
    );
}

#[test]
fn an_empty_folder_is_a_machine_of_which_nothing_is_known() {
    let inventory = Machine::new(&[]).take();
    assert!(
        matches!(inventory.memory.total_bytes, Probe::Unknown(_)),
        "not 0 bytes"
    );
    assert!(!inventory.kvm.is_ready() && !inventory.sev_snp.is_ready() && !inventory.tdx.is_ready());
}

#[test]
fn this_very_machine_is_taken_and_tells_its_memory() {
    let inventory = take(Path::new("/"));
    assert!(
        inventory
            .memory
            .total_bytes
            .known()
            .is_some_and(|bytes| *bytes > 1 << 28)
    );
    assert!(inventory.cpu.threads >= 1 && inventory.cpu.cores >= 1);
    let hardware = inventory.cpu.has("svm") || inventory.cpu.has("vmx");
    assert!(
        hardware || !inventory.kvm.is_ready(),
        "/dev/kvm alone proves nothing"
    );
}

fn ids(readiness: &Readiness) -> Vec<&str> {
    match readiness {
        Readiness::NotReady { missing } => missing.iter().map(|m| m.id.as_str()).collect(),
        _ => vec![],
    }
}

#[test]
fn each_thing_that_snp_needs_is_named_when_it_is_missing() {
    type Change = fn(&Machine);
    let table: &[(&str, Change, &[&str])] = &[
        ("all is well", |_| (), &[]),
        (
            "an old kernel",
            |m| {
                m.put(&[("proc/sys/kernel/osrelease", "6.1.0-40-amd64")]);
            },
            &["kernel"],
        ),
        (
            "passthrough",
            |m| {
                m.put(&[("proc/cmdline", "quiet iommu=pt")]);
            },
            &["iommu-passthrough"],
        ),
        (
            "no /dev/sev",
            |m| {
                m.remove("dev/sev");
            },
            &["device"],
        ),
        (
            "parameter off",
            |m| {
                m.put(&[("sys/module/kvm_amd/parameters/sev_snp", "N")]);
            },
            &["kvm-amd"],
        ),
        (
            "no IOMMU",
            |m| std::fs::remove_dir_all(m.path("sys/kernel/iommu_groups")).unwrap(),
            &["iommu"],
        ),
        (
            "switched off in the firmware",
            |m| {
                let cpu = cpuinfo(
                    "AuthenticAMD",
                    (0x19, 0x11),
                    "AMD EPYC 9354",
                    (1, 1, 1),
                    "svm sme sev",
                );
                m.put(&[("proc/cpuinfo", &cpu)])
                    .remove("sys/module/kvm_amd/parameters/sev_es");
            },
            &["firmware-asids", "firmware-snp", "kvm-amd"],
        ),
    ];
    for (row, change, want) in table {
        let machine = genoa();
        change(&machine);
        let found = machine.take().sev_snp;
        assert_eq!(ids(&found), *want, "{row}");
        assert_eq!(found.is_ready(), want.is_empty(), "{row}");
    }
    let milan = genoa();
    milan.put(&[(
        "proc/cpuinfo",
        &cpuinfo(
            "AuthenticAMD",
            (0x19, 1),
            "EPYC 7543",
            (1, 1, 1),
            "svm sme sev sev_es sev_snp",
        ),
    )]);
    let Readiness::Ready { warnings } = milan.take().sev_snp else {
        panic!("Milan can")
    };
    assert!(warnings[0].starts_with("Milan"));
}

#[test]
fn each_thing_that_tdx_needs_is_named_when_it_is_missing() {
    let without = |flags: &str| cpuinfo("GenuineIntel", (6, 207), "XEON", (1, 1, 1), flags);
    for (path, text, want) in [
        (
            "proc/cpuinfo",
            without("vmx sgx tdx_host_platform"),
            vec!["firmware-tme"],
        ),
        ("proc/cpuinfo", without("vmx sgx tme"), vec!["firmware-tdx"]),
        (
            "proc/cpuinfo",
            without("vmx tme tdx_host_platform"),
            vec!["firmware-sgx"],
        ),
        (
            "proc/sys/kernel/osrelease",
            "6.8.0-40-generic".into(),
            vec!["kernel"],
        ),
        (
            "sys/module/kvm_intel/parameters/tdx",
            "N".into(),
            vec!["kvm-intel"],
        ),
        ("sys/power/disk", "[platform] shutdown".into(), vec![]),
    ] {
        let machine = tdx_host();
        machine.put(&[(path, &text)]);
        assert_eq!(ids(&machine.take().tdx), want, "{path} = {text:.80}");
    }
    let machine = tdx_host();
    machine.put(&[
        ("sys/power/disk", "[platform] shutdown"),
        ("proc/cmdline", "quiet"),
    ]);
    assert_eq!(ids(&machine.take().tdx), ["hibernation"]);
}

#[test]
fn a_machine_of_another_make_has_nothing_to_repair() {
    assert!(matches!(genoa().take().tdx, Readiness::NotThisMachine { .. }));
    assert!(matches!(
        tdx_host().take().sev_snp,
        Readiness::NotThisMachine { .. }
    ));
    assert!(matches!(
        software_virtualized_vm().take().sev_snp,
        Readiness::NotThisMachine { .. }
    ));
}

#[test]
fn a_hanging_or_crashing_nvml_leaves_gpus_with_unknown_facts_instead_of_no_gpus() {
    let hang = || -> Result<(), String> {
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    };
    let began = std::time::Instant::now();
    assert!(
        gpu::in_time(hang, Duration::from_millis(50))
            .unwrap_err()
            .contains("no answer in 50ms")
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    let crash = || -> Result<(), String> { panic!("as a broken driver library would") };
    assert!(
        gpu::in_time(crash, Duration::from_secs(5))
            .unwrap_err()
            .contains("crashed")
    );
    let gpus = take_with(gpu_host().0.path(), || Err("NVML gave no answer in 8s".into())).gpus;
    assert_eq!(gpus.iter().filter(|g| g.is_compute()).count(), 2);
    assert_eq!(
        gpus[0].memory_bytes,
        Probe::Unknown("NVML gave no answer in 8s".into())
    );
}

#[test]
fn nvml_addresses_become_those_of_sysfs() {
    for (nvml, sysfs) in [
        ("00000000:41:00.0", "0000:41:00.0"),
        ("0000:C1:00.0", "0000:c1:00.0"),
        ("x", "x"),
    ] {
        assert_eq!(gpu::sysfs_address(nvml), sysfs);
    }
}

#[test]
fn how_it_was_started_is_read_from_the_firmware() {
    let variables = "sys/firmware/efi/efivars";
    let machine = genoa();
    let flag = |name: &str, value: &[u8]| {
        let path = machine.path(&format!(
            "{variables}/{name}-8be4df61-93ca-11d2-aa0d-00e098032b8c"
        ));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value).unwrap();
    };
    let boot = machine.take().boot;
    assert_eq!(
        boot.secure_boot,
        Probe::Unknown("the machine wasn't started by UEFI".into())
    );
    assert!(boot.image.is_none() && !boot.on_trial && boot.event_log_bytes.known().is_none());
    flag("SecureBoot", &[6, 0, 0, 0, 1]);
    flag("SetupMode", &[6, 0, 0, 0, 0]);
    machine.put(&[
        (
            "etc/os-release",
            "NAME=x\nIMAGE_ID=\"provider-os\"\nIMAGE_VERSION=7",
        ),
        (
            &format!("{variables}/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"),
            "x",
        ),
        ("sys/kernel/security/tpm0/binary_bios_measurements", "1234567"),
    ]);
    let boot = machine.take().boot;
    assert_eq!(
        (boot.secure_boot, boot.setup_mode),
        (Probe::Known(true), Probe::Known(false))
    );
    assert_eq!((boot.event_log_bytes, boot.on_trial), (Probe::Known(8), true));
    let image = boot.image.unwrap();
    assert_eq!(
        (image.id.as_str(), image.version.as_deref()),
        ("provider-os", Some("7"))
    );
    for odd in [&[6, 0, 0, 0][..], &[6, 0, 0, 0, 2], &[6, 0, 0, 0, 1, 1]] {
        flag("SecureBoot", odd);
        let boot = machine.take().boot;
        assert!(
            boot.secure_boot.known().is_none(),
            "{odd:?}: {:?}",
            boot.secure_boot
        );
    }
}
