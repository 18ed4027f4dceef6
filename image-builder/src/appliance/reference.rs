//! What a machine's TPM will say after it booted the image: PCR 4, 7 and 11 to 13, and the file that says it, signed.
//!
//! | PCR | holds | predicted from |
//! |---|---|---|
//! | 4 | the programs that the firmware started (TCG PC Client Firmware Profile 3.3.4.5) | systemd-boot, the kernel image |
//! | 7 | secure boot's state, its keys, and the certificate that allowed the start (3.3.4.8) | the keys |
//! | 11 | the kernel image's sections, then the phases of the boot (systemd-stub(7), systemd-pcrphase.service(8)) | the kernel image |
//! | 12, 13 | what was added to a signed command line, and extensions of the system (systemd-stub(7)) | nothing: they stay zero |
//!
//! PCR 4 and 7 are those of firmware that starts the image from a fresh disk with our keys alone; a machine with more
//! keys or an option ROM has others, and its owner signs values of his own for it.

use std::collections::BTreeMap;

use attestation::tpm::{REFERENCE_PAYLOAD_TYPE, reference_to_sign};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::pe::{self, PeError, Section};

/// The phases that systemd measures into PCR 11 on the way up.
pub const PHASES: [&str; 4] = ["enter-initrd", "leave-initrd", "sysinit", "ready"];

/// Sections in the order in which systemd-stub measures them.
const MEASURED: [&str; 13] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey",
    ".profile", ".dtbauto", ".hwids",
];

const GLOBAL_VARIABLE: [u8; 16] = guid(
    0x8be4_df61,
    0x93ca,
    0x11d2,
    [0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c],
);
const IMAGE_SECURITY_DATABASE: [u8; 16] = guid(
    0xd719_b2cb,
    0x3d3a,
    0x4596,
    [0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f],
);

const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> [u8; 16] {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7],
    ]
}

/// A PCR of the SHA-256 bank while it is being predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pcr([u8; 32]);

impl Pcr {
    /// Extends it with the digest of `data`.
    pub fn measure(&mut self, data: &[u8]) {
        self.extend(&Sha256::digest(data).into());
    }

    /// Extends it with a digest.
    pub fn extend(&mut self, digest: &[u8; 32]) {
        self.0 = Sha256::new()
            .chain_update(self.0)
            .chain_update(digest)
            .finalize()
            .into();
    }

    /// The value in hex.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// PCRs that stay as they were at power on unless something was added to what is signed.
pub const UNTOUCHED: [&str; 2] = ["12", "13"];

/// PCR 4: the boot loader, then the kernel image, started from the first boot entry.
pub fn boot_programs(programs: &[&[u8]]) -> Result<Pcr, PeError> {
    let mut pcr = Pcr::default();
    pcr.measure(b"Calling EFI Application from Boot Option");
    pcr.measure(&[0; 4]);
    for program in programs {
        pcr.extend(&pe::authenticode(program)?);
    }
    Ok(pcr)
}

/// The lists of keys as they stand in the firmware's variables (`EFI_SIGNATURE_LIST`).
#[derive(Clone, Copy, Debug)]
pub struct KeyLists<'a> {
    /// The platform key.
    pub pk: &'a [u8],
    /// The key exchange key.
    pub kek: &'a [u8],
    /// The keys that sign images; the first one signs ours.
    pub db: &'a [u8],
}

/// PCR 7 of a machine that enrolled `keys` and started something signed with the first key of `db`.
pub fn secure_boot(keys: &KeyLists<'_>) -> Pcr {
    /// `EFI_SIGNATURE_LIST`'s header; behind it stands the first `EFI_SIGNATURE_DATA`.
    const LIST_HEADER: usize = 28;
    let mut pcr = Pcr::default();
    for (vendor, name, data) in [
        (&GLOBAL_VARIABLE, "SecureBoot", &[1][..]),
        (&GLOBAL_VARIABLE, "PK", keys.pk),
        (&GLOBAL_VARIABLE, "KEK", keys.kek),
        (&IMAGE_SECURITY_DATABASE, "db", keys.db),
        (&IMAGE_SECURITY_DATABASE, "dbx", &[]),
    ] {
        pcr.measure(&variable(vendor, name, data));
    }
    pcr.measure(&[0; 4]);
    let authority = keys.db.get(LIST_HEADER..).unwrap_or_default();
    pcr.measure(&variable(&IMAGE_SECURITY_DATABASE, "db", authority));
    pcr
}

/// `UEFI_VARIABLE_DATA`.
fn variable(vendor: &[u8; 16], name: &str, data: &[u8]) -> Vec<u8> {
    let mut out = vendor.to_vec();
    out.extend((name.len() as u64).to_le_bytes());
    out.extend((data.len() as u64).to_le_bytes());
    out.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    out.extend(data);
    out
}

/// What systemd-stub measures when it starts profile number `profile` of a kernel image, in its order.
pub fn measured_sections(uki: &[u8], profile: usize) -> Result<Vec<Section<'_>>, PeError> {
    let sections = pe::sections(uki)?;
    let mut groups = sections.split(|section| section.name == ".profile");
    let base = groups.next().unwrap_or_default();
    let starts: Vec<usize> = sections
        .iter()
        .enumerate()
        .filter(|(_, section)| section.name == ".profile")
        .map(|(index, _)| index)
        .collect();
    let own = match starts.get(profile) {
        Some(start) => {
            let end = starts.get(profile + 1).copied().unwrap_or(sections.len());
            &sections[*start..end]
        }
        None if profile == 0 => &[],
        None => return Err(PeError),
    };
    let chosen = MEASURED.iter().filter_map(|name| {
        let named = |section: &&Section<'_>| section.name == *name;
        own.iter()
            .find(named)
            .or_else(|| base.iter().find(named))
            .copied()
    });
    Ok(chosen.filter(|section| !section.content.is_empty()).collect())
}

/// PCR 11 after each of [`PHASES`].
pub fn kernel_image(sections: &[Section<'_>]) -> Vec<Pcr> {
    let mut pcr = Pcr::default();
    for section in sections {
        pcr.measure(format!("{}\0", section.name).as_bytes());
        pcr.measure(section.content);
    }
    let phases = PHASES.iter().map(|phase| {
        pcr.measure(phase.as_bytes());
        pcr
    });
    phases.collect()
}

/// The statement of one profile; the order of the fields is the order in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Always 1.
    pub version: u32,
    /// Image, version and profile, for people.
    pub image: String,
    /// Values by bank and PCR.
    pub pcrs: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// SHA-256 of each section of the kernel image that is measured.
    pub sections: BTreeMap<String, String>,
    /// The root's hash, which stands in `.cmdline`.
    pub verity_root_hash: String,
}

/// A DSSE envelope in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// [`REFERENCE_PAYLOAD_TYPE`].
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// The statement's bytes in base64.
    pub payload: String,
    /// One signature.
    pub signatures: Vec<Signature>,
}

/// A signature of an [`Envelope`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// SHA-256 of the signer's SubjectPublicKeyInfo, hex; a hint.
    pub keyid: String,
    /// ECDSA P-256 with SHA-256, DER in base64.
    pub sig: String,
}

impl Statement {
    /// The exact bytes that are signed inside the envelope.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers always serialise")
    }
}

impl Envelope {
    /// Puts a statement's bytes and their signature together.
    pub fn of(payload: &[u8], keyid: String, signature: &[u8]) -> Self {
        Self {
            payload_type: REFERENCE_PAYLOAD_TYPE.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![Signature {
                keyid,
                sig: STANDARD.encode(signature),
            }],
        }
    }

    /// Statement, what was signed, and the signature; `None` if it isn't an envelope of ours.
    pub fn open(&self) -> Option<(Statement, Vec<u8>, Vec<u8>)> {
        let payload = STANDARD.decode(&self.payload).ok()?;
        let signature = STANDARD.decode(&self.signatures.first()?.sig).ok()?;
        let statement = serde_json::from_slice(&payload).ok()?;
        (self.payload_type == REFERENCE_PAYLOAD_TYPE)
            .then(|| (statement, reference_to_sign(&payload), signature))
    }
}
