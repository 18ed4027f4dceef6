//! The opaque data of a report: NVIDIA's own fields, type-length-value. The types are those that NVIDIA's open
//! verifiers name (nvtrust, attestation-sdk).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::report::{Reader, ReportError};
use crate::show;

/// Field types with a meaning here.
pub(crate) mod field {
    pub(crate) const DRIVER_VERSION: u16 = 3;
    pub(crate) const VBIOS_VERSION: u16 = 6;
    pub(crate) const NVDEC0_STATUS: u16 = 11;
    pub(crate) const BOARD_ID: u16 = 14;
    pub(crate) const CHIP_SKU: u16 = 15;
    pub(crate) const CHIP_SKU_MOD: u16 = 16;
    pub(crate) const PROJECT: u16 = 17;
    pub(crate) const PROJECT_SKU: u16 = 18;
    pub(crate) const PROJECT_SKU_MOD: u16 = 19;
    pub(crate) const FWID: u16 = 20;
    pub(crate) const PROTECTED_PCIE: u16 = 21;
    pub(crate) const PDIS: u16 = 22;
    pub(crate) const SWITCH_GPU_PDIS: u16 = 26;
    pub(crate) const OPAQUE_DATA_VERSION: u16 = 34;
    pub(crate) const CHIP_INFO: u16 = 35;
    pub(crate) const FEATURE_FLAG: u16 = 36;
}

const ENABLED: u8 = 0xaa;
const DISABLED: u8 = 0x55;
const VERSION_MAX: u64 = 1;
const PDI_LEN: usize = 8;

/// The fields of the opaque data, each at most once. Those that this verifier doesn't know are kept as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opaque {
    fields: BTreeMap<u16, Vec<u8>>,
}

/// How a GPU in confidential computing runs (field 36, from version 1 of the opaque data on).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CcMode {
    /// Single GPU passthrough: one VM, one GPU, encrypted bus.
    Spt,
    /// Multi GPU passthrough: one VM, several GPUs, encrypted between them, too.
    Mpt,
    /// Protected PCIe: one VM, all GPUs of the machine; traffic between GPUs is *not* encrypted.
    Ppcie,
}

impl Opaque {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        let mut fields = BTreeMap::new();
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let kind = reader.u16("a field's type")?;
            let len = reader.u16("a field's length")?;
            let value = reader.take(len.into(), "a field of the opaque data")?;
            if fields.insert(kind, value.to_vec()).is_some() {
                return Err(ReportError::Opaque(format!("field {kind} twice")));
            }
        }
        let opaque = Self { fields };
        opaque.check()?;
        Ok(opaque)
    }

    /// That every known field has a readable value, so that the accessors below can't fail later.
    fn check(&self) -> Result<(), ReportError> {
        let wrong = |kind: u16, what: &str| Err(ReportError::Opaque(format!("field {kind} {what}")));
        match self.number(field::OPAQUE_DATA_VERSION) {
            Some(Some(version)) if version > VERSION_MAX => return Err(ReportError::OpaqueVersion(version)),
            Some(None) => return wrong(field::OPAQUE_DATA_VERSION, "isn't a number"),
            _ => {}
        }
        for kind in [
            field::DRIVER_VERSION,
            field::CHIP_SKU,
            field::CHIP_SKU_MOD,
            field::PROJECT,
            field::PROJECT_SKU,
            field::CHIP_INFO,
        ] {
            if self.get(kind).is_some() && self.text(kind).is_none() {
                return wrong(kind, "isn't text");
            }
        }
        if self.vbios_version().is_none() {
            return wrong(
                field::VBIOS_VERSION,
                "(the VBIOS version) is missing or unreadable",
            );
        }
        for kind in [field::NVDEC0_STATUS, field::PROTECTED_PCIE] {
            if self.get(kind).is_some() && self.switch(kind).is_none() {
                return wrong(kind, "is neither enabled (0xaa) nor disabled (0x55)");
            }
        }
        if self.get(field::FWID).is_some_and(|fwid| fwid.len() != 48) {
            return wrong(field::FWID, "isn't a SHA-384 digest");
        }
        if self
            .get(field::PDIS)
            .is_some_and(|pdis| pdis.len() % PDI_LEN != 0)
        {
            return wrong(field::PDIS, "isn't a list of 8-byte identifiers");
        }
        if self.get(field::FEATURE_FLAG).is_some() && self.cc_mode().is_none() && self.version() > 0 {
            return wrong(field::FEATURE_FLAG, "is no known mode");
        }
        Ok(())
    }

    /// A field's bytes.
    pub fn get(&self, kind: u16) -> Option<&[u8]> {
        self.fields.get(&kind).map(Vec::as_slice)
    }

    /// Version of the opaque data; 0 where the device doesn't say.
    pub fn version(&self) -> u64 {
        self.number(field::OPAQUE_DATA_VERSION).flatten().unwrap_or(0)
    }

    /// Whether the device is an NVSwitch: it has no driver.
    pub fn is_switch(&self) -> bool {
        self.get(field::DRIVER_VERSION).is_none()
    }

    /// The driver's version, like `590.48.01`. A switch has none.
    pub fn driver_version(&self) -> Option<&str> {
        self.text(field::DRIVER_VERSION)
    }

    /// The version of the VBIOS (of a switch: of its BIOS), like `96.00.9F.00.01`.
    pub fn vbios_version(&self) -> Option<String> {
        match self.get(field::VBIOS_VERSION)? {
            [d, c, b, a, e, _, _, _] => Some(format!("{a:02X}.{b:02X}.{c:02X}.{d:02X}.{e:02X}")),
            text => printable(text).map(str::to_owned),
        }
    }

    /// Digest of the firmware that runs the attestation, which the leaf certificate has, too.
    pub fn fwid(&self) -> Option<&[u8]> {
        self.get(field::FWID)
    }

    /// How confidential computing is set up, if the device says it.
    pub fn cc_mode(&self) -> Option<CcMode> {
        if self.version() == 0 {
            return None;
        }
        match self.number(field::FEATURE_FLAG)?? {
            0 => Some(CcMode::Spt),
            1 => Some(CcMode::Mpt),
            2 => Some(CcMode::Ppcie),
            _ => None,
        }
    }

    /// Whether the first video decoder is in use; its firmware's measurement (index 35 of a manifest) counts only then.
    pub fn nvdec0_enabled(&self) -> Option<bool> {
        self.switch(field::NVDEC0_STATUS)
    }

    /// Whether protected PCIe is on.
    pub fn protected_pcie(&self) -> Option<bool> {
        self.switch(field::PROTECTED_PCIE)
    }

    /// Identifiers of a GPU's switches (zero: none), or a switch's own.
    pub fn pdis(&self) -> impl Iterator<Item = &[u8]> {
        self.get(field::PDIS).unwrap_or_default().chunks(PDI_LEN)
    }

    /// The name under which NVIDIA keeps the reference manifest of this GPU's driver.
    pub fn driver_rim_id(&self, chip: &str) -> Option<String> {
        let version = self.driver_version()?;
        let prefix = if chip.starts_with("GH") {
            "NV_GPU_DRIVER"
        } else {
            "NV_GPU_CC_DRIVER"
        };
        Some(format!("{prefix}_{chip}_{version}"))
    }

    /// The name under which NVIDIA keeps the reference manifest of this GPU's VBIOS, or this switch's BIOS.
    pub fn vbios_rim_id(&self) -> Option<String> {
        let [project, project_sku, chip_sku] =
            [field::PROJECT, field::PROJECT_SKU, field::CHIP_SKU].map(|kind| self.text(kind));
        let version = self.vbios_version()?.replace('.', "");
        let prefix = if self.is_switch() {
            "NV_SWITCH_BIOS"
        } else {
            "NV_GPU_VBIOS"
        };
        Some(format!(
            "{prefix}_{}_{}_{}_{version}",
            project?, project_sku?, chip_sku?
        ))
    }

    /// The fields for showing.
    pub(crate) fn claims(&self) -> Value {
        let texts = [
            (field::CHIP_SKU, "chip-sku"),
            (field::CHIP_SKU_MOD, "chip-sku-mod"),
            (field::PROJECT, "project"),
            (field::PROJECT_SKU, "project-sku"),
            (field::CHIP_INFO, "chip-info"),
        ];
        let others = [
            (field::BOARD_ID, "board-id"),
            (field::PROJECT_SKU_MOD, "project-sku-mod"),
            (field::SWITCH_GPU_PDIS, "switch-gpu-pdis"),
        ];
        let name_in =
            |list: &[(u16, &'static str)], kind| list.iter().find(|(k, _)| *k == kind).map(|(_, name)| *name);
        let mut shown = serde_json::Map::new();
        for (kind, value) in &self.fields {
            match name_in(&texts, *kind) {
                Some(name) => shown.insert(name.to_owned(), json!(self.text(*kind))),
                None => {
                    let name = name_in(&others, *kind).map_or_else(|| format!("field-{kind}"), str::to_owned);
                    shown.insert(name, json!(show::hex(value)))
                }
            };
        }
        Value::Object(shown)
    }

    /// A little-endian number of at most 8 bytes; `Some(None)`: there, and too long.
    fn number(&self, kind: u16) -> Option<Option<u64>> {
        let bytes = self.get(kind)?;
        let mut number = [0; 8];
        let fits = number
            .get_mut(..bytes.len())
            .map(|low| low.copy_from_slice(bytes));
        Some(fits.map(|()| u64::from_le_bytes(number)))
    }

    pub(super) fn text(&self, kind: u16) -> Option<&str> {
        printable(self.get(kind)?).filter(|text| !text.is_empty())
    }

    fn switch(&self, kind: u16) -> Option<bool> {
        match self.get(kind)? {
            [ENABLED] => Some(true),
            [DISABLED] => Some(false),
            _ => None,
        }
    }
}

/// Printable ASCII, perhaps with zeros behind it.
fn printable(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    text.bytes()
        .all(|b| b.is_ascii_graphic() || b == b' ')
        .then_some(text)
}
