//! `attest agent`: answers the host's questions for evidence, over virtio-serial (QEMU) and vsock (Cloud Hypervisor).

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use attestation::agent::report::open_port;
use attestation::agent::serve::{Guest, serve};
use attestation::agent::{AGENT_PORT, VSOCK_PORT};
use vsock::{VMADDR_CID_ANY, VsockListener};

const HELP: &str = "\
Answers the host's questions for evidence, for as long as the VM runs.

Usage: attest agent [--ssh-host-key FILE] [--tls-cert FILE] [--wireguard FILE]
                    [--settings FILE] [--gpu-collector PROGRAM]

  --ssh-host-key FILE  OpenSSH .pub file of the VM's SSH host key
  --tls-cert FILE      certificate (PEM or DER) of the VM's TLS server; its key is what counts
  --wireguard FILE     the VM's WireGuard public key, base64
  --settings FILE      digest of the settings that the VM applied, in hex (guest-setup writes it)
  --gpu-collector PROGRAM
                       what gives the GPUs' evidence: `attest-gpu`, where the VM has the driver

It listens on the virtio-serial port org.decentcloud.agent.0 and on vsock port 4040, whichever the VM has. Reports come
from the kernel (configfs-tsm, /dev/sev-guest), quotes also from the host's quote service (vsock port 4050). A VM
without confidential hardware gives its keys only.
";

pub(crate) fn main() -> ExitCode {
    match options() {
        Ok(Some(guest)) => run(&guest),
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("attest agent: {error}; see `attest agent --help`");
            ExitCode::from(2)
        }
    }
}

fn options() -> Result<Option<Guest>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut guest = Guest::default();
    let keys = &mut guest.keys;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Value(word) if word == "agent" => {}
            Long("ssh-host-key") => keys.ssh_host_key = Some(PathBuf::from(parser.value()?)),
            Long("tls-cert") => keys.tls_certificate = Some(PathBuf::from(parser.value()?)),
            Long("wireguard") => keys.wireguard = Some(PathBuf::from(parser.value()?)),
            Long("settings") => keys.settings = Some(PathBuf::from(parser.value()?)),
            Long("gpu-collector") => guest.gpu_collector = Some(PathBuf::from(parser.value()?)),
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(guest))
}

fn run(guest: &Guest) -> ExitCode {
    let serial = {
        let guest = guest.clone();
        thread::spawn(move || serve_serial(&guest))
    };
    if Path::new("/dev/vsock").exists() {
        let error = serve_vsock(guest);
        eprintln!("attest agent: vsock: {error}");
    }
    match serial.join() {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("attest agent: {AGENT_PORT}: {error}");
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Serves the port for ever; ends only if there is none or it breaks.
fn serve_serial(guest: &Guest) -> io::Result<()> {
    let mut port = open_port(AGENT_PORT, Duration::from_secs(10))?;
    loop {
        serve(&mut port, guest)?;
        // The host hung up, or isn't there yet: reads end at once until somebody opens its side.
        thread::sleep(Duration::from_millis(50));
    }
}

/// One connection at a time: only the host connects, and it asks one question at a time. Ends only if nobody can listen.
fn serve_vsock(guest: &Guest) -> io::Error {
    /// A host that says nothing, or doesn't take the answer, must not keep the agent from the next one.
    const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));
    let listener = match VsockListener::bind_with_cid_port(VMADDR_CID_ANY, VSOCK_PORT) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    loop {
        let served = listener.accept().and_then(|(mut stream, _)| {
            stream.set_read_timeout(PATIENCE)?;
            stream.set_write_timeout(PATIENCE)?;
            serve(&mut stream, guest)
        });
        if let Err(error) = served {
            eprintln!("attest agent: vsock: {error}");
            // An accept that fails at once must not spin.
            thread::sleep(Duration::from_millis(50));
        }
    }
}
