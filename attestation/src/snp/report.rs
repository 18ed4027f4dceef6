//! The attestation report (AMD 56860, `ATTESTATION_REPORT`): 1,184 bytes, of which the first 0x2A0 are signed.
//!
//! Holding a [`Report`] proves the length and nothing else. [`Report::format_checks`] says whether the rest has the
//! format of a version that is known here; [`super::authenticate`] whether AMD's key signed it.

use serde_json::{Value, json};

use super::{Product, TcbVersion, VekKind};
use crate::result::{Check, Reason};
use crate::show;

/// Length of a report.
pub const REPORT_LEN: usize = 0x4a0;
/// Bytes that the signature covers.
pub const SIGNED_LEN: usize = 0x2a0;
/// The versions that this verifier knows (4 was never issued to guests).
pub const VERSIONS: [u32; 3] = [2, 3, 5];
const SIGNATURE_R: usize = 0x2a0;
const SIGNATURE_S: usize = 0x2e8;
const SIGNATURE_COMPONENT: usize = 72;

/// Which bits of the guest policy have a meaning (bits 0–25); bit 17 must be one.
const POLICY_KNOWN: u64 = (1 << 26) - 1;
const POLICY_MUST_BE_ONE: u64 = 1 << 17;
/// Which bits of `AUTHOR_INFO` have a meaning: author key, masked chip key, signing key.
const AUTHOR_INFO_KNOWN: u32 = 0b1_1111;

/// Positions of the four TCB versions.
pub(crate) const TCB_FIELDS: [(&str, usize); 4] = [
    ("current", 0x38),
    ("reported", 0x180),
    ("committed", 0x1e0),
    ("launch", 0x1f0),
];

/// A report of the right length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    raw: Box<[u8; REPORT_LEN]>,
}

/// Bytes that are no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an SNP report has {REPORT_LEN} bytes, not {len}")]
pub struct ReportLength {
    /// Bytes found.
    pub len: usize,
}

/// Guest policy bits by name.
pub(crate) const POLICY_BITS: [(u32, &str); 10] = [
    (16, "smt-allowed"),
    (17, "must-be-one"),
    (18, "migrate-ma-allowed"),
    (19, "debug-allowed"),
    (20, "single-socket"),
    (21, "cxl-allowed"),
    (22, "aes-256-xts-required"),
    (23, "rapl-disabled-required"),
    (24, "ciphertext-hiding-required"),
    (25, "page-swap-disabled"),
];

/// `PLATFORM_INFO` bits by name.
pub(crate) const PLATFORM_BITS: [(u32, &str); 8] = [
    (0, "smt"),
    (1, "tsme"),
    (2, "ecc"),
    (3, "rapl-disabled"),
    (4, "ciphertext-hiding"),
    (5, "alias-check-complete"),
    (6, "iommu-write-safe"),
    (7, "sev-tio"),
];

impl Report {
    /// Takes exactly [`REPORT_LEN`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportLength> {
        let raw: [u8; REPORT_LEN] = bytes.try_into().map_err(|_| ReportLength { len: bytes.len() })?;
        Ok(Self { raw: Box::new(raw) })
    }

    /// The bytes as they came.
    pub fn raw(&self) -> &[u8; REPORT_LEN] {
        &self.raw
    }

    /// The bytes that the signature covers.
    pub fn signed(&self) -> &[u8] {
        &self.raw[..SIGNED_LEN]
    }

    /// `N` bytes at a position that is fixed by the format.
    fn at<const N: usize>(&self, offset: usize) -> [u8; N] {
        *self.raw[offset..]
            .first_chunk()
            .expect("every field lies inside the report")
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.at(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.at(offset))
    }

    /// `VERSION`.
    pub fn version(&self) -> u32 {
        self.u32(0)
    }

    /// `GUEST_SVN`.
    pub fn guest_svn(&self) -> u32 {
        self.u32(4)
    }

    /// `POLICY`.
    pub fn policy(&self) -> u64 {
        self.u64(8)
    }

    /// `FAMILY_ID`.
    pub fn family_id(&self) -> [u8; 16] {
        self.at(0x10)
    }

    /// `IMAGE_ID`.
    pub fn image_id(&self) -> [u8; 16] {
        self.at(0x20)
    }

    /// `VMPL`: the level that asked for the report; all ones when the host asked.
    pub fn vmpl(&self) -> u32 {
        self.u32(0x30)
    }

    /// `SIGNATURE_ALGO`: 1 is ECDSA P-384 with SHA-384.
    pub fn signature_algorithm(&self) -> u32 {
        self.u32(0x34)
    }

    /// `PLATFORM_INFO`.
    pub fn platform_info(&self) -> u64 {
        self.u64(0x40)
    }

    /// The word that says who signed: author key, masked chip key, signing key.
    pub fn author_info(&self) -> u32 {
        self.u32(0x48)
    }

    /// Which key signed, as the report says; `None`: no key, or an unknown one.
    pub fn signing_key(&self) -> Option<VekKind> {
        match self.author_info() >> 2 & 7 {
            0 => Some(VekKind::Vcek),
            1 => Some(VekKind::Vlek),
            _ => None,
        }
    }

    /// `REPORT_DATA`: the guest's own 64 bytes.
    pub fn report_data(&self) -> [u8; 64] {
        self.at(0x50)
    }

    /// `MEASUREMENT`: the launch digest.
    pub fn measurement(&self) -> [u8; 48] {
        self.at(0x90)
    }

    /// `HOST_DATA`: the host's 32 bytes at the launch.
    pub fn host_data(&self) -> [u8; 32] {
        self.at(0xc0)
    }

    /// `ID_KEY_DIGEST`.
    pub fn id_key_digest(&self) -> [u8; 48] {
        self.at(0xe0)
    }

    /// `AUTHOR_KEY_DIGEST`.
    pub fn author_key_digest(&self) -> [u8; 48] {
        self.at(0x110)
    }

    /// `REPORT_ID`.
    pub fn report_id(&self) -> [u8; 32] {
        self.at(0x140)
    }

    /// `REPORT_ID_MA`: all ones without a migration agent.
    pub fn report_id_ma(&self) -> [u8; 32] {
        self.at(0x160)
    }

    /// CPUID family, model and stepping; from version 3 on.
    pub fn cpuid(&self) -> Option<[u8; 3]> {
        (self.version() >= 3).then(|| self.at(0x188))
    }

    /// The product as the report itself says; version 2 doesn't.
    pub fn product(&self) -> Option<Product> {
        let [family, model, _] = self.cpuid()?;
        Product::from_cpuid(family, model)
    }

    /// `CHIP_ID`; all zero when masked.
    pub fn chip_id(&self) -> [u8; 64] {
        self.at(0x1a0)
    }

    /// Running firmware: major, minor, build.
    pub fn current_firmware(&self) -> [u8; 3] {
        let [build, minor, major] = self.at(0x1e8);
        [major, minor, build]
    }

    /// Committed firmware: major, minor, build.
    pub fn committed_firmware(&self) -> [u8; 3] {
        let [build, minor, major] = self.at(0x1ec);
        [major, minor, build]
    }

    /// `LAUNCH_MIT_VECTOR`, `CURRENT_MIT_VECTOR`; from version 5 on.
    pub fn mitigations(&self) -> Option<[u64; 2]> {
        (self.version() >= 5).then(|| [self.u64(0x1f8), self.u64(0x200)])
    }

    /// `CURRENT_TCB` in a product's layout.
    pub fn current_tcb(&self, product: Product) -> TcbVersion {
        TcbVersion::from_bytes(self.at(0x38), product)
    }

    /// `REPORTED_TCB` in a product's layout.
    pub fn reported_tcb(&self, product: Product) -> TcbVersion {
        TcbVersion::from_bytes(self.at(0x180), product)
    }

    /// `COMMITTED_TCB` in a product's layout.
    pub fn committed_tcb(&self, product: Product) -> TcbVersion {
        TcbVersion::from_bytes(self.at(0x1e0), product)
    }

    /// `LAUNCH_TCB` in a product's layout.
    pub fn launch_tcb(&self, product: Product) -> TcbVersion {
        TcbVersion::from_bytes(self.at(0x1f0), product)
    }

    /// The signature as r ‖ s, big-endian: what crypto libraries take.
    pub(crate) fn signature(&self) -> [u8; 96] {
        let mut signature = [0; 96];
        for n in 0..48 {
            signature[47 - n] = self.raw[SIGNATURE_R + n];
            signature[95 - n] = self.raw[SIGNATURE_S + n];
        }
        signature
    }

    /// Whether everything that needs no key is as a known version has it. The layout of TCB versions is `product`'s.
    pub(crate) fn format_checks(&self, product: Option<Product>) -> Vec<Check> {
        let version = self.version();
        let known_version = VERSIONS.contains(&version);
        let algorithm = self.signature_algorithm();
        let stray = self.stray_bytes(product);
        let places = || {
            stray
                .iter()
                .map(|place| format!("{place:#x}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let found = if stray.is_empty() {
            "zero".to_owned()
        } else {
            format!("set at {}", places())
        };
        let versions = VERSIONS.map(|v| v.to_string()).join(" or ");
        vec![
            Check::of(
                "format.version",
                known_version,
                Reason::UnsupportedVersion,
                versions,
                version,
            ),
            Check::of(
                "format.algorithm",
                algorithm == 1,
                Reason::UnsupportedAlgorithm,
                1,
                algorithm,
            ),
            Check::of(
                "format.reserved",
                stray.is_empty(),
                Reason::Malformed,
                "zero",
                found,
            ),
        ]
    }

    /// Positions of bytes with reserved bits that aren't what they must be; at most eight.
    fn stray_bytes(&self, product: Option<Product>) -> Vec<usize> {
        let fields_end = match self.version() {
            5 => 0x208,
            _ => 0x1f8,
        };
        let cpuid_end = if self.version() >= 3 { 0x18b } else { 0x188 };
        let mut reserved: Vec<std::ops::Range<usize>> = vec![
            0x4c..0x50,
            cpuid_end..0x1a0,
            0x1eb..0x1ec,
            0x1ef..0x1f0,
            fields_end..SIGNED_LEN,
            SIGNATURE_R + 48..SIGNATURE_R + SIGNATURE_COMPONENT,
            SIGNATURE_S + 48..REPORT_LEN,
        ];
        if let Some(product) = product {
            let inside = TcbVersion::reserved(product);
            reserved.extend(TCB_FIELDS.map(|(_, offset)| offset + inside.start..offset + inside.end));
        }
        let mut stray: Vec<usize> = reserved
            .into_iter()
            .flatten()
            .filter(|at| self.raw[*at] != 0)
            .collect();
        if self.policy() & !POLICY_KNOWN != 0 || self.policy() & POLICY_MUST_BE_ONE == 0 {
            stray.push(8);
        }
        if self.author_info() & !AUTHOR_INFO_KNOWN != 0 {
            stray.push(0x48);
        }
        stray.sort_unstable();
        stray.truncate(8);
        stray
    }

    /// Every field, decoded. TCB versions in `product`'s layout, or as bytes where it isn't known.
    pub fn claims(&self, product: Option<Product>) -> Value {
        let tcb = |offset: usize| match product {
            Some(product) => json!(TcbVersion::from_bytes(self.at(offset), product)),
            None => json!(show::hex(self.at::<8>(offset))),
        };
        let firmware = |[major, minor, build]: [u8; 3]| format!("{major}.{minor}.{build}");
        let info = self.author_info();
        json!({
            "kind": "sev-snp",
            "version": self.version(),
            "product": product,
            "guest_svn": self.guest_svn(),
            "policy": {
                "value": format!("{:#x}", self.policy()),
                "abi": format!("{}.{}", self.policy() >> 8 & 0xff, self.policy() & 0xff),
                "bits": names(self.policy(), &POLICY_BITS),
            },
            "family_id": show::hex(self.family_id()),
            "image_id": show::hex(self.image_id()),
            "vmpl": self.vmpl(),
            "signature_algorithm": self.signature_algorithm(),
            "platform_info": {
                "value": format!("{:#x}", self.platform_info()),
                "bits": names(self.platform_info(), &PLATFORM_BITS),
            },
            "author_key_present": info & 1 == 1,
            "chip_key_masked": info >> 1 & 1 == 1,
            "signing_key": self.signing_key(),
            "report_data": show::hex(self.report_data()),
            "measurement": show::hex(self.measurement()),
            "host_data": show::hex(self.host_data()),
            "id_key_digest": show::hex(self.id_key_digest()),
            "author_key_digest": show::hex(self.author_key_digest()),
            "report_id": show::hex(self.report_id()),
            "report_id_ma": show::hex(self.report_id_ma()),
            "cpuid": self.cpuid().map(|[family, model, stepping]| json!({
                "family": family, "model": model, "stepping": stepping,
            })),
            "chip_id": show::hex(self.chip_id()),
            "tcb": {
                "current": tcb(0x38),
                "reported": tcb(0x180),
                "committed": tcb(0x1e0),
                "launch": tcb(0x1f0),
            },
            "firmware": {
                "current": firmware(self.current_firmware()),
                "committed": firmware(self.committed_firmware()),
            },
            "mitigations": self.mitigations().map(|[launch, current]| json!({
                "launch": format!("{launch:#x}"), "current": format!("{current:#x}"),
            })),
        })
    }
}

fn names(value: u64, table: &[(u32, &'static str)]) -> Vec<&'static str> {
    table
        .iter()
        .filter(|(bit, _)| value >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect()
}
