//! Seeds in, plain files out.

use super::*;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9nDTrvOOoT3a4tVYH8hG9Z9gHn1yV5F1Gj3o2Zl5xk dev@example";

fn seed(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("seed")).unwrap();
    for (name, content) in files {
        fs::write(dir.path().join("seed").join(name), content).unwrap();
    }
    let warnings = run(
        &dir.path().join("seed"),
        &dir.path().join("out"),
        &dir.path().join("root"),
        None,
    )
    .unwrap();
    (dir, warnings)
}

fn out(dir: &tempfile::TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join("out").join(name)).unwrap()
}

#[test]
fn a_seed_of_hostd_becomes_plain_files() {
    let meta = format!(
        "instance-id: 00ff\nlocal-hostname: vm-00ff\npublic-keys:\n- {KEY}\n\
         decent-cloud:\n  tls_names: [00ff.provider.test, www.example]\n"
    );
    let network = "version: 2\nethernets:\n  nic0:\n    match: {macaddress: \"02:DC:00:00:00:05\"}\n    \
         addresses: [100.64.0.5/32]\n    routes:\n    - {to: 0.0.0.0/0, via: 169.254.1.1, on-link: true}\n    \
         nameservers: {addresses: [9.9.9.9, \"2620:fe::fe\"]}\n    mtu: 1400\n";
    let (dir, warnings) = seed(&[
        ("meta-data", &meta),
        ("network-config", network),
        ("user-data", "#!/bin/sh\necho hi\n"),
    ]);
    assert!(warnings.is_empty(), "{warnings:?}");
    for (file, wanted) in [
        ("instance-id", "00ff"),
        ("hostname", "vm-00ff"),
        ("authorized_keys", &format!("{KEY}\n")),
        ("tls-names", "00ff.provider.test\nwww.example\n"),
        ("links", "02:dc:00:00:00:05|100.64.0.5/32|169.254.1.1|1400\n"),
        ("resolv.conf", "nameserver 9.9.9.9\nnameserver 2620:fe::fe\n"),
        ("user-script", "#!/bin/sh\necho hi\n"),
    ] {
        assert_eq!(out(&dir, file), wanted, "{file}");
    }
}

#[test]
fn the_digest_covers_every_key_and_every_byte_of_user_data() {
    let other = KEY.replace("dev@example", "host@example");
    let binary: &[u8] = b"#!/bin/sh\n\xff\n";
    let digest = |keys: &[&str], data: &[u8]| {
        let meta: String = keys.iter().map(|key| format!("  - \"{key}\"\n")).collect();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("meta-data"), format!("public-keys:\n{meta}")).unwrap();
        fs::write(dir.path().join("user-data"), data).unwrap();
        // What cloud-init would honour, too, and nobody here reads.
        fs::write(dir.path().join("vendor-data"), "#!/bin/sh\n").unwrap();
        run(
            dir.path(),
            &dir.path().join("out"),
            &dir.path().join("root"),
            None,
        )
        .unwrap();
        fs::read_to_string(dir.path().join("out/settings-digest")).unwrap()
    };
    let asked = |keys: &[&str], data: &[u8]| hex::encode(settings_digest(keys.iter().copied(), data)) + "\n";
    for (keys, data) in [
        (&[KEY][..], &b"#!/bin/sh\n"[..]),
        (&[KEY, KEY], b""),
        (&[KEY, "no key"], b"#cloud-config\n{"),
        (&[KEY], binary),
    ] {
        assert_eq!(digest(keys, data), asked(keys, data), "{keys:?}");
    }
    let honest = asked(&[KEY], b"#!/bin/sh\n");
    assert_ne!(digest(&[KEY, &other], b"#!/bin/sh\n"), honest, "a key more");
    assert_ne!(digest(&[&other], b"#!/bin/sh\n"), honest, "another key");
    assert_ne!(digest(&[KEY], b"#!/bin/sh\nevil\n"), honest, "other user data");
}

#[test]
fn json_is_a_seed_too() {
    let meta =
        format!(r#"{{"instance-id": "a", "public-keys": ["{KEY}"], "decent-cloud": {{"tls_names": []}}}}"#);
    let network = r#"{"network": {"version": 2, "ethernets": {"a": {"match": {"macaddress": "02:00:00:00:00:01"},
        "addresses": ["10.0.0.2/24", "fd00::2/64"], "gateway4": "10.0.0.1"}}}}"#;
    let (dir, warnings) = seed(&[("meta-data", &meta), ("network-config", network)]);
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(
        out(&dir, "links"),
        "02:00:00:00:00:01|10.0.0.2/24 fd00::2/64|10.0.0.1|-\n"
    );
}

#[test]
fn the_documented_part_of_cloud_config_is_done_and_the_rest_is_named() {
    let user = format!(
        "#cloud-config\nhostname: web\npackages: [vim]\nssh_authorized_keys:\n- {KEY}\nwrite_files:\n\
         - path: /var/www/html/index.html\n  content: |\n    <p>mine\n  permissions: '0600'\n\
         - path: /etc/b\n  content: aGVsbG8=\n  encoding: b64\n- path: ../etc/passwd\n  content: x\n\
         runcmd:\n- echo one > /tmp/one\n- [touch, \"it's\", a b]\n"
    );
    let (dir, warnings) = seed(&[("user-data", &user)]);
    assert_eq!(out(&dir, "hostname"), "web");
    assert_eq!(
        out(&dir, "user-script"),
        "#!/bin/sh\necho one > /tmp/one\n'touch' 'it'\\''s' 'a b'\n"
    );
    let page = dir.path().join("root/var/www/html/index.html");
    assert_eq!(fs::read_to_string(&page).unwrap(), "<p>mine\n");
    assert_eq!(fs::metadata(&page).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read(dir.path().join("root/etc/b")).unwrap(), b"hello");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("ignored: packages;"), "{warnings:?}");
    assert!(
        warnings[1].contains("\"../etc/passwd\" is not an absolute path"),
        "{warnings:?}"
    );
}

#[test]
fn bad_parts_cost_only_themselves() {
    let meta = format!("instance-id: good\nlocal-hostname: 'a;b'\npublic-keys: ['rm -rf /', '{KEY}']\n");
    let big = "#!".to_owned() + &"x".repeat(70_000);
    type Row<'a> = (&'a str, &'a str, &'a str, &'a str);
    let table: [Row<'_>; 9] = [
        (
            "host name",
            "meta-data",
            "local-hostname: 'a;b'",
            "is not a host name",
        ),
        (
            "key",
            "meta-data",
            "public-keys: ['rm -rf /']",
            "is not an SSH public key",
        ),
        (
            "key with a newline",
            "meta-data",
            "public-keys: [\"ssh-rsa AA\\nBB\"]",
            "is not an SSH public key",
        ),
        ("yaml", "meta-data", "a: [", "meta-data:"),
        (
            "mac",
            "network-config",
            "ethernets: {a: {match: {macaddress: xx}}}",
            "has no `match",
        ),
        (
            "address",
            "network-config",
            "ethernets: {a: {match: {macaddress: '02:00:00:00:00:01'}, addresses: ['10.0.0.1/33', '$(id)/8']}}",
            "is not ADDRESS/LENGTH",
        ),
        ("too large", "user-data", &big, "larger than 65536 bytes"),
        (
            "multipart",
            "user-data",
            "Content-Type: multipart/mixed",
            "user-data ignored",
        ),
        ("runcmd", "user-data", "#cloud-config\nruncmd: 7\n", "user-data:"),
    ];
    for (row, file, content, wanted) in table {
        let (dir, warnings) = seed(&[("meta-data", &meta), (file, content)]);
        assert!(warnings.iter().any(|w| w.contains(wanted)), "{row}: {warnings:?}");
        assert!(warnings.iter().all(|w| !w.contains('\n')), "{row}: {warnings:?}");
        if file != "meta-data" {
            assert_eq!(out(&dir, "authorized_keys"), format!("{KEY}\n"), "{row}");
            assert_eq!(out(&dir, "instance-id"), "good", "{row}");
        }
    }
}

/// A confidential VM: what its launch is bound to decides, before anything is written.
#[test]
fn a_seed_for_another_contract_is_refused_whole_and_nothing_of_it_is_written() {
    let host = KEY.replace("dev@example", "host@example");
    let files = "#cloud-config\nwrite_files:\n- {path: /etc/x, content: x}\n";
    let salt = [7; 32];
    let contract = contract_id(&salt, &settings_digest([KEY].into_iter(), files.as_bytes()));
    let bound = |salt: Option<&str>, keys: &[&str], user_data: &str, launched: [u8; 32]| {
        let dir = tempfile::tempdir().unwrap();
        let mut meta: String = keys.iter().map(|key| format!("  - \"{key}\"\n")).collect();
        meta = format!("instance-id: lie\nlocal-hostname: vm\npublic-keys:\n{meta}");
        meta += &salt.map_or_else(String::new, |salt| format!("decent-cloud:\n  salt: \"{salt}\"\n"));
        fs::write(dir.path().join("meta-data"), meta).unwrap();
        fs::write(dir.path().join("user-data"), user_data).unwrap();
        let (out, root) = (dir.path().join("out"), dir.path().join("root"));
        let result = run(dir.path(), &out, &root, Some(launched));
        let written = out.exists() || root.exists();
        (
            result.map(|_| fs::read_to_string(out.join("instance-id")).unwrap()),
            written,
        )
    };
    let salt = hex::encode(salt);
    let (id, _) = bound(Some(&salt), &[KEY], files, contract);
    assert_eq!(
        id.unwrap(),
        hex::encode(contract),
        "the launch's id, not the seed's"
    );
    for (what, salt, keys, user_data, launched) in [
        ("a key more", Some(&*salt), &[KEY, &host][..], files, contract),
        ("another key", Some(&*salt), &[&host], files, contract),
        ("no key", Some(&*salt), &[], files, contract),
        (
            "other user data",
            Some(&*salt),
            &[KEY],
            "#!/bin/sh\nevil\n",
            contract,
        ),
        ("no user data", Some(&*salt), &[KEY], "", contract),
        ("another salt", Some(&*"08".repeat(32)), &[KEY], files, contract),
        ("a short salt", Some("07"), &[KEY], files, contract),
        ("no salt", None, &[KEY], files, contract),
        ("a launch for nobody", Some(&*salt), &[KEY], files, [0; 32]),
    ] {
        let (result, written) = bound(salt, keys, user_data, launched);
        let why = result.unwrap_err().to_string();
        assert!(
            why.contains("NOT the contract's") && why.contains(&hex::encode(launched)),
            "{what}: {why}"
        );
        assert!(!written, "{what}");
    }
    let empty = tempfile::tempdir().unwrap();
    let out = empty.path().join("out");
    assert!(run(&empty.path().join("none"), &out, empty.path(), Some(contract)).is_err() && !out.exists());
}
