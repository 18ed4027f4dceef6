//! The Cloud Hypervisor adapter against the fake server, and against the real one where there is one: named by
//! `HOSTD_CLOUD_HYPERVISOR`, or `cloud-hypervisor` on the `PATH`. Where there is none, the tests that need it say loudly
//! that they were skipped.
//!
//! `HOSTD_CH_IMAGE` names a tenant image (`make tenant-image`) for the guest. On a machine whose CPU can't run guests (FACTS 1)
//! the real one is tested at the level of its API: it accepts the VM, shows it as running, and no guest ever says a
//! word. Where the CPU can (also inside QEMU that emulates SVM: `-accel tcg -cpu max`, `modprobe kvm_amd`), the guest's
//! agent must answer over vsock and the guest must hear the power button.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use attestation::agent::{Deframer, Request, RequestBody, Response, ResponseBody, frame};
use hostd::vmm::cloud_hypervisor::{CloudHypervisor, CloudHypervisorConfig};
use hostd::vmm::{
    Access, AgentChannel, Boot, Disk, Hugepages, Nic, Observed, Taps, VmSpec, Vmm, VmmError, VmmProcess,
    machine,
};
use ledger::api::{ContractId, VmKind};

const FAKE: &str = env!("CARGO_BIN_EXE_fake-cloud-hypervisor");

struct Stage {
    dir: tempfile::TempDir,
    /// Where taps are made; without it the fake is content with any open file.
    tap: Option<String>,
}

impl Stage {
    fn new() -> Self {
        Self {
            dir: tempfile::Builder::new().prefix("vmmch").tempdir().unwrap(),
            tap: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A contract of this stage alone: cgroups are named after it, and tests run at the same time.
    fn id(&self, number: u8) -> ContractId {
        let name = self
            .dir
            .path()
            .file_name()
            .unwrap()
            .as_encoded_bytes()
            .iter()
            .rev();
        let mut id = [number; 32];
        id.iter_mut().skip(1).zip(name).for_each(|(to, from)| *to = *from);
        ContractId::from_slice(&id).unwrap()
    }

    fn spec(&self, number: u8, cmdline: &str) -> VmSpec {
        let run_dir = self.path(&format!("vm{number}"));
        fs::create_dir_all(&run_dir).unwrap();
        fs::write(self.path("kernel"), b"not a kernel").unwrap();
        let (data, seed) = (
            self.path(&format!("data{number}")),
            self.path(&format!("seed{number}")),
        );
        for file in [&data, &seed] {
            File::create(file).unwrap().set_len(1 << 20).unwrap();
        }
        VmSpec {
            id: self.id(number),
            kind: VmKind::Plain,
            vcpus: 1,
            memory_mib: 256,
            hugepages: Hugepages::No,
            boot: Boot {
                firmware: None,
                kernel: self.path("kernel"),
                initrd: None,
                cmdline: cmdline.to_owned(),
            },
            disks: vec![
                Disk {
                    path: data,
                    access: Access::ReadWrite,
                    serial: "data".into(),
                },
                Disk {
                    path: seed,
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

    fn confidential(&self, number: u8, cmdline: &str) -> VmSpec {
        let mut spec = self.spec(number, cmdline);
        (spec.kind, spec.host_data) = (VmKind::SevSnp, Some(spec.id.0));
        spec.boot.firmware = Some(spec.boot.kernel.clone());
        spec
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(tap) = &self.tap {
            let _ = Command::new("ip").args(["link", "del", tap]).output();
        }
    }
}

#[async_trait]
impl Taps for Stage {
    async fn open(&self, _: u16) -> std::io::Result<OwnedFd> {
        match &self.tap {
            None => Ok(File::open("/dev/null")?.into()),
            Some(tap) => Ok(open_tap(tap)?.into()),
        }
    }
    async fn lend(&self, _: u16) -> std::io::Result<String> {
        Err(std::io::Error::other("Cloud Hypervisor takes an open tap"))
    }
    async fn take_back(&self, _: u16) -> std::io::Result<()> {
        Ok(())
    }
}

mod raw {
    nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);
}

#[expect(unsafe_code, reason = "a tap is made by ioctl only")]
fn open_tap(name: &str) -> std::io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is a plain C struct, for which all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: the descriptor is open and the request lives through the call.
    unsafe { raw::tun_set_iff(file.as_raw_fd(), &raw const request) }?;
    Ok(file)
}

fn fake() -> CloudHypervisor {
    CloudHypervisor::new(CloudHypervisorConfig {
        binary: FAKE.into(),
        assume_kvm: true,
        boot_base: Duration::from_secs(2),
    })
}

fn runs(process: &VmmProcess) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", process.pid)).is_ok_and(|s| !s.contains(") Z "))
}

/// Nothing of a VM is left: process, sockets.
fn assert_gone(spec: &VmSpec) {
    let socket = format!("path={}", spec.run_dir.join("api.sock").display());
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&line).contains(&socket),
            "{} still runs",
            entry.path().display()
        );
    }
    for name in ["api.sock", "api.sock.lock", "agent.sock"] {
        assert!(!spec.run_dir.join(name).exists(), "{name} is left");
    }
    let unit = format!("dc-vm-{}", hex::encode(&spec.id.0[..8]));
    for root in ["", "cpu", "memory", "pids"] {
        let cgroup = PathBuf::from("/sys/fs/cgroup")
            .join(root)
            .join("decent-cloud")
            .join(&unit);
        assert!(!cgroup.exists(), "{} is left", cgroup.display());
    }
}

/// Asks the guest agent, as hostd does.
fn ask(channel: &AgentChannel, body: RequestBody) -> ResponseBody {
    try_ask(channel, body).expect("the agent answers")
}

fn try_ask(channel: &AgentChannel, body: RequestBody) -> Option<ResponseBody> {
    let AgentChannel::Vsock { socket, port } = channel else {
        panic!("Cloud Hypervisor has vsock")
    };
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    writeln!(stream, "CONNECT {port}").ok()?;
    let mut frames = Deframer::new();
    let mut chunk = [0; 1024];
    let read = stream.read(&mut chunk).ok()?;
    if !chunk[..read].starts_with(b"OK ") {
        return None;
    }
    stream
        .write_all(&frame(&Request { id: 9, body }.to_cbor()))
        .ok()?;
    loop {
        let read = stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        frames.push(&chunk[..read]);
        if let Some(content) = frames.next_frame() {
            let response = Response::from_cbor(&content.ok()?).ok()?;
            assert_eq!(response.id, 9);
            return Some(response.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_launched_found_again_resized_and_stopped() {
    let stage = Stage::new();
    let vmm = fake();
    let spec = stage.spec(1, "console=hvc0");
    assert!(vmm.support().await.version.contains("v53.0"));
    assert_eq!(vmm.observe(&spec, None).await, Observed::Absent);

    let process = vmm.launch(&spec, &stage).await.unwrap();
    assert_eq!(
        vmm.launch(&spec, &stage).await.unwrap(),
        process,
        "launching again changes nothing"
    );
    let another = fake();
    assert_eq!(
        another.observe(&spec, None).await,
        Observed::Running(process.clone()),
        "found without a journal"
    );
    assert_eq!(
        another.observe(&spec, Some(&process)).await,
        Observed::Running(process.clone())
    );
    assert_eq!(
        fs::read_to_string(vmm.console_log(&spec)).unwrap(),
        "fake guest is up\n"
    );
    let counters = vmm.counters(&spec, &process).await.unwrap();
    assert_eq!(
        (counters.disk_read_bytes, counters.disk_written_bytes),
        (8192, 1024)
    );
    assert!(counters.rss_bytes > 0);
    assert!(matches!(
        ask(&vmm.agent(&spec), RequestBody::Hello),
        ResponseBody::Hello { .. }
    ));

    vmm.resize(&spec, Some(2), Some(512)).await.unwrap();
    for (vcpus, memory) in [
        (Some(3), None),
        (Some(0), None),
        (None, Some(513)),
        (None, Some(128)),
    ] {
        let error = vmm.resize(&spec, vcpus, memory).await.unwrap_err();
        assert!(
            matches!(error, VmmError::Unsupported { .. }),
            "{vcpus:?} {memory:?}: {error}"
        );
    }

    let begun = Instant::now();
    vmm.stop(&spec, Some(&process), Duration::from_secs(5))
        .await
        .unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "the power button worked: {:?}",
        begun.elapsed()
    );
    assert_gone(&spec);
    assert_eq!(vmm.observe(&spec, Some(&process)).await, Observed::Absent);
    vmm.stop(&spec, Some(&process), Duration::from_secs(5))
        .await
        .expect("stopping the absent succeeds");
    fs::remove_dir_all(&spec.run_dir).unwrap();
    vmm.stop(&spec, None, Duration::from_secs(5))
        .await
        .expect("also without its folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_vmm_does_wrong_ends_in_an_error_in_time_and_leaves_nothing() {
    let stage = Stage::new();
    type Check = fn(&VmmError) -> bool;
    let refused: Check = |e| matches!(e, VmmError::Refused { .. });
    let timeout: Check = |e| matches!(e, VmmError::Timeout { .. });
    let read_back: Check = |e| matches!(e, VmmError::ReadBack { .. });
    let died: Check = |e| matches!(e, VmmError::Died { .. });
    for (number, (modes, want)) in [
        ("fake.boot=500", refused),
        ("fake.boot=hang", timeout),
        ("fake.boot=die", died),
        ("fake.info=garbage", refused),
        ("fake.info=huge", refused),
        ("fake.info=500", refused),
        ("fake.add-net=500", refused),
        ("fake.drop=payload.cmdline", read_back),
        ("fake.drop=cpus.nested", read_back),
        ("fake.drop=net", read_back),
    ]
    .into_iter()
    .enumerate()
    {
        let spec = stage.spec(u8::try_from(number).unwrap() + 10, modes);
        let begun = Instant::now();
        let error = fake().launch(&spec, &stage).await.unwrap_err();
        assert!(want(&error), "{modes}: {error}");
        assert!(
            begun.elapsed() < Duration::from_secs(6),
            "{modes}: {:?}",
            begun.elapsed()
        );
        assert_gone(&spec);
    }
    for (number, (mode, want)) in [
        ("ping=garbage", refused),
        ("ping=huge", refused),
        ("create=garbage", refused),
        ("ping=die", died),
    ]
    .into_iter()
    .enumerate()
    {
        let spec = stage.spec(u8::try_from(number).unwrap() + 40, "");
        fs::write(spec.run_dir.join("fake-mode"), mode).unwrap();
        let error = fake().launch(&spec, &stage).await.unwrap_err();
        assert!(want(&error), "{mode}: {error}");
        assert_gone(&spec);
    }
    let mut spec = stage.spec(60, "");
    spec.boot.kernel = stage.path("absent");
    let error = fake().launch(&spec, &stage).await.unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
    assert_gone(&spec);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confidential_vm_never_starts_as_an_ordinary_one() {
    let stage = Stage::new();
    let vmm = fake();
    // A stock binary: the feature is missing.
    let spec = stage.confidential(1, "");
    let error = vmm.launch(&spec, &stage).await.unwrap_err();
    assert!(error.to_string().contains("vmm.ping features"), "{error}");
    assert_gone(&spec);
    // One that claims the features and loses what matters.
    for (number, lost) in [
        "platform.sev_snp",
        "payload.host_data",
        "payload.igvm",
        "payload.fw_cfg_config",
    ]
    .into_iter()
    .enumerate()
    {
        let spec = stage.confidential(u8::try_from(number).unwrap() + 2, "");
        fs::write(
            spec.run_dir.join("fake-mode"),
            format!("features=kvm,sev_snp,igvm,fw_cfg drop={lost}"),
        )
        .unwrap();
        let error = vmm.launch(&spec, &stage).await.unwrap_err();
        assert!(
            matches!(&error, VmmError::ReadBack { field, .. } if field.contains(lost)),
            "{lost}: {error}"
        );
        assert_gone(&spec);
    }
    let spec = stage.confidential(9, "");
    fs::write(spec.run_dir.join("fake-mode"), "features=kvm,sev_snp,igvm,fw_cfg").unwrap();
    let process = vmm
        .launch(&spec, &stage)
        .await
        .expect("one that keeps everything is started");
    let error = vmm.resize(&spec, Some(1), None).await.unwrap_err();
    assert!(error.to_string().contains("measurement"), "{error}");
    vmm.stop(&spec, Some(&process), Duration::from_secs(2))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_api_isnt_death_and_a_killed_vmm_is() {
    let stage = Stage::new();
    let vmm = fake();
    let spec = stage.spec(1, "fake.button=ignore fake.counters=hang");
    let process = vmm.launch(&spec, &stage).await.unwrap();
    // Its event loop hangs in a call: nothing answers, and it lives.
    let mut stuck = UnixStream::connect(spec.run_dir.join("api.sock")).unwrap();
    stuck
        .write_all(b"GET /api/v1/vm.counters HTTP/1.1\r\n\r\n")
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        vmm.observe(&spec, Some(&process)).await,
        Observed::Running(process.clone())
    );
    assert!(matches!(vmm.observe(&spec, None).await, Observed::Partial(_)));
    // A second VMM on its disk is refused, whatever the journal says.
    let mut twin = stage.spec(2, "");
    twin.disks[0] = spec.disks[0].clone();
    let error = vmm.launch(&twin, &stage).await.unwrap_err();
    assert!(error.to_string().contains("stop it first"), "{error}");

    let begun = Instant::now();
    vmm.stop(&spec, Some(&process), Duration::from_millis(300))
        .await
        .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_gone(&spec);

    let process = vmm.launch(&twin, &stage).await.expect("the disk is free again");
    assert!(
        Command::new("kill")
            .args(["-9", &process.pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
    while runs(&process) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        twin.run_dir.join("api.sock").exists(),
        "as the real one, it leaves its socket behind"
    );
    assert_eq!(vmm.observe(&twin, Some(&process)).await, Observed::Absent);
    let process = vmm
        .launch(&twin, &stage)
        .await
        .expect("leftovers don't stand in the way");
    vmm.stop(&twin, Some(&process), Duration::from_secs(2))
        .await
        .unwrap();
    assert_gone(&twin);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vmm_runs_as_its_own_user_in_its_own_session_without_a_network() {
    let stage = Stage::new();
    let mut spec = stage.spec(1, "");
    spec.uid = 64_999;
    fs::set_permissions(
        stage.dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    // The build's folder may be closed to other users; the binary must not.
    let binary = stage.path("fake");
    fs::copy(FAKE, &binary).unwrap();
    let config = CloudHypervisorConfig {
        binary,
        assume_kvm: true,
        boot_base: Duration::from_secs(2),
    };
    let vmm = CloudHypervisor::new(config);
    let process = vmm.launch(&spec, &stage).await.unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), ["64999"; 4]);
    assert_eq!(field("Gid:"), ["64999"; 4]);
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    assert_eq!(field("CapBnd:"), ["0000000000000000"]);
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    let link = |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    let pid = process.pid.to_string();
    assert_ne!(link(&pid, "ns/net"), link("self", "ns/net"));
    let networks = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert_eq!(
        networks.lines().count(),
        3,
        "only lo, and that is down:\n{networks}"
    );
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap()
        .to_owned();
    assert_eq!(session, pid, "it leads its own session");
    vmm.stop(&spec, Some(&process), Duration::from_secs(2))
        .await
        .unwrap();
    assert_gone(&spec);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_vms_start_at_once_and_none_is_mixed_up() {
    let stage = std::sync::Arc::new(Stage::new());
    let vmm = std::sync::Arc::new(fake());
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..=50 {
        let (stage, vmm) = (stage.clone(), vmm.clone());
        tasks.spawn(async move {
            let spec = stage.spec(number, &format!("n={number}"));
            let process = vmm.launch(&spec, &*stage).await.unwrap();
            assert_eq!(vmm.observe(&spec, None).await, Observed::Running(process.clone()));
            vmm.stop(&spec, Some(&process), Duration::from_secs(5))
                .await
                .unwrap();
            assert_gone(&spec);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    println!("50 VMs launched, observed and stopped in {:?}", begun.elapsed());
}

/// The real one, or the reason why not.
fn real() -> Result<PathBuf, String> {
    let named = std::env::var_os("HOSTD_CLOUD_HYPERVISOR").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| {
        std::env::split_paths(&path)
            .map(|dir| dir.join("cloud-hypervisor"))
            .find(|path| path.exists())
    });
    let binary = found
        .ok_or("no Cloud Hypervisor: set HOSTD_CLOUD_HYPERVISOR to its binary, or put it on the PATH")?;
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Err("/dev/kvm can't be opened: Cloud Hypervisor can't even create a VM".to_owned());
    }
    Ok(binary)
}

macro_rules! real_or_skip {
    () => {
        match real() {
            Ok(binary) => binary,
            Err(why) => {
                eprintln!(
                    "\n*** SKIPPED: the adapter was NOT tested against a real Cloud Hypervisor: {why} ***\n"
                );
                return;
            }
        }
    };
}

/// A VM with a tenant image.
fn real_spec(stage: &Stage) -> Option<VmSpec> {
    let image = PathBuf::from(std::env::var_os("HOSTD_CH_IMAGE")?);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(image.join("manifest.json")).unwrap()).unwrap();
    let file = |part: &str| image.join(manifest[part]["file"].as_str().unwrap());
    let mut spec = stage.spec(1, manifest["cmdline"].as_str().unwrap());
    (spec.boot.kernel, spec.boot.initrd) = (file("kernel"), Some(file("initrd")));
    spec.memory_mib = 512;
    File::options()
        .write(true)
        .open(&spec.disks[0].path)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    Some(spec)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_one_lives_through_the_whole_life_of_a_vm() {
    let binary = real_or_skip!();
    let mut stage = Stage::new();
    stage.tap = Some("vmmch7".to_owned());
    let _ = Command::new("ip")
        .args(["tuntap", "add", "dev", "vmmch7", "mode", "tap", "vnet_hdr"])
        .status();
    let Some(spec) = real_spec(&stage) else {
        eprintln!(
            "\n*** SKIPPED: set HOSTD_CH_IMAGE (a tenant image: `make tenant-image`) to test the real Cloud Hypervisor ***\n"
        );
        return;
    };
    let vmm = CloudHypervisor::new(CloudHypervisorConfig {
        assume_kvm: true,
        ..CloudHypervisorConfig::new(&binary)
    });
    println!("support: {:?}", vmm.support().await);
    let begun = Instant::now();
    let process = vmm.launch(&spec, &stage).await.unwrap();
    println!("launched in {:?}: {process:?}", begun.elapsed());
    assert_eq!(vmm.launch(&spec, &stage).await.unwrap(), process);
    assert_eq!(vmm.observe(&spec, None).await, Observed::Running(process.clone()));
    let found = fs::read_link(format!("/proc/{}/exe", process.pid)).unwrap();
    assert_eq!(found, fs::canonicalize(&binary).unwrap());
    println!("counters: {:?}", vmm.counters(&spec, &process).await.unwrap());
    vmm.resize(&spec, Some(2), Some(640)).await.unwrap();
    if machine::kvm().is_ok() {
        guest_comes_up(&vmm, &spec, begun).await;
    } else {
        println!("the CPU can't run guests: nothing is expected on the console");
    }
    println!("counters: {:?}", vmm.counters(&spec, &process).await.unwrap());
    let begun = Instant::now();
    let within = if machine::kvm().is_ok() {
        Duration::from_secs(60)
    } else {
        Duration::from_secs(1)
    };
    vmm.stop(&spec, Some(&process), within).await.unwrap();
    println!("stopped in {:?}", begun.elapsed());
    assert_gone(&spec);
}

/// The agent answers over vsock.
async fn guest_comes_up(vmm: &CloudHypervisor, spec: &VmSpec, begun: Instant) {
    let channel = vmm.agent(spec);
    loop {
        if let Some(ResponseBody::Hello { version, platform }) = try_ask(&channel, RequestBody::Hello) {
            println!(
                "the agent ({version}, {platform}) answered after {:?}",
                begun.elapsed()
            );
            break;
        }
        if begun.elapsed() > Duration::from_secs(180) {
            panic!(
                "no answer; the console:\n{}",
                fs::read_to_string(vmm.console_log(spec)).unwrap_or_default()
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let asked = RequestBody::Evidence {
        ledger: vec![1],
        contract: spec.id.0,
        nonce: [2; 32],
    };
    let answer = ask(&channel, asked);
    let ResponseBody::Evidence(cbor) = answer else {
        panic!("no evidence: {answer:?}")
    };
    let evidence = attestation::Composite::from_cbor(&cbor).unwrap();
    println!("evidence of {} bytes: {:?}", cbor.len(), evidence.vm.cpu);
    assert_eq!(evidence.vm.cpu, attestation::CpuEvidence::None);
    assert!(evidence.vm.guest_keys.ssh_host_key.is_some() && evidence.gpus.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_stock_one_is_refused_for_a_confidential_vm() {
    let binary = real_or_skip!();
    let mut stage = Stage::new();
    stage.tap = Some("vmmch8".to_owned());
    let vmm = CloudHypervisor::new(CloudHypervisorConfig {
        assume_kvm: true,
        ..CloudHypervisorConfig::new(&binary)
    });
    let spec = stage.confidential(2, "");
    let error = vmm.launch(&spec, &stage).await.unwrap_err();
    println!("{error}");
    assert!(matches!(error, VmmError::ReadBack { .. }), "{error}");
    assert_gone(&spec);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_one_leaves_nothing_after_a_failed_boot() {
    let binary = real_or_skip!();
    let mut stage = Stage::new();
    stage.tap = Some("vmmch9".to_owned());
    let vmm = CloudHypervisor::new(CloudHypervisorConfig {
        assume_kvm: true,
        ..CloudHypervisorConfig::new(&binary)
    });
    let spec = stage.spec(3, ""); // its kernel is no kernel
    let error = vmm.launch(&spec, &stage).await.unwrap_err();
    println!("{error}");
    assert!(
        matches!(error, VmmError::Refused { call: "vm.boot", .. }),
        "{error}"
    );
    assert_gone(&spec);
}
