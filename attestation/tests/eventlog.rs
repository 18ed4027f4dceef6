//! Event logs: the binary format's rules, and what a replay gives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use attestation::eventlog::userspace::{self, UserspaceLogError};
use attestation::eventlog::{EventLog, EventLogError, HashAlg, Registers, ReplayError};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

const EV_SEPARATOR: u32 = 4;
const EV_NO_ACTION: u32 = 3;

fn head(algorithms: &[(u16, u16)]) -> Vec<u8> {
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    spec.extend((algorithms.len() as u32).to_le_bytes());
    for (id, size) in algorithms {
        spec.extend(id.to_le_bytes());
        spec.extend(size.to_le_bytes());
    }
    spec.push(0);
    let mut log = [0u32.to_le_bytes(), EV_NO_ACTION.to_le_bytes()].concat();
    log.extend([0; 20]);
    log.extend((spec.len() as u32).to_le_bytes());
    log.extend(spec);
    log
}

fn event(register: u32, kind: u32, digests: &[(u16, Vec<u8>)], data: &[u8]) -> Vec<u8> {
    let mut out = [
        register.to_le_bytes(),
        kind.to_le_bytes(),
        (digests.len() as u32).to_le_bytes(),
    ]
    .concat();
    for (id, digest) in digests {
        out.extend(id.to_le_bytes());
        out.extend(digest);
    }
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out
}

fn sha256(data: &[u8]) -> Vec<u8> {
    Sha256::digest(data).to_vec()
}

const SHA256: (u16, u16) = (0x0b, 32);

fn separator(register: u32) -> Vec<u8> {
    event(register, EV_SEPARATOR, &[(0x0b, sha256(&[0; 4]))], &[0; 4])
}

fn locality(locality: &[u8]) -> Vec<u8> {
    let data = [b"StartupLocality\0", locality].concat();
    event(0, EV_NO_ACTION, &[(0x0b, vec![0; 32])], &data)
}

/// Two measured events, one that is only said, and what they give by hand.
fn sample() -> (Vec<u8>, Registers) {
    let log = [
        head(&[SHA256]),
        separator(7),
        event(0, EV_NO_ACTION, &[(0x0b, vec![0; 32])], b"said"),
        event(7, 0xd, &[(0x0b, sha256(b"kernel"))], b"a description"),
    ];
    let first = sha256(&[vec![0; 32], sha256(&[0; 4])].concat());
    let second = sha256(&[first, sha256(b"kernel")].concat());
    (log.concat(), Registers::from([(7, second)]))
}

#[test]
fn a_replay_gives_what_extending_by_hand_gives() {
    let (bytes, registers) = sample();
    let log = EventLog::parse(&bytes).unwrap();
    assert_eq!(log.replay(HashAlg::Sha256).unwrap(), registers);
    assert_eq!(
        log.replay(HashAlg::Sha384),
        Err(ReplayError::NoBank(HashAlg::Sha384))
    );
    let measured: Vec<bool> = log
        .events()
        .iter()
        .map(|event| event.data_is_measured(HashAlg::Sha256))
        .collect();
    assert_eq!(
        measured,
        [true, false, false],
        "a description isn't what was measured"
    );
}

#[test]
fn the_startup_locality_is_where_pcr_0_begins() {
    let bytes = [head(&[SHA256]), locality(&[3]), separator(0), separator(1)].concat();
    let registers = EventLog::parse(&bytes).unwrap().replay(HashAlg::Sha256).unwrap();
    let mut begin = vec![0; 32];
    begin[31] = 3;
    assert_eq!(registers[&0], sha256(&[begin, sha256(&[0; 4])].concat()));
    assert_eq!(registers[&1], sha256(&[vec![0; 32], sha256(&[0; 4])].concat()));
}

#[test]
fn a_real_firmwares_log_replays_to_the_values_that_its_tpm_had() {
    let log = EventLog::parse(include_bytes!("vectors/tpm/glinux-alex-locality3.eventlog")).unwrap();
    assert_eq!(log.startup_locality(), 3);
    let registers = log.replay(HashAlg::Sha256).unwrap();
    for (pcr, value) in [
        (
            0,
            "0e5ea849d7647a1ac1becc096fee4df98f00f8015f934afadaab0b8aa20b38a5",
        ),
        (
            1,
            "9750400838980c9419764b9cf19c975c0e159c18ebe21cb897c6e834a8d8d433",
        ),
        (
            2,
            "970096d49105b0404999173e49c3f6b8597b9c4c5ff6a9e364b55ce01037578e",
        ),
        (
            3,
            "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
        ),
        (
            4,
            "ddb124ca9013f1e42f98537f7f381e47c5e6caa988cf2b4088f452c5a8dd912d",
        ),
        (
            5,
            "fb58603615cfec59c0428e71913d30d45f38e4280380cc814135a7659c246b13",
        ),
        (
            6,
            "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
        ),
        (
            7,
            "9d1be46302bc4f5055c90a0376d9142e397ca8744f387c9824170f1bc855fde5",
        ),
    ] {
        assert_eq!(hex::encode(&registers[&pcr]), value, "PCR {pcr}");
    }
}

#[test]
fn every_truncation_is_refused_or_ends_between_two_records() {
    let (bytes, _) = sample();
    let ends = [
        head(&[SHA256]).len(),
        head(&[SHA256]).len() + separator(7).len(),
        head(&[SHA256]).len() + separator(7).len() + event(0, 3, &[(0x0b, vec![0; 32])], b"said").len(),
        bytes.len(),
    ];
    for len in 0..=bytes.len() {
        let parsed = EventLog::parse(&bytes[..len]);
        assert_eq!(parsed.is_ok(), ends.contains(&len), "{len}: {parsed:?}");
    }
}

#[test]
fn padding_is_accepted_only_where_an_area_has_a_fixed_size_and_only_to_its_end() {
    let (bytes, registers) = sample();
    for (row, tail, padded) in [
        ("FF", vec![0xff; 100], true),
        ("zeros", vec![0; 100], true),
        ("one byte of FF", vec![0xff], true),
        (
            "an event behind FF",
            [vec![0xff; 8], separator(1)].concat(),
            false,
        ),
        (
            "an event behind zeros",
            [vec![0; 16], separator(1)].concat(),
            false,
        ),
        ("something else", vec![0xaa; 40], false),
    ] {
        let bytes = [bytes.clone(), tail].concat();
        assert!(EventLog::parse(&bytes).is_err(), "{row}, exact");
        let parsed = EventLog::parse_padded(&bytes);
        assert_eq!(parsed.is_ok(), padded, "{row}: {parsed:?}");
        if let Ok(log) = parsed {
            assert_eq!(log.replay(HashAlg::Sha256).unwrap(), registers, "{row}");
        }
    }
}

#[test]
fn m49_records_that_break_a_rule_are_refused() {
    let with = |record: Vec<u8>| [head(&[SHA256]), record].concat();
    let digest = || (0x0b, vec![0; 32]);
    let mut huge = separator(1);
    let len = huge.len();
    huge[len - 8..len - 4].fill(0xff);
    let mut many = separator(1);
    many[8..12].fill(0xff);
    for (row, log) in [
        ("empty", vec![]),
        ("event size FFFFFFFF", with(huge)),
        ("digest count FFFFFFFF", with(many)),
        ("no digest", with(event(1, 4, &[], b""))),
        ("two digests", with(event(1, 4, &[digest(), digest()], b""))),
        ("nine digests", with(event(1, 4, &vec![digest(); 9], b""))),
        (
            "another algorithm",
            with(event(1, 4, &[(0x0c, vec![0; 48])], b"")),
        ),
        (
            "an unknown algorithm",
            with(event(1, 4, &[(0x77, vec![0; 32])], b"")),
        ),
        ("an unknown algorithm in the head", head(&[(0x77, 32)])),
        ("a wrong size in the head", head(&[(0x0b, 31)])),
        ("an algorithm twice in the head", head(&[SHA256, SHA256])),
        ("no algorithm in the head", head(&[])),
        (
            "nine algorithms in the head",
            head(&[
                SHA256, SHA256, SHA256, SHA256, SHA256, SHA256, SHA256, SHA256, SHA256,
            ]),
        ),
        ("no head", separator(1)),
        ("locality 1", with(locality(&[1]))),
        ("no locality", with(locality(&[]))),
        ("a late locality", with([separator(0), locality(&[3])].concat())),
    ] {
        assert!(EventLog::parse(&log).is_err(), "{row}");
        assert!(EventLog::parse_padded(&log).is_err(), "{row}, padded");
    }
    let long = vec![0; 4 * 1024 * 1024 + 1];
    assert_eq!(
        EventLog::parse(&long),
        Err(EventLogError::TooLong { len: long.len() })
    );
}

#[test]
fn sha1_banks_are_read_and_never_replayed() {
    let log = [
        head(&[(4, 20), SHA256]),
        event(1, 4, &[(4, vec![0; 20]), (0x0b, vec![0; 32])], b""),
    ]
    .concat();
    let log = EventLog::parse(&log).unwrap();
    assert_eq!(
        log.replay(HashAlg::Sha1),
        Err(ReplayError::Algorithm(HashAlg::Sha1))
    );
    assert!(log.replay(HashAlg::Sha256).is_ok());
}

fn phase(word: &str) -> String {
    let digest = hex::encode(Sha256::digest(word));
    format!(
        "\u{1e}{{\"pcr\":11,\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{digest}\"}}],\"content_type\":\"systemd\",\
         \"content\":{{\"string\":\"{word}\",\"bootId\":\"x\",\"timestamp\":1,\"eventType\":\"phase\"}}}}\n"
    )
}

#[test]
fn systemds_log_goes_on_where_the_firmwares_ends() {
    let (bytes, mut registers) = sample();
    let log = EventLog::parse(&bytes).unwrap();
    assert!(log.replay(HashAlg::Sha256).unwrap().contains_key(&7));
    let text = phase("enter-initrd") + &phase("leave-initrd");
    let records = userspace::parse(text.as_bytes()).unwrap();
    assert_eq!(records[0].string.as_deref(), Some("enter-initrd"));
    assert_eq!(records[1].event_type.as_deref(), Some("phase"));
    userspace::replay(&records, HashAlg::Sha256, &mut registers).unwrap();
    let first = sha256(&[vec![0; 32], sha256(b"enter-initrd")].concat());
    assert_eq!(registers[&11], sha256(&[first, sha256(b"leave-initrd")].concat()));
    assert_eq!(
        userspace::replay(&records, HashAlg::Sha384, &mut registers),
        Err(ReplayError::NoBank(HashAlg::Sha384))
    );
}

#[test]
fn systemds_log_is_refused_where_it_is_cut_or_odd() {
    assert_eq!(userspace::parse(b"").unwrap(), []);
    let good = phase("ready");
    assert!(userspace::parse(good.as_bytes()).is_ok());
    for len in 1..good.len() {
        assert!(userspace::parse(&good.as_bytes()[..len]).is_err(), "{len}");
    }
    for (row, text) in [
        ("no separator", good[1..].to_owned()),
        ("an unknown hash", good.replace("sha256", "md5")),
        (
            "a short digest",
            good.replace(":\"sha256\",\"digest\":\"", ":\"sha256\",\"digest\":\"00"),
        ),
        ("no digests", "\u{1e}{\"pcr\":1,\"digests\":[]}\n".to_owned()),
        ("an empty record", "\u{1e}\u{1e}\n".to_owned()),
        ("no UTF-8", "\u{1e}{\"pcr\":-1}\n".to_owned()),
    ] {
        let parsed = userspace::parse(text.as_bytes());
        assert!(
            matches!(parsed, Err(UserspaceLogError::Record { .. })),
            "{row}: {parsed:?}"
        );
    }
    let many = userspace::parse(good.repeat(4097).as_bytes());
    assert_eq!(many, Err(UserspaceLogError::TooMany));
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = EventLog::parse(&bytes);
        let _ = EventLog::parse_padded(&[head(&[SHA256]), bytes.clone()].concat());
        let _ = userspace::parse(&[b"\x1e".to_vec(), bytes].concat());
    }

    #[test]
    fn a_flipped_byte_is_refused_or_changes_what_is_read(at in 0usize..180, bit in 0u8..8) {
        let (mut bytes, _) = sample();
        let good = bytes.clone();
        let good = EventLog::parse(&good).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(log) = EventLog::parse(&bytes) {
            let in_head = at < head(&[SHA256]).len();
            prop_assert!(in_head || log != good);
        }
    }
}
