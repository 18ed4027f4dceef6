//! Launch digests of IGVM files, which the tests write with Microsoft's crate `igvm`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use attestation::measure::{
    DirectBoot, IgvmError, IgvmLaunch, IgvmLoader, IgvmMeasurement, MeasureError, SnpLaunch, VcpuType, Vmm,
    snp, snp_igvm,
};
use igvm::snp_defs::{SevSelector, SevVmsa};
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{
    IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY,
    IGVM_VHS_SNP_ID_BLOCK_SIGNATURE, IGVM_VHS_SUPPORTED_PLATFORM, IgvmPageDataFlags, IgvmPageDataType,
    IgvmPlatformType,
};
use p384::ecdsa::{Signature, SigningKey, signature::Signer};
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha384};

const SNP: u32 = 1;
const VMSA_GPA: u64 = 0xffff_ffff_f000;
const POLICY: u64 = 0x30000;

fn platform(platform_type: IgvmPlatformType, compatibility_mask: u32) -> IgvmPlatformHeader {
    IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
        compatibility_mask,
        highest_vtl: 0,
        platform_type,
        platform_version: 1,
        shared_gpa_boundary: 0,
    })
}

fn written(platforms: Vec<IgvmPlatformHeader>, directives: Vec<IgvmDirectiveHeader>) -> Vec<u8> {
    let policy = IgvmInitializationHeader::GuestPolicy {
        policy: POLICY,
        compatibility_mask: SNP,
    };
    let file = IgvmFile::new(IgvmRevision::V1, platforms, vec![policy], directives).unwrap();
    let mut bytes = Vec::new();
    file.serialize(&mut bytes).unwrap();
    bytes
}

fn snp_file(directives: Vec<IgvmDirectiveHeader>) -> Vec<u8> {
    written(vec![platform(IgvmPlatformType::SEV_SNP, SNP)], directives)
}

fn page_with(gpa: u64, data: &[u8], data_type: IgvmPageDataType, unmeasured: bool) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::PageData {
        gpa,
        compatibility_mask: SNP,
        flags: IgvmPageDataFlags::new().with_unmeasured(unmeasured),
        data_type,
        data: data.to_vec(),
    }
}

fn page(gpa: u64, data: &[u8]) -> IgvmDirectiveHeader {
    page_with(gpa, data, IgvmPageDataType::NORMAL, false)
}

fn area(index: u32, pages: u64, gpa: u64) -> [IgvmDirectiveHeader; 3] {
    [
        IgvmDirectiveHeader::ParameterArea {
            number_of_bytes: pages * 4096,
            parameter_area_index: index,
            initial_data: Vec::new(),
        },
        IgvmDirectiveHeader::VpCount(IGVM_VHS_PARAMETER {
            parameter_area_index: index,
            byte_offset: 0,
        }),
        IgvmDirectiveHeader::ParameterInsert(IGVM_VHS_PARAMETER_INSERT {
            gpa,
            compatibility_mask: SNP,
            parameter_area_index: index,
        }),
    ]
}

/// A vCPU that starts in real mode at `eip`, as KVM sets it up.
fn vcpu(index: u16, eip: u32, signature: u32, features: u64) -> IgvmDirectiveHeader {
    let segment = |selector, attrib, base| SevSelector {
        selector,
        attrib,
        limit: 0xffff,
        base,
    };
    let mut vmsa: Box<SevVmsa> = zerocopy_zeroed();
    let data = segment(0, 0x93, 0);
    (vmsa.es, vmsa.ds, vmsa.fs, vmsa.gs, vmsa.ss) = (data, data, data, data, data);
    vmsa.cs = segment(0xf000, 0x9b, (eip & 0xffff_0000).into());
    vmsa.gdtr = segment(0, 0, 0);
    vmsa.idtr = segment(0, 0, 0);
    vmsa.ldtr = segment(0, 0x82, 0);
    vmsa.tr = segment(0, 0x8b, 0);
    (vmsa.efer, vmsa.cr4, vmsa.cr0) = (0x1000, 0x40, 0x10);
    (vmsa.dr7, vmsa.dr6, vmsa.rflags) = (0x400, 0xffff_0ff0, 2);
    vmsa.rip = (eip & 0xffff).into();
    vmsa.pat = 0x0007_0406_0007_0406;
    vmsa.rdx = signature.into();
    vmsa.sev_features = features.into();
    (vmsa.xcr0, vmsa.mxcsr, vmsa.x87_fcw) = (1, 0x1f80, 0x37f);
    IgvmDirectiveHeader::SnpVpContext {
        gpa: VMSA_GPA,
        compatibility_mask: SNP,
        vp_index: index,
        vmsa,
    }
}

fn zerocopy_zeroed() -> Box<SevVmsa> {
    use zerocopy::FromZeros;
    SevVmsa::new_box_zeroed().unwrap()
}

fn launch(file: &[u8], loader: IgvmLoader) -> IgvmLaunch<'_> {
    IgvmLaunch {
        file,
        loader,
        vcpus: None,
        vcpu: VcpuType(0x800f12),
        direct_boot: None,
    }
}

fn measured(file: &[u8], loader: IgvmLoader) -> Result<IgvmMeasurement, MeasureError> {
    snp_igvm(&launch(file, loader))
}

fn refused(file: &[u8], loader: IgvmLoader) -> IgvmError {
    match measured(file, loader).unwrap_err() {
        MeasureError::Igvm(error) => error,
        other => panic!("{other}"),
    }
}

/// A file that loads OVMF as QEMU does by itself: the image below 4 GiB, then the sections of its SEV metadata.
fn from_ovmf(image: &[u8], vcpus: u16, signature: u32, features: u64) -> Vec<IgvmDirectiveHeader> {
    let start = (1 << 32) - image.len() as u64;
    let mut directives: Vec<_> = image
        .chunks(4096)
        .zip(0..)
        .map(|(data, n)| page(start + n * 4096, data))
        .collect();
    let find = |what: &[u8]| image.windows(what.len()).position(|bytes| bytes == what).unwrap();
    let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
    let metadata = find(b"ASEV");
    for section in (0..number(metadata + 12) as usize).map(|n| metadata + 16 + 12 * n) {
        let [gpa, len, kind] = [0, 4, 8].map(|at| number(section + at));
        for gpa in (gpa..gpa + len).step_by(4096) {
            let data_type = match kind {
                2 => IgvmPageDataType::SECRETS,
                3 => IgvmPageDataType::CPUID_DATA,
                _ => IgvmPageDataType::NORMAL,
            };
            directives.push(page_with(gpa.into(), &[], data_type, false));
        }
    }
    // OVMF's reset block: where all vCPUs but the first start, before its length and GUID.
    let reset_block = find(&hex::decode("de71f7007e1acb4f890e68c77e2fb44e").unwrap());
    let other_eip = number(reset_block - 6);
    directives.extend((0..vcpus).map(|n| match n {
        0 => vcpu(0, 0xffff_fff0, signature, features),
        n => vcpu(n, other_eip, signature, features),
    }));
    directives
}

/// The image with its hashes of kernel, initrd and command line where Cloud Hypervisor puts them.
fn with_low_hashes(mut image: Vec<u8>) -> Vec<u8> {
    for (from, to) in [(0x81_0000u32, 0x1_0000u32), (0x81_0c00, 0x1_0c00)] {
        let from = from.to_le_bytes();
        let at = image.windows(4).position(|bytes| bytes == from).unwrap();
        image[at..at + 4].copy_from_slice(&to.to_le_bytes());
    }
    image
}

/// By way of an IGVM file and Cloud Hypervisor, a firmware has the digest that is published for it, as its authors report,
/// too (Cloud Hypervisor's pull request 8123); with a kernel, the digest that we compute for the firmware.
#[test]
fn a_file_made_of_a_firmware_has_the_firmwares_digest() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/measure");
    let cases: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let of_qemu = |case: &&Value| {
        case["mode"] == "SEV_SNP"
            && case["snp_ovmf_hash_str"].is_null()
            && !["ec2", "gce"].map(Value::from).contains(&case["vmm_type"])
    };
    let (mut published, mut with_kernel) = (0, 0);
    for case in cases.as_array().unwrap().iter().filter(of_qemu) {
        let file = case["ovmf_file"].as_str().unwrap().rsplit('/').next().unwrap();
        let number = |key: &str| case[key].as_u64().unwrap_or(0);
        let (vcpus, signature, features) = (number("vcpus"), number("vcpu_sig"), number("guest_features"));
        let mut firmware = std::fs::read(folder.join(file)).unwrap();
        let append = case["append"].as_str().unwrap_or_default();
        let direct_boot = case["kernel"]
            .is_string()
            .then(|| DirectBoot::new(b"kernel", Some(b""), append));
        let expected = if direct_boot.is_some() {
            firmware = with_low_hashes(firmware);
            with_kernel += 1;
            hex::encode(
                snp(&SnpLaunch {
                    firmware: &firmware,
                    vcpus: vcpus as u32,
                    vcpu: VcpuType(signature as u32),
                    direct_boot,
                    guest_features: features,
                    vmm: Vmm::Qemu,
                    firmware_digest: None,
                })
                .unwrap(),
            )
        } else {
            published += 1;
            case["launch_digest"].as_str().unwrap().to_owned()
        };
        let file = snp_file(from_ovmf(&firmware, vcpus as u16, signature as u32, features));
        let measured = snp_igvm(&IgvmLaunch {
            direct_boot,
            ..launch(&file, IgvmLoader::CloudHypervisor)
        })
        .unwrap();
        assert_eq!(hex::encode(measured.digest), expected, "{case}");
        assert_eq!(u64::from(measured.vcpus), vcpus);
    }
    assert!(published >= 3 && with_kernel >= 3, "{published}, {with_kernel}");
}

/// One of every kind, not in the order of addresses.
fn mixed() -> Vec<IgvmDirectiveHeader> {
    let mut directives = vec![
        IgvmDirectiveHeader::RequiredMemory {
            gpa: 0,
            compatibility_mask: SNP,
            number_of_bytes: 0x10_0000,
            vtl2_protectable: false,
        },
        page(0x5000, &[0x5a; 4096]),
        page(0x2000, &[]),
        page(0x3000, &[7; 100]),
        page_with(0x4000, &[1; 4096], IgvmPageDataType::NORMAL, true),
        page_with(0x6000, &[], IgvmPageDataType::SECRETS, false),
        page_with(0x7000, &[3; 4096], IgvmPageDataType::CPUID_DATA, false),
    ];
    directives.extend(area(3, 1, 0x9000));
    directives.push(vcpu(0, 0xffff_fff0, 0x800f12, 0x21));
    directives
}

/// The fuzzers start from it.
#[test]
fn the_recorded_file_is_one_of_every_kind() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/measure/mixed.igvm");
    let now = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mixed.igvm");
    let file = snp_file(mixed());
    std::fs::write(&now, &file).unwrap();
    let same = std::fs::read(&recorded).is_ok_and(|recorded| recorded == file);
    assert!(same, "cp {} {}", now.display(), recorded.display());
}

fn replaced(which: usize, by: IgvmDirectiveHeader) -> Vec<IgvmDirectiveHeader> {
    let mut directives = mixed();
    directives[which] = by;
    directives
}

#[test]
fn digests_equal_those_of_igvmmeasure() {
    // COCONUT-SVSM's igvmmeasure 0.1.0 with igvm 0.4.0: `igvmmeasure FILE measure -b`, for Cloud Hypervisor with `-n`.
    const FORMAT: &str =
        "f8d27dd9017b3e0689e6fd80356d6b2c4e25bc8fc6181613af6f1531f0fbb652437db33786d802316e6189c4311ca615";
    const NATIVE: &str =
        "dfcbf8abcbea239de086ca0434bb6c593d7bd5db6cc370fa4c1cd187caacda68ce35d761cee3f2ddcf8d6df01a7acd92";
    let file = snp_file(mixed());
    for (loader, expected) in [
        (IgvmLoader::Format, FORMAT),
        (IgvmLoader::Qemu, FORMAT),
        (IgvmLoader::CloudHypervisor, NATIVE),
    ] {
        let measured = measured(&file, loader).unwrap();
        assert_eq!(hex::encode(measured.digest), expected, "{loader:?}");
        assert_eq!(
            (measured.policy, measured.vcpus, measured.pages),
            (Some(POLICY), 1, 7)
        );
        assert_eq!((measured.guest_features, measured.id_block), (0x21, None));
    }
}

#[test]
fn every_page_its_place_and_its_kind_count() {
    let digest = |directives| {
        measured(&snp_file(directives), IgvmLoader::Format)
            .unwrap()
            .digest
    };
    let mut seen = vec![digest(mixed())];
    let mut swapped = mixed();
    swapped.swap(1, 3);
    let mut moved_vcpu = mixed();
    moved_vcpu.rotate_right(1);
    let others = [
        ("order", swapped),
        ("the vCPU first", moved_vcpu),
        ("one bit", replaced(1, page(0x5000, &[0x5b; 4096]))),
        ("address", replaced(1, page(0xa000, &[0x5a; 4096]))),
        (
            "unmeasured",
            replaced(1, page_with(0x5000, &[], IgvmPageDataType::NORMAL, true)),
        ),
        (
            "secrets",
            replaced(1, page_with(0x5000, &[], IgvmPageDataType::SECRETS, false)),
        ),
        (
            "type of the vCPU",
            replaced(10, vcpu(0, 0xffff_fff0, 0x800f11, 0x21)),
        ),
        ("features", replaced(10, vcpu(0, 0xffff_fff0, 0x800f12, 1))),
    ];
    for (row, directives) in others {
        let digest = digest(directives);
        assert!(!seen.contains(&digest), "{row}");
        seen.push(digest);
    }
    // What the host fills in, or what must only be there, doesn't count.
    let same = [
        replaced(4, page_with(0x4000, &[2; 4096], IgvmPageDataType::NORMAL, true)),
        replaced(
            6,
            page_with(0x7000, &[9; 4096], IgvmPageDataType::CPUID_DATA, false),
        ),
        mixed()[1..].to_vec(),
    ];
    for directives in same {
        assert_eq!(digest(directives), seen[0]);
    }
    // A long parameter area is as many pages.
    let mut long = mixed();
    long.splice(7..10, area(3, 2, 0x9000));
    let mut two = mixed();
    two.splice(10..10, area(4, 1, 0xa000));
    assert_eq!(digest(long), digest(two));
}

#[test]
fn loaders_take_what_they_can_launch() {
    use IgvmLoader::{CloudHypervisor, Format, Qemu};
    let mut two_vcpus = mixed();
    two_vcpus.push(vcpu(1, 0xffff_fff0, 0x800f12, 0x21));
    let (one, two) = (snp_file(mixed()), snp_file(two_vcpus));
    let with = |file, loader, vcpus| {
        snp_igvm(&IgvmLaunch {
            vcpus: Some(vcpus),
            ..launch(file, loader)
        })
    };
    let digest = |file, loader, vcpus| with(file, loader, vcpus).unwrap().digest;
    assert_ne!(digest(&two, CloudHypervisor, 1), digest(&two, CloudHypervisor, 2));
    assert_eq!(digest(&two, CloudHypervisor, 1), digest(&one, CloudHypervisor, 1));
    assert_eq!(
        digest(&one, Qemu, 2),
        digest(&two, Format, 2),
        "QEMU resets the others"
    );
    assert_eq!(with(&one, CloudHypervisor, 2), Err(IgvmError::NoVcpu(1).into()));
    assert_eq!(with(&one, Format, 2), Err(IgvmError::NoVcpu(1).into()));
    assert_eq!(with(&one, Format, 0), Err(MeasureError::Vcpus(0)));
    assert!(matches!(
        with(&two, Qemu, 2),
        Err(MeasureError::Igvm(IgvmError::Loader(_)))
    ));

    let both = [
        platform(IgvmPlatformType::SEV_SNP, SNP),
        platform(IgvmPlatformType::TDX, 2),
    ];
    let both = written(both.to_vec(), mixed());
    assert_eq!(measured(&both, Format).unwrap(), measured(&one, Format).unwrap());
    assert!(matches!(refused(&both, CloudHypervisor), IgvmError::Loader(_)));

    let hashes = |loader, directives| {
        let direct_boot = Some(DirectBoot::new(b"kernel", None, "quiet"));
        snp_igvm(&IgvmLaunch {
            direct_boot,
            ..launch(&snp_file(directives), loader)
        })
    };
    hashes(CloudHypervisor, mixed()).unwrap();
    assert!(hashes(Format, mixed()).is_err());
    assert!(
        hashes(
            CloudHypervisor,
            replaced(5, page_with(0x10000, &[], IgvmPageDataType::SECRETS, false))
        )
        .is_err()
    );
    let mut parameters = mixed();
    parameters.extend(area(4, 1, 0x10000));
    assert!(hashes(CloudHypervisor, parameters).is_err());
}

/// An ID block for a digest, signed by a key and vouched for by an author's.
fn id_block(digest: [u8; 48], key: &SigningKey, author: &SigningKey) -> IgvmDirectiveHeader {
    let number = |bytes: &[u8]| -> [u8; 72] {
        let mut number: Vec<u8> = bytes.iter().rev().copied().collect();
        number.resize(72, 0);
        number.try_into().unwrap()
    };
    let public = |key: &SigningKey| {
        let point = key.verifying_key().to_sec1_point(false);
        IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY {
            curve: 2,
            reserved: 0,
            qx: number(&point.as_bytes()[1..49]),
            qy: number(&point.as_bytes()[49..]),
        }
    };
    let sign = |key: &SigningKey, message: &[u8]| {
        let signature: Signature = key.sign(message);
        let bytes = signature.to_bytes();
        Box::new(IGVM_VHS_SNP_ID_BLOCK_SIGNATURE {
            r_comp: number(&bytes[..48]),
            s_comp: number(&bytes[48..]),
        })
    };
    let (family_id, image_id) = ([0xfa; 16], [0x1d; 16]);
    let (version, guest_svn) = (1u32, 7u32);
    let message = [
        &digest[..],
        &family_id,
        &image_id,
        &version.to_le_bytes(),
        &guest_svn.to_le_bytes(),
        &POLICY.to_le_bytes(),
    ];
    IgvmDirectiveHeader::SnpIdBlock {
        compatibility_mask: SNP,
        author_key_enabled: 1,
        reserved: [0; 3],
        ld: digest,
        family_id,
        image_id,
        version,
        guest_svn,
        id_key_algorithm: 1,
        author_key_algorithm: 1,
        id_key_signature: sign(key, &message.concat()),
        id_public_key: Box::new(public(key)),
        author_key_signature: sign(author, &chip_key(&public(key))),
        author_public_key: Box::new(public(author)),
    }
}

fn chip_key(key: &IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY) -> Vec<u8> {
    let mut bytes = [&key.curve.to_le_bytes()[..], &key.qx, &key.qy].concat();
    bytes.resize(1028, 0);
    bytes
}

#[test]
fn an_id_block_is_shown_and_its_signatures_checked() {
    let key = |n: u8| SigningKey::from_slice(&[n; 48]).unwrap();
    let digest = measured(&snp_file(mixed()), IgvmLoader::Format).unwrap().digest;
    let with = |block| {
        let mut directives = mixed();
        directives.push(block);
        measured(&snp_file(directives), IgvmLoader::Format).unwrap()
    };
    let good = id_block(digest, &key(1), &key(2));
    let found = with(good.clone());
    assert_eq!(found.digest, digest, "an ID block isn't measured");
    let block = found.id_block.unwrap();
    assert!(block.signed);
    assert_eq!((block.digest, block.guest_svn), (digest, 7));
    assert_eq!((block.family_id, block.image_id), ([0xfa; 16], [0x1d; 16]));
    let IgvmDirectiveHeader::SnpIdBlock {
        id_public_key,
        author_public_key,
        ..
    } = &good
    else {
        unreachable!()
    };
    let digest_of = |key| <[u8; 48]>::from(Sha384::digest(chip_key(key)));
    assert_eq!(block.id_key_digest, digest_of(id_public_key));
    assert_eq!(block.author_key_digest, Some(digest_of(author_public_key)));

    type Change = fn(&mut IgvmDirectiveHeader);
    let changes: [(&str, Change); 4] = [
        ("digest", |block| {
            if let IgvmDirectiveHeader::SnpIdBlock { ld, .. } = block {
                ld[0] ^= 1;
            }
        }),
        ("the key's signature", |block| {
            if let IgvmDirectiveHeader::SnpIdBlock { id_key_signature, .. } = block {
                id_key_signature.s_comp[3] ^= 1;
            }
        }),
        ("behind a number", |block| {
            if let IgvmDirectiveHeader::SnpIdBlock { id_key_signature, .. } = block {
                id_key_signature.r_comp[50] = 1;
            }
        }),
        ("the author's key", |block| {
            if let IgvmDirectiveHeader::SnpIdBlock {
                author_public_key, ..
            } = block
            {
                author_public_key.qx[3] ^= 1;
            }
        }),
    ];
    for (row, change) in changes {
        let mut block = good.clone();
        change(&mut block);
        assert!(!with(block).id_block.unwrap().signed, "{row}");
    }
    let mut twice = mixed();
    twice.extend([good.clone(), good]);
    assert_eq!(
        refused(&snp_file(twice), IgvmLoader::Format),
        IgvmError::IdBlockTwice
    );
}

fn set(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// A file with other bytes in its headers, and a checksum that fits again.
fn changed(file: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut file = file.to_vec();
    change(&mut file);
    set(&mut file, 20, 0);
    let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let end = (number(8).saturating_add(number(12))).min(file.len());
    let checksum = file[..end].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (crc & 1).wrapping_neg() & 0xedb8_8320
        })
    });
    set(&mut file, 20, !checksum);
    file
}

#[test]
fn strange_files_are_refused_by_name() {
    let good = snp_file(mixed());
    let all = |directives: &[IgvmDirectiveHeader]| [&mixed()[..], directives].concat();
    let malformed = |error: &IgvmError| matches!(error, IgvmError::Malformed { .. });
    // Headers begin at 24: the platform (8 + 16), the policy (8 + 16), required memory (8 + 24), the first page (8 + 24).
    const PLATFORM: usize = 24;
    const MEMORY: usize = 72;
    const PAGE: usize = 104;
    type Expected<'a> = &'a dyn Fn(&IgvmError) -> bool;
    let rows: Vec<(&str, Vec<u8>, Expected<'_>)> = vec![
        ("nothing", vec![], &|e| *e == IgvmError::NotIgvm),
        ("an OVMF", vec![0xff; 8192], &|e| *e == IgvmError::NotIgvm),
        ("the magic alone", b"IGVM".to_vec(), &|e| {
            matches!(e, IgvmError::Length { len: 4 })
        }),
        ("cut", good[..good.len() - 1].to_vec(), &malformed),
        ("a byte more", [&good[..], &[0]].concat(), &malformed),
        (
            "a flipped bit",
            {
                let mut bad = good.clone();
                bad[30] ^= 1;
                bad
            },
            &|e| *e == IgvmError::Checksum,
        ),
        ("version 9", changed(&good, |f| set(f, 4, 9)), &|e| {
            *e == IgvmError::Version(9)
        }),
        (
            "version 2 for ARM",
            changed(&good, |f| {
                set(f, 4, 2);
                set(f, 24, 1)
            }),
            &|e| *e == IgvmError::Architecture,
        ),
        (
            "headers in the header",
            changed(&good, |f| set(f, 8, 8)),
            &malformed,
        ),
        (
            "headers off their grid",
            changed(&good, |f| set(f, 8, 25)),
            &malformed,
        ),
        (
            "huge headers",
            changed(&good, |f| set(f, 12, u32::MAX)),
            &malformed,
        ),
        ("TDX alone", changed(&good, |f| f[PLATFORM + 8 + 5] = 3), &|e| {
            *e == IgvmError::NotSnp
        }),
        (
            "two bits of mask",
            changed(&good, |f| f[PLATFORM + 8] = 3),
            &malformed,
        ),
        (
            "a policy before the platform",
            changed(&good, |f| f[PLATFORM..72].rotate_left(24)),
            &malformed,
        ),
        (
            "an unknown structure",
            changed(&good, |f| set(f, MEMORY, 0x399)),
            &|e| {
                matches!(
                    e,
                    IgvmError::Unknown {
                        kind: 0x399,
                        at: MEMORY
                    }
                )
            },
        ),
        (
            "a long structure",
            changed(&good, |f| set(f, MEMORY + 4, 0xffff_fff8)),
            &malformed,
        ),
        (
            "a short structure",
            changed(&good, |f| set(f, MEMORY + 4, 20)),
            &malformed,
        ),
        (
            "for no platform",
            changed(&good, |f| set(f, PAGE + 16, 2)),
            &malformed,
        ),
        (
            "data in the headers",
            changed(&good, |f| set(f, PAGE + 20, 32)),
            &malformed,
        ),
        (
            "data behind the file",
            changed(&good, |f| set(f, PAGE + 20, u32::MAX)),
            &malformed,
        ),
        (
            "data over the end",
            changed(&good, |f| {
                let len = f.len() as u32;
                set(f, PAGE + 20, len - 4095)
            }),
            &malformed,
        ),
        (
            "half a page's address",
            changed(&good, |f| set(f, PAGE + 8, 0x5800)),
            &malformed,
        ),
        (
            "an address beyond any",
            changed(&good, |f| set(f, PAGE + 12, u32::MAX)),
            &malformed,
        ),
        ("2 MiB", changed(&good, |f| set(f, PAGE + 24, 1)), &malformed),
        (
            "an unknown flag",
            changed(&good, |f| set(f, PAGE + 24, 8)),
            &malformed,
        ),
        (
            "an unknown type",
            changed(&good, |f| set(f, PAGE + 28, 9)),
            &malformed,
        ),
        ("a page twice", snp_file(all(&[page(0x5000, &[])])), &|e| {
            *e == IgvmError::Twice { gpa: 0x5000 }
        }),
        (
            "parameters over a page",
            snp_file(all(&area(4, 2, 0x4000))),
            &|e| *e == IgvmError::Twice { gpa: 0x4000 },
        ),
        (
            "endless parameters",
            snp_file(all(&area(4, 1 << 30, 0x10_0000))),
            &|e| *e == IgvmError::TooLarge,
        ),
        ("no vCPU", snp_file(mixed()[..10].to_vec()), &|e| {
            *e == IgvmError::NoVcpu(0)
        }),
        ("a vCPU twice", snp_file(all(&[vcpu(0, 0, 0, 1)])), &|e| {
            *e == IgvmError::VcpuTwice(0)
        }),
        (
            "the second vCPU alone",
            snp_file(replaced(10, vcpu(1, 0, 0, 1))),
            &|e| *e == IgvmError::NoVcpu(0),
        ),
    ];
    for (row, file, expected) in rows {
        let error = refused(&file, IgvmLoader::Format);
        assert!(expected(&error), "{row}: {error:?}");
    }
    // One that may be ignored is.
    let optional = changed(&good, |f| set(f, MEMORY, 0x8000_0399));
    assert_eq!(
        measured(&optional, IgvmLoader::Format),
        measured(&good, IgvmLoader::Format)
    );
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(at in 0usize..600, bytes: [u8; 4], cut in proptest::option::of(0usize..1000)) {
        let good = snp_file(mixed());
        let mut bad = changed(&good, |file| file[at..at + 4].copy_from_slice(&bytes));
        bad.truncate(cut.unwrap_or(bad.len()));
        for loader in [IgvmLoader::Format, IgvmLoader::Qemu, IgvmLoader::CloudHypervisor] {
            let _ = measured(&bad, loader);
        }
    }
}

#[test]
fn the_command_measures_a_file_and_refuses_what_no_chip_launches() {
    let folder = tempfile::tempdir().unwrap();
    let key = |n: u8| SigningKey::from_slice(&[n; 48]).unwrap();
    let file = |name: &str, directives| {
        let path = folder.path().join(name);
        std::fs::write(&path, snp_file(directives)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let expected = measured(&snp_file(mixed()), IgvmLoader::Format).unwrap().digest;
    let signed = |digest| [&mixed()[..], &[id_block(digest, &key(1), &key(2))]].concat();
    let good = file("good", signed(expected));
    let other = file("other", signed([7; 48]));
    let run = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_attest"))
            .args(["measure", "snp"])
            .args(args)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, out, about) = run(&["--igvm", &good]);
    assert_eq!((code, out.trim()), (0, &*hex::encode(expected)));
    assert!(about.contains("policy 0x30000, 1 vCPUs"), "{about}");
    let (code, out, _) = run(&["--igvm", &good, "--json"]);
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &shown["id_block"]["signed"]), (0, &Value::Bool(true)));
    let (code, _, why) = run(&["--igvm", &other]);
    assert!(code == 1 && why.contains("ID block expects 0707"), "{code} {why}");
    let rows: [&[&str]; 6] = [
        &[],
        &["--igvm", &good, "--firmware", &good, "--vcpus", "1"],
        &["--igvm", "/nonexistent"],
        &["--igvm", &good, "--vmm", "ec2"],
        &["--igvm", &good, "--kernel", &good],
        &["--firmware", &good, "--vcpus", "1", "--vmm", "cloud-hypervisor"],
    ];
    for row in rows {
        let (code, out, why) = run(row);
        assert!(
            code == 2 && out.is_empty() && !why.is_empty(),
            "{row:?}: {code} {out} {why}"
        );
    }
}
