//! The evidence format and the agent's messages: exactly one encoding, and bytes from outside never panic.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use attestation::agent::{Deframer, Request, RequestBody, Response, ResponseBody, frame};
use attestation::{
    Binding, CpuEvidence, Endorsements, Evidence, EvidenceError, GuestKeys, Policy, Roots, SshHostKey, verify,
};
use proptest::prelude::*;

const SSH_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBoBSaZrGNRYY5vX2dnQa8Kt5j3sI0gTp4TcHqVlVtZi";

fn keys() -> GuestKeys {
    GuestKeys {
        ssh_host_key: Some(SSH_KEY.parse().unwrap()),
        tls_spki: Some(vec![0x30; 91]),
        wireguard: Some([7; 32]),
        settings: Some([8; 32]),
    }
}

fn any_evidence() -> impl Strategy<Value = Evidence> {
    let bytes = |max| prop::collection::vec(any::<u8>(), 0..max);
    let snp = (bytes(1300usize), prop::collection::vec(bytes(600), 0..4))
        .prop_map(|(report, certificates)| CpuEvidence::SevSnp { report, certificates });
    let ssh = prop::option::of(Just(SSH_KEY.parse::<SshHostKey>().unwrap()));
    let keys = (
        ssh,
        prop::option::of(bytes(200)),
        prop::option::of(any::<[u8; 32]>()),
        prop::option::of(any::<[u8; 32]>()),
    )
        .prop_map(|(ssh_host_key, tls_spki, wireguard, settings)| GuestKeys {
            ssh_host_key,
            tls_spki,
            wireguard,
            settings,
        });
    (prop_oneof![Just(CpuEvidence::None), snp], keys)
        .prop_map(|(cpu, guest_keys)| Evidence { cpu, guest_keys })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn evidence_survives_its_encoding(evidence in any_evidence()) {
        prop_assert_eq!(Evidence::from_cbor(&evidence.to_cbor()), Ok(evidence));
    }

    #[test]
    fn a_changed_encoding_is_refused_or_is_other_evidence(
        evidence in any_evidence(), at in any::<prop::sample::Index>(), bit in 0..8
    ) {
        let mut cbor = evidence.to_cbor();
        let at = at.index(cbor.len());
        cbor[at] ^= 1u8 << bit;
        if let Ok(other) = Evidence::from_cbor(&cbor) {
            prop_assert_ne!(&other, &evidence);
            prop_assert_eq!(other.to_cbor(), cbor);
        }
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Evidence::from_cbor(&bytes);
        let _ = Request::from_cbor(&bytes);
        let _ = Response::from_cbor(&bytes);
        let _ = Endorsements::none().add(&bytes);
        let mut deframer = Deframer::new();
        deframer.push(&bytes);
        while deframer.next_frame().is_some() {}
        let cpu = CpuEvidence::SevSnp { report: bytes.clone(), certificates: vec![bytes] };
        let evidence = Evidence { cpu, guest_keys: GuestKeys::default() };
        let result = verify(&evidence, &Endorsements::none(), &Roots::pinned(), &Policy::default(), 0);
        prop_assert!(!result.is_verified());
    }

    #[test]
    fn reports_of_random_bytes_are_never_verified(bytes in prop::collection::vec(any::<u8>(), 1184..=1184), at: u64) {
        let cpu = CpuEvidence::SevSnp { report: bytes, certificates: vec![] };
        let evidence = Evidence { cpu, guest_keys: GuestKeys::default() };
        let result = verify(&evidence, &Endorsements::none(), &Roots::pinned(), &Policy::default(), at);
        prop_assert!(!result.is_verified());
    }

    #[test]
    fn messages_survive_the_wire(id: u64, nonce: [u8; 32], contract: [u8; 32], ledger in prop::collection::vec(any::<u8>(), 1..30)) {
        let request = Request { id, body: RequestBody::Evidence { ledger, contract, nonce } };
        let mut deframer = Deframer::new();
        deframer.push(&frame(&request.to_cbor()));
        let content = deframer.next_frame().unwrap().unwrap();
        prop_assert_eq!(Request::from_cbor(&content), Ok(request));
    }
}

#[test]
fn encodings_that_mean_the_same_are_refused() {
    let good = Evidence {
        cpu: CpuEvidence::None,
        guest_keys: GuestKeys::default(),
    }
    .to_cbor();
    assert_eq!(
        hex::encode(&good),
        "a300010181000 2a0".replace(' ', ""),
        "the format is fixed: peers compute digests of it"
    );
    for (row, cbor) in [
        ("trailing byte", "a30001018100 02a0 00"),
        ("version in two bytes", "a300 1801 018100 02a0"),
        ("indefinite map", "bf0001018100 02a0 ff"),
        ("keys out of order", "a3 018100 0001 02a0"),
        ("unknown key", "a30001018100 03a0"),
        ("a fourth field", "a40001018100 02a0 0300"),
        ("version 2", "a30002018100 02a0"),
        (
            "a key twice",
            "a30001018100 02a2 02582000000000000000000000000000000000000000000000000000000000000000000258200000000000000000000000000000000000000000000000000000000000000000",
        ),
        ("a tag", "c0a30001018100 02a0"),
        ("a long report", "a30001018301 1a00100000"),
        ("a claimed gigabyte", "a300010183015a40000000"),
    ] {
        let cbor = hex::decode(cbor.replace(' ', "")).unwrap();
        assert!(Evidence::from_cbor(&cbor).is_err(), "{row}");
    }
    let long = vec![0; attestation::EVIDENCE_LEN_MAX + 1];
    assert_eq!(
        Evidence::from_cbor(&long),
        Err(EvidenceError::TooLong { len: long.len() })
    );
}

#[test]
fn ssh_keys_cannot_carry_a_second_line_or_a_lie() {
    for (line, ok) in [
        (SSH_KEY.to_owned(), true),
        (format!("{SSH_KEY} root@vm"), true),
        (format!("{SSH_KEY}\n"), true),
        (format!("{SSH_KEY}\n* ssh-ed25519 AAAA"), false),
        (SSH_KEY.replace("ssh-ed25519", "ssh-rsa"), false),
        ("@cert-authority * ssh-ed25519 AAAA".to_owned(), false),
        ("ssh-ed25519".to_owned(), false),
        (String::new(), false),
        (format!("ssh-ed25519 {}", "A".repeat(2000)), false),
    ] {
        let parsed = line.parse::<SshHostKey>();
        assert_eq!(parsed.is_ok(), ok, "{line:?}: {parsed:?}");
        if let Ok(key) = parsed {
            assert_eq!(key.as_str(), SSH_KEY);
        }
    }
}

#[test]
fn report_data_changes_with_everything_it_binds() {
    let base = Binding {
        ledger: &[1, 2],
        contract: [3; 32],
        nonce: [4; 32],
    };
    let mut all = vec![base.report_data(&keys())];
    for other in [
        Binding { ledger: &[1], ..base },
        Binding {
            ledger: &[1, 3],
            ..base
        },
        Binding {
            contract: [4; 32],
            ..base
        },
        Binding {
            nonce: [3; 32],
            ..base
        },
        Binding { ledger: &[], ..base },
    ] {
        all.push(other.report_data(&keys()));
    }
    for keys in [
        GuestKeys::default(),
        GuestKeys {
            settings: None,
            ..keys()
        },
        GuestKeys {
            settings: Some([9; 32]),
            ..keys()
        },
        GuestKeys {
            wireguard: None,
            ..keys()
        },
        GuestKeys {
            tls_spki: None,
            ..keys()
        },
        GuestKeys {
            ssh_host_key: None,
            ..keys()
        },
    ] {
        all.push(base.report_data(&keys));
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[test]
fn an_error_of_the_guest_is_cut_and_cleaned() {
    let response = Response {
        id: 1,
        body: ResponseBody::Error("é".repeat(1000)),
    };
    let Response {
        body: ResponseBody::Error(text),
        ..
    } = Response::from_cbor(&response.to_cbor()).unwrap()
    else {
        panic!("an error stays one");
    };
    assert_eq!(text, "é".repeat(512));
    let response = Response {
        id: 1,
        body: ResponseBody::Error("a\x1b[2Jb\n".to_owned()),
    };
    let Response {
        body: ResponseBody::Error(text),
        ..
    } = Response::from_cbor(&response.to_cbor()).unwrap()
    else {
        panic!("an error stays one");
    };
    assert_eq!(text, "a [2Jb ");
}
