//! First boot, with the real program: settings from each kind of place, FAT volumes that mtools made, a software TPM, and a
//! power cut at every moment.

#![cfg(all(feature = "tpm", feature = "fault-injection"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod tpm;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hostd::config::Config;
use hostd::setup::settings::EXAMPLE;
use hostd::setup::{Report, Stage};
use ledger::api::{Bytes, HostStatement, ProviderProfile};
use ledger::client::{Key, KeyKind};

use crate::tpm::Swtpm;

const YEAR: u64 = 365 * 24 * 3600 * 1_000_000_000;

/// A machine's root folder, and its TPM.
struct Machine {
    dir: tempfile::TempDir,
    tpm: Swtpm,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tpm")).unwrap();
        // One of its own: a process that is killed leaves its keys in a TPM without a resource manager.
        let tpm = Swtpm::start(&dir.path().join("tpm"));
        let machine = Self { dir, tpm };
        machine.port("enp1s0", "52:54:00:00:00:01");
        machine
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn port(&self, name: &str, mac: &str) {
        self.write(&format!("sys/class/net/{name}/type"), "1\n");
        self.write(&format!("sys/class/net/{name}/address"), format!("{mac}\n"));
        fs::create_dir_all(self.at(&format!("sys/class/net/{name}/device"))).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostd"));
        command
            .args(["--json", "setup", "--tpm", &self.tpm.tcti(), "--root"])
            .arg(self.at(""))
            .args(args)
            .env("TSS2_LOG", "all+NONE");
        command
    }

    fn setup(&self, args: &[&str]) -> Report {
        let output = self.command(args).output().unwrap();
        report(&output)
    }

    /// A medium with a FAT, as the kernel would show it under `link`.
    fn medium(&self, link: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let image = self.dir.path().join(Path::new(link).file_name().unwrap());
        let run = |command: &mut Command| {
            let output = command.env("MTOOLS_SKIP_CHECK", "1").output().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        run(Command::new("mkfs.vfat").args(["-n", "DECENT-SEED"]).arg(&image));
        for (name, content) in files {
            let file = self.dir.path().join("content");
            fs::write(&file, content).unwrap();
            run(Command::new("mcopy")
                .arg("-i")
                .arg(&image)
                .arg(&file)
                .arg(format!("::{name}")));
        }
        let link = self.at(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&link);
        symlink(&image, link).unwrap();
        image
    }

    /// The state that outlives a boot, and what is made anew at each.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for folder in ["etc/hostd", "run/systemd/network"] {
            for entry in fs::read_dir(self.at(folder)).into_iter().flatten() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
        files
    }
}

fn report(output: &Output) -> Report {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {output:?}");
    })
}

fn settings() -> String {
    let prefix = "308182301d060d2b0601040182dc7c0503010201060c2b0601040182dc7c05030201036100";
    EXAMPLE.replace("ROOT_KEY", &format!("{prefix}{}", "07".repeat(96)))
}

const STICK: &str = "dev/disk/by-label/DECENT-SEED";
const PARTITION: &str = "dev/disk/by-partlabel/decent-seed";
const FW_CFG: &str = "sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/provider-seed/raw";

fn new_key() -> Key {
    Key::from_pem(&Key::generate(KeyKind::Ed25519).unwrap()).unwrap()
}

/// What `decent host delegate` writes.
fn delegation(provider: &Key, host: &str, ledger: &str, for_ns: u64) -> Vec<u8> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let statement = HostStatement {
        ledger: ledger.parse().unwrap(),
        profile: ProviderProfile {
            name: "Provider".into(),
            domain: "provider.example".into(),
            contact: "ops@provider.example".into(),
            legal_contract: Bytes([7; 32]),
        },
        host: host.parse().unwrap(),
        expires_at: u64::try_from(now.as_nanos()).unwrap() + for_ns,
        attestation_key: None,
    };
    candid::encode_one(provider.sign_host_delegation(statement).unwrap()).unwrap()
}

const LEDGER: &str = "rrkah-fqaaa-aaaaa-aaaaq-cai";

#[test]
fn a_machine_becomes_a_host_by_two_sticks_and_nobody_logs_in() {
    let machine = Machine::new();
    // Nobody brought anything: it shows who it is, and waits.
    let first = machine.setup(&[]);
    assert_eq!(
        (first.stage, first.faults.len()),
        (Stage::NoSettings, 0),
        "{first:?}"
    );
    let host = first.principal.unwrap();
    // The settings come, without a delegation.
    let stick = machine.medium(STICK, &[("provider-seed.toml", settings().as_bytes())]);
    let second = machine.setup(&[]);
    assert_eq!(
        (second.stage, second.faults.len()),
        (Stage::NoDelegation, 0),
        "{second:?}"
    );
    assert_eq!(second.principal.as_deref(), Some(host.as_str()));
    assert!(
        second
            .done
            .iter()
            .any(|done| done.contains("wiped provider-seed.toml")),
        "{second:?}"
    );
    let content = fs::read(&stick).unwrap();
    assert!(
        !content.windows(11).any(|part| part == b"rack7-node3"),
        "the stick still has the settings"
    );
    assert!(!machine.at("etc/hostd/hostd.toml").exists());
    let network = fs::read_to_string(machine.at("run/systemd/network/10-enp1s0.network")).unwrap();
    assert!(network.contains("Address=203.0.113.10/24"), "{network}");
    // The provider signs, and the stick comes back.
    let provider = new_key();
    machine.medium(
        STICK,
        &[("delegation", &delegation(&provider, &host, LEDGER, YEAR))],
    );
    let third = machine.setup(&[]);
    assert_eq!((third.stage, third.faults.len()), (Stage::Ready, 0), "{third:?}");
    let config = Config::load(&machine.at("etc/hostd/hostd.toml")).unwrap();
    assert_eq!(config.network.wan.as_str(), "enp1s0");
    // The next boot changes nothing.
    let before = machine.files();
    fs::remove_dir_all(machine.at("run")).unwrap();
    let fourth = machine.setup(&[]);
    assert_eq!(fourth.stage, Stage::Ready);
    assert_eq!(machine.files(), before);
    // `--show` says the same, and other settings that somebody leaves there change nothing.
    let other = settings().replace("rack7-node3", "mallory");
    machine.medium(STICK, &[("provider-seed.toml", other.as_bytes())]);
    assert_eq!(machine.setup(&[]).stage, Stage::Ready);
    assert_eq!(machine.files(), before);
    assert_eq!(machine.setup(&["--show"]).stage, Stage::Ready);
}

#[test]
fn places_are_looked_at_in_order_and_each_is_wiped_as_it_can_be() {
    let machine = Machine::new();
    let named = |name: &str| settings().replace("rack7-node3", name);
    let oem = format!("io.systemd.credential:provider-seed={}", named("smbios"));
    let table = [
        &[11, 5, 0, 0, 1][..],
        oem.as_bytes(),
        &[0, 0],
        &[127, 4, 0, 0, 0, 0],
    ]
    .concat();
    machine.write("sys/firmware/dmi/tables/DMI", &table);
    machine.write(FW_CFG, named("fw-cfg"));
    let partition = machine.medium(
        PARTITION,
        &[("provider-seed.toml", named("partition").as_bytes())],
    );
    machine.medium(STICK, &[("provider-seed.toml", named("stick").as_bytes())]);
    for (place, name, gone) in [
        ("fw-cfg", "fw-cfg", FW_CFG),
        ("smbios", "smbios", "sys/firmware/dmi/tables/DMI"),
        ("partition", "partition", PARTITION),
        ("stick", "stick", STICK),
    ] {
        let report = machine.setup(&[]);
        assert_eq!(report.name.as_deref(), Some(name), "{report:?}");
        assert_eq!(serde_json::to_value(report.source).unwrap(), place);
        let word = if place == "fw-cfg" || place == "smbios" {
            "can't be wiped"
        } else {
            "wiped"
        };
        assert!(report.done.iter().any(|done| done.contains(word)), "{report:?}");
        // A machine as it was before, without that place.
        fs::remove_dir_all(machine.at("etc/hostd")).unwrap();
        fs::remove_file(machine.at(gone)).unwrap();
    }
    assert!(fs::read(partition).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(machine.setup(&[]).stage, Stage::NoSettings);
}

#[test]
fn broken_settings_are_named_left_where_they_are_and_not_passed_over() {
    let machine = Machine::new();
    let stick = machine.medium(STICK, &[("provider-seed.toml", settings().as_bytes())]);
    let intact = fs::read(&stick).unwrap();
    for (content, expected) in [
        (settings().replace("region", "religion"), "provider-seed.toml:"),
        (settings() + "\n-----BEGIN PRIVATE KEY-----\n", "NO KEY OF YOURS"),
        ("\u{0}".to_owned(), "provider-seed.toml"),
    ] {
        machine.write(FW_CFG, content);
        let report = machine.setup(&[]);
        assert_eq!(report.stage, Stage::Refused, "{report:?}");
        assert!(
            report.faults.iter().any(|fault| fault.contains(expected)),
            "{report:?}"
        );
        assert!(!machine.at("etc/hostd/provider-seed.toml").exists());
    }
    assert_eq!(fs::read(&stick).unwrap(), intact);
    // A stick that is no FAT at all.
    fs::remove_file(machine.at(FW_CFG)).unwrap();
    fs::write(&stick, vec![0x5a; 1 << 20]).unwrap();
    let report = machine.setup(&[]);
    assert_eq!(report.stage, Stage::Refused, "{report:?}");
    // Several ports, and nothing that says which one.
    machine.port("enp2s0", "52:54:00:00:00:02");
    machine.write(FW_CFG, settings());
    let report = machine.setup(&[]);
    assert!(
        report
            .faults
            .iter()
            .any(|f| f.contains("several Ethernet ports") && f.contains("enp2s0")),
        "{report:?}"
    );
    // The console's answers stand above all that.
    fs::remove_file(machine.at(STICK)).unwrap();
    machine.write(
        "answers/provider-seed.toml",
        settings().replace("# uplink = \"enp1s0\"", "uplink = \"52:54:00:00:00:02\""),
    );
    let answers = machine.at("answers");
    let report = machine.setup(&["--answers", answers.to_str().unwrap()]);
    assert_eq!(
        (report.stage, report.faults.len()),
        (Stage::NoDelegation, 0),
        "{report:?}"
    );
    assert_eq!(fs::read_dir(answers).unwrap().count(), 0);
    assert!(machine.at("run/systemd/network/10-525400000002.network").exists());
}

#[test]
fn only_a_delegation_for_this_host_and_ledger_counts_and_later_only_the_same_providers() {
    let machine = Machine::new();
    machine.write(FW_CFG, settings());
    let host = machine.setup(&[]).principal.unwrap();
    let (provider, other) = (new_key(), new_key());
    let bring = |bytes: &[u8]| {
        machine.medium(STICK, &[("delegation", bytes)]);
        machine.setup(&[])
    };
    let mut forged: ledger::api::HostDelegation =
        candid::decode_one(&delegation(&provider, &host, LEDGER, YEAR)).unwrap();
    forged.statement.expires_at += 1;
    for (bytes, expected) in [
        (
            delegation(&provider, &other.principal().to_text(), LEDGER, YEAR),
            "is for the host",
        ),
        (
            delegation(&provider, &host, "aaaaa-aa", YEAR),
            "is for the ledger",
        ),
        (delegation(&provider, &host, LEDGER, 0), "is over"),
        (
            candid::encode_one(forged).unwrap(),
            "isn't signed by the provider",
        ),
        (b"nonsense".to_vec(), "isn't a delegation"),
        (vec![b'x'; 20_000], "larger than any delegation"),
    ] {
        let report = bring(&bytes);
        assert_eq!(report.stage, Stage::NoDelegation, "{expected}: {report:?}");
        assert!(
            report.faults.iter().any(|fault| fault.contains(expected)),
            "{expected}: {report:?}"
        );
    }
    let good = delegation(&provider, &host, LEDGER, YEAR);
    assert_eq!(bring(&good).stage, Stage::Ready);
    let path = machine.at("etc/hostd/delegation");
    let report = bring(&delegation(&other, &host, LEDGER, 2 * YEAR));
    assert!(report.faults[0].contains("another provider"), "{report:?}");
    assert_eq!(fs::read(&path).unwrap(), good);
    let later = delegation(&provider, &host, LEDGER, 2 * YEAR);
    assert_eq!(bring(&later).faults.len(), 0);
    assert_eq!(fs::read(&path).unwrap(), later);
    // An older one doesn't come back.
    bring(&good);
    assert_eq!(fs::read(&path).unwrap(), later);
}

/// Goal: after the board was replaced the machine is a new host without anybody logging in, and with its own board again the
/// old one. Method: the same folder with another TPM, and back; killed at each moment of the change.
#[test]
fn another_tpm_makes_another_host_and_the_own_one_the_same_again() {
    for moment in 1.. {
        let mut machine = Machine::new();
        machine.medium(PARTITION, &[("provider-seed.toml", settings().as_bytes())]);
        let host = machine.setup(&[]).principal.unwrap();
        machine.medium(
            STICK,
            &[("delegation", &delegation(&new_key(), &host, LEDGER, YEAR))],
        );
        assert_eq!(machine.setup(&[]).stage, Stage::Ready);

        let other = machine.dir.path().join("other");
        fs::create_dir(&other).unwrap();
        let own = std::mem::replace(&mut machine.tpm, Swtpm::start(&other));
        let cut = machine
            .command(&[])
            .env("HOSTD_DIE_AT_POINT", moment.to_string())
            .output()
            .unwrap();
        let changed = machine.setup(&[]);
        assert_eq!(
            (changed.stage, changed.faults.len()),
            (Stage::NoDelegation, 0),
            "{changed:?}"
        );
        assert_ne!(changed.principal.as_deref(), Some(host.as_str()));
        assert!(!machine.at("etc/hostd/hostd.toml").exists(), "hostd would start");

        machine.tpm = own;
        let back = machine.setup(&[]);
        assert_eq!((back.stage, back.principal), (Stage::Ready, Some(host)));
        if cut.status.code().is_some() {
            assert!(moment > 3, "only {moment} moments");
            break;
        }
    }
}

/// Goal: whenever the power goes, the next boot ends where an undisturbed one ends, and the medium is wiped. Method: killed
/// at each of the program's moments, started again.
#[test]
fn a_power_cut_at_any_moment_loses_nothing() {
    let mut moments = 0;
    for medium in [STICK, PARTITION] {
        for moment in 1.. {
            let machine = Machine::new();
            let image = machine.medium(medium, &[("provider-seed.toml", settings().as_bytes())]);
            let ended = machine
                .command(&[])
                .env("HOSTD_DIE_AT_POINT", moment.to_string())
                .output()
                .unwrap();
            if ended.status.code().is_some() {
                assert_eq!(report(&ended).stage, Stage::NoDelegation);
                break;
            }
            moments += 1;
            let report = machine.setup(&[]);
            assert_eq!(
                (report.stage, report.faults.len()),
                (Stage::NoDelegation, 0),
                "{medium} at {moment}: {report:?}"
            );
            let kept = fs::read_to_string(machine.at("etc/hostd/provider-seed.toml")).unwrap();
            assert_eq!(kept, settings(), "{medium} at {moment}");
            let left = fs::read(&image).unwrap();
            assert!(
                !left.windows(11).any(|part| part == b"rack7-node3"),
                "{medium} at {moment}: not wiped"
            );
            let origin = fs::read_to_string(machine.at("etc/hostd/settings-origin.json")).unwrap();
            assert!(
                origin.contains("\"wiped\":true"),
                "{medium} at {moment}: {origin}"
            );
            // The end is the same as without a cut.
            let before = machine.files();
            machine.setup(&[]);
            assert_eq!(machine.files(), before, "{medium} at {moment}");
        }
    }
    assert!(
        moments > 20,
        "only {moments} moments: does the program still have them?"
    );
}

#[test]
fn without_a_tpm_it_says_what_to_do() {
    let machine = Machine::new();
    let output = Command::new(env!("CARGO_BIN_EXE_hostd"))
        .args(["--json", "setup", "--tpm", "device:/nonexistent/tpm", "--root"])
        .arg(machine.at(""))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = report(&output);
    assert!(report.faults[0].contains("AMD fTPM or Intel PTT"), "{report:?}");
}

#[test]
fn a_seed_is_made_and_checked_on_the_providers_own_machine() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let prefix = "308182301d060d2b0601040182dc7c0503010201060c2b0601040182dc7c05030201036100";
    fs::write(
        at("client.toml"),
        format!(
            "url = \"http://127.0.0.1:4943\"\ncanister_id = \"{LEDGER}\"\nroot_key = \"{prefix}{}\"\n",
            "09".repeat(96)
        ),
    )
    .unwrap();
    fs::write(
        at("delegation"),
        delegation(&new_key(), "2vxsx-fae", LEDGER, YEAR),
    )
    .unwrap();
    let hostd = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_hostd"))
            .current_dir(dir.path())
            .args(args)
            .output()
            .unwrap()
    };
    let init = [
        "seed",
        "init",
        "--client",
        "client.toml",
        "--delegation",
        "delegation",
    ];
    assert_eq!(hostd(&init).status.code(), Some(0));
    assert_eq!(hostd(&init).status.code(), Some(1), "overwrites nothing");
    let checked = hostd(&["seed", "check", "provider-seed.toml"]);
    assert_eq!(
        checked.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
    let text = fs::read_to_string(at("provider-seed.toml")).unwrap();
    fs::write(
        at("broken.toml"),
        text.replace("http://", "gopher://")
            .replace("\nregion", "\nreligion"),
    )
    .unwrap();
    let checked = hostd(&["--json", "seed", "check", "broken.toml"]);
    assert_eq!(checked.status.code(), Some(2));
    let faults: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(faults[0]["key"], "offering.religion");
    assert_eq!(hostd(&["seed", "check", "absent.toml"]).status.code(), Some(1));
}

/// Goal: systemd-networkd understands every line of what is written for it, and does it. Method: the real one, in a network
/// and mount namespace of its own with a veth port; it names lines that it doesn't know. (A kernel without bonds or VLANs
/// makes none; that they are read is what counts then.)
#[test]
fn networkd_takes_every_line_and_gives_the_port_its_addresses() {
    const BONDED: &str = "uplink = \"up100\"\naddresses = [\"203.0.113.10/24\"]\ngateways = [\"203.0.113.1\"]\nmtu = 1400\n\
                          [[network.bond]]\nname = \"bond0\"\nports = [\"enp1s0\"]\n\
                          [[network.bond]]\nname = \"bond1\"\nmode = \"active-backup\"\nports = [\"52:54:00:00:00:09\"]\n\
                          [[network.vlan]]\nname = \"up100\"\nid = 100\non = \"bond0\"\n";
    const SCRIPT: &str = "set -e; mount --make-rprivate /; mount -t tmpfs tmpfs /run; mkdir -p /run/systemd; \
                          cp -r \"$1\" /run/systemd/network; mount -t sysfs -o ro sysfs /sys; \
                          ip link add enp1s0 type veth peer name peer0; ip link set peer0 up; \
                          timeout 20 /usr/lib/systemd/systemd-networkd >/run/said 2>&1 & \
                          for i in $(seq 150); do grep -q \"Enumeration completed\" /run/said && \
                          ip -br a show dev enp1s0 | grep -q \"$2\" && break; sleep 0.1; done; \
                          ip -br a; kill %1; wait || true; cat /run/said";
    for (network, address) in [(None, "203.0.113.10/24"), (Some(BONDED), "")] {
        let machine = Machine::new();
        let mut text = settings();
        if let Some(network) = network {
            let (before, rest) = text.split_once("[network]\n").unwrap();
            let (_, after) = rest.split_once("[tenants]").unwrap();
            text = format!("{before}[network]\n{network}\n[tenants]{after}");
        }
        machine.write(FW_CFG, text);
        let report = machine.setup(&[]);
        assert_eq!(report.faults.len(), 0, "{report:?}");
        let output = Command::new("unshare")
            .args(["--mount", "--net", "bash", "-c", SCRIPT, "sh"])
            .arg(machine.at("run/systemd/network"))
            .arg(address)
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Enumeration completed"), "{said}");
        assert!(said.contains(address), "{said}");
        for line in said.lines() {
            assert!(
                !line.contains("/run/systemd/network/") || line.contains("Configuring with"),
                "{line}"
            );
        }
    }
}
