//! A VM as libvirt's domain XML: pure, so that `hostd explain` shows exactly what would be handed over.
//!
//! Source of the format: libvirt's "Domain XML format", libvirt 9.0; QEMU's own arguments for confidential VMs from
//! QEMU 10.1's `qapi/qom.json` (`SevSnpGuestProperties`, `TdxGuestProperties`). libvirt 9.0 knows neither kind, so both
//! go through `qemu:commandline`; the same words reach real silicon and the simulated platform's emulator.
//!
//! Every device has a fixed place on the root bus, so the guest's names (`vda`, `vdb`) follow the spec's order.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ledger::api::{ContractId, VmKind};

use super::LibvirtConfig;
use crate::vmm::check::parse_pci;
use crate::vmm::{AGENT_SERIAL_PORT, Access, Disk, Hugepages, VmSpec};

/// Attestation without migration agent, debug off, SMT allowed: bits 17 (must be one) and 16 (AMD 56860, policy).
const SNP_POLICY: u64 = 0x30000;
/// Page table bit of encrypted memory on Milan, Genoa and Turin.
const SNP_CBITPOS: u32 = 51;
/// The CPU model that measurements are computed for (`attest measure snp --vcpu-type`).
pub(super) const SNP_CPU: &str = "EPYC-v4";
/// SEPT_VE_DISABLE: the TD's own choice must not be taken from it by the host (Intel 344425, ATTRIBUTES bit 28).
const TDX_ATTRIBUTES: u64 = 1 << 28;
/// Where Intel's quote generation service listens (FACTS 6).
const TDX_QGS_PORT: u32 = 4050;
/// Virtio 1 only: the older interface can't express memory that the host must not touch, and nothing needs it.
const VIRTIO: &str = "virtio-non-transitional";
/// First slot of disks; before it: 1 network, 2 random numbers, 3 serial ports.
const DISK_SLOT: usize = 4;

/// How guests run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// In hardware.
    Kvm,
    /// Translated by QEMU; slow, works everywhere.
    Tcg,
}

/// What the domain needs to know of this launch beside the spec.
pub(super) struct Place<'a> {
    pub accel: Accel,
    pub tap: &'a str,
    /// Whether the files of the disks can be read past the page cache; one for each disk.
    pub direct_io: &'a [bool],
    /// Whether this QEMU translates `cmpxchg16b` rightly.
    pub cx16: bool,
    /// The group that may use `/dev/kvm`.
    pub kvm_group: Option<u32>,
}

/// The domain's name: short enough for people, and found again after a restart.
pub fn name(id: ContractId) -> String {
    format!("dc-{}", hex::encode(&id.0[..8]))
}

/// The domain's UUID: 122 bits of the contract's id (version 8, RFC 9562: our own), which tell it from a domain that
/// only bears the same name.
pub fn uuid(id: ContractId) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&id.0[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex::encode(bytes);
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// QEMU's own arguments, in order: what makes the VM confidential.
pub(super) fn qemu_arguments(spec: &VmSpec) -> Vec<String> {
    let Some(host_data) = spec.host_data else {
        return Vec::new();
    };
    let arguments: Vec<String> = match spec.kind {
        VmKind::Plain => return Vec::new(),
        VmKind::SevSnp => vec![
            "-cpu".into(),
            SNP_CPU.into(),
            "-machine".into(),
            "confidential-guest-support=sev0".into(),
            "-object".into(),
            format!(
                "sev-snp-guest,id=sev0,policy={SNP_POLICY:#x},cbitpos={SNP_CBITPOS},reduced-phys-bits=1,\
                 kernel-hashes=on,host-data={}",
                STANDARD.encode(host_data)
            ),
        ],
        VmKind::Tdx => vec![
            "-machine".into(),
            "confidential-guest-support=tdx0,kernel-irqchip=split".into(),
            "-object".into(),
            serde_json::json!({
                "qom-type": "tdx-guest",
                "id": "tdx0",
                "attributes": TDX_ATTRIBUTES,
                "mrconfigid": mrconfigid(host_data),
                "quote-generation-socket": {"type": "vsock", "cid": "2", "port": TDX_QGS_PORT.to_string()},
            })
            .to_string(),
        ],
    };
    arguments
}

/// TDX `MRCONFIGID`: the contract's id padded with zeros to 48 bytes, as QEMU wants it.
pub(super) fn mrconfigid(contract: [u8; 32]) -> String {
    let mut padded = [0; 48];
    padded[..32].copy_from_slice(&contract);
    STANDARD.encode(padded)
}

/// QMP questions whose answers show that QEMU holds what was asked: command, place in the answer, expected value.
pub(super) fn qemu_questions(spec: &VmSpec) -> Vec<(String, &'static str, serde_json::Value)> {
    let Some(host_data) = spec.host_data else {
        return Vec::new();
    };
    let get = |path: &str, property: &str| {
        serde_json::json!({"execute": "qom-get", "arguments": {"path": path, "property": property}})
            .to_string()
    };
    match spec.kind {
        VmKind::Plain => Vec::new(),
        VmKind::SevSnp => vec![
            (
                serde_json::json!({"execute": "query-sev"}).to_string(),
                "/return/enabled",
                true.into(),
            ),
            (
                serde_json::json!({"execute": "query-sev"}).to_string(),
                "/return/sev-type",
                "sev-snp".into(),
            ),
            (
                get("/objects/sev0", "host-data"),
                "/return",
                STANDARD.encode(host_data).into(),
            ),
            (get("/objects/sev0", "kernel-hashes"), "/return", true.into()),
            (get("/objects/sev0", "policy"), "/return", SNP_POLICY.into()),
            (
                get("/machine", "confidential-guest-support"),
                "/return",
                "/objects/sev0".into(),
            ),
        ],
        VmKind::Tdx => vec![
            (
                get("/objects/tdx0", "mrconfigid"),
                "/return",
                mrconfigid(host_data).into(),
            ),
            (
                get("/machine", "confidential-guest-support"),
                "/return",
                "/objects/tdx0".into(),
            ),
        ],
    }
}

/// The whole domain.
pub(super) fn render(config: &LibvirtConfig, spec: &VmSpec, place: &Place<'_>) -> String {
    let mut xml = String::with_capacity(4096);
    let kind = match place.accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "qemu",
    };
    line(
        &mut xml,
        0,
        &format!("<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"),
    );
    element(&mut xml, 1, "name", &name(spec.id));
    element(&mut xml, 1, "uuid", &uuid(spec.id));
    element(&mut xml, 1, "title", &format!("contract {}", spec.id));
    line(
        &mut xml,
        1,
        &format!("<memory unit='MiB'>{}</memory>", spec.memory_mib),
    );
    if spec.hugepages == Hugepages::Size2M {
        line(&mut xml, 1, "<memoryBacking>");
        line(
            &mut xml,
            2,
            "<hugepages><page size='2048' unit='KiB'/></hugepages>",
        );
        line(&mut xml, 2, "<allocation mode='immediate'/>");
        line(&mut xml, 1, "</memoryBacking>");
    }
    line(
        &mut xml,
        1,
        &format!("<vcpu placement='static'>{}</vcpu>", spec.vcpus),
    );
    boot(&mut xml, spec);
    cpu(&mut xml, spec, place);
    line(&mut xml, 1, "<clock offset='utc'/>");
    for event in ["on_poweroff", "on_crash"] {
        element(&mut xml, 1, event, "destroy");
    }
    // A confidential VM can't restart: its launch measurement is of the first start.
    element(
        &mut xml,
        1,
        "on_reboot",
        if spec.kind == VmKind::Plain {
            "restart"
        } else {
            "destroy"
        },
    );
    line(&mut xml, 1, "<devices>");
    if let Some(emulator) = &config.emulator {
        element(&mut xml, 2, "emulator", &emulator.to_string_lossy());
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        let direct = place.direct_io.get(index).copied().unwrap_or(true);
        self::disk(&mut xml, index, disk, direct, spec.kind);
    }
    interface(&mut xml, spec, place.tap);
    channels(&mut xml, spec);
    for address in &spec.vfio {
        hostdev(&mut xml, address);
    }
    line(&mut xml, 2, "<controller type='usb' model='none'/>");
    line(&mut xml, 2, "<memballoon model='none'/>");
    line(&mut xml, 1, "</devices>");
    if spec.uid == 0 {
        line(&mut xml, 1, "<seclabel type='none'/>");
    } else {
        // The files are this user's already; the image is everybody's and stays root's.
        let label = format!("+{}:+{}", spec.uid, place.kvm_group.unwrap_or(spec.uid));
        line(&mut xml, 1, "<seclabel type='static' model='dac' relabel='no'>");
        element(&mut xml, 2, "label", &label);
        line(&mut xml, 1, "</seclabel>");
    }
    let arguments = qemu_arguments(spec);
    if !arguments.is_empty() {
        line(&mut xml, 1, "<qemu:commandline>");
        for argument in arguments {
            line(&mut xml, 2, &format!("<qemu:arg value='{}'/>", escape(&argument)));
        }
        line(&mut xml, 1, "</qemu:commandline>");
    }
    line(&mut xml, 0, "</domain>");
    xml
}

fn boot(xml: &mut String, spec: &VmSpec) {
    line(xml, 1, "<os>");
    line(xml, 2, "<type arch='x86_64' machine='q35'>hvm</type>");
    if let Some(firmware) = &spec.boot.firmware {
        // `-bios`: confidential kinds have no flash, the firmware is measured as it lies in memory.
        line(
            xml,
            2,
            &format!(
                "<loader readonly='yes' type='rom'>{}</loader>",
                escape(&firmware.to_string_lossy())
            ),
        );
    }
    element(xml, 2, "kernel", &spec.boot.kernel.to_string_lossy());
    if let Some(initrd) = &spec.boot.initrd {
        element(xml, 2, "initrd", &initrd.to_string_lossy());
    }
    element(xml, 2, "cmdline", &spec.boot.cmdline);
    line(xml, 1, "</os>");
}

fn cpu(xml: &mut String, spec: &VmSpec, place: &Place<'_>) {
    let accel = place.accel;
    line(xml, 1, "<features>");
    line(xml, 2, "<acpi/>");
    line(xml, 2, "<apic/>");
    line(xml, 2, "<vmport state='off'/>");
    if spec.kind != VmKind::Plain {
        line(xml, 2, "<smm state='off'/>"); // system management mode can't exist in an encrypted guest
    }
    if accel == Accel::Tcg {
        // QEMU's default is a GiB of translated code for each VM.
        line(xml, 2, "<tcg><tb-cache unit='MiB'>256</tb-cache></tcg>");
    }
    line(xml, 1, "</features>");
    match (spec.kind, accel) {
        // SNP's model comes with QEMU's own arguments: libvirt 9.0 would rewrite it.
        (VmKind::SevSnp, _) => {}
        (VmKind::Tdx, _) | (_, Accel::Kvm) => line(xml, 1, "<cpu mode='host-passthrough' migratable='off'/>"),
        (_, Accel::Tcg) => {
            line(xml, 1, "<cpu mode='maximum'>");
            // Five-level page tables only cost time where each walk is emulated.
            line(xml, 2, "<feature policy='disable' name='la57'/>");
            if !place.cx16 {
                line(xml, 2, "<feature policy='disable' name='cx16'/>");
            }
            line(xml, 1, "</cpu>");
        }
    }
}

fn disk(xml: &mut String, index: usize, disk: &Disk, direct: bool, kind: VmKind) {
    let source = if disk.path.starts_with("/dev/") {
        ("block", "dev")
    } else {
        ("file", "file")
    };
    let cache = if direct {
        "cache='none' io='native'"
    } else {
        "cache='writeback'"
    };
    line(
        xml,
        2,
        &format!("<disk type='{}' device='disk' model='{VIRTIO}'>", source.0),
    );
    // Raw is said, never probed: a tenant can write any header into its own disk.
    line(
        xml,
        3,
        &format!(
            "<driver name='qemu' type='raw' {cache} discard='unmap'{}/>",
            iommu(kind)
        ),
    );
    line(
        xml,
        3,
        &format!(
            "<source {}='{}'/>",
            source.1,
            escape(&disk.path.to_string_lossy())
        ),
    );
    // 16 disks at most (vmm::check), so the letter is one of a..p.
    let letter = char::from(b'a' + u8::try_from(index % 26).unwrap_or(0));
    line(xml, 3, &format!("<target dev='vd{letter}' bus='virtio'/>"));
    if disk.access == Access::ReadOnly {
        line(xml, 3, "<readonly/>");
    }
    element(xml, 3, "serial", &disk.serial);
    line(xml, 3, &slot(DISK_SLOT + index));
    line(xml, 2, "</disk>");
}

fn interface(xml: &mut String, spec: &VmSpec, tap: &str) {
    line(xml, 2, "<interface type='ethernet'>");
    line(xml, 3, &format!("<mac address='{}'/>", escape(&spec.nic.mac)));
    line(xml, 3, &format!("<target dev='{}' managed='no'/>", escape(tap)));
    line(xml, 3, &format!("<model type='{VIRTIO}'/>"));
    if spec.kind != VmKind::Plain {
        line(xml, 3, "<driver iommu='on'/>");
    }
    line(xml, 3, "<rom enabled='no'/>");
    line(xml, 3, &slot(1));
    line(xml, 2, "</interface>");
}

fn channels(xml: &mut String, spec: &VmSpec) {
    let file = |name: &str| escape(&spec.run_dir.join(name).to_string_lossy());
    line(xml, 2, "<serial type='file'>");
    line(
        xml,
        3,
        &format!("<source path='{}' append='on'/>", file(super::CONSOLE_LOG)),
    );
    line(xml, 3, "<target type='isa-serial' port='0'/>");
    line(xml, 2, "</serial>");
    // Without a number of ports there would be 31, each with two queues in the guest's memory.
    line(
        xml,
        2,
        &format!("<controller type='virtio-serial' index='0' ports='4' model='{VIRTIO}'>"),
    );
    if spec.kind != VmKind::Plain {
        line(xml, 3, "<driver iommu='on'/>");
    }
    line(xml, 3, &slot(3));
    line(xml, 2, "</controller>");
    line(xml, 2, "<channel type='unix'>");
    line(
        xml,
        3,
        &format!("<source mode='bind' path='{}'/>", file(super::AGENT_SOCKET)),
    );
    line(
        xml,
        3,
        &format!("<target type='virtio' name='{AGENT_SERIAL_PORT}'/>"),
    );
    line(xml, 2, "</channel>");
    line(xml, 2, &format!("<rng model='{VIRTIO}'>"));
    line(xml, 3, "<backend model='random'>/dev/urandom</backend>");
    if spec.kind != VmKind::Plain {
        line(xml, 3, "<driver iommu='on'/>");
    }
    line(xml, 3, &slot(2));
    line(xml, 2, "</rng>");
}

fn hostdev(xml: &mut String, address: &str) {
    // hostd's GPU step binds the device to vfio-pci itself; libvirt must not rebind it. `check` refused all else.
    let [domain, bus, slot, function] = parse_pci(address).unwrap_or_default();
    line(xml, 2, "<hostdev mode='subsystem' type='pci' managed='no'>");
    line(
        xml,
        3,
        &format!(
            "<source><address domain='{domain:#06x}' bus='{bus:#04x}' slot='{slot:#04x}' \
             function='{function:#x}'/></source>"
        ),
    );
    line(xml, 2, "</hostdev>");
}

/// Virtio devices of an encrypted guest may touch only what the guest shares (`VIRTIO_F_ACCESS_PLATFORM`).
fn iommu(kind: VmKind) -> &'static str {
    if kind == VmKind::Plain { "" } else { " iommu='on'" }
}

fn slot(number: usize) -> String {
    format!("<address type='pci' domain='0x0000' bus='0x00' slot='{number:#04x}' function='0x0'/>")
}

fn element(xml: &mut String, depth: usize, name: &str, text: &str) {
    line(xml, depth, &format!("<{name}>{}</{name}>", escape(text)));
}

fn line(xml: &mut String, depth: usize, text: &str) {
    writeln!(xml, "{:indent$}{text}", "", indent = depth * 2).expect("writing to a string can't fail");
}

/// Text as XML takes it, in elements and in attributes with single quotes. Characters that XML 1.0 can't hold are
/// replaced (`check` has refused them before a launch).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vmm::test_spec::{confidential, spec};

    fn rendered(spec: &VmSpec, accel: Accel) -> String {
        let direct_io = [true, false];
        render(
            &LibvirtConfig::default(),
            spec,
            &Place {
                accel,
                tap: "dct0003",
                direct_io: &direct_io,
                cx16: false,
                kvm_group: Some(992),
            },
        )
    }

    #[test]
    fn domains_are_rendered_as_reviewed() {
        insta::assert_snapshot!("plain-tcg", rendered(&spec(), Accel::Tcg));
        let gpu = VmSpec {
            uid: 700_003,
            vfio: vec!["0000:c1:00.0".into()],
            hugepages: Hugepages::Size2M,
            ..spec()
        };
        insta::assert_snapshot!("plain-kvm-gpu", rendered(&gpu, Accel::Kvm));
        insta::assert_snapshot!("sev-snp", rendered(&confidential(VmKind::SevSnp), Accel::Kvm));
        insta::assert_snapshot!("tdx", rendered(&confidential(VmKind::Tdx), Accel::Kvm));
    }

    #[test]
    fn every_contract_has_a_valid_uuid_of_its_own() {
        let id = |first: u8| ContractId::from_slice(&[first; 32]).unwrap();
        // libvirt refuses UUIDs whose digits are all the same.
        assert_eq!(uuid(id(0)), "00000000-0000-8000-8000-000000000000");
        assert_ne!(uuid(id(1)), uuid(id(2)));
        assert_eq!(name(spec().id), "dc-0123456789abcdef");
    }

    proptest! {
        #[test]
        fn whatever_text_is_in_a_spec_stays_text(text in any::<String>()) {
            let mut spec = spec();
            spec.boot.cmdline = text.clone();
            spec.disks[0].path = format!("/{text}").into();
            spec.disks[0].serial = text.clone();
            spec.nic.mac = text.clone();
            let xml = rendered(&spec, Accel::Tcg);
            let document = roxmltree::Document::parse(&xml).unwrap();
            let elements = |name: &str| document.descendants().filter(|n| n.has_tag_name(name)).count();
            prop_assert_eq!((elements("disk"), elements("serial"), elements("interface")), (2, 3, 1));
            prop_assert_eq!(elements("commandline"), 0);
        }
    }
}
