//! A VM as Cloud Hypervisor's `VmConfig`, and the comparison with what it made of it. Pure.
//!
//! Source of the format: `vmm/src/vm_config.rs`, Cloud Hypervisor v53.0. Cloud Hypervisor takes unknown fields, and
//! fields of features it was built without, with a 204 and drops them: an ordinary VM would run where a confidential
//! one was paid for. So everything that is asked here is compared with `vm.info` before boot ([`check_read_back`]).
//!
//! Written as JSON by hand, since the client crate's types lack `reserve` and `fw_cfg_config` (FACTS 2).

use std::path::Path;

use ledger::api::VmKind;
use serde_json::{Value, json};

use crate::vmm::{Access, Hugepages, VmSpec, VmmError};

/// The name of the one network device.
pub(super) const NIC_ID: &str = "net0";
/// Every VM has a vsock socket of its own, so the number needn't differ.
const GUEST_CID: u32 = 3;
/// A plain VM can be given up to this many times its first size.
const GROWTH: u64 = 2;

/// What the machine adds to the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Whether the kernel has Landlock.
    pub landlock: bool,
}

/// Features that the binary must say it was built with (`vmm.ping`).
pub(super) fn required_features(kind: VmKind) -> &'static [&'static str] {
    match kind {
        VmKind::Plain | VmKind::Tdx => &["kvm"],
        VmKind::SevSnp => &["kvm", "sev_snp", "igvm", "fw_cfg"],
    }
}

/// The body of `vm.create`.
pub(super) fn vm_config(spec: &VmSpec, place: Place) -> Value {
    let disks: Vec<Value> = spec
        .disks
        .iter()
        .enumerate()
        .map(|(i, disk)| self::disk(i, disk))
        .collect();
    let mut config = json!({
        "cpus": {
            "boot_vcpus": spec.vcpus,
            "max_vcpus": max_vcpus(spec),
            // A tenant's own hypervisor is more of the host's kernel in the tenant's reach.
            "nested": false,
        },
        "memory": memory(spec),
        "payload": payload(spec),
        "disks": disks,
        "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "Off"},
        "console": {"mode": "File", "file": spec.run_dir.join(super::CONSOLE_LOG)},
        "vsock": {"cid": GUEST_CID, "socket": spec.run_dir.join(super::VSOCK_SOCKET)},
        "platform": platform(spec),
        "landlock_enable": place.landlock,
    });
    if place.landlock {
        config["landlock_rules"] = landlock_rules(spec);
    }
    if !spec.vfio.is_empty() {
        let devices = spec
            .vfio
            .iter()
            .map(|address| json!({"path": pci_folder(address)}));
        config["devices"] = devices.collect();
    }
    config
}

/// The body of `vm.add-net`; the tap's file descriptor travels beside it.
pub(super) fn net_config(spec: &VmSpec) -> Value {
    json!({"id": NIC_ID, "mac": spec.nic.mac.to_ascii_lowercase(), "num_queues": 2, "queue_size": 256})
}

/// The most vCPUs that a VM may be given later.
pub(super) fn max_vcpus(spec: &VmSpec) -> u32 {
    // The number of vCPUs is part of a confidential VM's measurement.
    if spec.kind == VmKind::Plain {
        spec.vcpus.saturating_mul(GROWTH as u32).min(254)
    } else {
        spec.vcpus
    }
}

fn memory(spec: &VmSpec) -> Value {
    let size = spec.memory_mib << 20;
    let mut memory = json!({"size": size, "shared": false, "mergeable": false});
    match spec.hugepages {
        Hugepages::No => memory["hugepages"] = false.into(),
        Hugepages::Size2M => {
            memory["hugepages"] = true.into();
            memory["hugepage_size"] = (2_u64 << 20).into();
            // Without it a short pool is found out by a SIGBUS in the running guest (FACTS 2).
            memory["reserve"] = true.into();
        }
    }
    if spec.kind == VmKind::Plain && spec.hugepages == Hugepages::No && spec.vfio.is_empty() {
        memory["hotplug_method"] = "Acpi".into();
        memory["hotplug_size"] = hotplug_bytes(spec).into();
    }
    memory
}

/// Room to grow, in whole 128 MiB sections as Linux takes them.
pub(super) fn hotplug_bytes(spec: &VmSpec) -> u64 {
    ((spec.memory_mib << 20) * (GROWTH - 1)).next_multiple_of(128 << 20)
}

fn payload(spec: &VmSpec) -> Value {
    let mut payload = json!({"kernel": spec.boot.kernel, "cmdline": spec.boot.cmdline});
    if let Some(initrd) = &spec.boot.initrd {
        payload["initramfs"] = json!(initrd);
    }
    if let (VmKind::SevSnp, Some(host_data)) = (spec.kind, spec.host_data) {
        payload["igvm"] = json!(spec.boot.firmware);
        payload["host_data"] = hex::encode(host_data).into();
        // The measured firmware fetches and hashes them.
        payload["fw_cfg_config"] =
            json!({"e820": true, "kernel": true, "cmdline": true, "initramfs": true, "acpi_tables": true});
    }
    payload
}

fn platform(spec: &VmSpec) -> Value {
    let mut platform = json!({"num_pci_segments": 1});
    if spec.kind == VmKind::SevSnp {
        platform["sev_snp"] = true.into();
    }
    platform
}

fn disk(index: usize, disk: &crate::vmm::Disk) -> Value {
    json!({
        "id": format!("disk{index}"),
        "path": disk.path,
        "readonly": disk.access == Access::ReadOnly,
        // Said, never probed: a tenant can write any header into its own disk.
        "image_type": "Raw",
        "backing_files": false,
        "serial": disk.serial,
    })
}

/// Explicit, although Cloud Hypervisor adds rules for most of this itself: its own are wrong for VFIO (FACTS 2).
fn landlock_rules(spec: &VmSpec) -> Value {
    let rule = |path: &Path, access: &str| json!({"path": path, "access": access});
    let mut rules = vec![rule(&spec.run_dir, "rw"), rule(&spec.boot.kernel, "r")];
    rules.extend(
        spec.boot
            .initrd
            .iter()
            .chain(&spec.boot.firmware)
            .map(|path| rule(path, "r")),
    );
    for disk in &spec.disks {
        rules.push(rule(
            &disk.path,
            if disk.access == Access::ReadOnly {
                "r"
            } else {
                "rw"
            },
        ));
    }
    if !spec.vfio.is_empty() {
        rules.push(rule(Path::new("/dev/vfio"), "rw"));
        rules.extend(
            spec.vfio
                .iter()
                .map(|address| rule(Path::new(&pci_folder(address)), "rw")),
        );
    }
    rules.into()
}

fn pci_folder(address: &str) -> String {
    format!("/sys/bus/pci/devices/{}", address.to_ascii_lowercase())
}

/// Compares `vm.info`'s configuration with everything that was asked, and refuses what nobody asked for.
pub(super) fn check_read_back(spec: &VmSpec, place: Place, found: &Value) -> Result<(), VmmError> {
    let mut wanted = vm_config(spec, place);
    wanted["net"] = json!([net_config(spec)]);
    contains("config", &wanted, found)?;
    for unasked in [
        "fs",
        "pmem",
        "user_devices",
        "vdpa",
        "generic_vhost_user",
        "devices",
        "tpm",
        "balloon",
        "numa",
    ] {
        let there = match found.get(unasked) {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        if there && wanted.get(unasked).is_none() {
            return Err(mismatch(
                &format!("config.{unasked}"),
                &Value::Null,
                found.get(unasked),
            ));
        }
    }
    Ok(())
}

/// Every leaf of `wanted` is in `found`, at the same place with the same value; lists have the same length.
fn contains(at: &str, wanted: &Value, found: &Value) -> Result<(), VmmError> {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => wanted.iter().try_for_each(|(key, value)| {
            let at = format!("{at}.{key}");
            match found.get(key) {
                Some(found) => contains(&at, value, found),
                None => Err(mismatch(&at, value, None)),
            }
        }),
        (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => wanted
            .iter()
            .zip(found)
            .enumerate()
            .try_for_each(|(i, (wanted, found))| contains(&format!("{at}[{i}]"), wanted, found)),
        _ if wanted == found => Ok(()),
        _ => Err(mismatch(at, wanted, Some(found))),
    }
}

fn mismatch(field: &str, wanted: &Value, found: Option<&Value>) -> VmmError {
    let shorten = |value: &Value| value.to_string().chars().take(300).collect::<String>();
    VmmError::ReadBack {
        field: field.to_owned(),
        wanted: shorten(wanted),
        found: found.map_or_else(|| "nothing".to_owned(), shorten),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_spec::{confidential, spec};

    const WITH_LANDLOCK: Place = Place { landlock: true };

    /// What a Cloud Hypervisor that keeps everything shows, with some defaults of its own.
    fn kept(spec: &VmSpec) -> Value {
        let mut config = vm_config(spec, WITH_LANDLOCK);
        config["net"] = json!([net_config(spec)]);
        config["cpus"]["profile"] = "Host".into();
        config["pvpanic"] = false.into();
        config
    }

    #[test]
    fn configurations_are_rendered_as_reviewed() {
        insta::assert_json_snapshot!("plain", vm_config(&spec(), WITH_LANDLOCK));
        insta::assert_json_snapshot!("sev-snp", vm_config(&confidential(VmKind::SevSnp), WITH_LANDLOCK));
        let gpu = VmSpec {
            vfio: vec!["0000:c1:00.0".into()],
            hugepages: Hugepages::Size2M,
            ..spec()
        };
        insta::assert_json_snapshot!("gpu-hugepages", vm_config(&gpu, WITH_LANDLOCK));
    }

    /// The leaves of a JSON value, as pointers.
    fn leaves(value: &Value, at: &str, into: &mut Vec<String>) {
        match value {
            Value::Object(map) => map
                .iter()
                .for_each(|(k, v)| leaves(v, &format!("{at}/{k}"), into)),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .for_each(|(i, v)| leaves(v, &format!("{at}/{i}"), into)),
            _ => into.push(at.to_owned()),
        }
    }

    #[test]
    fn any_field_that_was_dropped_or_changed_is_refused() {
        for spec in [spec(), confidential(VmKind::SevSnp)] {
            let asked = vm_config(&spec, WITH_LANDLOCK);
            check_read_back(&spec, WITH_LANDLOCK, &kept(&spec)).unwrap();
            let mut all = Vec::new();
            leaves(&asked, "", &mut all);
            assert!(all.len() > 25);
            for pointer in all {
                let mut changed = kept(&spec);
                *changed.pointer_mut(&pointer).unwrap() = "something else".into();
                assert!(
                    check_read_back(&spec, WITH_LANDLOCK, &changed).is_err(),
                    "{pointer} changed"
                );
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                let mut dropped = kept(&spec);
                if let Some(Value::Object(map)) = dropped.pointer_mut(parent) {
                    map.remove(name);
                    assert!(
                        check_read_back(&spec, WITH_LANDLOCK, &dropped).is_err(),
                        "{pointer} dropped"
                    );
                }
            }
        }
    }

    #[test]
    fn the_silent_loss_of_confidentiality_is_noticed() {
        // What v53 shows when it was built without sev_snp, igvm and fw_cfg (ran).
        let spec = confidential(VmKind::SevSnp);
        let mut stock = kept(&spec);
        stock["platform"].as_object_mut().unwrap().remove("sev_snp");
        for field in ["igvm", "host_data", "fw_cfg_config"] {
            stock["payload"].as_object_mut().unwrap().remove(field);
        }
        let error = check_read_back(&spec, WITH_LANDLOCK, &stock).unwrap_err();
        assert!(error.to_string().contains("refusing to start"), "{error}");
    }

    #[test]
    fn what_nobody_asked_for_is_refused() {
        for (name, value) in [
            ("devices", json!([{"path": "/sys/bus/pci/devices/0000:01:00.0"}])),
            ("fs", json!([{"tag": "host"}])),
            ("tpm", json!({"socket": "/x"})),
        ] {
            let mut found = kept(&spec());
            found[name] = value;
            assert!(check_read_back(&spec(), WITH_LANDLOCK, &found).is_err(), "{name}");
            found[name] = Value::Null;
            check_read_back(&spec(), WITH_LANDLOCK, &found).unwrap();
        }
        let mut two = kept(&spec());
        let nic = two["net"][0].clone();
        two["net"].as_array_mut().unwrap().push(nic);
        assert!(check_read_back(&spec(), WITH_LANDLOCK, &two).is_err());
    }
}
