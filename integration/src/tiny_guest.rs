//! The smallest guest that does what adapters must see: it says a word on the serial line, waits for the power button,
//! and switches itself off. 60 bytes of real-mode code in the form of a bzImage, made here, so that tests need no
//! kernel package.
//!
//! Layout: Linux' `Documentation/arch/x86/boot.rst` (protocol 2.04). Hardware: ACPI 6.5, 4.8.3 (PM1 event and control
//! blocks), at the place where SeaBIOS puts them on QEMU's q35 machine (0x600).

/// What it says.
pub const HELLO: &str = "tiny guest is up\r\n";

const SECTOR: usize = 512;
/// Where code starts: behind the header.
const CODE: usize = 0x280;

/// The bzImage.
pub fn kernel() -> Vec<u8> {
    let mut image = vec![0; 4 * SECTOR];
    image[0x1f1] = 1; // setup_sects: one sector of setup behind the boot sector
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, (CODE - 0x202) as u8]); // jmp CODE
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x0204_u16.to_le_bytes());
    image[0x211] = 1; // LOADED_HIGH
    image[0x22c..0x230].copy_from_slice(&0x37ff_ffff_u32.to_le_bytes()); // initrd_addr_max
    let code = code();
    image[CODE..CODE + code.len()].copy_from_slice(&code);
    image
}

fn code() -> Vec<u8> {
    let mut code = vec![0xfa]; // cli
    code.extend([0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    for byte in HELLO.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code.extend([0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef]); // PM1_EN: power button
    code.extend([0xba, 0x00, 0x06]); // wait: mov dx, 0x600
    code.extend([0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf7]); // in ax, dx; test ah, 1; jz wait (PWRBTN_STS)
    code.extend([0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef]); // PM1_CNT: SLP_EN with S5
    code.extend([0xeb, 0xfe]); // nothing after this
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_its_sector() {
        assert!(CODE + code().len() <= 2 * SECTOR, "{} bytes", code().len());
        assert_eq!(kernel().len(), 4 * SECTOR);
    }
}
