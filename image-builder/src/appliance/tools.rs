//! The image tools of the suite that the image is made of, in a folder of the cache.
//!
//! ukify, mkfs.erofs, systemd-measure and the others must be as new as the system they make. They are unpacked from
//! Debian's packages into a folder, and started with that folder as their root directory (`unshare --root`): no mount,
//! and as an ordinary user in a user namespace. Every job gets a directory of its own inside.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::apt::{Apt, AptError, Components, Locked, Request, Setup};
use crate::config::{Mirror, PackageName, Suite};

/// The packages of the folder that builds.
pub const BUILD: [&str; 25] = [
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "dosfstools",
    "efitools",
    "erofs-utils",
    "fdisk",
    "gpg",
    "gpg-agent",
    "gpgv",
    "kmod",
    "libfaketime",
    "libtss2-esys-3.0.2-0t64",
    "libtss2-rc0t64",
    "mtools",
    "openssl",
    "python3-cryptography",
    "python3-pefile",
    "sbsigntool",
    "systemd",
    "systemd-boot-efi",
    "systemd-container",
    "systemd-ukify",
    "xorriso",
];

/// The packages of the folder that boots: QEMU 10, firmware and a TPM.
pub const RUN: [&str; 5] = ["base-files", "ovmf", "qemu-system-x86", "swtpm", "swtpm-tools"];

/// Why a tool didn't do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Its packages.
    #[error("cannot get the tools")]
    Packages(#[from] AptError),
    /// A file of the folder.
    #[error("cannot use {path}; choose another cache with --cache")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It can't be started.
    #[error(
        "cannot start {0} (apt-get install cryptsetup-bin util-linux); without root this needs user namespaces"
    )]
    Start(String, #[source] io::Error),
    /// It failed.
    #[error("{program} failed ({status}):\n{log}")]
    Failed {
        /// Its name.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        log: String,
    },
}

/// A folder with tools.
#[derive(Debug)]
pub struct Tools {
    /// The folder: the tools' root directory.
    pub root: PathBuf,
    /// What is in it.
    pub packages: Vec<Locked>,
}

impl Tools {
    /// Makes the folder, or finds it in the cache.
    pub fn prepare(
        apt: &Apt,
        set: &'static str,
        names: &[&str],
        suite: &Suite,
        mirror: Option<&Mirror>,
    ) -> Result<Self, ToolError> {
        let packages: Vec<PackageName> = names
            .iter()
            .map(|name| name.parse().expect("a constant package name"))
            .collect();
        let fetched = apt.fetch(&Request {
            set,
            suite,
            mirror,
            packages: &packages,
            allow_expired: false,
            setup: Setup::Unpacked,
            components: Components::Main,
            fixes: true,
            lock: None,
        })?;
        let root = fetched.tar.with_extension("root");
        if !fetched.cached && root.exists() {
            fs::remove_dir_all(&root).map_err(|source| file(&root, source))?;
        }
        if !root.exists() {
            let partial = tempfile::tempdir_in(&apt.cache).map_err(|source| file(&apt.cache, source))?;
            unpack(&fetched.tar, partial.path()).map_err(|source| file(&fetched.tar, source))?;
            fs::rename(partial.keep(), &root).map_err(|source| file(&root, source))?;
        }
        // Relative paths would mean something else after `--wd`.
        let root = root.canonicalize().map_err(|source| file(&root, source))?;
        Ok(Self {
            root,
            packages: fetched.packages,
        })
    }

    /// A new directory in which tools work.
    pub fn job(&self) -> Result<Job<'_>, ToolError> {
        let parent = self.root.join("job");
        fs::create_dir_all(&parent).map_err(|source| file(&parent, source))?;
        let dir = tempfile::tempdir_in(&parent).map_err(|source| file(&parent, source))?;
        Ok(Job { tools: self, dir })
    }

    /// A file of the folder.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, ToolError> {
        let path = self.root.join(path);
        fs::read(&path).map_err(|source| file(&path, source))
    }
}

/// A working directory of the tools; it goes away with this value.
#[derive(Debug)]
pub struct Job<'a> {
    tools: &'a Tools,
    dir: tempfile::TempDir,
}

impl Job<'_> {
    /// Where a file of the job is for us.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the job's directory is for the tools.
    pub fn inside(&self) -> String {
        let name = self.dir.path().file_name().unwrap_or_default();
        format!("/job/{}", name.to_string_lossy())
    }

    /// Gives the tools a file.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<(), ToolError> {
        let path = self.path(name);
        fs::write(&path, content).map_err(|source| file(&path, source))
    }

    /// Reads what a tool made.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, ToolError> {
        let path = self.path(name);
        fs::read(&path).map_err(|source| file(&path, source))
    }

    /// Runs a tool and returns what it printed. Its clock stands at 1970-01-02, so that signatures and file systems
    /// that keep a time are the same each time.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Vec<u8>, ToolError> {
        self.start(program, args, true)
    }

    /// The same with the real clock: for certificates, which hold from today on.
    pub fn run_now<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Vec<u8>, ToolError> {
        self.start(program, args, false)
    }

    fn start<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = S>,
        still: bool,
    ) -> Result<Vec<u8>, ToolError> {
        let inside = self.inside();
        let mut command = Command::new("unshare");
        if !is_root() {
            command.arg("--map-root-user");
        }
        command
            .arg(format!("--root={}", self.tools.root.display()))
            .arg(format!("--wd={inside}"))
            .arg("--")
            .arg("env")
            .args(still.then_some(STILL_CLOCK).into_iter().flatten())
            .arg(program)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/usr/lib/systemd:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC0")
            .env("TMPDIR", &inside)
            .env("MTOOLS_SKIP_CHECK", "1")
            .env("SOURCE_DATE_EPOCH", "0")
            .stdin(Stdio::null());
        finish(program, &mut command)
    }

    /// Runs a program of this machine in the job's directory: one that wants more of `/dev` than the folder has.
    pub fn run_outside<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Vec<u8>, ToolError> {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        finish(program, &mut command)
    }
}

/// The clock of the tools.
const STILL_CLOCK: [&str; 2] = [
    "LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "FAKETIME=1970-01-02 00:00:00",
];

fn finish(program: &str, command: &mut Command) -> Result<Vec<u8>, ToolError> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .map_err(|source| ToolError::Start(program.to_owned(), source))?;
    if status.success() {
        return Ok(stdout);
    }
    let text = [stdout, stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    Err(ToolError::Failed {
        program: program.to_owned(),
        status,
        log: lines[lines.len().saturating_sub(24)..].join("\n"),
    })
}

/// Whether this process may change its root directory without a user namespace.
fn is_root() -> bool {
    // The owner of a file that we make is our effective user.
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn file(path: &Path, source: io::Error) -> ToolError {
    ToolError::File {
        path: path.to_owned(),
        source,
    }
}

/// Unpacks packages as files of whoever runs this; devices are left out, and an empty file stands in for /dev/null.
fn unpack(tar: &Path, to: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(io::BufReader::new(fs::File::open(tar)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        if matches!(entry.header().entry_type(), Directory | Link | Regular | Symlink) {
            entry.set_preserve_mtime(false);
            entry.unpack_in(to)?;
        }
    }
    for dir in ["dev", "job", "tmp"] {
        fs::create_dir_all(to.join(dir))?;
    }
    fs::write(to.join("dev/null"), "")
}
