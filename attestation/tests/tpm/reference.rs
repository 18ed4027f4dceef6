//! Signed reference values, and the policy file that names who may sign them.

use attestation::PolicyFile;
use attestation::tpm::{REFERENCE_PAYLOAD_TYPE, ReferenceKey, reference_to_sign};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::json;

use super::*;

pub(crate) struct Builder(EcdsaKeyPair);

impl Builder {
    pub(crate) fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
    }

    pub(crate) fn key(&self) -> ReferenceKey {
        let spki: PublicKeyX509Der<'_> = self.0.public_key().as_der().unwrap();
        ReferenceKey::parse(spki.as_ref()).unwrap()
    }

    pub(crate) fn sign(&self, statement: &serde_json::Value) -> serde_json::Value {
        let payload = statement.to_string();
        let to_sign = reference_to_sign(payload.as_bytes());
        let signature = self.0.sign(&SystemRandom::new(), &to_sign).unwrap();
        json!({
            "payloadType": REFERENCE_PAYLOAD_TYPE,
            "payload": STANDARD.encode(payload),
            "signatures": [{ "keyid": "", "sig": STANDARD.encode(signature.as_ref()) }],
        })
    }
}

fn statement(pcr_4: u8) -> serde_json::Value {
    let hex = |byte: u8| hex::encode([byte; 32]);
    json!({ "version": 1, "image": "provider-os 1", "pcrs": { "sha256": { "4": [hex(pcr_4)], "11": [hex(1), hex(12)] } } })
}

#[test]
fn signed_reference_values_count_if_a_key_of_the_policy_signed_them() {
    let tpm = Tpm::create(AkKind::P256).unwrap();
    let evidence = tpm.evidence(&pcrs(), NONCE).unwrap();
    let (builder, stranger) = (Builder::new(), Builder::new());
    let mut policy = pinning(&tpm);
    policy.tpm.reference_keys = vec![builder.key()];
    let good = builder.sign(&statement(5));
    let mut tampered = good.clone();
    tampered["payload"] = json!(STANDARD.encode(statement(6).to_string()));
    for (row, files, reasons) in [
        ("right", vec![good.clone()], vec![]),
        ("none", vec![], vec![Reason::ReferenceMissing]),
        (
            "another image's",
            vec![builder.sign(&statement(6))],
            vec![Reason::PcrMismatch],
        ),
        (
            "one of two fits",
            vec![builder.sign(&statement(6)), good.clone()],
            vec![],
        ),
        (
            "a stranger's",
            vec![stranger.sign(&statement(5))],
            vec![Reason::ReferenceSignatureInvalid],
        ),
        (
            "a stranger's beside",
            vec![stranger.sign(&statement(6)), good.clone()],
            vec![],
        ),
        (
            "tampered with",
            vec![tampered],
            vec![Reason::ReferenceSignatureInvalid],
        ),
    ] {
        let mut endorsements = Endorsements::none();
        for file in files {
            endorsements.add(file.to_string().as_bytes()).unwrap();
        }
        let result = verify_with(&evidence, &policy, &endorsements);
        assert_eq!(result.reasons(), reasons, "{row}\n{result}");
        let image = &result.claims["proven"]["image"]["name"];
        assert_eq!(image == "provider-os 1", reasons.is_empty(), "{row}: {image}");
    }
    // Values of a file count for nobody who names no key.
    policy.tpm.reference_keys = vec![];
    policy.required.insert(Requirement::Measurement);
    let mut endorsements = Endorsements::none();
    endorsements.add(good.to_string().as_bytes()).unwrap();
    let result = verify_with(&evidence, &policy, &endorsements);
    assert_eq!(result.reasons(), [Reason::ReferenceMissing]);
}

#[test]
fn reference_files_are_read_strictly() {
    let builder = Builder::new();
    for (row, change) in [
        ("version 2", json!({ "version": 2 })),
        ("an unknown field", json!({ "more": 1 })),
        ("PCR 24", json!({ "pcrs": { "sha256": { "24": [] } } })),
        ("PCR 04", json!({ "pcrs": { "sha256": { "04": [] } } })),
        ("SHA-1", json!({ "pcrs": { "sha1": { "4": [] } } })),
        ("a short value", json!({ "pcrs": { "sha256": { "4": ["00"] } } })),
        ("no PCR", json!({ "pcrs": {} })),
        ("a short section", json!({ "sections": { ".linux": "00" } })),
        ("a name of two lines", json!({ "image": "a\nb" })),
        (
            "sections without their PCR",
            json!({ "pcrs": { "sha256": { "4": [] } }, "sections": { ".linux": "00".repeat(32) } }),
        ),
    ] {
        let mut statement = statement(5);
        statement
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let file = builder.sign(&statement).to_string();
        let error = Endorsements::none().add(file.as_bytes());
        assert!(error.is_err(), "{row}");
    }
    for not_p256 in [AkKind::P384, AkKind::RsaSsa] {
        assert_eq!(
            ReferenceKey::parse(&Tpm::create(not_p256).unwrap().spki().unwrap()),
            None
        );
    }
}

#[test]
fn a_policy_file_is_read_strictly() {
    let read = |tpm: serde_json::Value| {
        let file: PolicyFile = serde_json::from_value(json!({ "tpm": tpm })).map_err(|e| e.to_string())?;
        Policy::from_file(&file).map_err(|e| e.to_string())
    };
    let name = hex::encode(Tpm::create(AkKind::P256).unwrap().name());
    let policy = read(json!({
        "aks": [format!("name:{name}"), format!("spki-sha256:{}", "11".repeat(32))],
        "roots": ["22".repeat(32)],
        "nonce": "0011",
        "required_pcrs": { "sha384": [0, 7] },
        "pcrs": { "sha256": { "4": ["33".repeat(32)] } },
        "require_event_log": true,
        "require_secure_boot": true,
        "min_firmware": 5,
    }))
    .unwrap();
    assert_eq!(policy.tpm.allowed_aks.as_ref().map(Vec::len), Some(2));
    assert_eq!(policy.tpm.pcrs[&HashAlg::Sha256][&4], [vec![0x33; 32]]);
    assert_eq!(read(json!({})).unwrap(), Policy::default());
    for (row, tpm) in [
        ("an unknown field", json!({ "ak": [] })),
        ("a pin without a kind", json!({ "aks": [name] })),
        (
            "a name of SHA-1",
            json!({ "aks": [format!("name:0004{}", "00".repeat(20))] }),
        ),
        ("a short name", json!({ "aks": ["name:000b00"] })),
        ("a short root", json!({ "roots": ["22"] })),
        ("a nonce of 65 bytes", json!({ "nonce": "00".repeat(65) })),
        ("PCR 24", json!({ "required_pcrs": { "sha256": [24] } })),
        ("SHA-1", json!({ "required_pcrs": { "sha1": [0] } })),
        ("a value of SHA-1", json!({ "pcrs": { "sha1": {} } })),
        (
            "a PCR by another name",
            json!({ "pcrs": { "sha256": { "x": [] } } }),
        ),
        (
            "no key",
            json!({ "reference_keys": ["-----BEGIN PUBLIC KEY-----"] }),
        ),
    ] {
        assert!(read(tpm).is_err(), "{row}");
    }
}
