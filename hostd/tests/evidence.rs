//! `hostd evidence`, with swtpm as the host's TPM.

#![cfg(feature = "tpm")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use attestation::{AnyEvidence, Endorsements, Policy, PolicyFile, Roots, verify_any};

struct Swtpm(Child, u16);

impl Swtpm {
    fn start(state: &Path) -> Self {
        let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        // Its protocol wants the control port right behind the TPM's.
        let port = (0..100)
            .filter_map(|_| bind(0).ok()?.local_addr().ok())
            .map(|address| address.port())
            .find(|port| *port < u16::MAX && bind(port + 1).is_ok())
            .unwrap();
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
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_hosts_evidence_is_verified_with_the_key_that_hostd_names() {
    let folder = tempfile::tempdir().unwrap();
    let tpm = Swtpm::start(folder.path());
    let out = folder.path().join("evidence.cbor");
    let nonce = "00112233445566778899aabbccddeeff";
    let output = Command::new(env!("CARGO_BIN_EXE_hostd"))
        .args(["--json", "evidence", "--nonce", nonce])
        .args(["--tpm", &format!("swtpm:host=127.0.0.1,port={}", tpm.1)])
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let policy: PolicyFile =
        serde_json::from_value(serde_json::json!({ "tpm": { "aks": [said["ak"]], "nonce": nonce } }))
            .unwrap();
    let policy = Policy::from_file(&policy).unwrap();
    let evidence = AnyEvidence::parse(&std::fs::read(&out).unwrap()).unwrap();
    let result = verify_any(
        &evidence,
        &Endorsements::none(),
        &Roots::pinned(),
        &policy,
        1_788_220_800,
    );
    assert!(result.is_verified(), "{result}");
}

#[test]
fn without_a_tpm_hostd_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hostd"))
        .args(["evidence", "--tpm", "device:/nonexistent/tpm", "--out"])
        .arg(folder.path().join("evidence.cbor"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("cannot use the TPM `device:/nonexistent/tpm`"),
        "{text}"
    );
}
