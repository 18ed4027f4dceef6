//! The first state of a vCPU, as the VMM sets it up: one page that is measured (AMD 24593, APM volume 2, table B-4).

use super::{PAGE, VcpuType};

/// Where the first vCPU starts.
pub(super) const BSP_EIP: u32 = 0xffff_fff0;
/// Where KVM pretends that these pages lie.
pub(super) const VMSA_GPA: u64 = 0xffff_ffff_f000;

const EFER: usize = 0xd0;
const CR4: usize = 0x148;
const CR0: usize = 0x158;
const GUEST_FEATURES: usize = 0x3b0;
const EFER_SVME: u64 = 1 << 12;
const CR4_MCE: u64 = 1 << 6;
/// CD and NW: KVM doesn't let a guest start with its caches off.
const CR0_NO_CACHE: u64 = 3 << 29;

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
        (EFER, EFER_SVME),
        (CR4, CR4_MCE),
        (CR0, 0x10),                      // ET
        (0x160, 0x400),                   // DR7
        (0x168, 0xffff_0ff0),             // DR6
        (0x170, 0x2),                     // RFLAGS
        (0x178, u64::from(eip & 0xffff)), // RIP
        (0x268, quirks.g_pat),            // PAT
        (0x310, quirks.rdx),              // RDX
        (GUEST_FEATURES, guest_features),
        (0x3e8, 1), // XCR0
    ] {
        put(at, &value.to_le_bytes());
    }
    put(0x408, &quirks.mxcsr.to_le_bytes());
    put(0x410, &quirks.fcw.to_le_bytes());
    page
}

/// The VMSA that KVM makes of the registers which Cloud Hypervisor takes from a file's: segments, tables, control and
/// general registers. All others are as after a reset.
pub(super) fn from_registers(state: &[u8; PAGE], guest_features: u64) -> [u8; PAGE] {
    let mut page = page(BSP_EIP, guest_features, VcpuType(0), Vmm::Qemu);
    let mut take = |at: usize, len: usize| page[at..at + len].copy_from_slice(&state[at..at + len]);
    for segment in [0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x70, 0x90] {
        take(segment, 0x10); // ES, CS, SS, DS, FS, GS, LDTR, TR
    }
    for table in [0x60, 0x80] {
        take(table + 4, 12); // GDTR, IDTR: limit and base
    }
    for register in [EFER, CR4, 0x150, CR0, 0x170, 0x178, 0x1d8, 0x1f8] {
        take(register, 8); // CR3, RFLAGS, RIP, RSP, RAX
    }
    for registers in [0x308..0x320, 0x328..0x380] {
        take(registers.start, registers.len()); // RCX to RBX, RBP to R15
    }
    for segment in [0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x70, 0x90] {
        page[segment + 3] &= 0xf; // attributes have 12 bits
    }
    page[0xcb] = page[0x22] >> 5 & 3; // CPL: the stack segment's DPL
    let mut set = |at: usize, on: u64, off: u64| {
        let value = number(&page, at) & !off | on;
        page[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    set(EFER, EFER_SVME, 0);
    set(CR4, CR4_MCE, 0);
    set(CR0, 0, CR0_NO_CACHE);
    set(0x170, 2, 0); // RFLAGS: the bit that is always one
    page
}

/// Whether KVM would leave the registers as they are that it has its own idea of.
pub(super) fn is_kvms(state: &[u8; PAGE]) -> bool {
    number(state, EFER) & EFER_SVME != 0
        && number(state, CR4) & CR4_MCE != 0
        && number(state, CR0) & CR0_NO_CACHE == 0
}

/// `SEV_FEATURES` of a VMSA.
pub(super) fn guest_features(state: &[u8; PAGE]) -> u64 {
    number(state, GUEST_FEATURES)
}

fn number(page: &[u8; PAGE], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| page[at + n]))
}
