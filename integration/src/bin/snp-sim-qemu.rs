//! A QEMU on a machine with a simulated SEV-SNP chip; see `integration::sim`.
//!
//! `snp-sim-qemu init DIR` makes a chip; libvirt is then told to use `DIR/qemu` as its emulator.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use integration::sim::{self, Invocation, SnpLaunch};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const HELP: &str = "\
A QEMU on a machine with a simulated SEV-SNP chip. For tests and the demo: its root is a test root.

Usage: snp-sim-qemu init DIR     makes a chip; use DIR/qemu as libvirt's emulator
       snp-sim-qemu kds DIR ADDRESS   its maker's key service, over http
       DIR/qemu QEMU-ARGUMENTS   qemu-system-x86_64; `-object sev-snp-guest,…` is simulated
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("snp-sim-qemu: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args_os();
    let invoked = PathBuf::from(arguments.next().context("no program name")?);
    let arguments: Vec<OsString> = arguments.collect();
    let words: Vec<String> = arguments
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["--help"] if invoked.file_name() != Some(sim::EMULATOR.as_ref()) => {
            print!("{HELP}");
            return Ok(());
        }
        ["init", dir] => return sim::init(Path::new(dir), &std::env::current_exe()?),
        ["kds", dir, address] => {
            let address = address.parse().context("an address is 127.0.0.1:8080")?;
            return sim::serve_kds(Path::new(dir), address);
        }
        ["chip", dir, launch] => return chip(Path::new(dir), launch),
        _ => {}
    }
    let dir = invoked.parent().context("no folder")?;
    match sim::parse(&words)? {
        Invocation::Plain => become_qemu(&arguments),
        Invocation::ObjectHelp => {
            let status = Command::new(QEMU)
                .args(&arguments)
                .status()
                .context("cannot run QEMU")?;
            println!("  sev-snp-guest");
            if status.success() {
                Ok(())
            } else {
                bail!("QEMU ended with {status}")
            }
        }
        Invocation::Snp(launch, real) => {
            let guest_end = start_chip(dir, &launch)?;
            let mut real: Vec<OsString> = real.into_iter().map(OsString::from).collect();
            real.extend(port(&guest_end).into_iter().map(OsString::from));
            become_qemu(&real)
        }
    }
}

fn become_qemu(arguments: &[OsString]) -> Result<()> {
    Err(Command::new(QEMU).args(arguments).exec()).with_context(|| format!("cannot run {QEMU}"))
}

/// The chip lives as long as QEMU holds the other end of its socket.
fn start_chip(dir: &Path, launch: &SnpLaunch) -> Result<OwnedFd> {
    let measured = sim::measure(launch)?;
    let (chip_end, guest_end) = UnixStream::pair()?;
    Command::new(std::env::current_exe()?)
        .arg("chip")
        .arg(dir)
        .arg(serde_json::to_string(&measured)?)
        .stdin(OwnedFd::from(chip_end.try_clone()?))
        .stdout(OwnedFd::from(chip_end))
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the chip")?;
    let guest_end = OwnedFd::from(guest_end);
    fcntl(guest_end.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))
        .context("cannot hand the chip's socket on")?;
    Ok(guest_end)
}

/// The guest's side of the chip: one more port on libvirt's virtio-serial controller.
fn port(guest_end: &OwnedFd) -> [String; 4] {
    [
        "-chardev".to_owned(),
        format!("socket,id=snpsim,fd={}", guest_end.as_raw_fd()),
        "-device".to_owned(),
        // As JSON, since QEMU makes devices given otherwise before libvirt's controller is there.
        serde_json::json!({
            "driver": "virtserialport",
            "bus": "virtio-serial0.0",
            "nr": 2,
            "chardev": "snpsim",
            "id": "snpsim0",
            "name": attestation::agent::simulator::SIMULATOR_PORT,
        })
        .to_string(),
    ]
}

/// The chip's own process.
fn chip(dir: &Path, launch: &str) -> Result<()> {
    close_inherited()?;
    let platform = sim::load(dir)?;
    sim::serve(
        &platform,
        &serde_json::from_str(launch)?,
        &mut io::stdin().lock(),
        &mut io::stdout().lock(),
    )
}

/// libvirt hands QEMU sockets that mustn't be held by anybody else.
fn close_inherited() -> Result<()> {
    let fds: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in fds {
        // One of them was the directory itself, closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}
