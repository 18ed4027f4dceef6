//! What TOML's types can't say, and where in the file a fault is.

use std::path::Path;

use super::{Config, Fault};

/// A fault out of a TOML error: line, the key on it, the parser's words.
pub(crate) fn toml_fault(text: &str, error: &toml::de::Error) -> Fault {
    let Some(span) = error.span() else {
        return Fault {
            line: 0,
            key: String::new(),
            why: error.message().to_owned(),
        };
    };
    let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
    let (mut section, mut key) = (String::new(), String::new());
    for (number, content) in text.lines().enumerate().take(line) {
        if let Some(name) = header(content) {
            section = name.to_owned();
            key.clear();
        } else if number + 1 == line {
            key = content.split('=').next().unwrap_or_default().trim().to_owned();
        }
    }
    let key = match (section.as_str(), key.as_str()) {
        ("", key) => key.to_owned(),
        (section, "") => section.to_owned(),
        (section, key) => format!("{section}.{key}"),
    };
    Fault {
        line,
        key,
        why: error.message().to_owned(),
    }
}

fn header(line: &str) -> Option<&str> {
    let line = line.trim().strip_prefix('[')?;
    // `[[section]]` too: one of several.
    line.trim_start_matches('[').split(']').next().map(str::trim)
}

/// The line of `section.key`; of the section if the key isn't written; 0 if neither is.
pub(crate) fn line_of(text: &str, key: &str) -> usize {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let (mut inside, mut section_line) = (section.is_empty(), 0);
    for (number, line) in text.lines().enumerate() {
        if let Some(found) = header(line) {
            if found == key {
                return number + 1;
            }
            inside = found == section;
            if inside {
                section_line = number + 1;
            }
        } else if inside && line.split('=').next().is_some_and(|word| word.trim() == name) {
            return number + 1;
        }
    }
    section_line
}

/// Every fault of a config whose types are right.
pub(super) fn faults(config: &Config, text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut check = |ok: bool, key: &str, why: &str| {
        if !ok {
            faults.push(Fault {
                line: line_of(text, key),
                key: key.to_owned(),
                why: why.to_owned(),
            });
        }
    };
    let name = |text: &str, max: usize| {
        !text.is_empty() && text.chars().count() <= max && !text.chars().any(char::is_control)
    };
    let absolute = |path: &Path| path.is_absolute() && !path.components().any(|c| c.as_os_str() == "..");
    const ABSOLUTE: &str = "must be an absolute path without `..`";

    let host = &config.host;
    check(
        name(&host.name, 100),
        "host.name",
        "must have 1–100 printable characters",
    );
    check(absolute(&host.state_dir), "host.state_dir", ABSOLUTE);
    check(absolute(&host.run_dir), "host.run_dir", ABSOLUTE);
    check(
        host.run_dir.as_os_str().len() <= 64,
        "host.run_dir",
        "must be at most 64 bytes: sockets below it may have paths of 107 bytes at most (unix(7))",
    );
    check(
        host.socket.as_deref().is_none_or(absolute),
        "host.socket",
        ABSOLUTE,
    );
    check(
        host.socket().as_os_str().len() <= 107,
        "host.socket",
        "must be at most 107 bytes (unix(7))",
    );
    check(
        (1..=3600).contains(&host.heartbeat_s),
        "host.heartbeat_s",
        "must be 1–3600 seconds",
    );

    let ledger = &config.ledger;
    let scheme = ledger.url.starts_with("https://") || ledger.url.starts_with("http://");
    check(scheme, "ledger.url", "must begin with https:// or http://");
    check(
        candid::Principal::from_text(&ledger.canister_id).is_ok(),
        "ledger.canister_id",
        "isn't a canister id (text form, such as rrkah-fqaaa-aaaaa-aaaaq-cai)",
    );
    check(
        ledger.root_key.is_some() != ledger.root_key_file.is_some(),
        "ledger.root_key",
        "give root_key (DER, hexadecimal) or root_key_file, one of the two: the root key must be pinned",
    );
    check(
        ledger
            .root_key
            .as_deref()
            .is_none_or(|key| hex::decode(key).is_ok_and(|der| der.len() == 133)),
        "ledger.root_key",
        "must be 133 bytes of DER in hexadecimal (a BLS12-381 public key)",
    );
    check(
        ledger.root_key_file.as_deref().is_none_or(absolute),
        "ledger.root_key_file",
        ABSOLUTE,
    );
    check(absolute(&ledger.host_key), "ledger.host_key", ABSOLUTE);
    check(
        name(&ledger.tpm, 200),
        "ledger.tpm",
        "must be a TPM as tpm2-tss names it, such as device:/dev/tpmrm0",
    );
    check(absolute(&ledger.delegation), "ledger.delegation", ABSOLUTE);

    let update = &config.update;
    check(
        update.source.as_deref().is_none_or(crate::update::is_source),
        "update.source",
        "must be an https:// URL or an absolute path, in printable ASCII without spaces, `%`, quotes or `..`",
    );
    check(
        (600..=30 * 86_400).contains(&update.check_s),
        "update.check_s",
        "must be 600–2592000 seconds",
    );
    check(
        update.notice_s <= 30 * 86_400,
        "update.notice_s",
        "must be at most 2592000 seconds",
    );

    if let Err(error) = config.endorsements.sources() {
        check(false, "endorsements", &error.to_string());
    }
    check(
        config.endorsements.test_root.is_none() || host.test_platform,
        "endorsements.test_root",
        "is for tests: it needs host.test_platform = true",
    );

    let own = &config.host_evidence;
    let paths = own
        .references
        .iter()
        .chain([&own.firmware_log, &own.userspace_log]);
    check(
        paths.into_iter().all(|path| absolute(path)),
        "host_evidence",
        ABSOLUTE,
    );

    let names = &config.names;
    for (key, value) in [
        ("names.retry_max_s", names.retry_max_s),
        ("names.recheck_s", names.recheck_s),
    ] {
        check(
            (1..=24 * 3600).contains(&value),
            key,
            "must be 1 second to 24 hours",
        );
    }
    check(
        names.nameservers.len() <= 8,
        "names.nameservers",
        "name at most 8 resolvers",
    );

    let storage = &config.storage;
    check(absolute(&storage.dir), "storage.dir", ABSOLUTE);
    check(
        !storage.allow_schemes.is_empty(),
        "storage.allow_schemes",
        "allow at least one of https, http, file",
    );
    check(
        (1..=64).contains(&storage.fetches_max),
        "storage.fetches_max",
        "must be 1–64",
    );
    check(
        storage.fetch_idle_s >= 1,
        "storage.fetch_idle_s",
        "must be at least 1 second",
    );

    let vmm = &config.vmm;
    check(
        !vmm.prefer.is_empty(),
        "vmm.prefer",
        "name at least one of cloud-hypervisor, libvirt",
    );
    let twice = vmm
        .prefer
        .iter()
        .enumerate()
        .any(|(n, adapter)| vmm.prefer[..n].contains(adapter));
    check(!twice, "vmm.prefer", "names an adapter twice");
    check(
        vmm.uid_base == 0 || (1000..=0x7fff_0000).contains(&vmm.uid_base),
        "vmm.uid_base",
        "must be 0 (root) or a range of uids that nobody else has, from 1000 on",
    );
    check(
        vmm.parallel_launches.is_none_or(|n| (1..=256).contains(&n)),
        "vmm.parallel_launches",
        "must be 1–256",
    );
    check(
        vmm.cloud_hypervisor.binary.as_deref().is_none_or(absolute),
        "vmm.cloud_hypervisor.binary",
        ABSOLUTE,
    );
    check(
        vmm.libvirt.emulator.as_deref().is_none_or(absolute),
        "vmm.libvirt.emulator",
        ABSOLUTE,
    );

    check(
        !vmm.cloud_hypervisor.assume_kvm || host.test_platform,
        "vmm.cloud_hypervisor.assume_kvm",
        "is for tests: it needs host.test_platform = true",
    );

    let offering = &config.offering;
    check(
        name(&offering.title, 200),
        "offering.title",
        "must have 1–200 printable characters",
    );
    check(
        name(&offering.region, 64),
        "offering.region",
        "must have 1–64 printable characters",
    );
    check(
        offering.kinds.as_ref().is_none_or(|k| !k.is_empty()),
        "offering.kinds",
        "leave it out, or name a kind",
    );
    check(
        offering.max_period_s >= 1,
        "offering.max_period_s",
        "must be at least 1 second",
    );
    check(
        (1..=65536).contains(&offering.default_disk_gib),
        "offering.default_disk_gib",
        "must be 1–65536 GiB",
    );
    check(
        offering.storage_per_vm_gib != Some(0),
        "offering.storage_per_vm_gib",
        "must be at least 1 GiB",
    );
    check(
        offering.bandwidth_mbps != Some(0),
        "offering.bandwidth_mbps",
        "must be at least 1 Mbit/s",
    );
    let free = offering.prices.vm_hour == 0 && offering.prices.vcpu_hour == 0;
    check(
        !free,
        "offering.prices.vm_hour",
        "vm_hour or vcpu_hour must be above 0: the ledger takes no free contracts",
    );

    check(
        config.vmm.hugepages || config.vmm.reserve_hugepages_mib == 0,
        "vmm.reserve_hugepages_mib",
        "VMs use none: set vmm.hugepages = true, or leave this out",
    );

    let deadlines = &config.deadlines;
    for (key, value) in [
        ("deadlines.launch_s", deadlines.launch_s),
        ("deadlines.boot_s", deadlines.boot_s),
        ("deadlines.disk_s", deadlines.disk_s),
        ("deadlines.graceful_stop_s", deadlines.graceful_stop_s),
    ] {
        check(
            (1..=24 * 3600).contains(&value),
            key,
            "must be 1 second to 24 hours",
        );
    }
    for (key, value) in [
        ("deadlines.launch_per_gib_s", deadlines.launch_per_gib_s),
        ("deadlines.boot_per_gib_s", deadlines.boot_per_gib_s),
    ] {
        check(value <= 600, key, "must be at most 600 seconds for each GiB");
    }
    for fault in config.network.check().err().unwrap_or_default() {
        // netns' texts name the key in backquotes.
        let why = fault.to_string();
        let key = why
            .split('`')
            .nth(1)
            .map_or_else(|| "network".to_owned(), |key| format!("network.{key}"));
        faults.push(Fault {
            line: line_of(text, &key),
            key,
            why,
        });
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../hostd.example.toml");

    #[test]
    fn the_example_is_valid_and_its_defaults_are_the_programs() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert_eq!(config.network.lease_ports.ports(), 20000..=29999);
        assert_eq!(config.host.socket(), Path::new("/run/hostd/hostd.sock"));
    }

    #[test]
    fn every_fault_names_its_line_and_key() {
        let line = |needle: &str| EXAMPLE.lines().position(|l| l.starts_with(needle)).unwrap() + 1;
        for (from, to, key, why) in [
            ("wan = ", "wam = ", "network.wam", "unknown field `wam`"),
            ("wan = \"eth0\"", "wan = \"eth 0\"", "network.wan", "interface"),
            (
                "public_ip4 = \"",
                "public_ip4 = \"x",
                "network.public_ip4",
                "invalid IPv4",
            ),
            (
                "heartbeat_s = 30",
                "heartbeat_s = 0",
                "host.heartbeat_s",
                "must be 1–3600",
            ),
            (
                "heartbeat_s = 30",
                "heartbeat_s = \"x\"",
                "host.heartbeat_s",
                "invalid type",
            ),
            (
                "lease_ports = \"20000-29999\"",
                "lease_ports = \"9-1\"",
                "network.lease_ports",
                "first-last",
            ),
            (
                "tenant_net = \"100.64.0.0/16\"",
                "tenant_net = \"100.64.0.1/16\"",
                "network.tenant_net",
                "no bits behind",
            ),
            (
                "canister_id = \"",
                "canister_id = \"x",
                "ledger.canister_id",
                "isn't a canister id",
            ),
            (
                "public_ip4 = \"203.0.113.1\"",
                "public_ip4 = \"100.64.0.9\"",
                "network.public_ip4",
                "lies in",
            ),
            ("state_dir = \"/", "state_dir = \"", "host.state_dir", "absolute"),
        ] {
            let key_word = from.split(' ').next().unwrap();
            let text = EXAMPLE.replacen(&format!("\n{from}"), &format!("\n{to}"), 1);
            assert_ne!(text, EXAMPLE, "{from} isn't in the example");
            let faults = Config::parse(&text).expect_err(to);
            let fault = &faults[0];
            assert_eq!(
                (faults.len(), fault.key.as_str(), fault.line),
                (1, key, line(key_word)),
                "{to}: {faults:?}"
            );
            assert!(fault.why.contains(why), "{to}: {}", fault.why);
        }
    }

    #[test]
    fn all_faults_are_listed_at_once_and_a_missing_section_is_named() {
        let text = EXAMPLE
            .replace("\nheartbeat_s = 30", "\nheartbeat_s = 0")
            .replace("\nfetches_max = 4", "\nfetches_max = 0")
            .replace("\nregion = \"", "\nregion = \"\\u0007");
        let keys: Vec<_> = Config::parse(&text)
            .unwrap_err()
            .into_iter()
            .map(|f| f.key)
            .collect();
        assert_eq!(
            keys,
            ["host.heartbeat_s", "storage.fetches_max", "offering.region"]
        );
        let faults = Config::parse("[host]\nname = 'x'\nstate_dir='/a'\nrun_dir='/b'\n").unwrap_err();
        assert!(faults[0].why.contains("missing field `ledger`"), "{faults:?}");
    }
}
