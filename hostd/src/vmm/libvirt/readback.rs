//! Is the VM that was started the VM that was asked for? Three places are asked, each nearer to the guest: libvirt's
//! live configuration, the arguments of the running process, and (confidential kinds) QEMU's own objects.
//! All comparisons are pure; the adapter only fetches.

use ledger::api::VmKind;
use roxmltree::{Document, Node};
use serde_json::Value;

use super::domain;
use crate::vmm::{Access, VmSpec, VmmError};

/// `Ok`, or the first field that differs.
fn same(field: &str, wanted: impl ToString, found: Option<impl ToString>) -> Result<(), VmmError> {
    let (wanted, found) = (
        wanted.to_string(),
        found.map_or_else(|| "nothing".to_owned(), |f| f.to_string()),
    );
    if wanted == found {
        Ok(())
    } else {
        Err(VmmError::ReadBack {
            field: field.to_owned(),
            wanted,
            found,
        })
    }
}

/// Compares libvirt's live configuration with what was asked; answers with the emulator's path.
pub(super) fn check_live(xml: &str, spec: &VmSpec) -> Result<String, VmmError> {
    let document = Document::parse(xml).map_err(|error| VmmError::Refused {
        call: "virDomainGetXMLDesc",
        answer: format!("not XML: {error}"),
    })?;
    let root = document.root_element();
    same("uuid", domain::uuid(spec.id), text(root, &["uuid"]))?;
    same("memory", spec.memory_mib * 1024, text(root, &["memory"]))?;
    same("vcpu", spec.vcpus, text(root, &["vcpu"]))?;
    same(
        "os.kernel",
        spec.boot.kernel.display(),
        text(root, &["os", "kernel"]),
    )?;
    optional(
        "os.initrd",
        spec.boot.initrd.as_deref(),
        text(root, &["os", "initrd"]),
    )?;
    same(
        "os.cmdline",
        &spec.boot.cmdline,
        Some(text(root, &["os", "cmdline"]).unwrap_or_default()),
    )?;
    optional(
        "os.loader",
        spec.boot.firmware.as_deref(),
        text(root, &["os", "loader"]),
    )?;
    let devices = child(root, "devices");
    disks(devices, spec)?;
    nics(devices, spec)?;
    let arguments: Vec<_> = root
        .children()
        .filter(|n| n.tag_name().name() == "commandline")
        .flatten_children()
        .filter_map(|arg| arg.attribute("value").map(str::to_owned))
        .collect();
    same(
        "qemu:commandline",
        domain::qemu_arguments(spec).join(" "),
        Some(arguments.join(" ")),
    )?;
    same(
        "hostdev",
        spec.vfio.len(),
        Some(devices.into_iter().flat_map(|d| named(d, "hostdev")).count()),
    )?;
    for unwanted in [
        "filesystem",
        "graphics",
        "redirdev",
        "shmem",
        "smartcard",
        "video",
        "vsock",
    ] {
        same(
            unwanted,
            0,
            Some(devices.into_iter().flat_map(|d| named(d, unwanted)).count()),
        )?;
    }
    text(devices, &["emulator"])
        .map(str::to_owned)
        .ok_or_else(|| VmmError::ReadBack {
            field: "devices.emulator".to_owned(),
            wanted: "a path".to_owned(),
            found: "nothing".to_owned(),
        })
}

fn disks(devices: Option<Node<'_, '_>>, spec: &VmSpec) -> Result<(), VmmError> {
    let found: Vec<_> = devices.into_iter().flat_map(|d| named(d, "disk")).collect();
    same("disks", spec.disks.len(), Some(found.len()))?;
    for (index, (disk, node)) in spec.disks.iter().zip(found).enumerate() {
        let field = |name: &str| format!("disks[{index}].{name}");
        let source = child(node, "source").and_then(|s| s.attribute("file").or(s.attribute("dev")));
        same(&field("source"), disk.path.display(), source)?;
        same(
            &field("format"),
            "raw",
            child(node, "driver").and_then(|d| d.attribute("type")),
        )?;
        same(&field("serial"), &disk.serial, text(node, &["serial"]))?;
        let readonly = child(node, "readonly").is_some();
        same(
            &field("readonly"),
            disk.access == Access::ReadOnly,
            Some(readonly),
        )?;
        let backing = child(node, "backingStore").is_some_and(|b| b.has_children());
        same(&field("backing"), false, Some(backing))?;
    }
    Ok(())
}

fn nics(devices: Option<Node<'_, '_>>, spec: &VmSpec) -> Result<(), VmmError> {
    let found: Vec<_> = devices.into_iter().flat_map(|d| named(d, "interface")).collect();
    same("interfaces", 1, Some(found.len()))?;
    for node in found {
        same("interface.type", "ethernet", node.attribute("type"))?;
        let mac = child(node, "mac")
            .and_then(|m| m.attribute("address"))
            .map(str::to_ascii_lowercase);
        same("interface.mac", spec.nic.mac.to_ascii_lowercase(), mac)?;
    }
    Ok(())
}

/// Compares the arguments of the running QEMU with what was asked. QEMU takes the last of a repeated `-cpu`, and merges
/// repeated `-machine`.
pub(super) fn check_arguments(arguments: &[String], spec: &VmSpec) -> Result<(), VmmError> {
    let values = |option: &str| {
        let option = option.to_owned();
        arguments
            .windows(2)
            .filter(move |pair| pair[0] == option)
            .map(|pair| pair[1].as_str())
            .collect::<Vec<_>>()
    };
    same("-uuid", domain::uuid(spec.id), values("-uuid").last())?;
    same("-kernel", spec.boot.kernel.display(), values("-kernel").last())?;
    optional(
        "-initrd",
        spec.boot.initrd.as_deref(),
        values("-initrd").last().copied(),
    )?;
    same(
        "-append",
        &spec.boot.cmdline,
        Some(values("-append").last().copied().unwrap_or_default()),
    )?;
    optional(
        "-bios",
        spec.boot.firmware.as_deref(),
        values("-bios").last().copied(),
    )?;
    for pair in domain::qemu_arguments(spec).chunks(2) {
        let [option, wanted] = pair else { continue };
        let found = match option.as_str() {
            "-cpu" => values(option).last().copied(),
            _ => values(option).into_iter().find(|value| value == wanted),
        };
        same(option, wanted, found)?;
    }
    Ok(())
}

/// Compares one answer of QEMU's with the expected value.
pub(super) fn check_answer(
    question: &str,
    place: &str,
    wanted: &Value,
    answer: &str,
) -> Result<(), VmmError> {
    let answer: Value = serde_json::from_str(answer).map_err(|error| VmmError::Refused {
        call: "QMP",
        answer: format!("not JSON: {error}"),
    })?;
    same(&format!("{question} {place}"), wanted, answer.pointer(place))
}

/// Whether a kind needs more than libvirt's own word.
pub(super) fn is_confidential(spec: &VmSpec) -> bool {
    spec.kind != VmKind::Plain
}

fn optional(field: &str, wanted: Option<&std::path::Path>, found: Option<&str>) -> Result<(), VmmError> {
    match (wanted, found) {
        (None, None) => Ok(()),
        (None, Some(found)) => same(field, "nothing", Some(found)),
        (Some(wanted), found) => same(field, wanted.display(), found),
    }
}

fn child<'a, 'i>(node: impl Into<Option<Node<'a, 'i>>>, name: &str) -> Option<Node<'a, 'i>> {
    node.into()?.children().find(|n| n.tag_name().name() == name)
}

fn named<'a, 'i>(node: Node<'a, 'i>, name: &str) -> impl Iterator<Item = Node<'a, 'i>> {
    let name = name.to_owned();
    node.children().filter(move |n| n.tag_name().name() == name)
}

fn text<'a>(node: impl Into<Option<Node<'a, 'a>>>, path: &[&str]) -> Option<&'a str> {
    path.iter()
        .try_fold(node.into()?, |n, name| child(n, name))?
        .text()
}

/// Children of all nodes, in order.
trait FlattenChildren<'a, 'i: 'a>: Iterator<Item = Node<'a, 'i>> + Sized {
    fn flatten_children(self) -> impl Iterator<Item = Node<'a, 'i>> {
        self.flat_map(|n| n.children())
    }
}
impl<'a, 'i: 'a, I: Iterator<Item = Node<'a, 'i>>> FlattenChildren<'a, 'i> for I {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::libvirt::LibvirtConfig;
    use crate::vmm::libvirt::domain::{Accel, Place, render};
    use crate::vmm::test_spec::{confidential, spec};

    /// What libvirt answers: the domain with sizes in KiB and its own additions.
    fn live(spec: &VmSpec) -> String {
        let config = LibvirtConfig {
            emulator: Some("/usr/bin/qemu".into()),
            ..LibvirtConfig::default()
        };
        render(
            &config,
            spec,
            &Place {
                accel: Accel::Tcg,
                tap: "t0",
                direct_io: &[],
                cx16: true,
                kvm_group: None,
            },
        )
        .replace(">1024</memory>", ">1048576</memory>")
    }

    fn field(result: Result<impl std::fmt::Debug, VmmError>) -> Option<String> {
        match result {
            Ok(_) => None,
            Err(VmmError::ReadBack { field, .. }) => Some(field),
            Err(other) => Some(other.to_string()),
        }
    }

    #[test]
    fn a_domain_that_isnt_what_was_asked_is_refused() {
        let snp = confidential(VmKind::SevSnp);
        assert_eq!(check_live(&live(&spec()), &spec()).unwrap(), "/usr/bin/qemu");
        assert_eq!(field(check_live(&live(&snp), &snp)), None);
        for (from, to, want) in [
            (">1048576<", ">524288<", "memory"),
            ("vmlinuz", "other", "os.kernel"),
            ("<cmdline>", "<cmdline>init=/bin/sh ", "os.cmdline"),
            ("<initrd>", "<x>", "not XML"),
            ("OVMF.fd", "other.fd", "os.loader"),
            ("<readonly/>", "", "disks[1].readonly"),
            ("type='raw'", "type='qcow2'", "disks[0].format"),
            ("<serial>data</serial>", "", "disks[0].serial"),
            ("02:dc:00:00:00:03", "02:dc:00:00:00:04", "interface.mac"),
            ("host-data=", "host-data=AAAA", "qemu:commandline"),
            ("kernel-hashes=on,", "", "qemu:commandline"),
            ("<memballoon model='none'/>", "<vsock model='virtio'/>", "vsock"),
            ("<emulator>/usr/bin/qemu</emulator>", "", "devices.emulator"),
        ] {
            let found = field(check_live(&live(&snp).replace(from, to), &snp)).unwrap_or_default();
            assert!(found.contains(want), "{from} → {to}: {found}");
        }
        // A plain domain where a confidential one was asked: QEMU's own arguments are missing.
        let mut plain = snp.clone();
        (plain.kind, plain.host_data) = (VmKind::Plain, None);
        assert_eq!(
            field(check_live(&live(&plain), &snp)).as_deref(),
            Some("qemu:commandline")
        );
    }

    fn arguments(spec: &VmSpec) -> Vec<String> {
        let boot = &spec.boot;
        let mut all: Vec<String> = vec![
            "qemu".into(),
            "-cpu".into(),
            "qemu64".into(),
            "-machine".into(),
            "q35".into(),
        ];
        let mut add = |option: &str, value: String| all.extend([option.to_owned(), value]);
        add("-uuid", domain::uuid(spec.id));
        add("-kernel", boot.kernel.display().to_string());
        add("-initrd", boot.initrd.as_ref().unwrap().display().to_string());
        add("-append", boot.cmdline.clone());
        if let Some(firmware) = &boot.firmware {
            add("-bios", firmware.display().to_string());
        }
        all.extend(domain::qemu_arguments(spec));
        all
    }

    #[test]
    fn a_process_that_wasnt_started_as_asked_is_refused() {
        for kind in [VmKind::SevSnp, VmKind::Tdx] {
            let spec = confidential(kind);
            assert_eq!(field(check_arguments(&arguments(&spec), &spec)), None);
            for option in ["-uuid", "-kernel", "-initrd", "-append", "-bios", "-object"] {
                let mut changed = arguments(&spec);
                let at = changed.iter().position(|a| a == option).unwrap();
                changed.drain(at..at + 2);
                assert_eq!(
                    field(check_arguments(&changed, &spec)).as_deref(),
                    Some(option),
                    "without {option}"
                );
            }
            let mut changed = arguments(&spec);
            changed.retain(|a| !a.starts_with("confidential-guest-support"));
            assert_eq!(
                field(check_arguments(&changed, &spec)).as_deref(),
                Some("-machine")
            );
        }
        let snp = confidential(VmKind::SevSnp);
        let mut later = arguments(&snp);
        later.extend(["-cpu".to_owned(), "max".to_owned()]); // the last one counts
        assert_eq!(field(check_arguments(&later, &snp)).as_deref(), Some("-cpu"));
    }

    #[test]
    fn an_answer_of_qemu_must_be_the_expected_value() {
        let wanted = Value::from("sev-snp");
        let ask = |answer: &str| field(check_answer("query-sev", "/return/sev-type", &wanted, answer));
        assert_eq!(ask(r#"{"return":{"enabled":true,"sev-type":"sev-snp"}}"#), None);
        assert!(ask(r#"{"return":{"enabled":true,"sev-type":"sev"}}"#).is_some());
        assert!(ask(r#"{"return":{"enabled":false}}"#).is_some());
        assert!(ask(r#"{"error":{"class":"GenericError","desc":"no"}}"#).is_some());
        assert!(ask("garbage").unwrap().contains("not JSON"));
    }
}
