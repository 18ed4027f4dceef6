//! A PCI card on its way to a VM and back, behind an IOMMU: all that a GPU takes, but the GPU.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::machine::{Host, alone, image};
use crate::operator::operator;

/// One sector that a PC's firmware starts from the card: it says so on the serial port, writes itself to the card's third
/// sector, and says that too. Assembled from:
///
/// ```text
///         cld
///         xor  ax, ax
///         mov  ds, ax
///         push dx                 ; the drive that this came from
///         mov  si, READS
///         call print
///         pop  dx
///         mov  si, PACKET
///         mov  ax, 0x4300         ; extended write
///         int  0x13
///         jc   stop
///         mov  si, WRITTEN
///         call print
/// stop:   hlt
///         jmp  stop
/// print:  lodsb
///         test al, al
///         jz   end
///         mov  dx, 0x3f8
///         out  dx, al
///         jmp  print
/// end:    ret
/// PACKET: db 16, 0, 1, 0          ; one sector
///         dw 0x7c00, 0            ; from here
///         dq 2                    ; to the third
/// ```
const PROGRAM: [u8; 60] = [
    0xfc, 0x31, 0xc0, 0x8e, 0xd8, 0x52, 0xbe, 0x3c, 0x7c, 0xe8, 0x14, 0x00, 0x5a, 0xbe, 0x2c, 0x7c, 0xb8,
    0x00, 0x43, 0xcd, 0x13, 0x72, 0x06, 0xbe, 0x53, 0x7c, 0xe8, 0x03, 0x00, 0xf4, 0xeb, 0xfd, 0xac, 0x84,
    0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5, 0xc3, 16, 0, 1, 0, 0x00, 0x7c, 0, 0, 2, 0, 0, 0, 0,
    0, 0, 0,
];
const READS: &[u8] = b"the VM reads the card\n\0";
const WRITTEN: &[u8] = b"the VM has written to the card\n\0";

fn boot_sector() -> [u8; 512] {
    let mut sector = [0; 512];
    let content = [&PROGRAM, READS, WRITTEN].concat();
    sector[..content.len()].copy_from_slice(&content);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// What the machine's operator does. The VM's process belongs to a user of its own, as hostd's do, and can open one thing:
/// the card's IOMMU group.
const OPERATOR: &str = r#"#!/bin/sh
exec >/dev/ttyS1 2>&1
card=0000:00:10.0
until [ -e /dev/nvme0n1 ]; do sleep 1; done
hostd device list
hostd device hand-over $card && echo "OPERATOR handed it over"
[ -e /dev/nvme0n1 ] && echo "OPERATOR still has the disk"
group=$(basename "$(readlink /sys/bus/pci/devices/$card/iommu_group)")
chown 700099 /dev/vfio/$group
prlimit --memlock=unlimited setpriv --reuid 700099 --regid 700099 --groups "$(stat -c %g /dev/kvm)" --no-new-privs \
  qemu-system-x86_64 -accel kvm -m 64 -nodefaults -display none -serial stdio \
  -device vfio-pci,host=$card,bootindex=0 </dev/null >/run/vm &
vm=$!
until grep written /run/vm; do
  [ -e /proc/$vm ] || break
  sleep 1
done
cat /run/vm
hostd device take-back $card || echo "OPERATOR was refused"
kill $vm
wait $vm
hostd device take-back $card && echo "OPERATOR has it again"
until [ -e /dev/nvme0n1 ]; do sleep 1; done
head -c 512 /dev/nvme0n1 >/run/first
tail -c +1025 /dev/nvme0n1 | head -c 512 | cmp - /run/first && echo "OPERATOR reads what the VM wrote"
echo "OPERATOR is done"
"#;

/// Goal: a card goes to a VM, which reads and writes it by DMA through the IOMMU, and comes back to the host's driver, reset,
/// with what the VM wrote; it isn't taken from a VM that runs. Method: an NVMe disk behind an emulated IOMMU; the VM, on KVM
/// inside, starts from its first sector.
#[test]
fn a_card_goes_to_a_vm_and_comes_back() {
    let _alone = alone();
    let (dir, image) = image();
    let mut host = Host::new(&dir, &image);
    let disk = host.dir.path().join("card");
    let card = File::create_new(&disk).unwrap();
    card.set_len(16 << 20).unwrap();
    card.write_all_at(&boot_sector(), 0).unwrap();
    let drive = format!("file={},format=raw,if=none,id=card", disk.display());
    let mut extra = [
        "-machine",
        "kernel-irqchip=off",
        "-device",
        "intel-iommu,intremap=on,aw-bits=48",
        "-drive",
        &drive,
        "-device",
        "nvme,drive=card,serial=card,addr=0x10",
    ]
    .map(str::to_owned)
    .to_vec();
    extra.extend(operator(OPERATOR));
    let mut boot = host.boot_with(&[], &extra);
    let text = boot.until(&["OPERATOR is done"]);
    for line in [
        "OPERATOR handed it over",
        "the VM reads the card",
        "the VM has written to the card",
        "has 0000:00:10.0: end its VM first",
        "OPERATOR was refused",
        "OPERATOR has it again",
        "OPERATOR reads what the VM wrote",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert!(!text.contains("still has the disk"), "{text}");
    drop(boot);
    let content = fs::read(disk).unwrap();
    assert_eq!(content[1024..1536], boot_sector());
}
