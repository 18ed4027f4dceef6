//! The processor lines that make SNP reports; they differ in root keys and in the layout of a TCB version.

use std::fmt;

/// A product line, as AMD's key hierarchy divides them (AMD 57230, "VCEK Certificate and KDS Interface").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004: Genoa, Bergamo, Siena.
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl Product {
    /// All that this verifier knows.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// From CPUID's family and model as a report (version 3 on) gives them.
    pub fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Self::Genoa),
            (0x1a, 0x00..=0x11) => Some(Self::Turin),
            _ => None,
        }
    }

    /// From the common name of an intermediate (`SEV-Milan`, `SEV-VLEK-Milan`).
    pub(crate) fn from_intermediate(common_name: &str) -> Option<Self> {
        let name = common_name.strip_prefix("SEV-")?;
        let name = name.strip_prefix("VLEK-").unwrap_or(name);
        Self::ALL.into_iter().find(|product| product.name() == name)
    }

    /// Whether a VEK's product-name extension (`Milan-B0`, `Genoa`, `Siena-A0`) belongs to this line.
    pub(crate) fn owns_name(self, name: &str) -> bool {
        let line = name.split('-').next().unwrap_or_default();
        match self {
            Self::Milan => line == "Milan",
            Self::Genoa => matches!(line, "Genoa" | "Bergamo" | "Siena"),
            Self::Turin => line == "Turin",
        }
    }

    /// The name in AMD's certificates.
    pub fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }
}

/// The name in AMD's certificates, in any case.
impl std::str::FromStr for Product {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |product: &Self| product.name().eq_ignore_ascii_case(text);
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| "milan, genoa or turin".to_owned())
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
