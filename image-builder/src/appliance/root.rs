//! The root file system: Debian's packages, the kernel's modules, hostd, and the files of `systemd/`.
//!
//! What would differ between two builds, or belongs on the state partition, is left out; `/var` is empty and filled at
//! the first boot by systemd-tmpfiles. Units are enabled by our preset file, with links, at build time: the root is
//! read-only afterwards.

use std::collections::BTreeSet;

use crate::apt;
use crate::tree::{CAPABILITY, Kind, Node, Tree, TreeError};

use super::config::Config;

/// `systemd/` of this repository: path in the image, permissions, content.
const FILES: &[(&str, u32, &str)] = &[
    systemd(
        "usr/lib/systemd/system/hostd.service",
        include_str!("../../../systemd/system/hostd.service"),
    ),
    systemd(
        "usr/lib/systemd/system/etc-hostd.mount",
        include_str!("../../../systemd/system/etc-hostd.mount"),
    ),
    systemd(
        "usr/lib/systemd/system/haproxy.service.d/decent-cloud.conf",
        include_str!("../../../systemd/system/haproxy.service.d/decent-cloud.conf"),
    ),
    systemd(
        "usr/lib/systemd/system/emergency.service.d/decent-cloud.conf",
        include_str!("../../../systemd/system/emergency.service.d/decent-cloud.conf"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-healthy.service",
        include_str!("../../../systemd/system/decent-cloud-healthy.service"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-hugepages.service",
        include_str!("../../../systemd/system/decent-cloud-hugepages.service"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-vms.service",
        include_str!("../../../systemd/system/decent-cloud-vms.service"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-console@.service",
        include_str!("../../../systemd/system/decent-cloud-console@.service"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-setup.service",
        include_str!("../../../systemd/system/decent-cloud-setup.service"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-setup-network.service",
        include_str!("../../../systemd/system/decent-cloud-setup-network.service"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-settings.service",
        include_str!("../../../systemd/system/decent-cloud-settings.service"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-settings.path",
        include_str!("../../../systemd/system/decent-cloud-settings.path"),
    ),
    systemd(
        "usr/lib/udev/rules.d/90-decent-cloud.rules",
        include_str!("../../../systemd/udev/90-decent-cloud.rules"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-recovery-key.service",
        include_str!("../../../systemd/system/decent-cloud-recovery-key.service"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-install@.service",
        include_str!("../../../systemd/system/decent-cloud-install@.service"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-report@.service",
        include_str!("../../../systemd/system/decent-cloud-report@.service"),
    ),
    systemd(
        "usr/lib/systemd/system/systemd-ask-password-console.service.d/decent-cloud.conf",
        include_str!("../../../systemd/system/systemd-ask-password-console.service.d/decent-cloud.conf"),
    ),
    systemd(
        "usr/lib/systemd/system-preset/50-decent-cloud.preset",
        include_str!("../../../systemd/system-preset/50-decent-cloud.preset"),
    ),
    systemd(
        "usr/lib/systemd/system/system.slice.d/decent-cloud.conf",
        include_str!("../../../systemd/system/system.slice.d/decent-cloud.conf"),
    ),
    systemd(
        "usr/lib/repart.d/40-state.conf",
        include_str!("../../../systemd/repart.d/40-state.conf"),
    ),
    systemd(
        "usr/lib/modules-load.d/decent-cloud.conf",
        include_str!("../../../systemd/modules-load.d/decent-cloud.conf"),
    ),
    systemd(
        "usr/lib/systemd/journald.conf.d/decent-cloud.conf",
        include_str!("../../../systemd/journald.conf.d/decent-cloud.conf"),
    ),
    systemd(
        "usr/lib/systemd/system.conf.d/decent-cloud.conf",
        include_str!("../../../systemd/system.conf.d/decent-cloud.conf"),
    ),
    systemd(
        "usr/lib/systemd/network/80-uplink.network",
        include_str!("../../../systemd/network/80-uplink.network"),
    ),
    systemd(
        "usr/lib/tmpfiles.d/decent-cloud-image.conf",
        include_str!("../../../systemd/tmpfiles.d/decent-cloud-image.conf"),
    ),
    (
        "usr/lib/decent-cloud/console",
        0o755,
        include_str!("../../../systemd/lib/console"),
    ),
    systemd(
        "usr/lib/systemd/system/decent-cloud-return.service",
        include_str!("../../../systemd/system/decent-cloud-return.service"),
    ),
    (
        "usr/lib/decent-cloud/return",
        0o755,
        include_str!("../../../systemd/lib/return"),
    ),
    (
        "usr/lib/decent-cloud/healthy",
        0o755,
        include_str!("../../../systemd/lib/healthy"),
    ),
    (
        "usr/lib/decent-cloud/initrd-emergency",
        0o755,
        include_str!("../../../systemd/lib/initrd-emergency"),
    ),
    (
        "usr/lib/decent-cloud/locked",
        0o755,
        include_str!("../../../systemd/lib/locked"),
    ),
    (
        "usr/lib/decent-cloud/recovery-key",
        0o755,
        include_str!("../../../systemd/lib/recovery-key"),
    ),
    (
        "usr/lib/decent-cloud/report",
        0o755,
        include_str!("../../../systemd/lib/report"),
    ),
    (
        "etc/crypttab",
        0o600,
        "# Opened by this machine's TPM, or by the recovery key; see usr/lib/repart.d/40-state.conf.\nstate PARTLABEL=state - tpm2-device=auto,tries=0,x-systemd.device-timeout=2min\n",
    ),
    (
        "etc/fstab",
        0o644,
        "/dev/mapper/state /var ext4 nodev,nosuid,noexec,x-systemd.device-timeout=0 0 2\n\
         # A stick with updates, mounted when somebody looks.\n\
         LABEL=DC_UPDATE /run/update vfat ro,nodev,nosuid,noexec,noauto,x-systemd.automount,x-systemd.idle-timeout=60s,x-systemd.device-timeout=5s 0 0\n",
    ),
    ("etc/hostname", 0o644, "decent-cloud\n"),
    ("etc/machine-id", 0o444, ""),
];

/// In the initrd, what stands in for the unit of the same name.
pub const INITRD_EMERGENCY: &str = include_str!("../../../systemd/initrd/emergency.service");
/// In the initrd of a live image.
pub const LIVE_SYSROOT: &str = include_str!("../../../systemd/initrd/sysroot.mount");

const fn systemd(path: &'static str, content: &'static str) -> (&'static str, u32, &'static str) {
    (path, 0o644, content)
}

/// Where systemd-pull looks for the keys that sign updates.
const UPDATE_KEYRING: &str = "usr/lib/systemd/import-pubring.gpg";

const PRESET: &str = "usr/lib/systemd/system-preset/50-decent-cloud.preset";

/// Logins that nobody has a password for, what looks after a package manager's files, what would make the root writable,
/// and what would stop VMs beside hostd.
const MASKED: [&str; 11] = [
    "autovt@.service",
    "console-getty.service",
    "debug-shell.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "getty@.service",
    "libvirt-guests.service",
    "serial-getty@.service",
    "systemd-firstboot.service",
    "systemd-remount-fs.service",
];

/// Left out whatever the configuration says: times, logs, secrets of the build, and what the kernel mounts over.
const ALWAYS_EXCLUDED: [&str; 14] = [
    "boot",
    "dev",
    "etc/.pwd.lock",
    "etc/ld.so.cache~",
    "etc/machine-id",
    "etc/mtab",
    "etc/passwd-",
    "etc/resolv.conf",
    "etc/shadow-",
    "proc",
    "run",
    "sys",
    "tmp",
    "var",
];

const UNITS: &str = "usr/lib/systemd/system";

/// Whether a path of the packages stays out of the root.
pub fn excluded(config: &Config, path: &str) -> bool {
    let under = |prefix: &str| {
        path.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    path == apt::DIGESTS
        || ALWAYS_EXCLUDED.iter().any(|prefix| under(prefix))
        || config.exclude.iter().any(|prefix| under(prefix.as_str()))
}

/// Whether a path of the kernel package goes into the root.
pub fn is_module(config: &Config, path: &str) -> bool {
    let Some((_, inside)) = path
        .strip_prefix("usr/lib/modules/")
        .and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    let excluded = |dir: &str| {
        inside
            .strip_prefix("kernel/")
            .and_then(|p| p.strip_prefix(dir))
            .is_some_and(|r| r.starts_with('/'))
    };
    !config.kernel.exclude.iter().any(|dir| excluded(dir.as_str()))
}

/// Puts our files over the packages, and enables our units. `update_keyring`: who may sign updates, as OpenPGP keys.
pub fn assemble(tree: &mut Tree, config: &Config, update_keyring: &[u8]) -> Result<(), TreeError> {
    for (dir, mode) in [
        ("boot", 0o755),
        ("dev", 0o755),
        ("etc/hostd", 0o750),
        ("home", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("var", 0o755),
        // Services that start before the state is open want it to exist.
        ("var/tmp", 0o1777),
    ] {
        tree.dir(dir, mode)?;
    }
    for (path, mode, content) in FILES {
        tree.remove(path);
        tree.add_file(path, *mode, *content)?;
    }
    // Debian puts the keys of other distributions here.
    tree.remove(UPDATE_KEYRING);
    tree.add_file(UPDATE_KEYRING, 0o644, update_keyring)?;
    let disk = config.disk;
    for (name, partition, mib) in [
        ("10-esp", "Type=esp\n", disk.esp_mib),
        ("20-verity-a", "Type=root-verity\n", disk.verity_mib),
        ("21-root-a", "Type=root\n", disk.root_mib),
        ("30-verity-b", "Type=root-verity\nLabel=_empty\n", disk.verity_mib),
        ("31-root-b", "Type=root\nLabel=_empty\n", disk.root_mib),
    ] {
        let text = format!(
            "# Of the image's layout; the second slot is made at the first boot.\n[Partition]\n{partition}SizeMinBytes={mib}M\nSizeMaxBytes={mib}M\n"
        );
        tree.add_file(&format!("usr/lib/repart.d/{name}.conf"), 0o644, text)?;
    }
    if let Some(seed) = &config.seed {
        let text = format!("url = {:?}\nsha256 = \"{}\"\n", seed.url.as_str(), seed.sha256);
        tree.add_file("usr/lib/decent-cloud/seed.toml", 0o644, text)?;
    }
    tree.remove("etc/os-release");
    tree.symlink("etc/os-release", "../usr/lib/os-release")?;
    tree.add_file(
        "usr/lib/os-release",
        0o644,
        os_release(config, config.name.as_str()),
    )?;
    tree.symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")?;
    tree.symlink("etc/mtab", "../proc/self/mounts")?;
    tree.symlink(
        "etc/systemd/system/default.target",
        "/usr/lib/systemd/system/multi-user.target",
    )?;
    for unit in MASKED {
        let path = format!("etc/systemd/system/{unit}");
        tree.remove(&path);
        tree.symlink(&path, "/dev/null")?;
    }
    let wanted: Vec<String> = FILES
        .iter()
        .filter(|(path, ..)| *path == PRESET)
        .flat_map(|(_, _, text)| text.lines())
        .filter_map(|line| Some(line.strip_prefix("enable ")?.to_owned()))
        .collect();
    let mut done = BTreeSet::new();
    for unit in wanted {
        enable(tree, &unit, &mut done)?;
    }
    Ok(())
}

/// What the image says of itself; systemd-boot shows it and sorts by `IMAGE_ID`, and `IMAGE_VERSION` is what
/// systemd-sysupdate compares.
pub fn os_release(config: &Config, image_id: &str) -> String {
    format!(
        "ID=decent-cloud\nID_LIKE=debian\nNAME=\"Decent Cloud\"\nPRETTY_NAME=\"Decent Cloud {version}\"\nVERSION_ID={version}\n\
         IMAGE_ID={image_id}\nIMAGE_VERSION={version}\nHOME_URL=\"https://github.com/decent-stuff/decent-cloud\"\n",
        version = config.version,
    )
}

/// What `systemctl enable` does: links by the unit's `[Install]`.
fn enable(tree: &mut Tree, unit: &str, done: &mut BTreeSet<String>) -> Result<(), TreeError> {
    if !done.insert(unit.to_owned()) {
        return Ok(());
    }
    // An instance is enabled by its template's file.
    let file = match (unit.split_once('@'), unit.rsplit_once('.')) {
        (Some((stem, _)), Some((_, kind))) => format!("{stem}@.{kind}"),
        _ => unit.to_owned(),
    };
    let Some(text) = tree.file(&format!("{UNITS}/{file}")) else {
        return Ok(());
    };
    let text = String::from_utf8_lossy(text).into_owned();
    let values = |key: &str| -> Vec<String> {
        text.lines()
            .skip_while(|line| *line != "[Install]")
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .flat_map(str::split_whitespace)
            .map(str::to_owned)
            .collect()
    };
    let target = format!("/{UNITS}/{file}");
    for (key, dir) in [("WantedBy", "wants"), ("RequiredBy", "requires")] {
        for other in values(key) {
            tree.symlink(&format!("etc/systemd/system/{other}.{dir}/{unit}"), &target)?;
        }
    }
    for alias in values("Alias") {
        tree.symlink(&format!("etc/systemd/system/{alias}"), &target)?;
    }
    for also in values("Also") {
        enable(tree, &also, done)?;
    }
    Ok(())
}

/// The whole tree as one tar in the order of its paths; every time is 0.
pub fn to_tar(tree: &Tree) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, Node { mode, uid, gid, kind }) in tree.iter() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_uid(u64::from(*uid));
        header.set_gid(u64::from(*gid));
        header.set_mtime(0);
        header.set_size(0);
        if let Some(capability) = tree.capability(path) {
            builder.append_pax_extensions([(CAPABILITY, capability)])?;
        }
        match kind {
            Kind::Dir => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Kind::File(content) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, path, content.as_slice())?;
            }
            Kind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, path, target)?;
            }
            Kind::Char(major, minor) => {
                header.set_entry_type(tar::EntryType::Char);
                header.set_device_major(*major)?;
                header.set_device_minor(*minor)?;
                builder.append_data(&mut header, path, std::io::empty())?;
            }
        }
    }
    builder.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_becomes_links() {
        let mut tree = Tree::default();
        for (unit, install) in [
            (
                "a.service",
                "[Service]\nWantedBy=no.target\n[Install]\nWantedBy=x.target y.target\nAlso=b@.service\nAlias=c.service\n",
            ),
            ("d@.service", "[Install]\nRequiredBy=x.target\n"),
        ] {
            tree.add_file(&format!("{UNITS}/{unit}"), 0o644, install).unwrap();
        }
        let mut done = BTreeSet::new();
        for unit in ["a.service", "d@tty1.service", "absent.service"] {
            enable(&mut tree, unit, &mut done).unwrap();
        }
        let links: Vec<_> = tree
            .iter()
            .filter_map(|(path, node)| match &node.kind {
                Kind::Symlink(to) => Some((path.strip_prefix("etc/systemd/system/").unwrap(), to.as_str())),
                _ => None,
            })
            .collect();
        assert_eq!(
            links,
            [
                ("c.service", "/usr/lib/systemd/system/a.service"),
                (
                    "x.target.requires/d@tty1.service",
                    "/usr/lib/systemd/system/d@.service"
                ),
                ("x.target.wants/a.service", "/usr/lib/systemd/system/a.service"),
                ("y.target.wants/a.service", "/usr/lib/systemd/system/a.service"),
            ]
        );
    }

    #[test]
    fn a_tree_reads_back_from_its_tar() {
        let mut tree = Tree::default();
        let long = format!("a/{}", "x".repeat(150));
        tree.add_file(&long, 0o4755, "text").unwrap();
        tree.symlink("a/link", &long).unwrap();
        tree.dir("b", 0o1777).unwrap();
        // A file with capabilities, as mmdebstrap writes it.
        let mut packages = tar::Builder::new(Vec::new());
        packages
            .append_pax_extensions([(CAPABILITY, &b"\x01\0\0\x02 \0"[..])])
            .unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        packages
            .append_data(&mut header, "usr/bin/ping", std::io::empty())
            .unwrap();
        tree.add_tar(&packages.into_inner().unwrap()[..], |_| true)
            .unwrap();
        assert_eq!(tree.capability("usr/bin/ping"), Some(&b"\x01\0\0\x02 \0"[..]));
        let tar = to_tar(&tree).unwrap();
        let mut again = Tree::default();
        again.add_tar(&tar[..], |_| true).unwrap();
        assert_eq!(again, tree);
        assert_eq!(to_tar(&again).unwrap(), tar);
    }
}
