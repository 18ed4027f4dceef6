//! The stage of the main job: two network namespaces (the host machine and the internet around it), the programs that
//! run in them, and one temporary folder. Everything carries the world's prefix, so that all of it can be found and
//! removed, also by a later run after this one was killed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Address of the host machine on the network between the two namespaces (TEST-NET-3, RFC 5737).
pub const HOST_ADDRESS: &str = "203.0.113.1";
/// Address of the internet's side: the ledger node and the developers.
pub const WAN_ADDRESS: &str = "203.0.113.2";

/// Which namespace a program runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The provider's machine: hostd, libvirtd, HAProxy, the VMs.
    Host,
    /// Everybody else: the ledger node, the developers.
    Internet,
}

/// A program that runs until the world ends.
struct Daemon {
    name: String,
    child: Child,
}

/// See the module.
pub struct World {
    prefix: String,
    dir: PathBuf,
    programs: PathBuf,
    daemons: Vec<Daemon>,
    clean: bool,
}

impl World {
    /// Builds the namespaces and the folder. `programs` holds this project's binaries.
    /// What an earlier world of the same prefix left behind is removed first.
    pub fn new(prefix: &str, programs: &Path) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "namespaces and taps need root: run this as root"
        );
        let dir = folder(prefix);
        remove_everything(prefix, &dir).context("cannot remove what an earlier run left behind")?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let world = Self {
            prefix: prefix.to_owned(),
            dir,
            programs: programs.to_owned(),
            daemons: Vec::new(),
            clean: false,
        };
        let (host, wan) = (world.netns(Place::Host), world.netns(Place::Internet));
        for ns in [&host, &wan] {
            ip(&["netns", "add", ns])?;
            ip(&["-n", ns, "link", "set", "lo", "up"])?;
        }
        ip(&[
            "link", "add", "wan0", "netns", &host, "type", "veth", "peer", "name", "eth0", "netns", &wan,
        ])?;
        for (ns, link, address) in [(&host, "wan0", HOST_ADDRESS), (&wan, "eth0", WAN_ADDRESS)] {
            ip(&["-n", ns, "addr", "add", &format!("{address}/24"), "dev", link])?;
            ip(&["-n", ns, "link", "set", link, "up"])?;
        }
        Ok(world)
    }

    /// What all names of this world start with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The world's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path inside the world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// One of this project's own programs.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        ensure!(
            path.exists(),
            "{} is missing: build it first (`make build`)",
            path.display()
        );
        Ok(path)
    }

    /// The name of a namespace.
    pub fn netns(&self, place: Place) -> String {
        match place {
            Place::Host => format!("{}-host", self.prefix),
            Place::Internet => format!("{}-wan", self.prefix),
        }
    }

    /// A command that will run in `place`. Not by `ip netns exec`: that gives a mount namespace of its own, and the
    /// namespaces that hostd makes would end with it.
    pub fn command(&self, place: Place, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns(place)));
        command.arg("--").arg(program.as_ref());
        command.stdin(Stdio::null()).current_dir(&self.dir);
        command
    }

    /// Starts a program that shall run until the world ends, its output in `<name>.log`.
    pub fn start(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{name}.log")))?;
        command.stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        self.daemons.push(Daemon {
            name: name.to_owned(),
            child,
        });
        Ok(())
    }

    /// Fails, with the end of its log, if a program of this world has stopped by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        for daemon in &mut self.daemons {
            if let Some(status) = daemon.child.try_wait()? {
                let log = tail(&self.dir.join(format!("{}.log", daemon.name)), 20);
                bail!("{} ended with {status}; the end of its log:\n{log}", daemon.name);
            }
        }
        Ok(())
    }

    /// Kills one program the hard way and forgets it.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.position(name)?;
        let mut daemon = self.daemons.remove(at);
        daemon.child.kill()?;
        daemon.child.wait()?;
        Ok(())
    }

    /// How a program ended, if it did; it is forgotten then and may be started again.
    pub fn ended(&mut self, name: &str) -> Result<Option<ExitStatus>> {
        let at = self.position(name)?;
        let status = self.daemons[at].child.try_wait()?;
        if status.is_some() {
            self.daemons.remove(at);
        }
        Ok(status)
    }

    /// The process id of a program (`nsenter` has become it).
    pub fn pid(&self, name: &str) -> Result<u32> {
        Ok(self.daemons[self.position(name)?].child.id())
    }

    fn position(&self, name: &str) -> Result<usize> {
        self.daemons
            .iter()
            .position(|d| d.name == name)
            .with_context(|| format!("{name} doesn't run"))
    }

    /// The end of a program's log, for an error message.
    pub fn log_tail(&self, name: &str, lines: usize) -> String {
        tail(&self.path(&format!("{name}.log")), lines)
    }

    /// Ends every program, removes namespaces (and with them links, rules, taps), mounts and the folder.
    /// Returns what is still there afterwards: nothing, if all went well.
    pub fn remove(&mut self) -> Result<Vec<String>> {
        for daemon in &mut self.daemons {
            // Already gone is what we want; whatever survives is killed by namespace below.
            let _ = daemon.child.kill();
            let _ = daemon.child.wait();
        }
        self.daemons.clear();
        remove_everything(&self.prefix, &self.dir)?;
        self.clean = true;
        leftovers(&self.prefix, &self.dir)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.clean
            && let Err(error) = self.remove()
        {
            eprintln!("cannot clean up: {error:#}");
        }
    }
}

/// Removes what a killed run of this prefix left behind.
pub fn clean(prefix: &str) -> Result<()> {
    remove_everything(prefix, &folder(prefix))
}

fn folder(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{prefix}-main-job"))
}

/// Runs a command to its end and returns its standard output; a failure carries the command and what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{}", describe(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whatever its exit status.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .output()
        .with_context(|| format!("cannot run {}", words(command)))
}

/// The command, its status and its output, in one text.
pub fn describe(command: &Command, output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!(
        "`{}` ended with {}\n{}{}",
        words(command),
        output.status,
        out,
        err
    )
}

/// The command as a person would type it, without the namespace around it.
pub fn words(command: &Command) -> String {
    let mut words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if words.len() > 3 && words[0] == "nsenter" {
        words.drain(..3);
    }
    if let Some(name) = Path::new(&words[0]).file_name() {
        words[0] = name.to_string_lossy().into_owned();
    }
    words.join(" ")
}

fn ip(args: &[&str]) -> Result<String> {
    run(Command::new("ip").args(args))
}

/// Every namespace of a prefix: the world's two and the tenants' that hostd made.
fn namespaces(prefix: &str) -> Result<Vec<String>> {
    let names = ip(&["netns", "list"])?
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|name| name.starts_with(&format!("{prefix}-")))
        .collect();
    Ok(names)
}

/// Processes inside the namespaces of a prefix, and those that have its folder in their command line.
fn processes(prefix: &str, dir: &Path) -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for ns in namespaces(prefix)? {
        for pid in ip(&["netns", "pids", &ns])?.split_whitespace() {
            found.extend(pid.parse::<i32>());
        }
    }
    let (needle, own) = (format!("{}/", dir.display()), std::process::id().cast_signed());
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let Ok(cmdline) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        if pid != own && String::from_utf8_lossy(&cmdline).contains(&needle) {
            found.insert(pid);
        }
    }
    Ok(found)
}

fn mounts(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_to_string("/proc/mounts")?
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(PathBuf::from))
        .filter(|target| target.starts_with(dir))
        .collect();
    found.reverse(); // the innermost first
    Ok(found)
}

fn remove_everything(prefix: &str, dir: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let alive = processes(prefix, dir)?;
        if alive.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "processes {alive:?} don't end");
        for pid in alive {
            // ESRCH: it ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(50));
    }
    for ns in namespaces(prefix)? {
        ip(&["netns", "delete", &ns])?;
    }
    for target in mounts(dir)? {
        nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", target.display()))?;
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// What of a world is still on this machine.
pub fn leftovers(prefix: &str, dir: &Path) -> Result<Vec<String>> {
    let mut found: Vec<String> = namespaces(prefix)?
        .into_iter()
        .map(|ns| format!("namespace {ns}"))
        .collect();
    found.extend(
        processes(prefix, dir)?
            .into_iter()
            .map(|pid| format!("process {pid}")),
    );
    found.extend(mounts(dir)?.into_iter().map(|m| format!("mount {}", m.display())));
    if dir.exists() {
        found.push(format!("folder {}", dir.display()));
    }
    for link in ip(&["-o", "link", "show"])?.lines() {
        let name = link.split(": ").nth(1).unwrap_or_default();
        if name.starts_with(prefix) {
            found.push(format!("link {name}"));
        }
    }
    Ok(found)
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
