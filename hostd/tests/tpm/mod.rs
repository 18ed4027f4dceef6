//! A software TPM of a test's own.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unreachable_pub, reason = "a module of tests has no outside")]
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// One swtpm with its state in a folder; killed when it goes out of scope.
pub struct Swtpm(Child, u16);

impl Swtpm {
    pub fn start(state: &Path) -> Self {
        let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        // Its protocol wants the control port right behind the TPM's.
        let port = (0..100)
            .filter_map(|_| bind(0).ok()?.local_addr().ok())
            .map(|address| address.port())
            .find(|port| *port < u16::MAX && bind(port + 1).is_ok())
            .unwrap();
        Self::listen(state, port)
    }

    /// The same TPM again, at the same place.
    pub fn restart(self, state: &Path) -> Self {
        let port = self.1;
        drop(self);
        Self::listen(state, port)
    }

    fn listen(state: &Path, port: u16) -> Self {
        let address = |port: u16| format!("type=tcp,port={port},bindaddr=127.0.0.1");
        let process = Command::new("swtpm")
            .args([
                "socket",
                "--tpm2",
                "--tpmstate",
                &format!("dir={}", state.display()),
            ])
            .args(["--server", &address(port), "--ctrl", &address(port + 1)])
            .args(["--flags", "not-need-init,startup-clear"])
            .stdout(Stdio::null())
            .spawn()
            .expect("swtpm (Debian package swtpm) must be installed");
        let tpm = Self(process, port);
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port + 1)).is_err() {
            assert!(Instant::now() < deadline, "swtpm doesn't listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        tpm
    }

    /// Its name for tpm2-tss.
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.1)
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
