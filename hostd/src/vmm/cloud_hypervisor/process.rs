//! One Cloud Hypervisor process per VM: how it is started, found again, and what it leaves behind.
//!
//! The command is a chain of programs of util-linux that replace each other, so that the pid stays the same and no code
//! runs between fork and exec:
//!
//! | link | what it takes away |
//! |---|---|
//! | `systemd-run --scope` (where systemd is PID 1) | hostd's cgroup: a unit of the VM's own outlives hostd's |
//! | `prlimit --memlock` (with devices handed through) | nothing; pinned memory needs room |
//! | `unshare --net` | every network: the tap comes as an open file |
//! | `setpriv` | the user, all groups but kvm's, all capabilities, and getting any back |
//! | `setsid` | hostd's session: no terminal, no signals of hostd's group |
//!
//! Without systemd the VM gets its own cgroup below `decent-cloud`, v2 or v1, as far as the machine lets us.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use crate::vmm::{Access, VmSpec, VmmError, VmmProcess, machine};

/// Threads of a VMM: vCPUs, device queues, io_uring workers. Only against a runaway.
const TASKS_MAX: u32 = 4096;
/// Stopped before this unit at a shutdown, so that hostd ends the VMs in order before systemd would.
const STOPPED_FIRST: &str = "--property=Before=decent-cloud-vms.service";
/// How long the last threads of a killed VMM may take to go.
const THREADS_END: Duration = Duration::from_secs(2);

/// How processes are started here.
#[derive(Clone, Debug)]
pub(super) struct Launcher {
    pub binary: PathBuf,
    pub systemd: bool,
    pub landlock: Result<(), &'static str>,
}

impl Launcher {
    pub(super) fn new(binary: &Path) -> Self {
        // sd_booted(3).
        let systemd = Path::new("/run/systemd/system").is_dir();
        let landlock = landlock(
            &fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default(),
            &fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default(),
        );
        Self {
            binary: binary.to_owned(),
            systemd,
            landlock,
        }
    }

    /// The whole command for a VM. Pure.
    pub(super) fn command(&self, spec: &VmSpec, kvm_group: Option<u32>) -> Vec<String> {
        let mut command: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| command.extend(words.iter().map(|w| (*w).to_owned()));
        if self.systemd {
            let unit = format!("--unit={}", unit(spec));
            let tasks = format!("--property=TasksMax={TASKS_MAX}");
            add(&[
                "systemd-run",
                "--scope",
                "--quiet",
                "--collect",
                "--slice=decent-cloud.slice",
                &unit,
                &tasks,
                STOPPED_FIRST,
                "--",
            ]);
        }
        if !spec.vfio.is_empty() {
            add(&["prlimit", "--memlock=unlimited:unlimited", "--"]);
        }
        add(&["unshare", "--net", "--"]);
        add(&[
            "setpriv",
            "--no-new-privs",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ]);
        if spec.uid != 0 {
            let id = spec.uid.to_string();
            add(&["--reuid", &id, "--regid", &id]);
            match kvm_group {
                Some(group) => add(&["--groups", &group.to_string()]),
                None => add(&["--clear-groups"]),
            }
        }
        add(&["--", "setsid", &self.binary.to_string_lossy()]);
        add(&["--api-socket", &socket_argument(spec), "--seccomp", "true"]);
        // Landlock goes with `vm.create`: v53 takes `--landlock` only together with `--kernel` (ran).
        command
    }

    /// Starts the process; returns its pid. It belongs to nobody afterwards: the runtime only reaps it.
    pub(super) fn spawn(&self, spec: &VmSpec) -> Result<i32, VmmError> {
        let os = |what: &str| {
            let what = format!("{what} for VM {}", spec.id.short());
            move |source| VmmError::Os { what, source }
        };
        let command = self.command(spec, machine::group_of("/dev/kvm"));
        let log = fs::File::create(spec.run_dir.join(super::VMM_LOG)).map_err(os("create the VMM's log"))?;
        let [program, arguments @ ..] = command.as_slice() else {
            return Err(os("start nothing")(io::Error::other("the command is empty")));
        };
        let mut launch = tokio::process::Command::new(program);
        netns::close_descriptors(launch.as_std_mut());
        let child = launch
            .args(arguments)
            .current_dir("/")
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(os("use the VMM's log"))?)
            .stderr(log)
            .kill_on_drop(false)
            .spawn()
            .map_err(os(&format!("start {program}")))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| os("start the VMM")(io::Error::other("it ended at once")))?;
        if !self.systemd {
            join_cgroups(&unit(spec), pid);
        }
        Ok(pid)
    }
}

/// Whether Cloud Hypervisor can use Landlock here; if not, why. It asks for the third ABI (truncation), which came with
/// Linux 6.2: on 6.1, `vm.create` fails with "partially incompatible access-rights" (ran).
fn landlock(modules: &str, release: &str) -> Result<(), &'static str> {
    if !modules.trim().split(',').any(|name| name == "landlock") {
        return Err("no Landlock in this kernel");
    }
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 2) {
        Err("no Landlock: it needs Linux 6.2")
    } else {
        Ok(())
    }
}

fn unit(spec: &VmSpec) -> String {
    format!("dc-vm-{}", hex::encode(&spec.id.0[..8]))
}

fn socket_argument(spec: &VmSpec) -> String {
    format!("path={}", spec.run_dir.join(super::API_SOCKET).display())
}

/// Refuses a disk that a process still holds: most likely a VMM of ours that is half dead, and two writers would
/// destroy the tenant's data. Cloud Hypervisor itself locks with open file description locks (FACTS 2).
pub(super) fn refuse_locked_disks(spec: &VmSpec) -> Result<(), VmmError> {
    for disk in spec.disks.iter().filter(|disk| disk.access == Access::ReadWrite) {
        let os = |what: &str| {
            let what = format!("{what} {}", disk.path.display());
            move |source| VmmError::Os { what, source }
        };
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(&disk.path)
            .map_err(os("open the disk"))?;
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).map_err(|e| os("see the locks of")(e.into()))?;
        if i32::from(lock.l_type) != libc::F_UNLCK {
            return Err(VmmError::Refused {
                call: "locking the disk",
                answer: format!(
                    "{} is still locked by a process; an earlier VMM of this contract lives: stop it first",
                    disk.path.display()
                ),
            });
        }
    }
    Ok(())
}

/// The VMM of this contract by its command line, for a launch that died before its process was journalled.
pub(super) fn find(spec: &VmSpec) -> Result<Option<VmmProcess>, VmmError> {
    let wanted = socket_argument(spec);
    let entries = fs::read_dir("/proc").map_err(|source| VmmError::Os {
        what: "read /proc".to_owned(),
        source,
    })?;
    for pid in entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
    {
        let Ok(arguments) = machine::arguments(pid) else {
            continue;
        };
        let ours = arguments
            .windows(2)
            .any(|pair| pair[0] == "--api-socket" && pair[1] == wanted);
        if ours && let Some(process) = machine::identify(super::NAME, pid, control(spec))? {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// What the journal keeps to reach the VMM.
pub(super) fn control(spec: &VmSpec) -> String {
    spec.run_dir.join(super::API_SOCKET).display().to_string()
}

/// Removes what a dead VMM leaves: sockets, its socket's lock file, its cgroups.
pub(super) async fn clean(spec: &VmSpec) -> Result<(), VmmError> {
    for name in [super::API_SOCKET, super::API_LOCK, super::VSOCK_SOCKET] {
        machine::remove_file(&spec.run_dir.join(name))?;
    }
    for dir in cgroup_folders(&unit(spec)) {
        remove_cgroup(&dir).await;
    }
    Ok(())
}

/// A process counts as ended when its first thread has; the others follow within milliseconds and keep the cgroup (and
/// the disks' locks) until then.
async fn remove_cgroup(dir: &Path) {
    let begun = Instant::now();
    while let Err(error) = fs::remove_dir(dir) {
        if error.kind() == io::ErrorKind::NotFound {
            return;
        }
        if begun.elapsed() > THREADS_END {
            // An empty cgroup costs nothing, and the next clean-up tries again.
            tracing::warn!(cgroup = %dir.display(), %error, "cannot remove a cgroup");
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// cgroup v2 is mounted on `/sys/fs/cgroup` itself, v1 has a folder per controller there.
fn cgroup_folders(unit: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = |base: &Path| base.join("decent-cloud").join(unit);
    if root.join("cgroup.controllers").exists() {
        return vec![below(root)];
    }
    let controllers = ["cpu", "memory", "pids"].map(|name| root.join(name));
    controllers
        .iter()
        .filter(|dir| dir.join("cgroup.procs").exists())
        .map(|dir| below(dir))
        .collect()
}

/// Best effort: a machine without delegated cgroups still runs VMs, and counters come from /proc.
fn join_cgroups(unit: &str, pid: i32) {
    for dir in cgroup_folders(unit) {
        let joined = fs::create_dir_all(&dir).and_then(|()| {
            // The limit's file is missing where the controller isn't given to us; joining matters more.
            let _ = fs::write(dir.join("pids.max"), TASKS_MAX.to_string());
            fs::write(dir.join("cgroup.procs"), pid.to_string())
        });
        if let Err(error) = joined {
            tracing::debug!(cgroup = %dir.display(), %error, "the VMM stays in hostd's cgroup");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_spec::spec;

    #[test]
    fn the_command_gives_up_everything_before_the_vmm_starts() {
        let plain = Launcher {
            binary: "/opt/ch/cloud-hypervisor".into(),
            systemd: false,
            landlock: Ok(()),
        };
        let mut user = spec();
        user.uid = 70_001;
        let mut gpu = spec();
        gpu.vfio = vec!["0000:01:00.0".into()];
        let systemd = Launcher {
            systemd: true,
            landlock: Err("none"),
            ..plain.clone()
        };
        let text = [
            plain.command(&spec(), None).join(" "),
            plain.command(&user, Some(109)).join(" "),
            systemd.command(&gpu, None).join(" "),
        ];
        insta::assert_snapshot!("commands", text.join("\n"));
    }

    #[test]
    fn landlock_is_used_where_it_can_be() {
        for (modules, release, want) in [
            (
                "lockdown,capability,landlock,yama",
                "6.12.9+deb13-cloud-amd64",
                true,
            ),
            ("landlock\n", "6.2.0", true),
            ("landlock", "7.0", true),
            ("landlock", "6.1.0-56-cloud-amd64", false),
            ("lockdown,capability", "6.12.9", false),
            ("", "", false),
        ] {
            assert_eq!(landlock(modules, release).is_ok(), want, "{modules} on {release}");
        }
    }

    #[test]
    fn a_disk_that_is_locked_by_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = spec();
        spec.disks.truncate(1);
        spec.disks[0].path = dir.path().join("disk");
        fs::write(&spec.disks[0].path, [0; 4096]).unwrap();
        refuse_locked_disks(&spec).unwrap();
        let holder = fs::File::options()
            .read(true)
            .write(true)
            .open(&spec.disks[0].path)
            .unwrap();
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 1,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&holder, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        let error = refuse_locked_disks(&spec).unwrap_err();
        assert!(error.to_string().contains("stop it first"), "{error}");
        drop(holder);
        refuse_locked_disks(&spec).unwrap();
    }
}
