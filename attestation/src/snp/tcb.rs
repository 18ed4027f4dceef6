//! TCB versions: five security version numbers in eight bytes, in an order that depends on the product.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Product;

/// One part of a TCB version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcbPart {
    /// FMC (Turin on).
    Fmc,
    /// Bootloader.
    Bootloader,
    /// TEE (PSP OS).
    Tee,
    /// SNP firmware.
    Snp,
    /// Microcode.
    Microcode,
}

/// A TCB version (AMD 56860, `TCB_VERSION`). It has no order of its own: versions are compared part by part, since a
/// higher bootloader doesn't make up for older microcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TcbVersion {
    /// FMC; only Turin has one.
    pub fmc: Option<u8>,
    /// Bootloader.
    pub bootloader: u8,
    /// TEE (PSP OS).
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Microcode.
    pub microcode: u8,
}

/// A floor for each part of a TCB version; a part left out is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcbFloor {
    /// FMC. A floor for it refuses every product that has none.
    pub fmc: Option<u8>,
    /// Bootloader.
    pub bootloader: Option<u8>,
    /// TEE (PSP OS).
    pub tee: Option<u8>,
    /// SNP firmware.
    pub snp: Option<u8>,
    /// Microcode.
    pub microcode: Option<u8>,
}

/// Floors for the three TCB versions that count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcbFloors {
    /// `REPORTED_TCB`: what the signing key is derived from.
    pub reported: TcbFloor,
    /// `COMMITTED_TCB`: below it the machine can't be rolled back.
    pub committed: TcbFloor,
    /// `LAUNCH_TCB`: what ran when the VM was launched.
    pub launch: TcbFloor,
}

impl TcbVersion {
    /// Reads the eight bytes in the product's layout. Bytes that the layout reserves are not looked at here.
    pub fn from_bytes(bytes: [u8; 8], product: Product) -> Self {
        match product {
            Product::Milan | Product::Genoa => {
                let [bootloader, tee, _, _, _, _, snp, microcode] = bytes;
                Self {
                    fmc: None,
                    bootloader,
                    tee,
                    snp,
                    microcode,
                }
            }
            Product::Turin => {
                let [fmc, bootloader, tee, snp, _, _, _, microcode] = bytes;
                Self {
                    fmc: Some(fmc),
                    bootloader,
                    tee,
                    snp,
                    microcode,
                }
            }
        }
    }

    /// The eight bytes in the product's layout.
    pub fn to_bytes(self, product: Product) -> [u8; 8] {
        match product {
            Product::Milan | Product::Genoa => {
                [self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode]
            }
            Product::Turin => [
                self.fmc.unwrap_or(0),
                self.bootloader,
                self.tee,
                self.snp,
                0,
                0,
                0,
                self.microcode,
            ],
        }
    }

    /// Positions that the product's layout reserves.
    pub(crate) fn reserved(product: Product) -> std::ops::Range<usize> {
        match product {
            Product::Milan | Product::Genoa => 2..6,
            Product::Turin => 4..7,
        }
    }

    /// Its parts, in a fixed order; FMC only where there is one.
    pub fn parts(self) -> impl Iterator<Item = (TcbPart, u8)> {
        [
            (TcbPart::Fmc, self.fmc),
            (TcbPart::Bootloader, Some(self.bootloader)),
            (TcbPart::Tee, Some(self.tee)),
            (TcbPart::Snp, Some(self.snp)),
            (TcbPart::Microcode, Some(self.microcode)),
        ]
        .into_iter()
        .filter_map(|(part, value)| Some((part, value?)))
    }

    /// The parts in which this version is above `other`.
    pub fn parts_above(self, other: Self) -> Vec<TcbPart> {
        let theirs = |part| {
            other
                .parts()
                .find(|(p, _)| *p == part)
                .map_or(0, |(_, value)| value)
        };
        self.parts()
            .filter(|(part, value)| *value > theirs(*part))
            .map(|(part, _)| part)
            .collect()
    }
}

impl TcbFloor {
    /// Whether it asks for anything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn parts(self) -> impl Iterator<Item = (TcbPart, u8)> {
        [
            (TcbPart::Fmc, self.fmc),
            (TcbPart::Bootloader, self.bootloader),
            (TcbPart::Tee, self.tee),
            (TcbPart::Snp, self.snp),
            (TcbPart::Microcode, self.microcode),
        ]
        .into_iter()
        .filter_map(|(part, value)| Some((part, value?)))
    }

    /// The higher of both, part by part.
    pub fn raised(self, other: Self) -> Self {
        Self {
            fmc: self.fmc.max(other.fmc),
            bootloader: self.bootloader.max(other.bootloader),
            tee: self.tee.max(other.tee),
            snp: self.snp.max(other.snp),
            microcode: self.microcode.max(other.microcode),
        }
    }

    /// The parts in which `version` is below this floor, with the floor and what was found.
    pub fn violations(self, version: TcbVersion) -> Vec<(TcbPart, u8, Option<u8>)> {
        self.parts()
            .map(|(part, floor)| {
                (
                    part,
                    floor,
                    version.parts().find(|(p, _)| *p == part).map(|(_, v)| v),
                )
            })
            .filter(|(_, floor, found)| found.is_none_or(|found| found < *floor))
            .collect()
    }
}

impl TcbFloors {
    /// One floor for all three.
    pub fn all(floor: TcbFloor) -> Self {
        Self {
            reported: floor,
            committed: floor,
            launch: floor,
        }
    }
}

impl fmt::Display for TcbPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fmc => "fmc",
            Self::Bootloader => "bootloader",
            Self::Tee => "tee",
            Self::Snp => "snp",
            Self::Microcode => "microcode",
        })
    }
}

impl fmt::Display for TcbVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.parts(), f)
    }
}

impl fmt::Display for TcbFloor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.parts(), f)
    }
}

fn show(parts: impl Iterator<Item = (TcbPart, u8)>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (n, (part, value)) in parts.enumerate() {
        write!(f, "{}{part} {value}", if n == 0 { "" } else { ", " })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_put_the_parts_where_the_product_has_them() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        let milan = TcbVersion::from_bytes(bytes, Product::Milan);
        assert_eq!(
            milan,
            TcbVersion {
                fmc: None,
                bootloader: 1,
                tee: 2,
                snp: 7,
                microcode: 8
            }
        );
        let turin = TcbVersion::from_bytes(bytes, Product::Turin);
        assert_eq!(
            turin,
            TcbVersion {
                fmc: Some(1),
                bootloader: 2,
                tee: 3,
                snp: 4,
                microcode: 8
            }
        );
        assert_eq!(milan.to_bytes(Product::Milan), [1, 2, 0, 0, 0, 0, 7, 8]);
        assert_eq!(turin.to_bytes(Product::Turin), [1, 2, 3, 4, 0, 0, 0, 8]);
    }

    #[test]
    fn parts_are_compared_one_by_one() {
        let version = TcbVersion {
            fmc: None,
            bootloader: 9,
            tee: 0,
            snp: 20,
            microcode: 100,
        };
        let floor = TcbFloor {
            bootloader: Some(3),
            microcode: Some(101),
            ..TcbFloor::default()
        };
        assert_eq!(floor.violations(version), [(TcbPart::Microcode, 101, Some(100))]);
        let fmc = TcbFloor {
            fmc: Some(0),
            ..TcbFloor::default()
        };
        assert_eq!(
            fmc.violations(version),
            [(TcbPart::Fmc, 0, None)],
            "Milan and Genoa have no FMC"
        );
        let older = TcbVersion {
            bootloader: 10,
            microcode: 99,
            ..version
        };
        assert_eq!(version.parts_above(older), [TcbPart::Microcode]);
        assert_eq!(older.parts_above(version), [TcbPart::Bootloader]);
    }
}
