//! QEMU through libvirt: TDX, topologies that Cloud Hypervisor lacks, and machines without hardware virtualization.
//!
//! A VM is a *transient* domain named after its contract: libvirt forgets it when QEMU ends, so a definition without a
//! process can't be left behind. QEMU is libvirtd's child and daemonizes: neither a restart of hostd nor one of libvirtd
//! touches it.
//!
//! | Step of `launch` | What can go wrong | What is left |
//! |---|---|---|
//! | spec and kind checked | refused | nothing |
//! | tap lent, domain created *paused*, tap taken back | libvirt refuses; deadline | at most a paused domain, destroyed |
//! | read back: live XML, process arguments, QEMU's objects | a field differs | paused domain, destroyed |
//! | resumed | libvirt refuses | domain, destroyed |
//!
//! A guest therefore never runs one instruction before everything was compared. If hostd dies in between, the domain
//! stays paused: `observe` calls it `Partial`, and `stop` removes it.
//!
//! Confidential kinds go through QEMU's own arguments (`domain`). On a test platform (`LibvirtConfig::test_platform`)
//! the emulator may be a program that stands in for the silicon and execs another QEMU: then QEMU's arguments and
//! objects can't be compared, only what libvirt handed over; the guest's verified report is the proof there, as
//! everywhere. Without `test_platform` such an emulator is refused.
//!
//! The console goes to a file through virtlogd, which rotates it; [`Libvirt::counters`] shortens it where libvirt is set
//! to write it directly.
//!
//! QEMU runs as `VmSpec::uid`, with the group of `/dev/kvm`. Where that is 0, its user is libvirt's setting (`user` in
//! `qemu.conf`).

pub mod domain;
mod readback;

#[cfg(not(feature = "libvirt"))]
#[path = "absent.rs"]
mod connection;
#[cfg(feature = "libvirt")]
mod connection;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ledger::api::VmKind;
use nix::fcntl::OFlag;
use std::os::unix::fs::OpenOptionsExt;

use self::connection::Connection;
pub use self::domain::Accel;
use super::check::check;
use super::{
    AgentChannel, Hugepages, Observed, Taps, VmCounters, VmSpec, Vmm, VmmError, VmmProcess, VmmSupport,
    machine,
};

/// Whether this hostd was built with libvirt (cargo feature `libvirt`).
pub const BUILT: bool = cfg!(feature = "libvirt");

const NAME: &str = "libvirt";
const CONSOLE_LOG: &str = "console.log";
const AGENT_SOCKET: &str = "agent.sock";
/// Calls that only look, or only tell QEMU to begin something.
const CALL: Duration = Duration::from_secs(10);
/// Start of QEMU: 0.5 s measured; a busy machine needs more, and so does a first start that probes the emulator (8 s).
const CREATE: Duration = Duration::from_secs(60);
/// SIGTERM, then SIGKILL: libvirt gives QEMU up to 15 s, more with devices handed through.
const DESTROY: Duration = Duration::from_secs(40);
/// A guest that is still starting misses the power button, so it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// The only devices whose state decides whether a VM is gone are asked this often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Where Debian's QEMU lies; libvirt's own choice when no emulator is named.
const DEFAULT_EMULATOR: &str = "/usr/bin/qemu-system-x86_64";

/// Under QEMU 7.2 without hardware virtualization Linux 6.12 panicked in 4 of 6 starts, the flags register full of
/// garbage after `cmpxchg16b`; without the instruction in none of 5 (ran). 10.0 runs it (FACTS 7); between them nobody
/// looked.
const CX16_RIGHT: u32 = 10_000_000;

/// What all disks of a VM together did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    read: u64,
    written: u64,
}

/// How guests shall run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccelChoice {
    /// In hardware where the CPU has svm or vmx, else translated.
    #[default]
    Auto,
    /// As said.
    Always(Accel),
}

/// Where libvirt is and what it shall start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibvirtConfig {
    /// E.g. `qemu:///system`, or `qemu+unix:///system?socket=/path` for a private libvirtd.
    pub uri: String,
    /// Another QEMU than libvirt's default.
    pub emulator: Option<PathBuf>,
    /// Hardware or translation.
    pub accel: AccelChoice,
    /// The emulator stands in for confidential silicon. Everything it says is worth a test root's word.
    pub test_platform: bool,
}

impl Default for LibvirtConfig {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".to_owned(),
            emulator: None,
            accel: AccelChoice::Auto,
            test_platform: false,
        }
    }
}

/// The adapter. Cheap to make; connects when it is used.
pub struct Libvirt {
    config: LibvirtConfig,
    accel: Accel,
    connection: Connection,
}

impl Libvirt {
    /// Looks once at the CPU to choose how guests run.
    pub fn new(config: LibvirtConfig) -> Self {
        let accel = match config.accel {
            AccelChoice::Always(accel) => accel,
            AccelChoice::Auto if machine::kvm().is_ok() => Accel::Kvm,
            AccelChoice::Auto => Accel::Tcg,
        };
        let connection = Connection::new(&config.uri);
        Self {
            config,
            accel,
            connection,
        }
    }

    fn emulator(&self) -> &Path {
        self.config
            .emulator
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_EMULATOR))
    }

    /// Why a kind can't be hosted here.
    async fn kind_support(&self, kind: VmKind) -> Result<(), String> {
        let (object, parameter, what) = match kind {
            VmKind::Plain => return Ok(()),
            VmKind::SevSnp => (
                "sev-snp-guest",
                "/sys/module/kvm_amd/parameters/sev_snp",
                "SEV-SNP",
            ),
            VmKind::Tdx => ("tdx-guest", "/sys/module/kvm_intel/parameters/tdx", "TDX"),
        };
        let on = fs::read_to_string(parameter).is_ok_and(|v| matches!(v.trim(), "Y" | "1"));
        // The stand-in emulates SNP only.
        let stood_in = self.config.test_platform && kind == VmKind::SevSnp;
        if !on && !stood_in {
            return Err(format!(
                "{what} is off or missing on this machine ({parameter} isn't Y); switch it on in the firmware and \
                 boot a kernel that hosts it"
            ));
        }
        if !stood_in {
            machine::kvm()?;
        }
        let objects = object_types(self.emulator()).await?;
        if objects.contains(object) {
            Ok(())
        } else {
            let emulator = self.emulator().display();
            Err(format!(
                "{emulator} has no {object}; {what} needs QEMU 9.1 or newer for SNP, 10.1 for TDX"
            ))
        }
    }

    /// The running QEMU of a domain, from QEMU itself: libvirt has no call for it, and a name in /proc proves nothing.
    async fn process(&self, spec: &VmSpec) -> Result<VmmProcess, VmmError> {
        let name = domain::name(spec.id);
        let answer = self
            .connection
            .qmp(&name, r#"{"execute":"query-cpus-fast"}"#.to_owned(), CALL)
            .await?;
        let bad = |what: &str| VmmError::Refused {
            call: "query-cpus-fast",
            answer: what.to_owned(),
        };
        let answer: serde_json::Value = serde_json::from_str(&answer).map_err(|e| bad(&e.to_string()))?;
        let thread = answer
            .pointer("/return/0/thread-id")
            .and_then(serde_json::Value::as_i64);
        let thread = thread.ok_or_else(|| bad("it names no thread of a vCPU"))?;
        let pid = machine::process_of_thread(thread).ok_or_else(|| {
            bad("it names a thread that isn't on this machine; is libvirtd in another PID namespace?")
        })?;
        machine::identify(NAME, pid, name)?.ok_or(VmmError::Died { log: None })
    }

    /// Compares what runs with what was asked. Cheap enough to do at every launch: three calls on a local socket.
    async fn read_back(&self, spec: &VmSpec, process: &VmmProcess) -> Result<(), VmmError> {
        let name = domain::name(spec.id);
        let emulator = readback::check_live(&self.connection.live_xml(&name, CALL).await?, spec)?;
        if let Some(wanted) = &self.config.emulator
            && Path::new(&emulator) != wanted
        {
            return Err(VmmError::ReadBack {
                field: "devices.emulator".to_owned(),
                wanted: wanted.display().to_string(),
                found: emulator,
            });
        }
        let os = |what: &str| {
            let what = format!("{what} of process {}", process.pid);
            move |source| VmmError::Os { what, source }
        };
        let program = fs::read_link(format!("/proc/{}/exe", process.pid)).map_err(os("read the program"))?;
        let wanted = fs::canonicalize(&emulator).map_err(os("find the emulator"))?;
        if program == wanted {
            let arguments = machine::arguments(process.pid).map_err(os("read the arguments"))?;
            readback::check_arguments(&arguments, spec)?;
            let user = machine::user(process.pid).map_err(os("read the user"))?;
            if spec.uid != 0 && user != spec.uid {
                return Err(VmmError::ReadBack {
                    field: "the user of the VMM's process".to_owned(),
                    wanted: spec.uid.to_string(),
                    found: user.to_string(),
                });
            }
        } else if self.config.test_platform {
            tracing::warn!(
                contract = %spec.id, emulator, program = %program.display(),
                "test platform: the emulator runs another program, so QEMU's own arguments can't be compared"
            );
            return Ok(());
        } else {
            return Err(VmmError::ReadBack {
                field: "the program of the VMM's process".to_owned(),
                wanted: wanted.display().to_string(),
                found: program.display().to_string(),
            });
        }
        if readback::is_confidential(spec) {
            for (question, place, wanted) in domain::qemu_questions(spec) {
                let answer = self.connection.qmp(&name, question.clone(), CALL).await?;
                readback::check_answer(&question, place, &wanted, &answer)?;
            }
        }
        Ok(())
    }

    /// Creates the paused domain with its tap lent only for as long as QEMU needs to open it.
    async fn create(&self, spec: &VmSpec, taps: &dyn Taps) -> Result<(), VmmError> {
        let slot = spec.nic.slot;
        let direct_io: Vec<bool> = spec
            .disks
            .iter()
            .map(|disk| takes_direct_io(&disk.path))
            .collect();
        let (_, qemu) = self.connection.versions(CALL).await?;
        machine::give_files(spec)?;
        let tap = taps.lend(slot).await.map_err(|source| VmmError::Os {
            what: format!("lend the tap of slot {slot}"),
            source,
        })?;
        let place = domain::Place {
            accel: self.accel,
            tap: &tap,
            direct_io: &direct_io,
            cx16: qemu >= CX16_RIGHT,
            kvm_group: machine::group_of("/dev/kvm"),
        };
        let xml = domain::render(&self.config, spec, &place);
        let created = self.connection.create_paused(xml, create_deadline(spec)).await;
        let back = taps.take_back(slot).await;
        created?;
        back.map_err(|source| VmmError::Os {
            what: format!("take back the tap of slot {slot}"),
            source,
        })
    }

    async fn verify_and_resume(&self, spec: &VmSpec) -> Result<VmmProcess, VmmError> {
        let process = self.process(spec).await?;
        self.read_back(spec, &process).await?;
        self.connection.resume(&domain::name(spec.id), CALL).await?;
        Ok(process)
    }

    /// Ends the process and the domain, and removes the sockets. The process first: libvirt asks a QEMU that hangs
    /// politely for 30 s (measured), and nobody waits for politeness any more here.
    async fn destroy(&self, spec: &VmSpec, process: Option<&VmmProcess>) -> Result<(), VmmError> {
        let name = domain::name(spec.id);
        if let Some(process) = process {
            machine::kill(process, DESTROY).await?;
        }
        self.connection.destroy(&name, DESTROY).await?;
        let begun = Instant::now();
        while self.find(spec).await?.is_some() || process.is_some_and(machine::is_alive) {
            if begun.elapsed() > DESTROY {
                return Err(VmmError::Timeout {
                    call: "the end of QEMU",
                    after: DESTROY,
                });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        machine::remove_file(&spec.run_dir.join(AGENT_SOCKET))
    }

    /// The domain of this contract. One that only bears the name isn't ours to touch.
    async fn find(&self, spec: &VmSpec) -> Result<Option<connection::Found>, VmmError> {
        let name = domain::name(spec.id);
        let found = self.connection.find(&name, CALL).await?;
        match found {
            Some(found) if found.uuid != domain::uuid(spec.id) => Err(VmmError::Refused {
                call: "virDomainLookupByName",
                answer: format!(
                    "a domain named {name} is there but isn't contract {}; remove it by hand",
                    spec.id
                ),
            }),
            found => Ok(found),
        }
    }
}

#[async_trait]
impl Vmm for Libvirt {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn support(&self) -> VmmSupport {
        // The first question after a boot starts libvirtd, which then asks every emulator what it can do.
        let versions = self.connection.versions(CREATE).await;
        let accel = match self.accel {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG",
        };
        let version = match &versions {
            Ok((libvirt, qemu)) => format!("QEMU {}, libvirt {}, {accel}", dotted(*qemu), dotted(*libvirt)),
            Err(_) => format!("libvirt not available, {accel}"),
        };
        let mut kinds = Vec::new();
        for kind in [VmKind::Plain, VmKind::SevSnp, VmKind::Tdx] {
            let answer = match &versions {
                Ok(_) => self.kind_support(kind).await,
                Err(error) => Err(error.to_string()),
            };
            kinds.push((kind, answer));
        }
        VmmSupport { version, kinds }
    }

    fn render(&self, spec: &VmSpec) -> String {
        let tap = format!("(tap of slot {})", spec.nic.slot);
        domain::render(
            &self.config,
            spec,
            &domain::Place {
                accel: self.accel,
                tap: &tap,
                direct_io: &[],
                cx16: true,
                kvm_group: machine::group_of("/dev/kvm"),
            },
        )
    }

    async fn launch(&self, spec: &VmSpec, taps: &dyn Taps) -> Result<VmmProcess, VmmError> {
        check(spec)?;
        self.kind_support(spec.kind)
            .await
            .map_err(|why| VmmError::Unsupported { adapter: NAME, why })?;
        if let Some(found) = self.find(spec).await? {
            if found.running {
                let process = self.process(spec).await?;
                self.read_back(spec, &process).await?;
                return Ok(process);
            }
            self.destroy(spec, None).await?;
        }
        let result = match self.create(spec, taps).await {
            Ok(()) => self.verify_and_resume(spec).await,
            Err(error) => Err(error),
        };
        if result.is_err()
            && let Err(error) = self.destroy(spec, None).await
        {
            tracing::warn!(contract = %spec.id, %error, "cannot remove a domain whose launch failed; stop will");
        }
        result
    }

    async fn observe(&self, spec: &VmSpec, known: Option<&VmmProcess>) -> Observed {
        let alive = known.filter(|known| known.adapter == NAME && machine::is_alive(known));
        match (self.find(spec).await, alive) {
            (Ok(Some(found)), _) if found.running => match self.process(spec).await {
                Ok(process) => Observed::Running(process),
                Err(error) => Observed::Partial(format!("the domain runs, but {error}")),
            },
            (Ok(Some(_)), _) => Observed::Partial("the domain is there but doesn't run".to_owned()),
            (Ok(None), None) => Observed::Absent,
            (Ok(None), Some(known)) => Observed::Partial(format!(
                "process {} runs, but libvirt doesn't know the domain",
                known.pid
            )),
            // libvirtd may be down while its VMs live: that is no reason to call one dead.
            (Err(_), Some(known)) => Observed::Running(known.clone()),
            (Err(error), None) => Observed::Partial(error.to_string()),
        }
    }

    fn agent(&self, spec: &VmSpec) -> AgentChannel {
        AgentChannel::Serial(spec.run_dir.join(AGENT_SOCKET))
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
        let name = domain::name(spec.id);
        let Some(found) = self.find(spec).await? else {
            if let Some(known) = known.filter(|known| known.adapter == NAME) {
                machine::kill(known, DESTROY).await?;
            }
            return machine::remove_file(&spec.run_dir.join(AGENT_SOCKET));
        };
        // The journal's word first: a QEMU that hangs answers nothing.
        let process = match known.filter(|known| known.adapter == NAME && machine::is_alive(known)) {
            Some(known) => Some(known.clone()),
            None => self.process(spec).await.ok(),
        };
        let begun = Instant::now();
        let mut pressed: Option<Instant> = None;
        while found.running && begun.elapsed() < within {
            if pressed.is_none_or(|at| at.elapsed() >= PRESS_AGAIN) {
                let left = CALL.min(within.saturating_sub(begun.elapsed()));
                if let Err(error) = self.connection.press_power(&name, left).await {
                    tracing::debug!(contract = %spec.id, %error, "the power button can't be pressed");
                }
                pressed = Some(Instant::now());
            }
            tokio::time::sleep(LOOK_AGAIN.min(within.saturating_sub(begun.elapsed()))).await;
            let ended = match &process {
                Some(process) => !machine::is_alive(process),
                None => self.find(spec).await?.is_none(),
            };
            if ended {
                break;
            }
        }
        self.destroy(spec, process.as_ref()).await
    }

    async fn counters(&self, spec: &VmSpec, process: &VmmProcess) -> Result<VmCounters, VmmError> {
        if !machine::is_alive(process) {
            return Err(VmmError::Died { log: None });
        }
        machine::bound_console(&self.console_log(spec));
        let (cpu_us, rss_bytes) = machine::usage(process.pid).map_err(|source| VmmError::Os {
            what: format!("read the usage of process {}", process.pid),
            source,
        })?;
        let totals = self
            .connection
            .disk_totals(&domain::name(spec.id), spec.disks.len(), CALL)
            .await?;
        Ok(VmCounters {
            cpu_us,
            rss_bytes,
            disk_read_bytes: totals.read,
            disk_written_bytes: totals.written,
        })
    }

    async fn resize(&self, _: &VmSpec, _: Option<u32>, _: Option<u64>) -> Result<(), VmmError> {
        Err(VmmError::Unsupported {
            adapter: NAME,
            why: "its domains have no room to grow (no hot-plug slots, no balloon); rent another VM"
                .to_owned(),
        })
    }
}

/// Hugepages are zeroed before the first instruction: allow for 1 GiB/s at worst.
fn create_deadline(spec: &VmSpec) -> Duration {
    match spec.hugepages {
        Hugepages::No => CREATE,
        Hugepages::Size2M => CREATE + Duration::from_secs(spec.memory_mib / 1024),
    }
}

/// Whether the file system lets this file be opened past the page cache.
fn takes_direct_io(path: &Path) -> bool {
    fs::File::options()
        .read(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
        .is_ok()
}

/// 9000000 → 9.0.0.
fn dotted(version: u32) -> String {
    format!(
        "{}.{}.{}",
        version / 1_000_000,
        version / 1000 % 1000,
        version % 1000
    )
}

/// The object types that a QEMU has (`-object help`).
async fn object_types(emulator: &Path) -> Result<BTreeSet<String>, String> {
    let mut command = tokio::process::Command::new(emulator);
    command
        .args(["-object", "help"])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(CALL, command.output())
        .await
        .map_err(|_| format!("{} -object help gave no answer in {CALL:?}", emulator.display()))?
        .map_err(|error| {
            format!(
                "cannot run {}: {error}; install QEMU, or name it in the config",
                emulator.display()
            )
        })?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.trim().to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_shown_as_people_write_them() {
        assert_eq!(dotted(9_000_000), "9.0.0");
        assert_eq!(dotted(7_002_022), "7.2.22");
    }

    #[test]
    fn direct_io_is_only_asked_of_files_that_take_it() {
        assert!(!takes_direct_io(Path::new("/no/such/disk")));
    }
}
