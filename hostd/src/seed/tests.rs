//! What a guest reads, seen with mtools and as golden text.

use std::io::Write as _;
use std::process::Command;

use ledger::api::Bytes;
use proptest::prelude::*;

use super::*;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f alice@laptop";

fn spec() -> SeedSpec {
    SeedSpec {
        contract: Bytes([0xAB; 32]),
        salt: Bytes([0xCD; 32]),
        public_keys: vec![KEY.into()],
        tls_names: vec!["abababab.cloud.example".into(), "www.example.org".into()],
        user_data: b"#!/bin/sh\necho \"hi\"\t\\ \xff\n".to_vec(),
        network: SeedNetwork {
            mac: "02:dc:00:00:00:05".into(),
            address: Ipv4Addr::new(100, 64, 0, 5),
            gateway: Ipv4Addr::new(169, 254, 1, 1),
            nameservers: vec![Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)],
            mtu: None,
        },
    }
}

#[test]
fn meta_data_and_network_config_have_the_agreed_text() {
    let seed = Seed::new(spec()).unwrap();
    insta::assert_snapshot!(
        "full",
        format!("{}---\n{}", seed.meta_data(), seed.network_config())
    );
    let mut bare = spec();
    (bare.public_keys, bare.tls_names) = (vec![], vec![]);
    (bare.network.nameservers, bare.network.mtu) = (vec![], Some(1420));
    let bare = Seed::new(bare).unwrap();
    insta::assert_snapshot!(
        "bare",
        format!("{}---\n{}", bare.meta_data(), bare.network_config())
    );
}

#[test]
fn mtools_reads_back_what_was_written() {
    let seed = Seed::new(spec()).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&seed.image().unwrap()).unwrap();
    let mtools = |tool: &str, args: &[&str]| {
        let out = Command::new(tool)
            .arg("-i")
            .arg(file.path())
            .args(args)
            .output()
            .unwrap_or_else(|e| {
                panic!("cannot run {tool} ({e}): install the package mtools");
            });
        assert!(
            out.status.success(),
            "{tool}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        out.stdout
    };
    assert_eq!(
        String::from_utf8(mtools("mtype", &["::meta-data"])).unwrap(),
        seed.meta_data()
    );
    assert_eq!(
        String::from_utf8(mtools("mtype", &["::network-config"])).unwrap(),
        seed.network_config()
    );
    assert_eq!(mtools("mtype", &["::user-data"]), spec().user_data);
    let listing = String::from_utf8(mtools("mdir", &["::"])).unwrap();
    assert!(listing.contains("CIDATA"), "{listing}");
}

#[test]
fn the_largest_seed_fits_and_the_same_seed_is_the_same_image() {
    let mut largest = spec();
    largest.user_data = vec![b'x'; USER_DATA_MAX];
    largest.public_keys = vec![format!("{KEY}{}", "x".repeat(SSH_KEY_BYTES_MAX - KEY.len())); SSH_KEYS_MAX];
    let seed = Seed::new(largest).unwrap();
    assert_eq!(seed.image().unwrap(), seed.image().unwrap());
}

#[test]
fn bad_input_is_refused_with_the_field_that_is_wrong() {
    type Change = fn(&mut SeedSpec);
    let table: &[(&str, Change, &str)] = &[
        (
            "user data of 64 KiB + 1",
            |s| s.user_data = vec![0; USER_DATA_MAX + 1],
            "user_data: 65537 given",
        ),
        (
            "17 keys",
            |s| s.public_keys = vec![KEY.into(); 17],
            "ssh_public_keys: 17 given",
        ),
        (
            "an empty key",
            |s| s.public_keys = vec![String::new()],
            "ssh_public_keys[0]",
        ),
        (
            "two keys in one line",
            |s| s.public_keys = vec![format!("{KEY}\n{KEY}")],
            "'\\n' isn't allowed",
        ),
        (
            "a key that ends the YAML string",
            |s| s.public_keys = vec![format!("{KEY}\"")],
            "isn't allowed",
        ),
        (
            "options before the key",
            |s| s.public_keys = vec![format!("command=x {KEY}")],
            "no accepted key type",
        ),
        (
            "DSA",
            |s| s.public_keys = vec!["ssh-dss AAAA".into()],
            "no accepted key type",
        ),
        (
            "damaged base64",
            |s| s.public_keys = vec!["ssh-rsa A===".into()],
            "base64",
        ),
        (
            "another type inside",
            |s| s.public_keys = vec![KEY.replace("ssh-ed25519 ", "ssh-rsa ")],
            "isn't that of",
        ),
        (
            "an empty blob",
            |s| s.public_keys = vec!["ssh-rsa ".into()],
            "isn't that of",
        ),
        (
            "one label",
            |s| s.tls_names = vec!["localhost".into()],
            "not a DNS name",
        ),
        (
            "a wildcard",
            |s| s.tls_names = vec!["*.example.org".into()],
            "not a DNS name",
        ),
        (
            "upper case",
            |s| s.tls_names = vec!["A.example.org".into()],
            "not a DNS name",
        ),
        (
            "an address",
            |s| s.tls_names = vec!["10.0.0.1".into()],
            "not a DNS name",
        ),
        (
            "a quote in a name",
            |s| s.tls_names = vec!["a\".b".into()],
            "not a DNS name",
        ),
        (
            "a trailing dot",
            |s| s.tls_names = vec!["a.b.".into()],
            "not a DNS name",
        ),
        (
            "a multicast MAC",
            |s| s.network.mac = "03:00:00:00:00:05".into(),
            "unicast MAC",
        ),
        ("a short MAC", |s| s.network.mac = "02:00".into(), "unicast MAC"),
        (
            "an upper-case MAC",
            |s| s.network.mac = "02:DC:00:00:00:05".into(),
            "unicast MAC",
        ),
        (
            "no address",
            |s| s.network.address = Ipv4Addr::UNSPECIFIED,
            "address 0.0.0.0",
        ),
        (
            "a loopback gateway",
            |s| s.network.gateway = Ipv4Addr::LOCALHOST,
            "gateway 127.0.0.1",
        ),
        ("a tiny MTU", |s| s.network.mtu = Some(68), "MTU 68"),
        (
            "too many name servers",
            |s| s.network.nameservers = vec![Ipv4Addr::new(1, 1, 1, 1); 5],
            "nameservers: 5",
        ),
    ];
    for (row, change, want) in table {
        let mut bad = spec();
        change(&mut bad);
        let error = Seed::new(bad).expect_err(row).to_string();
        assert!(error.contains(want), "{row}: {error}");
    }
}

proptest! {
    #[test]
    fn no_key_comment_or_name_can_add_a_line_or_leave_its_quotes(comment in ".{0,40}", name in "[ -~]{0,40}") {
        let mut s = spec();
        s.public_keys = vec![format!("{KEY} {comment}")];
        s.tls_names = vec![name];
        if let Ok(seed) = Seed::new(s) {
            for line in seed.meta_data().lines() {
                prop_assert!(matches!(line.matches('"').count(), 0 | 2), "{line}");
            }
            prop_assert_eq!(seed.meta_data().lines().count(), 8);
        }
    }
}
