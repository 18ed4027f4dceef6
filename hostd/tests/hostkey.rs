//! The host's key in a TPM: swtpm, a real ledger node.

#![cfg(feature = "tpm")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod tpm;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hostd::hostkey;
use ledger::api::{Bytes, HostStatement, ProviderProfile};
use ledger::client::{Client, ClientFile, Key, KeyKind};
use ledger::crypto;
use ledger::node::{self, Node};
use ledger::protocol::Genesis;

use crate::tpm::Swtpm;

#[test]
fn the_key_is_made_once_and_is_the_same_after_a_restart_of_the_tpm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.pem");
    let state = folder.path().join("tpm");
    std::fs::create_dir(&state).unwrap();
    let first = {
        let tpm = Swtpm::start(&state);
        let key = hostkey::read_or_create(&path, &tpm.tcti()).unwrap();
        for message in [&b"one"[..], b"another", b""] {
            let signature = key.identity().sign_arbitrary(message).unwrap().signature.unwrap();
            assert_eq!(signature.len(), 64);
            let public = key.public_key().unwrap();
            assert_eq!(crypto::verify(&public, message, &signature), Ok(()));
            assert!(crypto::verify(&public, b"something else", &signature).is_err());
        }
        assert_eq!(
            crypto::principal_of(&key.public_key().unwrap()),
            Ok(key.principal())
        );
        key.principal()
    };
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let file = std::fs::read(&path).unwrap();
    let tpm = Swtpm::start(&state);
    let again = hostkey::read_or_create(&path, &tpm.tcti()).unwrap();
    assert_eq!(again.principal(), first);
    assert_eq!(std::fs::read(&path).unwrap(), file, "the file was replaced");
}

#[test]
fn a_key_goes_on_signing_when_the_tpm_was_restarted_under_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.pem");
    // A chip comes back at its place; so the port has to be the same.
    let tpm = Swtpm::start(folder.path());
    let key = hostkey::read_or_create(&path, &tpm.tcti()).unwrap();
    let tpm = tpm.restart(folder.path());
    let signature = key
        .identity()
        .sign_arbitrary(b"after")
        .unwrap()
        .signature
        .unwrap();
    assert_eq!(
        crypto::verify(&key.public_key().unwrap(), b"after", &signature),
        Ok(())
    );
    drop(tpm);
    let error = key.identity().sign_arbitrary(b"gone").unwrap_err();
    assert!(error.contains("cannot use the TPM"), "{error}");
}

#[test]
fn another_tpm_cannot_use_the_file_and_what_is_damaged_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.pem");
    let state = |name: &str| {
        let state = folder.path().join(name);
        std::fs::create_dir(&state).unwrap();
        state
    };
    let (ours, theirs) = (Swtpm::start(&state("a")), Swtpm::start(&state("b")));
    hostkey::read_or_create(&path, &ours.tcti()).unwrap();
    let error = hostkey::read(&path, &theirs.tcti()).unwrap_err().to_string();
    assert!(error.contains("this TPM doesn't know the host's key"), "{error}");
    hostkey::read(&path, &ours.tcti()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let body = text.lines().nth(1).unwrap();
    for (from, to, expected) in [
        ("TSS2 PRIVATE KEY-----\n", "TSS2 PRIVATE KEY-----\n!", "damaged"),
        (body, "", "damaged"),
        ("END TSS2", "END TSS3", "no PEM block"),
        ("TSS2 PRIVATE", "PRIVATE", "kind"),
    ] {
        let damaged = folder.path().join("damaged.pem");
        std::fs::write(&damaged, text.replace(from, to)).unwrap();
        let error = hostkey::read(&damaged, &ours.tcti()).unwrap_err().to_string();
        assert!(error.contains(expected), "{to:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_takes_calls_that_the_tpm_signed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("tpm")).unwrap();
    let tpm = Swtpm::start(&at("tpm"));
    let file = serve(&at("ledger")).await;
    let canister = file.canister_id;
    let key = hostkey::read_or_create(&at("host.pem"), &tpm.tcti()).unwrap();
    let provider = Key::from_pem(&Key::generate(KeyKind::Ed25519).unwrap()).unwrap();
    let host = Client::connect(file.with_key(key.clone())).unwrap();
    let statement = HostStatement {
        ledger: canister,
        profile: ProviderProfile {
            name: "Provider".into(),
            domain: "provider.example".into(),
            contact: "ops@provider.example".into(),
            legal_contract: Bytes([7; 32]),
        },
        host: key.principal(),
        expires_at: host.info().await.unwrap().now + 3_600_000_000_000,
        attestation_key: None,
    };
    // An update that only this key may make, signed by the TPM and checked by the node.
    host.register_host(provider.sign_host_delegation(statement).unwrap())
        .await
        .unwrap();
}

async fn serve(dir: &Path) -> ClientFile {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    node::init(dir, &Genesis::demo("host key", 1, 1_790_000_000), &url).unwrap();
    let node = Node::open(dir).unwrap();
    tokio::spawn(node.serve(listener, std::future::pending()));
    ClientFile::read(&dir.join("client.toml")).unwrap()
}
