//! Against what real TDs measured (the recorded event logs), and against an independent program.

use super::*;
use crate::eventlog::{EventLog, HashAlg};

const TABLE_FOOTER: [u8; 16] = guid_bytes(0x96b582de_1fb2_45f7_baea_a366c55a082d);

fn log(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/ccel");
    std::fs::read(folder.join(name)).unwrap()
}

/// Digests of one register (1: RTMR0), in their order.
fn digests(log: &EventLog<'_>, register: u32) -> Vec<[u8; 48]> {
    let own = log
        .events()
        .iter()
        .filter(|event| event.register == register && !event.is_no_action());
    own.map(|event| event.digest(HashAlg::Sha384).unwrap().try_into().unwrap())
        .collect()
}

/// An image with the layout of OVMF's sections, whose content counts up.
fn firmware(sections: &[[u64; 6]]) -> Vec<u8> {
    let mut image: Vec<u8> = (0..0x10000u32).map(|n| (n % 251) as u8).collect();
    let mut metadata = b"TDVF".to_vec();
    metadata.extend(((16 + 32 * sections.len()) as u32).to_le_bytes());
    metadata.extend(1u32.to_le_bytes());
    metadata.extend((sections.len() as u32).to_le_bytes());
    for [data, data_len, gpa, len, kind, attributes] in sections {
        metadata.extend((*data as u32).to_le_bytes());
        metadata.extend((*data_len as u32).to_le_bytes());
        metadata.extend(gpa.to_le_bytes());
        metadata.extend(len.to_le_bytes());
        metadata.extend((*kind as u32).to_le_bytes());
        metadata.extend((*attributes as u32).to_le_bytes());
    }
    let start = 0xf000;
    image[start..start + metadata.len()].copy_from_slice(&metadata);
    let mut table = Vec::new();
    table.extend(((image.len() - start) as u32).to_le_bytes());
    table.extend(22u16.to_le_bytes());
    table.extend(TDX_METADATA);
    table.extend((22u16 + 18).to_le_bytes());
    table.extend(TABLE_FOOTER);
    let end = image.len() - 32;
    image[end - table.len()..end].copy_from_slice(&table);
    image
}

/// Sections of the OVMF that the recorded TDs ran, as their HOBs show them; BFV and CFV are smaller here.
const OVMF: [[u64; 6]; 6] = [
    [0x1000, 0xf000, 0xffff_1000, 0xf000, 0, 1],
    [0, 0x1000, 0xffff_0000, 0x1000, 1, 0],
    [0, 0, 0x81_1000, 0xf000, 3, 0],
    [0, 0, 0x80_b000, 0x2000, 3, 0],
    [0, 0, 0x80_9000, 0x2000, 2, 0],
    [0, 0, 0x80_0000, 0x6000, 3, 0],
];

#[test]
fn the_list_of_memory_is_the_one_that_real_tds_measured() {
    let image = firmware(&OVMF);
    let tdvf = Tdvf::parse(&image).unwrap();
    for (name, gib) in [("dstack.ccel", 1), ("lunal-live2.ccel", 2)] {
        let log = log(name);
        let log = EventLog::parse_padded(&log).unwrap();
        let hob = tdvf.td_hob(gib << 30).unwrap();
        assert_eq!(digests(&log, 1)[0], *Sha384::digest(&hob), "{name}");
    }
    // From 2.75 GiB on the memory is split.
    let ranges = |memory| tdvf.td_hob(memory).map(|hob| (hob.len() - 56) / 48);
    assert_eq!(ranges(SPLIT_FROM - 4096), Ok(8));
    assert_eq!(ranges(SPLIT_FROM), Ok(9));
    for memory in [0, 0x82_0000, (1 << 30) + 1, MEMORY_MAX + 4096, u64::MAX] {
        assert_eq!(tdvf.td_hob(memory).unwrap_err(), TdxMeasureError::Memory(memory));
    }
}

#[test]
fn the_constant_events_are_those_that_real_tds_measured() {
    for name in ["dstack.ccel", "lunal-live2.ccel"] {
        let log = log(name);
        let log = EventLog::parse_padded(&log).unwrap();
        let [rtmr0, rtmr1] = [1, 2].map(|register| digests(&log, register));
        let digest = |data: &[u8]| <[u8; 48]>::from(Sha384::digest(data));
        for (at, vendor, variable) in [
            (2, GLOBAL_VARIABLE, "SecureBoot"),
            (3, GLOBAL_VARIABLE, "PK"),
            (4, GLOBAL_VARIABLE, "KEK"),
            (5, IMAGE_SECURITY, "db"),
            (6, IMAGE_SECURITY, "dbx"),
        ] {
            assert_eq!(
                rtmr0[at],
                digest(&empty_variable(vendor, variable)),
                "{name} {variable}"
            );
        }
        assert_eq!(rtmr0[7], digest(SEPARATOR));
        assert_eq!(rtmr0[11..], [digest(&[0, 0]), digest(BOOT_0000)], "{name}");
        // The kernel comes first; behind it everything is constant. Dstack's log ends before the system started.
        let constant = [CALLING, SEPARATOR, EXIT[0], EXIT[1]].map(digest);
        assert!(constant.starts_with(&rtmr1[1..]), "{name}");
        let whole = register(std::iter::once(&rtmr1[0]).chain(&constant));
        let replayed = log.replay(HashAlg::Sha384).unwrap();
        assert_eq!(whole.to_vec() == replayed[&2], rtmr1.len() == 5, "{name}");
    }
}

#[test]
fn a_register_of_a_real_td_comes_out_of_its_parts() {
    // All but the ACPI tables and the variables' volume is computed; these two are digests from the log.
    let log = log("lunal-live2.ccel");
    let log = EventLog::parse_padded(&log).unwrap();
    let recorded = digests(&log, 1);
    let image = firmware(&OVMF);
    let hob = Sha384::digest(Tdvf::parse(&image).unwrap().td_hob(2 << 30).unwrap());
    let mut parts: Vec<Vec<u8>> = vec![hob.to_vec(), recorded[1].to_vec()];
    for (vendor, name) in [
        (GLOBAL_VARIABLE, "SecureBoot"),
        (GLOBAL_VARIABLE, "PK"),
        (GLOBAL_VARIABLE, "KEK"),
        (IMAGE_SECURITY, "db"),
        (IMAGE_SECURITY, "dbx"),
    ] {
        parts.push(Sha384::digest(empty_variable(vendor, name)).to_vec());
    }
    parts.push(Sha384::digest(SEPARATOR).to_vec());
    parts.extend(recorded[8..11].iter().map(|digest| digest.to_vec()));
    parts.extend([&[0, 0][..], BOOT_0000].map(|data| Sha384::digest(data).to_vec()));
    let quoted = "5aca07b1"; // RTMR0 of tdx-v4-lunaldev-3ab56d67
    assert!(hex::encode(register(parts.iter())).starts_with(quoted));
}

#[test]
fn the_arguments_are_measured_as_a_real_td_did() {
    // Published by aleph-im/aleph-vm (MIT): QEMU 10.2.4, edk2 202602, Xeon 6731E, September 2026.
    let cmdline = "root=LABEL=cloudimg-rootfs ro console=ttyS0";
    let options = Sha384::digest(load_options(cmdline, true));
    assert_eq!(
        hex::encode(options),
        "b8c85d40a1d555a451571e24d7d7c4c331bc15721d6e4b2a5cb5093214c44174822a0916aa4d622d4309644de99cd59c"
    );
    let initrd = hex::decode(
        "88de90bedcc560064688c74ccd6609a25ed9d48b0a0e13d8b2a558212724d8755b2c8114dcf04b8d51ea4cf7782e3091",
    );
    assert_eq!(
        hex::encode(register([options.to_vec(), initrd.unwrap()].iter())),
        "972547466cb6bcb8a23cd479e9258c3affbbc4f0ba2805d732477200d0dff8432447c7a775e70453cdb51f018a306ece"
    );
}

#[test]
fn mrtd_is_what_an_independent_program_computes() {
    // Written down from a separate script that follows Intel's description, over the same bytes.
    let image = firmware(&OVMF);
    let tdvf = Tdvf::parse(&image).unwrap();
    assert_eq!(hex::encode(tdvf.mr_td(PageOrder::Interleaved)), MRTD);
    assert_eq!(hex::encode(tdvf.mr_td(PageOrder::TwoPass)), MRTD_TWO_PASS);
    let mut changed = image.clone();
    changed[0x2000] ^= 1;
    assert_ne!(
        hex::encode(Tdvf::parse(&changed).unwrap().mr_td(PageOrder::Interleaved)),
        MRTD
    );
    changed = image;
    changed[0x0800] ^= 1; // the variables aren't measured there
    assert_eq!(
        hex::encode(Tdvf::parse(&changed).unwrap().mr_td(PageOrder::Interleaved)),
        MRTD
    );
}

const MRTD: &str =
    "08eea91d8ea006bf4e162bad2e39bd9547a9d40f4ba45c27e6620636a1a2de53ffda218e5a5e33520453723b0fa60615";
const MRTD_TWO_PASS: &str =
    "b1fa6d81672c81860b99089f0fe6ca5f8cbb9d8e586519bf6eef1700068bbe82b0809aef6d1803871c320fa4cd9062d3";

#[test]
fn strange_metadata_are_refused() {
    let bad = |change: &dyn Fn(&mut [[u64; 6]; 6])| {
        let mut sections = OVMF;
        change(&mut sections);
        Tdvf::parse(&firmware(&sections)).err()
    };
    assert_eq!(bad(&|_| {}), None);
    let misfit = Some(TdxMeasureError::Metadata("a section that doesn't fit the image"));
    assert_eq!(bad(&|s| s[0][0] = 0xffff_0000), misfit);
    assert_eq!(bad(&|s| s[0][1] = 0xe000), misfit); // measured, but not all there
    assert_eq!(bad(&|s| s[2][2] = 0x81_1001), misfit);
    assert_eq!(bad(&|s| s[2][2] = !0xfff), misfit);
    assert_eq!(
        bad(&|s| s[2][3] = 1 << 40),
        Some(TdxMeasureError::Metadata("sections of more than 256 MiB"))
    );
    let overlapping = firmware(&[OVMF[4], [0, 0, 0x80_a000, 0x2000, 3, 0]]);
    let hob = Tdvf::parse(&overlapping).unwrap().td_hob(1 << 30);
    assert_eq!(hob, Err(TdxMeasureError::Metadata("sections that overlap")));
    let image = firmware(&OVMF);
    for cut in [&image[..0], &image[..0x1000], &image[0x1000..]] {
        assert!(Tdvf::parse(cut).is_err() || cut.len() == 0xf000);
    }
    // A table, but its offset lies before these last 4 KiB.
    let suffix = include_bytes!("../../../tests/vectors/measure/ovmf_AmdSev_suffix.bin");
    assert!(Tdvf::parse(suffix).is_err());
}

/// A small EFI image with these sections, signed by nobody, with a certificate table of `certificates` bytes.
fn pe(sections: &[(&str, &[u8])], certificates: usize) -> Vec<u8> {
    let headers = 0x400;
    let mut image = vec![0; headers];
    image[..2].copy_from_slice(b"MZ");
    image[0x3c] = 0x40;
    image[0x40..0x44].copy_from_slice(b"PE\0\0");
    image[0x46] = sections.len() as u8;
    image[0x54] = 240;
    let optional = 0x58;
    image[optional..optional + 2].copy_from_slice(&0x20bu16.to_le_bytes());
    image[optional + 60..optional + 64].copy_from_slice(&(headers as u32).to_le_bytes());
    image[optional + 108] = 16;
    image[optional + 112 + 36..optional + 112 + 40].copy_from_slice(&(certificates as u32).to_le_bytes());
    for (n, (name, content)) in sections.iter().enumerate() {
        let at = optional + 240 + 40 * n;
        image[at..at + name.len()].copy_from_slice(name.as_bytes());
        let raw_len = content.len().next_multiple_of(512);
        let start = image.len() as u32;
        image[at + 8..at + 12].copy_from_slice(&(content.len() as u32).to_le_bytes());
        image[at + 16..at + 20].copy_from_slice(&(raw_len as u32).to_le_bytes());
        image[at + 20..at + 24].copy_from_slice(&start.to_le_bytes());
        image.extend(*content);
        image.resize(start as usize + raw_len, 0);
    }
    image.extend(vec![0xce; certificates]);
    image
}

#[test]
fn a_kernels_digest_covers_all_but_checksum_and_signatures() {
    let plain = pe(&[(".text", b"code"), (".data", &[7; 600])], 64);
    let digest = |image: &[u8]| Pe::parse(image).and_then(|pe| pe.authenticode());
    let good = digest(&plain).unwrap();
    for at in 0..plain.len() {
        let mut changed = plain.clone();
        changed[at] ^= 0x80;
        let uncovered = (0x98..0x9c).contains(&at) || at >= plain.len() - 64 || (0xe8..0xec).contains(&at);
        assert_eq!(digest(&changed) == Ok(good), uncovered, "byte {at:#x}");
    }
    for len in 0..plain.len() - 64 {
        assert_ne!(digest(&plain[..len]), Ok(good), "{len} bytes");
    }
}

#[test]
fn each_part_of_a_boot_shows_in_its_register() {
    let kernel = pe(&[(".text", b"kernel")], 0);
    let direct = |kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str| {
        boot_registers(TdxBoot::Direct {
            kernel,
            initrd,
            cmdline,
        })
        .unwrap()
    };
    let good = direct(&kernel, Some(b"initrd"), "quiet");
    let other = direct(&pe(&[(".text", b"another")], 0), Some(b"initrd"), "quiet");
    assert!(other.0 != good.0 && other.1 == good.1);
    for other in [
        direct(&kernel, Some(b"another"), "quiet"),
        direct(&kernel, Some(b"initrd"), "quiet "),
        direct(&kernel, None, "quiet"),
    ] {
        assert!(other.0 == good.0 && other.1 != good.1);
    }
    let image = pe(
        &[
            (".linux", &kernel),
            (".cmdline", b"quiet"),
            (".initrd", b"initrd"),
        ],
        8,
    );
    let from_disk = |uki: &[u8], gpt, inner_kernel| {
        boot_registers(TdxBoot::Uki {
            uki,
            gpt,
            inner_kernel,
        })
    };
    let good = from_disk(&image, None, false).unwrap();
    assert_ne!(from_disk(&image, Some([1; 48]), false).unwrap().0, good.0);
    assert_ne!(from_disk(&image, None, true).unwrap().0, good.0);
    let other = pe(
        &[
            (".linux", &kernel),
            (".cmdline", b"debug"),
            (".initrd", b"initrd"),
        ],
        8,
    );
    let other = from_disk(&other, None, false).unwrap();
    assert!(other.0 != good.0 && other.1 != good.1);
    assert_eq!(from_disk(&kernel, None, false), Err(TdxMeasureError::NotAUki));
    assert_eq!(
        from_disk(b"MZ", None, false),
        Err(TdxMeasureError::Kernel(PeError::NotPe))
    );
}
