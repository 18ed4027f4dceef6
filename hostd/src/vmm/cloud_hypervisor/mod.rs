//! Cloud Hypervisor: one process per VM, talked to over its unix socket. The default where the CPU can run guests.
//!
//! | Step of `launch` | Deadline | Why it may fail |
//! |---|---|---|
//! | spec, machine and binary checked | | refused |
//! | disks unlocked, stale sockets removed, process started | 10 s | half-dead earlier VMM; the binary ends at once |
//! | `vmm.ping`: right process, built with what the kind needs | 5 s | a stock binary would drop `sev_snp` silently |
//! | `vm.create`, `vm.add-net` with the tap's open file | 10 s each | bad configuration |
//! | `vm.info`, every asked field compared, nothing unasked | 10 s | a dropped field: the guest must not start |
//! | `vm.boot`, `vm.info` says Running | 30 s + 1 s per GiB | bad kernel, no memory |
//!
//! Whatever fails, the process is killed and its sockets and cgroups are removed: a VMM is never used twice (after a
//! failed boot it needs a delete before another create, Landlock can't be undone, FACTS 2).
//!
//! Cloud Hypervisor answers from one event loop: a ping waits behind a boot. So a missing answer never counts as death;
//! the process is watched (`machine::is_alive`), and only its end ends a VM.
//!
//! The VMM runs with no network, no capabilities, seccomp on, Landlock where the kernel has it, as a user of its own
//! ([`process`]). The guest agent is reached over vsock, whose other end is a socket in the VM's folder.
//!
//! Not here: snapshots and migration. Cloud Hypervisor doesn't refuse them for confidential VMs; hostd never asks.

mod api;
mod config;
mod process;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cloud_hypervisor_client::models::VmResize;
use ledger::api::VmKind;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use self::api::{Api, Ping};
use self::config::Place;
use self::process::Launcher;
use super::check::check;
use super::{
    AGENT_VSOCK_PORT, AgentChannel, Hugepages, Observed, Taps, VmCounters, VmSpec, Vmm, VmmError, VmmProcess,
    VmmSupport, machine,
};

const NAME: &str = "cloud-hypervisor";
const API_SOCKET: &str = "api.sock";
const API_LOCK: &str = "api.sock.lock";
const VSOCK_SOCKET: &str = "agent.sock";
const CONSOLE_LOG: &str = "console.log";
const VMM_LOG: &str = "vmm.log";

/// The API's socket appears 30 ms after the start (ran); a machine that starts 100 VMs at once needs longer.
const START: Duration = Duration::from_secs(10);
const PING: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(10);
/// Calls made for politeness to a VMM that is about to be killed.
const GOODBYE: Duration = Duration::from_secs(2);
/// A guest that is still starting misses the power button.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// How often the end of a process is looked for: with its pidfd hostd itself notices at once.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// From the broken connection of a dying VMM to its end.
const LAST_BREATH: Duration = Duration::from_millis(200);
/// SIGKILL of a VMM with much memory to give back.
const KILL: Duration = Duration::from_secs(60);
/// Older ones have a backing-file hole (until 51), a use-after-free in virtio-block (until 52), no `reserve`, and lose
/// private memory (52.0). See FACTS 2.
const MAJOR_MIN: u32 = 53;

/// Which Cloud Hypervisor, and what the machine is believed to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudHypervisorConfig {
    /// The pinned binary.
    pub binary: PathBuf,
    /// The machine needs no hardware for guests: for a server that only behaves like Cloud Hypervisor, and for tests of
    /// the API on machines where no guest would ever run.
    pub assume_kvm: bool,
    /// How long a boot may take, beside a second for each GiB of memory.
    pub boot_base: Duration,
}

impl CloudHypervisorConfig {
    /// With that binary, on a machine that must have the hardware.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            assume_kvm: false,
            boot_base: Duration::from_secs(30),
        }
    }
}

/// The adapter.
pub struct CloudHypervisor {
    config: CloudHypervisorConfig,
    launcher: Launcher,
    /// Kept once it answered: a binary that is exchanged under us is another file for the next hostd.
    version: OnceCell<String>,
}

impl CloudHypervisor {
    /// Looks once at the machine (systemd, Landlock).
    pub fn new(config: CloudHypervisorConfig) -> Self {
        let launcher = Launcher::new(&config.binary);
        Self {
            config,
            launcher,
            version: OnceCell::new(),
        }
    }

    fn place(&self) -> Place {
        Place {
            landlock: self.launcher.landlock.is_ok(),
        }
    }

    fn api(&self, spec: &VmSpec) -> Api {
        Api::new(&spec.run_dir.join(API_SOCKET))
    }

    /// `v53.0`, or why this binary can't be used.
    async fn version(&self) -> Result<String, String> {
        self.version
            .get_or_try_init(|| read_version(&self.config.binary))
            .await
            .cloned()
    }

    /// Why a kind can't be hosted here. Features of the binary are asked at each launch, from the process itself.
    async fn kind_support(&self, kind: VmKind) -> Result<(), String> {
        self.version().await?;
        match kind {
            VmKind::Tdx => {
                return Err(
                    "Cloud Hypervisor can't serve TDX guests since v53; use libvirt with QEMU 10.1"
                        .to_owned(),
                );
            }
            VmKind::SevSnp => {
                let parameter = "/sys/module/kvm_amd/parameters/sev_snp";
                if !self.config.assume_kvm
                    && !fs::read_to_string(parameter).is_ok_and(|v| matches!(v.trim(), "Y" | "1"))
                {
                    return Err(format!(
                        "SEV-SNP is off or missing on this machine ({parameter} isn't Y); switch it on in the \
                         firmware and boot a kernel that hosts it"
                    ));
                }
            }
            VmKind::Plain => {}
        }
        if self.config.assume_kvm {
            Ok(())
        } else {
            machine::kvm()
        }
    }

    /// Waits for the API of a fresh process.
    async fn wait_for_api(&self, spec: &VmSpec, process: &VmmProcess) -> Result<(), VmmError> {
        let begun = Instant::now();
        let socket = spec.run_dir.join(API_SOCKET);
        loop {
            if tokio::net::UnixStream::connect(&socket).await.is_ok() {
                return Ok(());
            }
            if !machine::is_alive(process) {
                return Err(self.died(spec));
            }
            if begun.elapsed() > START {
                return Err(VmmError::Timeout {
                    call: "the start of Cloud Hypervisor",
                    after: START,
                });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn died(&self, spec: &VmSpec) -> VmmError {
        VmmError::Died {
            log: machine::tail(&spec.run_dir.join(VMM_LOG), 2000),
        }
    }

    /// The right process, with all that the kind needs.
    fn check_ping(ping: &Ping, process: &VmmProcess, kind: VmKind) -> Result<(), VmmError> {
        let mismatch = |field: &str, wanted: String, found: String| VmmError::ReadBack {
            field: field.to_owned(),
            wanted,
            found,
        };
        if ping.pid != i64::from(process.pid) {
            return Err(mismatch(
                "vmm.ping pid",
                process.pid.to_string(),
                ping.pid.to_string(),
            ));
        }
        for feature in config::required_features(kind) {
            if !ping.features.iter().any(|f| f == feature) {
                return Err(mismatch(
                    "vmm.ping features",
                    (*feature).to_owned(),
                    ping.features.join(" "),
                ));
            }
        }
        Ok(())
    }

    /// From a fresh process to a running guest.
    async fn configure_and_boot(
        &self,
        spec: &VmSpec,
        process: &VmmProcess,
        taps: &dyn Taps,
    ) -> Result<(), VmmError> {
        self.wait_for_api(spec, process).await?;
        let api = self.api(spec);
        let ping = api.ping(PING).await?;
        Self::check_ping(&ping, process, spec.kind)?;
        api.create(&config::vm_config(spec, self.place()), CALL).await?;
        let slot = spec.nic.slot;
        let tap = taps.open(slot).await.map_err(|source| VmmError::Os {
            what: format!("open the tap of slot {slot}"),
            source,
        })?;
        api.add_net(&config::net_config(spec), std::os::fd::AsFd::as_fd(&tap), CALL)
            .await?;
        drop(tap);
        let (_, found) = api.info(CALL).await?;
        config::check_read_back(spec, self.place(), &found)?;
        api.boot(boot_deadline(self.config.boot_base, spec)).await?;
        let (state, found) = api.info(CALL).await?;
        if state != "Running" {
            return Err(VmmError::Refused {
                call: "vm.boot",
                answer: format!("the VM is {state} afterwards"),
            });
        }
        config::check_read_back(spec, self.place(), &found)
    }

    /// A process of this VM: the journal's if it lives, else one that is found by its command line.
    fn process(&self, spec: &VmSpec, known: Option<&VmmProcess>) -> Result<Option<VmmProcess>, VmmError> {
        match known.filter(|known| known.adapter == NAME && machine::is_alive(known)) {
            Some(known) => Ok(Some(known.clone())),
            None => process::find(spec),
        }
    }

    async fn kill_and_clean(&self, spec: &VmSpec, process: &VmmProcess) -> Result<(), VmmError> {
        machine::kill(process, KILL).await?;
        process::clean(spec).await
    }

    /// Presses the button and waits for the process to end by itself.
    async fn ask_to_stop(&self, spec: &VmSpec, process: &VmmProcess, within: Duration) {
        let api = self.api(spec);
        let begun = Instant::now();
        let mut pressed: Option<Instant> = None;
        while machine::is_alive(process) && begun.elapsed() < within {
            if pressed.is_none_or(|at| at.elapsed() >= PRESS_AGAIN) {
                let left = CALL.min(within.saturating_sub(begun.elapsed()));
                if let Err(error) = api.power_button(left).await {
                    tracing::debug!(contract = %spec.id, %error, "the power button can't be pressed");
                }
                pressed = Some(Instant::now());
            }
            tokio::time::sleep(LOOK_AGAIN.min(within.saturating_sub(begun.elapsed()))).await;
        }
    }

    /// Takes the VM down through the API, so that disks are closed in order; then the process ends.
    async fn take_down(&self, spec: &VmSpec) -> Result<(), VmmError> {
        let api = self.api(spec);
        api.shutdown(GOODBYE).await?;
        api.delete(GOODBYE).await?;
        api.shutdown_vmm(GOODBYE).await
    }
}

#[async_trait]
impl Vmm for CloudHypervisor {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn support(&self) -> VmmSupport {
        let landlock = self.launcher.landlock.map_or_else(|why| why, |()| "Landlock");
        let version = match self.version().await {
            Ok(version) => format!("cloud-hypervisor {version}, {landlock}"),
            Err(_) => "cloud-hypervisor not available".to_owned(),
        };
        let mut kinds = Vec::new();
        for kind in [VmKind::Plain, VmKind::SevSnp, VmKind::Tdx] {
            kinds.push((kind, self.kind_support(kind).await));
        }
        VmmSupport { version, kinds }
    }

    fn render(&self, spec: &VmSpec) -> String {
        let all = json!({
            "command": self.launcher.command(spec, None),
            "vm.create": config::vm_config(spec, self.place()),
            "vm.add-net": config::net_config(spec),
        });
        format!("{all:#}")
    }

    async fn launch(&self, spec: &VmSpec, taps: &dyn Taps) -> Result<VmmProcess, VmmError> {
        check(spec)?;
        self.kind_support(spec.kind)
            .await
            .map_err(|why| VmmError::Unsupported { adapter: NAME, why })?;
        if let Some(process) = process::find(spec)? {
            match self.observe(spec, Some(&process)).await {
                Observed::Running(process) if self.is_as_asked(spec).await => return Ok(process),
                _ => self.kill_and_clean(spec, &process).await?,
            }
        }
        process::refuse_locked_disks(spec)?;
        process::clean(spec).await?;
        machine::give_files(spec)?;
        let pid = self.launcher.spawn(spec)?;
        let control = process::control(spec);
        let Some(process) = machine::identify(NAME, pid, control)? else {
            return Err(self.died(spec));
        };
        match self.configure_and_boot(spec, &process, taps).await {
            Ok(()) => Ok(process),
            Err(error) => {
                let error = match error {
                    // A dying process closes its sockets a moment before it is gone.
                    VmmError::Refused { .. } | VmmError::Unreachable { .. }
                        if machine::ends_within(&process, LAST_BREATH).await =>
                    {
                        self.died(spec)
                    }
                    error if machine::is_alive(&process) => error,
                    _ => self.died(spec),
                };
                if let Err(kill) = self.kill_and_clean(spec, &process).await {
                    tracing::warn!(contract = %spec.id, %kill, "cannot remove a VMM whose launch failed; stop will");
                }
                Err(error)
            }
        }
    }

    async fn observe(&self, spec: &VmSpec, known: Option<&VmmProcess>) -> Observed {
        let process = match self.process(spec, known) {
            Err(error) => return Observed::Partial(error.to_string()),
            Ok(None) => return Observed::Absent,
            Ok(Some(process)) => process,
        };
        // The journal's process was launched to the end, and it lives: a busy API doesn't make it dead.
        let journalled = known.is_some_and(|known| *known == process);
        match self.api(spec).info(PING).await {
            Ok((state, _)) if state == "Running" => Observed::Running(process),
            Err(VmmError::Timeout { .. }) if journalled => Observed::Running(process),
            Ok((state, _)) => Observed::Partial(format!("process {} runs, its VM is {state}", process.pid)),
            Err(error) => Observed::Partial(format!("process {} runs, but {error}", process.pid)),
        }
    }

    fn agent(&self, spec: &VmSpec) -> AgentChannel {
        AgentChannel::Vsock {
            socket: spec.run_dir.join(VSOCK_SOCKET),
            port: AGENT_VSOCK_PORT,
        }
    }

    fn console_log(&self, spec: &VmSpec) -> PathBuf {
        spec.run_dir.join(CONSOLE_LOG)
    }

    async fn stop(
        &self,
        spec: &VmSpec,
        known: Option<&VmmProcess>,
        within: Duration,
    ) -> Result<(), VmmError> {
        if let Some(process) = self.process(spec, known)? {
            self.ask_to_stop(spec, &process, within).await;
            if machine::is_alive(&process)
                && let Err(error) = self.take_down(spec).await
            {
                tracing::debug!(contract = %spec.id, %error, "the VMM doesn't end by itself and is killed");
            }
            machine::kill(&process, KILL).await?;
        }
        process::clean(spec).await
    }

    async fn counters(&self, spec: &VmSpec, process: &VmmProcess) -> Result<VmCounters, VmmError> {
        if !machine::is_alive(process) {
            return Err(VmmError::Died {
                log: machine::tail(&spec.run_dir.join(VMM_LOG), 2000),
            });
        }
        machine::bound_console(&self.console_log(spec));
        machine::bound_console(&spec.run_dir.join(VMM_LOG));
        let (cpu_us, rss_bytes) = machine::usage(process.pid).map_err(|source| VmmError::Os {
            what: format!("read the usage of process {}", process.pid),
            source,
        })?;
        let answer = self.api(spec).counters(CALL).await?;
        let total = |name: &str| disk_total(&answer, spec.disks.len(), name);
        Ok(VmCounters {
            cpu_us,
            rss_bytes,
            disk_read_bytes: total("read_bytes"),
            disk_written_bytes: total("write_bytes"),
        })
    }

    async fn resize(
        &self,
        spec: &VmSpec,
        vcpus: Option<u32>,
        memory_mib: Option<u64>,
    ) -> Result<(), VmmError> {
        let refuse = |why: String| Err(VmmError::Unsupported { adapter: NAME, why });
        if spec.kind != VmKind::Plain {
            return refuse("a confidential VM's size is part of its measurement".to_owned());
        }
        let max = config::max_vcpus(spec);
        if let Some(vcpus) = vcpus.filter(|n| !(1..=max).contains(n)) {
            return refuse(format!("it was started with room for {max} vCPUs, not {vcpus}"));
        }
        let max_mib = spec.memory_mib + (config::hotplug_bytes(spec) >> 20);
        let grows = spec.hugepages == Hugepages::No && spec.vfio.is_empty();
        let max_mib = if grows { max_mib } else { spec.memory_mib };
        if let Some(mib) = memory_mib.filter(|n| !(spec.memory_mib..=max_mib).contains(n)) {
            return refuse(format!(
                "it can have {} to {max_mib} MiB, not {mib}",
                spec.memory_mib
            ));
        }
        let resize = VmResize {
            desired_vcpus: vcpus.and_then(|n| i32::try_from(n).ok()),
            desired_ram: memory_mib.and_then(|n| i64::try_from(n << 20).ok()),
            desired_balloon: None,
        };
        self.api(spec).resize(resize, CALL).await
    }
}

impl CloudHypervisor {
    /// Whether the running VM has the asked configuration (resized ones differ, and are theirs alone to keep).
    async fn is_as_asked(&self, spec: &VmSpec) -> bool {
        match self.api(spec).info(PING).await {
            Ok((_, found)) => config::check_read_back(spec, self.place(), &found).is_ok(),
            Err(_) => false,
        }
    }
}

/// Sums one counter over the VM's disks. 2⁶⁴−1 stands for "none yet".
fn disk_total(counters: &Value, disks: usize, name: &str) -> u64 {
    let of = |index: usize| counters.get(format!("disk{index}"))?.get(name)?.as_u64();
    (0..disks)
        .filter_map(of)
        .filter(|n| *n != u64::MAX)
        .fold(0, u64::saturating_add)
}

/// The loader reads kernel and initrd, and memory with reserved hugepages is faulted in: 1 GiB/s at worst.
fn boot_deadline(base: Duration, spec: &VmSpec) -> Duration {
    base + Duration::from_secs(spec.memory_mib / 1024)
}

async fn read_version(binary: &std::path::Path) -> Result<String, String> {
    let shown = binary.display();
    let mut command = tokio::process::Command::new(binary);
    command
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(CALL, command.output())
        .await
        .map_err(|_| format!("{shown} --version gave no answer in {CALL:?}"))?
        .map_err(|error| {
            format!("cannot run {shown}: {error}; install Cloud Hypervisor, or name it in the config")
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().and_then(parse_version);
    let (version, major) =
        version.ok_or_else(|| format!("{shown} doesn't say which Cloud Hypervisor it is"))?;
    if major < MAJOR_MIN {
        return Err(format!(
            "{shown} is {version}; v{MAJOR_MIN}.0 or newer is needed (known security holes before)"
        ));
    }
    Ok(version)
}

/// `cloud-hypervisor v53.0-dirty` → `v53.0-dirty`, 53.
fn parse_version(line: &str) -> Option<(String, u32)> {
    let version = line.strip_prefix("cloud-hypervisor ")?.trim();
    let major = version.strip_prefix('v')?.split('.').next()?.parse().ok()?;
    Some((version.chars().take(40).collect(), major))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_old_ones_known() {
        for (line, want) in [
            ("cloud-hypervisor v53.0", Some(("v53.0".to_owned(), 53))),
            (
                "cloud-hypervisor v53.0-dirty",
                Some(("v53.0-dirty".to_owned(), 53)),
            ),
            ("cloud-hypervisor v9.1.2", Some(("v9.1.2".to_owned(), 9))),
            ("cloud-hypervisor 53", None),
            ("QEMU emulator version 7.2", None),
            ("", None),
        ] {
            assert_eq!(parse_version(line), want, "{line}");
        }
    }

    #[test]
    fn counters_that_mean_none_yet_count_nothing() {
        let answer = json!({
            "disk0": {"read_bytes": 512, "write_bytes": u64::MAX},
            "disk1": {"read_bytes": 1024},
            "net0": {"read_bytes": 7},
        });
        assert_eq!(disk_total(&answer, 2, "read_bytes"), 1536);
        assert_eq!(disk_total(&answer, 2, "write_bytes"), 0);
        assert_eq!(disk_total(&Value::Null, 2, "read_bytes"), 0);
    }

    #[test]
    fn a_vmm_without_the_feature_or_with_another_pid_is_refused() {
        let process = VmmProcess {
            adapter: NAME.into(),
            boot_id: String::new(),
            pid: 7,
            start_time: 1,
            control: String::new(),
        };
        let ping = |pid, features: &[&str]| Ping {
            version: "53.0.0".into(),
            pid,
            features: features.iter().map(|f| (*f).to_owned()).collect(),
        };
        let check = |ping: &Ping, kind| CloudHypervisor::check_ping(ping, &process, kind).is_ok();
        assert!(check(&ping(7, &["io_uring", "kvm"]), VmKind::Plain));
        assert!(!check(&ping(8, &["io_uring", "kvm"]), VmKind::Plain));
        assert!(!check(&ping(7, &["mshv"]), VmKind::Plain));
        assert!(!check(&ping(7, &["io_uring", "kvm"]), VmKind::SevSnp));
        assert!(check(
            &ping(7, &["kvm", "igvm", "sev_snp", "fw_cfg"]),
            VmKind::SevSnp
        ));
    }
}
