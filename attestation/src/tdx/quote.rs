//! The quote (Intel, "TDX DCAP: Quote Generation Library and Quote Verification Library", appendix 3): version 4 and 5.
//!
//! ```text
//! header 48 ‖ [v5: body type u16 ‖ body size u32] ‖ TD report body          ← signed by the attestation key
//! ‖ u32 length ‖ signature 64 ‖ attestation key 64
//!   ‖ type 6 u16 ‖ u32 length ‖ QE report 384                               ← signed by the PCK
//!       ‖ its signature 64 ‖ u16 length ‖ QE authentication data
//!       ‖ type 5 u16 ‖ u32 length ‖ PCK certificate chain
//! ```
//!
//! Nothing signs the lengths, the types and what is behind the end, so all of them must be exactly as the format has
//! them. Where a header doesn't fit the rest, the layout that the lengths describe is taken: then the signature check
//! says its word, too, and the result lists every fault.

use serde_json::{Value, json};

use crate::result::{Check, Reason};
use crate::show;

/// Intel's quoting enclave, in the header.
const INTEL_VENDOR: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
const HEADER_LEN: usize = 48;
const BODY_HEAD_LEN: usize = 6;
const TEE_SGX: u32 = 0;
const TEE_TDX: u32 = 0x81;
/// ECDSA P-256 with SHA-256.
const KEY_TYPE: u16 = 2;
const CERTIFICATION_QE_REPORT: u16 = 6;
const CERTIFICATION_PCK_CHAIN: u16 = 5;
/// Length of a TDREPORT, which a TD gets from its module: a MAC, not a signature.
const TDREPORT_LEN: usize = 1024;
/// The longest quote that is looked at; real ones have about 5 KiB.
pub(crate) const QUOTE_LEN_MAX: usize = 64 * 1024;

/// What TD report body a quote has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyKind {
    /// Quote version 4, or version 5 with type 2.
    Td10,
    /// Type 3: adds `TEE_TCB_SVN2` and `MRSERVICETD`.
    Td15,
    /// Type 4: adds the TD's identity and what its service TDs were at its creation.
    Td15Ex,
}

impl BodyKind {
    const ALL: [Self; 3] = [Self::Td10, Self::Td15, Self::Td15Ex];

    fn len(self) -> usize {
        match self {
            Self::Td10 => 584,
            Self::Td15 => 648,
            Self::Td15Ex => 885,
        }
    }

    fn id(self) -> u16 {
        match self {
            Self::Td10 => 2,
            Self::Td15 => 3,
            Self::Td15Ex => 4,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Td10 => "TD 1.0",
            Self::Td15 => "TD 1.5",
            Self::Td15Ex => "TD 1.5ex",
        }
    }
}

/// Where the body lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    version: u16,
    body: BodyKind,
}

impl Layout {
    const ALL: [Self; 4] = [
        Self {
            version: 4,
            body: BodyKind::Td10,
        },
        Self {
            version: 5,
            body: BodyKind::Td10,
        },
        Self {
            version: 5,
            body: BodyKind::Td15,
        },
        Self {
            version: 5,
            body: BodyKind::Td15Ex,
        },
    ];

    fn body_start(self) -> usize {
        if self.version == 4 {
            HEADER_LEN
        } else {
            HEADER_LEN + BODY_HEAD_LEN
        }
    }

    fn signed_len(self) -> usize {
        self.body_start() + self.body.len()
    }

    /// As a header says it; `None`: one that isn't known.
    fn said_by(quote: &[u8]) -> Option<Self> {
        match u16_at(quote, 0)? {
            4 => Some(Self {
                version: 4,
                body: BodyKind::Td10,
            }),
            5 => {
                let kind = u16_at(quote, HEADER_LEN)?;
                let body = BodyKind::ALL.into_iter().find(|body| body.id() == kind)?;
                Some(Self { version: 5, body })
            }
            _ => None,
        }
    }
}

/// A quote whose parts lie where they must. Holding one proves nothing but that; see [`Quote::format_checks`].
#[derive(Clone, Debug)]
pub(crate) struct Quote<'a> {
    raw: &'a [u8],
    layout: Layout,
    pub(crate) signature: [u8; 64],
    /// x ‖ y, big-endian.
    pub(crate) attestation_key: [u8; 64],
    outer_type: u16,
    pub(crate) qe_report: QeReport<'a>,
    pub(crate) qe_report_signature: [u8; 64],
    pub(crate) qe_auth_data: &'a [u8],
    inner_type: u16,
    /// What should be the PCK certificate chain.
    pub(crate) pck_chain: &'a [u8],
    /// Faults of lengths, as sentences.
    faults: Vec<String>,
    trailing: &'a [u8],
}

/// Bytes that are no TDX quote: the reason, and a sentence.
pub(crate) type NoQuote = (Reason, String);

/// The report of the quoting enclave: an SGX enclave report, 384 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QeReport<'a>(pub(crate) &'a [u8; 384]);

impl QeReport<'_> {
    fn at<const N: usize>(&self, offset: usize) -> [u8; N] {
        *self.0[offset..]
            .first_chunk()
            .expect("every field lies inside the report")
    }

    pub(crate) fn misc_select(&self) -> [u8; 4] {
        self.at(16)
    }

    pub(crate) fn attributes(&self) -> [u8; 16] {
        self.at(48)
    }

    pub(crate) fn mr_enclave(&self) -> [u8; 32] {
        self.at(64)
    }

    pub(crate) fn mr_signer(&self) -> [u8; 32] {
        self.at(128)
    }

    pub(crate) fn isv_prod_id(&self) -> u16 {
        u16::from_le_bytes(self.at(256))
    }

    pub(crate) fn isv_svn(&self) -> u16 {
        u16::from_le_bytes(self.at(258))
    }

    /// 32 bytes that bind the attestation key, and 32 that must be zero.
    pub(crate) fn report_data(&self) -> [u8; 64] {
        self.at(320)
    }

    /// `ATTRIBUTES.DEBUG`.
    pub(crate) fn is_debug(&self) -> bool {
        self.attributes()[0] & 2 != 0
    }

    fn claims(&self) -> Value {
        json!({
            "mr_enclave": show::hex(self.mr_enclave()),
            "mr_signer": show::hex(self.mr_signer()),
            "isv_prod_id": self.isv_prod_id(),
            "isv_svn": self.isv_svn(),
            "attributes": show::hex(self.attributes()),
            "misc_select": show::hex(self.misc_select()),
        })
    }
}

/// Takes slices from the front; every end is an error.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        self.take(N)?.first_chunk()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().copied().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(*self.array()?)).ok()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// Whether bytes are a DCAP quote, whole or not, or something else of Intel's that gets mistaken for one.
pub(crate) fn recognise(content: &[u8]) -> bool {
    let vendor = content.get(12..28) == Some(&INTEL_VENDOR);
    let version = u16_at(content, 0).is_some_and(|version| (3..=5).contains(&version));
    let tee = u32_at(content, 4).is_some_and(|tee| tee == TEE_TDX || tee == TEE_SGX);
    let key = u16_at(content, 2).is_some_and(|key| key == 2 || key == 3);
    vendor || version && key && tee || content.len() == TDREPORT_LEN
}

impl<'a> Quote<'a> {
    pub(crate) fn parse(raw: &'a [u8]) -> Result<Self, NoQuote> {
        if raw.len() > QUOTE_LEN_MAX {
            let what = format!("{} bytes; a quote has at most {QUOTE_LEN_MAX}", raw.len());
            return Err((Reason::Malformed, what));
        }
        let said = Layout::said_by(raw);
        let others = Layout::ALL.into_iter().filter(|layout| Some(*layout) != said);
        let candidates = || said.into_iter().chain(others);
        let mut best: Option<Self> = None;
        for layout in candidates() {
            if let Some(quote) = Self::read(raw, layout) {
                if quote.is_exact() {
                    return Ok(quote);
                }
                // The layout that the header names comes first, and is the one whose faults are told.
                best = best.or(Some(quote));
            }
        }
        best.filter(|quote| Some(quote.layout) == said)
            .ok_or_else(|| not_a_quote(raw))
    }

    /// Whether the parts that nothing signs are as they must be: this layout is the one that was written.
    fn is_exact(&self) -> bool {
        self.faults.is_empty()
            && self.outer_type == CERTIFICATION_QE_REPORT
            && self.trailing.iter().all(|byte| *byte == 0)
    }

    fn read(raw: &'a [u8], layout: Layout) -> Option<Self> {
        let mut faults = Vec::new();
        let mut rest = Cursor(raw.get(layout.signed_len()..)?);
        // Each length is of what follows; a wrong one is a fault, and the bytes that there are get read all the same.
        let mut inside = |cursor: &mut Cursor<'a>, len: usize, what: &str| match cursor.take(len) {
            Some(part) => Cursor(part),
            None => {
                faults.push(format!("{what} of {len} bytes where {} are left", cursor.0.len()));
                Cursor(std::mem::take(&mut cursor.0))
            }
        };
        let len = rest.u32()?;
        let mut data = inside(&mut rest, len, "signature data");
        let trailing = rest.0;
        let signature = *data.array()?;
        let attestation_key = *data.array()?;
        let outer_type = data.u16()?;
        let len = data.u32()?;
        let mut certification = inside(&mut data, len, "certification data");
        let behind_certification = data.0.len();
        let qe_report = QeReport(certification.array()?);
        let qe_report_signature = *certification.array()?;
        let len = usize::from(certification.u16()?);
        let qe_auth_data = certification.take(len)?;
        let inner_type = certification.u16()?;
        let len = certification.u32()?;
        let pck_chain = inside(&mut certification, len, "PCK certificate chain").0;
        let behind_chain = certification.0.len();
        for (behind, what) in [
            (behind_certification, "the certification data"),
            (behind_chain, "the PCK certificate chain"),
        ] {
            if behind != 0 {
                faults.push(format!("{behind} bytes behind {what}"));
            }
        }
        Some(Self {
            raw,
            layout,
            signature,
            attestation_key,
            outer_type,
            qe_report,
            qe_report_signature,
            qe_auth_data,
            inner_type,
            pck_chain,
            faults,
            trailing,
        })
    }

    /// How many zeros are behind the end, if nothing else is.
    pub(crate) fn padding(&self) -> usize {
        match self.trailing.iter().all(|byte| *byte == 0) {
            true => self.trailing.len(),
            false => 0,
        }
    }

    /// The bytes that the attestation key signed.
    pub(crate) fn signed(&self) -> &'a [u8] {
        &self.raw[..self.layout.signed_len()]
    }

    pub(crate) fn body(&self) -> TdReport<'a> {
        let start = self.layout.body_start();
        TdReport {
            bytes: &self.raw[start..start + self.layout.body.len()],
            kind: self.layout.body,
        }
    }

    fn version(&self) -> u16 {
        u16_at(self.raw, 0).unwrap_or_default()
    }

    fn key_type(&self) -> u16 {
        u16_at(self.raw, 2).unwrap_or_default()
    }

    fn tee_type(&self) -> u32 {
        u32_at(self.raw, 4).unwrap_or_default()
    }

    /// Whether what needs no key is as the format has it. `padding`: zeros behind the end are accepted.
    pub(crate) fn format_checks(&self, padding: bool) -> Vec<Check> {
        let (version, key_type, tee) = (self.version(), self.key_type(), self.tee_type());
        let fits = self.layout.version == version;
        let version_check = Check::of(
            "format.version",
            fits,
            Reason::UnsupportedVersion,
            "4 or 5",
            version,
        );
        let algorithm = Check::of(
            "format.algorithm",
            key_type == KEY_TYPE,
            Reason::UnsupportedAlgorithm,
            "2 (ECDSA P-256)",
            key_type,
        );
        let (expected, found) = (format!("{TEE_TDX:#x} (TDX)"), format!("{tee:#x}"));
        let tee_check = Check::of("format.tee", tee == TEE_TDX, Reason::NotAQuote, expected, found);
        let vendor = self.raw.get(12..28).unwrap_or_default();
        let vendor = Check::of(
            "format.vendor",
            vendor == INTEL_VENDOR,
            Reason::Malformed,
            show::hex(INTEL_VENDOR),
            show::hex(vendor),
        );
        let mut checks = vec![version_check, algorithm, tee_check, vendor];
        if self.layout.version == 5 {
            let said = (u16_at(self.raw, HEADER_LEN), u32_at(self.raw, HEADER_LEN + 2));
            let body = self.layout.body;
            let holds = said == (Some(body.id()), u32::try_from(body.len()).ok());
            let expected = format!("type {} of {} bytes ({})", body.id(), body.len(), body.name());
            let (kind, len) = (said.0.unwrap_or_default(), said.1.unwrap_or_default());
            let found = format!("type {kind} of {len} bytes");
            checks.push(Check::of(
                "format.body",
                holds,
                Reason::Malformed,
                expected,
                found,
            ));
        }
        checks.push(self.structure(padding));
        checks
    }

    fn structure(&self, padding: bool) -> Check {
        let mut faults = self.faults.clone();
        if self.outer_type != CERTIFICATION_QE_REPORT {
            faults.push(format!(
                "certification data of type {}, not {CERTIFICATION_QE_REPORT}",
                self.outer_type
            ));
        }
        if self.inner_type != CERTIFICATION_PCK_CHAIN {
            faults.push(format!(
                "PCK certification data of type {}, not {CERTIFICATION_PCK_CHAIN} (certificate chain)",
                self.inner_type
            ));
        }
        let zeros = self.trailing.iter().all(|byte| *byte == 0);
        if !(self.trailing.is_empty() || zeros && padding) {
            let what = if zeros { "zeros" } else { "bytes" };
            faults.push(format!("{} {what} behind the quote", self.trailing.len()));
        }
        let found = if faults.is_empty() {
            "as the format has them".to_owned()
        } else {
            faults.join("; ")
        };
        let expected = "lengths and types that fit each other, and nothing behind the end";
        Check::of(
            "format.structure",
            faults.is_empty(),
            Reason::Malformed,
            expected,
            found,
        )
    }

    /// Every field, decoded.
    pub(crate) fn claims(&self) -> Value {
        let mut claims = self.body().claims();
        claims["kind"] = json!("tdx");
        claims["version"] = json!(self.version());
        claims["body"] = json!(self.layout.body.name());
        claims["quoting_enclave"] = self.qe_report.claims();
        claims
    }
}

/// What bytes are that no layout fits.
fn not_a_quote(raw: &[u8]) -> NoQuote {
    let (version, tee) = (u16_at(raw, 0), u32_at(raw, 4));
    if raw.len() == TDREPORT_LEN && raw.get(12..28) != Some(&INTEL_VENDOR) {
        let what = "a TDREPORT: only the machine that made it can check it; the quote made from it is needed";
        return (Reason::NotAQuote, what.to_owned());
    }
    if tee == Some(TEE_SGX) && version.is_some_and(|version| (3..=5).contains(&version)) {
        return (
            Reason::NotAQuote,
            "an SGX quote: it speaks of an enclave, not of a TD".to_owned(),
        );
    }
    match version {
        Some(version @ (4 | 5)) => {
            let what = format!(
                "{} bytes that don't hold a whole TDX quote of version {version}",
                raw.len()
            );
            (Reason::Malformed, what)
        }
        Some(version) if tee == Some(TEE_TDX) => (
            Reason::UnsupportedVersion,
            format!("quote version {version}; known are 4 and 5"),
        ),
        _ => (
            Reason::Malformed,
            format!("{} bytes that are no TDX quote", raw.len()),
        ),
    }
}

/// Attribute bits of a TD by name (TDX module ABI 348551, table "ATTRIBUTES").
pub(crate) const ATTRIBUTE_BITS: [(u32, &str); 13] = [
    (0, "debug"),
    (4, "hgs-plus-profiling"),
    (5, "perf-profiling"),
    (6, "pmt-profiling"),
    (16, "icssd"),
    (17, "service-td-ext"),
    (27, "lass"),
    (28, "sept-ve-disable"),
    (29, "migratable"),
    (30, "pks"),
    (31, "kl"),
    (62, "tpa"),
    (63, "perfmon"),
];

/// The TD report body: what the TDX module says about the TD.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TdReport<'a> {
    bytes: &'a [u8],
    kind: BodyKind,
}

impl TdReport<'_> {
    fn at<const N: usize>(&self, offset: usize) -> [u8; N] {
        *self.bytes[offset..]
            .first_chunk()
            .expect("every field lies inside the body")
    }

    /// SVNs of the TDX module and of what it rests on, at the TD's launch.
    pub(crate) fn tee_tcb_svn(&self) -> [u8; 16] {
        self.at(0)
    }

    pub(crate) fn mr_seam(&self) -> [u8; 48] {
        self.at(16)
    }

    pub(crate) fn mr_signer_seam(&self) -> [u8; 48] {
        self.at(64)
    }

    pub(crate) fn seam_attributes(&self) -> [u8; 8] {
        self.at(112)
    }

    pub(crate) fn attributes(&self) -> u64 {
        u64::from_le_bytes(self.at(120))
    }

    pub(crate) fn xfam(&self) -> u64 {
        u64::from_le_bytes(self.at(128))
    }

    pub(crate) fn mr_td(&self) -> [u8; 48] {
        self.at(136)
    }

    pub(crate) fn mr_config_id(&self) -> [u8; 48] {
        self.at(184)
    }

    pub(crate) fn mr_owner(&self) -> [u8; 48] {
        self.at(232)
    }

    pub(crate) fn mr_owner_config(&self) -> [u8; 48] {
        self.at(280)
    }

    pub(crate) fn rtmrs(&self) -> [[u8; 48]; 4] {
        [self.at(328), self.at(376), self.at(424), self.at(472)]
    }

    pub(crate) fn report_data(&self) -> [u8; 64] {
        self.at(520)
    }

    /// SVNs now, which differ from those at the launch after an update that preserved the TD; from TD 1.5 on.
    pub(crate) fn tee_tcb_svn2(&self) -> Option<[u8; 16]> {
        (self.kind != BodyKind::Td10).then(|| self.at(584))
    }

    /// From TD 1.5 on.
    pub(crate) fn mr_service_td(&self) -> Option<[u8; 48]> {
        (self.kind != BodyKind::Td10).then(|| self.at(600))
    }

    /// The service TDs bound now; TD 1.5ex only.
    pub(crate) fn current_service_td(&self) -> Option<[u8; 48]> {
        (self.kind == BodyKind::Td15Ex).then(|| self.at(829))
    }

    fn claims(&self) -> Value {
        let names: Vec<&str> = ATTRIBUTE_BITS
            .iter()
            .filter(|(bit, _)| {
                self.attributes()
                    .checked_shr(*bit)
                    .is_some_and(|rest| rest & 1 == 1)
            })
            .map(|(_, name)| *name)
            .collect();
        let [rtmr0, rtmr1, rtmr2, rtmr3] = self.rtmrs().map(show::hex);
        let mut claims = json!({
            "tee_tcb_svn": show::hex(self.tee_tcb_svn()),
            "mr_seam": show::hex(self.mr_seam()),
            "mr_signer_seam": show::hex(self.mr_signer_seam()),
            "seam_attributes": show::hex(self.seam_attributes()),
            "td_attributes": { "value": format!("{:#x}", self.attributes()), "bits": names },
            "xfam": format!("{:#x}", self.xfam()),
            "mr_td": show::hex(self.mr_td()),
            "mr_config_id": show::hex(self.mr_config_id()),
            "mr_owner": show::hex(self.mr_owner()),
            "mr_owner_config": show::hex(self.mr_owner_config()),
            "rtmr0": rtmr0,
            "rtmr1": rtmr1,
            "rtmr2": rtmr2,
            "rtmr3": rtmr3,
            "report_data": show::hex(self.report_data()),
            "measurement": show::hex(super::measurement(self.mr_td(), self.rtmrs())),
            "tee_tcb_svn2": self.tee_tcb_svn2().map(show::hex),
            "mr_service_td": self.mr_service_td().map(show::hex),
        });
        if self.kind == BodyKind::Td15Ex {
            claims["vm_id"] = json!(self.bytes[648]);
            for (name, at, len) in [
                ("td_id", 649, 32),
                ("device_info", 681, 48),
                ("initial_service_td_hash", 729, 48),
                ("initial_service_td_attributes", 777, 8),
                ("initial_cpu_svn", 785, 16),
                ("initial_tee_tcb_svn", 801, 16),
                ("initial_tee_fmspc", 817, 12),
                ("current_service_td_hash", 829, 48),
                ("current_service_td_attributes", 877, 8),
            ] {
                claims[name] = json!(show::hex(&self.bytes[at..at + len]));
            }
        }
        claims
    }
}
