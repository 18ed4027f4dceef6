//! The unit files in `systemd/` are what systemd takes them for. They are checked by systemd's own offline tools, in a
//! root directory where the programs they start are stand-ins.
#![cfg(feature = "builder")]
#![expect(clippy::unwrap_used, reason = "all of it is a test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn units() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd"))
}

/// A root directory with systemd's own units, ours, and programs that exist.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for program in [
        "usr/bin/hostd",
        "usr/bin/ledgerd",
        "usr/sbin/haproxy",
        "bin/kill",
        "bin/true",
        "bin/false",
        "usr/lib/decent-cloud/console",
        "usr/lib/decent-cloud/healthy",
        "usr/lib/decent-cloud/initrd-emergency",
        "usr/lib/decent-cloud/locked",
        "usr/lib/decent-cloud/recovery-key",
        "usr/lib/decent-cloud/report",
        "usr/bin/grep",
        "bin/sh",
    ] {
        fs::create_dir_all(at(program).parent().unwrap()).unwrap();
        fs::copy("/bin/true", at(program)).unwrap();
    }
    for dir in ["lib/systemd/system", "etc/systemd/system"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    copy(Path::new("/lib/systemd/system"), &at("lib/systemd/system"));
    copy(&units().join("system"), &at("etc/systemd/system"));
    root
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-aT").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cannot copy {}", from.display());
}

fn run(program: &str, args: &[&str], root: &Path) -> Output {
    Command::new(program)
        .arg(format!("--root={}", root.display()))
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; apt-get install systemd"))
}

#[test]
fn systemd_finds_no_fault_in_our_units() {
    let root = root();
    let units = [
        "hostd.service",
        "ledgerd.service",
        "haproxy.service",
        "etc-hostd.mount",
        "decent-cloud-console@tty1.service",
        "decent-cloud-healthy.service",
        "decent-cloud-hugepages.service",
        "decent-cloud-install@tty1.service",
        "decent-cloud-recovery-key.service",
        "decent-cloud-report@ttyS1.service",
        "decent-cloud-setup-network.service",
        "decent-cloud-setup.service",
        "decent-cloud-vms.service",
    ];
    let output = run(
        "systemd-analyze",
        &[&["verify"], &units[..]].concat(),
        root.path(),
    );
    let text = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = text
        .lines()
        .filter(|l| units.iter().any(|unit| l.contains(unit)))
        .collect();
    assert!(output.status.success() && ours.is_empty(), "{text}");
}

#[test]
fn all_units_but_hostds_are_hardened() {
    let root = root();
    for unit in [
        "ledgerd.service",
        "decent-cloud-console@tty1.service",
        "decent-cloud-healthy.service",
        "decent-cloud-hugepages.service",
        "decent-cloud-install@tty1.service",
        "decent-cloud-recovery-key.service",
        "decent-cloud-report@ttyS1.service",
        "decent-cloud-setup-network.service",
        "decent-cloud-setup.service",
        "decent-cloud-vms.service",
    ] {
        // The threshold is in tenths: 3.0, the bound that the appliance sets for all units but hostd's.
        let args = ["security", "--offline=yes", "--threshold=30", "--no-pager", unit];
        let output = run("systemd-analyze", &args, root.path());
        assert!(
            output.status.success(),
            "{unit}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

#[test]
fn the_preset_names_units_that_exist_and_can_be_enabled() {
    let preset = fs::read_to_string(units().join("system-preset/50-decent-cloud.preset")).unwrap();
    let ours: Vec<&str> = preset
        .lines()
        .filter_map(|line| line.strip_prefix("enable "))
        .filter(|unit| {
            unit.starts_with("decent-cloud") || unit.starts_with("hostd") || unit.ends_with(".mount")
        })
        .collect();
    assert!(ours.len() >= 5, "{ours:?}");
    for unit in ours {
        let file = match (unit.split_once('@'), unit.rsplit_once('.')) {
            (Some((stem, _)), Some((_, kind))) => format!("{stem}@.{kind}"),
            _ => unit.to_owned(),
        };
        let text =
            fs::read_to_string(units().join("system").join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(text.contains("\nWantedBy="), "{file} can't be enabled");
    }
}

#[test]
fn stopping_hostd_leaves_its_vms_alone() {
    let unit = fs::read_to_string(units().join("system/hostd.service")).unwrap();
    for line in [
        "KillMode=process",
        "SendSIGKILL=no",
        "OOMPolicy=continue",
        "MemoryMin=128M",
        "OOMScoreAdjust=-900",
        "Restart=always",
        "Delegate=yes",
    ] {
        assert!(unit.lines().any(|l| l == line), "{line} is missing");
    }
    // Each of these gives the service a mount namespace, in which `ip netns` objects would die with hostd.
    for setting in [
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateMounts",
        "ReadWritePaths",
        "ProtectKernel",
    ] {
        assert!(
            !unit.lines().any(|l| l.starts_with(setting)),
            "{setting} gives hostd a mount namespace"
        );
    }
}

#[test]
fn vms_are_stopped_before_what_they_need_and_by_a_shutdown_alone() {
    let unit = fs::read_to_string(units().join("system/decent-cloud-vms.service")).unwrap();
    for line in [
        "RefuseManualStop=yes",
        "RemainAfterExit=yes",
        "ExecStop=-/usr/bin/hostd power-off --yes",
    ] {
        assert!(unit.lines().any(|l| l == line), "{line} is missing");
    }
    let after: Vec<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("After="))
        .flat_map(str::split_whitespace)
        .collect();
    for needed in [
        "hostd.service",
        "haproxy.service",
        "network.target",
        "systemd-networkd.service",
        "dbus.service",
    ] {
        assert!(after.contains(&needed), "{needed} may stop first");
    }
}

#[test]
fn users_and_directories_are_made_from_our_files() {
    let root = root();
    fs::write(root.path().join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.path().join("etc/group"), "root:x:0:\n").unwrap();
    for (program, args, file) in [
        ("systemd-sysusers", &[][..], "sysusers.d"),
        ("systemd-tmpfiles", &["--create"][..], "tmpfiles.d"),
    ] {
        let file = units()
            .join(file)
            .join("decent-cloud.conf")
            .canonicalize()
            .unwrap();
        let output = run(program, &[args, &[file.to_str().unwrap()]].concat(), root.path());
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let users = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    assert!(users.contains("ledgerd:"), "{users}");
    assert!(root.path().join("var/lib/ledgerd").is_dir() && root.path().join("var/lib/hostd").is_dir());
}
