//! From NVML's ABI to a verdict: `attest-gpu` beside a stand-in for `libnvidia-ml.so`, which answers with what simulated
//! GPUs sign; and the agent that starts it.

#![cfg(all(feature = "gpu", feature = "agent"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use attestation::agent::gpus::collect;
use attestation::nvidia::GpuEvidence;
use attestation::sim::{Gpu, GpuFacts, Launch, Platform};
use attestation::{
    Composite, CpuEvidence, Endorsements, Evidence, GuestKeys, Policy, Reason, Roots, gpu_nonce,
    verify_composite,
};
use base64::Engine;

/// 2026-09-01.
const AT: u64 = 1_788_220_800;
const NOT_SUPPORTED: u32 = 3;
const GPU_IS_LOST: u32 = 15;

/// What one device behind the library does.
enum Device {
    /// Signs over the nonce it is given, or over another.
    Signs(Gpu, Option<[u8; 32]>),
    /// NVML's error.
    Fails(u32),
    /// Signs, but has this for a certificate chain.
    Chain(Gpu, &'static [u8]),
}

impl Device {
    fn answer(&self, question: &[u8]) -> (u32, Vec<u8>) {
        let nonce = question.get(2..34).map(|nonce| nonce.try_into().unwrap());
        let report = |gpu: &Gpu, nonce| {
            let facts = GpuFacts {
                nonce,
                ..GpuFacts::default()
            };
            gpu.report(&facts).unwrap()
        };
        match (self, nonce) {
            (Self::Signs(gpu, other), Some(asked)) => (0, report(gpu, other.unwrap_or(asked))),
            (Self::Chain(gpu, _), Some(asked)) => (0, report(gpu, asked)),
            (Self::Signs(gpu, _), None) => (0, pem(&gpu.chain())),
            (Self::Chain(_, chain), None) => (0, chain.to_vec()),
            (Self::Fails(code), _) => (*code, Vec::new()),
        }
    }
}

fn pem(chain: &[Vec<u8>]) -> Vec<u8> {
    let block = |der: &Vec<u8>| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    chain.iter().map(block).collect::<String>().into_bytes()
}

/// A VM with these GPUs: its PCI bus, its NVML, and a collector as the agent starts it.
struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    fn with(devices: Vec<Device>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let bus = devices.len();
        for (n, (vendor, class)) in std::iter::repeat_n(("0x10de", "0x030200"), bus)
            // Its audio function, and a graphics card of somebody else's.
            .chain([("0x10de", "0x040300"), ("0x1234", "0x030000")])
            .enumerate()
        {
            let device = path(&format!("pci/0000:00:{n:02x}.0"));
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
            fs::write(device.join("class"), format!("{class}\n")).unwrap();
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu_collect/fake_nvml.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
            .args([path("libnvidia-ml.so.1"), source])
            .status();
        assert!(built.unwrap().success(), "cc builds the stand-in");
        let script = format!(
            "#!/bin/sh\nFAKE_NVML_SOCKET={0}/nvml exec {1} --library {0}/libnvidia-ml.so.1 --pci {0}/pci\n",
            dir.path().display(),
            env!("CARGO_BIN_EXE_attest-gpu")
        );
        fs::write(path("collector"), script).unwrap();
        fs::set_permissions(path("collector"), fs::Permissions::from_mode(0o755)).unwrap();
        let listener = UnixListener::bind(path("nvml")).unwrap();
        let devices = Arc::new(devices);
        // Ends with the test's process.
        thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut question = Vec::new();
                connection.read_to_end(&mut question).unwrap();
                let (code, answer) = match question[0] {
                    b'N' => (0, (devices.len() as u32).to_ne_bytes().to_vec()),
                    _ => devices[usize::from(question[1])].answer(&question),
                };
                // A reader that has enough hangs up.
                let _ = connection.write_all(&[&code.to_ne_bytes()[..], &answer].concat());
            }
        });
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn collect(&self, nonce: &[u8; 32]) -> Result<Vec<GpuEvidence>, String> {
        collect(&self.path("collector"), nonce, Duration::from_secs(60)).map_err(|e| e.to_string())
    }
}

fn hopper() -> Gpu {
    Gpu::create(None).unwrap()
}

#[test]
fn evidence_of_all_gpus_through_nvml_is_verified_with_the_vm_that_asked() {
    let (platform, gpus) = (
        Platform::create().unwrap(),
        [hopper(), Gpu::create(Some(false)).unwrap()],
    );
    let mut roots = Roots::pinned().with_test_root(platform.root()).unwrap();
    for gpu in &gpus {
        roots = roots.with_test_root(gpu.root()).unwrap();
    }
    let chains = gpus.each_ref().map(Gpu::chain);
    let guest = Guest::with(gpus.into_iter().map(|gpu| Device::Signs(gpu, None)).collect());
    let report_data = [7; 64];
    let collected = guest.collect(&gpu_nonce(&report_data)).unwrap();
    assert_eq!(
        collected.iter().map(|gpu| &gpu.certificates).collect::<Vec<_>>(),
        chains.iter().collect::<Vec<_>>()
    );

    let launch = Launch {
        measurement: [0xcc; 48],
        host_data: [0xaa; 32],
        policy: 0x3_0000,
    };
    let report = platform.report(&launch, &report_data).unwrap();
    let certificates = platform.certificates();
    let vm = Evidence {
        cpu: CpuEvidence::SevSnp { report, certificates },
        guest_keys: GuestKeys::default(),
    };
    let judged = |gpus: Vec<GpuEvidence>| {
        let policy = Policy {
            gpus: Some(1),
            ..Policy::default()
        };
        // As it goes over the wire to the host, and from there to the ledger.
        let sent = Composite {
            vm: vm.clone(),
            gpus,
            host: None,
        };
        let came = Composite::from_cbor(&sent.to_cbor()).unwrap();
        verify_composite(&came, &Endorsements::none(), &roots, &policy, AT)
    };
    // One of them: simulated devices all have the same serial number.
    let first = |collected: &[GpuEvidence]| collected[..1].to_vec();
    let result = judged(first(&collected));
    assert!(result.is_verified(), "{result}");
    // The same GPU, asked by another VM.
    let result = judged(first(&guest.collect(&gpu_nonce(&[8; 64])).unwrap()));
    assert_eq!(result.reasons(), [Reason::NonceMismatch], "{result}");
    let result = judged(Vec::new());
    assert_eq!(result.reasons(), [Reason::GpuCountMismatch], "{result}");
}

#[test]
fn a_vm_without_gpus_needs_no_driver_and_a_gpu_outside_of_cc_mode_gives_nothing() {
    let guest = Guest::with(vec![]);
    fs::remove_file(guest.path("libnvidia-ml.so.1")).unwrap();
    assert_eq!(guest.collect(&[1; 32]).unwrap(), []);
    let guest = Guest::with(vec![Device::Fails(NOT_SUPPORTED), Device::Signs(hopper(), None)]);
    assert_eq!(guest.collect(&[1; 32]).unwrap().len(), 1);
}

#[test]
fn whatever_is_wrong_with_driver_or_gpu_is_an_error_that_names_it() {
    let rows: Vec<(Vec<Device>, &str)> = vec![
        (vec![Device::Fails(GPU_IS_LOST)], "GPU 0: no attestation report: "),
        (
            vec![
                Device::Signs(hopper(), None),
                Device::Signs(hopper(), Some([9; 32])),
            ],
            "GPU 1: its report answers another nonce",
        ),
        (
            vec![Device::Chain(hopper(), b"")],
            "GPU 0: its certificate chain is empty",
        ),
        (
            vec![Device::Chain(hopper(), b"\xff\xfe")],
            "GPU 0: its certificate chain is no text",
        ),
        (
            vec![Device::Chain(
                hopper(),
                b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
            )],
            "GPU 0: its certificate chain: ",
        ),
        // Longer than the structure has room for.
        (
            vec![Device::Chain(hopper(), &[b'x'; 6000])],
            "GPU 0: its certificate chain is no text",
        ),
    ];
    for (devices, why) in rows {
        let error = Guest::with(devices).collect(&[1; 32]).unwrap_err();
        assert!(
            error.starts_with("the GPU collector failed (exit status: 1): attest-gpu: ")
                && error.contains(why),
            "{why}: {error}"
        );
    }
    // On the bus, but the driver has lost it, or isn't there.
    let guest = Guest::with(vec![Device::Signs(hopper(), None)]);
    let ghost = guest.path("pci/0000:01:00.0");
    fs::create_dir(&ghost).unwrap();
    fs::write(ghost.join("vendor"), "0x10de\n").unwrap();
    fs::write(ghost.join("class"), "0x030200\n").unwrap();
    let error = guest.collect(&[1; 32]).unwrap_err();
    assert!(
        error.ends_with("NVML has 1 of the 2 NVIDIA GPUs that are on the PCI bus"),
        "{error}"
    );
    fs::remove_file(guest.path("libnvidia-ml.so.1")).unwrap();
    let error = guest.collect(&[1; 32]).unwrap_err();
    assert!(error.contains("NVML doesn't start"), "{error}");
}

#[test]
fn a_nonce_of_another_length_is_refused() {
    for len in [0, 31, 33, 10_000] {
        let mut collector = Command::new(env!("CARGO_BIN_EXE_attest-gpu"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It stops reading behind the 33rd byte.
        let _ = collector.stdin.take().unwrap().write_all(&vec![1; len]);
        let output = collector.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{len} bytes");
        assert!(output.stdout.is_empty());
    }
}
