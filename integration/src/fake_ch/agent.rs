//! The guest agent of a VM that doesn't exist: Cloud Hypervisor's vsock socket, and behind it an agent of a plain VM.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use attestation::agent::{Deframer, Request, RequestBody, Response, ResponseBody, VSOCK_PORT, frame};
use attestation::{CpuEvidence, Evidence, GuestKeys};

/// A key that is one, and nobody's.
const SSH_HOST_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";

/// Listens on the VM's vsock socket.
pub(super) fn listen(socket: &Path, mode: &str) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let (socket, mode) = (socket.to_owned(), mode.to_owned());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mode = mode.clone();
            thread::spawn(move || serve(stream, &mode));
        }
        let _ = fs::remove_file(socket);
    });
    Ok(())
}

/// Host-initiated vsock as Cloud Hypervisor and Firecracker do it: `CONNECT port`, `OK port`, then the guest.
fn serve(mut stream: UnixStream, mode: &str) -> io::Result<()> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 32 && stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let wanted = format!("CONNECT {VSOCK_PORT}");
    if line != wanted.as_bytes() || mode == "none" {
        return Ok(()); // nobody listens on that port: the connection is closed
    }
    stream.write_all(b"OK 1073741824\n")?;
    match mode {
        "silent" => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        "garbage" => stream.write_all(&[b'?'; 1000]),
        "huge" => {
            stream.write_all(b"DCA1\x40\x00\x00\x00")?;
            loop {
                stream.write_all(&[0; 4096])?;
            }
        }
        "die" => std::process::exit(101),
        _ => answer(&mut stream),
    }
}

fn answer(stream: &mut UnixStream) -> io::Result<()> {
    let mut frames = Deframer::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Ok(());
        }
        frames.push(&chunk[..read]);
        while let Some(content) = frames.next_frame() {
            let Some(request) = content.ok().and_then(|content| Request::from_cbor(&content).ok()) else {
                continue;
            };
            let body = body(&request.body);
            stream.write_all(&frame(&Response { id: request.id, body }.to_cbor()))?;
        }
    }
}

fn body(request: &RequestBody) -> ResponseBody {
    match request {
        RequestBody::Hello => ResponseBody::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            platform: "none".to_owned(),
        },
        RequestBody::Evidence { .. } => {
            let guest_keys = GuestKeys {
                ssh_host_key: SSH_HOST_KEY.parse().ok(),
                ..GuestKeys::default()
            };
            ResponseBody::Evidence(
                Evidence {
                    cpu: CpuEvidence::None,
                    guest_keys,
                }
                .to_cbor(),
            )
        }
        RequestBody::Shutdown => {
            super::vm::end_soon(50);
            ResponseBody::Ok
        }
    }
}
