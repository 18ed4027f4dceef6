//! What both adapters refuse before they touch anything: values that don't fit the machine's interfaces, and text that
//! could become something else on the way (an XML element, an option, a truncated socket path).

use std::collections::BTreeSet;
use std::path::Path;

use ledger::api::VmKind;

use super::{VmSpec, VmmError};

/// As many as x86 guests without x2APIC tricks can have in both VMMs.
const VCPUS_MAX: u32 = 254;
/// One slot each on the root bus, beside the other devices.
const DISKS_MAX: usize = 16;
/// x86's `COMMAND_LINE_SIZE` is 2048 with the closing NUL; a longer line is cut off silently.
const CMDLINE_MAX: usize = 2047;
/// `sun_path` is 108 bytes with the closing NUL.
const SOCKET_PATH_MAX: usize = 107;
/// The longest file name that adapters make in `run_dir`.
const LONGEST_SOCKET: &str = "/agent.sock_4040";
/// `VIRTIO_BLK_ID_BYTES`.
const SERIAL_MAX: usize = 20;

/// Lists the first thing in `spec` that no VMM could be given, or given safely.
pub fn check(spec: &VmSpec) -> Result<(), VmmError> {
    fault(spec).map_or(Ok(()), |(field, why)| Err(VmmError::Spec { field, why }))
}

fn fault(spec: &VmSpec) -> Option<(&'static str, String)> {
    let say = |field, why: &str| Some((field, why.to_owned()));
    if !(1..=VCPUS_MAX).contains(&spec.vcpus) {
        return Some(("vcpus", format!("{} isn't between 1 and {VCPUS_MAX}", spec.vcpus)));
    }
    if spec.memory_mib < 64 || spec.memory_mib > 64 << 20 {
        return Some((
            "memory_mib",
            format!("{} isn't between 64 MiB and 64 TiB", spec.memory_mib),
        ));
    }
    if spec.boot.cmdline.len() > CMDLINE_MAX {
        let length = spec.boot.cmdline.len();
        return Some((
            "boot.cmdline",
            format!("{length} bytes; the kernel takes {CMDLINE_MAX}"),
        ));
    }
    if !spec.boot.cmdline.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return say("boot.cmdline", "it holds something else than printable ASCII");
    }
    let boot = [
        spec.boot.firmware.as_deref(),
        Some(spec.boot.kernel.as_path()),
        spec.boot.initrd.as_deref(),
    ];
    for path in boot.into_iter().flatten() {
        if let Some(why) = path_fault(path) {
            return Some(("boot", why));
        }
    }
    if let Some(why) = path_fault(&spec.run_dir) {
        return Some(("run_dir", why));
    }
    if spec.run_dir.as_os_str().len() + LONGEST_SOCKET.len() > SOCKET_PATH_MAX {
        return Some((
            "run_dir",
            format!("too long for unix sockets in it ({SOCKET_PATH_MAX} bytes at most)"),
        ));
    }
    disk_fault(spec)
        .map(|why| ("disks", why))
        .or_else(|| mac_fault(&spec.nic.mac).map(|why| ("nic.mac", why)))
        .or_else(|| {
            spec.vfio
                .iter()
                .find_map(|a| pci_fault(a))
                .map(|why| ("vfio", why))
        })
        .or_else(|| kind_fault(spec))
}

/// Confidential VMs carry their contract and their firmware; plain ones have no place for the former.
fn kind_fault(spec: &VmSpec) -> Option<(&'static str, String)> {
    let say = |field, why: &str| Some((field, why.to_owned()));
    match (spec.kind, spec.host_data) {
        (VmKind::Plain, Some(_)) => say("host_data", "a plain VM can't carry host data"),
        (VmKind::Plain, None) => None,
        (_, None) => say("host_data", "a confidential VM must carry its contract's id"),
        (_, Some(data)) if data != spec.id.0 => say("host_data", "it isn't the contract's id"),
        (_, Some(_)) if spec.boot.firmware.is_none() => say(
            "boot.firmware",
            "a confidential VM needs the firmware that measures it",
        ),
        _ => None,
    }
}

fn path_fault(path: &Path) -> Option<String> {
    let Some(text) = path.to_str() else {
        return Some(format!("{} isn't UTF-8", path.display()));
    };
    if !path.is_absolute() {
        return Some(format!("{text} isn't an absolute path"));
    }
    text.chars()
        .any(char::is_control)
        .then(|| format!("{text:?} holds a control character"))
}

fn disk_fault(spec: &VmSpec) -> Option<String> {
    if spec.disks.len() > DISKS_MAX {
        return Some(format!("{} of them; {DISKS_MAX} at most", spec.disks.len()));
    }
    let mut serials = BTreeSet::new();
    for disk in &spec.disks {
        let serial = &disk.serial;
        let word = serial
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !word || !(1..=SERIAL_MAX).contains(&serial.len()) {
            return Some(format!(
                "the serial {serial:?} isn't 1 to {SERIAL_MAX} of A-Z a-z 0-9 - _"
            ));
        }
        if !serials.insert(serial) {
            return Some(format!("the serial {serial:?} is there twice"));
        }
        if let Some(why) = path_fault(&disk.path) {
            return Some(why);
        }
    }
    None
}

fn mac_fault(mac: &str) -> Option<String> {
    let byte = |text: &str| {
        let hex = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then(|| u8::from_str_radix(text, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = mac.split(':').map(byte).collect();
    let unicast = bytes.is_some_and(|b| b.len() == 6 && b[0] & 1 == 0);
    (!unicast).then(|| format!("{mac:?} isn't the MAC address of one interface"))
}

/// `0000:01:00.0`.
fn pci_fault(address: &str) -> Option<String> {
    parse_pci(address)
        .is_none()
        .then(|| format!("{address:?} isn't a PCI address like 0000:01:00.0"))
}

/// Domain, bus, slot and function of a PCI address.
pub(crate) fn parse_pci(address: &str) -> Option<[u32; 4]> {
    let (domain, rest) = address.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let hex = |text: &str, digits: usize, max: u32| {
        let ok = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
        ok.then(|| u32::from_str_radix(text, 16).ok())
            .flatten()
            .filter(|n| *n <= max)
    };
    Some([
        hex(domain, 4, 0xffff)?,
        hex(bus, 2, 0xff)?,
        hex(slot, 2, 0x1f)?,
        hex(function, 1, 7)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_spec::spec;

    #[test]
    fn a_spec_that_a_vmm_cant_be_given_safely_is_refused_by_field() {
        type Change = fn(&mut VmSpec);
        let table: [(&str, Change, Option<&str>); 24] = [
            ("as it is", |_| (), None),
            ("no vCPU", |s| s.vcpus = 0, Some("vcpus")),
            ("255 vCPUs", |s| s.vcpus = 255, Some("vcpus")),
            ("no memory", |s| s.memory_mib = 0, Some("memory_mib")),
            ("all memory", |s| s.memory_mib = u64::MAX, Some("memory_mib")),
            (
                "a cmdline that the kernel would cut",
                |s| s.boot.cmdline = "x".repeat(2048),
                Some("boot.cmdline"),
            ),
            (
                "a line break",
                |s| s.boot.cmdline = "a\nb".into(),
                Some("boot.cmdline"),
            ),
            (
                "a relative kernel",
                |s| s.boot.kernel = "vmlinuz".into(),
                Some("boot"),
            ),
            (
                "a NUL in a path",
                |s| s.boot.initrd = Some("/a\0b".into()),
                Some("boot"),
            ),
            (
                "a deep run dir",
                |s| s.run_dir = format!("/{}", "d".repeat(100)).into(),
                Some("run_dir"),
            ),
            ("no serial", |s| s.disks[0].serial = String::new(), Some("disks")),
            (
                "a long serial",
                |s| s.disks[0].serial = "s".repeat(21),
                Some("disks"),
            ),
            (
                "a serial with an option in it",
                |s| s.disks[0].serial = "a,b=c".into(),
                Some("disks"),
            ),
            (
                "two of one serial",
                |s| s.disks[0].serial = s.disks[1].serial.clone(),
                Some("disks"),
            ),
            (
                "17 disks",
                |s| s.disks = vec![s.disks[0].clone(); 17],
                Some("disks"),
            ),
            (
                "a multicast MAC",
                |s| s.nic.mac = "03:00:00:00:00:01".into(),
                Some("nic.mac"),
            ),
            (
                "a short MAC",
                |s| s.nic.mac = "02:00:00:00:00".into(),
                Some("nic.mac"),
            ),
            (
                "a signed MAC",
                |s| s.nic.mac = "02:00:00:00:00:+1".into(),
                Some("nic.mac"),
            ),
            ("no MAC", |s| s.nic.mac = String::new(), Some("nic.mac")),
            (
                "a GPU that isn't one",
                |s| s.vfio = vec!["01:00.0".into()],
                Some("vfio"),
            ),
            ("a GPU", |s| s.vfio = vec!["0000:01:00.0".into()], None),
            (
                "host data on plain",
                |s| s.host_data = Some(s.id.0),
                Some("host_data"),
            ),
            (
                "SNP without host data",
                |s| s.kind = VmKind::SevSnp,
                Some("host_data"),
            ),
            (
                "SNP for another contract",
                |s| (s.kind, s.host_data) = (VmKind::SevSnp, Some([0; 32])),
                Some("host_data"),
            ),
        ];
        for (name, change, want) in table {
            let mut spec = spec();
            change(&mut spec);
            assert_eq!(fault(&spec).map(|(field, _)| field), want, "{name}");
        }
    }

    #[test]
    fn snp_needs_firmware() {
        let mut spec = spec();
        (spec.kind, spec.host_data) = (VmKind::SevSnp, Some(spec.id.0));
        assert_eq!(fault(&spec).map(|(field, _)| field), Some("boot.firmware"));
        spec.boot.firmware = Some("/fw".into());
        assert_eq!(fault(&spec), None);
    }
}
