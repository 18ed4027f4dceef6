//! The libvirt adapter against a real libvirtd and a real QEMU, in a network namespace of the test's own.
//! Needs root, libvirtd and QEMU; says what to install where they are missing.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hostd::vmm::libvirt::{Accel, AccelChoice, BUILT, Libvirt, LibvirtConfig};
use hostd::vmm::{
    Access, AgentChannel, Boot, Disk, Hugepages, Nic, Observed, Taps, VmSpec, Vmm, VmmError, VmmProcess,
};
use integration::libvirt_harness::{PrivateLibvirt, shared_cache};
use integration::tiny_guest;
use ledger::api::{ContractId, VmKind};

/// A place for VMs: a namespace where libvirtd runs, one where taps live, a folder. Gone with the value.
struct Stage {
    host: String,
    tenant: String,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new(name: &str) -> Self {
        if !BUILT {
            panic!("run with --features hostd/libvirt (libvirt-dev must be installed): `make test` does");
        }
        let (host, tenant) = (format!("vmmt-{name}-host"), format!("vmmt-{name}-tenant"));
        for netns in [&host, &tenant] {
            let _ = ip(&["netns", "del", netns]);
            ip(&["netns", "add", netns]).expect("namespaces need root and iproute2");
        }
        Self {
            host,
            tenant,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn spec(&self, number: u8) -> VmSpec {
        let path = |name: &str| self.dir.path().join(name);
        let run_dir = path(&format!("vm{number}"));
        fs::create_dir_all(&run_dir).unwrap();
        fs::write(path("kernel"), tiny_guest::kernel()).unwrap();
        for file in ["data.raw", "seed.img"] {
            fs::File::create(path(file)).unwrap().set_len(1 << 20).unwrap();
        }
        VmSpec {
            id: ContractId::from_slice(&[number; 32]).unwrap(),
            kind: VmKind::Plain,
            vcpus: 1,
            memory_mib: 128,
            hugepages: Hugepages::No,
            boot: Boot {
                firmware: None,
                kernel: path("kernel"),
                initrd: None,
                cmdline: "quiet a='b' <&>".into(),
            },
            disks: vec![
                Disk {
                    path: path("data.raw"),
                    access: Access::ReadWrite,
                    serial: "data".into(),
                },
                Disk {
                    path: path("seed.img"),
                    access: Access::ReadOnly,
                    serial: "cidata".into(),
                },
            ],
            nic: Nic {
                slot: 7,
                mac: "02:00:00:00:00:07".into(),
                ip4: Ipv4Addr::new(100, 64, 0, 7),
            },
            host_data: None,
            vfio: Vec::new(),
            run_dir,
            uid: 0,
        }
    }

    fn libvirt(&self) -> PrivateLibvirt {
        let cache = shared_cache().unwrap();
        PrivateLibvirt::start(&self.dir.path().join("libvirt"), Some(&cache), Some(&self.host)).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for netns in [&self.host, &self.tenant] {
            let _ = ip(&["netns", "del", netns]);
        }
    }
}

/// Taps as netns lends them: they live with the tenant, and are with libvirtd only while QEMU opens them.
#[async_trait]
impl Taps for Stage {
    async fn open(&self, _: u16) -> std::io::Result<std::os::fd::OwnedFd> {
        Err(std::io::Error::other("libvirt opens taps by name"))
    }
    async fn lend(&self, slot: u16) -> std::io::Result<String> {
        let tap = format!("vmmt{slot}");
        if ip(&["-n", &self.tenant, "link", "set", &tap, "netns", &self.host]).is_err() {
            ip(&[
                "-n", &self.host, "tuntap", "add", "dev", &tap, "mode", "tap", "vnet_hdr",
            ])?;
        }
        Ok(tap)
    }
    async fn take_back(&self, slot: u16) -> std::io::Result<()> {
        ip(&[
            "-n",
            &self.host,
            "link",
            "set",
            &format!("vmmt{slot}"),
            "netns",
            &self.tenant,
        ])
    }
}

fn ip(args: &[&str]) -> std::io::Result<()> {
    let output = Command::new("ip").args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(std::io::Error::other(
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

fn adapter(uri: &str, change: impl FnOnce(&mut LibvirtConfig)) -> Libvirt {
    let mut config = LibvirtConfig {
        uri: uri.to_owned(),
        accel: AccelChoice::Always(Accel::Tcg),
        ..Default::default()
    };
    change(&mut config);
    Libvirt::new(config)
}

async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{what} didn't happen in 20 s"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn runs(process: &VmmProcess) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", process.pid)).is_ok_and(|s| !s.contains(") Z "))
}

fn carrier(stage: &Stage) -> bool {
    let output = Command::new("ip")
        .args(["-n", &stage.tenant, "-o", "link", "show", "vmmt7"])
        .output()
        .unwrap();
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("NO-CARRIER")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_lives_through_the_death_of_libvirtd_and_ends_at_the_power_button() {
    let stage = Stage::new("life");
    let mut libvirt = stage.libvirt();
    let vmm = adapter(&libvirt.uri(), |_| ());
    let spec = stage.spec(0x11);

    let support = vmm.support().await;
    assert!(
        support.version.contains("TCG") && support.version.contains("QEMU"),
        "{}",
        support.version
    );
    assert_eq!(support.kinds[0], (VmKind::Plain, Ok(())));
    assert_eq!(vmm.observe(&spec, None).await, Observed::Absent);

    let begun = Instant::now();
    let process = vmm.launch(&spec, &stage).await.unwrap();
    println!("launched in {:?} as {process:?}", begun.elapsed());
    assert_eq!(vmm.observe(&spec, None).await, Observed::Running(process.clone()));
    assert_eq!(
        vmm.launch(&spec, &stage).await.unwrap(),
        process,
        "launching again changes nothing"
    );
    let console = vmm.console_log(&spec);
    wait_for("the guest's first word", || {
        fs::read_to_string(&console).is_ok_and(|text| text.contains(tiny_guest::HELLO.trim()))
    })
    .await;
    assert!(
        ip(&["-n", &stage.tenant, "link", "set", "vmmt7", "up"]).is_ok(),
        "the tap is back with its tenant"
    );
    wait_for("the tap's carrier", || carrier(&stage)).await;
    let AgentChannel::Serial(agent) = vmm.agent(&spec) else {
        panic!("QEMU has a serial port")
    };
    tokio::net::UnixStream::connect(&agent)
        .await
        .expect("the agent's port takes a connection");
    let counters = vmm.counters(&spec, &process).await.unwrap();
    assert!(
        counters.cpu_us > 0 && counters.rss_bytes > 1 << 20,
        "{counters:?}"
    );

    libvirt.kill_daemons();
    assert!(runs(&process));
    assert_eq!(
        vmm.observe(&spec, Some(&process)).await,
        Observed::Running(process.clone())
    );
    assert!(
        matches!(vmm.observe(&spec, None).await, Observed::Partial(_)),
        "not knowing isn't absence"
    );
    let error = vmm
        .stop(&spec, Some(&process), Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("libvirtd"),
        "{error}"
    );
    libvirt.restart().unwrap();
    let another = adapter(&libvirt.uri(), |_| ());
    assert_eq!(
        another.observe(&spec, None).await,
        Observed::Running(process.clone()),
        "adopted"
    );

    let begun = Instant::now();
    another
        .stop(&spec, Some(&process), Duration::from_secs(10))
        .await
        .unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "the guest heard the power button: {:?}",
        begun.elapsed()
    );
    println!("stopped in {:?}", begun.elapsed());
    assert!(!runs(&process) && !agent.exists());
    assert_eq!(another.observe(&spec, Some(&process)).await, Observed::Absent);
    another
        .stop(&spec, Some(&process), Duration::from_secs(1))
        .await
        .expect("stopping the absent succeeds");
    assert_eq!(libvirt.layout().guests(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_leaves_nothing_and_what_hangs_is_ended() {
    let stage = Stage::new("fail");
    let libvirt = stage.libvirt();
    let vmm = adapter(&libvirt.uri(), |_| ());

    let mut spec = stage.spec(0x22);
    spec.disks[0].path = stage.dir.path().join("missing.raw");
    let error = vmm.launch(&spec, &stage).await.unwrap_err();
    assert!(error.to_string().contains("missing.raw"), "{error}");
    assert_eq!(vmm.observe(&spec, None).await, Observed::Absent);

    let mut snp = stage.spec(0x22);
    (snp.kind, snp.host_data, snp.boot.firmware) =
        (VmKind::SevSnp, Some([0x22; 32]), Some(spec.boot.kernel.clone()));
    let error = vmm.launch(&snp, &stage).await.unwrap_err();
    assert!(
        matches!(error, VmmError::Unsupported { .. }),
        "no silent downgrade: {error}"
    );

    // An emulator that is really another program: fine to try things with, refused where money is.
    let wrapper = stage.dir.path().join("wrapper");
    fs::write(&wrapper, "#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n").unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let wrapped = |test_platform| {
        let emulator: PathBuf = wrapper.clone();
        adapter(&libvirt.uri(), move |c| {
            (c.emulator, c.test_platform) = (Some(emulator), test_platform)
        })
    };
    let spec = stage.spec(0x22);
    let error = wrapped(false).launch(&spec, &stage).await.unwrap_err();
    assert!(matches!(error, VmmError::ReadBack { .. }), "{error}");
    assert_eq!(
        vmm.observe(&spec, None).await,
        Observed::Absent,
        "the paused domain is gone"
    );

    let vmm = wrapped(true);
    let process = vmm.launch(&spec, &stage).await.unwrap();
    stop_process(&process, "STOP");
    let begun = Instant::now();
    vmm.stop(&spec, Some(&process), Duration::from_millis(300))
        .await
        .unwrap();
    println!("a QEMU that hangs was ended in {:?}", begun.elapsed());
    assert!(!runs(&process));
    assert_eq!(vmm.observe(&spec, Some(&process)).await, Observed::Absent);
}

fn stop_process(process: &VmmProcess, signal: &str) {
    let done = Command::new("kill")
        .args([&format!("-{signal}"), &process.pid.to_string()])
        .status()
        .unwrap();
    assert!(done.success());
}

#[tokio::test]
async fn a_libvirt_that_isnt_there_is_named_with_its_address() {
    let vmm = adapter("qemu+unix:///system?socket=/nonexistent/libvirt-sock", |_| ());
    let support = vmm.support().await;
    let why = support.kinds[0].1.clone().unwrap_err();
    assert!(
        why.contains("/nonexistent/libvirt-sock") && why.contains("libvirtd"),
        "{why}"
    );
    assert!(!Path::new("/nonexistent").exists());
}
