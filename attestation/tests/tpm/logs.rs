//! Event logs beside a quote: what they prove, and what they can't.

use attestation::Outcome;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::reference::Builder;
use super::*;

const EV_SEPARATOR: u32 = 4;
const EV_IPL: u32 = 0xd;
const EV_VARIABLE: u32 = 0x8000_0001;

fn sha256(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

fn event(pcr: u32, kind: u32, digest: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = [pcr.to_le_bytes(), kind.to_le_bytes(), 1u32.to_le_bytes()].concat();
    out.extend([0x0b, 0]);
    out.extend(digest);
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out
}

fn secure_boot(value: u8) -> Vec<u8> {
    let mut data = hex::decode("61dfe48bca93d211aa0d00e098032b8c").unwrap();
    data.extend(10u64.to_le_bytes());
    data.extend(1u64.to_le_bytes());
    data.extend("SecureBoot".encode_utf16().flat_map(u16::to_le_bytes));
    data.push(value);
    data
}

fn firmware(secure_boot_value: u8) -> Vec<u8> {
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0]);
    let mut log = [0u32.to_le_bytes(), 3u32.to_le_bytes()].concat();
    log.extend([0; 20]);
    log.extend((spec.len() as u32).to_le_bytes());
    log.extend(spec);
    let variable = secure_boot(secure_boot_value);
    log.extend(event(7, EV_VARIABLE, &sha256(&variable), &variable));
    for pcr in 0..8 {
        log.extend(event(pcr, EV_SEPARATOR, &sha256(&[0; 4]), &[0; 4]));
    }
    log.extend(event(11, EV_IPL, &sha256(b"kernel"), b".linux"));
    log
}

fn userspace(words: &[&str]) -> Vec<u8> {
    let record = |word: &&str| {
        let record = json!({
            "pcr": 11,
            "digests": [{ "hashAlg": "sha256", "digest": hex::encode(sha256(word.as_bytes())) }],
            "content_type": "systemd",
            "content": { "eventType": "phase", "string": word },
        });
        format!("\u{1e}{record}\n")
    };
    words.iter().map(record).collect::<String>().into_bytes()
}

/// The values that the logs give, for PCR 0 to 11.
fn replayed(firmware: &[u8], userspace_log: &[u8]) -> PcrValues {
    let log = attestation::eventlog::EventLog::parse(firmware).unwrap();
    let mut registers = log.replay(HashAlg::Sha256).unwrap();
    let records = attestation::eventlog::userspace::parse(userspace_log).unwrap();
    attestation::eventlog::userspace::replay(&records, HashAlg::Sha256, &mut registers).unwrap();
    let value = |pcr: u8| registers.get(&u32::from(pcr)).cloned().unwrap_or(vec![0; 32]);
    [(HashAlg::Sha256, (0..12).map(|pcr| (pcr, value(pcr))).collect())].into()
}

fn booted(tpm: &Tpm) -> TpmEvidence {
    let (firmware, userspace) = (firmware(1), userspace(&["enter-initrd", "ready"]));
    let mut evidence = tpm.evidence(&replayed(&firmware, &userspace), NONCE).unwrap();
    evidence.firmware_log = Some(firmware);
    evidence.userspace_log = Some(userspace);
    evidence
}

#[test]
fn logs_that_replay_prove_what_was_measured() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let mut policy = pinning(&tpm);
    policy.tpm.require_event_log = true;
    policy.tpm.require_secure_boot = true;
    let result = verify(&booted(&tpm), &policy);
    assert!(result.is_verified(), "{result}");
    let proven = &result.claims["proven"];
    assert_eq!(proven["secure_boot"], true);
    assert_eq!(
        proven["event_log"]["boot_phases"],
        json!(["enter-initrd", "ready"])
    );
}

#[test]
fn logs_that_were_tampered_with_are_refused() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let mut policy = pinning(&tpm);
    policy.tpm.require_secure_boot = true;
    let good = booted(&tpm);
    let log = good.firmware_log.clone().unwrap();
    let changed = |change: &dyn Fn(&mut TpmEvidence)| {
        let mut evidence = good.clone();
        change(&mut evidence);
        verify(&evidence, &policy).reasons()
    };
    let mismatch = vec![Reason::EventLogMismatch, Reason::EventLogMissing];
    assert_eq!(
        changed(&|e| e.userspace_log = None),
        mismatch,
        "PCR 11 isn't explained"
    );
    assert_eq!(
        changed(&|e| e.userspace_log = Some(userspace(&["ready"]))),
        mismatch
    );
    assert_eq!(changed(&|e| e.firmware_log = Some(firmware(0))), mismatch);
    assert_eq!(changed(&|e| e.firmware_log = None), [Reason::EventLogMissing]);
    let cut = changed(&|e| e.firmware_log = Some(log[..log.len() - 1].to_vec()));
    assert_eq!(cut, [Reason::Malformed, Reason::EventLogMissing]);
    let odd = changed(&|e| e.userspace_log = Some(b"{}".to_vec()));
    assert_eq!(odd, [Reason::Malformed, Reason::EventLogMissing]);
    // A log's text that isn't what was measured proves nothing: replay holds, the claim goes.
    let mut lie = log.clone();
    let at = head_len() + event(7, EV_VARIABLE, &[0; 32], &secure_boot(1)).len() - 1;
    assert_eq!(lie[at], 1, "the variable's value");
    lie[at] = 0;
    assert_eq!(
        changed(&|e| e.firmware_log = Some(lie.clone())),
        [Reason::EventLogMissing]
    );
    // Every bit of the digests counts.
    for bit in 8 * head_len()..8 * log.len() {
        let mut flipped = log.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let reasons = changed(&|e| e.firmware_log = Some(flipped.clone()));
        assert!(!reasons.is_empty() || is_text(&log, bit / 8), "bit {bit}");
    }
}

/// Whether the byte is an event's text or type, which no register holds.
fn is_text(log: &[u8], at: usize) -> bool {
    let mut rest = head_len();
    while rest < log.len() {
        let len_at = rest + 12 + 34;
        let len = u32::from_le_bytes(log[len_at..len_at + 4].try_into().unwrap()) as usize;
        let end = len_at + 4 + len;
        if at < end {
            return (rest + 4..rest + 8).contains(&at) || at >= len_at + 4;
        }
        rest = end;
    }
    false
}

fn head_len() -> usize {
    32 + 33
}

#[test]
fn secure_boot_that_is_off_is_refused_where_it_is_asked_for() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let (firmware, userspace) = (firmware(0), userspace(&[]));
    let mut evidence = tpm.evidence(&replayed(&firmware, &userspace), NONCE).unwrap();
    evidence.firmware_log = Some(firmware);
    let mut policy = pinning(&tpm);
    let result = verify(&evidence, &policy);
    assert!(result.is_verified(), "{result}");
    assert_eq!(result.claims["proven"]["secure_boot"], false);
    policy.tpm.require_secure_boot = true;
    assert_eq!(verify(&evidence, &policy).reasons(), [Reason::SecureBootOff]);
}

#[test]
fn secure_boot_is_what_the_firmware_measured_before_it_let_others() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let fake = secure_boot(1);
    let mut firmware = firmware(0);
    let first = event(7, EV_VARIABLE, &[0; 32], &fake).len();
    firmware.drain(head_len()..head_len() + first); // a firmware that measures no variable
    firmware.extend(event(7, EV_VARIABLE, &sha256(&fake), &fake)); // and somebody who makes up for it
    let mut evidence = tpm.evidence(&replayed(&firmware, &[]), NONCE).unwrap();
    evidence.firmware_log = Some(firmware);
    let mut policy = pinning(&tpm);
    policy.tpm.require_secure_boot = true;
    let result = verify(&evidence, &policy);
    let want = (Verdict::Indeterminate, vec![Reason::EventLogMissing]);
    assert_eq!((result.verdict, result.reasons()), want);
}

#[test]
fn sections_of_a_reference_file_must_have_been_measured() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let evidence = booted(&tpm);
    let builder = Builder::new();
    let mut policy = pinning(&tpm);
    policy.tpm.reference_keys = vec![builder.key()];
    let pcr_11 = hex::encode(&evidence.pcrs[&HashAlg::Sha256][&11]);
    for (kernel, reasons) in [
        (b"kernel", vec![]),
        (b"other!", vec![Reason::MeasurementMismatch]),
    ] {
        let statement = json!({
            "version": 1, "image": "provider-os 1", "pcrs": { "sha256": { "11": [pcr_11] } },
            "sections": { ".linux": hex::encode(sha256(kernel)) }, "verity_root_hash": "aabb",
        });
        let mut endorsements = Endorsements::none();
        endorsements
            .add(builder.sign(&statement).to_string().as_bytes())
            .unwrap();
        let result = verify_with(&evidence, &policy, &endorsements);
        assert_eq!(result.reasons(), reasons, "{result}");
    }
}

#[test]
fn a_pcr_that_the_logs_do_not_name_is_named() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let (firmware, userspace) = (firmware(1), userspace(&[]));
    let mut values = replayed(&firmware, &userspace);
    values.get_mut(&HashAlg::Sha256).unwrap().insert(10, vec![9; 32]); // IMA's
    let mut evidence = tpm.evidence(&values, NONCE).unwrap();
    evidence.firmware_log = Some(firmware);
    let result = verify(&evidence, &pinning(&tpm));
    assert!(result.is_verified());
    let line = result
        .checks
        .iter()
        .find(|check| check.id == "appraise.event-log")
        .unwrap();
    assert_eq!(line.outcome, Outcome::Passed);
    assert!(
        line.found.ends_with("the logs say nothing of PCR 10"),
        "{}",
        line.found
    );
}
