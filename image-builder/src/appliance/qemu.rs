//! Booting an image in QEMU: firmware with secure boot, a TPM, a disk that is a copy.
//!
//! QEMU, OVMF and swtpm come from a folder of the cache, like the image tools: QEMU before 10 can't run newer kernels
//! under TCG without faults. They are started by their own dynamic loader, not in a root directory of their own, because
//! they work on files from anywhere.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::tools::Tools;

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Why a machine didn't start.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A file of the machine.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A program.
    #[error("cannot start {0}")]
    Start(&'static str, #[source] io::Error),
    /// The TPM's emulator ended at once.
    #[error("swtpm made no socket at {0}; its log is beside it")]
    Tpm(PathBuf),
}

/// What the machine has.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Where its TPM, its firmware variables and its disk live. A second run in the same place is a reboot.
    pub dir: PathBuf,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// CPUs.
    pub cpus: u32,
    /// The disk's size in MiB; grown, never shrunk.
    pub disk_mib: u32,
    /// Whether this machine's KVM is used. Off, QEMU emulates, SVM included.
    pub kvm: bool,
    /// What it lacks that a good machine has.
    pub without: Vec<Part>,
    /// TCP ports of this machine that lead to ports of the guest: `(here, there)`.
    pub forward: Vec<(u16, u16)>,
    /// Further arguments for QEMU.
    pub extra: Vec<String>,
}

/// A part that a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The TPM.
    Tpm,
    /// Firmware that knows secure boot.
    SecureBoot,
    /// The network card.
    Network,
}

/// Where the machine's first serial port goes.
#[derive(Clone, Debug)]
pub enum Serial {
    /// The terminal, with QEMU's monitor behind Ctrl-A C.
    Terminal,
    /// A file. Who types connects to the unix socket beside it, [`keyboard`].
    File(PathBuf),
}

/// The unix socket that leads to the serial port which writes to `log`.
pub fn keyboard(log: &Path) -> PathBuf {
    log.with_extension("sock")
}

impl Machine {
    /// The machine's disk.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.raw")
    }

    /// Makes the disk out of a compressed one, unless there is one already.
    pub fn insert_disk(&self, compressed: &Path) -> Result<(), MachineError> {
        fs::create_dir_all(&self.dir).map_err(|e| file("make", &self.dir, e))?;
        let path = self.disk();
        if path.exists() {
            return Ok(());
        }
        let partial = self.dir.join("disk.partial");
        let unpack = || -> io::Result<()> {
            let disk = File::create(&partial)?;
            let mut from = zstd::Decoder::new(File::open(compressed)?)?;
            let size = flash::write_sparse(&mut from, &disk)?;
            disk.set_len(size.max(u64::from(self.disk_mib) << 20))?;
            fs::rename(&partial, &path)
        };
        unpack().map_err(|e| file("unpack", compressed, e))
    }

    /// Starts TPM and machine. Both end with the returned value.
    pub fn start(&self, tools: &Tools, serial: &Serial) -> Result<Running, MachineError> {
        let tpm = if self.without.contains(&Part::Tpm) {
            None
        } else {
            Some(self.start_tpm(tools)?)
        };
        let vars = self.dir.join("vars.fd");
        if !vars.exists() {
            let blank = tools.root.join("usr/share/OVMF/OVMF_VARS_4M.fd");
            fs::copy(&blank, &vars).map_err(|e| file("copy", &blank, e))?;
        }
        let args = self.arguments(tools, serial);
        let interactive = matches!(serial, Serial::Terminal);
        let log = self.dir.join("qemu.log");
        let stderr = File::create(&log).map_err(|e| file("write", &log, e))?;
        let mut command = own_loader(tools, "usr/bin/qemu-system-x86_64");
        command
            .args(&args)
            .env("QEMU_MODULE_DIR", tools.root.join(LIBRARIES).join("qemu"))
            .stdin(if interactive {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .stdout(if interactive {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .stderr(stderr);
        let qemu = command.spawn().map_err(|e| MachineError::Start("QEMU", e))?;
        Ok(Running {
            qemu: Guard(qemu),
            _tpm: tpm,
        })
    }

    fn start_tpm(&self, tools: &Tools) -> Result<Guard, MachineError> {
        let (state, socket) = (self.dir.join("tpm"), self.tpm_socket());
        fs::create_dir_all(&state).map_err(|e| file("make", &state, e))?;
        let _ = fs::remove_file(&socket);
        let log = self.dir.join("swtpm.log");
        let child = own_loader(tools, "usr/bin/swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear"])
            .arg(format!("--tpmstate=dir={}", state.display()))
            .arg(format!("--ctrl=type=unixio,path={}", socket.display()))
            .arg(format!("--log=file={}", log.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let guard = Guard(child.map_err(|e| MachineError::Start("swtpm", e))?);
        let until = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            if Instant::now() > until {
                return Err(MachineError::Tpm(socket));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(guard)
    }

    fn tpm_socket(&self) -> PathBuf {
        self.dir.join("tpm.sock")
    }

    /// QEMU's arguments; pure.
    fn arguments(&self, tools: &Tools, serial: &Serial) -> Vec<String> {
        let share = tools.root.join("usr/share");
        let has = |part| !self.without.contains(&part);
        let code = share.join(if has(Part::SecureBoot) {
            "OVMF/OVMF_CODE_4M.secboot.fd"
        } else {
            "OVMF/OVMF_CODE_4M.fd"
        });
        let firmware = |unit: u8, path: &Path, more: &str| {
            format!("if=pflash,format=raw,unit={unit},file={}{more}", path.display())
        };
        let forward: String = self
            .forward
            .iter()
            .map(|(here, there)| format!(",hostfwd=tcp:127.0.0.1:{here}-:{there}"))
            .collect();
        let accelerator = if self.kvm {
            "kvm"
        } else {
            "tcg,thread=multi,tb-size=512"
        };
        let mut args = ["-nodefaults", "-no-user-config", "-display", "none"]
            .map(str::to_owned)
            .to_vec();
        let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
        add("-L", share.join("qemu").display().to_string());
        add("-L", share.join("seabios").display().to_string());
        // Firmware may write its variables only from system management mode: what makes secure boot hold.
        add("-machine", "q35,smm=on".to_owned());
        if has(Part::SecureBoot) {
            let secure = "driver=cfi.pflash01,property=secure,value=on";
            add("-global", secure.to_owned());
        }
        add("-accel", accelerator.to_owned());
        add("-cpu", if self.kvm { "host" } else { "EPYC,+svm" }.to_owned());
        add("-smp", self.cpus.to_string());
        add("-m", self.memory_mib.to_string());
        add("-drive", firmware(0, &code, ",readonly=on"));
        add("-drive", firmware(1, &self.dir.join("vars.fd"), ""));
        if has(Part::Tpm) {
            let socket = self.tpm_socket();
            add("-chardev", format!("socket,id=tpm,path={}", socket.display()));
            add("-tpmdev", "emulator,id=tpm,chardev=tpm".to_owned());
            add("-device", "tpm-crb,tpmdev=tpm".to_owned());
        }
        add(
            "-drive",
            format!(
                "if=none,id=disk,format=raw,discard=unmap,file={}",
                self.disk().display()
            ),
        );
        add("-device", "virtio-blk-pci,drive=disk".to_owned());
        add("-device", "virtio-rng-pci".to_owned());
        if has(Part::Network) {
            add("-netdev", format!("user,id=net{forward}"));
            add("-device", "virtio-net-pci,netdev=net,romfile=".to_owned());
        }
        match serial {
            Serial::Terminal => add("-serial", "mon:stdio".to_owned()),
            Serial::File(log) => {
                let (socket, log) = (keyboard(log), log.display());
                let socket = socket.display();
                add(
                    "-chardev",
                    format!("socket,id=serial,path={socket},server=on,wait=off,logfile={log}"),
                );
                add("-serial", "chardev:serial".to_owned());
            }
        }
        args.extend(self.extra.iter().cloned());
        args
    }
}

/// A machine that runs.
#[derive(Debug)]
pub struct Running {
    qemu: Guard,
    _tpm: Option<Guard>,
}

impl Running {
    /// Waits until the machine is switched off.
    pub fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        self.qemu.0.wait()
    }

    /// Whether it was switched off.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.qemu.0.try_wait(), Ok(Some(_)))
    }
}

/// A process that ends with this value.
#[derive(Debug)]
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program of the folder, started with the folder's own loader and libraries. It ends with us, however we end.
fn own_loader(tools: &Tools, program: &str) -> Command {
    let libraries = tools.root.join(LIBRARIES);
    let private = ["pulseaudio", "swtpm"].map(|dir| libraries.join(dir));
    let path = std::iter::once(&libraries).chain(&private);
    let path: Vec<String> = path.map(|dir| dir.display().to_string()).collect();
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(tools.root.join("usr/lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(path.join(":"))
        .arg(tools.root.join(program));
    command
}

fn file(what: &'static str, path: &Path, source: io::Error) -> MachineError {
    MachineError::File {
        what,
        path: path.to_owned(),
        source,
    }
}
