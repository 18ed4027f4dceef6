//! A libvirtd of one's own: its settings, sockets, state and logs lie in one folder, and nothing of the machine's
//! libvirt is touched or seen.
//!
//! libvirtd's folders are fixed in the program when root runs it, so it runs in a mount namespace where
//! `/etc/libvirt`, `/run/libvirt`, `/var/lib/libvirt`, `/var/log/libvirt` and `/var/cache/libvirt` are folders below
//! [`Layout::dir`]. Its socket lies outside of them, where everybody sees it. virtlogd runs beside it in the same
//! session and keeps the guests' consoles bounded. Works as root without systemd, D-Bus and cgroup delegation (FACTS 1).
//!
//! The first start asks QEMU for all it can do (8 s measured); a kept `cache` folder makes later ones take 0.3 s.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// QEMU as root without cgroups and namespaces of libvirt's own; no security driver; consoles through virtlogd.
const QEMU_CONF: &str = r#"user = "root"
group = "root"
remember_owner = 0
cgroup_controllers = []
namespaces = []
security_driver = "none"
stdio_handler = "logd"
"#;

/// One console keeps at most 2 MiB.
const VIRTLOGD_CONF: &str = "max_size = 1048576\nmax_backups = 1\n";

/// `$0` is the folder, `$1` the cache. The mounts exist only in this process's namespace and end with it.
const START: &str = r#"set -e
for d in etc/libvirt run/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt; do mkdir -p "/$d"; done
mount --bind "$0/etc" /etc/libvirt
mount --bind "$0/run" /run/libvirt
mount --bind "$0/lib" /var/lib/libvirt
mount --bind "$0/log" /var/log/libvirt
mount --bind "$1" /var/cache/libvirt
virtlogd -f "$0/etc/virtlogd.conf" -p "$0/virtlogd.pid" &
exec libvirtd -f "$0/etc/libvirtd.conf" -p "$0/libvirtd.pid"
"#;

/// Where everything of one private libvirtd lies, and how to run it; starts nothing by itself.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
    cache: PathBuf,
}

impl Layout {
    /// Makes the folder and the settings in it. `cache`: what libvirt learnt about QEMU, worth keeping between runs;
    /// `None` puts it into `dir` too.
    pub fn prepare(dir: &Path, cache: Option<&Path>) -> Result<Self> {
        for tool in ["libvirtd", "virtlogd", "unshare"] {
            ensure!(
                on_path(tool),
                "{tool} is missing: apt-get install libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system"
            );
        }
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a libvirtd of one's own needs root: run this as root"
        );
        let cache = cache.map_or_else(|| dir.join("cache"), Path::to_owned);
        for sub in ["etc", "run", "lib", "log", "sock"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("cannot make {}/{sub}", dir.display()))?;
        }
        fs::create_dir_all(&cache)?;
        fs::write(dir.join("etc/qemu.conf"), QEMU_CONF)?;
        fs::write(dir.join("etc/virtlogd.conf"), VIRTLOGD_CONF)?;
        let libvirtd = format!(
            "unix_sock_dir = \"{}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n",
            dir.join("sock").display()
        );
        fs::write(dir.join("etc/libvirtd.conf"), libvirtd)?;
        Ok(Self {
            dir: dir.to_owned(),
            cache,
        })
    }

    /// The program to run, in whichever network namespace the taps are lent to: `unshare` with [`Layout::args`].
    pub fn program(&self) -> &'static str {
        "unshare"
    }

    /// Its arguments.
    pub fn args(&self) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let fixed = ["--mount", "--propagation", "private", "sh", "-c", START];
        fixed
            .into_iter()
            .map(str::to_owned)
            .chain([text(&self.dir), text(&self.cache)])
            .collect()
    }

    /// What clients connect to.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("sock/libvirt-sock")
    }

    /// Whether it takes connections yet.
    pub fn is_ready(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
    }

    /// Waits until it takes connections.
    pub fn wait_ready(&self, within: Duration) -> Result<()> {
        let begun = Instant::now();
        while !self.is_ready() {
            ensure!(
                begun.elapsed() < within,
                "libvirtd in {} isn't ready after {within:?}",
                self.dir.display()
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The QEMUs that this libvirtd started and that still run: they outlive it.
    pub fn guests(&self) -> Vec<i32> {
        let Ok(entries) = fs::read_dir(self.dir.join("run/qemu")) else {
            return Vec::new();
        };
        let files = entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|x| x == "pid"));
        let pids = files.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
        pids.filter(|pid| is_guest(*pid)).collect()
    }

    /// Ends libvirtd, virtlogd and all guests that were started through them.
    pub fn kill_all(&self) {
        for name in ["libvirtd.pid", "virtlogd.pid"] {
            let pid = fs::read_to_string(self.dir.join(name))
                .ok()
                .and_then(|text| text.trim().parse().ok());
            let ours = pid.filter(|pid| command_line(*pid).contains(&self.dir.display().to_string()));
            if let Some(pid) = ours {
                end(pid);
            }
        }
        for pid in self.guests() {
            end(pid);
        }
    }
}

/// A running private libvirtd; ends with its guests when dropped.
pub struct PrivateLibvirt {
    layout: Layout,
    netns: Option<String>,
    child: Child,
}

impl PrivateLibvirt {
    /// Starts it in the named network namespace (or this process's) and waits until it answers.
    pub fn start(dir: &Path, cache: Option<&Path>, netns: Option<&str>) -> Result<Self> {
        let layout = Layout::prepare(dir, cache)?;
        let child = Self::spawn(&layout, netns)?;
        let mut this = Self {
            layout,
            netns: netns.map(str::to_owned),
            child,
        };
        this.ready()?;
        Ok(this)
    }

    fn spawn(layout: &Layout, netns: Option<&str>) -> Result<Child> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(layout.dir.join("libvirtd.log"))?;
        let mut command = Command::new("env");
        if let Some(netns) = netns {
            command.args(["ip", "netns", "exec", netns]);
        }
        command
            .arg(layout.program())
            .args(layout.args())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start libvirtd")
    }

    fn ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.layout.is_ready() {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.layout.dir.join("libvirtd.log")).unwrap_or_default();
                bail!("libvirtd ended with {status}:\n{log}");
            }
            ensure!(
                begun.elapsed() < Duration::from_secs(30),
                "libvirtd isn't ready after 30 s"
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills libvirtd and virtlogd the hard way (guests run on) and starts them again.
    pub fn restart(&mut self) -> Result<()> {
        self.kill_daemons();
        self.child = Self::spawn(&self.layout, self.netns.as_deref())?;
        self.ready()
    }

    /// Kills libvirtd and virtlogd the hard way; guests run on.
    pub fn kill_daemons(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
        let _ = fs::remove_file(self.layout.socket());
    }

    /// What clients connect to.
    pub fn uri(&self) -> String {
        self.layout.uri()
    }

    /// Where it lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

impl Drop for PrivateLibvirt {
    fn drop(&mut self) {
        self.kill_daemons();
        self.layout.kill_all();
    }
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .any(|dir| dir.join(tool).exists())
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

fn is_guest(pid: i32) -> bool {
    command_line(pid).contains("guest=")
}

/// Kills one process and waits a moment for its end.
fn end(pid: i32) {
    if kill(Pid::from_raw(pid), Signal::SIGKILL).is_err() {
        return;
    }
    let begun = Instant::now();
    let there =
        || fs::exists(format!("/proc/{pid}/cmdline")).unwrap_or(false) && !command_line(pid).is_empty();
    while there() && begun.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(5));
    }
}

/// A folder for the cache that is shared by all runs of one user on this machine.
pub fn shared_cache() -> io::Result<PathBuf> {
    let dir = std::env::temp_dir().join("decent-cloud-libvirt-cache");
    fs::create_dir_all(&dir)?;
    Ok(dir)
}
