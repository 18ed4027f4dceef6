//! Settings and what comes out of them.

use std::fmt::Write as _;

use super::render::networkd;
use super::settings::{EXAMPLE, Port, SETTINGS_MAX, Settings};
use crate::config::Config;

/// The example, filled in.
fn example() -> String {
    let root_key = format!(
        "308182301d060d2b0601040182dc7c0503010201060c2b0601040182dc7c05030201036100{}",
        "07".repeat(96)
    );
    EXAMPLE.replace("ROOT_KEY", &root_key)
}

fn faults(text: &str) -> Vec<(usize, String, String)> {
    let faults = Settings::parse(text.as_bytes()).err().unwrap_or_default();
    faults
        .into_iter()
        .map(|fault| (fault.line, fault.key, fault.why))
        .collect()
}

#[test]
fn the_example_is_valid_once_the_root_key_is_in_it() {
    assert_eq!(faults(&example()), []);
    assert_eq!(
        faults(&format!("\u{feff}{}", example().replace('\n', "\r\n"))),
        []
    );
    let faults = faults(EXAMPLE);
    assert_eq!((faults.len(), faults[0].1.as_str()), (1, "ledger.root_key"));
}

#[test]
fn every_fault_names_its_line_and_key() {
    let example = example();
    let line = |text: &str, needle: &str| {
        text.lines()
            .position(|l| l.starts_with(needle))
            .map_or(0, |n| n + 1)
    };
    for (from, to, key, why) in [
        ("version = 1", "version = 2", "version", "no other format"),
        ("name = \"", "nom = \"", "host.nom", "unknown field"),
        (
            "name = \"rack7",
            "name = \"\\u0007rack7",
            "host.name",
            "printable",
        ),
        ("url = \"https", "url = \"ftp", "ledger.url", "must begin with"),
        (
            "canister_id = \"",
            "canister_id = \"x",
            "ledger.canister_id",
            "isn't a canister id",
        ),
        (
            "# delegation = \"…\"",
            "delegation = \"%\"",
            "ledger.delegation",
            "isn't Base64",
        ),
        (
            "# delegation = \"…\"",
            "delegation = \"AAAA\"",
            "ledger.delegation",
            "isn't a delegation",
        ),
        (
            "# uplink = \"enp1s0\"",
            "uplink = \"enp 1\"",
            "network.uplink",
            "MAC address",
        ),
        (
            "# uplink = \"enp1s0\"",
            "uplink = \"dc-x\"",
            "network.uplink",
            "take another",
        ),
        (
            "addresses = [\"203.0.113.10/24\"",
            "addresses = [\"203.0.113.10\"",
            "network.addresses",
            "with a length",
        ),
        (
            "addresses = [\"203.0.113.10/24\"",
            "addresses = [\"127.0.0.1/8\"",
            "network.addresses",
            "not an address",
        ),
        (
            "addresses = [\"203.0.113.10/24\"",
            "addresses = [\"203.0.113.10/33\"",
            "network.addresses",
            "not an address",
        ),
        (
            "gateways = [\"203.0.113.1\"",
            "gateways = [\"198.51.100.1\"",
            "network.gateways",
            "in the network of none",
        ),
        (
            "gateways = [\"203.0.113.1\", \"fe80::1\"]",
            "gateways = []",
            "network.gateways",
            "need a gateway",
        ),
        ("# mtu = 1500", "mtu = 576", "network.mtu", "1280–9216"),
        ("# mtu = 1500", "mtu = 70000", "network.mtu", "invalid value"),
        (
            "# lease_ports = \"20000-29999\"",
            "lease_ports = \"80-90\"",
            "tenants.lease_ports",
            "range of ports",
        ),
        (
            "# tenant_net = \"100.64.0.0/16\"",
            "tenant_net = \"203.0.0.0/16\"",
            "network.public_ip4",
            "lies in",
        ),
        (
            "vm_hour = 10_000_000",
            "vm_hour = -1",
            "offering.prices.vm_hour",
            "invalid",
        ),
        (
            "region = \"eu-ch\"",
            "region = \"\"",
            "offering.region",
            "printable",
        ),
        (
            "region = \"eu-ch\"",
            "region = \"eu-ch\"\nstate_dir = \"/x\"",
            "offering.state_dir",
            "unknown field",
        ),
    ] {
        let text = example.replacen(&format!("\n{from}"), &format!("\n{to}"), 1);
        assert_ne!(text, example, "{from} isn't in the example");
        let found = faults(&text);
        assert_eq!(found.len(), 1, "{to}: {found:?}");
        assert_eq!(found[0].1, key, "{to}: {found:?}");
        assert!(found[0].2.contains(why), "{to}: {found:?}");
        let word = key.rsplit('.').next().unwrap();
        // A key that isn't written is shown at its section.
        let place = match line(&text, &format!("{word} =")) {
            0 => line(&text, &format!("[{}]", key.rsplit_once('.').unwrap().0)),
            place => place,
        };
        // `name = …` stands in comments of bonds too; the first one is the host's.
        assert_eq!(found[0].0, place, "{to}: {found:?}");
    }
    assert!(
        faults(&example.replace("[offering] ", "[offerings] "))[0]
            .2
            .contains("field")
    );
    assert!(
        faults(&example.replace("addresses =", "# ").replace("gateways =", "# "))[0].1
            == "network.public_ip4"
    );
    assert!(
        Settings::parse(&[0xff, 0xfe]).unwrap_err()[0]
            .why
            .contains("UTF-8")
    );
    let long = "#".repeat(SETTINGS_MAX + 1);
    assert!(
        Settings::parse(long.as_bytes()).unwrap_err()[0]
            .why
            .contains("64 KiB")
    );
}

#[test]
fn a_private_key_is_refused_loudly_wherever_it_stands() {
    let example = example();
    for secret in [
        "\n-----BEGIN PRIVATE KEY-----\n",
        "\n# -----BEGIN EC PRIVATE KEY-----\n",
        "\nprovider_key = \"x\"\n",
        "\nProvider_Key = \"x\"\n",
        "\n[ssh]\npassword = \"x\"\n",
    ] {
        let text = format!("{example}{secret}");
        let found = faults(&text);
        assert_eq!(found.len(), 1, "{secret}: {found:?}");
        assert!(found[0].2.contains("NO KEY OF YOURS"), "{secret}: {found:?}");
        assert!(
            text.lines()
                .nth(found[0].0 - 1)
                .unwrap()
                .to_lowercase()
                .contains(secret.trim().lines().last().unwrap().to_lowercase().as_str())
        );
    }
}

#[test]
fn hostd_toml_is_valid_and_says_what_the_settings_say() {
    let settings = Settings::parse(example().as_bytes()).unwrap();
    let config = Config::parse(&settings.hostd_toml(&"enp3s0".parse().unwrap())).unwrap();
    assert_eq!(config.network.wan.as_str(), "enp3s0");
    assert_eq!(config.network.public_ip4.to_string(), "203.0.113.10");
    assert_eq!(config.network.nameservers.len(), 2);
    assert!(config.network.haproxy.is_some());
    assert_eq!(config.offering.prices.vm_hour, 10_000_000);
    assert_eq!(config.host.name, "rack7-node3");
    assert_eq!(settings.host_name(), "rack7-node3");
}

#[test]
fn a_name_for_people_becomes_a_host_name() {
    for (name, expected) in [
        ("Rack 7 / Node 3", "rack-7-node-3"),
        ("–––", "decent-cloud"),
        ("Zürich", "z-rich"),
        (&"a".repeat(100), &"a".repeat(63)),
    ] {
        let text = example().replace("name = \"rack7-node3\"", &format!("name = \"{name}\""));
        assert_eq!(Settings::parse(text.as_bytes()).unwrap().host_name(), expected);
    }
}

/// `[network]` in place of the example's.
fn with_network(network: &str) -> String {
    let example = example();
    let (before, rest) = example.split_once("[network]\n").unwrap();
    let (_, after) = rest.split_once("[tenants]").unwrap();
    format!("{before}[network]\n{network}\n[tenants]{after}")
}

fn files(network: &str) -> String {
    let settings = Settings::parse(with_network(network).as_bytes()).unwrap();
    let mut text = String::new();
    for (name, content) in networkd(&settings.file.network, &"enp1s0".parse().unwrap()) {
        let _ = write!(text, "=== {name}\n{content}");
    }
    text
}

const BONDED: &str = r#"
uplink = "uplink100"
addresses = ["203.0.113.10/24", "2001:db8::10/64"]
gateways = ["203.0.113.1", "2001:db8::1"]
nameservers = ["9.9.9.9"]
mtu = 9000
[[network.bond]]
name = "bond0"
ports = ["enp1s0f0", "AA:bb:cc:dd:ee:01"]
[[network.vlan]]
name = "uplink100"
id = 100
on = "bond0"
[[network.vlan]]
name = "backup"
id = 7
on = "enp9s0"
"#;

#[test]
fn networkd_gets_what_the_settings_say() {
    insta::assert_snapshot!("networkd_dhcp", files("public_ip4 = \"203.0.113.10\""));
    insta::assert_snapshot!("networkd_bonded", files(BONDED));
}

#[test]
fn bonds_and_vlans_that_do_not_fit_together_are_named() {
    for (from, to, key, why) in [
        (
            "uplink = \"uplink100\"",
            "",
            "network.uplink",
            "say which interface",
        ),
        (
            "uplink = \"uplink100\"",
            "uplink = \"enp1s0f0\"",
            "network.uplink",
            "name the bond",
        ),
        (
            "name = \"backup\"",
            "name = \"bond0\"",
            "network.vlan",
            "stands there twice",
        ),
        ("id = 7", "id = 4095", "network.vlan", "1–4094"),
        (
            "on = \"enp9s0\"",
            "on = \"enp1s0f0\"",
            "network.vlan",
            "in no bond",
        ),
        (
            "on = \"enp9s0\"",
            "on = \"uplink100\"",
            "network.vlan",
            "in no bond",
        ),
        (
            "\"enp1s0f0\", ",
            "\"aa:bb:cc:dd:ee:01\", ",
            "network.bond",
            "in two bonds",
        ),
        (
            "\"enp1s0f0\", \"AA:bb:cc:dd:ee:01\"",
            "",
            "network.bond",
            "1 to 8 ports",
        ),
    ] {
        let found = faults(&with_network(&BONDED.replace(from, to)));
        assert!(
            found
                .iter()
                .any(|fault| fault.1 == key && fault.2.contains(why) && fault.0 > 0),
            "{to}: {found:?}"
        );
    }
}

#[test]
fn a_port_is_a_name_or_an_address() {
    assert_eq!(
        Port::try_from("AA:BB:cc:dd:ee:01".to_owned())
            .unwrap()
            .to_string(),
        "aa:bb:cc:dd:ee:01"
    );
    for wrong in [
        "",
        "aa:bb",
        "aa:bb:cc:dd:ee:0g",
        "enp1s0;reboot",
        "../x",
        "a-name-that-is-too-long",
    ] {
        assert!(Port::try_from(wrong.to_owned()).is_err(), "{wrong}");
    }
}
