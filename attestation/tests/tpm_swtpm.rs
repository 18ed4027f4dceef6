//! Quotes of a real TPM 2.0 implementation: swtpm, over loopback.

#![cfg(feature = "tpm")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use attestation::eventlog::HashAlg;
use attestation::tpm::{
    AkPin, AttestationKey, CredentialError, EventLogFiles, TpmDevice, TpmDeviceError, TpmEvidence,
    make_credential,
};
use attestation::{
    AnyEvidence, AttestationResult, Endorsements, Grade, Policy, Reason, Roots, Trust, Verdict, verify_any,
};
use sha2::{Digest, Sha256};

const AT: u64 = 1_788_220_800;
const NONCE: &[u8] = b"a nonce of the ledger, 32 bytes.";

/// One swtpm; killed when it goes out of scope.
struct Swtpm {
    process: Child,
    port: u16,
}

impl Swtpm {
    /// Starts a TPM on `state`: the same TPM again, after a reboot, if it was there before.
    fn start(state: &Path) -> Self {
        let port = two_free_ports();
        let address = |port: u16| format!("type=tcp,port={port},bindaddr=127.0.0.1");
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", state.display()))
            .args(["--server", &address(port), "--ctrl", &address(port + 1)])
            .args(["--flags", "not-need-init,startup-clear"])
            .stdout(Stdio::null())
            .spawn()
            .expect("swtpm (Debian package swtpm) must be installed");
        let tpm = Self { process, port };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port + 1)).is_err() {
            assert!(Instant::now() < deadline, "swtpm doesn't listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        tpm
    }

    fn device(&self) -> TpmDevice {
        TpmDevice::open(&format!("swtpm:host=127.0.0.1,port={}", self.port)).unwrap()
    }

    /// Measures `digest` into a PCR, as firmware does: `TPM2_PCR_Extend` with an empty password.
    fn extend(&self, pcr: u32, digest: &[u8]) {
        let mut command = vec![0x80, 0x02, 0, 0, 0, 65, 0, 0, 0x01, 0x82];
        command.extend(pcr.to_be_bytes());
        command.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
        command.extend([0, 0, 0, 1, 0, 0x0b]);
        command.extend(digest);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&command).unwrap();
        let mut answer = [0; 19];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[6..10], [0; 4], "TPM2_PCR_Extend");
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// swtpm's protocol wants its control port right behind the TPM's.
fn two_free_ports() -> u16 {
    let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    for _ in 0..100 {
        let first = bind(0).unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && bind(port + 1).is_ok() {
            return port;
        }
    }
    panic!("no two free ports");
}

/// A firmware's log and systemd's, with what they measured.
struct Logs {
    files: EventLogFiles,
    measured: Vec<(u32, Vec<u8>)>,
}

fn logs(folder: &Path) -> Logs {
    let sha256 = |bytes: &[u8]| Sha256::digest(bytes).to_vec();
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
    let mut log = [0u32.to_le_bytes(), 3u32.to_le_bytes()].concat();
    log.extend([0; 20]);
    log.extend((spec.len() as u32).to_le_bytes());
    log.extend(spec);
    let mut measured: Vec<(u32, Vec<u8>)> = (0..8).map(|pcr| (pcr, sha256(&[0; 4]))).collect();
    measured.push((11, sha256(b"kernel")));
    for (pcr, digest) in &measured {
        log.extend([pcr.to_le_bytes(), 4u32.to_le_bytes(), 1u32.to_le_bytes()].concat());
        log.extend([0x0b, 0]);
        log.extend(digest);
        log.extend([4, 0, 0, 0, 0, 0, 0, 0]);
    }
    let word = sha256(b"enter-initrd");
    let record = serde_json::json!({
        "pcr": 11,
        "digests": [{ "hashAlg": "sha256", "digest": hex::encode(&word) }],
        "content_type": "systemd",
        "content": { "eventType": "phase", "string": "enter-initrd" },
    });
    measured.push((11, word));
    let files = EventLogFiles {
        firmware: folder.join("binary_bios_measurements"),
        userspace: folder.join("tpm2-measure.log"),
    };
    std::fs::write(&files.firmware, log).unwrap();
    std::fs::write(&files.userspace, format!("\u{1e}{record}\n")).unwrap();
    Logs { files, measured }
}

fn boot(tpm: &Swtpm, logs: &Logs) {
    for (pcr, digest) in &logs.measured {
        tpm.extend(*pcr, digest);
    }
}

fn pinning(ak: &[u8]) -> Policy {
    let name = AttestationKey::parse(ak).unwrap().name().unwrap().to_vec();
    let mut policy = Policy::default();
    policy.tpm.allowed_aks = Some(vec![AkPin::Name(name)]);
    policy.tpm.nonce = Some(NONCE.to_vec());
    policy.tpm.require_event_log = true;
    policy
}

fn verify(evidence: &TpmEvidence, policy: &Policy) -> AttestationResult {
    let evidence = AnyEvidence::parse(&evidence.to_cbor()).unwrap();
    verify_any(&evidence, &Endorsements::none(), &Roots::pinned(), policy, AT)
}

#[test]
fn a_hosts_quote_is_verified_until_the_host_boots_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("tpm");
    std::fs::create_dir(&state).unwrap();
    let logs = logs(folder.path());

    let tpm = Swtpm::start(&state);
    boot(&tpm, &logs);
    let ak = tpm.device().attestation_key().unwrap();
    let mut policy = pinning(&ak);
    let good = tpm.device().evidence(NONCE, &logs.files).unwrap();
    let result = verify(&good, &policy);
    assert_eq!(result.verdict, Verdict::Verified, "{result}");
    assert_eq!((result.grade, result.trust), (Grade::HostVerified, Trust::Policy));
    assert_eq!(
        result.claims["proven"]["event_log"]["boot_phases"],
        serde_json::json!(["enter-initrd"])
    );
    let signer = result
        .checks
        .iter()
        .find(|check| check.id == "authenticate.qualified-signer")
        .unwrap();
    assert_eq!(signer.found, "a primary key of the endorsement hierarchy");

    // The values of this boot are what the next ones must have.
    let bank = &good.pcrs[&HashAlg::Sha256];
    let wanted = bank
        .iter()
        .map(|(pcr, value)| (*pcr, vec![value.clone()]))
        .collect();
    policy.tpm.pcrs.insert(HashAlg::Sha256, wanted);
    assert!(verify(&good, &policy).is_verified());

    // Old evidence, another's nonce.
    let stale = tpm.device().evidence(b"another nonce", &logs.files).unwrap();
    assert_eq!(verify(&stale, &policy).reasons(), [Reason::ReportDataMismatch]);

    // A log that was tampered with, or that belongs to another quote.
    let mut tampered = good.clone();
    let log = tampered.firmware_log.as_mut().unwrap();
    let at = log.len() - 20;
    log[at] ^= 1;
    assert_eq!(verify(&tampered, &policy).reasons(), [Reason::EventLogMismatch]);
    let mut without = good.clone();
    without.userspace_log = None;
    assert_eq!(verify(&without, &policy).reasons(), [Reason::EventLogMismatch]);

    // Something more is measured: the log no longer explains the values, and they aren't the wanted ones.
    tpm.extend(4, &[7; 32]);
    let more = tpm.device().evidence(NONCE, &logs.files).unwrap();
    let result = verify(&more, &policy);
    assert_eq!(
        result.reasons(),
        [Reason::EventLogMismatch, Reason::PcrMismatch],
        "{result}"
    );
    // The old values under the new quote.
    let mut mixed = more.clone();
    mixed.pcrs = good.pcrs.clone();
    assert_eq!(verify(&mixed, &policy).reasons(), [Reason::PcrDigestMismatch]);
    let mut mixed = good.clone();
    mixed.quote = more.quote.clone();
    assert!(
        verify(&mixed, &policy)
            .reasons()
            .contains(&Reason::SignatureInvalid)
    );
    drop(tpm);

    // After a reboot it is the same key; a boot of the same programs is verified, one of others isn't.
    let tpm = Swtpm::start(&state);
    assert_eq!(tpm.device().attestation_key().unwrap(), ak);
    let unbooted = tpm.device().evidence(NONCE, &logs.files).unwrap();
    assert_eq!(
        verify(&unbooted, &policy).reasons(),
        [Reason::EventLogMismatch, Reason::PcrMismatch]
    );
    boot(&tpm, &logs);
    let again = tpm.device().evidence(NONCE, &logs.files).unwrap();
    assert!(verify(&again, &policy).is_verified());
    let resets = |evidence: &TpmEvidence| {
        attestation::tpm::Quote::parse(&evidence.quote)
            .unwrap()
            .clock
            .reset_count
    };
    assert!(resets(&again) > resets(&good));
    drop(tpm);

    // Another TPM has another key.
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let tpm = Swtpm::start(&other);
    boot(&tpm, &logs);
    let foreign = tpm.device().evidence(NONCE, &logs.files).unwrap();
    assert_eq!(verify(&foreign, &policy).reasons(), [Reason::AkMismatch]);
}

#[test]
fn a_credential_opens_only_in_the_tpm_that_holds_both_keys() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| {
        let state = folder.path().join(name);
        std::fs::create_dir(&state).unwrap();
        Swtpm::start(&state)
    });
    let ek = one.device().endorsement_key().unwrap();
    let ak = AttestationKey::parse(&one.device().attestation_key().unwrap()).unwrap();
    let foreign_ak = AttestationKey::parse(&other.device().attestation_key().unwrap()).unwrap();
    let secret = b"only this TPM can read this here";
    let credential = make_credential(&ek, &ak, secret).unwrap();
    assert_eq!(one.device().activate_credential(&credential).unwrap(), secret);
    let refused = |device: &mut TpmDevice, credential| {
        let refused = device.activate_credential(credential);
        assert!(
            matches!(refused, Err(TpmDeviceError::Command { .. })),
            "{refused:?}"
        );
    };
    refused(&mut other.device(), &credential);
    let for_another_key = make_credential(&ek, &foreign_ak, secret).unwrap();
    refused(&mut one.device(), &for_another_key);
    let mut flipped = credential.clone();
    flipped.blob[40] ^= 1;
    refused(&mut one.device(), &flipped);
    // After all these refusals the TPM has room for its keys still.
    let mut device = one.device();
    for _ in 0..4 {
        refused(&mut device, &flipped);
    }
    assert_eq!(device.activate_credential(&credential).unwrap(), secret);

    let bare = AttestationKey::parse(&ak.spki()).unwrap();
    for (ek, ak, secret, error) in [
        (&ek[..], &bare, &secret[..], CredentialError::NoName),
        (&ek, &ak, &[], CredentialError::Secret { len: 0 }),
        (&ek, &ak, &[0; 33], CredentialError::Secret { len: 33 }),
        (&ek[1..], &ak, secret, CredentialError::EndorsementKey),
    ] {
        assert_eq!(make_credential(ek, ak, secret), Err(error));
    }
}

#[test]
fn a_tpm_that_is_not_there_and_logs_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for tcti in [
        "swtpm:host=127.0.0.1,port=1",
        "device:/nonexistent/tpm",
        "nonsense",
    ] {
        let error = TpmDevice::open(tcti).err().unwrap();
        assert!(error.to_string().contains(tcti), "{error}");
    }
    let tpm = Swtpm::start(folder.path());
    let none = EventLogFiles {
        firmware: folder.path().join("none"),
        userspace: folder.path().join("none"),
    };
    let evidence = tpm.device().evidence(NONCE, &none).unwrap();
    assert_eq!((evidence.firmware_log, evidence.userspace_log), (None, None));
    let unreadable = EventLogFiles {
        firmware: folder.path().to_owned(),
        ..none.clone()
    };
    let error = tpm.device().evidence(NONCE, &unreadable).err().unwrap();
    assert!(matches!(error, TpmDeviceError::Log { .. }), "{error}");
    let too_long = tpm.device().evidence(&[0; 65], &none).err().unwrap();
    assert!(matches!(too_long, TpmDeviceError::Command { .. }), "{too_long}");
}
