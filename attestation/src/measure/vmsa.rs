//! The first state of a vCPU, as the VMM sets it up: one page that is measured (AMD 24593, APM volume 2, table B-4).

use super::{PAGE, VcpuType};

/// Where the first vCPU starts.
pub(super) const BSP_EIP: u32 = 0xffff_fff0;

/// VMMs differ in a few registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// QEMU with KVM.
    Qemu,
    /// AWS EC2.
    Ec2,
    /// Google Compute Engine.
    Gce,
}

struct Quirks {
    cs: u16,
    ss: u16,
    tr: u16,
    g_pat: u64,
    rdx: u64,
    mxcsr: u32,
    fcw: u16,
}

fn quirks(vmm: Vmm, eip: u32, vcpu: VcpuType) -> Quirks {
    const PAT: u64 = 0x0007_0406_0007_0406; // the reset value
    match vmm {
        Vmm::Qemu => Quirks {
            cs: 0x9b,
            ss: 0x93,
            tr: 0x8b,
            g_pat: PAT,
            rdx: vcpu.0.into(),
            mxcsr: 0x1f80,
            fcw: 0x37f,
        },
        Vmm::Ec2 => {
            let cs = if eip == BSP_EIP { 0x9a } else { 0x9b };
            Quirks {
                cs,
                ss: 0x92,
                tr: 0x83,
                g_pat: PAT,
                rdx: 0x600,
                mxcsr: 0,
                fcw: 0,
            }
        }
        Vmm::Gce => Quirks {
            cs: 0x9b,
            ss: 0x93,
            tr: 0x8b,
            g_pat: 0x0007_0106,
            rdx: 0x600,
            mxcsr: 0,
            fcw: 0,
        },
    }
}

/// The VMSA of a vCPU that starts at `eip` in real mode.
pub(super) fn page(eip: u32, guest_features: u64, vcpu: VcpuType, vmm: Vmm) -> [u8; PAGE] {
    let quirks = quirks(vmm, eip, vcpu);
    let mut page = [0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let mut segment = |at: usize, selector: u16, attributes: u16, base: u64| {
        put(at, &selector.to_le_bytes());
        put(at + 2, &attributes.to_le_bytes());
        put(at + 4, &0xffffu32.to_le_bytes());
        put(at + 8, &base.to_le_bytes());
    };
    for data in [0x00, 0x30, 0x40, 0x50] {
        segment(data, 0, 0x93, 0); // ES, DS, FS, GS
    }
    segment(0x10, 0xf000, quirks.cs, (eip & 0xffff_0000).into());
    segment(0x20, 0, quirks.ss, 0);
    segment(0x60, 0, 0, 0); // GDTR
    segment(0x70, 0, 0x82, 0); // LDTR
    segment(0x80, 0, 0, 0); // IDTR
    segment(0x90, 0, quirks.tr, 0);
    for (at, value) in [
        (0xd0, 0x1000),                   // EFER.SVME
        (0x148, 0x40),                    // CR4.MCE
        (0x158, 0x10),                    // CR0.ET
        (0x160, 0x400),                   // DR7
        (0x168, 0xffff_0ff0),             // DR6
        (0x170, 0x2),                     // RFLAGS
        (0x178, u64::from(eip & 0xffff)), // RIP
        (0x268, quirks.g_pat),            // PAT
        (0x310, quirks.rdx),              // RDX
        (0x3b0, guest_features),          // SEV_FEATURES
        (0x3e8, 1),                       // XCR0
    ] {
        put(at, &value.to_le_bytes());
    }
    put(0x408, &quirks.mxcsr.to_le_bytes());
    put(0x410, &quirks.fcw.to_le_bytes());
    page
}
